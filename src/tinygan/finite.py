"""Is everything finite? Asked and acted upon on the device, so that no step waits."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


class NonFiniteError(ArithmeticError):
    """Too many steps in a row had losses or gradients that were not finite."""


def all_finite(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """Return whether all values are finite: a scalar of bool on their device.

    So large ones that their squares overflow, above 1e19 in float32, count as infinite.

    Examples:
        >>> all_finite([torch.ones(2), torch.tensor([1.0, float("nan")])])
        tensor(False)
    """
    tensors = list(tensors)
    # A sum of squares is NaN or infinite if any value is, and a CPU has it ten times as fast as the
    # largest magnitude. In 16 bits it would overflow for values that mean nothing bad.
    wide = all(tensor.dtype in (torch.float32, torch.float64) for tensor in tensors)
    return nn.utils.get_total_norm(tensors, 2.0 if wide else float("inf")).isfinite()


class Buffers:
    """A net's buffers, batch norm's statistics above all, kept so that they can be taken back.

    Examples:
        >>> norm = nn.BatchNorm1d(1)
        >>> buffers = Buffers(norm)
        >>> buffers.keep()
        >>> _ = norm(torch.tensor([[float("nan")], [1.0]]))
        >>> buffers.restore_unless(torch.tensor(False))
        >>> norm.running_mean
        tensor([0.])
    """

    def __init__(self, module: nn.Module) -> None:
        # Walking through a net takes as long as several small kernels. Places, not tensors: some
        # nets replace their buffers.
        self._places = [
            (part._buffers, name)
            for part in module.modules()
            for name, buffer in part._buffers.items()
            if buffer is not None
        ]
        # Written in place: a recorded CUDA graph knows them by their address.
        self._kept: dict[torch.dtype, torch.Tensor] = {}

    def keep(self) -> None:
        """Remember the buffers as they are now."""
        for dtype, buffers in self._of_type().items():
            if dtype in self._kept:
                self._kept[dtype].copy_(_flat(buffers))
            else:
                self._kept[dtype] = _flat(buffers)

    def restore_unless(self, finite: torch.Tensor) -> None:
        """Put back what was kept if ``finite``, a scalar of bool on the device, is false."""
        # One tensor for all buffers of a type: three kernels, not three for each buffer.
        for dtype, buffers in self._of_type().items():
            chosen = torch.where(finite, _flat(buffers), self._kept[dtype])
            parts = chosen.split([b.numel() for b in buffers])
            # Not the tensors that record how they were computed: their values alone go back.
            written = [b.detach() for b in buffers]
            torch._foreach_copy_(written, [part.view(b.shape) for part, b in zip(parts, buffers)])

    def _of_type(self) -> dict[torch.dtype, list[torch.Tensor]]:
        found: dict[torch.dtype, list[torch.Tensor]] = {}
        for place, name in self._places:
            buffer = place[name]
            assert buffer is not None
            found.setdefault(buffer.dtype, []).append(buffer)
        return found


def _flat(tensors: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


CAUSES = (
    "the discriminator's loss was",
    "the discriminator's gradients were",
    "the generator's loss was",
    "the generator's gradients were",
)
"""What can be not finite, in the order in which a step computes it."""


class SkippedSteps:
    """Counts on the device the steps that were not finite and so left no trace.

    Args:
        device: where the steps are made.
    """

    def __init__(self, device: torch.device) -> None:
        # In a row until now; the first cause in this row, as an index of CAUSES; in all.
        self.counts = torch.zeros(3, dtype=torch.int64, device=device)
        self._told = 0

    def count(self, finite: torch.Tensor) -> None:
        """Take in a step: for each of CAUSES whether it was finite, (4,) of bool."""
        in_row, cause, total = self.counts
        bad = ~finite.all()
        first = (~finite).to(torch.int64).argmax()
        new = [
            (in_row + 1) * bad,
            torch.where(bad & (in_row == 0), first, cause),
            total + bad,
        ]
        self.counts.copy_(torch.stack(new))

    @property
    def in_row(self) -> int:
        """How many of the last steps were skipped. Waits for the device."""
        return int(self.counts[0])  # sync

    def report(self, step: int, limit: int) -> str | None:
        """Return a sentence if steps were skipped since the last one. Waits for the device.

        Raises:
            NonFiniteError: if the last ``limit`` steps or more were skipped.
        """
        in_row, cause, total = self.counts.tolist()  # sync
        new, self._told = total - self._told, total
        if in_row >= limit:
            raise NonFiniteError(
                f"{CAUSES[cause]} not finite at step {step - in_row + 1}, and nothing was finite "
                f"in the {in_row} steps up to {step}, which were skipped; look at the images, "
                "the loss, penalties and hooks that touch gradients, or begin anew with a lower lr."
            )
        if new == 0:
            return None
        return (
            f"{new} steps up to step {step} were skipped, because a loss or gradients were not "
            f"finite; the last time, {CAUSES[cause]} not."
        )

    def load(self, counts: torch.Tensor) -> None:
        """Go on from another run's counts."""
        self.counts.copy_(counts)
        self._told = int(counts[2])
