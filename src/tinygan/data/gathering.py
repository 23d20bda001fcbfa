"""Batches of images that lie in memory as bytes: gathered by index, mirrored, scaled.

With nothing to decode, a ``DataLoader`` would only slow it down.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, Protocol

import torch
from torch.utils.data import Dataset

from tinygan.data.decoding import scale

# Of a device's free memory: the rest is for nets and what they compute.
_SHARE = 0.25

# Batches that are gathered before they are asked for.
_AHEAD = 2


def in_memory(dataset: object) -> tuple[torch.Tensor, torch.Tensor | None] | None:
    """Return ``pixels`` and ``labels`` of a data set that has all its images in memory, or None.

    Raises:
        ValueError: for pixels that are no images, or pixels or labels of another number than the
            data set's length.

    Examples:
        >>> in_memory([1, 2, 3]) is None
        True
    """
    pixels, labels = getattr(dataset, "pixels", None), getattr(dataset, "labels", None)
    index = getattr(type(dataset), "__getitem__", Dataset.__getitem__)
    # A data set with an [index] of its own may do more there than look the pixels up.
    own = getattr(index, "__module__", "").partition(".")[0] not in ("torch", "tinygan")
    if pixels is None or own:
        return None
    if not isinstance(pixels, torch.Tensor) or pixels.dtype != torch.uint8 or pixels.dim() != 4:
        kind = type(pixels).__name__
        if isinstance(pixels, torch.Tensor):
            kind = f"{pixels.dtype} of {pixels.dim()} axes"
        raise ValueError(
            f"pixels must be a tensor (N, C, H, W) of torch.uint8, got {kind}; convert them, or "
            "give the data set an [index] of its own."
        )
    size = len(dataset)  # type: ignore[arg-type]
    for name, tensor in (("pixels", pixels), ("labels", labels)):
        if tensor is not None and (not isinstance(tensor, torch.Tensor) or len(tensor) != size):
            got = len(tensor) if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            raise ValueError(
                f"{name} must be a tensor of as many rows as the data set has images, {size}, got "
                f"{got}; make its len() and its {name} agree."
            )
    return pixels, labels


class Gatherer:
    """Gathers batches of images, and labels if there are any, on a device.

    If the images take at most a quarter of a GPU's free memory they are moved there, once. Else
    they stay, and batches are gathered and sent while the GPU computes.

    Args:
        pixels: (N, C, H, W) of uint8, on the CPU.
        labels: (N, ...), what goes with each image, or None.
        device: where batches are wanted.

    Examples:
        >>> pixels = torch.zeros(3, 1, 8, 8, dtype=torch.uint8)
        >>> gatherer = Gatherer(pixels, None, torch.device("cpu"))
        >>> [batch.shape for batch in gatherer.batches([torch.tensor([2, 0])], None)]
        [torch.Size([2, 1, 8, 8])]
    """

    def __init__(
        self, pixels: torch.Tensor, labels: torch.Tensor | None, device: torch.device
    ) -> None:
        self.device = device
        self._lane: Lane | None = None
        if _is_gpu(device) and not _fits(pixels, device):
            self._lane = SideStream(device)
        self._pixels = pixels if self._lane else pixels.to(device)
        self._labels = None if labels is None else labels.to(device)

    def batches(self, plan: Sequence[torch.Tensor], flips: torch.Tensor | None) -> Iterator[Any]:
        """Give the batches of a plan.

        Args:
            plan: the indices of each batch, int64.
            flips: (N,) of bool, which images are mirrored, or None.

        Returns:
            An iterator over images (B, C, H, W), float32 in [-1, 1], or [images, labels].
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
            chosen = pixels if mirrored is None else _mirrored(pixels, mirrored[number])
            images = scale(chosen)
            if self._labels is None:
                yield images
            else:
                yield [images, self._labels.index_select(0, on_device[number])]


def _is_gpu(device: torch.device) -> bool:
    return device.type == "cuda"


def _fits(pixels: torch.Tensor, device: torch.device) -> bool:
    free, _ = torch.cuda.mem_get_info(device)
    return pixels.nbytes <= _SHARE * free


def _mirrored(images: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
    # Not images[which], for which the host would have to wait until it knows how many there are.
    return torch.where(which.view(-1, 1, 1, 1), images.flip(-1), images)


class Lane(Protocol):
    """A way to a device on which copies run beside what the device computes."""

    def buffer(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Return memory on the host from which copies can be sent, of uint8."""

    def send(self, host: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """Begin to copy; return the tensor to be, and an event for ``receive`` and ``wait``."""

    def receive(self, sent: torch.Tensor, event: Any) -> torch.Tensor:
        """Return the tensor for use in what the device is told to compute from here on."""

    def wait(self, event: Any) -> None:
        """Wait until the copy is done and the memory on the host may be written again."""


class SideStream:
    """The lane to a CUDA device: page-locked memory and a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def buffer(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Return page-locked memory."""
        return torch.empty(shape, dtype=torch.uint8, pin_memory=True)

    def send(self, host: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event]:
        """Copy on the side stream, from whose memory pool the tensor is taken."""
        with torch.cuda.stream(self._stream):
            sent = host.to(self._device, non_blocking=True)
            event = torch.cuda.Event()
            event.record(self._stream)
        return sent, event

    def receive(self, sent: torch.Tensor, event: torch.cuda.Event) -> torch.Tensor:
        """Let the current stream wait for the copy; the host does not."""
        current = torch.cuda.current_stream(self._device)
        current.wait_event(event)
        # Else the next copy might be given the memory while this one is still computed with.
        sent.record_stream(current)
        return sent

    def wait(self, event: torch.cuda.Event) -> None:
        """Wait on the host; for a copy that was sent a batch ago this is no time."""
        event.synchronize()


def sent_ahead(
    pixels: torch.Tensor, plan: Sequence[torch.Tensor], lane: Lane
) -> Iterator[torch.Tensor]:
    """Give the images of each batch on a device, (B, C, H, W) of uint8.

    One thread gathers two batches ahead, which reads them from the disk where need be, and the
    next batch is on its way while this one is used. All that concerns the device is done by the
    thread that iterates: calls by another one would spoil a CUDA graph that is being captured.

    Args:
        pixels: (N, C, H, W) of uint8, on the host.
        plan: the indices of each batch.
        lane: the way to the device.
    """
    rows = max(len(indices) for indices in plan)
    # For those that are gathered ahead, the one that is on its way, and the one that is used.
    free = deque(lane.buffer((rows, *pixels.shape[1:])) for _ in range(_AHEAD + 2))
    coming = iter(plan)
    with ThreadPoolExecutor(1, "gathering") as thread:

        def gather(indices: torch.Tensor) -> tuple[torch.Tensor, Future[torch.Tensor]]:
            buffer = free.popleft()
            return buffer, thread.submit(_gather, pixels, indices, buffer)

        gathering = deque(map(gather, islice(coming, _AHEAD)))
        sent: deque[tuple[torch.Tensor, torch.Tensor, Any]] = deque()
        while gathering or sent:
            if gathering:
                buffer, gathered = gathering.popleft()
                sent.append((buffer, *lane.send(gathered.result())))
                gathering.extend(map(gather, islice(coming, 1)))
            if len(sent) == 2 or not gathering:
                buffer, images, event = sent.popleft()
                yield lane.receive(images, event)
                lane.wait(event)
                free.append(buffer)


def _gather(pixels: torch.Tensor, indices: torch.Tensor, buffer: torch.Tensor) -> torch.Tensor:
    return torch.index_select(pixels, 0, indices, out=buffer[: len(indices)])
