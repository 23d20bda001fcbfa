"""Packing: one array of what image_folder gives, whole or not there, whatever ends its making."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import pickle
import random
import shutil
import signal
import tarfile
import time
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tinygan import data
from tinygan.data import decoding, packing

import processes
import strategies
from crashes import Dies, SimulatedCrash, watched

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


def archived(root, kind):
    """Return a folder, or a zip or tar of it."""
    path = root.with_suffix(f".{kind}")
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted(root.rglob("*.*")):
                archive.write(file, file.relative_to(root))
    if kind == "tar":
        with tarfile.open(path, "w") as archive:
            archive.add(root, ".")
    return root if kind == "folder" else path


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
def small_batches(monkeypatch):
    """Let a batch have two images of 8x8 pixels."""
    monkeypatch.setattr(packing, "_BATCH", 2 * 3 * 8 * 8)


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


def assert_packed(images, source, **arguments):
    """Assert that packed images are those of a folder, which are all good."""
    expected = data.image_folder(source, images.image_size, images.channels, **arguments)
    assert images.names == expected.names
    assert images.configuration == expected.configuration
    assert len(images) == len(expected)
    for index in range(-len(images), len(images)):
        assert torch.equal(images[index], expected[index])


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=strategies.image_sizes,
    channels=st.sampled_from([1, 3]),
    kind=st.sampled_from(["folder", "zip", "tar"]),
    count=st.integers(1, 5),
)
def test_packed_images_are_the_folders_bit_for_bit(tmp_path_factory, size, channels, kind, count):
    """Of whatever size, from a folder, zip or tar: each image, and all that a run compares."""
    tmp_path = tmp_path_factory.mktemp("run")
    root = archived(make_folder(tmp_path / "source", count), kind)
    made = pack(root, tmp_path / "file.npy", size, channels=channels)
    for images in (made, data.open_packed(tmp_path / "file.npy")):
        assert_packed(images, root)
        assert images.channels == channels
        assert images.image_size == ((size, size) if isinstance(size, int) else size)
        assert (images.labels, images.classes, images.num_classes) == (None, None, None)
        assert images.rejected == {}
        for index in (count, -count - 1):
            with pytest.raises(IndexError):
                images[index]


def test_anybody_can_open_the_array(source, tmp_path):
    """It is a plain array of NumPy's, whole or mapped, and what it holds is told in JSON."""
    (source / "notes.txt").touch()
    made = pack(source, tmp_path / "file.npy")
    for mode in (None, "r"):
        array = np.load(tmp_path / "file.npy", mmap_mode=mode)
        assert (array.shape, array.dtype) == ((COUNT, 3, 8, 8), np.uint8)
        assert np.array_equal(array, made.pixels.numpy())
    manifest = json.loads((tmp_path / "file.json").read_bytes())
    content = (tmp_path / "file.npy").read_bytes()
    assert manifest["sha256"] == hashlib.sha256(content).hexdigest()
    assert manifest["names"] == sorted(manifest["sources"]) == made.names
    status = (source / "001.png").stat()
    assert manifest["sources"]["001.png"] == [status.st_size, status.st_mtime_ns]
    assert manifest["transform"] == decoding.TRANSFORM
    assert manifest["passed_over"] == made.passed_over == ["notes.txt"]


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_workers_make_the_same_file(source, tmp_path, kind, small_batches):
    """With any number of workers the file has the very same bytes."""
    damage(source / "004.png")
    root = archived(source, kind)
    for workers in (0, 2):
        pack(root, tmp_path / f"file{workers}.npy", workers=workers)
    assert (tmp_path / "file0.npy").read_bytes() == (tmp_path / "file2.npy").read_bytes()
    assert {"file0.json", "file0.npy"} == {name for name in names(tmp_path) if "file0" in name}


