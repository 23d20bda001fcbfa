"""Contenders in processes of their own, which train in turn.

In one process they would meet what others have left: cuDNN keeps its choice of algorithms per
thread, whoever made it; the compiler counts the nets of all; memory that one gave back is there for
the next.
"""

from __future__ import annotations

import gc
import math
import multiprocessing
import os
import signal
import time
import traceback
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import torch

import contenders
from contenders import Contender, Setting
from measuring import Run, first_line, in_turn

STUCK = 30.0
"""Seconds after which a block is not waited for, where there is an end at all."""


class WorkerError(RuntimeError):
    """What went wrong in a worker, in a line."""


class Worker:
    """A process that does what it is asked, one thing after the other.

    It imports at once, and touches the device when it is first asked for something. It belongs to
    its parent's process group, so who kills that kills it as well.
    """

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, its_end = context.Pipe()
        self._process = context.Process(target=_serve, args=(its_end,))
        self._process.start()
        its_end.close()  # or its death would go unnoticed
        weakref.finalize(self, _kill, self._process)  # or Python would wait for it at the end

    def ask(self, function: Callable[..., Any], *arguments: Any, patience: float = math.inf) -> Any:
        """Return what a function of a module returns there.

        Raises:
            WorkerError: if it fails, or its process ends.
            TimeoutError: if it takes longer than ``patience`` seconds; it is ended then.
        """
        try:
            self._connection.send((function, arguments))
            if not self._connection.poll(None if math.isinf(patience) else max(0, patience)):
                self._abort()
                raise TimeoutError(f"no answer within {patience:.0f} s")
            answer, remark = self._connection.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self._process.join(5)
            raise WorkerError(f"ended with code {self._process.exitcode}") from None
        if remark is not None:
            raise WorkerError(remark)
        return answer

    def _abort(self) -> None:
        """End it so that it says where it hangs, if Python's faulthandler is on."""
        os.kill(self._process.pid, signal.SIGABRT)
        self._process.join(1)
        self.end()

    def end(self) -> None:
        """End the process."""
        _kill(self._process)


def _kill(process: multiprocessing.process.BaseProcess) -> None:
    process.kill()
    process.join()


def _serve(connection: Connection) -> None:
    """Answer until nobody asks any more; in the worker's process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends this one
    while True:
        try:
            function, arguments = connection.recv()
        except EOFError:
            return
        try:
            connection.send((function(*arguments), None))
        except ModuleNotFoundError as error:
            connection.send((None, f"not installed: {error.name}"))
        except Exception as error:
            traceback.print_exc()  # whole; the parent gets a line
            connection.send((None, first_line(error)))


@dataclass(frozen=True)
class Held:
    """The contender of this process, and the batch it trains on."""

    contender: Contender
    batch: torch.Tensor


held: list[Held] = []
"""In a worker: one, after ``prepare``."""


def prepare(name: str, setting: Setting, warm_up: int) -> float | None:
    """Make and warm up a contender: on CUDA, return the most MB that it held meanwhile.

    Its own weights, Adam's state and its graphs are in it, the batch is not. Reserved, not
    allocated: a graph's memory stays its own while nothing is in it.
    """
    batch = setting.batch()
    gpu = setting.device == "cuda"
    before = torch.cuda.memory_reserved() if gpu else 0
    contender = contenders.makers(setting.device)[name](setting)
    contender.check(batch, warm_up)
    held[:] = [Held(contender, batch)]
    gc.collect()
    return (torch.cuda.max_memory_reserved() - before) / 1e6 if gpu else None


def time_block(steps: int, lead: int) -> float:
    """Return the seconds of a block of the prepared contender."""
    return held[0].contender.time(held[0].batch, steps, lead)


@dataclass
class Race:
    """What has been measured by now: each by the contender's name."""

    times: dict[str, list[float]] = field(default_factory=dict)
    memory: dict[str, float | None] = field(default_factory=dict)
    remarks: dict[str, str] = field(default_factory=dict)


def race(
    names: Sequence[str],
    setting: Setting,
    *,
    steps: int,
    lead: int,
    warm_up: int,
    budget: float,
    at_least: int = 3,
    until: float = math.inf,
    keep: Callable[[Race], object] = lambda race: None,
) -> Race:
    """Let contenders train in turn, each in a process of its own.

    Args:
        names: of ``contenders.makers``.
        setting: what is trained.
        steps: timed per block.
        lead: steps of a block before them.
        warm_up: steps in which each is prepared, one after the other.
        budget: seconds for all rounds; half of them are not given to preparations.
        at_least: rounds that are run whatever they take.
        until: when all should be over, by ``time.monotonic``; who is not prepared by then is
            left out.
        keep: called with what is known, after each preparation and each block.
    """
    found = Race()
    workers = {name: Worker() for name in names}
    try:
        for name, worker in workers.items():
            patience = until - budget / 2 - time.monotonic()
            try:
                found.memory[name] = worker.ask(prepare, name, setting, warm_up, patience=patience)
                found.times[name] = []
            except (WorkerError, TimeoutError) as error:  # the others are worth their numbers
                worker.end()
                found.remarks[name] = str(error)
            keep(found)

        def run(name: str) -> Run:
            def block() -> float:
                # The last round may end a little later: only who is stuck is left out.
                patience = max(STUCK, until - time.monotonic())
                seconds = workers[name].ask(time_block, steps, lead, patience=patience)
                found.times[name].append(seconds)
                keep(found)
                return seconds

            return block

        budget = min(budget, until - time.monotonic())
        runs = {name: run(name) for name in found.times}
        found.times, errors = in_turn(runs, budget, at_least)
        found.remarks |= errors
    finally:
        for worker in workers.values():
            worker.end()
    return found
