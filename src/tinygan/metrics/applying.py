"""Nets applied to many images: their features, or a classifier's logits."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import torch
from torch import nn

from tinygan._run import batches as batches_of
from tinygan._run import checks
from tinygan.data.decoding import scale
from tinygan.nets.traits import evaluating

CHUNK = 256
"""Images that a net is applied to at a time."""


@torch.no_grad()
def features(
    images: torch.Tensor | Iterable[object], module: nn.Module, *, count: int | None = None
) -> torch.Tensor:
    """Return what a net makes of images, by which ``fid`` and others compare them.

    The net is applied in evaluation mode, on its own device and in its own type, and is left as it
    was. What it returns is flattened.

    Args:
        images: (N, C, H, W) in [-1, 1], or of uint8; or batches of such, which may have labels: a
            loader. In a run of several ranks a loader gives each its part only, unless it is made
            with ``ranks=tinygan.distributed.ALONE``.
        module: maps images to features: ``inception()``, or any other.
        count: take only this many, the first; None for all.

    Returns:
        (N, D) of float64 on the CPU.

    Raises:
        ValueError: for no images, fewer than ``count``, or features that are not finite.

    Examples:
        >>> features(torch.zeros(5, 3, 8, 8), nn.Flatten()).shape
        torch.Size([5, 192])
    """
    if count is not None:
        checks.count("count", count)
    example = next(itertools.chain(module.parameters(), module.buffers()), torch.empty(0))
    dtype = example.dtype if example.is_floating_point() else torch.float32
    found = []
    left = count
    with evaluating(module):
        for batch in image_batches(images):
            taken = batch if left is None else batch[:left]
            for chunk in taken.split(CHUNK):
                made = module(chunk.to(example.device, dtype))
                found.append(made.flatten(1).double().cpu())
            if left is not None:
                left -= len(taken)
                if left == 0:
                    break
    if not found or left:
        given = sum(map(len, found))
        raise ValueError(
            f"images must be at least {count or 1}, got {given}; give more, or a smaller count."
        )
    together = torch.cat(found)
    if not together.isfinite().all():
        raise ValueError(
            "features must be finite, got NaN or infinite values; look at the images and the net."
        )
    return together


def image_batches(images: torch.Tensor | Iterable[object]) -> Iterator[torch.Tensor]:
    """Give the images of one tensor or of batches, (N, C, H, W) in [-1, 1]; bytes are scaled.

    Raises:
        ValueError: for another shape.

    Examples:
        >>> [len(batch) for batch in image_batches([torch.zeros(2, 3, 8, 8)])]
        [2]
    """
    for batch in [images] if isinstance(images, torch.Tensor) else images:
        given = batches_of.images(batch)
        if given.dim() != 4:
            raise ValueError(
                f"images must be (N, C, H, W), got {tuple(given.shape)}; give batches of images."
            )
        for chunk in given.split(CHUNK):
            yield scale(chunk) if chunk.dtype == torch.uint8 else chunk
