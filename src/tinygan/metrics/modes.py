"""How many of the data's modes a generator makes, and how evenly."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tinygan._run import checks


@dataclass(frozen=True)
class ModeCoverage:
    """The result of ``mode_coverage``.

    Attributes:
        found: modes with at least one sample, of high quality where that is known.
        count: all modes, K.
        high_quality: the share of samples of high quality, in [0, 1]; None if not known.
        reverse_kl: KL(samples || reference) over the modes, in nats; 0 at best.
        floor: the expected score of as many perfect samples, in nats.
        samples: the number of samples, N.

    Examples:
        >>> mode_coverage(torch.tensor([0, 0, 0]), 2).found
        1
    """

    found: int
    count: int
    high_quality: float | None
    reverse_kl: float
    floor: float
    samples: int


def nearest_mode(
    points: torch.Tensor, means: torch.Tensor, sd: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each point's nearest mode, and whether the point is of high quality.

    High quality is to lie within three standard deviations of the mode's mean, as in VEEGAN
    (Srivastava et al., 2017, arXiv:1705.07761) and PacGAN (Lin et al., 2018, arXiv:1712.04086).
    Raises ValueError for other shapes, or points that are not finite.

    Args:
        points: (N, D).
        means: (K, D).
        sd: of every mode in every direction, above 0.

    Returns:
        modes (N,) of int64 in [0, K), and high_quality (N,) of bool.

    Examples:
        >>> nearest_mode(torch.tensor([[0.1], [3.9], [9.0]]), torch.tensor([[0.0], [4.0]]), 0.1)
        (tensor([0, 1, 1]), tensor([ True,  True, False]))
    """
    if points.dim() != 2 or points.shape[1:] != means.shape[1:] or not points.isfinite().all():
        raise ValueError(
            f"points must be (N, D) and finite, and means (K, D), got {tuple(points.shape)} and "
            f"{tuple(means.shape)}; flatten other dimensions. NaN comes from a diverged generator."
        )
    checks.number("sd", sd, "(0, inf)")
    # In float64: cdist may expand squares, which costs small distances most of their digits.
    distances = torch.cdist(points.cpu().double(), means.cpu().double())
    nearest, modes = distances.min(dim=1)
    return modes.to(points.device), (nearest <= 3 * sd).to(points.device)


def mode_coverage(
    modes: torch.Tensor,
    count: int,
    *,
    high_quality: torch.Tensor | None = None,
    reference: torch.Tensor | None = None,
    data: torch.Tensor | None = None,
) -> ModeCoverage:
    """Count the modes found, and measure how unevenly the samples are spread over them.

    All samples count for the reverse KL divergence, as in PacGAN and VEEGAN. ``floor`` is what
    perfect samples score, which are never even: about KL(data || reference) + (K - 1) / 2N.

    Args:
        modes: each sample's mode, (N,) of int64 in [0, K): from ``nearest_mode``, or a classifier's
            ``features(images, classifier).argmax(1)``.
        count: the number of modes, K.
        high_quality: (N,) of bool; only these samples find a mode. By default all do.
        reference: weights of the modes to compare with, (K,), of any sum; even by default.
        data: the data's own weights, for the floor; by default the reference.

    Raises:
        ValueError: for no samples, modes out of range, or weights that are no distribution.

    Examples:
        >>> coverage = mode_coverage(torch.tensor([0, 0, 1, 1] * 100), 4)
        >>> coverage.found, round(coverage.reverse_kl, 3), round(coverage.floor, 3)
        (2, 0.693, 0.004)
    """
    if modes.dim() != 1 or modes.dtype != torch.int64 or len(modes) == 0:
        raise ValueError(
            f"modes must be (N,) of int64 with N of at least 1, got {tuple(modes.shape)} of "
            f"{modes.dtype}; give one number per sample."
        )
    check_range("modes", modes, count)
    modes = modes.cpu()
    finders = modes if high_quality is None else modes[high_quality.cpu()]
    even = torch.ones(count, dtype=torch.float64, device="cpu")
    expected = _normalised("reference", even if reference is None else reference, count)
    of_data = expected if data is None else _normalised("data", data, count)
    seen = modes.bincount(minlength=count).double() / len(modes)
    return ModeCoverage(
        found=len(finders.unique()),
        count=count,
        high_quality=None if high_quality is None else len(finders) / len(modes),
        reverse_kl=kl(seen, expected),
        floor=kl(of_data, expected) + _kl_of_samples(of_data, len(modes)),
        samples=len(modes),
    )


def check_range(name: str, values: torch.Tensor, count: int) -> None:
    """Raise ValueError for values outside 0 to ``count - 1``."""
    if len(values) and not (values.min() >= 0 and values.max() < count):
        raise ValueError(
            f"{name} must be from 0 to {count - 1}, got {int(values.min())} to "
            f"{int(values.max())}; count from 0, or give a larger count."
        )


def kl(p: torch.Tensor, q: torch.Tensor) -> float:
    """Return KL(p || q) in nats of two distributions (K,); infinite where only q is 0."""
    divergence = float((torch.special.xlogy(p, p) - torch.special.xlogy(p, q)).sum())
    return max(0.0, divergence)  # rounding makes it -1e-17 where both are equal


def _normalised(name: str, weights: torch.Tensor, count: int) -> torch.Tensor:
    weights = weights.cpu().double()
    total = weights.sum()
    if weights.shape != (count,) or not (weights.min() >= 0 and 0 < total < torch.inf):
        raise ValueError(
            f"{name} must be ({count},), finite, at least 0 and not all 0, got {weights}; give "
            "each mode's count or probability."
        )
    return weights / total


def _kl_of_samples(p: torch.Tensor, samples: int) -> float:
    """Return the expectation of KL(histogram of N samples of p || p), about (K - 1) / 2N.

    A mode's count X is binomial, and E[X log X] = N p E[log(1 + Y)] for a binomial Y with one trial
    less.
    """
    y = torch.arange(samples, dtype=torch.float64, device="cpu")
    ways = torch.lgamma(y[-1] + 1) - torch.lgamma(y + 1) - torch.lgamma(y[-1] - y + 1)
    total = 0.0
    for value, modes in zip(*p.unique(return_counts=True)):
        if value > 0:
            of_y = ways + torch.special.xlogy(y, value) + torch.special.xlog1py(y[-1] - y, -value)
            log_count = float((of_y.exp() * torch.log1p(y)).sum())
            total += int(modes) * float(value) * (log_count - float((samples * value).log()))
    return total
