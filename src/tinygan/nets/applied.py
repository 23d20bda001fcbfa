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
from tinygan.nets.traits import evaluating, has_dropout, layout


class Applied:
    """A net, as a training step applies it.

    Args:
        net: the net, on its device.
        dtype: the type in which autocast applies it; None for that of its weights.
        compiled: whether torch.compile makes it faster.

    Attributes:
        recompute: whether a pass keeps nothing for the backward pass, which then computes it again.
    """

    def __init__(
        self, net: nn.Module, dtype: torch.dtype | None = None, *, compiled: bool = False
    ) -> None:
        weight = next(net.parameters())
        self.net, self.device, self.weights_dtype = net, weight.device, weight.dtype
        self.dtype = self.weights_dtype if dtype is None else dtype
        self.recompute = False
        self._forward = _compiled(net) if compiled else net
        self._buffers = Buffers([net])

    def __call__(self, *inputs: torch.Tensor) -> Any:
        """Apply the net to inputs of any floating type; results have the type of the weights."""
        if self.recompute and torch.is_grad_enabled():
            return self._recomputed(inputs)
        return self._run(inputs)

    @contextmanager
    def rehearsing(self) -> Iterator[None]:
        """Within the block the net is in evaluation mode and not compiled."""
        before, self._forward = self._forward, self.net
        try:
            with evaluating(self.net):
                yield
        finally:
            self._forward = before

    def _run(self, inputs: Sequence[torch.Tensor]) -> Any:
        given = [as_input(tensor, self.weights_dtype) for tensor in inputs]
        if self.dtype is self.weights_dtype:
            return self._widened(self._forward(*given))
        # Without the cache: a recorded CUDA graph must convert the weights each time.
        with torch.autocast(self.device.type, self.dtype, cache_enabled=False):
            return self._widened(self._forward(*given))

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


def as_input(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return a tensor as nets with weights of ``dtype`` take it; images are channels last."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(
            f"a net must be given tensors, got a {type(tensor).__name__}; unpack a batch first: "
            "real, *more = batch."
        )
    if not tensor.is_floating_point():
        return tensor
    if tensor.dim() == 4:
        return tensor.to(dtype, memory_format=layout(tensor.device))
    return tensor.to(dtype)


def _compiled(net: nn.Module) -> Callable[..., Any]:
    # Each batch size is compiled for itself: a short last batch must not slow down the others.
    compiled = torch.compile(net, dynamic=False)

    def applied(*inputs: torch.Tensor) -> Any:
        with warnings.catch_warnings():
            # The compiler looks at the .grad of what it is given, which fakes do not have.
            warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
            return compiled(*inputs)

    return applied
