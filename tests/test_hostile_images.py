"""Hostile images: whatever lies in a folder or a zip, it trains or is named, and nothing hangs."""

from __future__ import annotations

import io
import os
import random
import re
import signal
import socket
import tarfile
import tracemalloc
import zipfile
import zlib
from pathlib import Path
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

# Why a file is left out; None for files that train, DAMAGE for reasons that are the decoder's own.
DAMAGE, HIDDEN = ANY, "passed over"
EMPTY, NONE = "empty", "no JPEG, PNG, PPM, BMP, TIFF, AVIF, WEBP or GIF image"
ENDLESS = "truncated, the JPEG's end marker is missing"
RANGE = "mode F, with no plain conversion to colour"
CORPUS = {
    "plain.jpg": (JPEG, None),
    "progressive.jpg": (encoded("JPEG", progressive=True), None),
    "grey.jpeg": (encoded("JPEG", picture(mode="L")), None),
    "inks.jpg": (encoded("JPEG", picture(mode="CMYK")), None),
    "film inside.jpg": (JPEG + bytes(100_000), None),
    "broken exif.jpg": (encoded("JPEG", exif=b"Exif\x00\x00MM\x00*\xff"), None),
    "really a png.jpg": (PNG, None),
    "UPPER.JPG": (JPEG, None),
    "old.jpe": (JPEG, None),
    "old.jfif": (JPEG, None),
    "plain.avif": (encoded("AVIF"), None),
    "moving.avif": (moving("AVIF"), None),
    "half.avif": (cut(encoded("AVIF")), DAMAGE),
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
        RANGE,
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


def pack(root, size=8, channels=3, **arguments):
    """Pack beside the root, in this process."""
    path = root.with_suffix(".npy")
    return data.pack(root, path, size, channels, workers=0, progress=False, **arguments)


@pytest.mark.parametrize(("zipped", "channels"), [(False, 3), (True, 1)])
def test_a_corpus_trains_or_is_named(tmp_path, caplog, zipped, channels):
    """Of some 70 hostile files each is passed over, left out or trained on, as told."""
    root = build(tmp_path / "all", {name: file for name, (file, _) in CORPUS.items()}, zipped)
    fates = {name: fate for name, (_, fate) in CORPUS.items() if fate is not HIDDEN}
    bad = {name: fate for name, fate in fates.items() if fate is not None}
    packed = pack(root, (8, 10), channels, max_bad=0.9)

    assert packed.rejected == bad
    assert packed.names == sorted(fates.keys() - bad.keys())
    assert packed.pixels.shape == (len(packed.names), channels, 8, 10)
    hidden = (
        [".hidden.png", ".thumbnails/plain.jpg", "__MACOSX/._plain.jpg", "notes.txt"]
        if zipped
        else [".hidden.png", ".thumbnails/", "__MACOSX/", "notes.txt"]
    )
    assert packed.passed_over == hidden
    left_out, passed_over = caplog.messages
    assert left_out.startswith(f"{root}: left out as bad ({len(bad)}): '32 bits.tif' (")
    assert left_out.endswith(f" and {len(bad) - 10} more.")
    listed = ", ".join(map(repr, hidden))
    assert passed_over == f"{root}: passed over as no images by their names (4): {listed}."

    images = data.image_folder(root, (8, 10), channels)
    for index, name in enumerate(images.names):
        if name in bad:
            with pytest.raises(
                ValueError, match=re.escape(f"images must be readable, got {name!r}")
            ):
                images[index]
        else:
            assert torch.equal(images[index], packed[packed.names.index(name)])


def test_too_many_bad_files_stop_before_the_first_step(tmp_path):
    """Above max_bad the run ends before it begins, with a list; at max_bad it goes on."""
    root = build(tmp_path / "all", {"é\n.png": b"", **{f"x{i}.jpg": b"no" for i in range(11)}})
    some = build(tmp_path / "some", {**good(9), "bad.png": b""})
    assert len(pack(some)) == 9
    with pytest.raises(ValueError) as error:
        pack(some, max_bad=0.09)
    assert str(error.value) == (
        f"root must hold good images (max_bad=0.09), got 1 bad of 10 in {some}: 'bad.png' "
        "(empty); repair or remove them, or check the path."
    )
    with pytest.raises(ValueError) as error:
        pack(root, max_bad=1)
    listed = ", ".join(
        f"'{name}.jpg' ({NONE})" for name in ["x0", "x1", "x10", *(f"x{i}" for i in range(2, 9))]
    )
    assert f"12 bad of 12 in {root}: 'x0.jpg' ({NONE}), 'x1.jpg'" in str(error.value)
    assert listed in str(error.value)
    assert " and 2 more; repair or remove them" in str(error.value)
    for path in root.iterdir():
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="12 bad of 12 in"):
        data.image_folder(root)


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
    with pytest.raises(ValueError, match=re.escape(reason)):
        pack(root, max_pixels=max_pixels, max_bad=0.1)
    assert len(decoded) <= 1


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
    images = data.image_folder(root, 8)
    assert images.names == ["00.png", "01.png", "link.png"]
    assert images.passed_over == ["folder/"]
    assert images.rejected == {
        "dead.png": "No such file or directory",
        "device.png": "no regular file",
        "fifo link.png": "no regular file",
        "fifo.png": "no regular file",
        "loop.png": "Too many levels of symbolic links",
        "socket.png": "no regular file",
    }


