"""Packing: one file of what image_folder gives, whole or not there, whatever ends its making."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import pickle
import random
import shutil
import signal
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tinygan import data
from tinygan.data import decoding, packed, packing
from tinygan.data.decoding import BadImageError
from tinygan.data.folder import ImageFiles

import processes
import strategies
from crashes import OPERATIONS, Dies, SimulatedCrash, watched

COUNT = 11


def write_picture(path, seed=0, size=(13, 11)):
    """Write a small picture of random pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def make_folder(root, count=COUNT):
    """Return a folder of pictures, some of them further inside."""
    for index in range(count):
        write_picture(root / ("in" if index % 3 == 0 else ".") / f"{index:03}.png", seed=index)
    return root


def make_zip(root, path):
    """Return a zip of a folder."""
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(root.rglob("*.*")):
            archive.write(file, file.relative_to(root))
    return path


def damage(path):
    """Change a picture's bytes so that only decoding finds it."""
    content = bytearray(path.read_bytes())
    middle = content.index(b"IDAT") + 6
    content[middle : middle + 30] = bytes(30)
    path.write_bytes(content)


@pytest.fixture
def source(tmp_path):
    """Return a folder of pictures."""
    return make_folder(tmp_path / "source")


@pytest.fixture
def small_chunks(monkeypatch):
    """Let a batch have two images of 8x8 pixels, and a chunk two batches."""
    monkeypatch.setattr(packing, "_BATCH", 2 * 3 * 8 * 8)
    monkeypatch.setattr(packing, "_CHUNK", 2)


def pack(source, path, size=8, **arguments):
    """Pack without workers or a bar, unless they are asked for."""
    return data.pack(source, path, size, **{"workers": 0, "progress": False, **arguments})


def names(folder):
    """Return what is in a folder."""
    return sorted(path.name for path in folder.iterdir())


def warnings_in(caplog):
    """Return what was logged since this was last asked."""
    found = [record.getMessage() for record in caplog.records]
    caplog.clear()
    return found


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=strategies.image_sizes,
    channels=st.sampled_from([1, 3]),
    zipped=st.booleans(),
    count=st.integers(1, 5),
)
def test_packed_images_are_the_folders_bit_for_bit(tmp_path_factory, size, channels, zipped, count):
    """Of whatever size, from a folder or a zip: each image, and all that a run compares."""
    tmp_path = tmp_path_factory.mktemp("run")
    root = make_folder(tmp_path / "source", count)
    if zipped:
        root = make_zip(root, tmp_path / "source.zip")
    images = data.image_folder(root, size, channels)
    made = pack(root, tmp_path / "file", size, channels=channels)
    for file in (made, data.open_packed(tmp_path / "file")):
        assert len(file) == len(images) == count
        for index in range(-count, count):
            assert torch.equal(file[index], images[index])
        assert torch.equal(file.pixels[0], images.in_bytes(0))
        assert file.configuration == images.configuration
        assert (file.image_size, file.channels) == (images.image_size, images.channels)
        assert file.labels is None
        assert file.rejected == file.damaged == {}
        for index in (count, -count - 1):
            with pytest.raises(IndexError):
                file[index]


def test_the_file_begins_with_the_pixels(source, tmp_path):
    """The bytes (N, C, H, W) begin the file, so that it can be mapped by anything; then JSON."""
    made = pack(source, tmp_path / "file")
    content = (tmp_path / "file").read_bytes()
    assert content.startswith(made.pixels.numpy().tobytes())
    size = math.prod(made.pixels.shape)
    raw = torch.from_file(str(tmp_path / "file"), shared=False, size=size, dtype=torch.uint8)
    assert torch.equal(raw, made.pixels.flatten())
    manifest = json.loads(content[size:-28])
    assert content.endswith(packed.MAGIC)
    assert manifest["sources"][0] == ["001.png", *_stamp(source / "001.png")]
    assert manifest["transform"] == decoding.TRANSFORM
    assert len(manifest["sources"]) == manifest["count"] == COUNT


