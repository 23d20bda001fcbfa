"""PyTorch's own learning rate schedulers, so that they resume exactly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from typing_extensions import override

from tinygan._run import checkpoint
from tinygan.hook import Hook, Run
from tinygan.hooks.schedule import own_tensors, players_of, single
from tinygan.optimizers import EXECUTION
from tinygan.player import Player
from tinygan.report import Report

SchedulerFactory: TypeAlias = Callable[[Optimizer], LRScheduler]

Options: TypeAlias = dict[str, Any]


class TorchScheduler(Hook):
    """Step a scheduler of ``torch.optim.lr_scheduler`` for each player's optimizer.

    A scheduler that is made sets its optimizer's options to those of the first step. So making one
    in ``on_fit_start`` resumes at another rate, in silence. This hook makes it once more with the
    options that it was first made with, gives the optimizer back those that it has come to, and the
    scheduler its state.

    A schedule of ``tinygan.schedules`` has no state to begin with, see ``hooks.Schedule``.

    Args:
        make: called as ``make(optimizer)``, returns a scheduler; the same in a run that is resumed.
        player: whose optimizer, by name; None for a scheduler for each player.
        per: what it counts, and when it is stepped: each "step", or each "epoch".

    Raises:
        ValueError: for another ``per``; as ``fit`` begins, for a player that does not exist.
        TypeError: for a scheduler instead of what makes one; as ``fit`` begins, for one that cannot
            be stepped without an argument, or whose state is more than plain values and tensors.

    Examples:
        >>> from functools import partial
        >>> from torch.optim.lr_scheduler import CosineAnnealingLR
        >>> falling = TorchScheduler(partial(CosineAnnealingLR, T_max=10_000))
    """

    def __init__(
        self, make: SchedulerFactory, *, player: str | None = None, per: str = "step"
    ) -> None:
        if isinstance(make, LRScheduler) or not callable(make):
            raise TypeError(
                f"make must be a function of an optimizer, got {make!r}; use "
                "functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=10_000), say."
            )
        if per not in ("step", "epoch"):
            raise ValueError(f"per must be 'step' or 'epoch', got {per!r}; use one of these.")
        self.make = make
        self.player = player
        self.per = per
        self.settings = {"make": make, "player": player, "per": per}
        self._schedulers: dict[str, LRScheduler] = {}
        self._first: dict[str, list[Options]] = {}
        """The options of each optimizer's groups, before its scheduler was first made."""
        self._loaded: dict[str, Any] = {}
        """The state of which schedulers are still to be made."""

    @override
    def on_fit_start(self, trainer: Run) -> None:
        self._prepare(trainer)

    @override
    def on_step_start(self, trainer: Run) -> None:
        self._prepare(trainer)  # another state may have been loaded in the middle of a run

    @override
    def on_step_end(self, trainer: Run, report: Report) -> None:
        if self.per == "step":
            self._step(trainer)

    @override
    def on_epoch_end(self, trainer: Run) -> None:
        if self.per == "epoch":
            self._step(trainer)

    def _step(self, trainer: Run) -> None:
        self._prepare(trainer)
        for scheduler in self._schedulers.values():
            scheduler.step()
            for group in scheduler.optimizer.param_groups:
                if not isinstance(group["lr"], torch.Tensor):
                    group["lr"] = single(group["lr"])

    def _prepare(self, trainer: Run) -> None:
        """Make the schedulers, if they are not there."""
        if self._schedulers:
            return
        made = {
            player.name: self._made(player, self._loaded.get(player.name))
            for player in players_of(trainer, self.player)
        }
        self._schedulers, self._loaded = made, {}

    def _made(self, player: Player, saved: dict[str, Any] | None) -> LRScheduler:
        """Return a scheduler of a player's optimizer: a new one, or one with a state."""
        optimizer = player.optimizer
        own_tensors(optimizer)
        now = _options(optimizer)
        if saved is None:
            self._first[player.name] = [_copied(options) for options in now]
        else:
            self._first[player.name] = saved["first"]
            _set_options(optimizer, [_copied(options) for options in saved["first"]])
        scheduler = self._checked(player, self.make(optimizer))
        # PyTorch warns of a scheduler that is stepped before its optimizer has been. Here an
        # update comes before; but if it was skipped, or replayed, or is in the past of a run that
        # is resumed, PyTorch has not seen it.
        optimizer._opt_called = True  # type: ignore[attr-defined]
        if saved is not None:
            _set_options(optimizer, now)
            scheduler.load_state_dict(_with_counters(saved["scheduler"], scheduler.state_dict()))
        return scheduler

    def _checked(self, player: Player, scheduler: object) -> LRScheduler:
        kind = type(scheduler).__name__
        if not isinstance(scheduler, LRScheduler):
            raise TypeError(
                f"make must return a scheduler of torch.optim.lr_scheduler, got a {kind}; use "
                "functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=10_000), say."
            )
        if isinstance(scheduler, ReduceLROnPlateau):
            raise TypeError(
                "make must return a scheduler that is stepped without an argument, got a "
                f"{kind}; call it in a hook of your own, which keeps its state."
            )
        if scheduler.optimizer is not player.optimizer:
            raise TypeError(
                f"make must return a scheduler of the optimizer that it is given, got a {kind} of "
                "another; use its argument."
            )
        state = _plain(scheduler.state_dict())
        checkpoint.check_plain(state, f"the state of the {player.name}'s {kind}")
        return scheduler

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return each scheduler's state, and the options with which it was first made."""
        if not self._schedulers:
            return self._loaded
        return {
            name: {"first": self._first[name], "scheduler": _plain(scheduler.state_dict())}
            for name, scheduler in self._schedulers.items()
        }

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the state back: schedulers are made of it before the next step."""
        self._loaded, self._schedulers = state, {}


def _options(optimizer: Optimizer) -> list[Options]:
    """Return the options of each group, but not how they are executed."""
    left_out = ("params", "param_names", *EXECUTION)
    return [
        {name: value for name, value in group.items() if name not in left_out}
        for group in optimizer.param_groups
    ]


def _set_options(optimizer: Optimizer, options: list[Options]) -> None:
    """Give each group these options, and no others."""
    for group, present, wanted in zip(optimizer.param_groups, _options(optimizer), options):
        for name in present.keys() - wanted.keys():
            del group[name]
        group.update(wanted)


def _copied(options: Options) -> Options:
    return {
        name: value.clone() if isinstance(value, torch.Tensor) else value
        for name, value in options.items()
    }


def _plain(state: Any) -> Any:
    """Return a scheduler's state with plain dictionaries for the counters in it."""
    if isinstance(state, dict):
        return {key: _plain(value) for key, value in state.items()}
    if isinstance(state, list):
        return [_plain(value) for value in state]
    return state


def _with_counters(state: Any, like: Any) -> Any:
    """Return what ``_plain`` was given, for a scheduler whose state is ``like`` that one."""
    if isinstance(state, dict) and isinstance(like, dict):
        found = {key: _with_counters(value, like.get(key)) for key, value in state.items()}
        return Counter(found) if isinstance(like, Counter) else found
    if isinstance(state, list) and isinstance(like, list) and len(state) == len(like):
        return [_with_counters(*pair) for pair in zip(state, like)]
    return state
