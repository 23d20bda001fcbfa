"""Every step's statistics, read from the device many steps at a time."""

from __future__ import annotations

import torch

from tinygan.step import STATISTICS, StepReport
from tinygan.trainer import GANTrainer


class History:
    """Collects reports without waiting for the device, and reads them all at once.

    Examples:
        >>> history = History()
        >>> history.take()
        []
    """

    def __init__(self) -> None:
        self._counters: list[dict[str, int]] = []
        self._values: list[torch.Tensor] = []

    def __len__(self) -> int:
        return len(self._values)

    def add(self, trainer: GANTrainer, report: StepReport) -> None:
        """Remember a step's report and counters."""
        self._counters.append(
            {"step": trainer.step, "epoch": trainer.epoch, "images": trainer.images}
        )
        self._values.append(report.stacked())

    def take(self) -> list[dict[str, float]]:
        """Return a row per step since the last call, by name. Waits for the device, once."""
        if not self._values:
            return []
        rows: list[dict[str, float]] = [
            {**counters, **dict(zip(STATISTICS, values))}
            for counters, values in zip(self._counters, torch.stack(self._values).tolist())
        ]
        self._counters, self._values = [], []
        return rows