def test_a_packed_loader_gives_what_the_folders_does(source, tmp_path):
    """Order, flips, a short last batch, a place in the middle: a run may change between the two."""
    images, made = data.image_folder(source, 8), pack(source, tmp_path / "file.npy")
    expected = data.Loader(images, 4, flip=True)
    loader = data.Loader(made, 4, flip=True)
    for _ in range(2):
        for one, other in zip(loader, expected, strict=True):
            assert torch.equal(one, other)
    batches = iter(loader)
    next(batches)
    expected.load_state_dict(loader.state_dict())
    for one, other in zip(batches, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_what_is_packed_is_not_decoded_again(source, tmp_path, kind, monkeypatch, caplog):
    """The second call opens no image, a moved or copied source included, and changes nothing."""
    root = archived(source, kind)
    path = tmp_path / "deep" / "er" / "file.npy"
    pack(root, path)
    before = [(file.stat().st_mtime_ns, file.stat().st_ino) for file in path.parent.iterdir()]
    other = root.rename(tmp_path / f"other{root.suffix}")
    monkeypatch.setattr(decoding, "decode", None)
    assert len(pack(other, path)) == COUNT
    assert [(f.stat().st_mtime_ns, f.stat().st_ino) for f in path.parent.iterdir()] == before
    assert names(path.parent) == ["file.json", "file.npy"]
    assert warnings_in(caplog) == []


def test_a_copy_is_compared_with_its_checksum_once(source, tmp_path, monkeypatch):
    """It has another time; what is copied wrong, or is another array, is refused."""
    made = pack(source, tmp_path / "file.npy")
    for name in ("file.npy", "file.json"):
        (tmp_path / "copy").mkdir(exist_ok=True)
        shutil.copyfile(tmp_path / name, tmp_path / "copy" / name)
    copy = tmp_path / "copy" / "file.npy"
    looked, sha256 = [], packing._sha256
    monkeypatch.setattr(packing, "_sha256", lambda path: looked.append(path) or sha256(path))
    for _ in range(2):
        assert torch.equal(data.open_packed(copy).pixels, made.pixels)
        assert looked == [copy]
    content = bytearray(copy.read_bytes())
    content[1000] ^= 1
    copy.write_bytes(content)
    with pytest.raises(ValueError, match=f"{copy}: it is not the array that its manifest describe"):
        data.open_packed(copy)


def test_a_changed_source_is_packed_anew_and_it_says_so(source, tmp_path, caplog):
    """New, changed and missing files, and other arguments, are told in one line each time."""
    path = tmp_path / "file.npy"

    def repacked(reason, source=source, **arguments):
        old = data.open_packed(path)
        before = old.pixels.clone()
        made = pack(source, path, **arguments)
        assert warnings_in(caplog) == [f"{path} is packed anew: {reason}."]
        limit = {"max_pixels": arguments["max_pixels"]} if "max_pixels" in arguments else {}
        assert_packed(made, source, **limit)
        assert torch.equal(old.pixels, before)  # mapped by a run that is still going on
        assert {"file.json", "file.npy", "source"} >= set(names(tmp_path)) - {"source.zip"}

    pack(source, path)
    write_picture(source / "new.png", seed=50)
    repacked("sources changed")
    (source / "new.png").unlink()
    repacked("sources changed")
    os.utime(source / "002.png", ns=(10**18, 10**18))
    repacked("sources changed")
    repacked("image_size changed", size=(9, 11))
    repacked("image_size and channels changed", channels=1)
    repacked("channels and max_pixels changed", max_pixels=1000)
    repacked("sources changed", archived(source, "zip"), max_pixels=1000)
    write_picture(source / "002.png", seed=99)
    repacked("sources changed", archived(source, "zip"), max_pixels=1000)


def test_another_transform_is_packed_anew(source, tmp_path, monkeypatch, caplog):
    """When a version of tinygan makes other pixels of a picture, its number says so."""
    pack(source, tmp_path / "file.npy")
    monkeypatch.setattr(decoding, "TRANSFORM", "7: otherwise")
    pack(source, tmp_path / "file.npy")
    assert "transform changed" in warnings_in(caplog)[0]


@pytest.mark.parametrize("share", [0, 0.5, 1])
@pytest.mark.parametrize("before", [False, True])
def test_a_crash_at_any_operation_loses_nothing(tmp_path, before, share, small_batches):
    """Died at any operation, packing leaves no wrong file; the next call ends the same."""
    root, count = make_folder(tmp_path / "source", 5), Dies(math.inf, 1)

    def begin(name):
        folder = tmp_path / name
        folder.mkdir()
        if before:
            pack(root, folder / "file.npy", channels=1)
        return folder / "file.npy"

    path = begin("whole")
    with watched(count):
        pack(root, path)
    whole = path.read_bytes()
    assert set(count.calls) == {"create", "write", "sync", "replace", "sync_folder"}
    # A header, three batches, the header again; the manifest, which gets its name first.
    assert count.calls.count("write") == 5 + 1

    for at, name in enumerate(count.calls):
        if name != "write" and share == 0.5:
            continue
        path = begin(str(at))
        with watched(Dies(at, share)), pytest.raises(SimulatedCrash):
            pack(root, path)
        with pytest.MonkeyPatch.context() as patch:  # as of another process, which is dead
            patch.setattr(os, "kill", lambda *_: (_ for _ in ()).throw(ProcessLookupError))
            with contextlib.suppress(ValueError):
                assert_packed(data.open_packed(path), root)
            pack(root, path)
        assert path.read_bytes() == whole
        assert names(path.parent) == ["file.json", "file.npy"]


@pytest.mark.parametrize("name", ["create", "write", "sync", "replace", "sync_folder"])
def test_a_disk_that_fails_is_an_error_and_no_file(source, tmp_path, name, small_batches):
    """A full disk ends packing with its error, and leaves nothing half done."""
    path, calls = tmp_path / "file.npy", []

    def stand_in(called, operate, *arguments):
        calls.append(called)
        if called == name and (name != "write" or calls.count("write") == 6):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return operate(*arguments)

    with watched(stand_in), pytest.raises(OSError, match="No space left"):
        pack(source, path)
    assert not path.exists()
    assert not list(tmp_path.glob("*.partial"))
    assert_packed(pack(source, path), source)


def slowly(source, path, workers=1):
    """Pack, with images that take their time, in small batches; for a child."""
    packing._BATCH = 2 * 3 * 8 * 8
    in_bytes = data.ImageFiles.in_bytes

    def takes_time(self, index):
        time.sleep(0.002)
        return in_bytes(self, index)

    data.ImageFiles.in_bytes = takes_time
    pack(source, path, workers=workers)


@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_packing_that_is_killed_again_and_again_ends_the_same(tmp_path, kills):
    """SIGKILL at any moment never makes a wrong file, and its leftovers are removed."""
    root = make_folder(tmp_path / "source", 60)
    pack(root, tmp_path / "whole.npy")
    expected = (tmp_path / "whole.npy").read_bytes()
    chance, path = random.Random(kills), tmp_path / "file.npy"
    for _ in range(kills):
        child = processes.Child(tmp_path, slowly, root, path)
        processes.eventually(lambda: path.exists() or list(tmp_path.glob("file.*.partial")))
        time.sleep(chance.uniform(0, 0.15))
        child.signal(signal.SIGKILL)
        child.wait()
        if path.exists():
            assert path.read_bytes() == expected
            path.unlink()
            path.with_suffix(".json").unlink()
    # Workers whose parent was killed live on for seconds, and must not be in the way.
    pack(root, path)
    assert path.read_bytes() == expected
    assert names(tmp_path)[-5:] == ["file.json", "file.npy", "source", "whole.json", "whole.npy"]


def test_ctrl_c_ends_packing_at_once(tmp_path):
    """Interrupted, it ends by KeyboardInterrupt, with its workers, and leaves nothing."""
    root, path = make_folder(tmp_path / "source", 300), tmp_path / "file.npy"
    child = processes.Child(tmp_path, slowly, root, path)
    processes.eventually(lambda: any(p.stat().st_size > 5000 for p in tmp_path.glob("*.partial")))
    child.signal(signal.SIGINT)
    ended = child.wait()
    assert ended.returncode == 130
    assert "KeyboardInterrupt" in ended.stderr
    assert child.is_gone()
    assert [name for name in names(tmp_path) if name[0] != "."] == ["source"]


def test_two_that_pack_at_once_do_not_disturb_each_other(tmp_path):
    """Both end, and what is there is what the last one made."""
    root, path = make_folder(tmp_path / "source", 30), tmp_path / "file.npy"
    child = processes.Child(tmp_path, slowly, root, path, 0)
    processes.eventually(lambda: list(tmp_path.glob("*.partial")))
    assert pack(root, path, 9).image_size == (9, 9)
    assert child.wait().returncode == 0
    assert_packed(data.open_packed(path), root)
    assert data.open_packed(path).image_size == (8, 8)


def foreign_files(path):
    """Return ways to make files that are somebody else's."""
    beside = path.with_suffix(".json")
    return [
        lambda: path.write_bytes(b"my thesis" * 1000),
        lambda: np.save(path, np.zeros((COUNT, 3, 8, 8), np.uint8)),
        path.mkdir,
        lambda: os.mkfifo(path),
        lambda: beside.write_text('{"labels": null}'),
        lambda: beside.write_text("[1, 2]"),
        lambda: beside.write_text('{"format": "tinygan packed images 9"}'),
        lambda: os.mkfifo(beside),
    ]


@pytest.mark.parametrize("kind", range(8))
def test_somebody_elses_file_is_refused_and_left_alone(source, tmp_path, kind):
    """Nothing is written over what packing did not make, nor is it opened."""
    path = tmp_path / "file.npy"
    foreign_files(path)[kind]()
    (found,) = tmp_path.glob("file.*")
    before = found.read_bytes() if found.is_file() else found.stat().st_mode
    for use in (lambda: pack(source, path), lambda: data.open_packed(path)):
        with pytest.raises(ValueError, match="was not made by this version's"):
            use()
    assert (found.read_bytes() if found.is_file() else found.stat().st_mode) == before
    assert names(tmp_path) == sorted([found.name, "source"])


WRONG = "it is not the array that its manifest describes"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda content: content[:-5], WRONG),
        (lambda content: b"more" + content, WRONG),
        (lambda content: content[::-1], WRONG),
        (lambda content: None, "the array is missing"),
    ],
)
def test_a_damaged_array_is_told_and_packed_anew(source, tmp_path, change, reason, caplog):
    """One of ours that is of a wrong length or content is replaced by name, and not opened."""
    path = tmp_path / "file.npy"
    pack(source, path)
    expected = path.read_bytes()
    content = change(expected)
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(ValueError, match=f"path must be a packed array, got {path}: {reason}; pac"):
        data.open_packed(path)
    pack(source, path)
    assert warnings_in(caplog) == [f"{path} is packed anew: {reason}."]
    assert path.read_bytes() == expected


