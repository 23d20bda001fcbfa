"""Is everything finite? Found out and acted upon on the device, so that no step waits.

float16's loss scale, which steps that are not finite halve, is here too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

MOST_CAUSES = 16
"""Costs and gradients of a step that messages tell apart; the last stands for all beyond it."""


class NonFiniteError(ArithmeticError):
    """Too many steps in a row had losses or gradients that were not finite."""


def total(scalars: Sequence[torch.Tensor], tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return a scalar that is finite only if all scalars and all values of the tensors are.

    Values whose squares overflow, above 1e19 in float32, count as infinite.
    """
    # A sum of squares is NaN or infinite if any value is, and a CPU has it ten times as fast as the
    # largest magnitude. In 16 bits it would overflow for harmless values.
    if not tensors:  # a hook has dropped all gradients of a player
        return torch.stack(list(scalars)).sum()
    kinds = {(tensor.dtype, tensor.device) for tensor in (*scalars, *tensors)}
    if len(kinds) == 1 and tensors[0].dtype in (torch.float32, torch.float64):
        return torch.stack([*scalars, *torch._foreach_norm(list(tensors))]).sum()
    wide = all(tensor.dtype in (torch.float32, torch.float64) for tensor in tensors)
    norm = nn.utils.get_total_norm(tensors, 2.0 if wide else float("inf"))
    dtype = torch.promote_types(norm.dtype, torch.float32)
    return torch.stack([each.to(norm.device, dtype) for each in (*scalars, norm)]).sum()


def is_not(value: torch.Tensor) -> torch.Tensor:
    """Return whether a scalar is not finite: a bool on the device."""
    # NaN - NaN and inf - inf are NaN, which is not 0: two operations, where isfinite takes four.
    return (value - value).ne(0)


class SkippedSteps:
    """Counts on the device the steps that were not finite and so left no trace."""

    def __init__(self, device: torch.device) -> None:
        self._in_row = torch.zeros((), dtype=torch.int64, device=device)
        self._total = torch.zeros((), dtype=torch.int64, device=device)
        self._first = torch.zeros(MOST_CAUSES, dtype=torch.float32, device=device)
        """What was measured in the first step of the last row of bad ones."""
        self._zero = torch.zeros((), dtype=torch.float32, device=device)
        self._reported = 0
        self.causes: list[str] = []
        """What can be not finite, in words, in the order in which a step measures it."""

    def count(self, measured: Sequence[torch.Tensor], bad: torch.Tensor) -> None:
        """Take in a step: scalars in the order of ``causes``, and whether any was not finite."""
        # The last total is not finite if anything was not.
        dtype = self._first.dtype
        given = [m if m.dtype is dtype else m.to(dtype) for m in measured[: MOST_CAUSES - 1]]
        given += [self._zero] * (MOST_CAUSES - 1 - len(given))
        given.append(measured[-1].to(dtype))
        begins = bad & (self._in_row == 0)
        torch.where(begins, torch.stack(given), self._first, out=self._first)
        self._in_row.add_(1).mul_(bad)
        self._total.add_(bad)

    @property
    def in_row(self) -> int:
        """How many of the last steps were skipped. Waits for the device."""
        return int(self._in_row)  # sync

    @property
    def counts(self) -> torch.Tensor:
        """How many were skipped in a row until now, by which cause, and in all: (3,) of int64."""
        cause = (~self._first.isfinite()).to(torch.int64).argmax()
        return torch.stack([self._in_row, cause, self._total])

    def report(self, step: int, limit: int) -> str | None:
        """Return a sentence if steps were skipped since the last call. Waits for the device.

        Raises:
            NonFiniteError: if the last ``limit`` steps or more were skipped.
        """
        in_row, number, total = self.counts.tolist()  # sync
        new, self._reported = total - self._reported, total
        cause = self.causes[min(number, len(self.causes) - 1)] if self.causes else "something was"
        if in_row >= limit:
            raise NonFiniteError(
                f"{cause} not finite at step {step - in_row + 1}, and nothing was finite in the "
                f"{in_row} steps up to step {step}, which were skipped; check the images, the "
                "loss, penalties and hooks that change gradients, or start again with a lower lr."
            )
        if new == 0:
            return None
        return (
            f"{new} of the steps up to step {step} were skipped because a loss or gradients were "
            f"not finite; the last time, {cause} not."
        )

    def load(self, counts: torch.Tensor) -> None:
        """Go on from another run's counts."""
        in_row, cause, total = counts.tolist()
        self._in_row.fill_(in_row)
        self._total.fill_(total)
        self._first.zero_()
        if total:
            self._first[cause] = float("nan")
        self._reported = total


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
        self.state = torch.tensor([self.START, 0.0], dtype=torch.float32, device=device)

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
