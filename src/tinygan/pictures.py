"""Pictures of a run: grids, pictures side by side, animations. Needs no display."""

from __future__ import annotations

import base64
import html
import io
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import TypeAlias

import numpy as np
import torch
from PIL import GifImagePlugin, Image, ImageDraw, ImageFont, ImageOps

from tinygan._run import checks, disk

__all__ = ["grid", "save_gif", "save_html", "save_images", "save_mp4", "titled"]

LEGIBLE = 64  # pixels; images with a smaller side are magnified in grids
WIDEST = 1100  # pixels; animations and notebooks show wider pictures smaller
Frame: TypeAlias = Image.Image | Path | str


def grid(
    images: torch.Tensor,
    *,
    columns: int = 8,
    labels: Sequence[str] | None = None,
    padding: int = 2,
) -> Image.Image:
    """Lay images (N, C, H, W), in [-1, 1] or uint8, out in rows of eight, ``padding`` pixels apart.

    By ``labels``, the names of all images' classes, each class has rows of its own, after its name.
    One channel is shown grey, of two the first, of more the first three. Small images are magnified
    by a whole factor. Raises TypeError for what is no tensor, ValueError for other shapes and
    ranges.

    Examples:
        >>> grid(torch.zeros(64, 3, 64, 64)).size
        (530, 530)
    """
    checks.count("padding", padding, at_least=0)
    value_range(images)
    if labels is not None:
        if len(labels) != len(images):
            raise ValueError(f"labels must name {len(images)} classes, got {len(labels)}.")
        rows = {name: images[[each == name for each in labels]] for name in dict.fromkeys(labels)}
        made = {name: grid(some, columns=columns, padding=padding) for name, some in rows.items()}
        return _named(made)
    # Here, because it takes as long to import as PyTorch.
    from torchvision.transforms.functional import to_pil_image
    from torchvision.utils import make_grid

    cells = in_bytes(images.detach()[:, : 3 if images.shape[1] >= 3 else 1]).cpu()
    factor = max(1, round(LEGIBLE / min(cells.shape[2:])))
    cells = cells.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    picture: Image.Image = to_pil_image(make_grid(cells, columns, padding))
    return picture


def _named(rows: dict[str, Image.Image]) -> Image.Image:
    """Put pictures below each other, each beside its name."""
    font = ImageFont.load_default(size=22)
    left = round(max(map(font.getlength, rows))) + 24
    width, height = max(row.width for row in rows.values()), sum(r.height for r in rows.values())
    page, y = Image.new("RGB", (left + width, height), "white"), 0
    for name, row in rows.items():
        page.paste(row, (left, y))
        place = (left - 12, y + row.height / 2)
        ImageDraw.Draw(page).text(place, name, "black", font, anchor="rm")
        y += row.height
    return page


def in_bytes(images: torch.Tensor) -> torch.Tensor:
    """Return images in [-1, 1], or bytes, as the bytes that a picture shows of them."""
    if images.dtype == torch.uint8:
        return images
    return images.float().clamp(-1, 1).add_(1).mul_(127.5).round_().byte()


def value_range(images: torch.Tensor) -> tuple[float, float]:
    """Return the lowest and the highest value of images; waits for the device.

    Raises TypeError for what is no tensor, and ValueError unless it is (N, C, H, W), of bytes or in
    [-1, 1].
    """
    checks.tensor("images", images)
    shape = tuple(images.shape)
    remedy = "draw other data in the trainer's sample=, or leave hooks that draw out."
    if len(shape) == 3:
        remedy = "give one image as images[None], a list as torch.stack(images)."
    elif channels_last := len(shape) == 4 and shape[3] in (1, 3, 4) and min(shape[1:3]) >= 8:
        remedy = "use images.permute(0, 3, 1, 2)."
    if len(shape) != 4 or 0 in shape or channels_last:
        raise ValueError(f"images must be (N, C, H, W), got {shape}; {remedy}")
    low, high = float(images.min()), float(images.max())
    if images.dtype != torch.uint8:
        checks.image_range(low, high)
    return low, high


def shown(images: torch.Tensor, *, strict: bool = False) -> torch.Tensor:
    """Return a run's images cut to [-1, 1], as in image files: not every net ends in tanh.

    Raises ValueError for NaN, and if it is ``strict`` for those of which none is below 0.
    """
    cut = images.clamp(-1, 1) if images.is_floating_point() else images
    value_range(images if strict and images.min() >= 0 else cut)
    return cut


def titled(*panels: tuple[str, Image.Image]) -> Image.Image:
    """Put pictures side by side on white, each under its title.

    Examples:
        >>> both = titled(*[(name, Image.new("RGB", (9, 9))) for name in ("Real", "Fake")])
    """
    margin, line = 24, 40
    width = sum(picture.width + margin for _, picture in panels) + margin
    height = max(picture.height for _, picture in panels) + margin + line
    page = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(size=22)
    x = margin
    for title, picture in panels:
        fits = 22 * picture.width / font.getlength(title)  # a long title is smaller, but legible
        own = ImageFont.load_default(min(22, max(12, fits)))
        draw.text((x + picture.width / 2, line / 2), title, "black", own, anchor="mm")
        page.paste(picture, (x, line))
        x += picture.width + margin
    return page


