"""Convolutions with second derivatives as fast as the first."""

from __future__ import annotations

from typing import Any

import torch


def convolved(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, how: tuple[Any, ...]
) -> torch.Tensor:
    """Return ``torch.convolution`` of x (N, C, H, W); in autocast's type, as other convolutions.

    ``how`` is its stride, padding, dilation, whether it is transposed, output padding and groups.
    Sizes must divide by the stride.
    """
    given: list[Any] = [x, weight, bias]
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        given = [None if tensor is None else tensor.to(dtype) for tensor in given]
    # Without gradients, so that a traced net has PyTorch's own operation.
    wanted = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given)
    apply: Any = _Convolution.apply if wanted else _of_torch
    made: torch.Tensor = apply(*given, how)
    return made


def _of_torch(x: Any, weight: Any, bias: Any, how: Any) -> Any:
    return torch.ops.aten.convolution(x, weight, bias, *how)


def _back(how: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return how the gradient of the input is convolved: transposed, or no longer so."""
    stride, padding, dilation, transposed, *rest = how
    return stride, padding, dilation, not transposed, *rest


class _Convolution(torch.autograd.Function):
    """A convolution, whose derivatives are two more functions of all groups at once.

    The derivatives of PyTorch's own gradients, which R1 and R2 need, go from group to group.
    """

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any, how: Any) -> Any:
        ctx.save_for_backward(x, weight)
        ctx.how = how
        return _of_torch(x, weight, bias, how)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        (x, weight), how = ctx.saved_tensors, ctx.how
        of_x, of_weight, of_bias, _ = ctx.needs_input_grad
        return (
            _Convolution.apply(grad, weight, None, _back(how)) if of_x else None,
            _OfWeight.apply(x, grad, weight, how) if of_weight else None,
            grad.sum((0, 2, 3)) if of_bias else None,
            None,
        )


class _OfWeight(torch.autograd.Function):
    """The gradient of a convolution's weight, as a function of its input and its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Any, grad: Any, weight: Any, how: Any) -> Any:
        ctx.save_for_backward(x, grad)
        ctx.how = how
        wanted = [False, True, False]
        return torch.ops.aten.convolution_backward(grad, x, weight, None, *how, wanted)[1]

    @staticmethod
    def backward(ctx: Any, change: Any) -> Any:
        (x, grad), how = ctx.saved_tensors, ctx.how
        of_x, of_grad, *_ = ctx.needs_input_grad
        return (
            _Convolution.apply(grad, change, None, _back(how)) if of_x else None,
            _Convolution.apply(x, change, None, how) if of_grad else None,
            None,
            None,
        )