def test_what_may_not_be_read_is_named(tmp_path, monkeypatch):
    """Files and folders without permission are named like other bad ones."""
    # Raised by hand, because root may read everything.
    root = build(tmp_path / "all", {**good(2), "secret.png": PNG, "in/a.png": PNG})
    listdir, read_bytes = os.listdir, Path.read_bytes

    def refusing(operate):
        def stand_in(path):
            if os.fspath(path).rstrip("/").endswith(("/in", "secret.png")):
                raise PermissionError(13, "Permission denied", path)
            return operate(path)

        return stand_in

    monkeypatch.setattr("os.listdir", refusing(listdir))
    monkeypatch.setattr(Path, "read_bytes", refusing(read_bytes))
    images = pack(root, max_bad=0.5)
    assert images.names == ["00.png", "01.png"]
    assert images.rejected == {"in/": "Permission denied", "secret.png": "Permission denied"}


def test_names_that_are_no_text(tmp_path):
    """A name of bytes that are no UTF-8 trains and can be printed."""
    root = build(tmp_path / "all", good(2))
    name = os.fsdecode(b"\xff\xfe.png")
    for file in (PNG, b""):
        (root / name).write_bytes(file)
        images = pack(root, max_bad=0.5)
        assert (name in images.rejected) is (not file)
        assert len(images.configuration["names"]) == 16
    with pytest.raises(ValueError, match=r"'\\udcff\\udcfe.png' \(empty\)"):
        pack(root)


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
        file.writestr("read me.txt", b"")  # what "lost" points into: Python 3.13 reads neither then
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
    images = pack(root, max_bad=0.9)
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
        "huge.png": "2147483648 bytes, a great many for max_pixels",
        "lost.png": "Bad magic number for file header",
        "method.png": "zip compression of type 99",
        "more than it says.png": "Bad CRC-32 for file 'more than it says.png'",
        "secret.png": "File 'secret.png' is encrypted, password required for extraction",
    }
    assert len(list(images)) == 6
    assert not torch.equal(images[5], images[4])  # the last of two with one name counts
    packed = [root.with_suffix(end) for end in (".json", ".npy", ".zip")]
    assert sorted(tmp_path.rglob("*")) == [*packed, tmp_path / "here"]


def test_hostile_tars(tmp_path):
    """Members that are no files, or point elsewhere, train or are named, and none is extracted."""
    root = tmp_path / "all.tar"
    with tarfile.open(root, "w") as file:

        def add(name, content=b"", kind=tarfile.REGTYPE, link=""):
            member = tarfile.TarInfo(name)
            member.size, member.type, member.linkname = len(content), kind, link
            file.addfile(member, io.BytesIO(content))

        for name in ["./plain.png", "../up.png", "/absolute.png", "in/deep/a.png", "twice.png"]:
            add(name, PNG)
        add("twice.png", encoded("PNG", picture(1)))
        add("empty.png")
        add("half.png", cut(PNG))
        add("link.png", kind=tarfile.SYMTYPE, link="/etc/passwd")
        add("hard.png", kind=tarfile.LNKTYPE, link="./plain.png")
        add("fifo.png", kind=tarfile.FIFOTYPE)
        add("a folder.png", kind=tarfile.DIRTYPE)
        add("notes.txt", b"no picture")
    images = pack(root, max_bad=0.9)
    assert images.names == [
        "../up.png", "/absolute.png", "in/deep/a.png", "plain.png", "twice.png",
    ]  # fmt: skip
    assert images.rejected == {
        "empty.png": "empty",
        "fifo.png": "no regular file",
        "half.png": ANY,
        "hard.png": "no regular file",
        "link.png": "no regular file",
    }
    assert images.passed_over == ["notes.txt"]
    assert not torch.equal(images[4], images[3])  # the last of two with one name counts
    with tarfile.open(tmp_path / "all.tgz", "w:gz") as file:
        file.add(root)
    with pytest.raises(ValueError, match=r"a zip or a tar that is not compressed, got .*tgz: inv"):
        data.image_folder(tmp_path / "all.tgz")
    content = root.read_bytes()
    root.write_bytes(content[: content.index(b"twice.png") + 600])
    with pytest.raises(
        ValueError, match=r"root must be a folder, .* got .*: unexpected end of data"
    ):
        data.image_folder(root)


def test_a_damaged_zip_is_named(tmp_path):
    """A zip without a table of contents that can be read ends the run with its name."""
    root = build(tmp_path / "all", good(2), zipped=True)
    file = root.read_bytes()
    root.write_bytes(file.replace(b"PK\x01\x02", b"PK\xff\xff"))
    with pytest.raises(ValueError, match=r"root must be a folder, .* got .*; Bad magic number"):
        data.image_folder(root)
    root.write_bytes(cut(file))
    with pytest.raises(ValueError, match=r"root must be a folder, .* got .*; File is not a zip"):
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


def test_2000_broken_images_crash_nothing(tmp_path, capfd):
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
    images = pack(root, max_bad=1)
    # Both things happen, often enough to mean something.
    assert len(images.rejected) > 400
    assert len(images) > 300
    assert len(images.rejected) + len(images) == 2000
    assert all(reason and "\n" not in reason for reason in images.rejected.values())
    # libtiff writes what it finds straight to stderr; nothing else does.
    assert not {"Traceback", "Warning"} & set(re.findall(r"\w+", capfd.readouterr().err))


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
