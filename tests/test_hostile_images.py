"""Hostile images: whatever lies in a folder or a zip, it trains or is named, and nothing hangs."""

from __future__ import annotations

import io
import logging
import os
import pickle
import random
import re
import signal
import socket
import tracemalloc
import zipfile
import zlib
from multiprocessing.reduction import ForkingPickler
from unittest.mock import ANY

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from tinygan import data


class Hang(BaseException):
    """Something took far too long; nothing that catches exceptions catches this."""


@pytest.fixture(autouse=True)
def _alarm():
    def stop(*_):
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def picture(seed=0, size=(16, 12), mode="RGB"):
    """Return a smooth picture, another for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).convert(mode)


def encoded(kind, image=None, **options):
    """Return the bytes of an image file."""
    file = io.BytesIO()
    (picture() if image is None else image).save(file, kind, **options)
    return file.getvalue()


def moving(kind):
    """Return the bytes of a file of two pictures."""
    return encoded(kind, save_all=True, append_images=[picture(1)])


def forged(width, height):
    """Return a small PNG whose header tells of another size."""
    header = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + PNG[24:29]
    return PNG[:12] + header + zlib.crc32(header).to_bytes(4, "big") + PNG[33:]


def cut(file, share=0.6):
    """Return the first part of a file."""
    return file[: int(len(file) * share)]


JPEG, PNG = encoded("JPEG"), encoded("PNG")
FLOAT, INT = (Image.fromarray(np.full((9, 9), 70_000, kind)) for kind in (np.float32, np.int32))

# What the scan says; None for files that train, DAMAGE for what only decoding finds.
DAMAGE, HIDDEN = "found when decoded", "passed over"
EMPTY, NONE = "empty", "no JPEG, PNG, PPM, BMP, TIFF, WEBP or GIF image"
ENDLESS = "truncated, the JPEG's end marker is missing"
RANGE = "mode F, which has no plain conversion to grey or colour"
CORPUS = {
    "plain.jpg": (JPEG, None),
    "progressive.jpg": (encoded("JPEG", progressive=True), None),
    "grey.jpeg": (encoded("JPEG", picture(mode="L")), None),
    "inks.jpg": (encoded("JPEG", picture(mode="CMYK")), None),
    "film inside.jpg": (JPEG + bytes(100_000), None),
    "broken exif.jpg": (encoded("JPEG", exif=b"Exif\x00\x00MM\x00*\xff"), None),
    "really a png.jpg": (PNG, None),
    "UPPER.JPG": (JPEG, None),
    "plain.png": (PNG, None),
    "palette.png": (encoded("PNG", picture(mode="P")), None),
    "clear palette.png": (encoded("PNG", picture(mode="P"), transparency=b"\x00\x80"), None),
    "clear.png": (encoded("PNG", picture(mode="RGBA")), None),
    "clear grey.png": (encoded("PNG", picture(mode="LA")), None),
    "black and white.png": (encoded("PNG", picture(mode="1")), None),
    "16 bits.png": (encoded("PNG", picture(mode="L").convert("I;16")), None),
    "moving.png": (moving("PNG"), None),
    "no end.png": (PNG[:-12], None),
    "more.png": (PNG + b"and more", None),
    "moving.gif": (moving("GIF"), None),
    "clear.gif": (encoded("GIF", picture(mode="P"), transparency=0), None),
    "moving.webp": (moving("WEBP"), None),
    "lossless.webp": (encoded("WEBP", picture(mode="RGBA"), lossless=True), None),
    "plain.bmp": (encoded("BMP"), None),
    "palette.bmp": (encoded("BMP", picture(mode="P")), None),
    "pages.tif": (moving("TIFF"), None),
    "packed.tiff": (encoded("TIFF", compression="tiff_lzw"), None),
    "fax.tif": (encoded("TIFF", picture(mode="1"), compression="group4"), None),
    "plain.ppm": (encoded("PPM"), None),
    "16 bits.pgm": (encoded("PPM", picture(mode="L").convert("I;16")), None),
    "written out.pgm": (b"P2 2 2 255\n0 80 160 255\n", None),
    "one pixel.png": (encoded("PNG", Image.new("RGB", (1, 1))), None),
    "100 to 1.png": (encoded("PNG", Image.new("RGB", (100, 1))), None),
    "line\nbreak.png": (PNG, None),
    "%s {0} -rf *.png": (PNG, None),
    "grün 図.png": (PNG, None),
    "l" + 200 * "o" + "ng.png": (PNG, None),
    "empty.jpg": (b"", EMPTY),
    "empty.png": (b"", EMPTY),
    "text.jpg": (b"no picture", NONE),
    "page.png": (b"<!doctype html><title>404</title>", NONE),
    "drawing.png": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', NONE),
    "program.jpg": (encoded("EPS"), NONE),
    "icon.bmp": (encoded("ICO", picture(size=(16, 16))), NONE),
    "zeros.png": (bytes(1000), NONE),
    "half.jpg": (cut(JPEG), ENDLESS),
    "half, zeros.jpg": (cut(JPEG) + bytes(1000), ENDLESS),
    "no end.jpg": (JPEG[:-2], ENDLESS),
    "start.jpg": (JPEG[:3], ENDLESS),
    "two ends.jpg": (b"\xff\xd8\xff\xd9", NONE),
    "signature.png": (PNG[:8], NONE),
    "half, packed.tif": (cut(encoded("TIFF", compression="tiff_lzw")), NONE),
    "half.webp": (cut(encoded("WEBP")), ANY),
    "no width.png": (forged(0, 12), NONE),
    "huge.png": (forged(9_000, 9_000), "9000 x 9000 pixels, more than max_pixels, 64000000"),
    "strip.png": (forged(101, 1), "101 x 1 pixels, over 100 times as long as wide"),
    "float.tif": (
        encoded("TIFF", FLOAT),
        "mode F, which has no plain conversion to grey or colour",
    ),
    "half.png": (cut(PNG), DAMAGE),
    "noise inside.png": (PNG[:60] + b"noise" + PNG[65:], DAMAGE),
    "larger.png": (forged(40, 40), DAMAGE),
    "half.gif": (cut(encoded("GIF"), 0.95), DAMAGE),
    "half.bmp": (cut(encoded("BMP")), DAMAGE),
    "half.ppm": (cut(encoded("PPM")), DAMAGE),
    "half.tif": (cut(encoded("TIFF")), DAMAGE),
    "32 bits.tif": (encoded("TIFF", INT), DAMAGE),
    ".hidden.png": (b"", HIDDEN),
    "__MACOSX/._plain.jpg": (b"", HIDDEN),
    ".thumbnails/plain.jpg": (PNG, HIDDEN),
    "notes.txt": (b"no picture", HIDDEN),
}


def build(root, contents, zipped=False):
    """Write files by name into a folder or a zip."""
    root.mkdir()
    for name, content in contents.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(content)
    if not zipped:
        return root
    archive = root.with_suffix(".zip")
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for name in contents:
            file.write(root / name, name)
    return archive


def good(count):
    """Return pictures by name, all different."""
    return {f"{index:02}.png": encoded("PNG", picture(index)) for index in range(count)}


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_corpus_trains_or_is_named(tmp_path, caplog, zipped, channels):
    """Of some 60 hostile files each is passed over, left out, replaced or trained on, as told."""
    root = build(tmp_path / "all", {name: file for name, (file, _) in CORPUS.items()}, zipped)
    expected = {name: fate for name, (_, fate) in CORPUS.items() if fate is not HIDDEN}
    images = data.image_folder(root, (8, 10), channels, max_bad=0.9)

    rejected = {name: why for name, why in expected.items() if why is not None}
    damaged = sorted(name for name, why in rejected.items() if why is DAMAGE)
    assert images.rejected == {name: rejected[name] for name in rejected if name not in damaged}
    assert images.names == sorted(expected.keys() - images.rejected.keys())
    (warning,) = caplog.messages
    assert warning.startswith(f"20 of {len(expected)} files in {root} are bad and left out: 'dr")
    assert warning.endswith(f"'icon.bmp' ({NONE}) and 10 more.")

    caplog.clear()
    for _ in range(2):
        for image in images:
            assert image.shape == (channels, 8, 10)
            assert image.isfinite().all()
            assert image.abs().max() <= 1
    assert [message.split(" in ")[0] for message in caplog.messages] == [repr(n) for n in damaged]
    for name in damaged:
        index = images.names.index(name)
        while images.names[index] in damaged:
            index += 1
        assert torch.equal(images[images.names.index(name)], images[index])


def test_too_many_bad_files_stop_before_the_first_step(tmp_path):
    """Above max_bad the run ends before it begins, with a list; at max_bad it goes on."""
    root = build(tmp_path / "all", {"é\n.png": b"", **{f"x{i}.jpg": b"no" for i in range(11)}})
    build(tmp_path / "some", {**good(9), "bad.png": b""})
    assert len(data.image_folder(tmp_path / "some", 8)) == 9
    with pytest.raises(ValueError) as error:
        data.image_folder(tmp_path / "some", 8, max_bad=0.09)
    assert str(error.value) == (
        "max_bad must be at least the fraction of bad files, got 0.09 with 1 of 10 bad in "
        f"{tmp_path / 'some'}: 'bad.png' (empty); repair or remove them, or raise max_bad."
    )
    with pytest.raises(ValueError) as error:
        data.image_folder(root, 8, max_bad=1)
    listed = ", ".join(
        f"'{name}.jpg' (no JPEG, PNG, PPM, BMP, TIFF, WEBP or GIF image)"
        for name in ["x0", "x1", "x10", *(f"x{i}" for i in range(2, 9))]
    )
    assert str(error.value) == (
        f"root must hold good images, got {root} with 12 bad ones: {listed} and 2 more; "
        "check the path."
    )


@pytest.mark.parametrize("max_bad", [-0.1, 1.1, float("nan"), "0.1"])
def test_max_bad_is_a_fraction(max_bad):
    """What is no fraction is refused."""
    with pytest.raises(ValueError, match=r"max_bad must be from 0 to 1, got .*; use 0.1, say"):
        data.image_folder(".", max_bad=max_bad)


@pytest.mark.parametrize(
    ("sides", "max_pixels", "reason"),
    [
        ((60_000, 60_000), 64_000_000, "Image size (3600000000 pixels) exceeds limit of 178956970"),
        ((10_000, 10_000), 64_000_000, "10000 x 10000 pixels, more than max_pixels, 64000000"),
        ((4, 4), 15, "4 x 4 pixels, more than max_pixels, 15"),
    ],
)
def test_pixels_are_counted_before_decoding(tmp_path, monkeypatch, sides, max_pixels, reason):
    """No decoder sees an image of too many pixels, and Pillow's own limit is no crash."""
    decoded = []
    monkeypatch.setattr(ImageFile.ImageFile, "load", decoded.append)
    root = build(tmp_path / "all", {"huge.png": forged(*sides), "1.png": forged(1, 1)})
    images = data.image_folder(root, 8, max_pixels=max_pixels, max_bad=0.5)
    assert images.rejected["huge.png"].startswith(reason)
    # One that grew after the scan.
    (root / "1.png").write_bytes(forged(*sides))
    with pytest.raises(ValueError, match="root must hold good images"):
        images[0]
    assert decoded == []


