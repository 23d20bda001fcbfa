"""The type in which nets are applied, and what float16 needs beside it."""

from __future__ import annotations

import torch

LOWER = (torch.bfloat16, torch.float16)
"""The types in which nets of float32 may be applied."""


def check(dtype: torch.dtype | None, weights: torch.dtype) -> torch.dtype:
    """Return the type in which nets with such weights are applied; None means the weights' own."""
    possible = (weights, *LOWER) if weights == torch.float32 else (weights,)
    if dtype is not None and dtype not in possible:
        raise ValueError(
            f"dtype must be {' or '.join(map(str, possible))} for nets with weights of {weights}, "
            f"got {dtype!r}; leave it out, or convert the nets."
        )
    return weights if dtype is None else dtype


class LossScale:
    """The factor of float16's losses, so that small gradients do not become zero.

    It doubles after 2,000 finite steps in a row and halves with each that is not (Micikevicius et
    al. 2018, section 3.2), on the device, where no step waits for it. PyTorch's GradScaler does the
    same, but keeps a part of its state in Python, where the replay of a CUDA graph does not reach.

    Attributes:
        state: the scale, and the finite steps since it last changed: (2,) of float32.
    """

    START = 2.0**16
    PATIENCE = 2000

    def __init__(self, device: torch.device) -> None:
        self.state = torch.tensor([self.START, 0.0], device=device)

    def unscale(self, gradients: list[torch.Tensor]) -> None:
        """Divide gradients by the scale, in place."""
        torch._foreach_mul_(gradients, self.state[0].reciprocal())

    def update(self, finite: torch.Tensor) -> None:
        """Take in whether a step was finite: a bool scalar on the device."""
        scale, good = self.state
        good = (good + 1) * finite
        enough = good >= self.PATIENCE
        larger = torch.where(enough & (2 * scale).isfinite(), 2 * scale, scale)
        scale = torch.where(finite, larger, scale / 2)
        self.state.copy_(torch.stack([scale, good * ~enough]))
