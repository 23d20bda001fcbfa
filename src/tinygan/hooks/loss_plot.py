"""The players' losses and all other statistics over the run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from typing_extensions import override

from tinygan._run.checks import require
from tinygan.hook import Hook, Run
from tinygan.hooks.history import History
from tinygan.hooks.progress_bar import is_cost, short
from tinygan.hooks.run_folder import not_fatal, prepared
from tinygan.report import Report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

READ_EVERY = 100  # steps; each reading waits for the device


class LossPlot(Hook):
    """Draw all losses, and below them the other statistics, as ``loss_plot.png``.

    It is drawn at the end of each epoch and of the run.

    Needs matplotlib: ``pip install "tinygan[plots]"``.

    Args:
        folder: where to write.

    Raises:
        ImportError: if matplotlib is not installed.

    Examples:
        >>> plot = LossPlot("runs/faces")
    """

    first_rank_only = True

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        require("matplotlib", extra="plots", wanted_by="LossPlot")
        self.folder = Path(folder)
        self._history = History()
        self._curves: dict[str, list[tuple[int, float]]] = {}
        """Each statistic's values, by its name: pairs of a step and a value."""
        self._figure: Figure | None = None

    @override
    def on_fit_start(self, trainer: Run) -> None:
        prepared(self.folder)

    @override
    def on_step_end(self, trainer: Run, report: Report) -> None:
        self._history.add(trainer, report)
        if len(self._history) >= READ_EVERY:
            self._read()

    @override
    def on_epoch_end(self, trainer: Run) -> None:
        with not_fatal(self.folder / "loss_plot.png"):
            self._draw()

    @override
    def on_fit_end(self, trainer: Run) -> None:
        self._draw()

    def _read(self) -> None:
        for row in self._history.take():  # sync
            step = int(row["step"])
            for name in row.keys() - {"step", "epoch", "images"}:
                self._curves.setdefault(name, []).append((step, row[name]))

    def _draw(self) -> None:
        self._read()
        if self._figure is None:
            # A Figure of its own, without pyplot, needs no display and no global state.
            from matplotlib.figure import Figure

            # One for all pictures: each has megabytes, which Python's collector is slow to find.
            self._figure = Figure(figsize=(10, 8), layout="constrained")
        self._figure.clear()
        above, below = self._figure.subplots(2, 1, sharex=True, height_ratios=(5, 3))
        above.set(title=self._title(), ylabel="Loss")
        below.set(xlabel="iterations", ylabel="Other statistics")
        # The generator's first, as in the tutorial.
        for name in sorted(self._curves, reverse=True):
            steps, values = zip(*self._curves[name])
            axes = above if is_cost(name) else below
            axes.plot(steps, values, label=short(name).removeprefix("Loss_"))
        for axes in (above, below):
            if axes.lines:
                axes.legend()
        self._figure.savefig(self.folder / "loss_plot.png")

    def _title(self) -> str:
        if "loss_generator" in self._curves and "loss_discriminator" in self._curves:
            return "Generator and Discriminator Loss During Training"
        return "Losses During Training"

    @override
    def state_dict(self) -> dict[str, Any]:
        self._read()
        return {
            name: torch.tensor(curve, dtype=torch.float64) for name, curve in self._curves.items()
        }

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._curves = {
            name: [(int(step), value) for step, value in curve.tolist()]
            for name, curve in state.items()
        }
        self._history = History()
