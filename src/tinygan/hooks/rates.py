"""Learning rates and other options of the optimizers that change during a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch

from tinygan import schedules
from tinygan.hook import Hook, Run
from tinygan.player import Player

Value: TypeAlias = float | schedules.Schedule


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
        for player, group in self._groups(trainer):
            numbers = (int, float, tuple, torch.Tensor)  # and no flags
            known = {name: own for name, own in group.items() if type(own) in numbers}
            for name, value in self.options.items():
                if name not in known or np.shape(known[name]) != np.shape(value):
                    has = ", ".join(f"{option}={own}" for option, own in known.items())
                    raise ValueError(
                        f"options must be among those of the {player.name}'s optimizer, with as "
                        f"many values: {has}, got {name}={value}."
                    )

    def on_step_start(self, trainer: Run) -> None:
        def now(name: str, value: Value, interval: str) -> float:
            return schedules.value_at(value, trainer.images, name, interval)

        values = {name: _each(now, name, value) for name, value in self.options.items()}
        if "lr" in values:  # recorded steps read a rate as a float32, so all others do too
            values["lr"] = float(np.float32(values["lr"]))
        for _, group in self._groups(trainer):
            group.update(values)

    def _groups(self, trainer: Run) -> list[tuple[Player, dict[str, Any]]]:
        players = trainer.players
        scheduled = players if self.player is None else [getattr(players, self.player)]
        return [(each, group) for each in scheduled for group in each.optimizer.param_groups]


def _each(function: Callable[[str, Any, str], Any], name: str, value: Any) -> Any:
    """Call a function with the name, value and interval of an option, or of each of its parts."""
    interval = "[0, 1)" if name == "betas" else "[0, inf)"
    if isinstance(value, (tuple, list)):
        return tuple(function(f"{name}[{i}]", part, interval) for i, part in enumerate(value))
    return function(name, value, interval)
