"""A trainer that is fast to test, and how to compare two of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

import tinygan
from tinygan._run import checkpoint


def with_execution(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return a trainer's arguments, of which those of ``Execution`` may stand among the others."""
    names = {field.name for field in fields(tinygan.Execution)} & arguments.keys()
    if not names:
        return arguments
    execution = tinygan.Execution(**{name: arguments[name] for name in names})
    others = {name: value for name, value in arguments.items() if name not in names}
    return others | {"execution": execution}


def with_latent_dim(generator: nn.Module, length: int) -> nn.Module:
    """Return a generator of one's own, which says the length of its noise."""
    generator.latent_dim = length
    return generator


def tiny_trainer(
    *, prior: tinygan.sampling.Prior | None = None, **arguments: Any
) -> tinygan.GANTrainer:
    """Return a trainer of 8x8 images whose step takes a few milliseconds, the same each time.

    Args:
        prior: of the generator.
        arguments: the trainer's, and those of ``Execution``.
    """
    torch.manual_seed(0)
    generator = tinygan.DCGANGenerator(8, latent_dim=5, base_channels=4)
    discriminator = tinygan.DCGANDiscriminator(8, base_channels=4)
    # At 8 pixels D has no batch norm of its own.
    discriminator.main.insert(1, nn.BatchNorm2d(4))
    if prior is not None:
        generator.prior = prior
    return tinygan.GANTrainer(
        generator.apply(tinygan.weights_init),
        discriminator.apply(tinygan.weights_init),
        **with_execution(arguments),
    )


def tiny_images(count: int = 24) -> torch.Tensor:
    """Return images of 8x8 pixels in [-1, 1], (count, 3, 8, 8), the same each time."""
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


class Images:
    """The tiny images, of which one does something when it is asked for."""

    def __init__(self, index: int | None = None, act: Callable[[], object] = int) -> None:
        self.images, self.index, self.act = tiny_images(), index, act

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == self.index:
            self.act()
        return self.images[index]


def fingerprint(trainer: tinygan.GANTrainer) -> dict[str, torch.Tensor]:
    """Return copies of all tensors that training moves: weights, buffers, moments, averages."""
    found = {}
    for player in trainer.players:
        if player.average is not None:
            for name, value in player.average.net.state_dict().items():
                found[f"{player.name}.average.{name}"] = value.clone()
        for name, value in player.module.state_dict().items():
            found[f"{player.name}.{name}"] = value.clone()
        for index, moments in player.optimizer.state_dict()["state"].items():
            for name, value in moments.items():
                found[f"{player.name}.moments.{index}.{name}"] = value.clone()
    return found


def bits(tensor: torch.Tensor) -> object:
    """Return a tensor's type, shape and bytes: equal for equal bits, NaN included."""
    return str(tensor.dtype), tuple(tensor.shape), tensor.numpy().tobytes()


def flat(
    value: object, name: str = "", of_tensor: Callable[[torch.Tensor], object] = bits
) -> dict[str, object]:
    """Return the values of nested dictionaries and lists by name, with what stands for tensors."""
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, (list, tuple)):
        parts = enumerate(value)
    elif isinstance(value, torch.Tensor):
        return {name: of_tensor(value)}
    else:
        return {name: value}
    return {k: v for key, part in parts for k, v in flat(part, f"{name}.{key}", of_tensor).items()}


def saved_in(path: Path) -> dict[str, object]:
    """Return what is in a run's checkpoint by name, with folders relative to it, as in the file."""
    state = checkpoint.load(path)
    folders = {name: os.path.relpath(at, path.parent) for name, at in state["folders"].items()}
    return flat(state | {"folders": folders})


def assert_identical(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Assert that two fingerprints are equal bit for bit, naming what differs."""
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