def _stamp(path):
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@pytest.mark.parametrize("zipped", [False, True])
def test_workers_make_the_same_file(source, tmp_path, zipped, small_chunks):
    """With any number of workers the file has the very same bytes."""
    root = make_zip(source, tmp_path / "source.zip") if zipped else source
    for workers in (0, 2):
        pack(root, tmp_path / f"file{workers}", workers=workers)
    assert (tmp_path / "file0").read_bytes() == (tmp_path / "file2").read_bytes()
    assert sorted(set(names(tmp_path)) - {"source.zip"}) == ["file0", "file2", "source"]


def test_a_packed_loader_gives_what_the_folders_does(source, tmp_path):
    """Order, flips, a short last batch, a place in the middle: a run may change between the two."""
    images, made = data.image_folder(source, 8), pack(source, tmp_path / "file")
    expected = data.Loader(images, 4, flip=True)
    for loader in (data.Loader(made, 4, flip=True), data.Loader(made, 4, flip=True, workers=2)):
        expected.set_epoch(0)
        for _ in range(3):
            for one, other in zip(loader, expected, strict=True):
                assert torch.equal(one, other)
        batches = iter(loader)
        next(batches)
        expected.load_state_dict(loader.state_dict())
        rest = list(expected)
        assert len(rest) == 2
        for one, other in zip(batches, rest, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("zipped", [False, True])
def test_what_is_packed_is_not_decoded_again(source, tmp_path, zipped, monkeypatch, caplog):
    """The second call opens no image, a moved or copied source included, and changes nothing."""
    root = make_zip(source, tmp_path / "source.zip") if zipped else source
    pack(root, tmp_path / "deep" / "er" / "file")
    path = tmp_path / "deep" / "er" / "file"
    before = path.stat().st_mtime_ns, path.stat().st_ino
    other = tmp_path / f"other{root.suffix}"
    if zipped:
        shutil.copy(root, other)
    else:
        root.rename(other)
    monkeypatch.setattr(decoding, "decode", None)
    monkeypatch.setattr(decoding, "look_at", None)
    assert len(pack(other, path)) == COUNT
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == before
    assert names(path.parent) == ["file"]
    assert warnings_in(caplog) == []


def test_a_changed_source_is_packed_anew_and_it_says_so(source, tmp_path, caplog):
    """New, changed and missing files, and other arguments, are told in one line each time."""
    path = tmp_path / "file"

    def repacked(reason, **arguments):
        old = data.open_packed(path)
        before = old.pixels.clone()
        made = pack(source, path, **arguments)
        assert warnings_in(caplog) == [f"{path} is packed anew: {reason}."]
        images = data.image_folder(
            source, made.image_size, made.channels, max_pixels=arguments.get("max_pixels", 10**6)
        )
        assert len(made) == len(images)
        assert all(torch.equal(made[index], images[index]) for index in range(len(made)))
        assert torch.equal(old.pixels, before)  # mapped by a run that is still going on
        assert names(tmp_path) == ["file", "source"]

    pack(source, path)
    write_picture(source / "new.png", seed=50)
    repacked("1 file is new")
    (source / "new.png").unlink()
    (source / "001.png").rename(source / "renamed.png")
    for index in (2, 4):
        write_picture(source / f"{index:03}.png", seed=60 + index, size=(20, 20))
    repacked("1 file is new; 2 are gone; 2 have changed")
    os.utime(source / "002.png", ns=(10**18, 10**18))
    repacked("1 file has changed")
    repacked("image_size was 8x8, is 9x11", size=(9, 11))
    repacked("image_size was 9x11, is 8x8; channels was 3, is 1", channels=1)
    repacked("channels was 1, is 3; max_pixels was 64000000, is 1000", max_pixels=1000)
    archive = make_zip(source, tmp_path / "x.zip")
    pack(archive, path, max_pixels=1000)
    assert warnings_in(caplog) == [f"{path} is packed anew: source was folder, is zip."]
    write_picture(source / "002.png", seed=99)
    make_zip(source, archive)
    pack(archive, path, max_pixels=1000)
    assert warnings_in(caplog) == [f"{path} is packed anew: 1 file has changed."]


def test_another_transform_is_packed_anew(source, tmp_path, monkeypatch, caplog):
    """When a version of tinygan makes other pixels of a picture, its number says so."""
    pack(source, tmp_path / "file")
    monkeypatch.setattr(decoding, "TRANSFORM_VERSION", 7)
    pack(source, tmp_path / "file")
    assert "is packed anew: transform_version was 1, is 7." in warnings_in(caplog)[0]


@pytest.mark.parametrize("share", [0, 0.5, 1])
@pytest.mark.parametrize("before", [False, True])
def test_a_crash_at_any_operation_loses_nothing(tmp_path, before, share, small_chunks, caplog):
    """Died at any operation, packing leaves the old file or none; the next call ends the same."""
    root, count = make_folder(tmp_path / "source"), Dies(math.inf, 1)

    def begin(name):
        folder = tmp_path / name
        folder.mkdir()
        if before:
            pack(root, folder / "file", channels=1)
        (folder / f"file.{'0' * 16}.partial").write_bytes(b"of other images")
        return folder / "file"

    path = begin("whole")
    with watched(count):
        pack(root, path)
    whole = path.read_bytes()
    assert set(OPERATIONS) - set(count.calls) == {"create", "read"}  # which are of saving
    # Each batch is written, each chunk synchronised, and so is the end.
    assert (count.calls.count("write"), count.calls.count("sync")) == (6 + 1, 3 + 1)

    for at, name in enumerate(count.calls):
        if name != "write" and share == 0.5:
            continue
        path = begin(str(at))
        old = path.read_bytes() if before else None
        with watched(Dies(at, share)), pytest.raises(SimulatedCrash):
            pack(root, path)
        if path.exists():
            assert path.read_bytes() in (old, whole)
        else:
            assert not before
        pack(root, path)
        assert path.read_bytes() == whole
        assert names(path.parent) == ["file"]


@pytest.mark.parametrize("name", ["append", "lock", "truncate", "write", "sync", "replace"])
def test_a_disk_that_fails_is_an_error_and_no_file(source, tmp_path, name, small_chunks):
    """A full disk ends packing with its error; what is done stays, and the next call goes on."""
    path, calls = tmp_path / "file", []

    def stand_in(called, operate, *arguments):
        calls.append(called)
        if called == name and (name != "write" or calls.count("write") == 6):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return operate(*arguments)

    if name == "lock":  # as on a network disk that has no locks
        with watched(stand_in):
            pack(source, path)
    else:
        with watched(stand_in), pytest.raises((OSError, ValueError), match="No space left"):
            pack(source, path)
        assert not path.exists()
    made = pack(source, path)
    assert torch.equal(made[COUNT - 1], data.image_folder(source, 8)[COUNT - 1])


def noting(decoded):
    """Return a stand-in for ``ImageFiles.in_bytes`` that notes which images are decoded."""
    in_bytes = ImageFiles.in_bytes

    def stand_in(self, index):
        decoded.append(index)
        return in_bytes(self, index)

    return stand_in


def test_all_complete_chunks_but_the_last_are_kept(source, tmp_path, small_chunks, caplog):
    """What a crash may have left unsynchronised is decoded again, what is before it is not."""
    path, whole = tmp_path / "file", tmp_path / "whole"
    pack(source, whole)
    expected = whole.read_bytes()
    one = 3 * 8 * 8
    for images in range(COUNT + 1):
        with watched(Dies(3, 1)), pytest.raises(SimulatedCrash):
            pack(source, path)
        (partial,) = tmp_path.glob("*.partial")
        kept = max(0, images // 4 - 1) * 4
        # Zeros where the last chunk was not synchronised, and part of another image.
        partial.write_bytes(expected[: kept * one] + bytes((images - kept) * one + 7))
        caplog.clear()
        decoded = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ImageFiles, "in_bytes", noting(decoded))
            pack(source, path)
        assert path.read_bytes() == expected
        # The last one that is kept is looked at again: it might stand in for a damaged one.
        assert decoded == [kept - 1] * (kept > 0) + list(range(kept, COUNT))
        assert warnings_in(caplog) == (
            [f"packing {path} goes on at image {kept} of {COUNT}."] if kept else []
        )
        path.unlink()


def interrupted(source, path):
    """Pack, with images that take their time, in small chunks; for a child that is killed."""
    packing._BATCH, packing._CHUNK = 2 * 3 * 8 * 8, 2
    in_bytes = ImageFiles.in_bytes

    def slowly(self, index):
        time.sleep(0.002)
        return in_bytes(self, index)

    ImageFiles.in_bytes = slowly
    pack(source, path, workers=1)


@pytest.mark.parametrize("kills", [4, pytest.param(50, marks=pytest.mark.slow)])
def test_packing_that_is_killed_again_and_again_ends_the_same(tmp_path, kills):
    """SIGKILL at any moment never makes a wrong file, and the next call goes on at once."""
    root = make_folder(tmp_path / "source", 60)
    pack(root, tmp_path / "whole")
    expected = (tmp_path / "whole").read_bytes()
    chance, path = random.Random(kills), tmp_path / "file"
    for _ in range(kills):
        child = processes.Child(tmp_path, interrupted, root, path)
        processes.eventually(lambda: path.exists() or list(tmp_path.glob("file.*.partial")))
        time.sleep(chance.uniform(0, 0.15))
        child.signal(signal.SIGKILL)
        child.wait()
        if path.exists():
            assert path.read_bytes() == expected
            path.unlink()
    # Workers whose parent was killed live on for seconds, and must not be in the way.
    pack(root, path)
    assert path.read_bytes() == expected
    assert names(tmp_path)[-3:] == ["file", "source", "whole"]


def hold(source, path, at=5, workers=0):
    """Pack in small chunks, and stop at an image until told to go on; for a child."""
    packing._BATCH, packing._CHUNK = 2 * 3 * 8 * 8, 2
    in_bytes = ImageFiles.in_bytes

    def waits(self, index):
        if index == at and not Path("go").exists():
            processes.say("in the middle")
            processes.eventually(Path("go").exists)
        return in_bytes(self, index)

    ImageFiles.in_bytes = waits
    pack(source, path, workers=workers)


def test_ctrl_c_keeps_what_is_done(tmp_path):
    """Interrupted, packing ends by KeyboardInterrupt; the next call says where it goes on."""
    root, path = make_folder(tmp_path / "source", 30), tmp_path / "file"
    child = processes.Child(tmp_path, hold, root, path, 25, 1)
    child.until("in the middle")
    # What was decoded before is written by another process, in its own time.
    processes.eventually(
        lambda: any(p.stat().st_size == 24 * 192 for p in tmp_path.glob("*.partial"))
    )
    child.signal(signal.SIGINT)
    ended = child.wait()
    assert ended.returncode == 130
    assert "KeyboardInterrupt" in ended.stderr
    assert child.is_gone()
    assert not path.exists()
    (tmp_path / "go").touch()
    again = processes.run(tmp_path, hold, root, path)
    assert f"packing {path} goes on at image 20 of 30." in again.stderr
    pack(root, tmp_path / "whole")
    assert path.read_bytes() == (tmp_path / "whole").read_bytes()


@pytest.mark.parametrize("size", [8, 9])
def test_a_second_packer_of_the_same_path_is_refused(source, tmp_path, size):
    """While one process packs another is refused, of the same images or others; the first ends."""
    path = tmp_path / "file"
    child = processes.Child(tmp_path, hold, source, path)
    child.until("in the middle")
    with pytest.raises(ValueError, match="path must be packed by one process at a time, got"):
        pack(source, path, size)
    (tmp_path / "go").touch()
    assert child.wait().returncode == 0
    assert data.open_packed(path).image_size == (8, 8)
    assert len(pack(source, path, size)) == COUNT


def test_a_partial_file_that_was_just_finished_is_not_written_to(source, tmp_path):
    """Who opened the partial file before it got its name, and locked it after, lets it be."""
    path = tmp_path / "file"

    def finishes(name, operate, *arguments):
        if name == "lock":
            Path(arguments[0].name).rename(path)
        return operate(*arguments)

    with watched(finishes), pytest.raises(ValueError, match="by one process at a time"):
        pack(source, path)
    assert path.read_bytes() == b""  # as it was renamed


def foreign_files(path):
    """Yield ways to make a file of another kind."""
    yield lambda: path.write_bytes(b"my thesis" * 1000)
    yield lambda: path.write_bytes(b"")
    yield lambda: path.write_bytes(packed.MAGIC[:10])
    yield path.mkdir
    yield lambda: os.mkfifo(path)


@pytest.mark.parametrize("kind", range(5))
def test_a_file_of_another_kind_is_refused_and_left_alone(source, tmp_path, kind):
    """Nothing is written over what packing did not make, nor is it opened."""
    path = tmp_path / "file"
    list(foreign_files(path))[kind]()
    before = path.read_bytes() if path.is_file() else path.stat().st_mode
    sentence = (
        f"path must be a packed file, got {path}, which is of another kind or was cut off; rem"
    )
    for use in (lambda: pack(source, path), lambda: data.open_packed(path)):
        with pytest.raises(ValueError, match=sentence):
            use()
    assert (path.read_bytes() if path.is_file() else path.stat().st_mode) == before
    assert names(tmp_path) == ["file", "source"]


def changed(content):
    """Yield what may become of a packed file, and what is said of it."""
    pixels = COUNT * 3 * 8 * 8
    yield content[: pixels - 5] + content[pixels:], "it has 2107 bytes of pixels instead of 2112"
    yield b"more" + content, "it has 2116 bytes of pixels instead of 2112"
    yield content[: pixels + 10] + b"!" + content[pixels + 11 :], "its manifest is damaged"
    yield content[pixels + 10 :], "its manifest is damaged"
    later = content[pixels:-28].replace(b'"layout":1', b'"layout":2')
    assert later != content[pixels:-28]
    yield content[:pixels] + packed.ending(json.loads(later)), "its layout is number 2, known is 1"


@pytest.mark.parametrize("kind", range(5))
def test_a_damaged_packed_file_is_told_and_packed_anew(source, tmp_path, kind, caplog):
    """One of ours that is of a wrong length, or whose manifest is damaged, is replaced by name."""
    path = tmp_path / "file"
    pack(source, path)
    expected = path.read_bytes()
    content, reason = list(changed(expected))[kind]
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"path must be a packed file, got {path}: {reason}; pack"):
        data.open_packed(path)
    pack(source, path)
    assert warnings_in(caplog) == [f"{path} is packed anew: {reason}."]
    assert path.read_bytes() == expected


