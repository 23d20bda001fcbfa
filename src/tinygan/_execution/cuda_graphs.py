"""CUDA graphs: what a piece of work asks of the device, recorded once and then replayed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import torch

WAITS = "called a synchronizing CUDA operation"
"""What PyTorch's debug mode says of each operation that waits for the device."""

Replay: TypeAlias = Callable[[], None]
"""Runs once more what was recorded."""


class CUDAGraphs:
    """Records on a CUDA device.

    All recordings share one pool of memory. They may, because a step is replayed as a whole, in the
    order in which it was recorded, before the next begins, and what outlives it is kept alive. When
    all recordings are dropped, the pool must be dropped too.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    @contextmanager
    def eagerly(self) -> Iterator[list[str]]:
        """Within the block, work goes to the stream that records, after all other work.

        The list is filled with what waits for the device, which a graph cannot.
        """
        others = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(others)
        waits: list[str] = []
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as told, torch.cuda.stream(self._stream):
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield waits
            finally:
                torch.cuda.set_sync_debug_mode(before)
        others.wait_stream(self._stream)
        for warning in told:
            if WAITS in str(warning.message):
                waits.append(str(warning.message))
            else:
                warnings.warn_explicit(
                    warning.message, warning.category, warning.filename, warning.lineno
                )

    def record(self, piece: Callable[[], object]) -> Replay:
        """Record what a piece asks of the device as a CUDA graph, without doing it."""
        graph = torch.cuda.CUDAGraph()
        # When a recording fails, torch.cuda.graph leaves its stream the current one.
        with (
            torch.cuda.stream(torch.cuda.current_stream(self._stream.device)),
            # Other threads, which fetch the next batch, may do what a recording must not.
            torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ),
        ):
            piece()
        return graph.replay


def recorder_for(device: torch.device) -> CUDAGraphs | None:
    """Return what records on a device, or None if nothing can."""
    return CUDAGraphs(device) if device.type == "cuda" else None
