"""The losses of both players over the run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from typing_extensions import override

from tinygan.extras import require
from tinygan.hook import Hook
from tinygan.hooks.history import History
from tinygan.hooks.run_folder import not_fatal, prepared
from tinygan.step import StepReport
from tinygan.trainer import GANTrainer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

READ_EVERY = 100  # steps; each reading waits for the device


class LossPlot(Hook):
    """Draw both losses as ``loss_plot.png``, at the end of each epoch and of the run.

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
        self._losses: list[tuple[float, float]] = []
        self._figure: Figure | None = None

    @override
    def on_fit_start(self, trainer: GANTrainer) -> None:
        prepared(self.folder)

    @override
    def on_step_end(self, trainer: GANTrainer, report: StepReport) -> None:
        self._history.add(trainer, report)
        if len(self._history) >= READ_EVERY:
            self._read()

    @override
    def on_epoch_end(self, trainer: GANTrainer) -> None:
        with not_fatal(self.folder / "loss_plot.png"):
            self._draw()

    @override
    def on_fit_end(self, trainer: GANTrainer) -> None:
        self._draw()

    def _read(self) -> None:
        self._losses += [(row["loss_g"], row["loss_d"]) for row in self._history.take()]  # sync

    def _draw(self) -> None:
        self._read()
        if self._figure is None:
            # A Figure of its own, without pyplot, needs no display and no global state.
            from matplotlib.figure import Figure

            # One for all pictures: each has megabytes, which Python's collector is slow to find.
            self._figure = Figure(figsize=(10, 5))
        self._figure.clear()
        axes = self._figure.add_subplot(
            title="Generator and Discriminator Loss During Training",
            xlabel="iterations",
            ylabel="Loss",
        )
        axes.plot([g for g, _ in self._losses], label="G")
        axes.plot([d for _, d in self._losses], label="D")
        axes.legend()
        self._figure.savefig(self.folder / "loss_plot.png")

    @override
    def state_dict(self) -> dict[str, Any]:
        self._read()
        return {"losses": torch.tensor(self._losses, dtype=torch.float64).reshape(-1, 2)}

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._losses = [(g, d) for g, d in state["losses"].tolist()]
        self._history = History()
