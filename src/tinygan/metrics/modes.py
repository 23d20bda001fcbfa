"""How many of the data's modes a generator makes, and how evenly."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from tinygan._run import checks
from tinygan.metrics.applying import features, image_batches


@dataclass(frozen=True)
class ModeCoverage:
    """What samples say of a generator's modes.

    Attributes:
        found: the modes with at least one sample, of high quality where that is known.
        count: the modes there are, K.
        high_quality: the share of samples of high quality, in [0, 1]; None if that is not known.
        reverse_kl: KL(samples || reference) of the samples' modes, in nats; 0 at best.
        floor: what as many perfect samples of the data score on average, in nats.
        samples: how many there were, N.

    Examples:
        >>> one_of_two = mode_coverage(torch.tensor([0, 0, 0]), 2)
        >>> print(f"{one_of_two.found} of {one_of_two.count} modes")
        1 of 2 modes
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
    """Return the mode that each point lies nearest to, and whether it is of high quality.

    That is to lie within three standard deviations of the mode's mean, as in VEEGAN (Srivastava
    et al., 2017, arXiv:1705.07761) and PacGAN (Lin et al., 2018, arXiv:1712.04086). In two
    dimensions 98.9 % of the data itself does.

    Args:
        points: (N, D), finite.
        means: (K, D).
        sd: the standard deviation of every mode in every direction, above 0.

    Returns:
        modes (N,) of int64 in [0, K), and high_quality (N,) of bool.

    Raises:
        ValueError: for other shapes or values.

    Examples:
        >>> nearest_mode(torch.tensor([[0.1], [3.9], [9.0]]), torch.tensor([[0.0], [4.0]]), 0.1)
        (tensor([0, 1, 1]), tensor([ True,  True, False]))
    """
    if points.dim() != 2 or means.dim() != 2 or points.shape[1] != means.shape[1]:
        raise ValueError(
            f"points must be (N, D) and means (K, D), got {tuple(points.shape)} and "
            f"{tuple(means.shape)}; flatten what else there is."
        )
    if not points.isfinite().all():
        raise ValueError(
            "points must be finite, got NaN or infinite values; a generator that makes them has "
            "diverged."
        )
    checks.number("sd", sd, "(0, inf)", example=0.05)
    # In float64, for cdist may take squares apart, of which small distances would keep few digits.
    distances = torch.cdist(points.double(), means.to(points.device).double())
    nearest, modes = distances.min(dim=1)
    return modes, nearest <= 3 * sd


def mode_coverage(
    modes: torch.Tensor,
    count: int,
    *,
    high_quality: torch.Tensor | None = None,
    reference: torch.Tensor | None = None,
    data: torch.Tensor | None = None,
) -> ModeCoverage:
    """Count the modes found, and measure how far from even the samples are among them.

    The reverse KL divergence takes every sample as one of its nearest mode, whatever its quality,
    as PacGAN (arXiv:1712.04086) and VEEGAN (arXiv:1705.07761) do.

    A perfect generator does not score 0: that few samples are never even, and the data may not be
    what it is compared with. ``floor`` is its expected score, exactly. For many samples it is
    KL(data || reference) + (K - 1) / 2N. A generator that scores much less did not sample as the
    data is.

    Args:
        modes: the mode of each sample, (N,) of int64 in [0, K): from ``nearest_mode``, or
            ``classify``.
        count: how many modes there are, K.
        high_quality: (N,) of bool; only such samples find a mode. None: all do.
        reference: the modes' weights to compare with, (K,), of any sum; None for even ones.
        data: those of the data itself, for the floor; None for the reference.

    Raises:
        ValueError: for no samples, modes out of range, or weights that are negative, not finite, or
            all 0.

    Examples:
        >>> coverage = mode_coverage(torch.tensor([0, 0, 1, 1] * 100), 4)
        >>> coverage.found, round(coverage.reverse_kl, 3), round(coverage.floor, 3)
        (2, 0.693, 0.004)
    """
    checks.count("count", count)
    if modes.dim() != 1 or modes.dtype != torch.int64 or len(modes) == 0:
        raise ValueError(
            f"modes must be (N,) of int64 with N of at least 1, got {tuple(modes.shape)} of "
            f"{modes.dtype}; give one number per sample."
        )
    if modes.min() < 0 or modes.max() >= count:
        raise ValueError(
            f"modes must be from 0 to {count - 1}, got {int(modes.min())} to {int(modes.max())}; "
            "count from 0, or give a larger count."
        )
    modes = modes.cpu()
    finders, share = modes, None
    if high_quality is not None:
        if high_quality.shape != modes.shape or high_quality.dtype != torch.bool:
            raise ValueError(
                f"high_quality must be {tuple(modes.shape)} of bool, got "
                f"{tuple(high_quality.shape)} of {high_quality.dtype}; give one per sample."
            )
        finders, share = modes[high_quality.cpu()], float(high_quality.double().mean())
    even = torch.full((count,), 1 / count, dtype=torch.float64)
    expected = even if reference is None else _normalised("reference", reference, count)
    of_data = expected if data is None else _normalised("data", data, count)
    seen = torch.bincount(modes, minlength=count).double() / len(modes)
    return ModeCoverage(
        found=len(finders.unique()),
        count=count,
        high_quality=share,
        reverse_kl=kl(seen, expected),
        floor=kl(of_data, expected) + _kl_of_samples(of_data, len(modes)),
        samples=len(modes),
    )


