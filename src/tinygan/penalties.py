"""Penalties: extra terms in D's loss, on its slope: D's gradient with respect to its input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor, nn

from tinygan import losses, sampling, schedules
from tinygan._run import checks
from tinygan.batch import Batch, Draw
from tinygan.schedules import Schedule

__all__ = ["Penalty", "dragan", "r1", "r2", "slopes", "wgan_gp"]

Discriminator: TypeAlias = Callable[[Tensor], Tensor]
"""D as a function of examples (N, ...); labels, if any, are those of the batch, in its order."""


@dataclass(frozen=True)
class Penalty:
    """An extra term in D's loss, in every k-th step and then k times as large.

    Such a lazy penalty costs a k-th of the time, and its gradient is the same on average (Karras
    et al. 2020, section 3.1, who also adapt Adam's rate and betas; this does not). It is computed
    in the weights' own type, on what D has seen: augmented examples if they are augmented.

    Args:
        cost: ``cost(d, real, fake)`` returns one cost per example, (N,), differentiable by D's
            weights. ``d`` maps examples to logits.
        every: k, at least 1.
        draw: draws the random numbers of ``cost(d, real, fake, drawn)``, see ``tinygan.Batch``.
        name: in reports; each penalty of a run needs another.
        weight: the cost's factor, at least 0: a number, or a schedule (``tinygan.schedules``).

    Examples:
        >>> shallow = Penalty(lambda d, real, fake: d(real) ** 2 + d(fake) ** 2, every=4)
    """

    cost: Callable[..., Tensor]
    every: int = 1
    draw: Draw | None = None
    name: str = "penalty"
    weight: float | Schedule = 1.0

    def __post_init__(self) -> None:
        checks.count("every", self.every)
        object.__setattr__(self, "weight", schedules.checked("weight", self.weight, "[0, inf)"))

    def term(
        self, d: Discriminator, real: Tensor, fake: Tensor, batch: Batch, number: int
    ) -> Tensor:
        """Return a batch's costs (N,), or (N / m,) if D judges m together. Algorithms call this."""
        drawn = [] if self.draw is None else [batch.draw(f"penalty.{number}", self.draw)]
        shapes = (len(real),), (len(real) // getattr(d, "join", 1),)
        name = f"the penalty {self.name!r}"
        costs = losses.each(name, self.cost(d, real, fake, *drawn), *shapes, per="example")
        if not callable(self.weight):
            return self.weight * costs
        # Drawn, as if it were random, so that a captured step reads it anew each time.
        weights = batch.draw(f"penalty.{number}.weight", partial(_weights, weight=self.weight))
        return weights[: len(costs)].to(costs) * costs


def listed(given: Penalty | Sequence[Penalty] | None) -> tuple[Penalty, ...]:
    """Return one, several or no penalties as a tuple; raise TypeError for anything else."""
    remedy = "call the function, as in penalties.r1(), or put one of your own into a Penalty."
    return checks.several("penalties", given, Penalty, remedy)


def slopes(d: Discriminator, examples: Tensor) -> Tensor:
    """Return D's gradient with respect to each of its inputs, flat and differentiable.

    For images (N, C, H, W) that is (N, C H W), or (N / m, m C H W) if D judges m of them together.

    Examples:
        >>> slopes(lambda points: 3 * points[:, 0], torch.zeros(1, 2))
        tensor([[3., 0.]])
    """
    examples = examples.detach().requires_grad_()
    logits = d(examples)
    # The sum's gradient with respect to one example is the slope of that example's own logit.
    (gradient,) = torch.autograd.grad(logits.sum(), examples, create_graph=True)
    return gradient.reshape(len(logits), -1)


def r1(weight: float | Schedule = 10.0, *, every: int = 16, step: float | None = None) -> Penalty:
    """Return R1: weight / 2 * E[||grad_x D(x)||^2] over real x (Mescheder et al. 2018, equation 9).

    Build D with ``norm=None``: batch norm mixes each slope with those of its batch, and counts the
    extra pass in its statistics. The weight, gamma, may fall in the course of a run (Huang et al.
    2024): D is smooth at first, and sees fine detail in the end. For arguments see ``Penalty``.

    With a ``step`` s above 0, such as 0.01 where images are in [-1, 1], the slope is that of a
    finite difference, (D(x + s n) - D(x)) / s with n from N(0, I): its square is noisy, but the
    same on average, up to terms in s^2 (Lin et al. 2025, arXiv:2501.08316). It takes no gradients
    of gradients, which some layers and all compiled nets lack.

    Examples:
        >>> falling = r1(schedules.exponential(10.0, 0.1, until=1_000_000))
    """
    return _zero_centred(_r1, "r1", weight, every, step)


def _r1(d: Discriminator, real: Tensor, fake: Tensor, *noise: Tensor, step: float = 1) -> Tensor:
    return _half_squares(d, real, *noise, step=step)


def r2(weight: float | Schedule = 10.0, *, every: int = 16, step: float | None = None) -> Penalty:
    """Return R2: as ``r1``, but over fakes x = G(z) (Mescheder et al. 2018, equation 10).

    Examples:
        >>> both = [r1(1.0, every=1, step=0.01), r2(1.0, every=1, step=0.01)]
    """
    return _zero_centred(_r2, "r2", weight, every, step)


def _r2(d: Discriminator, real: Tensor, fake: Tensor, *noise: Tensor, step: float = 1) -> Tensor:
    return _half_squares(d, fake, *noise, step=step)


def _zero_centred(
    cost: Callable[..., Tensor], name: str, weight: float | Schedule, every: int, step: float | None
) -> Penalty:
    if step is None:
        return Penalty(cost, every, None, name, weight)
    step = checks.number("step", step, "(0, inf)")
    draw = partial(sampling.noise, deviation=step)
    return Penalty(partial(cost, step=step), every, draw, name, weight)


def _half_squares(d: Discriminator, x: Tensor, *noise: Tensor, step: float) -> Tensor:
    if not noise:
        return slopes(d, x).square().sum(1) / 2
    if not isinstance(d, nn.Module):  # whose attributes are the user's
        d = getattr(d, "once", d)
    # Two passes, not one of 2 N: labels, batch norm and what is compiled are for N.
    rise = d(x + noise[0].to(x)) - d(x)
    return (rise.reshape(len(rise), -1).sum(1) / step).square() / 2


def wgan_gp(weight: float | Schedule = 10.0, *, every: int = 1) -> Penalty:
    """Return WGAN-GP's penalty: weight * E[(||grad_x D(x)|| - 1)^2] between real and fake.

    x = e real + (1 - e) fake, with e from U(0, 1) for each input of D (Gulrajani et al. 2017,
    equation 3). See ``r1`` for batch norm, and ``Penalty`` for arguments.

    Examples:
        >>> critic = [wgan_gp(10.0)]
    """
    return Penalty(_wgan_gp, every, sampling.one_each, "wgan_gp", weight)


def _wgan_gp(d: Discriminator, real: Tensor, fake: Tensor, e: Tensor) -> Tensor:
    join: int = getattr(d, "join", 1)
    e = e.to(real)[::join].repeat_interleave(join)  # joined images lie on one line
    x = fake.lerp(real, e.view(-1, *[1] * (real.dim() - 1)))
    return (_length(slopes(d, x)) - 1).square()


def dragan(weight: float | Schedule = 10.0, *, noise: float = 0.25, every: int = 1) -> Penalty:
    """Return DRAGAN's penalty: weight * E[(||grad_x D(x + d)|| - 1)^2] around real x.

    d is from N(0, noise^2 I), where images are in [-1, 1] and ``noise`` is at least 0 (Kodali et
    al. 2017). See ``r1`` for batch norm, and ``Penalty`` for the other arguments.

    Examples:
        >>> around_real = dragan(10.0, noise=0.1)
    """
    draw = partial(sampling.noise, deviation=checks.number("noise", noise, "[0, inf)"))
    return Penalty(_dragan, every, draw, "dragan", weight)


def _dragan(d: Discriminator, real: Tensor, fake: Tensor, noise: Tensor) -> Tensor:
    return (_length(slopes(d, real + noise.to(real))) - 1).square()


def _length(slope: Tensor) -> Tensor:
    """Return each row's Euclidean length; where that is 0 its gradient is 0, a norm's is NaN."""
    square = slope.square().sum(1)
    flat = square == 0
    return torch.where(flat, 1.0, square).sqrt() * ~flat


def _weights(
    shape: Sequence[int], generator: torch.Generator, images: int, *, weight: Schedule
) -> Tensor:
    """Return the weight after so many images, once for each example: nothing of it is random."""
    now = schedules.value_at(weight, images, "weight", "[0, inf)")
    return torch.full((shape[0],), now, dtype=torch.float32, device=generator.device)
