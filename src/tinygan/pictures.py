"""Pictures of a run: grids, two grids side by side, animations. Needs no display."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from string import Template

import torch
from PIL import Image, ImageDraw, ImageFont

COLUMNS = 8
LEGIBLE = 64
"""Images with a smaller side than this many pixels are magnified in grids."""


def grid(images: torch.Tensor, *, padding: int = 2) -> Image.Image:
    """Lay images out in rows of eight.

    Small images are magnified by a whole factor, pixel for pixel, so that a person can see them.

    Args:
        images: (N, C, H, W) in [-1, 1]. One channel is shown grey; of more than three the first
            three are shown, of two the first.
        padding: black pixels between images.

    Examples:
        >>> grid(torch.zeros(64, 3, 64, 64)).size
        (530, 530)
    """
    if images.dim() != 4 or len(images) == 0:
        raise ValueError(
            f"pictures need images (N, C, H, W), got {tuple(images.shape)}; leave out hooks that "
            "show images, or draw what you have in the trainer's sample=."
        )
    # Here, for it takes as long to import as PyTorch.
    from torchvision.transforms.functional import to_pil_image
    from torchvision.utils import make_grid

    channels = images.shape[1]
    shown = images.detach()[:, : 3 if channels >= 3 else 1].float().cpu()
    factor = max(1, round(LEGIBLE / min(shown.shape[2:])))
    shown = shown.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    tiled = make_grid(shown, COLUMNS, padding, normalize=True, value_range=(-1, 1))
    picture: Image.Image = to_pil_image(tiled)
    return picture


def titled(*panels: tuple[str, Image.Image]) -> Image.Image:
    """Put pictures side by side on white, each under its title.

    Examples:
        >>> real, fake = Image.new("RGB", (530, 530)), Image.new("RGB", (530, 530))
        >>> both = titled(("Real Images", real), ("Fake Images", fake))
    """
    margin, line = 24, 40
    width = sum(picture.width + margin for _, picture in panels) + margin
    height = max(picture.height for _, picture in panels) + margin + line
    page = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default(size=22)
    x = margin
    for title, picture in panels:
        draw.text((x + picture.width / 2, line / 2), title, "black", font, anchor="mm")
        page.paste(picture, (x, line))
        x += picture.width + margin
    return page


def save_gif(frames: Sequence[Path], path: Path, *, seconds_per_frame: float = 0.25) -> None:
    """Write pictures as an animated GIF that repeats for ever, resting on the last.

    Args:
        frames: picture files of one size, at least one.
        path: where to write.
        seconds_per_frame: how long each is shown; the last is shown for two seconds more.
    """
    pictures = [Image.open(frame).convert("RGB") for frame in frames]
    durations = [round(1000 * seconds_per_frame)] * len(pictures)
    durations[-1] += 2000
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=durations, loop=0)


def save_html(
    frames: Sequence[Path],
    path: Path,
    *,
    title: str,
    captions: Sequence[str],
    seconds_per_frame: float = 0.25,
) -> None:
    """Write pictures as one self-contained page with play, pause and a slider.

    Args:
        frames: picture files, at least one.
        path: where to write.
        title: of the page.
        captions: one for each picture.
        seconds_per_frame: how long each is shown.
    """
    images = [
        f'<img src="data:image/webp;base64,{_webp(frame)}" alt="{html.escape(caption)}">'
        for frame, caption in zip(frames, captions)
    ]
    template = resources.files("tinygan").joinpath("animation.html").read_text("utf-8")
    page = Template(template).substitute(
        title=html.escape(title),
        frames="\n".join(images),
        last=len(images) - 1,
        milliseconds=round(1000 * seconds_per_frame),
    )
    path.write_text(page, "utf-8")


def _webp(frame: Path) -> str:
    # A quarter of the size of PNG for a grid of photographs, without a difference to the eye.
    buffer = io.BytesIO()
    Image.open(frame).save(buffer, "WEBP", quality=90)
    return base64.b64encode(buffer.getvalue()).decode()
