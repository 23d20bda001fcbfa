"""Learning rates and other options of the optimizers that change during a run."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from tinygan import schedules
from tinygan.hook import Hook, Run
from tinygan.optimizers import EXECUTION
from tinygan.player import Player
from tinygan.report import Report

Value: TypeAlias = float | schedules.Schedule
NUMBERS = (int, float, tuple, torch.Tensor)  # the types of options that can be scheduled


class Schedule(Hook):
    """Set options of the players' optimizers before each step, from the number of images seen.

    There is no state: a resumed run has seen as many images. All parameter groups get the same.

    Args:
        player: the name of the player whose optimizer to set; None for all players.
        options: ``lr``, ``weight_decay``, ``momentum`` and so on, each a number or a schedule; for
            ``betas`` a pair of either: ``(0.0, schedules.cosine(...))``.

    Raises:
        ValueError: for values below 0 (for betas, outside [0, 1)); as ``fit`` begins, for options
            that the optimizer does not have.
        AttributeError: as ``fit`` begins, for an unknown player.
        TypeError: for an option that is neither a number nor a function of the images seen.

    Examples:
        >>> falling = Schedule("generator", lr=schedules.cosine(2e-4, 5e-5, until=1_000_000))
    """

    def __init__(self, player: str | None = None, **options: Value | tuple[Value, ...]) -> None:
        self.player = player
        self.options = {
            name: _each(schedules.checked, name, value) for name, value in options.items()
        }
        self.settings = {"player": player, **self.options}

    def on_fit_start(self, trainer: Run) -> None:
        for player in _players(trainer, self.player):
            _own_tensors(player.optimizer)
            for group in player.optimizer.param_groups:
                known = {name: own for name, own in group.items() if type(own) in NUMBERS}
                for name, value in self.options.items():
                    if name not in known or np.shape(known[name]) != np.shape(value):
                        has = ", ".join(f"{option}={own}" for option, own in known.items())
                        raise ValueError(
                            f"options must be among those of the {player.name}'s optimizer, with "
                            f"as many values: {has}, got {name}={value}."
                        )

    def on_step_start(self, trainer: Run) -> None:
        def now(name: str, value: Value, interval: str) -> float:
            found = schedules.value_at(value, trainer.images, name, interval)
            return _single(found) if name == "lr" else found

        values = {name: _each(now, name, value) for name, value in self.options.items()}
        for player in _players(trainer, self.player):
            for group in player.optimizer.param_groups:
                for name, value in values.items():
                    if isinstance(group[name], torch.Tensor):
                        group[name].fill_(value)
                    else:
                        group[name] = value


def _each(function: Callable[[str, Any, str], Any], name: str, value: Any) -> Any:
    """Call a function with the name, value and interval of an option, or of each of its parts."""
    interval = "[0, 1)" if name == "betas" else "[0, inf)"
    if isinstance(value, (tuple, list)):
        return tuple(function(f"{name}[{i}]", part, interval) for i, part in enumerate(value))
    return function(name, value, interval)


def _players(trainer: Run, name: str | None) -> list[Player]:
    return list(trainer.players) if name is None else [getattr(trainer.players, name)]


def _own_tensors(optimizer: Optimizer) -> None:
    """Give the groups tensors of their own: by its defaults a checkpoint knows an optimizer."""
    for group in optimizer.param_groups:
        for name, value in optimizer.defaults.items():
            if isinstance(value, torch.Tensor) and group[name] is value:
                group[name] = value.clone()


def _single(rate: float) -> float:
    """Return the nearest float32: recorded steps read a rate as one, so all others do too."""
    return torch.tensor(rate, dtype=torch.float32).item()


class TorchScheduler(Hook):
    """Step a scheduler of ``torch.optim.lr_scheduler`` for each player's optimizer.

    In a resumed run it is made from the optimizer's first options and repeats the steps that it has
    taken; then the optimizer gets its present options back.

    Args:
        make: called as ``make(optimizer)``; returns a scheduler, each time the same.
        player: the name of the player whose optimizer to schedule; None for all players.
        per: when the schedulers are stepped: after each "step", or each "epoch".

    Raises:
        ValueError: for another ``per``.
        TypeError: for a ``make`` that is no function; in the first step, for one that returns
            anything else, or a scheduler that needs an argument to be stepped.

    Examples:
        >>> from torch.optim.lr_scheduler import CosineAnnealingLR
        >>> falling = TorchScheduler(lambda optimizer: CosineAnnealingLR(optimizer, T_max=10_000))
    """

    def __init__(
        self,
        make: Callable[[Optimizer], LRScheduler],
        *,
        player: str | None = None,
        per: str = "step",
    ) -> None:
        if not callable(make):
            raise TypeError(
                f"make must be a function of an optimizer, got {make!r}; for example "
                "functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=10_000)."
            )
        if per not in ("step", "epoch"):
            raise ValueError(f"per must be 'step' or 'epoch', got {per!r}; use one of these.")
        self.make, self.player, self.per = make, player, per
        self.settings = {"make": make, "player": player, "per": per}
        self._schedulers: list[LRScheduler] = []
        self._first: dict[str, dict[str, Any]] = {}
        """The defaults and groups of each optimizer before its scheduler was first made."""
        self._steps = 0

    def on_step_start(self, trainer: Run) -> None:
        if not self._schedulers:  # at the beginning, or because another state was loaded
            self._schedulers = [self._made(player) for player in _players(trainer, self.player)]

    def on_step_end(self, trainer: Run, report: Report) -> None:
        if self.per == "step":
            self._step(trainer)

    def on_epoch_end(self, trainer: Run) -> None:
        if self.per == "epoch":
            self._step(trainer)

    def _step(self, trainer: Run) -> None:
        self.on_step_start(trainer)  # a resumed run may begin with its epoch's end
        self._steps += 1
        for scheduler in self._schedulers:
            scheduler.step()
            for group in scheduler.optimizer.param_groups:
                if not isinstance(group["lr"], torch.Tensor):
                    group["lr"] = _single(group["lr"])

    def _made(self, player: Player) -> LRScheduler:
        """Return a new scheduler that has taken as many steps, and leave the rates as they are."""
        optimizer = player.optimizer
        _own_tensors(optimizer)
        groups, left_out = optimizer.param_groups, {"params", "param_names", *EXECUTION}
        present, known = [dict(group) for group in groups], player.name in self._first
        defaults = {k: copy.deepcopy(v) for k, v in optimizer.defaults.items() if k not in left_out}
        made = copy.deepcopy([{k: g[k] for k in g.keys() - left_out} for g in groups])
        first = self._first.setdefault(player.name, {"defaults": defaults, "groups": made})
        # Options with which the optimizer is made now, and was not when the run was saved.
        others = {k for k, v in defaults.items() if first["defaults"].get(k) != v}
        for group, options in zip(groups, first["groups"]):
            for name in others:
                if options.get(name) == first["defaults"].get(name):
                    options[name] = defaults[name]
            for name in group.keys() - options.keys() - left_out:
                del group[name]  # what a scheduler has put there
            group.update(copy.deepcopy(options))
        first["defaults"] = defaults
        scheduler = self.make(optimizer)
        if not isinstance(scheduler, LRScheduler) or scheduler.optimizer is not optimizer:
            raise TypeError(
                f"make must return a scheduler of the optimizer that it is given: {scheduler!r}."
            )
        # PyTorch warns of a scheduler that is stepped before its optimizer, and does not see
        # updates that were skipped, replayed or made before the run was resumed.
        optimizer._opt_called = True  # type: ignore[attr-defined]
        for _ in range(self._steps):
            scheduler.step()
        if known:  # a new one has set the rates of its first step
            for group, options in zip(groups, present):
                others |= {"initial_lr"} & group.keys()
                group.update({name: v for name, v in options.items() if name not in others})
        return scheduler

    def state_dict(self) -> dict[str, Any]:
        return {"first": self._first, "steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._first, self._steps = dict(state["first"]), state["steps"]
        self._schedulers = []
