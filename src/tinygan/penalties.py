"""Penalties: extra terms in D's loss, on its slope.

The slope is D's gradient with respect to its input, one image's, or with packing one pack's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch

from tinygan import losses, sampling, schedules
from tinygan._run import checks
from tinygan.batch import Batch, Draw
from tinygan.schedules import Schedule

Judge: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
"""Maps examples (N, ...) to logits (N, ...): D, with the examples' labels if it takes any.

These are the batch's, in its order: then it takes as many images as the batch has, and no others.
"""

PenaltyCost: TypeAlias = Callable[..., torch.Tensor]
"""Maps D, real examples and fakes, both (N, ...), and what was drawn, to costs (N,)."""


@dataclass(frozen=True)
class Penalty:
    """An extra term in D's loss, in every k-th step and then k times as large.

    Such a lazy penalty costs a k-th of the time, and its gradient is the same on average (Karras
    et al. 2020, section 3.1, who also correct Adam's rate and betas for it; this does not). It is
    computed in the weights' own type, on the images as D has seen them, augmented if they are.

    Args:
        cost: called as ``cost(d, real, fake)``, gives what D is to pay for each image, (N,), in a
            way that D can be trained by. ``d`` maps images to logits.
        every: k.
        draw: what the cost needs at random; it is then called as ``cost(d, real, fake, drawn)``.
        name: what reports call it; each penalty of a run has a name of its own.
        weight: what the cost counts, at least 0: a number, or a schedule.

    Raises:
        ValueError: for k under 1, or a weight under 0.
        TypeError: for a weight that is neither a number nor a function of the images seen.

    Examples:
        >>> shallow = Penalty(lambda d, real, fake: d(real) ** 2 + d(fake) ** 2, every=4)
    """

    cost: PenaltyCost
    every: int = 1
    draw: Draw | None = None
    name: str = "penalty"
    weight: float | Schedule = 1.0

    def __post_init__(self) -> None:
        checks.count("every", self.every)
        _checked(self.weight)

    def term(
        self, d: Judge, real: torch.Tensor, fake: torch.Tensor, batch: Batch, number: int
    ) -> torch.Tensor:
        """Return the costs (N,) of a batch, or with packing (N / m,).

        Raises:
            ValueError: for what is not one cost for each image, or cannot be learned from.
        """
        drawn = [] if self.draw is None else [batch.draw(f"penalty.{number}", self.draw)]
        # A cost of each image, or of each pack.
        counts = len(real), len(real) // getattr(d, "pack", 1)
        costs = losses.each(f"penalty {number}", self.cost(d, real, fake, *drawn), *counts)
        if not callable(self.weight):
            return costs if self.weight == 1 else self.weight * costs
        # Drawn, as if it were random: so it is written anew to where a recorded step reads it.
        weights = batch.draw(f"penalty.{number}.weight", partial(_weights, weight=self.weight))
        # Packs have fewer costs than images, and all weights are alike.
        return weights[: len(costs)].to(costs) * costs


def listed(given: Penalty | Sequence[Penalty] | None) -> tuple[Penalty, ...]:
    """Return one, several or no penalties as a tuple.

    Raises:
        TypeError: for anything else, such as the function that makes one.

    Examples:
        >>> len(listed([r1(), r2()]))
        2
    """
    remedy = (
        "call what makes it, as in penalties.r1(), or wrap a function of your own in a Penalty."
    )
    return checks.several("penalty", given, Penalty, remedy)


def slopes(d: Judge, images: torch.Tensor) -> torch.Tensor:
    """Return D's gradient with respect to each of its inputs, flat: (N, C H W), differentiable.

    Args:
        d: maps images to logits.
        images: (N, C, H, W). If D packs m of them into one input, N / m rows of m C H W.

    Examples:
        >>> slopes(lambda images: 3 * images[:, 0, 0, 0], torch.zeros(2, 1, 1, 1))
        tensor([[3.],
                [3.]])
    """
    images = images.detach().requires_grad_()
    logits = d(images)
    # The sum's gradient with respect to one image is the slope of that image's own logit.
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.reshape(len(logits), -1)


def r1(weight: float | Schedule = 10.0, *, every: int = 16) -> Penalty:
    """Return R1: weight / 2 times the squared slope of D at each real image.

    R1 = weight / 2 * E[||grad_x D(x)||^2] over real x (Mescheder et al. 2018, equation 9). With
    batch norm in D the slope at one image is mixed with those of its batch, and the passes that
    are penalised count once more in its statistics: take a D with ``norm=None``.

    The weight may fall in the course of a run (Huang et al. 2024 lower it by a cosine): a smooth D
    at first, and at last one that sees fine detail.

    Args:
        weight: gamma, at least 0: a number, or a schedule, see ``tinygan.schedules``.
        every: in which steps it is applied, as in ``Penalty``.

    Raises:
        ValueError: for a weight under 0, or ``every`` under 1.
        TypeError: for a weight that is neither a number nor a function of the images seen.

    Examples:
        >>> steep = lambda images: 3 * images[:, 0, 0, 0]
        >>> r1(2.0).cost(steep, torch.ones(2, 1, 1, 1), torch.ones(2, 1, 1, 1))
        tensor([9., 9.])
        >>> falling = r1(schedules.exponential(10.0, 0.1, until=1_000_000))
    """
    return _weighted("r1", _r1_cost, weight, every)


def r2(weight: float | Schedule = 10.0, *, every: int = 16) -> Penalty:
    """Return R2: weight / 2 times the squared slope of D at each fake.

    R2 = weight / 2 * E[||grad_x D(x)||^2] over x = G(z) (Mescheder et al. 2018, equation 10). For
    arguments, errors and batch norm see ``r1``.

    Examples:
        >>> both = [r1(1.0, every=1), r2(1.0, every=1)]
    """
    return _weighted("r2", _r2_cost, weight, every)


def wgan_gp(weight: float | Schedule = 10.0, *, every: int = 1) -> Penalty:
    """Return WGAN-GP's penalty: weight times (slope - 1)^2 between real images and fakes.

    E[(||grad_x D(x)|| - 1)^2] over x = e real + (1 - e) fake, e from U(0, 1) for each of D's
    inputs, an image or a pack (Gulrajani et al. 2017, equation 3). For arguments, errors and batch
    norm see ``r1``.

    Examples:
        >>> steep = lambda images: 3 * images[:, 0, 0, 0]
        >>> images = torch.ones(2, 1, 1, 1)
        >>> wgan_gp(10.0).cost(steep, images, images, torch.tensor([0.2, 0.7]))
        tensor([40., 40.])
    """
    return _weighted("wgan_gp", _wgan_gp_cost, weight, every, sampling.one_each)


def dragan(weight: float | Schedule = 10.0, *, noise: float = 0.25, every: int = 1) -> Penalty:
    """Return DRAGAN's penalty: weight times (slope - 1)^2 around real images.

    E[(||grad_x D(x + d)|| - 1)^2] over real x, d from N(0, noise^2 I) (Kodali et al. 2017).
    For arguments, errors and batch norm see ``r1``.

    Args:
        weight: lambda, at least 0: a number, or a schedule.
        noise: the standard deviation of d, at least 0, where images are in [-1, 1].
        every: in which steps it is applied, as in ``Penalty``.

    Examples:
        >>> steep = lambda images: 3 * images[:, 0, 0, 0]
        >>> images = torch.ones(2, 1, 1, 1)
        >>> dragan(10.0).cost(steep, images, images, torch.zeros(2, 1, 1, 1))
        tensor([40., 40.])
    """
    noise = checks.number("noise", noise, "[0, inf)", example=0.25)
    draw = partial(sampling.gaussian_noise, deviation=noise)
    return _weighted("dragan", _dragan_cost, weight, every, draw)


def _checked(weight: float | Schedule) -> float | Schedule:
    return schedules.checked("weight", weight, "[0, inf)", example=10.0)


def _weighted(
    name: str, cost: PenaltyCost, weight: float | Schedule, every: int, draw: Draw | None = None
) -> Penalty:
    """Return a penalty whose cost has a factor ``weight``, which may be a schedule."""
    weight = _checked(weight)
    if callable(weight):
        return Penalty(partial(cost, weight=1.0), every, draw, name, weight)
    return Penalty(partial(cost, weight=weight), every, draw, name)


def _weights(
    shape: Sequence[int], generator: torch.Generator, images: int, *, weight: Schedule
) -> torch.Tensor:
    """Return the weight after so many images, once for each image: nothing of it is random."""
    now = schedules.value_at(weight, images, "weight", "[0, inf)", example=10.0)
    return torch.full((shape[0],), now, device=generator.device)


def _r1_cost(d: Judge, real: torch.Tensor, fake: torch.Tensor, *, weight: float) -> torch.Tensor:
    return weight / 2 * slopes(d, real).square().sum(1)


def _r2_cost(d: Judge, real: torch.Tensor, fake: torch.Tensor, *, weight: float) -> torch.Tensor:
    return weight / 2 * slopes(d, fake).square().sum(1)


def _wgan_gp_cost(
    d: Judge, real: torch.Tensor, fake: torch.Tensor, drawn: torch.Tensor, *, weight: float
) -> torch.Tensor:
    pack: int = getattr(d, "pack", 1)
    share = drawn.to(real)[::pack].repeat_interleave(pack)  # a pack lies on one line
    between = fake.lerp(real, share.view(-1, *[1] * (real.dim() - 1)))
    return weight * (_length(slopes(d, between)) - 1).square()


def _dragan_cost(
    d: Judge, real: torch.Tensor, fake: torch.Tensor, drawn: torch.Tensor, *, weight: float
) -> torch.Tensor:
    return weight * (_length(slopes(d, real + drawn.to(real))) - 1).square()


def _length(slope: torch.Tensor) -> torch.Tensor:
    """Return the Euclidean length of each row, with a gradient of 0 where it is 0.

    A norm's own gradient of gradients is NaN there, as for a D that does not see its input yet.
    """
    square = slope.square().sum(1)
    flat = square == 0
    return torch.where(flat, 1.0, square).sqrt() * ~flat
