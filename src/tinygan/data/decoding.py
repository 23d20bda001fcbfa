"""From a file to a tensor, as the DCGAN tutorial does; whatever may go wrong is one error."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

import torch
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

# Pillow knows dozens of formats, some of which start other programs.
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")

# What becomes of a picture, for files that keep the outcome. The number changes whenever pixels do.
TRANSFORM = "upright, on white, covered by a bilinear resize, cropped about its centre"
TRANSFORM_VERSION = 1

# A strip of 1 x 60,000 pixels becomes one of 64 x 3,840,000 before its centre is cut out.
LONGEST = 100


class BadImageError(Exception):
    """An image that cannot be used; the text says why."""


@contextmanager
def one_error() -> Iterator[None]:
    """Make ``BadImageError`` of all that goes wrong with a file, and nothing of warnings about it.

    Examples:
        >>> with one_error():
        ...     raise EOFError("the bytes are used up")
        Traceback (most recent call last):
        tinygan.data.decoding.BadImageError: the bytes are used up
    """
    with warnings.catch_warnings():
        # About metadata that is not used here. Where warnings are errors, they would be damage.
        warnings.simplefilter("ignore")
        try:
            yield
        except BadImageError:
            raise
        except Exception as error:
            # So broad because damaged bytes make decoders raise nearly anything: OSError,
            # SyntaxError, ValueError, TypeError, EOFError, MemoryError, struct.error, zlib.error...
            raise BadImageError(_reason(error)) from error


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"no {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror  # without the path, which need not be printable
    return " ".join(str(error).split()) or type(error).__name__


def look_at(file: IO[bytes], max_pixels: int) -> None:
    """Refuse what need not be decoded to be found bad.

    Args:
        file: open for reading, seekable.
        max_pixels: how many an image may have.

    Raises:
        BadImageError: for a JPEG that was cut off, for too many pixels or of no known range.
        Exception: whatever Pillow raises for a header that is damaged, or none.
    """
    if _is_cut_off(file):
        raise BadImageError("truncated, the JPEG's end marker is missing")
    _open(file, max_pixels).close()


def _is_cut_off(file: IO[bytes]) -> bool:
    """Return whether a JPEG has no end marker; other decoders do not insist on theirs."""
    file.seek(0)
    if file.read(3) != b"\xff\xd8\xff" or ImageFile.LOAD_TRUNCATED_IMAGES:
        return False
    size = file.seek(0, 2)
    # First where it should be, then everywhere: phones append whole films to their photos.
    for start in (max(0, size - 2**16), 0):
        file.seek(start)
        if b"\xff\xd9" in file.read():
            return False
    return True


def _open(file: IO[bytes], max_pixels: int) -> Image.Image:
    """Open a picture as far as its header, which says whether it is safe to go on."""
    picture = Image.open(file, formats=FORMATS)
    width, height = picture.size
    if width * height > max_pixels:
        raise BadImageError(f"{width} x {height} pixels, more than max_pixels, {max_pixels}")
    if max(width, height) > LONGEST * min(width, height):
        raise BadImageError(f"{width} x {height} pixels, over {LONGEST} times as long as wide")
    if picture.mode in ("F", "LAB"):
        raise BadImageError(f"mode {picture.mode}, which has no plain conversion to grey or colour")
    return picture


def decode(file: IO[bytes], channels: int, max_pixels: int) -> Image.Image:
    """Decode a picture as it is meant to be seen: upright, on white, its first frame.

    Args:
        file: open for reading, seekable.
        channels: 3 for a picture of mode "RGB" or 1 for "L".
        max_pixels: how many it may have.

    Raises:
        BadImageError: for too many pixels, or of no known range.
        Exception: whatever Pillow raises for damage.

    Examples:
        >>> import io
        >>> file = io.BytesIO()
        >>> Image.new("RGBA", (4, 2), (255, 0, 0, 0)).save(file, "PNG")
        >>> decode(file, channels=3, max_pixels=100).getpixel((0, 0))
        (255, 255, 255)
    """
    with _open(file, max_pixels) as picture:
        picture.load()
        # Photos outlive broken EXIF blocks, which are common: they stay as they are stored.
        with suppress(Exception):
            ImageOps.exif_transpose(picture, in_place=True)
        return _on_white(_in_8_bits(picture)).convert("RGB" if channels == 3 else "L")


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


def _on_white(picture: Image.Image) -> Image.Image:
    if not picture.has_transparency_data:
        return picture
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture.convert("RGBA"))


def to_pixels(image: Image.Image, image_size: tuple[int, int]) -> torch.Tensor:
    """Resize a picture and crop it about its centre: (C, H, W), uint8.

    For a square this is the tutorial's Resize(n), CenterCrop(n); an oblong is covered in the same
    way, by the smallest resize that leaves no gap.

    Args:
        image: of mode "RGB" (C = 3) or "L" (C = 1).
        image_size: (height, width) in pixels.

    Examples:
        >>> to_pixels(Image.new("RGB", (178, 218)), (64, 64)).shape
        torch.Size([3, 64, 64])
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
    """Scale bytes of any shape to float32 in [-1, 1]: the tutorial's ToTensor, Normalize(.5, .5).

    Examples:
        >>> scale(torch.tensor([0, 255], dtype=torch.uint8))
        tensor([-1.,  1.])
    """
    # x / 255 * 2 to the last bit, as doubling rounds nothing. By a tensor that lies where the
    # pixels do, since CUDA divides by a number as it multiplies by its rounded reciprocal.
    half = torch.full((), 127.5, device=pixels.device)
    return pixels.float().div_(half).sub_(1)
