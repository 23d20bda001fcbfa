"""Where a run's random numbers come from: functions that draw from the generator they are given.

A prior is any function ``(count, latent_dim, generator) -> z`` of shape (count, latent_dim). What
else a step needs at random, for a penalty or to augment images, is drawn for the whole batch by a
function of its shape. Both draw on the generator's device. ``generate`` makes images of z.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import nn

from tinygan.batch import Draw
from tinygan.nets.compatibility import check_labels
from tinygan.nets.traits import evaluating

CHUNK = 256
"""Images generated at a time, so that sampling many needs little memory."""

Prior: TypeAlias = Callable[[int, int, torch.Generator], torch.Tensor]
"""Draws z: ``(count, latent_dim, generator)`` to a tensor (count, latent_dim)."""


def normal(count: int, latent_dim: int, generator: torch.Generator) -> torch.Tensor:
    """Draw z from N(0, I), as the DCGAN tutorial does: (count, latent_dim), float32.

    Examples:
        >>> normal(2, 100, torch.Generator().manual_seed(0)).shape
        torch.Size([2, 100])
    """
    return torch.randn(count, latent_dim, generator=generator, device=generator.device)


def of_prior(prior: Prior, latent_dim: int) -> Draw:
    """Return what draws z from a prior, for a batch.

    Raises:
        ValueError: while drawing, for z of another shape than (N, latent_dim).

    Examples:
        >>> of_prior(normal, 100)((4, 3, 8, 8), torch.Generator().manual_seed(0), 0).shape
        torch.Size([4, 100])
    """

    def draw(shape: Sequence[int], generator: torch.Generator, images: int) -> torch.Tensor:
        count = shape[0]
        z = prior(count, latent_dim, generator)
        if z.shape != (count, latent_dim):
            raise ValueError(
                f"prior must draw z of the shape {(count, latent_dim)}, got {tuple(z.shape)}; "
                "give each image a row, as sampling.normal does."
            )
        return z

    return draw


def uniform(count: int, latent_dim: int, generator: torch.Generator) -> torch.Tensor:
    """Draw z from U(-1, 1), as the DCGAN paper does: (count, latent_dim), float32.

    Examples:
        >>> bool(uniform(2, 100, torch.Generator().manual_seed(0)).abs().max() <= 1)
        True
    """
    return 2 * torch.rand(count, latent_dim, generator=generator, device=generator.device) - 1


def one_each(shape: Sequence[int], generator: torch.Generator, images: int = 0) -> torch.Tensor:
    """Draw one number for each image from U(0, 1): (N,), float32.

    Examples:
        >>> one_each((4, 3, 8, 8), torch.Generator().manual_seed(0)).shape
        torch.Size([4])
    """
    return torch.rand(shape[0], generator=generator, device=generator.device)


def gaussian_noise(
    shape: Sequence[int], generator: torch.Generator, images: int = 0, *, deviation: float
) -> torch.Tensor:
    """Draw noise of the images' own shape from N(0, deviation^2): (N, C, H, W), float32.

    Examples:
        >>> gaussian_noise((4, 3, 8, 8), torch.Generator().manual_seed(0), deviation=0.1).shape
        torch.Size([4, 3, 8, 8])
    """
    return deviation * torch.randn(tuple(shape), generator=generator, device=generator.device)


@torch.no_grad()
def generate(
    generator: nn.Module, z: torch.Tensor, *, labels: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Return a generator's images for ``z`` (N, Z): (N, C, H, W) in [-1, 1] on its device.

    It runs in evaluation mode, so that the image of one z does not depend on the others beside it,
    and neither its batch norm statistics nor anything else of it changes.

    Args:
        generator: maps z to images; if its attribute ``num_classes`` is a number, z and labels.
        z: the noise, which is moved to the weights' device and type.
        labels: the classes wanted, (N,) of int64, or one for all; None for each in turn.

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
            "num_classes=10, say."
        )
    with evaluating(generator):
        chunks = zip(*(tensor.split(CHUNK) for tensor in inputs))
        return torch.cat([generator(*chunk) for chunk in chunks])