def test_a_cut_file_is_never_opened(source, tmp_path):
    """However much is missing at the end, a file is refused."""
    path = tmp_path / "file"
    pack(source, path)
    whole = path.read_bytes()
    for size in [*range(0, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="path must be a packed file"):
            data.open_packed(path)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_are_left_out_or_replaced_as_in_a_folder(
    source, tmp_path, workers, caplog, small_chunks
):
    """By their headers or found later, with stand-ins, names and reasons as image_folder has it."""
    (source / "000.png").write_bytes(b"")
    for name in ("002", "004", "010"):  # the last has the first good one for its next
        damage(source / f"{name}.png")
    images = data.image_folder(source, 8, max_bad=0.5)
    made = pack(source, tmp_path / "file", max_bad=0.5, workers=workers)
    opened = data.open_packed(tmp_path / "file")
    for index in range(COUNT):
        assert torch.equal(made[index], images[index])
    assert made.rejected == opened.rejected == images.rejected == {"000.png": "empty"}
    assert made.damaged == opened.damaged == images.damaged()
    assert list(made.damaged) == ["002.png", "004.png", "010.png"]
    assert made.configuration == images.configuration
    assert torch.equal(made[1], made[2])
    with open(tmp_path / "file", "rb") as file:
        assert b'"damaged":{"002.png"' in file.read()

    caplog.clear()
    pack(source, tmp_path / "file", max_bad=0.5)
    (line,) = warnings_in(caplog)
    assert f"4 of {COUNT + 1} files in {source} were bad when packed: '002.png' (" in line
    with pytest.raises(ValueError, match=f"got 0.1 with 4 of {COUNT + 1} bad in .*'002.png'"):
        pack(source, tmp_path / "file")


def test_damage_before_an_interruption_is_remembered(source, tmp_path, small_chunks):
    """A resumed packing counts what was bad before: the same file, and the same refusal."""
    for name in ("001", "002", "004"):
        damage(source / f"{name}.png")
    pack(source, tmp_path / "whole", max_bad=0.5)
    expected = (tmp_path / "whole").read_bytes()
    (tmp_path / "whole").unlink()
    for most, refused in ((0.5, False), (0.2, True)):
        path = tmp_path / "file"
        with watched(Dies(11, 0)), pytest.raises(SimulatedCrash):
            pack(source, path, max_bad=0.5)
        (partial,) = tmp_path.glob("*.partial")
        assert partial.stat().st_size >= 8 * 3 * 8 * 8
        if refused:
            with pytest.raises(ValueError, match=f"got 0.2 with 3 of {COUNT} bad"):
                pack(source, path, max_bad=most)
            assert not path.exists()
        else:
            pack(source, path, max_bad=most)
            assert path.read_bytes() == expected
            path.unlink()


def refused(source, path, workers):
    """Pack what has too many bad images, and print the error; for a child."""
    with pytest.raises(ValueError) as caught:
        pack(source, path, workers=workers)
    processes.say(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_bad_images_end_packing_with_their_names(source, tmp_path, workers):
    """No file is made, and the error names them and says nothing of processes."""
    for name in ("001", "002", "004"):
        damage(source / f"{name}.png")
    ended = processes.run(tmp_path, refused, source, tmp_path / "file", workers)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("max_bad must be at least the fraction of bad files, got 0.1")
    assert f"of {COUNT} bad in {source}: '00" in ended.stdout
    assert ended.stdout.count("\n") == 1
    assert not (tmp_path / "file").exists()


def test_another_process_maps_the_file_for_itself(source, tmp_path, monkeypatch):
    """Pickled, images are their path: small, found from elsewhere, and refused if packed anew."""
    monkeypatch.chdir(tmp_path)
    made = pack(source, "file", 64)
    content = pickle.dumps(made)
    assert len(content) < 1000 < made.pixels.nbytes
    monkeypatch.chdir("/")
    again = pickle.loads(content)
    assert torch.equal(again.pixels, made.pixels)
    assert again.pixels.data_ptr() != made.pixels.data_ptr()
    pack(source, tmp_path / "file", 32)
    with pytest.raises(ValueError, match="path must hold the images that it held before, got"):
        pickle.loads(content)


def test_writing_to_the_pixels_does_not_reach_the_file(source, tmp_path):
    """The mapping is private."""
    made = pack(source, tmp_path / "file")
    before = (tmp_path / "file").read_bytes()
    made.pixels.zero_()
    assert made[0].max() == -1
    assert (tmp_path / "file").read_bytes() == before


def test_packing_more_takes_no_more_memory(tmp_path, monkeypatch):
    """Neither images nor what is written of them stay in Python's memory."""
    monkeypatch.setattr(packing, "_BATCH", 2 * 3 * 64 * 64)
    peaks = []
    for count in (10, 60):
        root = make_folder(tmp_path / f"{count}", count)
        pack(root, tmp_path / f"{count}.warm", 64)
        tracemalloc.start()
        pack(root, tmp_path / f"{count}.packed", 64)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # 50 more images are 600 kB of pixels; what is known of a file takes a kilobyte or two.
    assert peaks[1] - peaks[0] < 50 * 3000


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"size": 4}, "image_size must be at least 8, got 4"),
        ({"channels": 2}, "channels must be 1 or 3, got 2"),
        ({"max_bad": 2}, "max_bad must be from 0 to 1, got 2"),
        ({"workers": -1}, "workers must be at least 0, got -1"),
        ({"source": "nowhere"}, "root must be a folder or a zip, got nowhere"),
        ({"path": "/dev/null/file"}, "path must be in a folder that can be written, got /dev/null"),
    ],
)
def test_bad_arguments_are_named(source, tmp_path, arguments, sentence):
    """Each is refused by name, before anything is written."""
    with pytest.raises(ValueError, match=sentence):
        pack(**{"source": source, "path": tmp_path / "file", **arguments})
    assert names(tmp_path) == ["source"]