def test_bad_images_are_left_out_and_named(source, tmp_path, caplog, small_batches):
    """By their headers or found later; the next call names them again, and heeds max_bad."""
    (source / "001.png").write_bytes(b"")
    for name in ("002", "004", "010"):
        damage(source / f"{name}.png")
    path = tmp_path / "file.npy"
    made = pack(source, path, max_bad=0.5, workers=2)
    assert list(made.rejected) == ["001.png", "002.png", "004.png", "010.png"]
    assert made.rejected["001.png"] == "empty"
    expected = [name for name in data.image_folder(source).names if name not in made.rejected]
    assert made.names == expected
    good = data.image_folder(source, 8)
    for index, name in enumerate(expected):
        assert torch.equal(made[index], good[good.names.index(name)])
    with pytest.raises(
        ValueError, match=r"images must be readable, got '002.png' in .*, or use data.p"
    ):
        good[good.names.index("002.png")]
    assert f"{source}: left out as bad (4): '001.png' (empty), '002" in caplog.text

    caplog.clear()
    assert data.open_packed(path).rejected == made.rejected
    assert len(pack(source, path, max_bad=0.5)) == COUNT - 4
    assert f"{source}: left out as bad (4): '001.png' (empty), '002" in caplog.text
    with pytest.raises(ValueError, match=rf"\(max_bad=0.1\), got 4 bad of {COUNT} in .*'001"):
        pack(source, path)


