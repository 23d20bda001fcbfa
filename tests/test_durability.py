"""Durability: whatever ends or fails a save, no good checkpoint is lost and the run goes on."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import math
import os
import resource
import stat
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

import tinygan
from tinygan import data, hooks
from tinygan._run import checkpoint, disk

import crashes
import processes
from crashes import Dies, SimulatedCrash, watched
from helpers import flat, tiny_images, tiny_trainer

BATCHES = list(tiny_images(12).split(6))  # so that a run may die just before an epoch's end
STEPS = 4

OPERATIONS = crashes.OPERATIONS
SAVING = [name for name in OPERATIONS if name != "remove"]  # which only tidies up

LEFT = "step_000009.pt.0123cdef.partial"  # by a process that died


def contents(folder):
    """Return what is in a run's folder of checkpoints, by name."""
    return {path.name: path.read_bytes() for path in (folder / "checkpoints").iterdir()}


class Before(tinygan.Hook):
    """Keeps what is in the folder before each save."""

    def __init__(self, keeper):
        self.keeper, self.contents = keeper, {}

    def on_step_end(self, trainer, report):
        """Look."""
        self.contents[trainer.step] = contents(self.keeper.folder.parent)


def run_in(folder, keep=2):
    """Return a trainer that stands where the folder does, and what it sees before each save."""
    keeper = hooks.Checkpoint(folder, every=1, keep=keep)
    before = Before(keeper)
    trainer = tiny_trainer(hooks=[before, keeper])
    trainer.resume(folder)
    return trainer, before.contents


@pytest.mark.parametrize(("keep", "share", "every"), [(1, 0.5, 2), (2, 1, 9)])
def test_a_crash_at_any_operation_loses_nothing(keep, share, every, tmp_path):
    """Died at any of its file operations, a run has its old files or the new; it ends the same."""
    crash(keep, share, tmp_path, every)


def crash(keep, share, tmp_path, every=1):
    """Let a run die at every so many of its operations, with a share of that one done."""

    def new_run(name):
        folder = tmp_path / name / "checkpoints"
        folder.mkdir(parents=True)
        (folder / LEFT).touch()
        return folder, *run_in(folder.parent, keep)

    def dies_and_goes_on(at):
        folder, run, before = new_run(str(at))
        with watched(Dies(at, share)), pytest.raises(SimulatedCrash):
            run.fit(BATCHES, steps=STEPS)
        there = checkpoint.files(folder)
        steps = [checkpoint.load(path)["step"] for path in there]
        assert steps == [checkpoint.step_of(path) for path in there]
        assert max(steps, default=0) in (run.step - 1, run.step)
        assert len(steps) >= sum(name.endswith(".pt") for name in before.get(run.step, []))

        again, _ = run_in(folder.parent, keep)
        again.fit(BATCHES, steps=STEPS)
        assert flat(again.state_dict()) == flat(whole.state_dict())
        names = set(contents(folder.parent))
        assert "step_000004.pt" in names
        assert not any(name.endswith(".partial") for name in names)

    _, whole, _ = new_run("whole")
    count = Dies(math.inf, 1)
    with watched(count):
        whole.fit(BATCHES, steps=STEPS)
    assert set(count.calls) == set(OPERATIONS)
    crashes = [at for at, name in enumerate(count.calls) if name == "write" or share in (0, 1)]
    for at in crashes[::every]:
        try:
            dies_and_goes_on(at)
        except BaseException as error:
            error.add_note(f"died at operation {at} of {count.calls}")
            raise


@pytest.mark.parametrize("share", [0, 0.5, 0.99, 1])
def test_a_crash_leaves_the_old_file_or_the_new(share, tmp_path):
    """Died at any operation of saving over a file, there is one, and it is whole."""
    path, count = tmp_path / "latest.pt", Dies(math.inf, 1)
    with watched(count):
        checkpoint.save({"step": 1}, path)
    for at, _ in enumerate(count.calls):
        with watched(Dies(at, share)), pytest.raises(SimulatedCrash):
            checkpoint.save({"step": 2}, path)
        assert checkpoint.load(path)["step"] in (1, 2)


