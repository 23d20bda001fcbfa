"""CUDA graphs on the CPU: records the operators of a piece with their tensors, and runs them again.

As in a CUDA graph, everything that is not a tensor is recorded as it was, and every tensor by its
memory; nothing is done while recording.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


class CPURecorder:
    """Stands in for ``tinygan._execution.cuda_graphs.CUDAGraphs``."""

    @contextmanager
    def eagerly(self):
        """Within the block, what would wait for a device is noted."""
        waits = []
        with _Waits(waits):
            yield waits

    def record(self, piece: Callable[[], object]) -> Callable[[], None]:
        """Record a piece, and undo what it did to tensors that were there before."""
        operators = _Operators()
        try:
            with operators:
                piece()
        finally:
            operators.undo()
        return operators.replay


@dataclass
class Counts:
    """How many pieces were recorded and replayed, and whether recording is to fail."""

    recorded: int = 0
    replayed: int = 0
    fail: bool = False


class CountingRecorder:
    """Counts what another recorder does."""

    def __init__(self, recorder: Any, counts: Counts) -> None:
        self.recorder, self.counts = recorder, counts
        self.eagerly = recorder.eagerly

    def record(self, piece: Callable[[], object]) -> Callable[[], None]:
        """Record a piece, unless that is to fail: then in its midst."""

        def run() -> None:
            piece()
            if self.counts.fail:
                raise RuntimeError("operation not permitted when stream is capturing")

        recorded = self.recorder.record(run)
        self.counts.recorded += 1

        def replay() -> None:
            self.counts.replayed += 1
            recorded()

        return replay


WAITING = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)


class _Waits(TorchDispatchMode):
    def __init__(self, waits: list[str]) -> None:
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in WAITING:
            self.waits.append(f"{function} would wait for the device")
        return function(*args, **(kwargs or {}))


class _Operators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[torch.Tensor]]] = []
        self.before: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        assert function not in WAITING, function
        for tensor in self._written(function, args, kwargs):
            self.before.setdefault((tensor.data_ptr(), tensor.numel()), (tensor, tensor.clone()))
        made = function(*args, **kwargs)
        if not _is_view(function):
            # Not the tensors themselves: they may be put elsewhere, which a graph does not see.
            kept = pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, (args, kwargs, made))
            self.calls.append((function, *kept[:2], _tensors(kept[2])))
        return made

    def _written(self, function, args, kwargs) -> list[torch.Tensor]:
        schema = function._schema.arguments
        given = dict(zip((a.name for a in schema), args)) | kwargs
        written = [
            given[a.name]
            for a in schema
            if a.name in given and a.alias_info is not None and a.alias_info.is_write
        ]
        if function is torch.ops.aten.native_batch_norm.default:
            written += args[3:5]  # the running statistics, of which its schema says nothing
        return _tensors(written)

    def undo(self) -> None:
        """Give all memory that was there before, and was written, back what it held."""
        made = {
            tensor.untyped_storage().data_ptr()
            for _, args, kwargs, outputs in self.calls
            for tensor in outputs
            if not any(tensor.data_ptr() == own.data_ptr() for own in _tensors((args, kwargs)))
        }
        for tensor, value in reversed(self.before.values()):
            if tensor.untyped_storage().data_ptr() not in made:
                # Autograd must not see it: nothing was done.
                with torch.autograd._unsafe_preserve_version_counter(tensor):
                    tensor.detach().copy_(value)

    @torch.no_grad()
    def replay(self) -> None:
        """Do it all again, into the same memory."""
        for function, args, kwargs, outputs in self.calls:
            for new, old in zip(_tensors(function(*args, **kwargs)), outputs):
                if new is not old and new.data_ptr() != old.data_ptr():
                    old.detach().copy_(new)


def _tensors(tree: object) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _is_view(function) -> bool:
    """Return whether an operator only looks at its input otherwise."""
    returns = function._schema.returns
    return bool(returns) and all(
        r.alias_info is not None and not r.alias_info.is_write for r in returns
    )
