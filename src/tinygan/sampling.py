"""Where a run's random numbers come from: functions that draw from the generator they are given.

A prior is any function ``(count, latent_dim, generator) -> z`` of shape (count, latent_dim). What
else a step needs at random, for a penalty or to augment images, is drawn for the whole batch by a
function of its shape. Both draw on the generator's device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch

Prior: TypeAlias = Callable[[int, int, torch.Generator], torch.Tensor]
"""Draws z: ``(count, latent_dim, generator)`` to a tensor (count, latent_dim)."""

Draw: TypeAlias = Callable[[Sequence[int], torch.Generator, int], torch.Tensor]
"""Draws ``(shape, generator, images)`` to a tensor (N, ...), a row for each image of a batch.

``shape`` is the batch's, (N, C, H, W), and ``images`` the real images seen before, for what changes
in the course of a run.
"""


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
