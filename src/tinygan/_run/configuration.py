"""What a run is made of, as plain text, so that a checkpoint can tell whether it fits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from tinygan.hook import Hook
from tinygan.player import Player

# How an optimizer computes, not what: the choice of the machine that a run happens to be on.
EXECUTION = ("fused", "foreach", "capturable", "differentiable")

# What nets may say of themselves.
DECLARED = ("image_size", "channels", "latent_dim")


def configuration(
    seed: int,
    dtype: torch.dtype,
    algorithm: Callable[..., object],
    players: Iterable[Player],
    hooks: Iterable[tuple[str, Hook]] = (),
) -> dict[str, str]:
    """Return what must be the same when a run goes on: algorithm, nets, optimizers, seed.

    And of hooks, each with its name, their settings.
    """
    players = list(players)
    found = {
        "seed": str(seed),
        "dtype": str(dtype),
        "players": ", ".join(player.name for player in players),
        "algorithm": name_of(algorithm),
    }
    settings = getattr(algorithm, "settings", None)
    if isinstance(settings, Mapping):
        for name, value in settings.items():
            found |= _parts(name, value)
    for player in players:
        found[player.name] = _qualified(type(player.module))
        for name in DECLARED:
            if hasattr(player.module, name):
                found[f"{player.name}.{name}"] = str(getattr(player.module, name))
        if player.average is not None:
            found[f"{player.name}.ema_half_life"] = told(player.average.half_life)
        optimizer = player.optimizer
        found[f"{player.name} optimizer"] = _qualified(type(optimizer))
        for name, value in optimizer.defaults.items():
            if name not in EXECUTION:
                plain = value.item() if isinstance(value, torch.Tensor) else value
                found[f"{player.name} optimizer.{name}"] = str(plain)
    for name, hook in hooks:
        for setting, value in hook.settings.items():
            found |= _parts(f"{name}.{setting}", value)
    return found


def _parts(name: str, value: object) -> dict[str, str]:
    """Return a setting in words; each part of it, if it has parts, by a name of its own.

    Examples:
        >>> _parts("steps", [1, 2])
        {'steps.0': '1', 'steps.1': '2'}
    """
    if is_dataclass(value):
        parts = {each.name: getattr(value, each.name) for each in fields(value)}
    elif isinstance(value, (list, tuple)):
        parts = {str(number): each for number, each in enumerate(value)}
    else:
        return {name: told(value)}
    return {k: v for part, each in parts.items() for k, v in _parts(f"{name}.{part}", each).items()}


def name_of(function: object) -> str:
    """Return a function's name, with the arguments of a ``functools.partial``.

    It is the same in every process, if the arguments are functions, partials, plain values or
    lists of those, or have a ``repr`` of their own.

    Examples:
        >>> name_of(partial(int, base=2))
        'builtins.int(base=2)'
    """
    if isinstance(function, partial):
        given = [told(value) for value in function.args]
        given += [f"{name}={told(value)}" for name, value in function.keywords.items()]
        return f"{name_of(function.func)}({', '.join(given)})"
    return _qualified(function if hasattr(function, "__qualname__") else type(function))


def told(value: object) -> str:
    """Return a value in words that are the same in every process.

    Examples:
        >>> told(0.5), told(int)
        ('0.5', "<class 'int'>")
    """
    if isinstance(value, (list, tuple)):
        return f"({', '.join(map(told, value))})"
    words = repr(value)
    # Not if it tells where a function lies in this process's memory.
    return name_of(value) if callable(value) and " at 0x" in words else words


def _qualified(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"


def shapes(state: Mapping[str, object], owner: str) -> dict[str, str]:
    """Return the shape of each tensor of a net's state, by the net's and the tensor's names."""
    return {
        f"{owner}.{name}": str(tuple(value.shape))
        for name, value in state.items()
        if isinstance(value, torch.Tensor)
    }


def parameter_names(module: nn.Module) -> dict[int, str]:
    """Return the name of each parameter by its identity."""
    return {id(parameter): name for name, parameter in module.named_parameters()}
