"""Batches of images that lie in memory as bytes: gathered by index, mirrored, scaled.

With nothing to decode, a ``DataLoader`` would only slow it down.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch.utils.data import Dataset

from tinygan.data.decoding import scale

# Of a device's free memory: the rest is for nets and what they compute.
_SHARE = 0.25

# Batches that are gathered before they are asked for.
_AHEAD = 2


def in_memory(dataset: object) -> tuple[torch.Tensor, torch.Tensor | None] | None:
    """Return ``pixels`` and ``labels`` of a data set that has them all in memory, or None."""
    pixels, labels = getattr(dataset, "pixels", None), getattr(dataset, "labels", None)
    index = getattr(type(dataset), "__getitem__", Dataset.__getitem__)
    # A data set with an [index] of its own may do more there than look the pixels up.
    own = getattr(index, "__module__", "").partition(".")[0] not in ("torch", "tinygan")
    if pixels is None or own:
        return None
    size = len(dataset)  # type: ignore[arg-type]
    good = isinstance(pixels, torch.Tensor) and pixels.dtype == torch.uint8 and pixels.dim() == 4
    for name, given in {"pixels": pixels, "labels": labels}.items():
        if given is None or (isinstance(given, torch.Tensor) and len(given) == size and good):
            continue
        got = type(given).__name__
        if isinstance(given, torch.Tensor):
            got = f"{tuple(given.shape)} of {given.dtype}"
        raise ValueError(
            f"{name} must be a tensor of {size} rows, as many as the data set has images: pixels "
            f"(N, C, H, W) of torch.uint8, labels (N, ...); got {got}; convert them, or give the "
            "data set an [index] of its own."
        )
    return pixels, labels


class Gatherer:
    """Gathers batches of pixels (N, C, H, W), and labels if there are any, on a device.

    Images that take at most a quarter of a GPU's free memory are moved there, once. Others stay,
    and batches are gathered and sent while the GPU computes.
    """

    def __init__(
        self, pixels: torch.Tensor, labels: torch.Tensor | None, device: torch.device
    ) -> None:
        self.device = device
        self._lane = None
        if _is_gpu(device) and pixels.nbytes > _SHARE * torch.cuda.mem_get_info(device)[0]:
            self._lane = Lane(device)
        self._pixels = pixels if self._lane else pixels.to(device)
        self._labels = None if labels is None else labels.to(device)

    def batches(self, plan: Sequence[torch.Tensor], flips: torch.Tensor | None) -> Iterator[Any]:
        """Give images (B, C, H, W) in [-1, 1], or [images, labels], by the indices of each batch.

        ``flips`` (N,) says which images are mirrored.
        """
        if not plan:
            return
        sizes = [len(indices) for indices in plan]
        order = torch.cat(list(plan))
        # Moved once for all batches: each of many small copies would wait for the device.
        on_device = order.to(self.device).split(sizes)
        mirrored = None if flips is None else flips[order].to(self.device).split(sizes)
        gathered = (
            (self._pixels.index_select(0, indices) for indices in on_device)
            if self._lane is None
            else sent_ahead(self._pixels, plan, self._lane)
        )
        for number, pixels in enumerate(gathered):
            images = scale(pixels if mirrored is None else _mirrored(pixels, mirrored[number]))
            if self._labels is None:
                yield images
            else:
                yield [images, self._labels.index_select(0, on_device[number])]


def _is_gpu(device: torch.device) -> bool:
    return device.type == "cuda"


def _mirrored(images: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
    # Not images[which], for which the host would have to wait until it knows how many there are.
    return torch.where(which.view(-1, 1, 1, 1), images.flip(-1), images)


class Lane:
    """A way to a CUDA device on which copies run beside what the device computes."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def buffer(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Return page-locked memory, which PyTorch gives to nobody else until it was copied."""
        return torch.empty(shape, dtype=torch.uint8, pin_memory=True)

    def send(self, host: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event]:
        """Begin to copy, on a stream from whose memory pool the tensor is taken."""
        with torch.cuda.stream(self._stream):
            sent = host.to(self._device, non_blocking=True)
            return sent, self._stream.record_event()

    def receive(self, sent: torch.Tensor, event: torch.cuda.Event) -> torch.Tensor:
        """Let the current stream wait for the copy; the host does not."""
        current = torch.cuda.current_stream(self._device)
        current.wait_event(event)
        # Else the next copy might be given the memory while this one is still computed with.
        sent.record_stream(current)
        return sent


def sent_ahead(
    pixels: torch.Tensor, plan: Sequence[torch.Tensor], lane: Lane
) -> Iterator[torch.Tensor]:
    """Give the pixels of each batch on a device.

    One thread gathers two batches ahead, which reads them from the disk where need be, and the
    next batch is on its way while one is used. All that concerns the device is done by the
    thread that iterates: calls by another one would spoil a CUDA graph that is being captured.
    """
    with ThreadPoolExecutor(1, "gathering") as thread:
        gathering, sent = deque[Any](), deque[Any]()
        for indices in [*plan, *[None] * (_AHEAD + 1)]:
            if len(gathering) == _AHEAD or (indices is None and gathering):
                sent.append(lane.send(gathering.popleft().result()))
            if indices is not None:
                buffer = lane.buffer((len(indices), *pixels.shape[1:]))
                gathering.append(thread.submit(torch.index_select, pixels, 0, indices, out=buffer))
            if len(sent) == 2 or (sent and not gathering):
                yield lane.receive(*sent.popleft())
