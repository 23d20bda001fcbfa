"""A stand-in for ``tinygan.metrics`` until it is there: its names, its arguments."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Coverage:
    """How much of a set samples cover.

    Args:
        modes: how many modes have a sample.
        high_quality: the share of samples near a mode; None if that was not asked.
        reverse_kl: of the samples' modes from the data's, in nats.
        floor: about what a perfect sampler's would be.
    """

    modes: int
    high_quality: float | None
    reverse_kl: float
    floor: float


def mode_coverage(
    modes: torch.Tensor,
    count: int,
    high_quality: torch.Tensor | None = None,
    reference: torch.Tensor | None = None,
) -> Coverage:
    """Judge samples by the modes (N,) they belong to; one that is not near counts for none."""
    found = torch.bincount(modes if high_quality is None else modes[high_quality], minlength=count)
    shares = torch.bincount(modes, minlength=count).double() / len(modes)
    wanted = torch.full_like(shares, 1 / count) if reference is None else reference.double()
    divergence = torch.special.xlogy(shares, shares / wanted).sum()
    share = None if high_quality is None else high_quality.double().mean().item()
    floor = (count - 1) / (2 * len(modes))
    return Coverage(int((found > 0).sum()), share, divergence.item(), floor)


def nearest_mode(
    points: torch.Tensor, means: torch.Tensor, sd: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the nearest mean of each point (N,), and whether it is within three sd of it (N,)."""
    distances, modes = torch.cdist(points.double(), means.double()).min(1)
    return modes, distances <= 3 * sd
