"""Training speed and memory of all contenders, beside the tutorial's loop and the floor."""

from __future__ import annotations

import multiprocessing
import statistics
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace

import pytest
import torch

import contenders
import floor
import report as results
from contenders import Setting
from measuring import Ratio, resident_bytes
from report import Report
from workers import race


@dataclass(frozen=True)
class Plan:
    """What is trained, and for how long it is timed.

    Args:
        setting: what is trained.
        steps: timed per block.
        lead: steps of a block before them, after what a call does once.
        budget: seconds for all rounds.
        in_ram: whether peak memory is measured on the CPU.
        why_not: why it is not trained at all.
    """

    setting: Setting
    steps: int = 1
    lead: int = 0
    budget: float = 0
    in_ram: bool = False
    why_not: str = ""

    def __str__(self) -> str:
        """Return the title of the table."""
        s = self.setting
        return f"Training, {s.image_size} px, batch {s.batch_size}, width {s.width}"


SLOW = "not measured: too slow on a CPU"

PLANS = {
    "cpu": [
        Plan(Setting(64, 128, 64, "cpu"), steps=2, lead=1, budget=240, in_ram=True),
        Plan(Setting(128, 16, 64, "cpu"), steps=2, lead=1, budget=70),
        Plan(Setting(64, 1024, 64, "cpu"), why_not=SLOW),
        Plan(Setting(128, 128, 64, "cpu"), why_not=SLOW),
        Plan(Setting(128, 1024, 64, "cpu"), why_not=SLOW),
    ],
    "cuda": [
        Plan(Setting(64, 128, 64, "cuda"), steps=30, lead=5, budget=35),
        Plan(Setting(64, 1024, 64, "cuda"), steps=10, lead=5, budget=30),
        Plan(Setting(128, 128, 64, "cuda"), steps=15, lead=5, budget=25),
        Plan(Setting(128, 1024, 64, "cuda"), steps=3, lead=2, budget=30),
    ],
}
"""The first of each device is the one of most targets."""

WARM_UP = {"cpu": 2, "cuda": 8}
"""Steps: one to find algorithms, one with Adam's state; on CUDA also until graphs are captured."""


def plans(gpu: bool, quick: bool) -> list[Plan]:
    """Return what is to be trained; in a trial, tiny nets in one round."""
    plans = PLANS["cuda" if gpu else "cpu"]
    if not quick:
        return plans
    tiny = [Setting(16, 8, 4, plans[0].setting.device), Setting(32, 4, 4, plans[0].setting.device)]
    return [
        replace(plan, setting=setting, steps=2, budget=0) for plan, setting in zip(plans, tiny)
    ] + plans[-1:] * bool(plans[-1].why_not)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Choose the settings by the options."""
    option = metafunc.config.getoption
    metafunc.parametrize("plan", plans(option("--gpu"), option("--quick")), ids=str)


def test_training(plan: Plan, quick: bool, report: Report, request: pytest.FixtureRequest) -> None:
    """Let all contenders train in turn on the same batch, each in a process of its own."""
    setting = plan.setting
    table = report.table(str(plan))
    if plan.why_not:
        table.row(contender="all", remark=plan.why_not)
        return
    rates: floor.Rates = request.getfixturevalue("rates")
    makers = contenders.makers(setting.device)
    found = race(
        list(makers),
        setting,
        steps=plan.steps,
        lead=plan.lead,
        warm_up=WARM_UP[setting.device],
        budget=plan.budget,
        at_least=1 if quick else 3,
    )
    times, memory = found.times, found.memory
    if plan.in_ram:
        # A process takes some seconds to start: in a trial, a few will do.
        # Compilers are left out: their processes take minutes, and their memory is not a step's.
        chosen = [name for name in times if "compile" not in name]
        chosen = ["tutorial", "tinygan bf16"] if quick else chosen
        memory = {name: _peak_in_ram(name, setting) for name in chosen}

    flops = floor.least_flops(setting)
    for name in makers:
        if name not in times:
            table.row(contender=name, remark=found.remarks[name])
            continue
        step = statistics.median(times[name]) / plan.steps
        ratio = Ratio.of(times["tutorial"], times[name]) if "tutorial" in times else None
        table.row(
            contender=name,
            images_per_s=setting.batch_size / step,
            ms_per_step=step * 1000,
            peak_mb=memory.get(name),
            **(ratio.columns if ratio else {}),
            times_floor=step / rates.floor(setting, flops, _precision(name)),
        )
    _explain(table, plan, rates, flops, times)
    if plan == plans(setting.device == "cuda", quick)[0]:
        _compare_with_targets(report, times, memory)
    if (setting.device, setting.image_size, setting.batch_size) == ("cuda", 64, 1024):
        best = _best(times, "tinygan")
        if best is not None:
            step = statistics.median(times[best]) / plan.steps
            report.measured(results.FLOOR, step / rates.floor(setting, flops, _precision(best)))


def _peak_in_ram(name: str, setting: Setting) -> float | None:
    """Return the MB by which a fresh process grows when it trains; None where nobody tells."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_growth, name, setting, torch.get_num_threads()).result()


