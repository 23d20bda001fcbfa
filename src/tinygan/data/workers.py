"""The processes that load in the background: deaf to signals, and gone when their iteration is."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.util import Finalize

import torch

from tinygan import signals

GRACE = 1.0
"""Seconds that a worker has for its current batch when its iteration ends."""


class Workers:
    """The worker processes of one ``DataLoader`` iteration.

    A signal to stop reaches the whole process group: the run that is asked to finish its step and
    save still needs its workers. So they ignore SIGINT and SIGTERM, and the second is what
    multiprocessing would end them with. They are killed instead, which also ends one that is stuck.

    Args:
        count: how many there will be.

    Examples:
        >>> workers = Workers(2)  # worker_init_fn=workers.begin
        >>> with workers.starting():
        ...     pass  # iter(DataLoader(...))
        >>> with workers.ending():
        ...     pass  # del of that
    """

    def __init__(self, count: int) -> None:
        # In memory that the processes share, because each learns its number only when it runs.
        self._processes = torch.zeros(count, dtype=torch.int64).share_memory_()
        # Runs before multiprocessing waits for its children to heed a signal that they ignore: when
        # the interpreter ends, and when a process of multiprocessing does, which has no atexit.
        self._at_exit = Finalize(None, self._kill, exitpriority=0)

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Within the block both signals wait, and for ever in processes that are forked there."""
        # A server that starts processes would hand the mask on to all of them.
        if len(self._processes) == 0 or multiprocessing.get_start_method() != "fork":
            yield
            return
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signals.SIGNALS)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def begin(self, worker: int) -> None:
        """Be called first in each worker, with its index."""
        self._processes[worker] = os.getpid()
        signals.ignore()

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Let the workers end within the block, and kill those that are late or left after it."""
        if len(self._processes) == 0:
            yield
            return
        # PyTorch waits 5 seconds for each that is busy, and 5 more after a signal it ignores.
        late = threading.Timer(GRACE, self._kill)
        late.daemon = True
        late.start()
        with _no_news_of_children():
            try:
                yield
            finally:
                late.cancel()
                self._at_exit.cancel()
                self._kill()

    def _kill(self) -> None:
        ours = set(self._processes.tolist())
        for process in multiprocessing.active_children():
            if process.pid in ours:
                process.kill()
                process.join()


@contextmanager
def _no_news_of_children() -> Iterator[None]:
    """Within the block no signal tells that a child has died: PyTorch's handler would raise."""
    of_children = getattr(signal, "SIGCHLD", None)  # not on Windows
    if of_children is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(of_children, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(of_children, before)
