"""The processes that load in the background: deaf to signals, and gone when their iteration is."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tinygan import signals


class Workers:
    """The worker processes of one ``DataLoader`` iteration.

    A signal to stop reaches the whole process group: the run that is asked to finish its step and
    save still needs its workers. So they ignore SIGINT and SIGTERM, and the second is what
    multiprocessing would end them with. They are killed instead, which also ends one that is stuck.

    Args:
        count: how many there will be.

    Examples:
        >>> workers = Workers(2)  # worker_init_fn=workers.begin
        >>> workers.end()
    """

    def __init__(self, count: int) -> None:
        # In memory that the processes share, because each learns its number only when it runs.
        self._processes = torch.zeros(count, dtype=torch.int64).share_memory_()
        # Runs before multiprocessing waits for its children to heed a signal that they ignore.
        atexit.register(self.end)

    def begin(self, worker: int) -> None:
        """Be called first in each worker, with its index."""
        self._processes[worker] = os.getpid()
        signals.ignore()

    def end(self) -> None:
        """Kill those that are left."""
        atexit.unregister(self.end)
        ours = set(self._processes.tolist())
        with _no_news_of_children():
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