def test_too_many_bad_images_end_packing_with_their_names(source, tmp_path):
    """No file is made, and the error names them."""
    for name in ("001", "002", "004"):
        damage(source / f"{name}.png")
    sentence = rf"good images \(max_bad=0.2\), got 3 bad of {COUNT} in {source}: '001.png' \("
    with pytest.raises(ValueError, match=sentence):
        pack(source, tmp_path / "file.npy", max_bad=0.2, workers=2)
    assert names(tmp_path) == ["source"]


def test_another_process_maps_the_file_for_itself(source, tmp_path, monkeypatch):
    """Pickled, images are their path: small, found from elsewhere, and refused if packed anew."""
    monkeypatch.chdir(tmp_path)
    made = pack(source, "file.npy", 64)
    content = pickle.dumps(made)
    assert len(content) < 1000 < made.pixels.nbytes
    monkeypatch.chdir("/")
    again = pickle.loads(content)
    assert torch.equal(again.pixels, made.pixels)
    assert again.pixels.data_ptr() != made.pixels.data_ptr()
    write_picture(source / "001.png", seed=99, size=(20, 20))
    pack(source, tmp_path / "file.npy", 64)
    with pytest.raises(ValueError, match="it was packed anew meanwhile"):
        pickle.loads(content)


def test_writing_to_the_pixels_does_not_reach_the_file(source, tmp_path):
    """The mapping is private."""
    made = pack(source, tmp_path / "file.npy")
    before = (tmp_path / "file.npy").read_bytes()
    made.pixels.zero_()
    assert made[0].max() == -1
    assert (tmp_path / "file.npy").read_bytes() == before


