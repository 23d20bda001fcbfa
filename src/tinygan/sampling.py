"""Priors over z: where a generator's noise comes from.

A prior is any function ``(count, latent_dim, generator) -> z`` of shape (count, latent_dim) that
draws from the generator it is given, and on that generator's device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch

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