def fitting(frame: Frame) -> Image.Image:
    """Return a frame in colour, as large as fits a page; a small one by a whole factor."""
    with frame.copy() if isinstance(frame, Image.Image) else Image.open(frame) as file:
        picture = file.convert("RGB")
    picture.thumbnail((WIDEST, picture.height))
    factor = max(1, min(512 // min(picture.size), WIDEST // picture.width))  # half a screen high
    return ImageOps.scale(picture, factor, Image.Resampling.NEAREST)


def save_gif(
    frames: Iterable[Frame], path: Path | str, *, seconds_per_frame: float = 0.25, rest: float = 2
) -> None:
    """Write pictures or their files, of one size, as a GIF that loops and ``rest`` s at the end.

    Those wider than 1,100 pixels are made smaller, small ones larger. Raises ValueError for none.
    """
    checks.number("seconds_per_frame", seconds_per_frame, "(0, 60]")
    with disk.renamed(Path(path)) as file:
        # One by one: Pillow's own writer keeps all of them.
        frames, number = iter(frames), 0
        following = next(frames, None)
        while (frame := following) is not None:
            number, following = number + 1, next(frames, None)
            picture = fitting(frame).convert("P", palette=Image.Palette.ADAPTIVE)
            if number == 1:
                file.writelines(GifImagePlugin.getheader(picture, info={"loop": 0})[0])
            duration = round(1000 * (seconds_per_frame + rest * (following is None)))
            blocks = GifImagePlugin.getdata(picture, duration=duration, include_color_table=True)
            file.writelines(blocks)
            blocks.clear()  # or Pillow would keep them until Python's collector comes
        checks.count("the number of frames", number)
        file.write(b";")


def save_html(
    frames: Iterable[Frame],
    path: Path | str,
    *,
    captions: Iterable[str],
    seconds_per_frame: float = 0.25,
    rest: float = 2,
    title: str = "The same noise, as the generator learns",
) -> None:
    """Write frames as for ``save_gif``, each with its caption, as one page with play and a slider.

    Raises ValueError for no frames, or another number of captions.
    """
    checks.number("seconds_per_frame", seconds_per_frame, "(0, 60]")
    template = resources.files("tinygan").joinpath("animation.html").read_text("utf-8")
    page = Template(template).substitute(
        frames="\0", title=title, rest=1000 * rest, milliseconds=round(1000 * seconds_per_frame)
    )
    (head, tail), number = page.encode().split(b"\0"), -1
    with disk.renamed(Path(path)) as file:
        disk.write(file, head)
        for number, (frame, caption) in enumerate(zip(frames, captions, strict=True)):
            # A quarter of the size of PNG for photographs, without a difference to the eye.
            memory = io.BytesIO()
            fitting(frame).save(memory, "WEBP", quality=90)
            content = base64.b64encode(memory.getvalue()).decode()
            image = f'<img src="data:image/webp;base64,{content}" alt="{html.escape(caption)}">'
            disk.write(file, ("\n" * (number > 0) + image).encode())
        checks.count("the number of frames", number + 1)
        disk.write(file, tail)


def save_mp4(frames: Iterable[Frame], path: Path | str, *, fps: int = 30) -> None:
    """Write frames as for ``save_gif`` as a film in H.264, of even sides, by PyAV."""
    checks.require("av", extra="video", wanted_by="an .mp4, other than a .gif or an .html,")
    import av

    with disk.renamed(Path(path)) as file, av.open(file, "w", format="mp4") as film:
        stream = film.add_stream("libx264", checks.count("fps", fps))
        stream.options, number = {"crf": "17"}, 0  # without a difference to the eye
        for number, picture in enumerate(map(fitting, frames), 1):
            if number == 1:
                size = picture.width + picture.width % 2, picture.height + picture.height % 2
                stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
            even = np.asarray(picture.resize(size, Image.Resampling.NEAREST))
            film.mux(stream.encode(av.VideoFrame.from_ndarray(even)))
        checks.count("the number of frames", number)
        film.mux(stream.encode())


def save_images(images: Iterable[torch.Tensor], names: Iterable[str], path: Path | str) -> None:
    """Write images (C, H, W), by name, as PNG files in a folder or a .zip; all of them, or none.

    An .npy is one array without names, (N, H, W, C) of uint8. Raises ValueError for other endings.
    """
    path = checks.path("out", path)
    # "faces.tar" and files that are there are refused, "truncated_0.7" is a folder.
    is_one = path.is_dir() or not (path.suffix[1:].isalpha() or path.exists())
    if path.suffix not in (".zip", ".npy") and not is_one:
        raise ValueError(f"out must be a folder, a .zip or an .npy, got {path}; choose one.")
    if path.suffix == ".npy":
        arrays = [in_bytes(image).permute(1, 2, 0).cpu().numpy() for image in images]
        with disk.renamed(path) as array:
            np.save(array, np.stack(arrays))
        return
    if path.suffix == ".zip":
        with disk.renamed(path) as whole, zipfile.ZipFile(whole, "w") as archive:
            for name, image in zip(names, images):
                with archive.open(f"{name}.png", "w") as entry:
                    _picture(image).save(entry, "PNG")
        return
    with tempfile.TemporaryDirectory(prefix=f"{path.name}.", dir=path.parent) as folder:
        for name, image in zip(names, images):
            _picture(image).save(Path(folder, f"{name}.png"))
        path.mkdir(exist_ok=True)
        for png in Path(folder).iterdir():
            disk.replace(png, path / png.name)


def _picture(image: torch.Tensor) -> Image.Image:
    """Return an image (C, H, W) as a picture, in the colours that a grid has."""
    pixels = in_bytes(image).permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(pixels[..., :3] if len(image) >= 3 else pixels[..., 0])
