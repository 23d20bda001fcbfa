"""Batches of images that lie in memory as bytes: gathered by index, mirrored, scaled.

With nothing to decode, a ``DataLoader`` would only slow it down.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, pairwise
from typing import Any

import torch
from torch.utils.data import Dataset

from tinygan.data.decoding import scale

# Of a GPU's free memory: the rest is for nets and what they compute.
_SHARE = 0.25


def in_memory(dataset: Any) -> tuple[torch.Tensor, torch.Tensor | None] | None:
    """Return ``pixels`` and ``labels`` of a data set that has them all in memory, or None."""
    pixels, labels = getattr(dataset, "pixels", None), getattr(dataset, "labels", None)
    index = getattr(type(dataset), "__getitem__", Dataset.__getitem__)
    # A data set with an [index] of its own may do more there than look the pixels up.
    home = getattr(index, "__module__", "").partition(".")[0]
    if pixels is None or home not in ("torch", "tinygan"):
        return None
    tensors = [each for each in (pixels, labels) if each is not None]
    good = all(isinstance(each, torch.Tensor) and len(each) == len(dataset) for each in tensors)
    if not good or (pixels.dtype, pixels.dim()) != (torch.uint8, 4):
        got = " and ".join(str(getattr(each, "shape", type(each))) for each in tensors)
        raise ValueError(
            "pixels must be a tensor (N, C, H, W) of torch.uint8, and labels, if any, (N, ...), "
            f"with N = {len(dataset)}, got {got}; or give the data set an [index] of its own."
        )
    return pixels, labels


class Gatherer:
    """Gathers batches of pixels (N, C, H, W), and labels if there are any, on a device.

    Images that take at most a quarter of a GPU's free memory are moved there, once. Others stay,
    and each batch is gathered while the GPU computes with the one before.
    """

    def __init__(
        self, pixels: torch.Tensor, labels: torch.Tensor | None, device: torch.device
    ) -> None:
        self.device = device
        self.resident = fits(pixels.nbytes, device)
        self._pixels = pixels.to(device) if self.resident else pixels
        self._labels = None if labels is None else labels.to(device)

    def batches(self, plan: Sequence[torch.Tensor], flips: torch.Tensor | None) -> Iterator[Any]:
        """Give images (B, C, H, W) in [-1, 1], or [images, labels], by the indices of each batch.

        ``flips`` (N,) says which images are mirrored.
        """
        if not plan:
            return
        sizes, order = [len(indices) for indices in plan], torch.cat(list(plan))
        # Moved once for all batches: each of many small copies would wait for the device.
        on_device = order.to(self.device).split(sizes)
        mirrored = None if flips is None else flips[order].to(self.device).split(sizes)
        gathered = (
            (self._pixels.index_select(0, indices) for indices in on_device)
            if self.resident
            else ahead(self._pixels, plan, self.device)
        )
        for number, batch in enumerate(gathered):
            images = scale(batch if mirrored is None else _mirrored(batch, mirrored[number]))
            if self._labels is None:
                yield images
            else:
                yield [images, self._labels.index_select(0, on_device[number])]


def _mirrored(images: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
    # Not images[which], for which the host would have to wait until it knows how many there are.
    return torch.where(which.view(-1, 1, 1, 1), images.flip(-1), images)


def fits(size: int, device: torch.device) -> bool:
    """Return whether so many bytes may stay on a device, whose own memory is the CPU's."""
    return device.type != "cuda" or size <= _SHARE * torch.cuda.mem_get_info(device)[0]


def ahead(
    pixels: torch.Tensor, plan: Sequence[torch.Tensor], device: torch.device
) -> Iterator[torch.Tensor]:
    """Give the pixels of each batch on a device; the next one is gathered while one is used.

    A thread gathers, from the disk where need be. All that concerns the device is done by the
    thread that iterates: calls by another one would spoil a CUDA graph that is being captured.
    """
    gpu = device.type == "cuda"
    with ThreadPoolExecutor(1, "gathering") as thread:

        def gather(indices: torch.Tensor) -> Future[torch.Tensor]:
            # Page-locked, so that the host need not wait for the copy. PyTorch gives the memory to
            # nobody else before that is done.
            shape = len(indices), *pixels.shape[1:]
            buffer = torch.empty(shape, dtype=torch.uint8, device="cpu", pin_memory=gpu)
            return thread.submit(torch.index_select, pixels, 0, indices, out=buffer)

        # The next one is begun when the current one is given.
        for current, _ in pairwise(chain[Any](map(gather, plan), [None])):
            yield current.result().to(device, non_blocking=gpu)
