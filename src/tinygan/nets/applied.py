"""How a net is applied in training: in which type, compiled or not, kept or computed again."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tinygan.nets.buffers import Buffers
from tinygan.nets.traits import has_dropout


class Applied:
    """A net, as a training step applies it.

    Args:
        net: the net, on its device.
        dtype: the type in which autocast applies it; None for that of its weights.
        compiled: whether torch.compile makes it faster.

    Attributes:
        compiling: whether passes are by the compiled net, if there is one.
        recompute: whether a pass keeps nothing for the backward pass, which then computes it again.
        layout: the memory format in which the net is given images.
    """

    def __init__(
        self, net: nn.Module, dtype: torch.dtype | None = None, *, compiled: bool = False
    ) -> None:
        weight = next(net.parameters())
        self.net, self.device, self.weights_dtype = net, weight.device, weight.dtype
        self.dtype = self.weights_dtype if dtype is None else dtype
        self.compiled, self.compiling, self.recompute = compiled, compiled, False
        self.layout = torch.contiguous_format
        self._compiled = _compiled(net) if compiled else net
        self._buffers = Buffers([net])

    def __call__(self, *inputs: torch.Tensor) -> Any:
        """Apply the net to inputs of any floating type; results have the type of the weights."""
        if self.recompute and torch.is_grad_enabled():
            return self._recomputed(inputs)
        return self._run(inputs)

    def bare(self, *inputs: torch.Tensor) -> Any:
        """Apply the net, compiled if it is, without autocast: in the type of its weights."""
        given = [as_input(tensor, self.weights_dtype, self.layout) for tensor in inputs]
        return self._widened((self._compiled if self.compiling else self.net)(*given))

    @contextmanager
    def rehearsing(self) -> Iterator[None]:
        """Within the block the net is not compiled; neither it nor global random state changes."""
        self.compiling = False
        buffers = self._buffers.copies()
        devices = [self.device] if self.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices):
                yield
        finally:
            self.compiling = self.compiled
            self._buffers.put(buffers)

    def _run(self, inputs: Sequence[torch.Tensor]) -> Any:
        if self.dtype is self.weights_dtype:
            return self.bare(*inputs)
        # Without the cache: a recorded CUDA graph must convert the weights each time.
        with torch.autocast(self.device.type, self.dtype, cache_enabled=False):
            return self.bare(*inputs)

    def _widened(self, made: Any) -> Any:
        if isinstance(made, torch.Tensor):
            return made.to(self.weights_dtype) if made.is_floating_point() else made
        if isinstance(made, (tuple, list)):
            return tuple(self._widened(each) for each in made)
        return made

    def _recomputed(self, inputs: Sequence[torch.Tensor]) -> Any:
        versions = [parameter._version for parameter in self.net.parameters()]
        before = self._buffers.copies()
        recording = self.device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        if recording and has_dropout(self.net):
            raise RuntimeError("a net with dropout cannot be computed again in a graph")

        @contextmanager
        def again() -> Iterator[None]:
            if versions != [parameter._version for parameter in self.net.parameters()]:
                raise RuntimeError(
                    f"a {type(self.net).__name__} has moved since this was computed; apply it "
                    "again after the yield."
                )
            now = self._buffers.copies()
            self._buffers.put(before)
            try:
                yield
            finally:
                self._buffers.put(now)

        return checkpoint(
            lambda *given: self._run(given),
            *inputs,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), again()),
            # A recording cannot ask for the state of random generators.
            preserve_rng_state=not recording,
        )


def as_input(tensor: torch.Tensor, dtype: torch.dtype, layout: torch.memory_format) -> torch.Tensor:
    """Return a tensor as nets with weights of ``dtype`` take it; images are in a layout."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(
            f"a net must be given tensors, got a {type(tensor).__name__}; unpack a batch first: "
            "real, *more = batch."
        )
    if not tensor.is_floating_point():
        return tensor
    if tensor.dim() == 4:
        tensor = tensor.to(dtype, memory_format=layout)
        return tensor.contiguous() if layout == torch.contiguous_format else tensor
    return tensor.to(dtype)


def _compiled(net: nn.Module) -> Callable[..., Any]:
    # Each size is compiled for itself: code for all sizes is slower.
    compiled = torch.compile(net, dynamic=False)

    def applied(*inputs: torch.Tensor) -> Any:
        with warnings.catch_warnings():
            # The compiler looks at the .grad of what it is given, which fakes do not have.
            warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
            return compiled(*inputs)

    return applied
