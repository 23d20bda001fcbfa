"""Where a run's random numbers come from, and how images are made of them.

A prior is any function ``(count, latent_dim, generator) -> z`` of shape (count, latent_dim). It
draws from the generator it is given, on that generator's device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import nn

from tinygan.batch import Draw
from tinygan.nets.compatibility import check_labels
from tinygan.nets.traits import evaluating

__all__ = ["Prior", "generate", "normal", "uniform"]

CHUNK = 256  # images made at a time, so that many need little memory

Prior: TypeAlias = Callable[[int, int, torch.Generator], torch.Tensor]
"""Draws z: ``(count, latent_dim, generator)`` to a tensor (count, latent_dim)."""


def normal(count: int, latent_dim: int, generator: torch.Generator) -> torch.Tensor:
    """Draw z from N(0, I), as the DCGAN tutorial does: (count, latent_dim), float32.

    Examples:
        >>> normal(2, 100, torch.Generator().manual_seed(0)).shape
        torch.Size([2, 100])
    """
    return torch.randn(count, latent_dim, generator=generator, device=generator.device)


def uniform(count: int, latent_dim: int, generator: torch.Generator) -> torch.Tensor:
    """Draw z from U(-1, 1), as the DCGAN paper does: (count, latent_dim), float32.

    Examples:
        >>> bool(uniform(2, 100, torch.Generator().manual_seed(0)).abs().max() <= 1)
        True
    """
    return 2 * torch.rand(count, latent_dim, generator=generator, device=generator.device) - 1


def of_prior(prior: Prior, latent_dim: int) -> Draw:
    """Return the function that draws a batch's z, (N, latent_dim), from a prior."""

    def draw(shape: Sequence[int], generator: torch.Generator, images: int) -> torch.Tensor:
        z = prior(shape[0], latent_dim, generator)
        if z.shape != (shape[0], latent_dim):
            raise ValueError(
                f"prior must draw z of shape {(shape[0], latent_dim)}, got {tuple(z.shape)}; give "
                "each example a row, as sampling.normal does."
            )
        return z

    return draw


def one_each(shape: Sequence[int], generator: torch.Generator, images: int = 0) -> torch.Tensor:
    """Draw one number for each example from U(0, 1): (N,), float32."""
    return torch.rand(shape[0], generator=generator, device=generator.device)


def gaussian_noise(
    shape: Sequence[int], generator: torch.Generator, images: int = 0, *, deviation: float
) -> torch.Tensor:
    """Draw noise of the examples' shape (N, ...) from N(0, deviation^2), float32."""
    return deviation * torch.randn(tuple(shape), generator=generator, device=generator.device)


@torch.no_grad()
def generate(
    generator: nn.Module, z: torch.Tensor, *, labels: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Return a generator's images of ``z`` (N, Z): (N, C, H, W) in [-1, 1], on its device.

    It runs in evaluation mode, so no image depends on the others, and it does not change.

    Args:
        generator: maps z to images, or z and labels if its ``num_classes`` is a number.
        z: the noise, on any device, of any floating type.
        labels: the classes to make, (N,) of int64, or one for all; None for each in turn.

    Raises:
        ValueError: for labels that the net does not know, or any if it knows no classes.

    Examples:
        >>> import tinygan
        >>> z = normal(4, 100, torch.Generator().manual_seed(0))
        >>> generate(tinygan.DCGANGenerator(16, num_classes=10), z, labels=7).shape
        torch.Size([4, 3, 16, 16])
    """
    weights = next(generator.parameters())
    inputs = [z.to(weights.device, weights.dtype)]
    num_classes = getattr(generator, "num_classes", None)
    if num_classes is not None:
        if labels is None:
            labels = torch.arange(len(z)) % num_classes
        if not isinstance(labels, torch.Tensor | int):
            raise ValueError(
                f"labels must be a tensor (N,) of int64 or one int, got {labels!r}; give the "
                "numbers of classes."
            )
        labels = torch.as_tensor(labels)
        if labels.dim() == 0:
            labels = labels.expand(len(z))
        check_labels(labels, len(z), num_classes)
        inputs.append(labels.to(weights.device))
    elif labels is not None:
        raise ValueError(
            f"labels must be None for nets without classes, got {labels!r}; build the nets with "
            "num_classes=10."
        )
    with evaluating(generator):
        chunks = zip(*(tensor.split(CHUNK) for tensor in inputs))
        return torch.cat([generator(*chunk) for chunk in chunks])
