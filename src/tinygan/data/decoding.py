"""From a file to pixels, as the DCGAN tutorial does it; whatever may go wrong is one error."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

# Pillow knows dozens of formats, some of which start other programs.
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "AVIF", "WEBP", "GIF")

# What becomes of a picture, for files that keep the outcome. The number changes whenever pixels do.
TRANSFORM = "1: upright, on white, covered by a bilinear resize, cropped about its centre"

# A strip of 1 x 60,000 pixels becomes one of 64 x 3,840,000 before its centre is cut out.
LONGEST = 100


class BadImageError(Exception):
    """An image that cannot be used; the text says why."""


@contextmanager
def one_error() -> Iterator[None]:
    """Turn every exception about a file into ``BadImageError``; ignore warnings about it."""
    with warnings.catch_warnings():
        # About metadata that is not used here. Where warnings are errors, they would be damage.
        warnings.simplefilter("ignore")
        try:
            yield
        except BadImageError:
            raise
        # So broad because damaged bytes make decoders raise nearly anything: OSError, SyntaxError,
        # ValueError, TypeError, EOFError, MemoryError, struct.error, zlib.error...
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            if isinstance(error, UnidentifiedImageError):
                reason = f"no {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image"
            elif isinstance(error, OSError) and error.strerror:
                reason = error.strerror  # without the path, which need not be printable
            raise BadImageError(reason) from error


def decode(content: bytes, channels: int, max_pixels: int) -> Image.Image:
    """Decode a picture as it is meant to be seen: upright, on white, its first frame.

    Gives mode "RGB" or "L". Raises BadImageError, or whatever Pillow raises for damage.
    """
    # A JPEG's decoder does not insist on its end. Phones append whole films to their photos.
    cut_off = content[:3] == b"\xff\xd8\xff" and b"\xff\xd9" not in content
    if cut_off and not ImageFile.LOAD_TRUNCATED_IMAGES:
        raise BadImageError("truncated, the JPEG's end marker is missing")
    with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
        width, height = picture.size
        if width * height > max_pixels:
            raise BadImageError(f"{width} x {height} pixels, more than max_pixels, {max_pixels}")
        if max(width, height) > LONGEST * min(width, height):
            raise BadImageError(f"{width} x {height} pixels, over {LONGEST} times as long as wide")
        if picture.mode in ("F", "LAB"):
            raise BadImageError(f"mode {picture.mode}, with no plain conversion to colour")
        picture.load()
        # Photos outlive broken EXIF blocks, which are common: they stay as they are stored.
        with suppress(Exception):
            ImageOps.exif_transpose(picture, in_place=True)
        seen = _in_8_bits(picture)
        if seen.has_transparency_data:
            white = Image.new("RGBA", seen.size, "white")
            seen = Image.alpha_composite(white, seen.convert("RGBA"))
        return seen.convert("RGB" if channels == 3 else "L")


def _in_8_bits(picture: Image.Image) -> Image.Image:
    """Scale 16-bit grey, of which Pillow's own conversion makes white wherever it is over 255."""
    if not picture.mode.startswith("I"):
        return picture
    grey = picture.convert("I")
    # A grey that stands for transparent shares its 8 bits with others, which are to be seen.
    grey.info.pop("transparency", None)
    brightest: Any = grey.getextrema()[1]
    if brightest > 65535:
        raise BadImageError("grey values over 65535, whose range is unknown")
    return grey.point(lambda value: value * (255 / 65535) + 0.5).convert("L")


def to_pixels(image: Image.Image, image_size: tuple[int, int]) -> torch.Tensor:
    """Resize a picture until it covers (height, width), and crop it: (C, H, W) of uint8.

    For a square this is the tutorial's Resize(n), CenterCrop(n).
    """
    height, width = image_size
    # int() of the longer side, not round(): that is how torchvision's Resize(n) counts.
    if image.height * width >= image.width * height:
        resized = (width, max(height, int(width * image.height / image.width)))
    else:
        resized = (max(width, int(height * image.width / image.height)), height)
    covered = image.resize(resized, Image.Resampling.BILINEAR)
    left, top = round((covered.width - width) / 2), round((covered.height - height) / 2)
    cropped = covered.crop((left, top, left + width, top + height))
    # A bytearray, because tensors do not share memory that cannot be written.
    pixels = torch.frombuffer(bytearray(cropped.tobytes()), dtype=torch.uint8)
    return pixels.view(height, width, -1).permute(2, 0, 1).contiguous()


def scale(pixels: torch.Tensor) -> torch.Tensor:
    """Scale bytes to float32 in [-1, 1], as the tutorial's ToTensor and Normalize(.5, .5) do."""
    # x / 255 * 2 to the last bit, as doubling rounds nothing. By a tensor that lies where the
    # pixels do, since CUDA divides by a number as it multiplies by its rounded reciprocal.
    half = torch.full((), 127.5, dtype=torch.float32, device=pixels.device)
    return pixels.float().div_(half).sub_(1)