def kl(p: torch.Tensor, q: torch.Tensor) -> float:
    """Return KL(p || q) in nats of two distributions (K,); infinite where q lacks what p has.

    Examples:
        >>> round(kl(torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5])), 3)
        0.693
    """
    divergence = float((torch.special.xlogy(p, p) - torch.special.xlogy(p, q)).sum())
    return max(0.0, divergence)  # rounding makes it -1e-17 where both are equal


def _normalised(name: str, weights: torch.Tensor, count: int) -> torch.Tensor:
    if weights.shape != (count,):
        raise ValueError(
            f"{name} must be ({count},), got {tuple(weights.shape)}; give one weight per mode."
        )
    weights = weights.double().cpu()
    if not weights.isfinite().all() or weights.min() < 0 or weights.sum() == 0:
        raise ValueError(
            f"{name} must have finite weights of at least 0 that are not all 0, got "
            f"{weights.min():g} to {weights.max():g}; give counts or probabilities."
        )
    return weights / weights.sum()


def _kl_of_samples(p: torch.Tensor, samples: int) -> float:
    """Return the expectation of KL(histogram of N samples of p || p), about (K - 1) / 2N.

    A mode's count X is binomial, and E[X log X] = N p E[log(1 + Y)] for a Y that is binomial with
    one trial less. The approximation would be an eighth too low at one or two samples per mode, and
    twice too high at a tenth of one.
    """
    y = torch.arange(samples, dtype=torch.float64)
    ways = torch.lgamma(y[-1] + 1) - torch.lgamma(y + 1) - torch.lgamma(y[-1] - y + 1)
    total = 0.0
    for value, modes in zip(*p.unique(return_counts=True)):
        if value > 0:
            of_y = ways + torch.special.xlogy(y, value) + torch.special.xlog1py(y[-1] - y, -value)
            log_count = float((of_y.exp() * torch.log1p(y)).sum())
            total += int(modes) * float(value) * (log_count - float((samples * value).log()))
    return total


def classify(
    images: torch.Tensor | Iterable[object], classifier: nn.Module, *, stacked: bool = False
) -> torch.Tensor:
    """Return the class of each image: the largest of the classifier's logits.

    Args:
        images: (N, C, H, W) in [-1, 1], or batches of such.
        classifier: maps images to logits (N, K); applied in evaluation mode.
        stacked: classify each channel by itself, as an image of one channel. The class is then the
            number whose digits, to the base K, are those of the channels: 0 to 999 for the three
            digits of Stacked MNIST (Metz et al., 2017, arXiv:1611.02163).

    Returns:
        (N,) of int64 on the CPU.

    Examples:
        >>> from torch import nn
        >>> brightest = nn.Flatten()  # logits (N, 10) of images that are one row of ten pixels
        >>> digits = torch.eye(10)[[4, 0, 7]].view(1, 3, 1, 10)
        >>> classify(digits, brightest, stacked=True)
        tensor([407])
    """
    if not stacked:
        return features(images, classifier).argmax(1)
    channels = 0
    single = []
    for batch in image_batches(images):
        channels = batch.shape[1]
        single.append(features(batch.flatten(0, 1)[:, None], classifier))
    logits = torch.cat(single)
    digits = logits.argmax(1).view(-1, channels)
    return (digits * logits.shape[1] ** torch.arange(channels - 1, -1, -1)).sum(1)
