"""How time and memory are measured."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

Run = Callable[[], float]
"""Does a block of work once, and returns the seconds that count."""


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return how long ``work`` takes, its work on the device included."""
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


class ClockedBatches:
    """The same batch again and again, with a clock: each loop that takes it is timed alike.

    The clock starts when the loop asks for batch number ``lead``, and stops when it finds that
    there are no more. So what a loop does once per call stays outside, be it checks, set-up or
    memory that it has to ask for anew.

    Args:
        batch: real images (N, C, H, W) on the device.
        steps: batches that are timed.
        lead: batches before them.

    Attributes:
        seconds: between the clock's start and its stop, the device's work included.
    """

    def __init__(self, batch: torch.Tensor, steps: int, lead: int = 0) -> None:
        self.batch = batch
        self.steps = steps
        self.lead = lead
        self.seconds = float("nan")

    def __len__(self) -> int:
        """Return the number of batches, those of the lead included."""
        return self.lead + self.steps

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Give the batches."""
        for _ in range(self.lead):
            yield self.batch
        synchronize(self.batch.device)
        self._start = time.perf_counter()
        for _ in range(self.steps):
            yield self.batch
        self.stop()

    def stop(self) -> None:
        """Stop the clock: for loops that count the batches, and do not ask for one too many."""
        synchronize(self.batch.device)
        self.seconds = time.perf_counter() - self._start


def in_turn(
    runs: dict[str, Run], budget: float, at_least: int = 3
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Let all run once per round, until the budget is spent: seconds by name, and errors.

    A machine that changes its speed changes it for all. Every second round is run backwards, so
    that none has always the same neighbour, and none gains from a machine that gets slower. What
    fails is left out from there on.

    Args:
        runs: what to time, by name.
        budget: seconds, after which no new round begins.
        at_least: rounds that are run whatever they take.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    errors: dict[str, str] = {}
    start = time.perf_counter()
    done = 0
    while times and (done < at_least or time.perf_counter() - start < budget):
        for name in list(times) if done % 2 == 0 else list(reversed(times)):
            try:
                times[name].append(runs[name]())
            except Exception as error:  # the others are still worth their numbers
                errors[name] = first_line(error)
                del times[name]
        done += 1
    return times, errors


@dataclass(frozen=True)
class Ratio:
    """How many times as fast, round by round: the median, and the range."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, slow: list[float], fast: list[float]) -> Ratio:
        """Compare the seconds of two that ran in the same rounds."""
        ratios = [a / b for a, b in zip(slow, fast)]
        return cls(statistics.median(ratios), min(ratios), max(ratios))

    @property
    def columns(self) -> dict[str, float]:
        """The cells of a table."""
        return {"ratio": self.median, "from": self.lowest, "to": self.highest}


def first_line(error: BaseException) -> str:
    """Return what went wrong, short enough for a table."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:100]}" if text else type(error).__name__


def resident_bytes(peak: bool = False) -> int | None:
    """Return this process's memory in RAM, now or at its peak; None where Linux does not tell."""
    # Not resource.getrusage: its peak outlives exec, so a child would begin with its parent's.
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    field = "VmHWM:" if peak else "VmRSS:"
    (line,) = (line for line in status.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024
