"""What hooks cost: the trainer with hooks that do nothing beside a loop that has none."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch

import tinygan

import report as results
from contenders import BF16, Contender, HandCaptured, HandTuned, Setting, TinyGAN
from measuring import Ratio, first_line, in_turn
from report import Report

NARROW = 16
"""A width at which Python's share of a step is large."""


class Nothing(tinygan.Hook):
    """Overrides all ten events, and does nothing in them."""

    def on_fit_start(self, trainer):
        """Do nothing."""

    def on_epoch_start(self, trainer):
        """Do nothing."""

    def on_step_start(self, trainer):
        """Do nothing."""

    def on_gradients(self, trainer, player):
        """Do nothing."""

    def on_update(self, trainer, player):
        """Do nothing."""

    def on_step_end(self, trainer, report):
        """Do nothing."""

    def on_epoch_end(self, trainer):
        """Do nothing."""

    def on_non_finite(self, trainer, error):
        """Do nothing."""

    def on_fit_end(self, trainer):
        """Do nothing."""

    def on_exception(self, trainer, error):
        """Do nothing."""


@dataclass(frozen=True)
class Plan:
    """What is trained, and for how long it is timed.

    Args:
        setting: what is trained.
        mode: a word for the table.
        bare: the loop without hooks.
        options: of the trainer, for the same mode.
        steps: timed per block.
        lead: steps of a block before them.
        budget: seconds for all rounds.
    """

    setting: Setting
    mode: str
    bare: Callable[[Setting], Contender]
    options: dict[str, object]
    steps: int
    lead: int
    budget: float

    def __str__(self) -> str:
        """Return what is trained, in a few words."""
        s = self.setting
        return f"{self.mode}, batch {s.batch_size}, width {s.width}"


def plans(gpu: bool, quick: bool) -> list[Plan]:
    """Return what is to be trained, at 64 pixels; in a trial, tiny nets."""
    device = "cuda" if gpu else "cpu"
    modes: list[tuple[str, Callable[[Setting], Contender], dict[str, object]]] = [
        ("fp32", HandTuned, {}),
        ("bf16", partial(HandTuned, dtype=BF16), {"dtype": BF16}),
    ]
    if gpu:
        captured = {"dtype": BF16, "capture": True}
        modes.append(("bf16 capture", partial(HandCaptured, dtype=BF16), captured))
    # The trainer looks at the first batch of each call, which is no cost of hooks: hence the lead.
    wide = partial(Plan, Setting(64, 64, 64, device), steps=1, lead=1, budget=120)
    narrow = partial(Plan, Setting(64, 64, NARROW, device), steps=4, lead=1, budget=20)
    if gpu:
        wide = partial(Plan, Setting(64, 128, 64, device), steps=20, lead=5, budget=7)
        narrow = partial(narrow, steps=20, lead=5, budget=7)
    chosen = [
        plan(mode=mode, bare=bare, options=options)
        for plan in (wide, narrow)
        for mode, bare, options in modes
    ]
    if quick:
        tiny = Setting(16, 8, 4, device)
        chosen = [replace(plan, setting=tiny, steps=2, budget=0.5) for plan in chosen[: len(modes)]]
    return chosen


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Choose the settings by the options."""
    option = metafunc.config.getoption
    metafunc.parametrize("plan", plans(option("--gpu"), option("--quick")), ids=str)


def test_hooks(plan: Plan, quick: bool, report: Report) -> None:
    """Let the bare loop and the trainer with 0, 6 and 20 hooks train in turn."""
    setting = plan.setting
    table = report.table("Hooks that do nothing, beside a bare hand-tuned loop, 64 px")
    batch = setting.batch()
    makers: dict[str, Callable[[Setting], Contender]] = {"bare loop": plan.bare}
    for count in (0, 6, 20):
        hooks = [Nothing() for _ in range(count)]
        makers[f"tinygan, {count} hooks"] = partial(TinyGAN, hooks=hooks, **plan.options)
    made: dict[str, Contender] = {}
    for name, make in makers.items():
        try:
            made[name] = make(setting)
            made[name].check(batch, steps=8 if setting.device == "cuda" else 2)
        except Exception as error:  # the others are still worth their numbers
            made.pop(name, None)
            table.row(trained=str(plan), contender=name, remark=first_line(error))
    times, errors = in_turn(
        {
            name: partial(contender.time, batch, plan.steps, plan.lead)
            for name, contender in made.items()
        },
        plan.budget,
    )
    for name, error in errors.items():
        table.row(trained=str(plan), contender=name, remark=error)
    for name, blocks in times.items():
        ratio = Ratio.of(times["bare loop"], blocks) if "bare loop" in times else None
        table.row(
            trained=str(plan),
            contender=name,
            ms_per_step=statistics.median(blocks) / plan.steps * 1000,
            **(ratio.columns if ratio else {}),
            fastest=min(times["bare loop"]) / min(blocks) if ratio else None,
            rounds=len(blocks),
        )
        if ratio and name == "tinygan, 6 hooks" and setting.width != NARROW:
            report.measured(results.HOOKS, ratio.median)
    table.note(
        "ratio: to the bare loop, above 1 if the trainer is faster; median of the rounds, and its "
        "range; fastest: of the fastest blocks, which a busy machine disturbs least. The target is "
        "for nets of full width, and takes the worst of its medians with 6."
    )
    if "capture" in plan.mode:
        table.note("The bare loop under capture is one CUDA graph of the whole step, by hand.")
    del made
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
