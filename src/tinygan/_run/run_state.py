"""What a run must remember to go on: gathered from a trainer, and given back to one."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch

from tinygan._execution.precision import LossScale
from tinygan._run import checkpoint, checks
from tinygan._run.configuration import (
    EXECUTION,
    configuration,
    parameter_names,
    shapes,
)
from tinygan.algorithms import Algorithm
from tinygan.hook import Hook, Run
from tinygan.player import Player
from tinygan.version import __version__

SCHEMA = 2
"""The number of this layout; it grows when an older library could not read a newer file."""


class SavableRun(Run, Protocol):
    """A run, and what else of it is saved."""

    algorithm: Algorithm
    dtype: torch.dtype

    @property
    def loss_scale(self) -> LossScale | None:
        """What float16's losses are multiplied by."""


COUNTERS = ("step", "images", "epoch", "batch", "rollbacks")


def collect(trainer: SavableRun, batches: dict[str, Any] | None) -> dict[str, Any]:
    """Return the run's state, with ``batches`` as the place in the data."""
    loss_scale = trainer.loss_scale
    return {
        "schema": SCHEMA,
        "versions": {"tinygan": __version__, "torch": str(torch.__version__)},
        "configuration": _configuration(trainer),
        **{name: getattr(trainer, name) for name in COUNTERS},
        "skipped": trainer.skipped.counts,
        **({} if loss_scale is None else {"loss_scale": loss_scale.state}),
        "batches": batches,
        "players": {
            player.name: {
                "module": player.module.state_dict(),
                "optimizer": _optimizer_state(player),
                **({} if player.average is None else {"average": player.average.net.state_dict()}),
            }
            for player in trainer.players
        },
        "hooks": {name: hook.state_dict() for name, hook in _named(trainer.hooks)},
    }


def _configuration(trainer: SavableRun) -> dict[str, str]:
    return configuration(
        trainer.seed, trainer.dtype, trainer.algorithm, trainer.players, _named(trainer.hooks)
    )


def restore(trainer: SavableRun, state: dict[str, Any]) -> dict[str, Any] | None:
    """Give a trainer a copy of its state; return the place in the data.

    Nothing is changed if the state does not fit.
    """
    checks.refuse("a run", differences(trainer, state))
    state = copy.deepcopy(state)  # optimizers keep the very tensors they are given
    for player in trainer.players:
        saved = state["players"][player.name]
        player.module.load_state_dict(saved["module"])
        _load_optimizer(player, saved["optimizer"])
        if player.average is not None:
            player.average.net.load_state_dict(saved["average"])
    for name, hook in _named(trainer.hooks):
        if name in state["hooks"]:
            hook.load_state_dict(state["hooks"][name])
    for name in COUNTERS:
        setattr(trainer, name, state[name])
    trainer.skipped.load(state["skipped"])
    if trainer.loss_scale is not None:
        trainer.loss_scale.state.copy_(state["loss_scale"])
    batches: dict[str, Any] | None = state["batches"]
    return batches


def differences(
    trainer: SavableRun, state: dict[str, Any], words: tuple[str, str] = checks.SAVED_AND_NOW
) -> list[str]:
    """Return in words why a state is that of another run."""
    if state.get("schema") != SCHEMA:
        raise ValueError(
            f"schema must be {SCHEMA}, got {state.get('schema')!r}: the state was written by "
            f"tinygan {state.get('versions', {}).get('tinygan', 'of an unknown version')}, or is "
            "none; load it with that version."
        )
    saved, here = (
        {name: _without_modules(value) for name, value in each.items()}
        for each in (state["configuration"], _configuration(trainer))
    )
    found = checks.differences(saved, here, words)
    if any(line.startswith("players:") for line in found):
        return found
    for player in trainer.players:
        saved = state["players"][player.name]
        module = checks.differences(
            shapes(saved["module"], player.name),
            shapes(player.module.state_dict(), player.name),
            words,
        )
        found += module or checks.differences(
            _groups(player, saved["optimizer"]), _groups(player, _optimizer_state(player)), words
        )
    here = dict(_named(trainer.hooks))
    found += [
        f"hooks: {name} {words[0]}, none {words[1]}"
        for name, saved in state["hooks"].items()
        if saved and name not in here
    ]
    return found


