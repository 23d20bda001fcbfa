"""Decoding: pictures are seen as they are meant to be, and damage is one error."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageFile

from tinygan.data.decoding import BadImageError, decode, one_error

MANY = 10**6


def encoded(image, kind, **options):
    """Return the bytes of an image file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixel(mode, value):
    """Return a picture of 2 x 2 pixels of one value."""
    return Image.new(mode, (2, 2), value)


def palette(**info):
    """Return a picture of 2 x 2 red pixels, of mode P."""
    image = Image.new("P", (2, 2), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.info.update(info)
    return image


def wide(values, kind):
    """Return a picture of grey values in an integer type of NumPy's."""
    return Image.fromarray(np.array([values], kind))


# The grey of red, as Pillow's "L" mode weighs it: 255 * 0.299.
RED = ((255, 0, 0), 76)
GREY = ((100, 100, 100), 100)
WHITE = ((255, 255, 255), 255)


@pytest.mark.parametrize(
    ("image", "kind", "options", "colour"),
    [
        (pixel("RGB", (255, 0, 0)), "PNG", {}, RED),
        (pixel("L", 100), "PNG", {}, GREY),
        (pixel("1", 1), "PNG", {}, WHITE),
        (pixel("CMYK", (0, 255, 255, 0)), "TIFF", {}, RED),
        (pixel("CMYK", (0, 0, 0, 155)), "JPEG", {}, GREY),
        (pixel("YCbCr", (100, 128, 128)), "TIFF", {}, GREY),
        (palette(), "PNG", {}, RED),
        (palette(), "GIF", {}, RED),
        (palette(), "PNG", {"transparency": 0}, WHITE),
        (palette(), "PNG", {"transparency": 1}, RED),
        (palette(), "PNG", {"transparency": b"\x00\xff"}, WHITE),
        (palette(), "GIF", {"transparency": 0}, WHITE),
        (pixel("RGB", (255, 0, 0)), "PNG", {"transparency": (255, 0, 0)}, WHITE),
        (pixel("L", 100), "PNG", {"transparency": 100}, WHITE),
        (pixel("LA", (100, 255)), "PNG", {}, GREY),
        (pixel("LA", (100, 0)), "PNG", {}, WHITE),
        (pixel("LA", (0, 155)), "PNG", {}, GREY),
        (pixel("RGBA", (255, 0, 0, 255)), "PNG", {}, RED),
        (pixel("RGBA", (255, 0, 0, 0)), "TIFF", {}, WHITE),
        (pixel("RGBA", (0, 0, 0, 155)), "WEBP", {"lossless": True}, GREY),
        (wide([100 * 257] * 2, np.uint16), "PNG", {}, GREY),
        (wide([100 * 257] * 2, np.uint16), "PNG", {"transparency": 100 * 257}, GREY),
        (wide([100 * 257] * 2, np.uint16), "TIFF", {}, GREY),
        (wide([100 * 257] * 2, np.uint16), "PPM", {}, GREY),
        (wide([100 * 257] * 2, ">u2"), "TIFF", {}, GREY),
        (wide([65535] * 2, np.int32), "TIFF", {}, WHITE),
    ],
    ids=lambda value: getattr(value, "mode", None),
)
def test_every_mode_has_its_colour(image, kind, options, colour):
    """Grey, colour, palettes, inks, transparency on white and 16 bits all give what is seen."""
    rgb, grey = colour
    file = encoded(image, kind, **options)
    assert decode(file, 3, MANY).getpixel((0, 0)) == rgb
    assert decode(file, 1, MANY).getpixel((0, 0)) == grey


def test_16_bits_are_scaled_and_rounded():
    """65,536 greys become 256, the nearest of each, and none is clipped to white."""
    values = np.arange(65536).reshape(256, 256)
    grey = decode(encoded(Image.fromarray(values.astype(np.uint16)), "PNG"), 1, MANY)
    assert np.array_equal(np.asarray(grey), np.floor(values / 257 + 0.5))


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (pixel("F", 0.5), "mode F, with no plain conversion to colour"),
        (pixel("LAB", 0), "mode LAB, with no plain conversion to colour"),
        (wide([0, 70_000], np.int32), "grey values over 65535, whose range is unknown"),
    ],
)
def test_pixels_of_unknown_range_are_refused(image, reason):
    """Where nobody can say what is white, nobody guesses."""
    with pytest.raises(BadImageError) as error:
        decode(encoded(image, "TIFF"), 3, MANY)
    assert str(error.value) == reason


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_counts(kind):
    """Of an animation, or of many pages, the first picture is taken."""
    pages = [pixel("RGB", colour) for colour in [(255, 0, 0), (0, 0, 255)]]
    # Only a WebP loses colour unless told not to; the others do not know the word.
    options = {"lossless": True} if kind == "WEBP" else {}
    file = encoded(pages[0], kind, save_all=True, append_images=pages[1:], **options)
    with Image.open(io.BytesIO(file)) as image:
        assert image.n_frames == 2
    assert decode(file, 3, MANY).getpixel((0, 0)) == (255, 0, 0)


# Where the first row and the first column of what is stored belong, from the EXIF standard.
ORIENTATIONS = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_pictures_stand_upright(kind, orientation):
    """Whatever way a camera was held, top is up and left is left."""
    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:8, :8], upright[:8, 8:], upright[8:, :8] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    row, column = ORIENTATIONS[orientation]
    stored = upright.transpose(1, 0, 2) if row in ("left", "right") else upright
    stored = stored[::-1] if row in ("bottom", "right") else stored
    stored = stored[:, ::-1] if column in ("bottom", "right") else stored

    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    file = encoded(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif, **options)
    found = np.asarray(decode(file, 3, MANY)).astype(int)
    assert found.shape == upright.shape
    assert np.abs(found - upright).max() <= 2  # what JPEG rounds


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\x00\x00",
        b"Exif\x00\x00garbage of no meaning",
        b"Exif\x00\x00II*\x00\xff\xff\xff\x7f",
        b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01\x00\x09\x00\x00",
        b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\x00\x02\x00\x00\x00\x02six\x00",
        b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\xff\xff\x01\x12",
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_broken_exif_block_costs_no_picture(kind, exif):
    """A picture whose EXIF block makes no sense is taken as it is stored."""
    image = Image.linear_gradient("L").resize((16, 24))
    plain, broken = encoded(image, kind), encoded(image, kind, exif=exif)
    with one_error():
        assert decode(broken, 1, MANY).tobytes() == decode(plain, 1, MANY).tobytes()


def test_one_error_says_what_others_say():
    """Whatever is raised inside comes out as one exception, with its words or its name."""
    for error, text in [
        (OSError(2, "No such file or directory", "a\nb"), "No such file or directory"),
        (SyntaxError("broken\nfile"), "broken file"),
        (MemoryError(), "MemoryError"),
    ]:
        with pytest.raises(BadImageError, match=f"^{text}$"), one_error():
            raise error
    with pytest.raises(KeyboardInterrupt), one_error():
        raise KeyboardInterrupt


def test_a_jpeg_ends_with_its_marker(monkeypatch):
    """A JPEG may go on after its end, by however much, but not end before it unless allowed to."""
    file = encoded(Image.linear_gradient("L"), "JPEG")
    for tail in (b"", b"\x00", bytes(2**17)):
        decode(file + tail, 3, MANY)
    for cut in (1, 2, len(file) // 2):
        with pytest.raises(BadImageError, match=r"^truncated, the JPEG's end marker is missing$"):
            decode(file[:-cut], 3, MANY)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    decode(file[:-2], 3, MANY)