def test_a_folder_without_images_makes_no_file(tmp_path):
    """It is refused as image_folder refuses it."""
    (tmp_path / "source").mkdir()
    with pytest.raises(ValueError, match="root must hold images"):
        pack(tmp_path / "source", tmp_path / "file")
    assert names(tmp_path) == ["source"]


def test_a_missing_file_is_named(tmp_path):
    """Opening without packing says what is missing."""
    with pytest.raises(ValueError, match="No such file or directory; pack the images anew"):
        data.open_packed(tmp_path / "file")


def test_files_that_cannot_be_looked_at_have_a_stamp(source, tmp_path, caplog):
    """A link to nowhere is bad, and no reason to pack anew until it leads somewhere."""
    (source / "link.png").symlink_to(tmp_path / "later.png")
    pack(source, tmp_path / "file")
    assert "left out: 'link.png' (No such file" in warnings_in(caplog)[0]
    pack(source, tmp_path / "file")
    assert "were bad when packed: 'link.png'" in warnings_in(caplog)[0]
    write_picture(tmp_path / "later.png")
    assert len(pack(source, tmp_path / "file")) == COUNT + 1
    assert "1 file has changed" in warnings_in(caplog)[0]


def test_a_lock_that_cannot_be_had_is_told(source, tmp_path, caplog):
    """Where files cannot be locked, packing goes on and says so."""

    def no_locks(name, operate, *arguments):
        if name == "lock":
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
        return operate(*arguments)

    with watched(no_locks), caplog.at_level(logging.WARNING):
        pack(source, tmp_path / "file")
    assert "cannot be locked ([Errno 37] No locks available)" in warnings_in(caplog)[0]


