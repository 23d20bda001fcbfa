"""What a run is made of, as plain text, so that a checkpoint can tell whether it fits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from tinygan.trainer import GANTrainer

# How an optimizer computes, not what: the choice of the machine that a run happens to be on.
EXECUTION = ("fused", "foreach", "capturable", "differentiable")

# What nets may say of themselves.
DECLARED = ("image_size", "channels", "latent_dim")


def configuration(trainer: GANTrainer) -> dict[str, str]:
    """Return what must be the same when a run goes on: nets, loss, prior, optimizers, seed."""
    found = {
        "seed": str(trainer.seed),
        "latent_dim": str(trainer.latent_dim),
        "dtype": str(trainer.dtype),
        "prior": name_of(trainer.prior),
    }
    if trainer.penalties:
        each = [f"{name_of(p.cost)}{_drawn(p.draw)} every {p.every}" for p in trainer.penalties]
        found["penalty"] = " and ".join(each)
    if trainer.augmentations:
        each = [f"{name_of(a.apply)}{_drawn(a.draw)}" for a in trainer.augmentations]
        found["augment"] = " and ".join(each)
    if trainer.average is not None:
        found["ema_half_life"] = str(float(trainer.average.half_life))
    for role in fields(trainer.loss):
        found[f"loss.{role.name}"] = name_of(getattr(trainer.loss, role.name))
    for player in trainer.players:
        found[player.name] = _qualified(type(player.module))
        for name in DECLARED:
            if hasattr(player.module, name):
                found[f"{player.name}.{name}"] = str(getattr(player.module, name))
        optimizer = player.optimizer
        found[f"{player.name} optimizer"] = _qualified(type(optimizer))
        for name, value in optimizer.defaults.items():
            if name not in EXECUTION:
                plain = value.item() if isinstance(value, torch.Tensor) else value
                found[f"{player.name} optimizer.{name}"] = str(plain)
    return found


def _drawn(draw: object) -> str:
    return "" if draw is None else f" of {name_of(draw)}"


def name_of(function: object) -> str:
    """Return a function's name, with the arguments of a ``functools.partial``.

    It is the same in every process, if the arguments are functions, partials, plain values or
    lists of those, or have a ``repr`` of their own.

    Examples:
        >>> name_of(partial(int, base=2))
        'builtins.int(base=2)'
    """
    if isinstance(function, partial):
        given = [_told(value) for value in function.args]
        given += [f"{name}={_told(value)}" for name, value in function.keywords.items()]
        return f"{name_of(function.func)}({', '.join(given)})"
    return _qualified(function if hasattr(function, "__qualname__") else type(function))


def _told(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return f"({', '.join(map(_told, value))})"
    told = repr(value)
    # Not if it tells where a function lies in this process's memory.
    return name_of(value) if callable(value) and " at 0x" in told else told


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
