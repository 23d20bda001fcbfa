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
from PIL import Image, ImageDraw, ImageFont

from tinygan._run import disk

LEGIBLE = 64  # pixels; images with a smaller side are magnified in grids


def grid(images: torch.Tensor, *, padding: int = 2) -> Image.Image:
    """Lay images (N, C, H, W) in [-1, 1] out in rows of eight, ``padding`` black pixels apart.

    One channel is shown grey, of two the first, of more the first three. Small images are magnified
    by a whole factor. Raises ValueError for other shapes.

    Examples:
        >>> grid(torch.zeros(64, 3, 64, 64)).size
        (530, 530)
    """
    if images.dim() != 4 or len(images) == 0:
        raise ValueError(
            f"pictures need images (N, C, H, W), got {tuple(images.shape)}; leave out hooks that "
            "show images, or draw pictures in the trainer's sample=."
        )
    # Here, because it takes as long to import as PyTorch.
    from torchvision.transforms.functional import to_pil_image
    from torchvision.utils import make_grid

    shown = images.detach()[:, : 3 if images.shape[1] >= 3 else 1].float().cpu()
    factor = max(1, round(LEGIBLE / min(shown.shape[2:])))
    shown = shown.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    shown = make_grid(shown, 8, padding, normalize=True, value_range=(-1, 1))
    picture: Image.Image = to_pil_image(shown)
    return picture


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


def save_gif(frames: Sequence[Path], path: Path, *, seconds_per_frame: float = 0.25) -> None:
    """Write picture files of one size as a GIF that loops and shows the last for 2 seconds more."""
    pictures = [Image.open(frame).convert("RGB") for frame in frames]
    durations = [round(1000 * seconds_per_frame)] * len(pictures)
    durations[-1] += 2000
    with disk.renamed(path) as file:
        pictures[0].save(
            file, "GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0
        )


def save_html(
    frames: Sequence[Path], path: Path, *, captions: Sequence[str], seconds_per_frame: float = 0.25
) -> None:
    """Write picture files, each with its caption, as one page with play, pause and a slider."""
    images = []
    for frame, caption in zip(frames, captions):
        # A quarter of the size of PNG for photographs, without a difference to the eye.
        memory = io.BytesIO()
        Image.open(frame).save(memory, "WEBP", quality=90)
        content = base64.b64encode(memory.getvalue()).decode()
        images.append(f'<img src="data:image/webp;base64,{content}" alt="{html.escape(caption)}">')
    template = resources.files("tinygan").joinpath("animation.html").read_text("utf-8")
    page = Template(template).substitute(
        frames="\n".join(images),
        last=len(images) - 1,
        milliseconds=round(1000 * seconds_per_frame),
    )
    with disk.renamed(path) as file:
        disk.write(file, page.encode())
