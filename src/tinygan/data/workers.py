"""The processes that load in the background: deaf to signals, and gone when their iteration is."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any

import torch
from torch.utils.data import DataLoader

from tinygan._run import signals

# Seconds that a worker has for its current batch when its iteration ends.
_GRACE = 1.0


@contextmanager
def iterating(loader: DataLoader[Any]) -> Iterator[Iterator[Any]]:
    """Iterate over a ``DataLoader``, whose workers are gone after the block.

    A signal to stop reaches the whole process group: the run that is asked to finish its step and
    save still needs its workers. So they ignore SIGINT and SIGTERM, and the second is what
    multiprocessing would end them with. They are killed instead, which also ends one that is stuck.
    """
    # Both signals wait, and for ever in processes that are forked meanwhile. Not if a server starts
    # the processes: it would hand the mask on to all of them.
    forks = loader.num_workers > 0 and multiprocessing.get_start_method() == "fork"
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals.SIGNALS) if forks else None
    others = multiprocessing.active_children()
    try:
        with torch.device("cpu"):  # where processes that are forked here load, too
            loaded: Any = iter(loader)
    except BaseException:  # one worker could not be started: let the others go
        _end([child for child in multiprocessing.active_children() if child not in others])
        raise
    finally:
        if before is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    workers: list[BaseProcess] = getattr(loaded, "_workers", [])
    # Runs before multiprocessing waits for its children to heed a signal that they ignore: when
    # the interpreter ends, and when a process of multiprocessing does, which has no atexit.
    end = Finalize(None, _end, [workers], exitpriority=0)
    try:
        yield _on_cpu(loaded)
    finally:
        # PyTorch waits 5 seconds for each that is busy, and 5 more after a signal it ignores.
        late = threading.Timer(_GRACE, _kill, [workers])
        late.daemon = True
        if _left(workers):  # not after the interpreter's end, when no thread can be started
            late.start()
        with _no_news_of_children():
            try:
                getattr(loaded, "_shutdown_workers", int)()  # as when nobody knows them any more
            finally:
                late.cancel()
                end()


def _on_cpu(loaded: Iterator[Any]) -> Iterator[Any]:
    """Load on the CPU, whatever PyTorch's default device: a label may be a number as yet."""
    end = object()
    while True:
        with torch.device("cpu"):
            batch = next(loaded, end)
        if batch is end:
            return
        yield batch


def _end(workers: list[BaseProcess]) -> None:
    with _no_news_of_children():
        _kill(workers)
        for process in _left(workers):
            process.join()


def _kill(workers: list[BaseProcess]) -> None:
    for process in _left(workers):
        process.kill()


def _left(workers: list[BaseProcess]) -> list[BaseProcess]:
    # Not is_alive(), which is an error in a process that was forked meanwhile.
    children = multiprocessing.active_children()
    return [process for process in workers if process in children]


@contextmanager
def _no_news_of_children() -> Iterator[None]:
    """Within the block no signal tells that a child has died: PyTorch's handler would raise."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)