def test_packing_more_takes_no_more_memory(tmp_path, monkeypatch):
    """Neither images nor what is written of them stay in Python's memory."""
    monkeypatch.setattr(packing, "_BATCH", 2 * 3 * 64 * 64)
    peaks = []
    for count in (10, 60):
        root = make_folder(tmp_path / f"{count}", count)
        pack(root, tmp_path / f"{count}.warm.npy", 64)
        tracemalloc.start()
        pack(root, tmp_path / f"{count}.npy", 64)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # 50 more images are 600 kB of pixels; what is known of a file takes a kilobyte or two.
    assert peaks[1] - peaks[0] < 50 * 3000


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"size": 4}, "image_size must be at least 8, got 4"),
        ({"channels": 2}, "channels must be 1 or 3, got 2"),
        ({"max_bad": 2}, r"max_bad must be in \[0, 1\], got 2"),
        ({"max_bad": float("nan")}, r"max_bad must be in \[0, 1\], got nan"),
        ({"workers": -1}, "workers must be at least 0, got -1"),
        (
            {"source": "nowhere"},
            r"root must be a folder, a zip or a tar .*, got nowhere: no file there",
        ),
        ({"path": "faces.packed"}, "path must end in .npy, got faces.packed; use faces.npy"),
    ],
)
def test_bad_arguments_are_named(source, tmp_path, arguments, sentence):
    """Each is refused by name, before anything is written."""
    with pytest.raises(ValueError, match=sentence):
        pack(**{"source": source, "path": tmp_path / "file.npy", **arguments})
    assert names(tmp_path) == ["source"]


def test_a_folder_that_cannot_be_written_is_named(source):
    """By the error of the disk."""
    with pytest.raises(OSError, match="/dev/null"):
        pack(source, "/dev/null/file.npy")


def test_a_missing_array_is_named(tmp_path):
    """Opening without packing says what is missing."""
    with pytest.raises(ValueError, match="npy: there is no such file; pack"):
        data.open_packed(tmp_path / "file.npy")


def test_files_that_cannot_be_looked_at_have_a_stamp(source, tmp_path, caplog):
    """A link to nowhere is bad, and no reason to pack anew until it leads somewhere."""
    (source / "link.png").symlink_to(tmp_path / "later.png")
    path = tmp_path / "file.npy"
    pack(source, path)
    assert "left out as bad (1): 'link.png' (No such file" in warnings_in(caplog)[0]
    pack(source, path)
    assert "left out as bad (1): 'link.png'" in warnings_in(caplog)[0]
    write_picture(tmp_path / "later.png")
    assert len(pack(source, path)) == COUNT + 1
    assert "sources changed" in warnings_in(caplog)[0]


