"""SIGINT and SIGTERM as requests to stop, which a second one makes orders."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Received:
    """The first signal that asked a block to end: its ``number``, or 0."""

    def __init__(self) -> None:
        self.number = 0

    def relay(self, number: int) -> None:
        """End the block as if it had received a signal, which came to another process.

        A signal that comes later is still the first one here, not the second.
        """
        self.number = self.number or number


@contextmanager
def as_requests(stop: Callable[[str], object]) -> Iterator[Received]:
    """Turn the first SIGINT or SIGTERM within the block into a call such as ``stop("SIGINT")``.

    When the block then ends normally, KeyboardInterrupt is raised for SIGINT, and SystemExit(143)
    for SIGTERM. A second signal ends the process at once. The user's own handlers are called too
    and are back after the block; a signal that was ignored stays ignored. Python handles signals in
    the main thread only, so this does nothing in another one.
    """
    received = Received()
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    count, here = 0, os.getpid()
    # None is a handler that was not set from Python, which could not be restored.
    before: dict[int, Any] = {
        number: handler
        for number in SIGNALS
        if (handler := signal.getsignal(number)) not in (signal.SIG_IGN, None)
    }

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal count
        if os.getpid() != here:  # a process that a hook has forked is no run: it ends as ever
            signal.signal(number, before[number])
            os.kill(os.getpid(), number)
            return
        count += 1
        if count > 1:
            _end_at_once(number)
        received.relay(number)
        stop(signal.Signals(number).name)
        own = before[number]
        if callable(own) and own is not signal.default_int_handler:
            own(number, frame)

    for number in before:
        signal.signal(number, handle)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received.number == signal.SIGINT:
        raise KeyboardInterrupt
    if received.number:
        raise SystemExit(128 + received.number)  # the exit status that shells give to signals


def _end_at_once(number: int) -> None:
    if number == signal.SIGINT:  # as Python does, which keeps an interactive session alive
        raise KeyboardInterrupt
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def ignore(_worker: int = 0) -> None:
    """Ignore both signals in this process: a loader's worker, which its parent will end."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
