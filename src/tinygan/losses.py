"""Losses on logits: what each player pays.

A loss is three plain functions of D's logits (N, ...), each giving a cost for each logit:

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
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, ClassVar, Literal, TypeAlias

import torch
import torch.nn.functional as F

from tinygan._run import checks

Cost: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
"""Maps logits (N, ...) to costs of the same shape."""

PairedCost: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Maps logits on real images and on fakes, both (N, ...), to costs of the same shape."""


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
    paired: ClassVar[Literal[False]] = False


@dataclass(frozen=True)
class PairedLoss:
    """What the players pay for D's logits on a real image and a fake together.

    D's two passes go backward together, so both graphs are in memory; G's phase needs one more pass
    of D on the real images, without gradients.

    Args:
        discriminator: D's cost of its logits on real images and on fakes.
        generator: G's.

    Examples:
        >>> critic = PairedLoss(lambda real, fake: fake - real, lambda real, fake: real - fake)
    """

    discriminator: PairedCost
    generator: PairedCost
    paired: ClassVar[Literal[True]] = True


def checked(loss: object) -> Loss | PairedLoss:
    """Return a loss that makes sure of its costs, which must be one for each logit.

    Raises:
        TypeError: for anything else than a loss, such as what makes one.
        ValueError: when it is used, for costs that are no tensor of the logits' shape.

    Examples:
        >>> loss = checked(hinge)
    """
    if not isinstance(loss, Loss | PairedLoss):
        raise TypeError(
            f"loss must be a tinygan.losses.Loss or PairedLoss, got {loss!r}; use "
            "losses.non_saturating, say, or call what makes one, as in losses.smoothed(0.1)."
        )
    own = {each.name: getattr(loss, each.name) for each in fields(loss)}
    checked_costs: Any = {name: _for_each(name, cost) for name, cost in own.items()}
    return replace(loss, **checked_costs)


def each(name: str, cost: object, *counts: int | tuple[int, ...]) -> torch.Tensor:
    """Return costs, one for each of as many examples, or of the shape of logits.

    Raises:
        ValueError: for a mean, or for costs of examples that were mixed by mistake.

    Examples:
        >>> each("loss.real", torch.ones(4, requires_grad=True), 4).shape
        torch.Size([4])
    """
    wanted = [(count,) if isinstance(count, int) else tuple(count) for count in counts]
    if not isinstance(cost, torch.Tensor) or cost.shape not in wanted:
        given = tuple(cost.shape) if isinstance(cost, torch.Tensor) else type(cost).__name__
        raise ValueError(
            f"{name} must give a cost for each logit, {wanted[0]}, got {given}; sum over all "
            "axes but the first, and leave the mean to the trainer."
        )
    if not cost.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            f"{name} must give costs that weights can learn from, got some without gradients; "
            "detach nothing, and make slopes by tinygan.penalties.slopes or create_graph=True."
        )
    return cost


def _for_each(name: str, cost: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def of_logits(*logits: torch.Tensor) -> torch.Tensor:
        return each(f"loss.{name}", cost(*logits), tuple(logits[-1].shape))

    return of_logits


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


def smoothed(label_smoothing: float) -> Loss:
    """Return the non-saturating loss with smoothed labels (Salimans et al. 2016, section 3.4).

    Args:
        label_smoothing: D's target for real images is one less this, in [0, 0.5). One-sided: the
            targets of fakes and of G stay 0 and 1.

    Raises:
        ValueError: for a smoothing outside [0, 0.5).

    Examples:
        >>> smoothed(0.1).real(torch.zeros(1))
        tensor([0.6931])
    """
    label_smoothing = checks.number("label_smoothing", label_smoothing, "[0, 0.5)", example=0.1)
    return Loss(
        real=partial(cross_entropy, target=1 - label_smoothing),
        fake=partial(cross_entropy, target=0.0),
        generator=partial(cross_entropy, target=1.0),
    )


non_saturating = smoothed(0.0)
"""The DCGAN tutorial's loss (Goodfellow et al. 2014, section 3, the heuristic form).

D minimises -log D(x) - log(1 - D(G(z))); G minimises -log D(G(z)) rather than log(1 - D(G(z))),
whose gradient vanishes when D wins.
"""


def _negative(logits: torch.Tensor, *, cost: Cost) -> torch.Tensor:
    return -cost(logits)


minimax = Loss(
    real=partial(cross_entropy, target=1.0),
    fake=partial(cross_entropy, target=0.0),
    generator=partial(_negative, cost=partial(cross_entropy, target=0.0)),
)
"""The loss of Goodfellow et al. (2014), equation 1: the game as it is analysed.

D's is that of ``non_saturating``; G minimises log(1 - D(G(z))). Its gradient vanishes when D is
sure of the fakes: it is here to be compared with.
"""


def _half_square(logits: torch.Tensor, *, target: float) -> torch.Tensor:
    return (logits - target).square() / 2


least_squares = Loss(
    real=partial(_half_square, target=1.0),
    fake=partial(_half_square, target=0.0),
    generator=partial(_half_square, target=1.0),
)
"""LSGAN's loss (Mao et al. 2017, equation 9), whose logits aim at 0 and 1.

D minimises (D(x) - 1)^2 / 2 + D(G(z))^2 / 2; G minimises (D(G(z)) - 1)^2 / 2.
"""


def _hinge_real(logits: torch.Tensor) -> torch.Tensor:
    return F.relu(1 - logits)


def _hinge_fake(logits: torch.Tensor) -> torch.Tensor:
    return F.relu(1 + logits)


def _plus(logits: torch.Tensor) -> torch.Tensor:
    return logits


def _minus(logits: torch.Tensor) -> torch.Tensor:
    return -logits


hinge = Loss(real=_hinge_real, fake=_hinge_fake, generator=_minus)
"""The hinge loss (Lim and Ye 2017; Miyato et al. 2018, equations 16 and 17).

D minimises max(0, 1 - D(x)) + max(0, 1 + D(G(z))): it cares for no image beyond the margin. G
minimises -D(G(z)).
"""

wasserstein = Loss(real=_minus, fake=_plus, generator=_minus)
"""The critic's loss of WGAN (Arjovsky et al. 2017, equation 2).

D minimises D(G(z)) - D(x), and G minimises -D(G(z)). It has no lower bound, and means something
only where D's slope is held to 1 or so: give the trainer ``penalties.wgan_gp()`` as well.
"""


def _prefer_real(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    return cross_entropy(real - fake, 1.0)


def _prefer_fake(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    return cross_entropy(fake - real, 1.0)


relativistic = PairedLoss(discriminator=_prefer_real, generator=_prefer_fake)
"""The relativistic pairing loss, RpGAN's (Jolicoeur-Martineau 2018).

D minimises -log sigmoid(D(x) - D(G(z))), G -log sigmoid(D(G(z)) - D(x)). A fake is judged beside a
real image, so that no mode of the data can be dropped for free. It converges with the penalties
``r1`` and ``r2`` together, as in R3GAN (Huang et al. 2024, equation 2).
"""