def hold_rename(source, path):
    """Pack, and stop before the file gets its name until told to go on; for a child."""

    def waits(name, operate, *arguments):
        if name == "replace":
            processes.say("about to rename")
            processes.eventually(Path("go").exists)
        return operate(*arguments)

    with watched(waits):
        pack(source, path)


def test_nobody_else_writes_until_the_file_has_its_name(source, tmp_path):
    """The lock is held to the end: a second packer cannot cut what is about to be renamed."""
    path = tmp_path / "file"
    child = processes.Child(tmp_path, hold_rename, source, path)
    child.until("about to rename")
    with pytest.raises(ValueError, match="path must be packed by one process at a time, got"):
        pack(source, path)
    (tmp_path / "go").touch()
    assert child.wait().returncode == 0
    assert len(data.open_packed(path)) == COUNT


@pytest.mark.parametrize("crash", [None, 11], ids=["whole", "interrupted"])
def test_what_cannot_be_read_for_a_while_is_not_replaced_for_ever(
    source, tmp_path, crash, monkeypatch, small_chunks
):
    """A disk that fails once must not leave a neighbour's pixels in the file."""
    expected = pack(source, tmp_path / "whole").pixels
    path, decode, failed = tmp_path / "file", ImageFiles._decode, []

    def fails_once(self, index):
        if index == 3 and not failed:
            failed.append(index)
            raise BadImageError("Input/output error")
        return decode(self, index)

    monkeypatch.setattr(ImageFiles, "_decode", fails_once)
    if crash is None:
        with pytest.raises(OSError, match=r"at first, .*: 1 of 11, '005\.png' among"):
            pack(source, path)
        assert not path.exists()
    else:
        with watched(Dies(crash, 0)), pytest.raises(SimulatedCrash):
            pack(source, path)
        assert failed
    assert torch.equal(pack(source, path).pixels, expected)


