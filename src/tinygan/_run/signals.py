"""SIGINT and SIGTERM as requests to stop, which a second one makes orders."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Received:
    """The first signal that asked a block to end: its ``number``, or 0."""

    number = 0

    def relay(self, number: int) -> None:
        """End the block as by a signal, which came to another process and is not counted here."""
        self.number = self.number or number


@contextmanager
def as_requests(stop: Callable[[str], object]) -> Iterator[Received]:
    """Turn the first SIGINT or SIGTERM within the block into a call such as ``stop("SIGINT")``.

    When the block then ends normally, KeyboardInterrupt is raised for SIGINT, and SystemExit(143)
    for SIGTERM. A second SIGTERM ends the process at once; a second SIGINT raises KeyboardInterrupt
    at once. The user's own handlers are called too and are back after the block; an ignored signal
    stays ignored. Only in the main thread.
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
        count += 1
        is_run = os.getpid() == here  # a process that a hook has forked ends as ever
        if is_run and count > 1 and number == signal.SIGINT:
            raise KeyboardInterrupt  # as Python does, which keeps an interactive session alive
        if not is_run or count > 1:
            signal.signal(number, signal.SIG_DFL if is_run else before[number])
            os.kill(os.getpid(), number)
            return
        received.relay(number)
        child = getattr(signal, "SIGCHLD", 0)  # which Windows has not
        if child and callable(news := signal.getsignal(child)):
            # PyTorch's would raise, in the midst of a step, for workers that this signal ended.
            before[child] = news
            signal.signal(child, lambda *arguments: _try(news, *arguments))
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


def _try(handler: Callable[..., object], *arguments: object) -> None:
    with suppress(RuntimeError):
        handler(*arguments)


def ignore() -> None:
    """Ignore both signals in this process: a loader's worker, which its parent will end."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
