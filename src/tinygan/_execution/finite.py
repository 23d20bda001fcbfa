"""Is everything finite? Asked and acted upon on the device, so that no step waits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

MOST_CAUSES = 16
"""Costs and gradients of a step that messages tell apart; of more, the last stands for the rest."""


class NonFiniteError(ArithmeticError):
    """Too many steps in a row had losses or gradients that were not finite."""


def total(scalars: Sequence[torch.Tensor], tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return a scalar that is finite only if all scalars and all values of the tensors are.

    So large ones that their squares overflow, above 1e19 in float32, count as infinite.

    Examples:
        >>> total([torch.tensor(1.0)], [torch.ones(2), torch.tensor([1.0, float("nan")])])
        tensor(nan)
    """
    # A sum of squares is NaN or infinite if any value is, and a CPU has it ten times as fast as the
    # largest magnitude. In 16 bits it would overflow for values that mean nothing bad.
    kinds = {(tensor.dtype, tensor.device) for tensor in (*scalars, *tensors)}
    if len(kinds) == 1 and tensors[0].dtype in (torch.float32, torch.float64):
        return torch.stack([*scalars, *torch._foreach_norm(list(tensors))]).sum()
    wide = all(tensor.dtype in (torch.float32, torch.float64) for tensor in tensors)
    norm = nn.utils.get_total_norm(tensors, 2.0 if wide else float("inf"))
    dtype = torch.promote_types(norm.dtype, torch.float32)
    return torch.stack([each.to(norm.device, dtype) for each in (*scalars, norm)]).sum()


def is_not(value: torch.Tensor) -> torch.Tensor:
    """Return whether a scalar is not finite: a bool on the device.

    Examples:
        >>> is_not(torch.tensor(float("inf")))
        tensor(True)
    """
    # NaN - NaN and inf - inf are NaN, which is not 0: two operations, where isfinite takes four.
    return (value - value).ne(0)


class Buffers:
    """Nets' buffers, batch norm's statistics above all, kept so that they can be put back.

    Examples:
        >>> norm = nn.BatchNorm1d(1)
        >>> buffers = Buffers([norm])
        >>> buffers.keep()
        >>> _ = norm(torch.tensor([[float("nan")], [1.0]]))
        >>> buffers.restore_if(torch.tensor(True))
        >>> norm.running_mean
        tensor([0.])
    """

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
        self._known: list[torch.Tensor | None] = []
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
        # One tensor for all buffers of a type: three kernels, not three for each buffer.
        for dtype, rows in self._in_rows().items():
            chosen = torch.where(wanted, self._kept[dtype], torch.cat(rows))
            torch.split_with_sizes_copy(chosen, [len(row) for row in rows], out=rows)

    def copies(self) -> dict[torch.dtype, torch.Tensor]:
        """Return the buffers as they are now."""
        return {dtype: torch.cat(rows) for dtype, rows in self._in_rows().items()}

    def put(self, values: dict[torch.dtype, torch.Tensor]) -> None:
        """Give the buffers values that ``copies`` returned."""
        for dtype, rows in self._in_rows().items():
            torch.split_with_sizes_copy(values[dtype], [len(row) for row in rows], out=rows)

    def _in_rows(self) -> dict[torch.dtype, list[torch.Tensor]]:
        """Return the memory of all buffers, each as one row, by their types."""
        now = [place[name] for place, name in self._places]
        if len(now) != len(self._known) or any(a is not b for a, b in zip(now, self._known)):
            self._known, self._rows = now, {}
            for buffer in now:
                if buffer is not None and _is_dense(buffer):
                    # By .data autograd does not see what is written: a graph that has yet to go
                    # backward may have saved a buffer, though it does not use its values.
                    row = buffer.data.as_strided((buffer.numel(),), (1,))
                    self._rows.setdefault(buffer.dtype, []).append(row)
        return self._rows


def _is_dense(tensor: torch.Tensor) -> bool:
    """Return whether a tensor's elements lie one beside the other, in whatever order."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape)):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return True


class SkippedSteps:
    """Counts on the device the steps that were not finite and so left no trace.

    Args:
        device: where the steps are made.
    """

    def __init__(self, device: torch.device) -> None:
        self._in_row = torch.zeros((), dtype=torch.int64, device=device)
        self._total = torch.zeros((), dtype=torch.int64, device=device)
        self._first = torch.zeros(MOST_CAUSES, device=device)
        """What was measured in the first step of the last row of bad ones."""
        self._zero = torch.zeros((), device=device)
        self._told = 0
        self.causes: list[str] = []
        """What can be not finite, in words, in the order in which a step measures it."""

    def count(self, measured: Sequence[torch.Tensor], bad: torch.Tensor) -> None:
        """Take in a step.

        Args:
            measured: scalars, in the order of ``causes``, not finite where the trouble is.
            bad: whether any of them was not finite: a bool on the device.
        """
        # The last total is not finite if anything was not.
        dtype = self._first.dtype
        given = [m if m.dtype is dtype else m.to(dtype) for m in measured[: MOST_CAUSES - 1]]
        given += [self._zero] * (MOST_CAUSES - 1 - len(given))
        given.append(measured[-1].to(dtype))
        row = torch.stack(given)
        begins = bad & (self._in_row == 0)
        torch.where(begins, row, self._first, out=self._first)
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
        """Return a sentence if steps were skipped since the last one. Waits for the device.

        Raises:
            NonFiniteError: if the last ``limit`` steps or more were skipped.
        """
        in_row, number, total = self.counts.tolist()  # sync
        new, self._told = total - self._told, total
        cause = self.causes[min(number, len(self.causes) - 1)] if self.causes else "something was"
        if in_row >= limit:
            raise NonFiniteError(
                f"{cause} not finite at step {step - in_row + 1}, and nothing was finite "
                f"in the {in_row} steps up to {step}, which were skipped; look at the images, "
                "the loss, penalties and hooks that touch gradients, or begin anew with a lower lr."
            )
        if new == 0:
            return None
        return (
            f"{new} steps up to step {step} were skipped, because a loss or gradients were not "
            f"finite; the last time, {cause} not."
        )

    def load(self, counts: torch.Tensor) -> None:
        """Go on from another run's counts."""
        in_row, cause, total = counts.tolist()
        self._in_row.fill_(in_row)
        self._total.fill_(total)
        self._first.zero_()
        if total:
            self._first[cause] = float("nan")
        self._told = total
