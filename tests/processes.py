"""Child processes that begin with tinygan imported: they start in a moment, not in seconds."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import multiprocessing
import os
import runpy
import signal
import sys
import time
import traceback
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import torch

CONTEXT = multiprocessing.get_context("forkserver")
# The modules of tinygan that are imported when they are needed, too, or each child imports them.
CONTEXT.set_forkserver_preload(
    [
        "tinygan.cli.train", "tinygan.metrics", "torchvision", "matplotlib.figure",
        "matplotlib.backends.backend_agg", "pytest", "hypothesis.strategies",
    ]
)  # fmt: skip


PATIENCE = 60
"""Seconds after which a child that should have ended is taken for stuck."""


@dataclass(frozen=True)
class Ended:
    """How a child ended: as ``subprocess.CompletedProcess`` has it."""

    returncode: int
    stdout: str
    stderr: str


def prepare() -> None:
    """Begin to import what every child has, in the background; else the first one waits for it."""
    forkserver.ensure_running()


class Child:
    """A function that runs in another process, within a folder, its output in files there.

    The function must be importable: one of a test module's own, at its top.
    """

    def __init__(self, folder: Path, function: Callable[..., object], *arguments: Any) -> None:
        self._streams = [folder / ".stdout", folder / ".stderr"]
        for path in self._streams:
            path.unlink(missing_ok=True)  # an earlier child's
        self.process = CONTEXT.Process(
            target=_enter, args=(folder, self._streams, function, arguments)
        )
        self.process.start()
        weakref.finalize(self, _kill, self.process)  # after a test that failed, or pytest waits

    def signal(self, number: int) -> None:
        """Send a signal to the child alone."""
        os.kill(self.process.pid, number)

    def until(self, words: str) -> None:
        """Wait until it has printed some words; fail if it ends before."""
        eventually(lambda: words in self._read()[0] or not self.process.is_alive())
        assert words in self._read()[0], self._read()

    def wait(self) -> Ended:
        """Wait for its end; kill it, and fail, if it does not come."""
        self.process.join(PATIENCE)
        if self.process.exitcode is None:
            _kill(self.process)
            raise AssertionError(f"stuck: {self._read()}")
        return Ended(self.process.exitcode, *self._read())

    def is_gone(self) -> bool:
        """Return whether it has ended, and with it all processes that it started."""
        try:
            os.killpg(self.process.pid, 0)
        except ProcessLookupError:
            return True
        return False

    def _read(self) -> list[str]:
        return [path.read_text() if path.exists() else "" for path in self._streams]


def _kill(process: multiprocessing.Process) -> None:
    """Kill a process, if it has not ended, and those that it started."""
    if process.is_alive():
        process.kill()  # it may have no group yet
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def run(folder: Path, function: Callable[..., object], *arguments: Any) -> Ended:
    """Run a function in another process, to its end."""
    return Child(folder, function, *arguments).wait()


def say(*words: object) -> None:
    """Print words at once; for a child, whose output goes to a file."""
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def interpreter(function: Callable[..., object], *arguments: Any) -> None:
    """Run a function and end as a script does, which multiprocessing's processes do not."""
    atexit.register(weakref.finalize._exitfunc)  # which they forget, from Python 3.13 on
    try:
        function(*arguments)
    except BaseException as error:
        sys.last_value = error
        traceback.print_exc()
    ctypes.pythonapi.Py_Exit(int(hasattr(sys, "last_value")))


def script(path: Path, arguments: list[str]) -> None:
    """Run a Python script as ``python -W error path arguments`` does; for a child."""
    warnings.simplefilter("error")
    sys.argv = [str(path), *arguments]
    runpy.run_path(str(path), run_name="__main__")


def _enter(
    folder: Path, streams: list[Path], function: Callable[..., object], arguments: tuple[Any, ...]
) -> None:
    # As in a process that a user starts; it would else inherit the way in which it was started.
    multiprocessing.set_start_method(None, force=True)
    torch.set_num_threads(1)  # of tiny nets, two threads wait for each other more than they work
    os.setsid()  # so that a test can signal all that belongs to it, and nothing else
    os.chdir(folder)
    for number, path in zip((1, 2), streams):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, number)
        os.close(descriptor)
    try:
        function(*arguments)
    except KeyboardInterrupt:
        traceback.print_exc()
        sys.exit(128 + signal.SIGINT)  # as shells say it; multiprocessing would say 1


def eventually(happened: Callable[[], object]) -> None:
    """Wait until something has happened."""
    end = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.002)


def interrupted(begin, folder, number):
    """Begin a command that trains into a folder, in four epochs, and interrupt it by a signal."""
    log = folder / "log.txt"
    child = begin()
    eventually(lambda: log.exists() and "[1/4][0/4]" in log.read_text())
    child.signal(number)
    broken = child.wait()
    assert broken.returncode == (-9 if number == signal.SIGKILL else 128 + number)
    if number != signal.SIGKILL:
        assert f"saved in {folder.name}/checkpoints; run the same command to go on" in broken.stderr


def finished(begin, folder, whole):
    """Begin the same command again; it must end with the very same files as a ``whole`` run."""
    again = begin().wait()
    assert again.returncode == 0, again.stderr
    assert f"Resuming from {folder.name}/checkpoints/step_0000" in again.stdout
    files, ours = (
        {
            path.relative_to(root): path.read_bytes()
            for path in root.rglob("*")
            if path.suffix in (".txt", ".jsonl", ".png", ".html")
        }
        for root in (whole, folder)
    )
    assert files.keys() == ours.keys()
    assert [name for name in files if files[name] != ours[name]] == []
