"""Operations whose second derivatives, which R1 and R2 need, cost no more than they must.

PyTorch takes that of a convolution through its groups one by one, and that of a leaky ReLU, which
is 0, through all layers before it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

SLOPE = 0.2


def leaky_relu(x: torch.Tensor) -> torch.Tensor:
    """Return the leaky ReLU of x, with a slope of 0.2 below 0."""
    made: torch.Tensor = _LeakyReLU.apply(x) if _is_derived(x) else F.leaky_relu(x, SLOPE)
    return made


def convolved(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    stride: int = 1,
    groups: int = 1,
    transposed: bool = False,
) -> torch.Tensor:
    """Return a convolution with padding 1 of x, (N, H, W, C), whose sides divide by the stride."""
    given: list[Any] = [x.permute(0, 3, 1, 2), weight, bias]
    how, kind = (stride, groups, transposed), x.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        given = [None if tensor is None else tensor.to(dtype) for tensor in given]
    x, weight, bias = given
    if _is_derived(x, weight):
        made: torch.Tensor = _OfWeight.apply(x.detach(), weight, bias, *how)
        made = _OfInput.apply(x, weight, made, *how)
    else:
        made = _in_torch(x, weight, bias, *how)
    return made.permute(0, 2, 3, 1)


def _is_derived(*inputs: torch.Tensor) -> bool:
    """Return whether derivatives may be wanted; compilers and exporters are given PyTorch's own."""
    traced = torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None
    return torch.is_grad_enabled() and not traced and any(tensor.requires_grad for tensor in inputs)


def _in_torch(x: Any, weight: Any, bias: Any, *how: Any) -> Any:
    return torch.ops.aten.convolution(x, weight, bias, *_in_full(*how))


def _in_full(stride: int, groups: int, transposed: bool) -> tuple[Any, ...]:
    """Return the rest of what PyTorch's convolution takes."""
    return [stride] * 2, [1, 1], [1, 1], transposed, [0, 0], groups


class _LeakyReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        made = F.leaky_relu(x, SLOPE)
        ctx.save_for_backward(made)
        return made

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        (made,) = ctx.saved_tensors
        return torch.ops.aten.leaky_relu_backward(grad, made.detach(), SLOPE, True)


class _OfWeight(torch.autograd.Function):
    """A convolution as a function of its weight and bias alone.

    It and ``_OfInput`` are two, because autograd leaves out all of a function or nothing: R1 wants
    no gradients of weights at first, and G none of D's at all. Weights' gradients have none.
    """

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any, *how: Any) -> Any:
        ctx.save_for_backward(x, weight)
        ctx.how = how
        return _in_torch(x, weight, bias, *how)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Any) -> Any:
        (x, weight), wanted = ctx.saved_tensors, [False, *ctx.needs_input_grad[1:3]]
        given = grad, x, weight, [grad.shape[1]], *_in_full(*ctx.how), wanted
        _, of_weight, of_bias = torch.ops.aten.convolution_backward(*given)
        return None, of_weight, of_bias, *[None] * 3


class _OfInput(torch.autograd.Function):
    """A convolution, which is already ``made``, as a function of its input alone."""

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, made: Any, *how: Any) -> Any:
        ctx.save_for_backward(weight)
        ctx.how = how
        return made.view_as(made)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        (weight,), (stride, groups, transposed) = ctx.saved_tensors, ctx.how
        back = stride, groups, not transposed
        of_x = _in_torch(grad, weight, None, *back) if ctx.needs_input_grad[0] else None
        return of_x, None, grad, *[None] * 3