def test_a_source_that_changes_after_an_interruption_is_begun_anew(source, tmp_path, small_chunks):
    """What was decoded of the images as they were is not gone on with."""
    path = tmp_path / "file"
    with watched(Dies(11, 0)), pytest.raises(SimulatedCrash):
        pack(source, path)
    write_picture(source / "001.png", seed=99)
    packed = pack(source, path)
    folder = data.image_folder(source, 8)
    assert all(torch.equal(packed[i], folder[i]) for i in range(COUNT))


def test_a_source_that_changes_while_it_is_packed_is_packed_anew(source, tmp_path, caplog):
    """Sizes and times are those from before the first image was decoded."""
    path = tmp_path / "file"

    def changes(name, operate, *arguments):
        if name == "append":
            write_picture(source / "001.png", seed=99, size=(20, 20))
        return operate(*arguments)

    with watched(changes):
        pack(source, path)
    warnings_in(caplog)
    packed = pack(source, path)
    assert warnings_in(caplog) == [f"{path} is packed anew: 1 file has changed."]
    folder = data.image_folder(source, 8)
    assert all(torch.equal(packed[i], folder[i]) for i in range(COUNT))


def test_a_file_that_was_packed_anew_is_not_taken_for_the_old_one(source, tmp_path):
    """Images that are sent to another process are those that were sent, or there is an error."""
    packed = pack(source, tmp_path / "file")
    sent = pickle.dumps(packed)
    write_picture(source / "001.png", seed=99, size=(20, 20))
    pack(source, tmp_path / "file")
    with pytest.raises(ValueError, match="path must hold the images that it held before, got"):
        pickle.loads(sent)
