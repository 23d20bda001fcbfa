"""The number type in which the nets are applied, and what float16 needs besides."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

LOWER = (torch.bfloat16, torch.float16)
"""The types in which nets of float32 may be applied."""


def check(dtype: torch.dtype | None, weights: torch.dtype) -> torch.dtype:
    """Return the type in which nets with such weights are applied; None means the weights' own.

    Raises:
        ValueError: for a type that nets with such weights cannot be applied in.

    Examples:
        >>> check(None, torch.float64)
        torch.float64
    """
    possible = (weights, *LOWER) if weights == torch.float32 else (weights,)
    if dtype is not None and dtype not in possible:
        raise ValueError(
            f"dtype must be {' or '.join(map(str, possible))} for nets with weights of {weights}, "
            f"got {dtype!r}; leave it out for the weights' own, or convert the nets."
        )
    return weights if dtype is None else dtype


def autocast(
    device: torch.device, dtype: torch.dtype, weights: torch.dtype
) -> AbstractContextManager[object]:
    """Return a context in which nets with weights of one type are applied in another.

    Examples:
        >>> with autocast(torch.device("cpu"), torch.bfloat16, torch.float32):
        ...     torch.nn.Linear(2, 1)(torch.zeros(1, 2)).dtype
        torch.bfloat16
    """
    if dtype == weights:
        return nullcontext()
    # Without the cache: a recorded CUDA graph must convert the weights each time.
    return torch.autocast(device.type, dtype, cache_enabled=False)


def loss_scale_for(
    dtype: torch.dtype, weights: torch.dtype, device: torch.device
) -> LossScale | None:
    """Return what nets with such weights need to be applied in a type, if anything.

    Examples:
        >>> loss_scale_for(torch.bfloat16, torch.float32, torch.device("cpu"))
    """
    # It belongs to autocast: nets that are in float16 themselves have none.
    scaled = dtype == torch.float16 and weights != torch.float16
    return LossScale(device) if scaled else None


class LossScale:
    """What float16's losses are multiplied by, so that small gradients do not become zero.

    It doubles after 2,000 finite steps in a row and halves with each that is not (Micikevicius et
    al. 2018, section 3.2), on the device, where no step waits for it. PyTorch's GradScaler does the
    same, but keeps a part of its state in Python, where the replay of a CUDA graph does not reach.

    Args:
        device: where the steps are made.

    Attributes:
        state: the scale, and the finite steps since it last changed: (2,) of float32.

    Examples:
        >>> scale = LossScale(torch.device("cpu"))
        >>> scale.update(torch.tensor(False))
        >>> scale.scaled(torch.tensor(1.0))
        tensor(32768.)
    """

    START = 2.0**16
    PATIENCE = 2000

    def __init__(self, device: torch.device) -> None:
        self.state = torch.tensor([self.START, 0.0], device=device)

    def scaled(self, loss: torch.Tensor) -> torch.Tensor:
        """Return the loss to take gradients of."""
        return loss * self.state[0]

    def unscale(self, gradients: list[torch.Tensor]) -> None:
        """Divide gradients, in place, by what their loss was multiplied with."""
        torch._foreach_mul_(gradients, self.state[0].reciprocal())

    def update(self, finite: torch.Tensor) -> None:
        """Take in whether a step was finite: a scalar of bool on the device."""
        scale, good = self.state
        good = (good + 1) * finite
        enough = good >= self.PATIENCE
        larger = torch.where(enough & (2 * scale).isfinite(), 2 * scale, scale)
        scale = torch.where(finite, larger, scale / 2)
        self.state.copy_(torch.stack([scale, good * ~enough]))
