"""FID, KID, precision and recall: torch-fidelity's functions on features of any net.

Only the glue is here. ``pip install "tinygan[metrics]"`` installs the library.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from tinygan._run import checks
from tinygan._run.checks import require


class KernelDistance(NamedTuple):
    """What ``kid`` returns: the mean over its subsets, and their standard deviation.

    Examples:
        >>> mean, std = KernelDistance(0.05, 0.02)
    """

    mean: float
    std: float


class PrecisionRecall(NamedTuple):
    """What ``precision_recall`` returns: two shares in [0, 1].

    Examples:
        >>> precision, recall = PrecisionRecall(0.9, 0.4)
    """

    precision: float
    recall: float


def fid(real: torch.Tensor, fake: torch.Tensor) -> float:
    """Return the Fréchet distance between the features of real and of generated images.

    0 at best, without limit above. It falls as there are more images, and is useless for fewer than
    features: only compare values of the same numbers of images. From Heusel et al. (2017,
    arXiv:1706.08500).

    Args:
        real: features (N, D), see ``features``; N is at least 2.
        fake: features (M, D); M is at least 2.

    Raises:
        ImportError: if torch-fidelity is not installed.
        ValueError: for other shapes, or values that are not finite.

    Examples:
        >>> grid = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> round(fid(grid, grid + 3), 6)
        18.0
    """
    real, fake = _checked(real, fake, at_least=2)
    require("torch_fidelity", extra="metrics", wanted_by="fid")
    from torch_fidelity.metric_fid import fid_features_to_statistics

    moments = []
    for features in (real, fake):
        found = fid_features_to_statistics(features)
        mean = torch.from_numpy(found["mu"])
        # NumPy gives the covariance of a single feature as a number.
        moments += [mean, torch.as_tensor(found["sigma"]).reshape(len(mean), len(mean))]
    return frechet_distance(*moments)


def frechet_distance(
    real_mean: torch.Tensor,
    real_covariance: torch.Tensor,
    fake_mean: torch.Tensor,
    fake_covariance: torch.Tensor,
) -> float:
    """Return FID from the moments of the features, such as those that others have published.

    Args:
        real_mean: (D,).
        real_covariance: (D, D).
        fake_mean: (D,).
        fake_covariance: (D, D).

    Raises:
        ImportError: if torch-fidelity is not installed.
        ValueError: for other shapes.

    Examples:
        >>> frechet_distance(torch.zeros(2), torch.eye(2), torch.ones(2), torch.eye(2))
        2.0
    """
    require("torch_fidelity", extra="metrics", wanted_by="frechet_distance")
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    moments = (real_mean, real_covariance, fake_mean, fake_covariance)
    size = len(real_mean)
    shapes = [tuple(moment.shape) for moment in moments]
    if shapes != [(size,), (size, size)] * 2:
        raise ValueError(
            f"moments must be (D,), (D, D), (D,), (D, D), got {shapes}; give features of one net."
        )
    arrays = [moment.detach().double().cpu().numpy() for moment in moments]
    one, other = (dict(zip(("mu", "sigma"), pair)) for pair in (arrays[:2], arrays[2:]))
    return float(fid_statistics_to_metric(one, other, verbose=False)[KEY_METRIC_FID])


def kid(
    real: torch.Tensor,
    fake: torch.Tensor,
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 2020,
) -> KernelDistance:
    """Return the kernel distance between the features of real and of generated images.

    The squared maximum mean discrepancy with the kernel (x.y / D + 1)^3, unbiased: its mean is 0 at
    best, whatever the number of images, and may be a little below. From Bińkowski et al. (2018,
    arXiv:1801.01401).

    Args:
        real: features (N, D), see ``features``.
        fake: features (M, D).
        subsets: how many random subsets of both are compared.
        subset_size: the features in each, at most N and M.
        seed: chooses the subsets; the default is torch-fidelity's own.

    Raises:
        ImportError: if torch-fidelity is not installed.
        ValueError: for other shapes, values that are not finite, or subsets that are too large.

    Examples:
        >>> cloud = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
        >>> kid(cloud, cloud + 1, subsets=5, subset_size=50).mean > 0.1
        True
    """
    checks.count("subsets", subsets)
    checks.count("subset_size", subset_size, at_least=2)
    real, fake = _checked(real, fake, at_least=2)
    fewest = min(len(real), len(fake))
    if subset_size > fewest:
        raise ValueError(
            f"subset_size must be at most the number of features, {fewest}, got {subset_size}; "
            "use smaller subsets or more images."
        )
    require("torch_fidelity", extra="metrics", wanted_by="kid")
    from torch_fidelity.metric_kid import (
        KEY_METRIC_KID_MEAN,
        KEY_METRIC_KID_STD,
        kid_features_to_metric,
    )

    found = kid_features_to_metric(
        fake, real, kid_subsets=subsets, kid_subset_size=subset_size, rng_seed=seed, verbose=False
    )
    return KernelDistance(float(found[KEY_METRIC_KID_MEAN]), float(found[KEY_METRIC_KID_STD]))


def precision_recall(real: torch.Tensor, fake: torch.Tensor, *, k: int = 3) -> PrecisionRecall:
    """Return how much of what is generated looks real, and how much of what is real is generated.

    A generated image counts for precision if it lies at most as far from some real one as that
    one's k-th neighbour among the real ones; recall is the same with the two exchanged. Only
    compare values of the same numbers of images. From Kynkäänniemi et al. (2019, arXiv:1904.06991).

    Args:
        real: features (N, D), see ``features``; N is above k.
        fake: features (M, D); M is above k.
        k: which neighbour.

    Raises:
        ImportError: if torch-fidelity is not installed.
        ValueError: for other shapes, values that are not finite, or too few features.

    Examples:
        >>> cloud = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
        >>> precision_recall(cloud, cloud + 9)
        PrecisionRecall(precision=0.0, recall=0.0)
    """
    checks.count("k", k)
    real, fake = _checked(real, fake, at_least=k + 1)
    require("torch_fidelity", extra="metrics", wanted_by="precision_recall")
    from torch_fidelity.metric_prc import (
        KEY_METRIC_PRECISION,
        KEY_METRIC_RECALL,
        prc_features_to_metric,
    )

    # The library's first features are the generated ones. Distances are found in parts, or those
    # of 50,000 images would need 20 GB.
    found = prc_features_to_metric(
        fake, real, prc_neighborhood=k, prc_batch_size=2000, save_cpu_ram=True, verbose=False
    )
    return PrecisionRecall(float(found[KEY_METRIC_PRECISION]), float(found[KEY_METRIC_RECALL]))


def quality(real: torch.Tensor, fake: torch.Tensor) -> dict[str, float]:
    """Return ``fid``, ``kid``, ``precision`` and ``recall`` by their names.

    The subsets of KID are ten, of at most 1,000 features.

    Args:
        real: features (N, D), see ``features``; N is above 3.
        fake: features (M, D); M is above 3.

    Raises:
        ImportError: if torch-fidelity is not installed.
        ValueError: for other shapes, or values that are not finite.

    Examples:
        >>> cloud = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
        >>> list(quality(cloud, cloud + 1))
        ['fid', 'kid', 'precision', 'recall']
    """
    near = precision_recall(real, fake)
    size = min(1000, len(real), len(fake))
    return {
        "fid": fid(real, fake),
        "kid": kid(real, fake, subsets=10, subset_size=size).mean,
        "precision": near.precision,
        "recall": near.recall,
    }


def _checked(
    real: torch.Tensor, fake: torch.Tensor, *, at_least: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both as float64 on the CPU, where torch-fidelity computes."""
    if real.dim() != 2 or fake.dim() != 2 or real.shape[1] != fake.shape[1]:
        raise ValueError(
            f"real and fake must be features (N, D) and (M, D), got {tuple(real.shape)} and "
            f"{tuple(fake.shape)}; make both by metrics.features with one net."
        )
    for name, given in (("real", real), ("fake", fake)):
        if len(given) < at_least:
            raise ValueError(
                f"{name} must be at least {at_least} features, got {len(given)}; use more images."
            )
        if not given.isfinite().all():
            raise ValueError(
                f"{name} must be finite, got NaN or infinite values; look at the images."
            )
    return real.detach().double().cpu(), fake.detach().double().cpu()
