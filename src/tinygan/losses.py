"""Losses: what each player pays for D's logits, with the papers' equations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, ClassVar, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from tinygan._run import checks

__all__ = [
    "Loss",
    "PairedLoss",
    "cross_entropy",
    "hinge",
    "least_squares",
    "minimax",
    "non_saturating",
    "relativistic",
    "smoothed",
    "wasserstein",
]

Cost: TypeAlias = Callable[[Tensor], Tensor]
PairedCost: TypeAlias = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Loss:
    """Three functions of D's logits (N, ...), each returning a cost for each logit.

        D pays   E[real(D(x))] + E[fake(D(G(z)))]
        G pays   E[generator(D(G(z)))]

    Examples:
        >>> linear = Loss(real=torch.neg, fake=torch.positive, generator=torch.neg)
    """

    real: Cost
    fake: Cost
    generator: Cost
    paired: ClassVar[Literal[False]] = False


@dataclass(frozen=True)
class PairedLoss:
    """Two functions of D's logits on real examples and on the fakes beside them.

        D pays   E[discriminator(D(x), D(G(z)))]
        G pays   E[generator(D(x), D(G(z)))]

    Both graphs of D are in memory at once, and G's turn needs one more pass of D on real examples.

    Examples:
        >>> critic = PairedLoss(lambda real, fake: fake - real, lambda real, fake: real - fake)
    """

    discriminator: PairedCost
    generator: PairedCost
    paired: ClassVar[Literal[True]] = True


def cross_entropy(logits: Tensor, target: float) -> Tensor:
    """Return -[t log D + (1 - t) log(1 - D)] for each logit, with D = sigmoid(logit).

    It stays exact and finite where D rounds to 0 or 1. ``target`` is t, in [0, 1].

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
    """Return ``non_saturating`` with D's target for real examples lowered by ``label_smoothing``.

    The other targets stay 0 and 1: it is one-sided (Salimans et al. 2016, section 3.4).
    Raises ValueError for a smoothing outside [0, 0.5).

    Examples:
        >>> smoothed(0.1).real(torch.zeros(1))
        tensor([0.6931])
    """
    target = 1 - checks.number("label_smoothing", label_smoothing, "[0, 0.5)")
    return replace(non_saturating, real=partial(cross_entropy, target=target))


_as_real = partial(cross_entropy, target=1.0)
_as_fake = partial(cross_entropy, target=0.0)

non_saturating = Loss(real=_as_real, fake=_as_fake, generator=_as_real)
"""The DCGAN tutorial's loss (Goodfellow et al. 2014, section 3).

D minimises -log D(x) - log(1 - D(G(z))); G minimises -log D(G(z)).
"""


def _less_as_fake(logits: Tensor) -> Tensor:
    return -cross_entropy(logits, 0.0)


minimax = Loss(real=_as_real, fake=_as_fake, generator=_less_as_fake)
"""The game as it is analysed (Goodfellow et al. 2014, equation 1).

D is as in ``non_saturating``; G minimises log(1 - D(G(z))), whose gradient vanishes when D wins.
"""


def _half_square(logits: Tensor, *, target: float) -> Tensor:
    return (logits - target).square() / 2


least_squares = Loss(
    real=partial(_half_square, target=1.0),
    fake=partial(_half_square, target=0.0),
    generator=partial(_half_square, target=1.0),
)
"""LSGAN's loss, whose logits aim at 0 and 1 (Mao et al. 2017, equation 9).

D minimises (D(x) - 1)^2 / 2 + D(G(z))^2 / 2; G minimises (D(G(z)) - 1)^2 / 2.
"""


def _hinge_real(logits: Tensor) -> Tensor:
    return F.relu(1 - logits)


def _hinge_fake(logits: Tensor) -> Tensor:
    return F.relu(1 + logits)


hinge = Loss(real=_hinge_real, fake=_hinge_fake, generator=torch.neg)
"""The hinge loss (Lim and Ye 2017; Miyato et al. 2018, equations 16 and 17).

D minimises max(0, 1 - D(x)) + max(0, 1 + D(G(z))); G minimises -D(G(z)).
"""

wasserstein = Loss(real=torch.neg, fake=torch.positive, generator=torch.neg)
"""The loss of WGAN's critic (Arjovsky et al. 2017, equation 2).

D minimises D(G(z)) - D(x); G minimises -D(G(z)). It has no lower bound, and only means something
while D's slope is held near 1: combine it with ``penalties.wgan_gp()``.
"""


def _prefer_real(real: Tensor, fake: Tensor) -> Tensor:
    return cross_entropy(real - fake, 1.0)


def _prefer_fake(real: Tensor, fake: Tensor) -> Tensor:
    return cross_entropy(fake - real, 1.0)


relativistic = PairedLoss(discriminator=_prefer_real, generator=_prefer_fake)
"""The relativistic pairing loss, RpGAN's (Jolicoeur-Martineau 2018).

D minimises -log sigmoid(D(x) - D(G(z))); G minimises -log sigmoid(D(G(z)) - D(x)). A fake is judged
beside a real example, so no mode of the data can be dropped for free. It converges together with
both penalties ``r1`` and ``r2``, as in R3GAN (Huang et al. 2024, equation 2).
"""


def checked(loss: object) -> Loss | PairedLoss:
    """Return a loss that raises ValueError, when used, unless it gives a cost for each logit."""
    if not isinstance(loss, Loss | PairedLoss):
        raise TypeError(
            f"loss must be a tinygan.losses.Loss or PairedLoss, got {loss!r}; use losses.hinge, or "
            "call the function that makes one, as in losses.smoothed(0.1). The default is binary "
            "cross-entropy of logits."
        )

    def checking(name: str) -> Any:
        cost = getattr(loss, name)
        arguments = "(real, fake)" if loss.paired else "(logits)"
        remedy = "use a Loss for functions of logits, a PairedLoss for functions of two of them."
        checks.takes(f"loss.{name}", cost, arguments, remedy)
        return lambda *logits: each(f"loss.{name}", cost(*logits), logits[-1].shape, per="logit")

    return replace(loss, **{field.name: checking(field.name) for field in fields(loss)})


def each(name: str, cost: object, *shapes: tuple[int, ...], per: str) -> Tensor:
    """Return costs of one of these shapes; raise ValueError for means or mixed-up examples."""
    if not isinstance(cost, Tensor) or cost.shape not in shapes:
        got = tuple(cost.shape) if isinstance(cost, Tensor) else type(cost).__name__
        raise ValueError(
            f"{name} must return one cost per {per}, {tuple(shapes[0])}, got {got}; return a "
            "tensor of that shape: the trainer takes the mean."
        )
    return cost
