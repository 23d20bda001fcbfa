"""The recipes of the table: each differs from ``plain`` in what its name says.

On Stacked MNIST D has no batch norm where it is penalised or bounded. ``r3gan-sharp`` goes for
narrow modes: its penalties fall, and on points it has sharper nets, with which those without
the pairing loss diverge. ``r3gan-every1`` and the like apply penalties more often than ``r3gan``,
or less; ``r3gan-finite`` in every step, by finite differences as far as a mode of the points is
wide, and ``r3gan-finite-small`` by a tenth of that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from tinygan import losses, penalties, recipes, schedules
from tinygan.recipes import Nets, Recipe
from tinygan.schedules import Schedule

EVERY = 4
"""In which steps R1 and R2 are applied: they double a step's time otherwise."""

FALL = 40
"""What their weight is divided by at the end, where it falls."""

Make = Callable[[Nets, float, int], Recipe]
"""Makes a recipe of a set's nets, its weight of zero-centred penalties, and a run's images."""


def _r3gan(nets: Nets, gamma: float | Schedule, half_life: float | None) -> Recipe:
    return recipes.relativistic(nets, gamma=gamma, every=EVERY, ema_half_life=half_life)


def _often(every: int, step: float | None = None) -> Make:
    def make(nets: Nets, gamma: float, images: int) -> Recipe:
        terms = [kind(gamma, every=every, step=step) for kind in (penalties.r1, penalties.r2)]
        return replace(_r3gan(nets, gamma, None), penalties=terms)

    return make


def _sharp(nets: Nets, gamma: float, images: int) -> Recipe:
    falling = schedules.exponential(gamma, gamma / FALL, until=images)
    return _r3gan(partial(nets, sharp=True), falling, 10_000)


RECIPES: dict[str, Make] = {
    "plain": lambda nets, gamma, images: recipes.tutorial(nets),
    "pack2": lambda nets, gamma, images: recipes.tutorial(partial(nets, join=2)),
    "pack4": lambda nets, gamma, images: recipes.tutorial(partial(nets, join=4)),
    "least-squares": lambda nets, gamma, images: replace(
        recipes.tutorial(nets), loss=losses.least_squares
    ),
    "hinge-sn": lambda nets, gamma, images: recipes.hinge(nets),
    "wgan-gp": lambda nets, gamma, images: recipes.wgan_gp(nets, d_steps=1),
    "dragan": lambda nets, gamma, images: replace(
        recipes.tutorial(partial(nets, norm=None)), penalties=[penalties.dragan()]
    ),
    "r1": lambda nets, gamma, images: recipes.r1(nets, gamma=gamma, every=EVERY),
    "r3gan": lambda nets, gamma, images: _r3gan(nets, gamma, None),
    "r3gan-ema": lambda nets, gamma, images: _r3gan(nets, gamma, 10_000),
    "r3gan-sharp": _sharp,
    "r3gan-every1": _often(1),
    "r3gan-every8": _often(8),
    "r3gan-every16": _often(16),
    "r3gan-finite": _often(1, step=0.01),
    "r3gan-finite-small": _often(1, step=0.001),
}
