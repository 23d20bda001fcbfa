"""Options of the optimizers that change in the course of a run."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch.optim import Optimizer
from typing_extensions import override

from tinygan import schedules
from tinygan.hook import Hook, Run
from tinygan.optimizers import EXECUTION
from tinygan.player import Player

Value: TypeAlias = float | schedules.Schedule

INTERVALS = {"betas": "[0, 1)"}
"""Where an option's values must lie, if not in [0, inf)."""


class Schedule(Hook):
    """Set options of the players' optimizers before each step, from the images seen.

    There is no state: a resumed run has the right rates, because it has seen as many images. What
    the optimizers were made with counts for nothing then; groups of parameters all get the same.

    The schedules belong to what a run is: it is not resumed with others.

    Args:
        player: whose optimizer, by name; None for those of all players.
        options: what to set: ``lr``, ``weight_decay``, ``momentum`` and so on, each a number or a
            schedule; of ``betas`` a pair of either, ``(0.0, schedules.cosine(...))``.

    Raises:
        ValueError: for no options, or values out of range; as ``fit`` begins, for a player that
            does not exist, or options that its optimizer does not have.
        TypeError: for an option that is neither a number nor a function of the images seen.

    Examples:
        >>> falling = Schedule(lr=schedules.cosine(2e-4, 5e-5, until=1_000_000))
        >>> warm = Schedule("generator", lr=schedules.warm_up(2e-4, images=10_000))
    """

    def __init__(
        self, player: str | None = None, **options: Value | tuple[Value, ...] | list[Value]
    ) -> None:
        if not options:
            raise ValueError(
                "Schedule must be given what to set, got no options; use "
                "lr=schedules.cosine(2e-4, 5e-5, until=1_000_000), say."
            )
        self.player = player
        self.options = {name: _checked(name, value) for name, value in options.items()}
        self.settings = {"player": player, **self.options}

    @override
    def on_fit_start(self, trainer: Run) -> None:
        for player in players_of(trainer, self.player):
            own_tensors(player.optimizer)
            for group in player.optimizer.param_groups:
                for name, value in self.options.items():
                    _check_fits(player, group, name, value)

    @override
    def on_step_start(self, trainer: Run) -> None:
        now = {name: _now(name, value, trainer.images) for name, value in self.options.items()}
        for player in players_of(trainer, self.player):
            for group in player.optimizer.param_groups:
                for name, value in now.items():
                    if isinstance(group[name], torch.Tensor):
                        group[name].fill_(value)
                    else:
                        group[name] = value


def players_of(trainer: Run, name: str | None) -> list[Player]:
    """Return the player of a name, or all of them for None.

    Raises:
        ValueError: for a name that none of them has.
    """
    found = [player for player in trainer.players if name in (None, player.name)]
    if not found:
        known = ", ".join(player.name for player in trainer.players)
        raise ValueError(
            f"player must be one of {known}, got {name!r}; use one of these, or None for all."
        )
    return found


def own_tensors(optimizer: Optimizer) -> None:
    """Give the groups tensors of their own, so that the optimizer's defaults stay what they are.

    By these a checkpoint knows the optimizer.
    """
    for group in optimizer.param_groups:
        for name, value in optimizer.defaults.items():
            if isinstance(value, torch.Tensor) and group[name] is value:
                group[name] = value.clone()


def _checked(
    name: str, value: Value | tuple[Value, ...] | list[Value]
) -> Value | tuple[Value, ...]:
    interval = INTERVALS.get(name, "[0, inf)")
    if isinstance(value, (tuple, list)):
        return tuple(
            schedules.checked(f"{name}[{index}]", part, interval, example=0.5)
            for index, part in enumerate(value)
        )
    return schedules.checked(name, value, interval, example=1e-4)


def _now(
    name: str, value: Value | tuple[Value, ...], images: int
) -> float | tuple[float | tuple[float, ...], ...]:
    """Return what an option is after so many images."""
    interval = INTERVALS.get(name, "[0, inf)")
    if isinstance(value, tuple):
        return tuple(
            schedules.value_at(part, images, f"{name}[{index}]", interval, example=0.5)
            for index, part in enumerate(value)
        )
    now = schedules.value_at(value, images, name, interval, example=1e-4)
    return single(now) if name == "lr" else now


def single(rate: float) -> float:
    """Return the float32 that is next to a rate.

    A rate that changes is a tensor of float32 in recorded steps. Eager steps must have the same.

    Examples:
        >>> single(0.1)
        0.10000000149011612
    """
    return torch.tensor(rate, dtype=torch.float32).item()


def _check_fits(
    player: Player, group: dict[str, Any], name: str, value: Value | tuple[Value, ...]
) -> None:
    """Raise ValueError for an option that an optimizer has not, or not in such a form."""
    numbers = (int, float, torch.Tensor, tuple, list)
    known = [
        key
        for key, own in group.items()
        if isinstance(own, numbers)
        and not isinstance(own, bool)
        and key not in ("params", "param_names", *EXECUTION)
    ]
    if name not in known:
        raise ValueError(
            f"options must be ones that the {player.name}'s optimizer has, {', '.join(known)}, got "
            f"{name}; set another, or give the player an optimizer that has it."
        )
    own = group[name]
    wanted = len(own) if isinstance(own, (tuple, list)) else None
    given = len(value) if isinstance(value, tuple) else None
    if wanted != given:
        words = "one value" if wanted is None else f"{wanted} values"
        raise ValueError(
            f"{name} of the {player.name}'s optimizer must be {words}, got "
            f"{'one' if given is None else given}; give as many as it was made with."
        )