def _without_modules(words: str) -> str:
    """Return words in which the library's own names lack their modules, which may be moved."""
    return re.sub(r"\btinygan\.(\w+\.)*", "tinygan.", words)


def _groups(player: Player, optimizer: dict[str, Any]) -> dict[str, str]:
    """Return the parameters of each group of an optimizer's state."""
    return {
        f"{player.name} optimizer.group {index}": ", ".join(sorted(group["parameters"]))
        for index, group in enumerate(optimizer["groups"])
    }


def _optimizer_state(player: Player) -> dict[str, Any]:
    """Return an optimizer's state by the names of parameters, without how it is executed."""
    names = parameter_names(player.module)
    optimizer = player.optimizer
    left_out = ("params", "param_names", *EXECUTION)
    return {
        "groups": [
            {
                "parameters": [names[id(parameter)] for parameter in group["params"]],
                "options": {k: v for k, v in group.items() if k not in left_out},
            }
            for group in optimizer.param_groups
        ],
        "moments": {
            names[id(parameter)]: dict(optimizer.state[parameter])
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter in optimizer.state
        },
    }


def _load_optimizer(player: Player, saved: dict[str, Any]) -> None:
    names = parameter_names(player.module)
    optimizer = player.optimizer
    groups = optimizer.state_dict()["param_groups"]
    moments = {}
    for group, owned, of_saved in zip(groups, optimizer.param_groups, saved["groups"]):
        group.update(of_saved["options"])
        for index, parameter in zip(group["params"], owned["params"]):
            if names[id(parameter)] in saved["moments"]:
                moments[index] = saved["moments"][names[id(parameter)]]
    # PyTorch moves the moments to where the parameters are, and the step counts to where the
    # group's own way of executing needs them.
    optimizer.load_state_dict({"state": moments, "param_groups": groups})


def check_finite(state: dict[str, Any]) -> None:
    """Raise ValueError for a state with weights, buffers or moments that are not finite."""
    for name, tensor in _tensors({"players": state["players"]}):
        if not tensor.isfinite().all():
            raise ValueError(
                f"what is saved must be finite, got {name} with values that are not; go back to "
                "an earlier checkpoint."
            )


def _tensors(value: object, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _tensors(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            yield from _tensors(inner, f"{name}.{index}")


def _named(hooks: Sequence[Hook]) -> Iterator[tuple[str, Hook]]:
    """Name each hook for its state: by its class, numbered if there are several of one."""
    seen: dict[str, int] = {}
    for hook in hooks:
        name = type(hook).__name__
        seen[name] = seen.get(name, 0) + 1
        yield (name if seen[name] == 1 else f"{name}-{seen[name]}"), hook


def share(
    run: SavableRun,
    place: dict[str, Any] | None,
    own: dict[str, str],
    agree: Callable[[], object],
) -> dict[str, Any] | None:
    """Give all ranks the state of rank 0, if they are alike; return the place in the data.

    Args:
        run: this rank's.
        place: where its batches stand.
        own: what besides must be the same on all ranks, by name.
        agree: meets the other ranks.
    """
    data = b""
    if run.ranks.is_first:
        state = {"run": collect(run, place), "own": own, "between_steps": run.between_steps}
        data = checkpoint.to_bytes(state)
    agree()
    data = run.ranks.send(data)
    if run.ranks.is_first:
        return place
    state = checkpoint.from_bytes(data)
    words = ("on rank 0", f"on rank {run.ranks.rank}")
    found = differences(run, state["run"], words)
    found += checks.differences(state["own"], own, words)
    if found:
        raise ValueError(
            "ranks must be alike, got differences:\n  " + "\n  ".join(found)
            + "\nuse the same nets, seeds and data on every rank."
        )  # fmt: skip
    place = restore(run, state["run"])
    run.between_steps = state["between_steps"]
    return place
