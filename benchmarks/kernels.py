"""What a step asks of the device, kernel by kernel, and how long it takes it and its host."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, schedule

from bench_profile import FAMILIES, family_of
from contenders import Contender
from measuring import ClockedBatches, synchronize

KERNELS = {
    "compiled": ("triton",),
    "looking for NaN and infinity": ("lpnorm", "isfinite", "isnan", "maxnorm"),
    "Adam": ("adam",),
    "copies and conversions": (
        "memcpy", "memset", "copy", "nchwtonhwc", "nhwctonchw", "convert_tensor", "catarray",
        "fill",
    ),
    "batch norm": ("batch_norm", "batchnorm", "bn_fw", "bn_bw", "bnfw", "bnbw"),
    "convolutions": (
        "conv", "gemm", "xmma", "cutlass", "wgrad", "dgrad", "fprop", "cudnn", "cask", "col2im",
        "im2col", "splitk", "sm80_", "sm90_", "nvjet",
    ),
    "activations": ("relu", "tanh", "threshold", "clamp"),
    "random numbers": ("distribution", "philox", "random"),
    "lists of tensors": ("multi_tensor",),
    "sums and means": ("reduce", "softmax"),
    "one by one": ("elementwise",),
}  # fmt: skip
"""By what the names of CUDA kernels contain, in small letters; the first that fits counts."""

WARM_UP, PROFILED = 4, 3
"""Steps under the profiler: it is slow to begin, so the first are not kept."""


@dataclass(frozen=True)
class Kernel:
    """All runs of one kernel: on the CPU, of one operator.

    Args:
        name: as the profiler has it.
        runs: per step.
        microseconds: of all of them, per step.
    """

    name: str
    runs: float
    microseconds: float


class Clock(ClockedBatches):
    """Batches that clock the device by events, and the host while it only asks.

    One more is given behind those that are timed: at the end of a call the trainer waits for the
    device.

    Attributes:
        on_host: seconds in which the host has asked for all steps that are timed.
        on_device: seconds from the first of them to the last on the device.
    """

    def __len__(self) -> int:
        """Return the number of batches."""
        return super().__len__() + 1

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Give the batches."""
        gpu = self.batch.device.type == "cuda"
        for _ in range(self.lead):
            yield self.batch
        synchronize(self.batch.device)
        if gpu:
            events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            events[0].record()
        self._start = time.perf_counter()
        for _ in range(self.steps):
            yield self.batch
        self.on_host = time.perf_counter() - self._start
        if gpu:
            events[1].record()
        self.stop()
        self.on_device = events[0].elapsed_time(events[1]) / 1000 if gpu else self.seconds
        yield self.batch


class Profiled(ClockedBatches):
    """Batches that tell the profiler where a step ends."""

    def __init__(self, batch: torch.Tensor, step: Callable[[], None]) -> None:
        super().__init__(batch, WARM_UP + PROFILED + 1)  # the last one, likewise, is not kept
        self._step = step

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Give the batches."""
        for _ in range(WARM_UP + PROFILED):
            yield self.batch
            # Or the device would still be at one step when the host is at the next.
            synchronize(self.batch.device)
            self._step()
        yield self.batch


def milliseconds(
    contender: Contender, batch: torch.Tensor, steps: int, blocks: int
) -> dict[str, float]:
    """Return the medians of several blocks, in milliseconds per step.

    The host's time is that of two steps alone after a wait: of more, the device's queue would be
    full, and the host would wait for the device.
    """
    long, short = [], []
    for _ in range(blocks):
        for count, clocks in ((steps, long), (2, short)):
            clocks.append(Clock(batch, count, lead=3))
            contender.train(clocks[-1])
    return {
        "ms_on_device": 1000 * statistics.median(c.on_device for c in long) / steps,
        "ms_in_all": 1000 * statistics.median(c.seconds for c in long) / steps,
        "ms_on_host": 1000 * statistics.median(c.on_host for c in short) / 2,
    }


def profiled(
    contender: Contender, batch: torch.Tensor, folder: Path | None = None, name: str = ""
) -> list[Kernel]:
    """Return a step's kernels, the longest first.

    Once in a process only: CUPTI does not like to be begun again beside CUDA graphs.

    Args:
        contender: warmed up; with its graphs, if it has any.
        batch: what it trains on.
        folder: where a table and a trace are kept; None for nowhere.
        name: of both files.
    """
    gpu = batch.device.type == "cuda"
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    plan = schedule(wait=0, warmup=WARM_UP, active=PROFILED, repeat=1)
    with profile(activities=kinds, schedule=plan, acc_events=True) as profiler:
        contender.train(Profiled(batch, profiler.step))
    found = _on_device(profiler) if gpu else _on_cpu(profiler)
    found.sort(key=lambda kernel: -kernel.microseconds)
    if folder is not None:
        (folder / f"{name}.txt").write_text("\n".join(table(found)) + "\n")
        by = "self_device_time_total" if gpu else "self_cpu_time_total"
        operators = profiler.key_averages().table(by, row_limit=30, max_name_column_width=80)
        (folder / f"{name}_operators.txt").write_text(operators)
        profiler.export_chrome_trace(str(folder / f"{name}.trace.json.gz"))
    return found


def _on_device(profiler: profile) -> list[Kernel]:
    """Add up what has run on the GPU, out of a graph or not."""
    runs: dict[str, list[float]] = {}
    for event in profiler.events():
        # Ranges that Python has named, such as a step of an optimizer, are shown there as well.
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation:
            runs.setdefault(event.name, []).append(event.time_range.elapsed_us())
    return [Kernel(name, len(us) / PROFILED, sum(us) / PROFILED) for name, us in runs.items()]


def _on_cpu(profiler: profile) -> list[Kernel]:
    return [
        Kernel(event.key, event.count / PROFILED, event.self_cpu_time_total / PROFILED)
        for event in profiler.key_averages()
        if not event.key.startswith("ProfilerStep")
    ]


def by_family(kernels: list[Kernel], gpu: bool) -> dict[str, float]:
    """Return the microseconds of a step by what they are for, the longest first."""
    sums: dict[str, float] = {}
    for kernel in kernels:
        name = kernel.name.lower() if gpu else kernel.name
        family = family_of(name, KERNELS if gpu else FAMILIES)
        sums[family] = sums.get(family, 0.0) + kernel.microseconds
    return dict(sorted(sums.items(), key=lambda item: -item[1]))


def table(kernels: list[Kernel], rows: int = 30) -> list[str]:
    """Return the longest kernels of a step, in aligned lines."""
    total = sum(kernel.microseconds for kernel in kernels) or 1.0
    lines = [f"{'us/step':>10}  {'percent':>7}  {'runs':>6}  name"]
    whole = Kernel(f"all {len(kernels)}", sum(kernel.runs for kernel in kernels), total)
    for kernel in [*kernels[:rows], whole]:
        us = kernel.microseconds
        numbers = f"{us:10,.1f}  {100 * us / total:7.1f}  {kernel.runs:6.1f}"
        lines.append(f"{numbers}  {kernel.name[:160]}")
    return lines
