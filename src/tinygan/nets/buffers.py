"""Nets' buffers, batch norm's statistics above all, kept so that they can be put back."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


class Buffers:
    """The buffers of some nets. Those of one type are copied together, in three kernels."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        # Walking through a net takes as long as several small kernels. Places, not tensors: some
        # nets replace their buffers.
        self._places = [
            (part._buffers, name)
            for module in modules
            for part in module.modules()
            for name, buffer in part._buffers.items()
            if buffer is not None
        ]
        self._known: list[tuple[int, int]] = []
        self._rows: dict[torch.dtype, list[torch.Tensor]] = {}
        # Written in place: a recorded CUDA graph knows them by their address.
        self._kept: dict[torch.dtype, torch.Tensor] = {}

    def keep(self) -> None:
        """Remember the buffers as they are now."""
        for dtype, rows in self._in_rows().items():
            if dtype in self._kept:
                torch.cat(rows, out=self._kept[dtype])
            else:
                self._kept[dtype] = torch.cat(rows)

    def restore_if(self, wanted: torch.Tensor) -> None:
        """Put back what was kept if ``wanted``, a scalar of bool on the device, is true."""
        for dtype, rows in self._in_rows().items():
            chosen = torch.where(wanted, self._kept[dtype], torch.cat(rows))
            torch.split_with_sizes_copy(chosen, [len(row) for row in rows], out=rows)

    def copies(self) -> dict[torch.dtype, torch.Tensor]:
        """Return the values of the buffers as they are now."""
        return {dtype: torch.cat(rows) for dtype, rows in self._in_rows().items()}

    def put(self, values: dict[torch.dtype, torch.Tensor]) -> None:
        """Give the buffers values that ``copies`` returned."""
        for dtype, rows in self._in_rows().items():
            torch.split_with_sizes_copy(values[dtype], [len(row) for row in rows], out=rows)

    def _in_rows(self) -> dict[torch.dtype, list[torch.Tensor]]:
        """Return the memory of all buffers, each as one row, by type."""
        buffers = [place[name] for place, name in self._places]
        # A hook may have put another tensor there, or another .data into the tensor.
        now = [(id(buffer), 0 if buffer is None else buffer.data_ptr()) for buffer in buffers]
        if now != self._known:
            self._known, self._rows = now, {}
            for buffer in buffers:
                if buffer is not None and _is_dense(buffer):
                    # By .data, unseen by autograd: a graph that has yet to go backward may have
                    # saved a buffer, though it does not use its values.
                    row = buffer.data.as_strided((buffer.numel(),), (1,))
                    self._rows.setdefault(buffer.dtype, []).append(row)
        return self._rows


def _is_dense(tensor: torch.Tensor) -> bool:
    """Return whether a tensor's elements lie side by side in memory, in whatever order."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape)):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return True