def test_what_is_no_regular_file_is_never_opened(tmp_path, monkeypatch):
    """FIFOs, sockets, devices, loops of links and dead links are named; links to files train."""
    root = build(tmp_path / "all", good(2))
    monkeypatch.chdir(root)  # a socket's path must be short
    os.mkfifo("fifo.png")
    os.mkdir("a folder.png")
    with socket.socket(socket.AF_UNIX) as open_socket:
        open_socket.bind("socket.png")
    for link, target in {
        "link.png": "00.png",
        "folder": "..",
        "loop.png": "loop.png",
        "dead.png": "nowhere",
        "fifo link.png": "fifo.png",
        "device.png": "/dev/zero",
    }.items():
        os.symlink(target, link)
    images = data.image_folder(root, 8, max_bad=0.9)
    assert images.names == ["00.png", "01.png", "link.png"]
    assert images.rejected == {
        "dead.png": "No such file or directory",
        "device.png": "no regular file",
        "fifo link.png": "no regular file",
        "fifo.png": "no regular file",
        "loop.png": "Too many levels of symbolic links",
        "socket.png": "no regular file",
    }
    os.remove("01.png")
    os.mkfifo("01.png")
    assert torch.equal(images[1], images[2])


def test_what_may_not_be_read_is_named(tmp_path, monkeypatch):
    """Files and folders without permission are named like other bad ones."""
    # Raised by hand, because root may read everything.
    root = build(tmp_path / "all", {**good(2), "secret.png": PNG, "in/a.png": PNG})
    scandir = os.scandir

    def refuse(path, *arguments, **options):
        if os.fspath(path).endswith(("/in", "secret.png")):
            raise PermissionError(13, "Permission denied", path)
        return (scandir if not arguments else open)(path, *arguments, **options)

    monkeypatch.setattr("os.scandir", refuse)
    monkeypatch.setattr("tinygan.data.files.open", refuse, raising=False)
    images = data.image_folder(root, 8, max_bad=0.5)
    assert images.names == ["00.png", "01.png"]
    assert images.rejected == {"in": "Permission denied", "secret.png": "Permission denied"}