def test_what_does_not_read_back_does_not_replace(tmp_path):
    """If the disk keeps other bytes than were written, that is an error, and the old file stays."""

    def forgetful(name, operate, *arguments):
        done = operate(*arguments)
        return done[:-1] + b"?" if name == "read" else done

    checkpoint.save({"step": 1}, tmp_path / "latest.pt")
    with watched(forgetful), pytest.raises(OSError, match="does not read back"):
        checkpoint.save({"step": 2}, tmp_path / "latest.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["latest.pt"]
    assert checkpoint.load(tmp_path / "latest.pt") == {"step": 1}


@pytest.mark.parametrize("size", [1, 100_000])
def test_all_bytes_are_synchronised_and_then_the_folder(size, tmp_path, monkeypatch):
    """When the system is asked to synchronise, no byte of the content waits in a buffer."""
    asked, path = [], tmp_path / "state.pt"
    monkeypatch.setattr(os, "fsync", lambda descriptor: asked.append(os.fstat(descriptor)))
    checkpoint.save({"weight": torch.zeros(size)}, path)
    assert [status.st_ino for status in asked] == [path.stat().st_ino, tmp_path.stat().st_ino]
    assert asked[0].st_size == path.stat().st_size


def test_new_folders_are_synchronised_too(tmp_path):
    """The names of the run's folder and of its checkpoints' are on the disk before any file."""
    calls = []

    def notes(name, operate, *arguments):
        calls.append((name, *arguments))
        return operate(*arguments)

    with watched(notes):
        run_in(tmp_path / "run")[0].fit(BATCHES, steps=1)
    calls = calls[: [name for name, *_ in calls].index("create")]
    assert {("sync_folder", tmp_path), ("sync_folder", tmp_path / "run")} <= set(calls)


def test_a_file_is_synchronised_then_renamed_then_the_older_one_removed(tmp_path):
    """A file is written beside its place, and an older one removed when the rename is safe."""
    run_in(tmp_path, keep=1)[0].fit(BATCHES, steps=1)
    folder, new = tmp_path / "checkpoints", tmp_path / "checkpoints" / "step_000002.pt"
    calls = []

    def notes(name, operate, *arguments):
        if name != "read":
            calls.append((name, *arguments))
        return operate(*arguments)

    with watched(notes):
        run_in(tmp_path, keep=1)[0].fit(BATCHES, steps=2)
    order = [name for name, *_ in calls[-6:]]
    assert order == ["create", "write", "sync", "replace", "sync_folder", "remove"]
    (_, temporary), *_, renamed, _, removed = calls[-6:]
    assert temporary.parent == folder
    assert renamed == ("replace", temporary, new)
    assert removed == ("remove", folder / "step_000001.pt")


def test_what_python_holds_back_is_synchronised_too(tmp_path, monkeypatch):
    """All of a file is written when it is synchronised, however it was written."""
    sizes = []
    monkeypatch.setattr(os, "fsync", lambda file: sizes.append(os.stat(file).st_size))
    with disk.renamed(tmp_path / "file") as file:
        file.write(b"six...")
    assert sizes[0] == 6


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_the_umask_says_who_may_read(umask, mode, tmp_path):
    """A checkpoint's mode is that of any other new file."""
    before = os.umask(umask)
    try:
        checkpoint.save({"step": 1}, tmp_path / "state.pt")
    finally:
        os.umask(before)
    assert (tmp_path / "state.pt").stat().st_mode & 0o777 == mode


def failing(trainer, names, steps, number=errno.ENOSPC):
    """Let operations of the disk fail at some steps of a run."""

    def stand_in(name, operate, *arguments):
        if trainer.step in steps and name in names:
            raise OSError(number, os.strerror(number))
        return operate(*arguments)

    return watched(stand_in)


@pytest.fixture(scope="module")
def end(tmp_path_factory):
    """Return the state in which a run ends whose saves do not fail."""
    whole, _ = run_in(tmp_path_factory.mktemp("whole"))
    whole.fit(BATCHES, steps=STEPS)
    return flat(whole.state_dict())


@pytest.mark.parametrize(
    ("name", "number"),
    [
        *((name, errno.ENOSPC) for name in SAVING),
        ("write", errno.EDQUOT),
        ("sync", errno.EROFS),
    ],
)
def test_a_save_that_fails_is_told_and_the_run_goes_on(name, number, end, tmp_path, caplog):
    """Failing at any operation, a save touches no older file, leaves no half one and is logged."""
    run, before = run_in(tmp_path / "run")
    with failing(run, [name], [2], number), caplog.at_level(logging.ERROR):
        run.fit(BATCHES, steps=STEPS)
    assert "NOT SAVED at step 2" in caplog.text
    assert os.strerror(number) in caplog.text
    assert before[3].items() >= before[2].items()
    assert before[3].keys() <= {"step_000001.pt", "step_000002.pt"}
    assert flat(run.state_dict()) == end
    assert tiny_trainer(hooks=run.hooks).resume(tmp_path / "run").name == "step_000004.pt"


@pytest.mark.parametrize("name", SAVING)
def test_a_last_save_that_fails_ends_the_run_with_its_error(name, tmp_path):
    """A run does not end well unless its last state is on the disk; the older files stay."""
    run, before = run_in(tmp_path)
    with failing(run, [name], [STEPS]), pytest.raises(OSError, match="No space left"):
        run.fit(BATCHES, steps=STEPS)
    assert contents(tmp_path).items() >= before[STEPS].items()
    assert not any(left.endswith(".partial") for left in contents(tmp_path))


def hold(path, hold_until):
    """Keep a half-written file locked until another file is there."""
    with disk.renamed(path) as file:
        disk.write(file, b"half")
        Path(f"{hold_until}.held").touch()
        processes.eventually(hold_until.exists)
        disk.write(file, b" and half")


def test_what_the_dead_have_left_goes_and_nothing_else(tmp_path):
    """Whatever they were saving; a process that still writes has its file locked."""
    ends = ("pt.0.partial", "pt.download.partial", "npy.0123cdef.partial", "0123cdef.pt")
    stay = {f"step_000001.{end}" for end in ends}
    for name in (*stay, LEFT, LEFT.replace("9", "2")):
        (tmp_path / name).touch()
    until = tmp_path / "until"
    writer = processes.Child(tmp_path, hold, tmp_path / "step_000003.pt", until)
    processes.eventually(Path(f"{until}.held").exists)
    checkpoint.save({"step": 2}, tmp_path / "step_000002.pt")
    found = {path.name for path in tmp_path.glob("step_*")}
    assert found > stay
    (written,) = found - {*stay, "step_000002.pt"}
    assert written.startswith("step_000003.pt.")
    until.touch()
    assert writer.wait().returncode == 0
    assert (tmp_path / "step_000003.pt").read_bytes() == b"half and half"


def test_a_file_that_was_taken_for_a_dead_process_s_is_begun_again(tmp_path):
    """Between its creation and its lock another process may lock it, and remove it."""
    path, taken = tmp_path / "state.pt", []

    def interferes(name, operate, *arguments):
        done = operate(*arguments)
        if name == "create" and len(taken) < 2:
            taken.append(open(done.name, "rb"))  # noqa: SIM115 - closed by the next line, or below
            fcntl.flock(taken[-1], fcntl.LOCK_EX)
            if len(taken) == 2:  # removed already
                taken[-1].close()
                os.unlink(done.name)
        return done

    with watched(interferes):
        checkpoint.save({"step": 1}, path)
    taken[0].close()
    assert len(taken) == 2
    assert checkpoint.load(path) == {"step": 1}


def test_a_file_is_locked_until_it_has_its_name(tmp_path):
    """Another process that saves at the last moment does not take it for a dead one's."""

    def saves_another(name, operate, *arguments):
        if name == "replace" and arguments[1].name == "state.pt":
            checkpoint.save({"step": 2}, tmp_path / "other.pt")
        return operate(*arguments)

    with watched(saves_another):
        checkpoint.save({"step": 1}, tmp_path / "state.pt")
    assert checkpoint.load(tmp_path / "state.pt") == {"step": 1}


def test_a_disk_without_locks_can_be_saved_to(tmp_path, monkeypatch):
    """What half-written files there are stay, for they may be another process's."""

    def has_none(file, kind):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", has_none)
    (tmp_path / LEFT).touch()
    checkpoint.save({"step": 1}, tmp_path / "state.pt")
    monkeypatch.setattr(disk, "fcntl", None)  # as on Windows
    checkpoint.save({"step": 1}, tmp_path / "other.pt")
    assert {path.name for path in tmp_path.iterdir()} == {LEFT, "state.pt", "other.pt"}


@pytest.mark.parametrize("number", disk.NO_SUCH_SYNC, ids=errno.errorcode.get)
def test_a_folder_that_cannot_be_synchronised_can_be_saved_to(number, tmp_path, monkeypatch):
    """Some disks on a network synchronise files alone; what else a folder answers is an error."""
    synchronise = os.fsync

    def refuses(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        synchronise(descriptor)

    monkeypatch.setattr(os, "fsync", refuses)
    trainer = tiny_trainer(hooks=[hooks.Checkpoint(tmp_path)])
    trainer.fit(BATCHES, steps=1)
    assert set(contents(tmp_path)) == {"step_000001.pt"}
    number = errno.EIO
    with pytest.raises(OSError, match="Input/output error"):
        trainer.save(tmp_path / "run.pt")


@pytest.fixture
def windows(monkeypatch):
    """Let the system refuse what Windows does: to open a folder, to rename or remove what is open.

    It has no locks, and no path from one drive to another: the folders in ``D`` are another's.
    """

    def open_files():
        found = set()
        for number in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                found.add(os.readlink(f"/proc/self/fd/{number}"))
        maps = Path("/proc/self/maps").read_text().splitlines()
        return found | {line.split()[-1] for line in maps if "/" in line}

    def closed(operate):
        def stand_in(path, *arguments, **keywords):
            if any(os.path.realpath(each) in open_files() for each in (path, *arguments)):
                raise PermissionError(errno.EACCES, "Access is denied", str(path))
            return operate(path, *arguments, **keywords)

        return stand_in

    def opened(path, flags, *arguments, **keywords):
        # A file without a name is made in a folder, as Windows has other means to.
        if flags & os.O_TMPFILE != os.O_TMPFILE and os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return operate_open(path, flags, *arguments, **keywords)

    def drive(path):
        return ("D:", path) if f"{os.sep}D{os.sep}" in f"{path}{os.sep}" else ("", path)

    def relative(path, start):
        if drive(os.path.abspath(path))[0] != drive(os.path.abspath(start))[0]:
            raise ValueError("path is on mount 'C:', start on mount 'D:'")
        return operate_relative(path, start)

    operate_open, operate_relative = os.open, os.path.relpath
    monkeypatch.setattr(disk, "fcntl", None)
    monkeypatch.setattr(os, "open", opened)
    for name in ("replace", "unlink", "rename"):
        monkeypatch.setattr(os, name, closed(getattr(os, name)))
    monkeypatch.setattr(os.path, "splitdrive", drive)
    monkeypatch.setattr(os.path, "relpath", relative)


def test_runs_are_saved_on_windows(windows, tmp_path):
    """Checkpoints, pictures and logs are written whole, and older files go; the run is resumed."""
    run = tmp_path / "run"
    watching = [hooks.JSONLog(run), hooks.SampleGrid(run, every=1), hooks.Checkpoint(run, keep=1)]
    trainer = tiny_trainer(hooks=watching)
    trainer.fit(BATCHES, steps=1)
    trainer.fit(BATCHES, steps=2)
    assert set(contents(run)) == {"step_000002.pt"}
    assert not list(tmp_path.glob("**/*.partial"))
    elsewhere = tmp_path / "D" / "run.pt"
    trainer.save(elsewhere)  # on another drive than its folder
    trainer.save(elsewhere)
    again = tiny_trainer(hooks=[hooks.JSONLog(run)])
    again.resume(elsewhere, allow="hooks")
    assert again.step == 2


def test_images_are_packed_on_windows(windows, tmp_path):
    """An array that is mapped cannot be replaced there; once it is not, it is."""
    for name in ("1.png", "2.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    pack = partial(data.pack, tmp_path, tmp_path / "faces.npy", 8, workers=0)
    packed = pack()
    Image.new("RGB", (8, 8)).save(tmp_path / "3.png")
    with pytest.raises(PermissionError):
        pack()
    assert len(packed) == 2
    assert not list(tmp_path.glob("*.partial"))
    del packed
    assert len(pack()) == 3


def test_what_the_dead_have_left_may_stay(tmp_path):
    """If it cannot be removed, a file is saved all the same."""

    def refuses(name, operate, *arguments):
        if name == "remove":
            raise PermissionError(errno.EPERM, "Operation not permitted")
        return operate(*arguments)

    (tmp_path / LEFT).touch()
    with watched(refuses):
        checkpoint.save({"step": 2}, tmp_path / "step_000002.pt")
    assert checkpoint.load(tmp_path / "step_000002.pt") == {"step": 2}


def test_the_first_error_is_the_one_that_is_told(tmp_path):
    """That what is half written cannot be removed either does not hide why it is half written."""
    path = tmp_path / "state.pt"

    def breaks(name, operate, *arguments):
        if name == "write":
            raise OSError(errno.ENOSPC, "No space left on device")
        if name == "remove" and arguments[0].exists():
            raise OSError(errno.EROFS, "Read-only file system")
        return operate(*arguments)

    with watched(breaks), pytest.raises(OSError, match="No space left"):
        checkpoint.save({"step": 1}, path)


def test_a_folder_that_becomes_read_only_keeps_what_it_holds(tmp_path, caplog):
    """Nothing can be made, renamed or removed any more: each save is told, and the last raised."""
    run, before = run_in(tmp_path)
    refused = failing(run, ["create", "replace", "remove"], range(4, 7), errno.EROFS)
    with refused, pytest.raises(OSError, match="Read-only"), caplog.at_level(logging.ERROR):
        run.fit(BATCHES, steps=6)
    for step in (4, 5, 6):
        assert f"NOT SAVED at step {step}" in caplog.text
    assert contents(tmp_path) == before[4]


def test_an_old_file_that_cannot_be_removed_is_told_and_no_error(tmp_path, caplog):
    """What is saved is saved: the run ends well, and all others that are too old are gone."""
    odd = tmp_path / "checkpoints" / "step_000001.pt"
    odd.mkdir(parents=True)
    trainer = tiny_trainer(hooks=[hooks.Checkpoint(tmp_path, every=2, keep=1)])
    with caplog.at_level(logging.ERROR):
        trainer.fit(BATCHES, steps=5)
    assert f"NOT REMOVED, an older checkpoint stays: [Errno {errno.EISDIR}]" in caplog.text
    assert "NOT SAVED" not in caplog.text
    assert {path.name for path in odd.parent.iterdir()} == {odd.name, "step_000005.pt"}


def goes_on_under_a_limit(size):
    """Train to the end with no file larger than this; for a child."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    run_in(Path())[0].fit(BATCHES, steps=STEPS)


def test_a_real_limit_ends_the_run_with_its_old_files(tmp_path):
    """Where the system itself refuses to write on, old files stay, alone, and the error is told."""
    run_in(tmp_path)[0].fit(BATCHES, steps=2)
    before = contents(tmp_path)
    ended = processes.run(tmp_path, goes_on_under_a_limit, min(map(len, before.values())) - 1)
    assert ended.returncode == 1
    assert "NOT SAVED at step 3" in ended.stderr
    assert f"OSError: [Errno {errno.EFBIG}] File too large" in ended.stderr
    assert contents(tmp_path) == before