def _growth(name: str, setting: Setting, threads: int) -> float | None:
    """Train two steps in a process of its own; what PyTorch itself needs is there before."""
    torch.set_num_threads(threads)
    tiny = replace(setting, image_size=16, batch_size=8, width=4)
    contenders.Tutorial(tiny).time(tiny.batch(), steps=2)
    batch = setting.batch()
    before = resident_bytes()
    contenders.makers(setting.device)[name](setting).time(batch, steps=2)
    peak = resident_bytes(peak=True)
    return None if before is None or peak is None else (peak - before) / 1e6


def _precision(name: str) -> torch.dtype | None:
    return torch.bfloat16 if "bf16" in name else None


def _best(times: dict[str, list[float]], who: str, without: str = "no such word") -> str | None:
    """Return the fastest contender of those whose name begins with ``who``."""
    names = [name for name in times if name.startswith(who) and without not in name]
    return min(names, key=lambda name: statistics.median(times[name]), default=None)


def _explain(
    table: results.Table,
    plan: Plan,
    rates: floor.Rates,
    flops: float,
    times: dict[str, list[float]],
) -> None:
    """Say below the table what its numbers are."""
    setting = plan.setting
    rounds = max(map(len, times.values()), default=0)
    table.note(
        f"Medians of {rounds} rounds of {plan.steps} steps each, in turn, after {plan.lead} that "
        "are not timed. ratio: to the tutorial's loop, median of the rounds, and its range."
    )
    if setting.device == "cuda":
        table.note(
            "peak MB: max_memory_reserved of the contender, its warm-up and capture included."
        )
    elif plan.in_ram:
        table.note(
            "peak MB: growth of a fresh process in two steps, beyond what it needs for PyTorch; "
            "what a framework leaves in memory is in it."
        )
    for dtype, precision in ((None, "fp32"), (torch.bfloat16, "bf16")):
        moved = floor.bytes_per_step(setting, dtype)
        rate = rates.flops[dtype or torch.float32]
        table.note(
            f"Floor in {precision}: {rates.floor(setting, flops, dtype) * 1000:.3g} ms, the longer "
            f"of {flops * setting.batch_size / 1e9:,.3f} GFLOP at {rate / 1e12:.3g} TFLOP/s and "
            f"{moved / 1e9:.3g} GB at {rates.bytes / 1e9:,.3g} GB/s."
        )


def _compare_with_targets(
    report: Report, times: dict[str, list[float]], memory: dict[str, float | None]
) -> None:
    """Hand over what the targets are about, as far as it was measured."""

    def compare(target: str, slow: str | None, fast: str | None) -> None:
        if slow in times and fast in times:
            report.measured(target, Ratio.of(times[slow], times[fast]).median)

    def compare_memory(name: str | None) -> None:
        theirs, ours = memory.get("tutorial"), memory.get(name or "")
        if theirs and ours:
            report.measured(results.MEMORY, ours / theirs)

    best = _best(times, "tinygan")
    compare(results.BF16, "tutorial", "tinygan bf16")
    compare(results.FP32, "tutorial", "tinygan fp32")
    compare(results.BEST, "tutorial", best)
    compare(results.BY_HAND, _best(times, "hand-tuned", without="capture"), best)
    for name in [best] if report.device == "cuda" else ["tinygan fp32", "tinygan bf16"]:
        compare_memory(name)