def test_what_cannot_be_read_for_a_while_is_not_left_out_for_ever(source, tmp_path, monkeypatch):
    """A disk that fails once must not cost an image."""
    path, in_bytes, failed = tmp_path / "file.npy", data.ImageFiles.in_bytes, []

    def fails_once(self, index):
        if index == 3 and not failed:
            failed.append(index)
            raise decoding.BadImageError("Input/output error")
        return in_bytes(self, index)

    monkeypatch.setattr(data.ImageFiles, "in_bytes", fails_once)
    with pytest.raises(OSError, match=r"failed to decode once and then succeeded: '005\.png'"):
        pack(source, path)
    assert names(tmp_path) == ["source"]
    assert_packed(pack(source, path), source)


def test_a_source_that_changes_while_it_is_packed_is_packed_anew(source, tmp_path, caplog):
    """Sizes and times are those from before the first image was decoded."""
    path = tmp_path / "file.npy"

    def changes(name, operate, *arguments):
        if name == "create":
            write_picture(source / "001.png", seed=99, size=(20, 20))
        return operate(*arguments)

    with watched(changes):
        pack(source, path)
    warnings_in(caplog)
    packed = pack(source, path)
    assert warnings_in(caplog) == [f"{path} is packed anew: sources changed."]
    assert_packed(packed, source)


def test_new_labels_decode_nothing_anew(source, tmp_path, monkeypatch, caplog):
    """They are written into the manifest, of the images that are good."""
    damage(source / "004.png")
    path = tmp_path / "file.npy"
    made = pack(source, path)
    before = path.stat().st_ino
    monkeypatch.setattr(decoding, "decode", None)
    classes = {
        name: "odd" if int(name[-5]) % 2 else "even" for name in data.image_folder(source).names
    }
    labelled = pack(source, path, labels=classes)
    assert path.stat().st_ino == before
    assert torch.equal(labelled.pixels, made.pixels)
    assert labelled.classes == ["even", "odd"]
    assert labelled.num_classes == 2
    assert labelled.labels.tolist() == [int(name[-5]) % 2 for name in labelled.names]
    image, label = labelled[2]
    assert torch.equal(image, made[2])
    assert (label.dtype, label.shape) == (torch.int64, ())
    assert labelled.configuration != made.configuration
    assert pack(source, path, labels=classes).configuration == labelled.configuration
    assert pack(source, path).labels is None
    assert "packed anew" not in caplog.text


def test_leftovers_of_dead_processes_go_and_other_files_stay(source, tmp_path):
    """Those of arrays that were packed, or their manifests, and no other."""
    mine = [tmp_path / f"file.{end}.0123cdef.partial" for end in ("npy", "json")]
    other = tmp_path / "20240101123456789.partial"
    for file in (*mine, other):
        file.touch()
    pack(source, tmp_path / "file.npy")
    assert names(tmp_path) == [other.name, "file.json", "file.npy", "source"]


def test_an_old_array_stays_open_until_the_new_one_is_on_the_disk(source, tmp_path, monkeypatch):
    """If that fails, what was there before can be opened as before."""
    path = tmp_path / "file.npy"
    before = pack(source, path).pixels.clone()
    write_picture(source / "new.png")

    def fails(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(packing.disk, "sync", fails)
        with pytest.raises(OSError, match="No space"):
            pack(source, path)
    assert torch.equal(data.open_packed(path).pixels, before)


def test_another_process_does_not_get_other_labels(source, tmp_path):
    """A set that was labelled anew is not what was sent."""
    path = tmp_path / "file.npy"
    names_of = pack(source, path).names
    sent = pickle.dumps(pack(source, path, labels=dict.fromkeys(names_of, 0)))
    pack(source, path, labels={name: index for index, name in enumerate(names_of)})
    with pytest.raises(ValueError, match="it was packed anew meanwhile"):
        pickle.loads(sent)


def test_a_manifest_that_lacks_something_is_refused(source, tmp_path):
    """It cannot tell whether it describes the array."""
    path = pack(source, tmp_path / "file.npy").path
    manifest = json.loads(path.with_suffix(".json").read_text())
    del manifest["time"]
    path.with_suffix(".json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="was not made by"):
        data.open_packed(path)
