"""Pictures of a run: grids, pictures side by side, animations. Needs no display."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from string import Template

import torch
from PIL import GifImagePlugin, Image, ImageDraw, ImageFont

from tinygan._run import checks, disk

__all__ = ["grid", "save_gif", "save_html", "titled"]

LEGIBLE = 64  # pixels; images with a smaller side are magnified in grids
WIDEST = 1100  # pixels; animations and notebooks show wider pictures smaller


def grid(images: torch.Tensor, *, padding: int = 2) -> Image.Image:
    """Lay images (N, C, H, W), in [-1, 1] or uint8, out in rows of eight, ``padding`` pixels apart.

    One channel is shown grey, of two the first, of more the first three. Small images are magnified
    by a whole factor. Raises TypeError for what is no tensor, ValueError for other shapes and
    ranges.

    Examples:
        >>> grid(torch.zeros(64, 3, 64, 64)).size
        (530, 530)
    """
    checks.count("padding", padding, at_least=0)
    value_range(images)
    # Here, because it takes as long to import as PyTorch.
    from torchvision.transforms.functional import to_pil_image
    from torchvision.utils import make_grid

    cells = in_bytes(images.detach()[:, : 3 if images.shape[1] >= 3 else 1]).cpu()
    factor = max(1, round(LEGIBLE / min(cells.shape[2:])))
    cells = cells.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    picture: Image.Image = to_pil_image(make_grid(cells, 8, padding))
    return picture


def in_bytes(images: torch.Tensor) -> torch.Tensor:
    """Return images in [-1, 1], or bytes, as the bytes that a picture shows of them."""
    if images.dtype == torch.uint8:
        return images
    return images.float().clamp(-1, 1).add_(1).div_(2).mul_(255).byte()


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
        draw.text((x + picture.width / 2, line / 2), title, "black", font, anchor="mm")
        page.paste(picture, (x, line))
        x += picture.width + margin
    return page


def small(path: Path | str) -> Image.Image:
    """Read a picture, in colour and not wider than fits a page."""
    with Image.open(path) as file:
        picture = file.convert("RGB")
    picture.thumbnail((WIDEST, picture.height))
    return picture


def save_gif(
    frames: Sequence[Path | str], path: Path | str, *, seconds_per_frame: float = 0.25
) -> None:
    """Write picture files of one size as a GIF that loops and shows the last for 2 seconds more.

    Frames wider than 1,100 pixels are made smaller. Raises ValueError for no frames.
    """
    checks.count("the number of frames", len(frames))
    checks.number("seconds_per_frame", seconds_per_frame, "(0, 60]")
    with disk.renamed(Path(path)) as file:
        # One by one: Pillow's own writer keeps all of them.
        for number, frame in enumerate(frames, 1):
            picture = small(frame).convert("P", palette=Image.Palette.ADAPTIVE)
            if number == 1:
                file.writelines(GifImagePlugin.getheader(picture, info={"loop": 0})[0])
            duration = round(1000 * seconds_per_frame) + 2000 * (number == len(frames))
            blocks = GifImagePlugin.getdata(picture, duration=duration, include_color_table=True)
            file.writelines(blocks)
            blocks.clear()  # or Pillow would keep them until Python's collector comes
        file.write(b";")


def save_html(
    frames: Sequence[Path | str],
    path: Path | str,
    *,
    captions: Sequence[str],
    seconds_per_frame: float = 0.25,
) -> None:
    """Write picture files, each with its caption, as one page with play, pause and a slider.

    Frames wider than 1,100 pixels are made smaller. Raises ValueError for no frames, or another
    number of captions.
    """
    checks.count("the number of frames", len(frames))
    checks.number("seconds_per_frame", seconds_per_frame, "(0, 60]")
    template = resources.files("tinygan").joinpath("animation.html").read_text("utf-8")
    page = Template(template).substitute(
        frames="\0", last=len(frames) - 1, milliseconds=round(1000 * seconds_per_frame)
    )
    head, tail = page.encode().split(b"\0")
    with disk.renamed(Path(path)) as file:
        disk.write(file, head)
        for number, (frame, caption) in enumerate(zip(frames, captions, strict=True)):
            # A quarter of the size of PNG for photographs, without a difference to the eye.
            memory = io.BytesIO()
            small(frame).save(memory, "WEBP", quality=90)
            content = base64.b64encode(memory.getvalue()).decode()
            image = f'<img src="data:image/webp;base64,{content}" alt="{html.escape(caption)}">'
            disk.write(file, ("\n" * (number > 0) + image).encode())
        disk.write(file, tail)
