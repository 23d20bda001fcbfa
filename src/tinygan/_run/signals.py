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
    """The signals that asked a block to end."""

    def __init__(self) -> None:
        self.number = 0
        """The first one's number; 0 for none."""

    def relay(self, number: int) -> None:
        """Let the block end as if it had received a signal, which another process has.

        This is not the first of two: when that comes, there is still a first one to come here.
        """
        self.number = self.number or number


@contextmanager
def as_requests(stop: Callable[[str], object]) -> Iterator[Received]:
    """Turn the first SIGINT or SIGTERM within the block into ``stop("SIGINT")``, say.

    A block that was asked to stop and ends normally is left as the signal would have had it:
    by KeyboardInterrupt for SIGINT, by SystemExit(143) for SIGTERM. A second signal ends the
    process at once, SIGINT by KeyboardInterrupt. Handlers of the user's own are called as well, a
    signal that was ignored stays ignored, and all are as before after the block.

    Python handles signals in the main thread only; in another one this does nothing.

    Examples:
        >>> asked = []
        >>> try:
        ...     with as_requests(asked.append):
        ...         signal.raise_signal(signal.SIGINT)
        ... except KeyboardInterrupt:
        ...     print("asked by", asked)
        asked by ['SIGINT']
    """
    received = Received()
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    count = 0
    # None is a handler that was not set from Python, which could not be restored.
    before: dict[int, Any] = {
        number: handler
        for number in SIGNALS
        if (handler := signal.getsignal(number)) not in (signal.SIG_IGN, None)
    }

    here = os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal count
        if os.getpid() != here:  # a process that a hook has forked: no run, and not to be deaf
            signal.signal(number, before[number])
            os.kill(os.getpid(), number)
            return
        count += 1
        if count > 1:
            _end_at_once(number)
        received.relay(number)
        stop(signal.Signals(number).name)
        chained = before[number]
        if callable(chained) and chained is not signal.default_int_handler:
            chained(number, frame)

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
