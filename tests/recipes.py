"""What a GAN may be made of beyond the tutorial's recipe, one ingredient or several at a time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

import tinygan
from tinygan import augmentations, losses, penalties, schedules

from helpers import with_execution

CLASSES = 3


def nets(
    norm: bool = True, num_classes: int | None = None, join: int = 1
) -> tuple[nn.Module, nn.Module]:
    """Return G and D of 8x8 images, the same each time; with batch norm in G, or without any."""
    torch.manual_seed(0)
    generator = tinygan.DCGANGenerator(
        8,
        latent_dim=5,
        base_channels=4,
        norm=nn.BatchNorm2d if norm else None,
        num_classes=num_classes,
    )
    discriminator = tinygan.DCGANDiscriminator(
        8, base_channels=4, norm=None, num_classes=num_classes, join=join
    )
    return generator.apply(tinygan.weights_init), discriminator.apply(tinygan.weights_init)


def _with_spectral_norm(**arguments: Any) -> tuple[nn.Module, nn.Module]:
    generator, discriminator = nets(**arguments)
    return generator, tinygan.spectral_norm(discriminator)


RECIPES: dict[str, tuple[Callable[..., tuple[nn.Module, nn.Module]], dict[str, Any]]] = {
    "minimax": (nets, {"loss": losses.minimax}),
    "least squares": (nets, {"loss": losses.least_squares}),
    "WGAN-GP": (nets, {"loss": losses.wasserstein, "penalties": penalties.wgan_gp()}),
    "several turns of D": (nets, {"d_steps": 2}),
    "hinge, spectral norm": (_with_spectral_norm, {"loss": losses.hinge}),
    "DRAGAN": (nets, {"penalties": penalties.dragan(every=2)}),
    "R3GAN": (
        nets,
        {
            "loss": losses.relativistic,
            "penalties": [penalties.r1(1.0, every=2), penalties.r2(1.0, every=3)],
            "ema_half_life": 50,
        },
    ),
    "finite differences": (
        partial(nets, num_classes=CLASSES),
        {
            "loss": losses.relativistic,
            "penalties": [
                penalties.r1(1.0, every=2, step=0.01),
                penalties.r2(1.0, every=2, step=0.01),
            ],
        },
    ),
    "joined images, R1 that falls": (
        partial(nets, join=2),
        {"penalties": penalties.r1(schedules.exponential(1.0, 0.01, until=100), every=2)},
    ),
    "instance noise": (
        nets,
        {"augment": augmentations.instance_noise(schedules.linear(0.2, 0.0, until=100))},
    ),
    "schedules": (
        nets,
        {
            "augment": augmentations.diff_augment(p=schedules.linear(0.0, 0.8, until=100)),
            "penalties": [
                penalties.wgan_gp(schedules.warm_up(1.0, images=50), every=2),
                penalties.dragan(schedules.cosine(1.0, 0.0, until=100), every=2),
            ],
            "ema_half_life": schedules.linear(1.0, 50.0, until=100),
        },
    ),
    "DiffAugment": (
        nets,
        {
            "augment": augmentations.diff_augment(),
            "penalties": penalties.wgan_gp(1.0, every=2),
            "loss": losses.relativistic,
        },
    ),
    "synced DiffAugment": (
        nets,
        {
            "augment": augmentations.diff_augment(p=0.8, synced=True),
            "loss": losses.relativistic,
        },
    ),
    "classes": (
        partial(nets, num_classes=CLASSES),
        {"penalties": penalties.r1(1.0, every=2), "loss": losses.hinge},
    ),
}
"""By name: what makes the nets, and the trainer's arguments."""


def trainer(name: str, norm: bool = True, double: bool = False, **more: Any) -> tinygan.GANTrainer:
    """Return a trainer by a recipe, the same each time."""
    make, arguments = RECIPES[name]
    made = make(norm=norm)
    if double:
        made = tuple(net.double() for net in made)
    return tinygan.GANTrainer(*made, **with_execution(arguments | more))


def batches(
    device: str = "cpu", dtype: torch.dtype = torch.float32, last: int = 5
) -> list[list[torch.Tensor]]:
    """Return an epoch of two whole batches and a short one, each of images and labels."""
    images = torch.rand(21, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    labels = torch.arange(21) % CLASSES
    images, labels = images.to(device, dtype), labels.to(device)
    return [[images[rows], labels[rows]] for rows in (slice(8), slice(8, 16), slice(16, 16 + last))]
