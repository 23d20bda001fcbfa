"""A moving average of a net's weights: samples from it are better than those of the net itself."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn

from tinygan import schedules
from tinygan.nets import traits
from tinygan.schedules import Schedule

RAMP = 0.15
"""The half-life is at most this share of the images seen, so that first weights are forgotten."""


def ema_weight(half_life: float, images: int, size: int) -> float:
    """Return how much of the average a batch of ``size`` replaces: 1 - 0.5^(size / half-life).

    Early in a run the half-life is RAMP times the ``images`` (the code of StyleGAN2-ADA has .05).
    With an infinite half-life it stays so: that is the power function of Karras et al. 2024
    (section 3.1), of relative width .15.
    """
    return 1.0 - math.pow(0.5, size / min(half_life, RAMP * images))


@torch.no_grad()
def ema_update_(average: nn.Module, live: nn.Module, weight: float | torch.Tensor) -> None:
    """Move ``average`` towards ``live``: a + weight (l - a).

    Batch norm's running statistics are averaged too: over a few small batches they are noisy.
    Other buffers are copied.
    """
    (old, copied), (new, originals) = _averaged_and_copied(average), _averaged_and_copied(live)
    # Subtracted, not lerped: PyTorch's lerp takes no scalar on the device for many tensors.
    change = list(torch._foreach_sub([n.to(o.dtype) for n, o in zip(new, old, strict=True)], old))
    torch._foreach_mul_(change, weight)
    torch._foreach_add_(old, change)
    if copied:
        torch._foreach_copy_(copied, originals)


def _averaged_and_copied(net: nn.Module) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    statistics = traits.running_statistics(net)
    copied = [buffer for name, buffer in net.named_buffers() if name not in statistics]
    return [*net.parameters(), *statistics.values()], copied


class Average:
    """A net's moving average: in float32 at least, and never trained itself.

    ``share`` is how much of it a step replaces: on the device, where a recorded step reads it.
    ``half_life`` is the images after which weights count half, at least 1 (not a decay such as
    0.999); or a schedule of it, whose values under 1 count as 1.
    """

    def __init__(self, live: nn.Module, half_life: float | Schedule) -> None:
        name, interval = "ema_half_life, in images,", "[1, inf]"
        if callable(half_life):
            name, interval = "ema_half_life", "[0, inf]"
        self.half_life = schedules.checked(name, half_life, interval)
        self._live = live
        self._dtype = torch.promote_types(traits.example(live).dtype, torch.float32)
        # PyTorch copies nothing with a graph: weights that old weight norm and pruning compute.
        computed = {
            id(tensor): tensor.detach().clone()
            for part in live.modules()
            for tensor in vars(part).values()
            if isinstance(tensor, torch.Tensor) and not tensor.is_leaf
        }
        with torch.no_grad():  # or a ScriptModule's copies would have graphs
            self.net = copy.deepcopy(live, computed).to(self._dtype).eval()
        for weight in self.net.parameters():
            weight.requires_grad_(False)
        self.share = torch.zeros((), dtype=self._dtype, device=traits.example(live).device)

    def to(self, device: torch.device) -> None:
        """Move the average to a device."""
        self.net.to(device)
        self.share = self.share.to(device)

    def begin(self, images: int, size: int) -> None:
        """Begin a step of ``size`` images, before which ``images`` were seen."""
        half_life = schedules.value_at(self.half_life, images, "ema_half_life", "[0, inf]")
        self.share.fill_(ema_weight(max(half_life, 1.0), images + size, size))

    def update(self, skipped: torch.Tensor) -> None:
        """Take in the weights after a step, unless it was ``skipped``: 1 or 0 on the device."""
        ema_update_(self.net, self._live, (1 - skipped.to(self._dtype)) * self.share)
