"""The recipes of the table: each differs from ``plain`` in what its name says.

On Stacked MNIST D has no batch norm where it is penalised or bounded. ``r3gan-sharp`` goes for
narrow modes: its penalties fall, and on points it has sharper nets, with which those without
the pairing loss diverge.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

import tinygan
from tinygan import losses, penalties, schedules
from tinygan.losses import Loss, PairedLoss
from tinygan.penalties import Penalty

EVERY = 4
"""In which steps R1 and R2 are applied: they double a step's time otherwise."""

FALL = 40
"""What their weight is divided by at the end, where it falls."""


@dataclass(frozen=True)
class Recipe:
    """What a run may differ in.

    Args:
        loss: what the players pay.
        penalty: makes what D pays besides, from a set's weight of zero-centred penalties and the
            images of a run.
        join: images that D sees at once.
        bounded: divide D's weights by their spectral norm.
        sharp: of points, let D see finer waves and G bend more.
        ema_half_life: images after which weights count half in the average that is sampled from.
    """

    loss: Loss | PairedLoss = losses.non_saturating
    penalty: Callable[[float, int], tuple[Penalty, ...]] = lambda weight, images: ()
    join: int = 1
    bounded: bool = False
    sharp: bool = False
    ema_half_life: float | None = None

    @property
    def batch_norm(self) -> bool:
        """Whether D may have batch norm, which mixes the slopes that are penalised or bounded."""
        return not self.bounded and not self.penalty(1.0, 1)

    def judged(self, discriminator: nn.Module) -> nn.Module:
        """Return D as the recipe wants it."""
        return tinygan.spectral_norm(discriminator) if self.bounded else discriminator


def _r1(weight: float, images: int) -> tuple[Penalty, ...]:
    return (penalties.r1(weight, every=EVERY),)


def _r1_and_r2(weight: float | schedules.Schedule, images: int) -> tuple[Penalty, ...]:
    return penalties.r1(weight, every=EVERY), penalties.r2(weight, every=EVERY)


def _falling(weight: float, images: int) -> tuple[Penalty, ...]:
    return _r1_and_r2(schedules.exponential(weight, weight / FALL, until=images), images)


_r3gan = partial(Recipe, losses.relativistic)

RECIPES = {
    "plain": Recipe(),
    "pack2": Recipe(join=2),
    "pack4": Recipe(join=4),
    "least-squares": Recipe(loss=losses.least_squares),
    "hinge-sn": Recipe(loss=losses.hinge, bounded=True),
    "wgan-gp": Recipe(
        loss=losses.wasserstein, penalty=lambda weight, images: (penalties.wgan_gp(),)
    ),
    "dragan": Recipe(penalty=lambda weight, images: (penalties.dragan(),)),
    "r1": Recipe(penalty=_r1),
    "r3gan": _r3gan(_r1_and_r2),
    "r3gan-ema": _r3gan(_r1_and_r2, ema_half_life=10_000),
    "r3gan-sharp": _r3gan(_falling, ema_half_life=10_000, sharp=True),
}
