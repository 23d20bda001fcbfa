"""The processes that load in the background: deaf to signals, and gone when their iteration is."""

from __future__ import annotations

import copy
import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any

from tinygan._run import signals

GRACE = 1.0
"""Seconds that a worker has for its current batch when its iteration ends."""


class Workers:
    """The worker processes of one ``DataLoader`` iteration.

    A signal to stop reaches the whole process group: the run that is asked to finish its step and
    save still needs its workers. So they ignore SIGINT and SIGTERM, and the second is what
    multiprocessing would end them with. They are killed instead, which also ends one that is stuck.

    Args:
        count: how many there will be.

    Attributes:
        context: makes them, for the ``DataLoader``'s ``multiprocessing_context``; None for 0.

    Examples:
        >>> workers = Workers(2)
        >>> with workers.starting():
        ...     pass  # iter(DataLoader(...))
        >>> with workers.ending():
        ...     pass  # del of that
    """

    def __init__(self, count: int) -> None:
        self.context: Any = None
        if count > 0:
            default: Any = multiprocessing.get_context()
            self.context = copy.copy(default)
            self.context.Process = partial(self._process, default.Process)
        self._started: list[BaseProcess] = []
        # Runs before multiprocessing waits for its children to heed a signal that they ignore: when
        # the interpreter ends, and when a process of multiprocessing does, which has no atexit.
        self._at_exit = Finalize(None, self._end, exitpriority=0)

    def _process(self, make: Callable[..., BaseProcess], **arguments: Any) -> BaseProcess:
        process = make(**arguments)
        self._started.append(process)
        return process

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Within the block both signals wait, and for ever in processes that are forked there."""
        # Not if a server starts the processes: it would hand the mask on to all of them.
        forks = self.context is not None and self.context.get_start_method() == "fork"
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signals.SIGNALS) if forks else None
        try:
            yield
        except BaseException:
            self._at_exit.cancel()
            self._end()
            raise
        finally:
            if before is not None:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Let the workers end within the block, and kill those that are late or left after it."""
        # PyTorch waits 5 seconds for each that is busy, and 5 more after a signal it ignores.
        late = threading.Timer(GRACE, self._kill)
        late.daemon = True
        if self._left():  # not after the interpreter's end, when no thread can be started
            late.start()
        with _no_news_of_children():
            try:
                yield
            finally:
                late.cancel()
                self._at_exit.cancel()
                self._end()

    def _end(self) -> None:
        with _no_news_of_children():
            self._kill()
            for process in self._left():
                process.join()

    def _kill(self) -> None:
        for process in self._left():
            process.kill()

    def _left(self) -> list[BaseProcess]:
        # Not is_alive(), which is an error in a process that was forked meanwhile.
        children = multiprocessing.active_children()
        return [process for process in self._started if process in children]


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
