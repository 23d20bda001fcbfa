"""Losses on logits: what each player pays.

A loss is three plain functions of D's logits (N,), each giving a cost per sample (N,):

    D pays   E[real(D(x))] + E[fake(D(G(z)))]
    G pays   E[generator(D(G(z)))]

A new loss is three lines and a name:

    >>> exponential = Loss(
    ...     real=lambda logits: (-logits).exp(),
    ...     fake=lambda logits: logits.exp(),
    ...     generator=lambda logits: (-logits).exp(),
    ... )

A paired loss is two functions of D's logits on both, of a real image and the fake beside it:

    D pays   E[discriminator(D(x), D(G(z)))]
    G pays   E[generator(D(x), D(G(z)))]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
import torch.nn.functional as F

from tinygan import checks

Cost: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
"""Maps logits (N,) to costs (N,)."""

PairedCost: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Maps logits on real images and on fakes, both (N,), to costs (N,)."""


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


@dataclass(frozen=True)
class PairedLoss:
    """What the players pay for D's logits on a real image and a fake together.

    D's two passes are taken back at once, so both of their graphs are in memory; and G's phase
    takes one pass of D more, on the real images, which no gradient flows through.

    Args:
        discriminator: D's cost of its logits on real images and on fakes.
        generator: G's.

    Examples:
        >>> critic = PairedLoss(lambda real, fake: fake - real, lambda real, fake: real - fake)
    """

    discriminator: PairedCost
    generator: PairedCost


def checked(loss: object) -> Loss | PairedLoss:
    """Return what is a loss.

    Raises:
        TypeError: for anything else, such as what makes one.

    Examples:
        >>> loss = checked(hinge())
    """
    if not isinstance(loss, Loss | PairedLoss):
        raise TypeError(
            f"loss must be a tinygan.losses.Loss or PairedLoss, got {loss!r}; call what makes it, "
            "as in losses.non_saturating()."
        )
    return loss


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
    label_smoothing = checks.number("label_smoothing", label_smoothing, "[0, 0.5)", say=0.1)
    return Loss(
        real=partial(cross_entropy, target=1 - label_smoothing),
        fake=partial(cross_entropy, target=0.0),
        generator=partial(cross_entropy, target=1.0),
    )


def minimax() -> Loss:
    """Return the loss of Goodfellow et al. (2014), equation 1: the game as it is analysed.

    D's is that of ``non_saturating``; G minimises log(1 - D(G(z))). Its gradient vanishes when D
    is sure of the fakes: it is here to be compared with.

    Examples:
        >>> minimax().generator(torch.zeros(1))
        tensor([-0.6931])
    """
    return Loss(
        real=partial(cross_entropy, target=1.0),
        fake=partial(cross_entropy, target=0.0),
        generator=partial(_negative, cost=partial(cross_entropy, target=0.0)),
    )


def _negative(logits: torch.Tensor, *, cost: Cost) -> torch.Tensor:
    return -cost(logits)


def least_squares() -> Loss:
    """Return LSGAN's loss (Mao et al. 2017, equation 9), whose logits aim at 0 and 1.

    D minimises (D(x) - 1)^2 / 2 + D(G(z))^2 / 2; G minimises (D(G(z)) - 1)^2 / 2.

    Examples:
        >>> least_squares().fake(torch.tensor([0.0, 1.0, 2.0]))
        tensor([0.0000, 0.5000, 2.0000])
    """
    return Loss(
        real=partial(_half_square, target=1.0),
        fake=partial(_half_square, target=0.0),
        generator=partial(_half_square, target=1.0),
    )


def _half_square(logits: torch.Tensor, *, target: float) -> torch.Tensor:
    return (logits - target).square() / 2


def hinge() -> Loss:
    """Return the hinge loss (Lim and Ye 2017; Miyato et al. 2018, equations 16 and 17).

    D minimises max(0, 1 - D(x)) + max(0, 1 + D(G(z))): it cares for no image beyond the margin.
    G minimises -D(G(z)).

    Examples:
        >>> hinge().real(torch.tensor([-1.0, 0.0, 5.0]))
        tensor([2., 1., 0.])
    """
    return Loss(real=_hinge_real, fake=_hinge_fake, generator=_minus)


def _hinge_real(logits: torch.Tensor) -> torch.Tensor:
    return F.relu(1 - logits)


def _hinge_fake(logits: torch.Tensor) -> torch.Tensor:
    return F.relu(1 + logits)


def _plus(logits: torch.Tensor) -> torch.Tensor:
    return logits


def _minus(logits: torch.Tensor) -> torch.Tensor:
    return -logits


def wasserstein() -> Loss:
    """Return the critic's loss of WGAN (Arjovsky et al. 2017, equation 2).

    D minimises D(G(z)) - D(x), and G minimises -D(G(z)). It has no lower bound, and means something
    only where D's slope is held to 1 or so: give the trainer ``penalties.wgan_gp()`` as well.

    Examples:
        >>> wasserstein().real(torch.tensor([3.0]))
        tensor([-3.])
    """
    return Loss(real=_minus, fake=_plus, generator=_minus)


def relativistic() -> PairedLoss:
    """Return the relativistic pairing loss, RpGAN's (Jolicoeur-Martineau 2018).

    D minimises -log sigmoid(D(x) - D(G(z))), G -log sigmoid(D(G(z)) - D(x)). A fake is judged
    beside a real image, so that no mode of the data can be dropped for free. It converges with the
    penalties ``r1`` and ``r2`` together, as in R3GAN (Huang et al. 2024, equation 2).

    Examples:
        >>> relativistic().discriminator(torch.tensor([1.0]), torch.tensor([1.0]))
        tensor([0.6931])
    """
    return PairedLoss(discriminator=_prefer_real, generator=_prefer_fake)


def _prefer_real(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    return cross_entropy(real - fake, 1.0)


def _prefer_fake(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    return cross_entropy(fake - real, 1.0)
