"""Every step's statistics, read from the device many steps at a time."""

from __future__ import annotations

import torch

from tinygan.hook import Run
from tinygan.report import Report


class History:
    """Collects reports without waiting for the device, and reads them all at once.

    Examples:
        >>> history = History()
        >>> history.take()
        []
    """

    def __init__(self) -> None:
        self._counters: list[dict[str, int]] = []
        self._reports: list[Report] = []

    def __len__(self) -> int:
        return len(self._reports)

    def add(self, trainer: Run, report: Report) -> None:
        """Remember a step's report and counters."""
        self._counters.append(
            {"step": trainer.step, "epoch": trainer.epoch, "images": trainer.images}
        )
        self._reports.append(report)

    def take(self) -> list[dict[str, float]]:
        """Return a row per step since the last call, by name. Waits for the device, once."""
        if not self._reports:
            return []
        # Steps have other names where a penalty is not due.
        values = iter(torch.cat([report.stacked() for report in self._reports]).tolist())  # sync
        rows: list[dict[str, float]] = [
            {**counters, **{name: next(values) for name in report}}
            for counters, report in zip(self._counters, self._reports)
        ]
        self._counters, self._reports = [], []
        return rows
