"""Losses on logits: what each player pays.

A loss is three plain functions of D's logits (N,), each giving a cost per sample (N,):

    D pays   E[real(D(x))] + E[fake(D(G(z)))]
    G pays   E[generator(D(G(z)))]

A new loss is three lines and a name:

    >>> from torch.nn.functional import relu
    >>> hinge = Loss(
    ...     real=lambda logits: relu(1 - logits),
    ...     fake=lambda logits: relu(1 + logits),
    ...     generator=lambda logits: -logits,
    ... )
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
import torch.nn.functional as F

Cost: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
"""Maps logits (N,) to costs (N,)."""


@dataclass(frozen=True)
class Loss:
    """What the players pay for D's logits.

    Args:
        real: D's cost of its logits on real images.
        fake: D's cost of its logits on fakes.
        generator: G's cost of D's logits on its fakes.

    Examples:
        >>> lsgan = Loss(lambda x: (x - 1) ** 2, lambda x: x**2, lambda x: (x - 1) ** 2)
    """

    real: Cost
    fake: Cost
    generator: Cost


def cross_entropy(logits: torch.Tensor, target: float) -> torch.Tensor:
    """Return -[t log D + (1 - t) log(1 - D)] per sample, with D = sigmoid(logits).

    Computed from the logits, so it stays exact and finite where D rounds to 0 or 1.

    Args:
        logits: (N,).
        target: t in [0, 1], the wanted probability of "real".

    Examples:
        >>> cross_entropy(torch.tensor([0.0, 1000.0]), 0.0)
        tensor([6.9315e-01, 1.0000e+03])
    """
    # Not softplus: PyTorch's rounds to the identity above 20, an error of 2e-9.
    if target == 1:
        return -F.logsigmoid(logits)
    if target == 0:
        return -F.logsigmoid(-logits)
    return -target * F.logsigmoid(logits) - (1 - target) * F.logsigmoid(-logits)


def non_saturating(*, label_smoothing: float = 0.0) -> Loss:
    """Return the DCGAN tutorial's loss (Goodfellow et al. 2014, section 3, the heuristic form).

    D minimises -log D(x) - log(1 - D(G(z))); G minimises -log D(G(z)) rather than
    log(1 - D(G(z))), whose gradient vanishes when D wins.

    Args:
        label_smoothing: D's target for real images is one less this, in [0, 0.5). One-sided: the
            targets of fakes and of G stay 0 and 1 (Salimans et al. 2016, section 3.4).

    Raises:
        ValueError: for a smoothing outside [0, 0.5).

    Examples:
        >>> non_saturating(label_smoothing=0.1).real(torch.zeros(1))
        tensor([0.6931])
    """
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(
            f"label_smoothing must be in [0, 0.5), got {label_smoothing}; use 0.1, say."
        )
    return Loss(
        real=partial(cross_entropy, target=1 - label_smoothing),
        fake=partial(cross_entropy, target=0.0),
        generator=partial(cross_entropy, target=1.0),
    )
