"""Penalties: what D pays for its slope, besides its loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import nn

from tinygan import checks

PenaltyCost: TypeAlias = Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]
"""Maps D, real images and fakes, both (N, C, H, W), to costs (N,), which D can be trained by."""


@dataclass(frozen=True)
class Penalty:
    """What D pays besides its loss, in every k-th step and then k times as much.

    Such a lazy penalty costs a k-th of the time, and its gradient is the same on average (Karras
    et al. 2020, section 3.1, who also correct Adam's rate and betas for it; this does not). It is
    computed in the weights' own type.

    Args:
        cost: maps D, real images and fakes to a cost per image.
        every: k.

    Raises:
        ValueError: for k under 1.

    Examples:
        >>> shallow = Penalty(lambda d, real, fake: d(real) ** 2 + d(fake) ** 2, every=4)
    """

    cost: PenaltyCost
    every: int = 1

    def __post_init__(self) -> None:
        checks.count("every", self.every)


def r1(weight: float = 10.0, *, every: int = 16) -> Penalty:
    """Return R1: weight / 2 times the squared slope of D at each real image.

    R1 = weight / 2 * E[||grad_x D(x)||^2] over real x (Mescheder et al. 2018, equation 9). With
    batch norm in D the slope at one image is mixed with those of its batch, and the passes that
    are penalised count once more in its statistics: take a D with ``norm=None``.

    Args:
        weight: gamma, at least 0.
        every: in which steps it is applied, as in ``Penalty``.

    Raises:
        ValueError: for a negative weight, or ``every`` under 1.

    Examples:
        >>> steep = lambda images: 3 * images[:, 0, 0, 0]
        >>> r1(2.0).cost(steep, torch.ones(2, 1, 1, 1), torch.ones(2, 1, 1, 1))
        tensor([9., 9.])
    """
    if not weight >= 0:
        raise ValueError(f"weight must be at least 0, got {weight!r}; use 10.0, say.")
    return Penalty(partial(_r1_cost, weight=weight), every)


def _r1_cost(
    discriminator: nn.Module, real: torch.Tensor, fake: torch.Tensor, *, weight: float
) -> torch.Tensor:
    real = real.detach().requires_grad_()
    # The sum's gradient with respect to one image is the slope of that image's own logit.
    (slopes,) = torch.autograd.grad(discriminator(real).sum(), real, create_graph=True)
    return weight / 2 * slopes.square().flatten(1).sum(1)