def test_names_that_are_no_text(tmp_path):
    """A name of bytes that are no UTF-8 trains and can be printed."""
    root = build(tmp_path / "all", good(2))
    name = os.fsdecode(b"\xff\xfe.png")
    for file in (PNG, b""):
        (root / name).write_bytes(file)
        images = data.image_folder(root, 8, max_bad=0.5)
        assert (name in images.rejected) is (not file)
        assert len(images.configuration["names"]) == 16
    with pytest.raises(ValueError, match=r"'\\udcff\\udcfe.png' \(empty\)"):
        data.image_folder(root, 8)


def patched(archive, name, **fields):
    """Change numbers that a zip's table of contents gives for a member, and the local flags."""
    file = bytearray(archive.read_bytes())
    entry = file.rindex(name.encode()) - 46
    for field, value in fields.items():
        start, length = {
            "flags": (8, 2), "method": (10, 2), "checksum": (16, 4), "size": (24, 4), "at": (42, 4)
        }[field]  # fmt: skip
        file[entry + start : entry + start + length] = value.to_bytes(length, "little")
    archive.write_bytes(file)


def test_hostile_zips(tmp_path, monkeypatch):
    """Members that lie or that point elsewhere train or are named, and none is extracted."""
    root = tmp_path / "all.zip"
    with zipfile.ZipFile(root, "w", zipfile.ZIP_DEFLATED) as file:
        for name in ["../up.png", "/absolute.png", "back\\slash.png", "plain.png", "twice.png"]:
            file.writestr(name, PNG)
        with pytest.warns(UserWarning, match="Duplicate name"):
            file.writestr("twice.png", encoded("PNG", picture(1)))
        file.writestr("a folder.png/", b"")
        file.writestr("empty.png", b"")
        file.writestr("bzip2.png", PNG, zipfile.ZIP_BZIP2)
        for name in ["secret", "checksum", "method", "huge", "lost", "name_is_XX"]:
            file.writestr(f"{name}.png", PNG)
        file.writestr("more than it says.png", bytes(2**26))
    patched(root, "secret.png", flags=1)
    patched(root, "checksum.png", checksum=1)
    patched(root, "method.png", method=99)
    patched(root, "huge.png", size=2**31)
    patched(root, "lost.png", at=7)
    patched(root, "more than it says.png", size=1000)
    root.write_bytes(root.read_bytes().replace(b"name_is_XX", b"name_is_\xff\xfe"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    tracemalloc.start()
    images = data.image_folder(root, 8, max_bad=0.9)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**24  # a quarter of what one member would inflate to
    named = "name_is_\xa0■.png"  # what code page 437 has for the two bytes
    trains = ["../up.png", "/absolute.png", "back\\slash.png", named, "plain.png", "twice.png"]
    assert images.names == trains
    assert images.rejected == {
        "bzip2.png": "zip compression of type 12",
        "checksum.png": "Bad CRC-32 for file 'checksum.png'",
        "empty.png": "empty",
        "huge.png": "2147483648 bytes, more than 579108864, a great many for max_pixels",
        "lost.png": "Bad magic number for file header",
        "method.png": "zip compression of type 99",
        "more than it says.png": "Bad CRC-32 for file 'more than it says.png'",
        "secret.png": "encrypted",
    }
    assert len(list(images)) == 6
    assert not torch.equal(images[5], images[4])  # the last of two with one name counts
    assert sorted(tmp_path.rglob("*")) == [root, tmp_path / "here"]


def test_a_damaged_zip_is_named(tmp_path):
    """A zip without a table of contents that can be read ends the run with its name."""
    root = build(tmp_path / "all", good(2), zipped=True)
    file = root.read_bytes()
    root.write_bytes(file.replace(b"PK\x01\x02", b"PK\xff\xff"))
    with pytest.raises(ValueError, match=r"root must be a zip that can be read, got .*: Bad"):
        data.image_folder(root)
    root.write_bytes(cut(file))
    with pytest.raises(ValueError, match=r"root must be a folder or a zip, got .*another kind of"):
        data.image_folder(root)


def broken(files, count):
    """Return files with a few bits flipped, or cut somewhere, the same each time."""
    draw = random.Random(0)
    names = sorted(files)
    for index in range(count):
        name = names[index % len(names)]
        file = bytearray(files[name])
        if draw.random() < 0.3:
            del file[draw.randrange(len(file)) :]
        else:
            for _ in range(draw.choice([1, 1, 2, 8, 40])):
                file[draw.randrange(len(file))] ^= 1 << draw.randrange(8)
        yield f"{index:04}{name}", bytes(file)


def test_2000_broken_images_crash_nothing(tmp_path, caplog, capfd):
    """Bits flipped and ends cut off: an image in range comes out, or its name, and no noise."""
    whole = {
        ".jpg": JPEG,
        " progressive.jpg": encoded("JPEG", progressive=True, exif=Image.Exif()),
        ".png": PNG,
        " palette.png": encoded("PNG", picture(mode="P"), transparency=b"\x00\x80"),
        " moving.png": moving("PNG"),
        ".gif": moving("GIF"),
        ".webp": encoded("WEBP"),
        " moving.webp": moving("WEBP"),
        ".bmp": encoded("BMP"),
        ".tif": encoded("TIFF"),
        " lzw.tif": encoded("TIFF", compression="tiff_lzw"),
        " jpeg.tif": encoded("TIFF", compression="jpeg"),
        ".pgm": encoded("PPM", picture(mode="L")),
    }
    root = build(tmp_path / "all", dict(broken(whole, 2000)))
    images = data.image_folder(root, 8, max_bad=1)
    for image in images:
        assert image.shape == (3, 8, 8)
        assert image.abs().max() <= 1
    named = len(caplog.messages) - 1
    # Both things happen, often enough to mean something.
    assert len(images.rejected) > 300
    assert named > 100
    assert len(images) - named > 300
    # libtiff writes what it finds straight to stderr; nothing else does.
    assert not {"Traceback", "Warning"} & set(re.findall(r"\w+", capfd.readouterr().err))


DAMAGED = {"03.png": cut(PNG), "04.png": cut(PNG), "11.png": cut(PNG)}


@pytest.fixture
def images(tmp_path):
    """Return 12 pictures of which three are damaged: two that follow each other, and the last."""
    return data.image_folder(build(tmp_path / "all", good(12) | DAMAGED), 8, max_bad=0.25)


def test_the_next_good_image_stands_in(images):
    """The next by name takes a damaged one's place, the first after the last, for all alike."""
    stand_ins = {3: 5, 4: 5, 11: 0}
    forth = list(images)
    again = data.image_folder(images.root, 8, max_bad=0.25)
    back = [again[index] for index in reversed(range(12))][::-1]
    helped = list(data.Loader(images, 1, shuffle=False, workers=2))
    for index in range(12):
        expected = forth[stand_ins.get(index, index)]
        for image in (forth[index], images[index], images[index - 12], back[index]):
            assert torch.equal(image, expected)
        assert torch.equal(helped[index][0], expected)
    assert images.rejected == {}


@pytest.mark.parametrize("copied", [False, True])
def test_workers_name_a_file_once(images, capfd, copied):
    """Worker processes, anew in each epoch, say the name of a damaged file once in all."""
    images = pickle.loads(pickle.dumps(images)) if copied else images
    handler = logging.StreamHandler()
    logger = logging.getLogger("tinygan")
    logger.addHandler(handler)
    try:
        loader = data.Loader(images, 2, workers=2)
        for _ in range(2):
            assert sum(len(batch) for batch in loader) == 12
        list(images)
    finally:
        logger.removeHandler(handler)
    lines = capfd.readouterr().err.splitlines()
    assert sorted(lines) == [
        f"'{name}' in {images.root} is bad, the next takes its place: image file is truncated."
        for name in DAMAGED
    ]


def test_too_many_damaged_files_end_the_run(images):
    """What any process finds when it decodes counts; above max_bad the run ends."""
    list(data.Loader(images, 2, workers=2))
    os.remove(images.root / "08.png")
    with pytest.raises(ValueError) as error:
        images[8]
    assert str(error.value) == (
        f"max_bad must be at least the fraction of bad files, got 0.25 with 4 of 12 bad in "
        f"{images.root}: '03.png' (image file is truncated), '04.png' (image file is truncated), "
        "'08.png' (No such file or directory), '11.png' (image file is truncated); "
        "repair or remove them, or raise max_bad."
    )


def test_when_all_are_damaged_the_run_ends(tmp_path):
    """The search for a stand-in ends where there is none, each time."""
    root = build(tmp_path / "all", dict.fromkeys(["a.png", "b.png"], cut(PNG)))
    images = data.image_folder(root, 8, max_bad=1)
    for _ in range(2):
        with pytest.raises(ValueError) as error:
            images[0]
        assert str(error.value) == (
            f"root must hold good images, got {root} with 2 bad ones: 'a.png' (image file is "
            "truncated), 'b.png' (image file is truncated); check the path."
        )


def test_a_copy_knows_what_was_found(images, caplog):
    """Sent to another process, a data set shares what it finds; a plain copy starts from it."""
    sent, copied = ForkingPickler.loads(ForkingPickler.dumps(images)), pickle.dumps(images)
    sent[3]
    images[3]
    assert len(caplog.messages) == 1
    copy = pickle.loads(copied)
    assert torch.equal(copy[3], images[3])
    assert len(caplog.messages) == 2
    assert torch.equal(pickle.loads(pickle.dumps(copy))[3], images[3])
    assert len(caplog.messages) == 2


def test_configurations_tell_data_sets_apart(tmp_path):
    """What an image is made from is in it; where the files lie is not."""
    root, archive = (build(tmp_path / n, good(3), zipped=n == "zip") for n in ("all", "zip"))
    images = data.image_folder(root, (8, 9), 1)
    assert images.configuration == {
        "images": 3,
        "image_size": "(8, 9)",
        "channels": 1,
        "names": "dea9b26db02a7f14",
    }
    assert data.image_folder(archive, (8, 9), 1).configuration == images.configuration
    (root / "02.png").rename(root / "03.png")
    assert data.image_folder(root, (8, 9), 1).configuration != images.configuration

    faces = data.CartoonFaces(3, 8, seed=5)
    assert faces.configuration == {"images": 3, "image_size": "(8, 8)", "channels": 3, "seed": 5}
