"""Where a run's random numbers come from, and how images are made of them.

All draw from the generator that they are given, on its device, and give float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import nn

from tinygan import schedules, seeds
from tinygan.batch import Draw
from tinygan.nets.compatibility import as_labels, check_labels
from tinygan.nets.traits import evaluating, example

__all__ = ["Prior", "generate", "normal", "uniform"]

Prior: TypeAlias = Callable[[int, int, torch.Generator], torch.Tensor]
"""Draws z: ``(count, latent_dim, generator)`` to a tensor (count, latent_dim)."""


def normal(count: int, latent_dim: int, generator: torch.Generator) -> torch.Tensor:
    """Draw z from N(0, I), as the DCGAN tutorial does: (count, latent_dim).

    Examples:
        >>> z = normal(2, 100, torch.Generator().manual_seed(0))
    """
    return seeds.drawn(torch.randn, (count, latent_dim), generator)


def uniform(count: int, latent_dim: int, generator: torch.Generator) -> torch.Tensor:
    """Draw z from U(-1, 1), as the DCGAN paper does: (count, latent_dim).

    Examples:
        >>> z = uniform(2, 100, torch.Generator().manual_seed(0))
    """
    return 2 * seeds.drawn(torch.rand, (count, latent_dim), generator) - 1


def of_prior(prior: Prior, latent_dim: int) -> Draw:
    """Return the function that draws a batch's z, (N, latent_dim), from a prior."""
    return lambda shape, generator, images: prior(shape[0], latent_dim, generator)


def one_each(shape: Sequence[int], generator: torch.Generator, images: int = 0) -> torch.Tensor:
    """Draw one number for each example from U(0, 1): (N,)."""
    return seeds.drawn(torch.rand, shape[:1], generator)


def noise(
    shape: Sequence[int],
    generator: torch.Generator,
    images: int,
    *,
    deviation: float | schedules.Schedule,
) -> torch.Tensor:
    """Draw noise of the examples' shape (N, ...) from N(0, deviation^2)."""
    now = schedules.value_at(deviation, images, "deviation", "[0, inf)")
    return now * seeds.drawn(torch.randn, shape, generator)


@torch.no_grad()
def generate(
    generator: nn.Module, z: torch.Tensor, *, labels: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Return a generator's images of ``z`` (N, Z): (N, C, H, W) in [-1, 1], on its device.

    It runs in evaluation mode, so no image depends on the others, and it does not change.
    ``labels``, for a net with classes alone, are (N,) of int64, one for all, or, for our own nets,
    the shares of classes, (N, K) of floats; None makes each class in turn. Raises TypeError for z
    that is no tensor, and ValueError for z of another shape or labels that the net does not know.

    Examples:
        >>> import tinygan
        >>> z = normal(4, 100, torch.Generator().manual_seed(0))
        >>> sevens = generate(tinygan.DCGANGenerator(16, num_classes=10), z, labels=7)
    """
    length = getattr(generator, "latent_dim", "Z")
    given = tuple(z.shape) if isinstance(z, torch.Tensor) else ()
    if len(given) < 2 or given[0] == 0 or (length != "Z" and math.prod(given[1:]) != length):
        raise (ValueError if isinstance(z, torch.Tensor) else TypeError)(
            f"z must be a tensor (N, {length}), got {given or repr(z)[:50]}; for 4 images of noise "
            f"use trainer.sample(4), or z = sampling.normal(4, {length}, torch.Generator())."
        )
    weights = example(generator)
    inputs = [z.to(weights)]
    num_classes = getattr(generator, "num_classes", None)
    if num_classes is not None:
        wanted = torch.arange(len(z), device="cpu") % num_classes if labels is None else labels
        labels = torch.as_tensor(wanted, device=getattr(wanted, "device", "cpu"))
        labels = labels.expand(len(z)) if labels.dim() == 0 else labels
        if not labels.is_floating_point() or labels.shape != (len(z), num_classes):
            labels = as_labels(labels, len(z), f" or shares (N, {num_classes}) of floats")
            check_labels(labels, num_classes)
        inputs.append(labels.to(weights.device))
    elif labels is not None:
        raise ValueError(
            f"labels must be None for nets without classes, got {labels!r}; build the nets with "
            "num_classes=10."
        )
    with evaluating(generator):  # 256 at a time, so that many need little memory
        chunks = zip(*(tensor.split(256) for tensor in inputs))
        return torch.cat([generator(*chunk) for chunk in chunks])
