"""Settings and fixtures that every test shares."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import settings

import tinygan

# torch's first call of an operation is slow, so there is no deadline per example.
settings.register_profile("dev", max_examples=25, deadline=None)
settings.register_profile("ci", max_examples=25, deadline=None, derandomize=True)
settings.register_profile("thorough", max_examples=1000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if "CI" in os.environ else "dev"))


def tiny_trainer(**arguments: Any) -> tinygan.GANTrainer:
    """Return a trainer of 8x8 images whose step takes a few milliseconds."""
    torch.manual_seed(0)
    return tinygan.GANTrainer(
        tinygan.DCGANGenerator(8, latent_dim=5, base_channels=4).apply(tinygan.weights_init),
        tinygan.DCGANDiscriminator(8, base_channels=4).apply(tinygan.weights_init),
        **arguments,
    )


@pytest.fixture
def make_trainer() -> Callable[..., tinygan.GANTrainer]:
    """Return ``tiny_trainer``, which makes the same trainer each time."""
    return tiny_trainer


@pytest.fixture
def images() -> torch.Tensor:
    """Return 24 images of 8x8 pixels in [-1, 1]."""
    return torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


def fingerprint(trainer: tinygan.GANTrainer) -> dict[str, torch.Tensor]:
    """Return copies of all tensors that training moves: weights, buffers, moments."""
    found = {}
    for player in trainer.players:
        for name, value in player.module.state_dict().items():
            found[f"{player.name}.{name}"] = value.clone()
        for index, moments in player.optimizer.state_dict()["state"].items():
            for name, value in moments.items():
                found[f"{player.name}.moments.{index}.{name}"] = value.clone()
    return found


def assert_identical(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Assert that two fingerprints are equal bit for bit, naming what differs."""
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
