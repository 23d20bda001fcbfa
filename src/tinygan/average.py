"""The moving average of a generator's weights, from which samples are better than from G itself."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn

from tinygan import schedules
from tinygan.schedules import Schedule

RAMP = 0.05
"""The half-life is at most this share of the images seen: no run should end in its beginnings."""


def ema_weight(half_life: float, images: int, size: int) -> float:
    """Return how much of the average a batch replaces: 1 - 0.5^(size / half-life).

    Early in a run the half-life is a twentieth of the images seen (Karras et al. 2020, in the code
    of StyleGAN2-ADA), so that the initial weights are soon forgotten.

    Args:
        half_life: images after which weights count half, above 0.
        images: real images seen, those of this batch included.
        size: images in this batch.

    Examples:
        >>> ema_weight(1000, images=1_000_000, size=1000)
        0.5
    """
    return 1.0 - math.pow(0.5, size / min(half_life, RAMP * images))


@torch.no_grad()
def ema_update_(average: nn.Module, live: nn.Module, weight: float | torch.Tensor) -> None:
    """Move ``average`` towards ``live``: a + weight (l - a). Buffers are copied.

    Batch norm's statistics belong to the newest weights, and are averages already.

    Args:
        average: a copy of the net, whose weights are in float32 or more.
        live: the net that is trained.
        weight: in [0, 1], a number or a scalar tensor on their device.

    Examples:
        >>> average, live = nn.Linear(1, 1), nn.Linear(1, 1)
        >>> ema_update_(average, live, 1.0)
        >>> torch.equal(average.weight, live.weight)
        True
    """
    old: list[torch.Tensor] = list(average.parameters())
    new: list[torch.Tensor] = list(live.parameters())
    # Subtracted, not lerped: PyTorch's lerp takes no scalar on the device for many tensors.
    change = list(torch._foreach_sub([n.to(o.dtype) for n, o in zip(new, old)], old))
    torch._foreach_mul_(change, weight)
    torch._foreach_add_(old, change)
    buffers = list(average.buffers())
    if buffers:
        torch._foreach_copy_(buffers, list(live.buffers()))


class Average:
    """A generator's moving average: float32 at least, and never trained.

    Args:
        live: the generator.
        half_life: images after which weights count half, at least 1: no decay such as 0.999. Or a
            schedule of it, of which what is under 1 counts as 1.

    Raises:
        ValueError: for a half-life under 1, or a schedule that gives one under 0.

    Examples:
        >>> average = Average(nn.Linear(2, 2), half_life=10_000)
        >>> average.update(images=64, size=64, skipped=torch.tensor(0.0))
    """

    def __init__(self, live: nn.Module, half_life: float | Schedule) -> None:
        interval = "[0, inf]" if callable(half_life) else "[1, inf]"
        self.half_life = schedules.checked("ema_half_life", half_life, interval, example=10_000)
        self._live = live
        self._dtype = torch.promote_types(next(live.parameters()).dtype, torch.float32)
        self.net = copy.deepcopy(live).to(self._dtype).requires_grad_(False).eval()

    def update(self, images: int, size: int, skipped: torch.Tensor) -> None:
        """Take in G's weights after a step.

        Args:
            images: real images seen, those of this step included.
            size: images in this step's batch.
            skipped: 1 if G was not moved, else 0: a scalar on the device.
        """
        # As all schedules do, it counts the images before the step.
        half_life = schedules.value_at(
            self.half_life, images - size, "ema_half_life", "[0, inf]", example=10_000
        )
        weight = ema_weight(max(half_life, 1.0), images, size)
        ema_update_(self.net, self._live, (1 - skipped.to(self._dtype)) * weight)
