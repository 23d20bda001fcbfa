"""Curves of all statistics: as a picture, and in TensorBoard."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch

from tinygan import pictures
from tinygan._run import checks
from tinygan._run.checks import require
from tinygan.hook import Run
from tinygan.hooks.logs import RowsHook, short
from tinygan.hooks.run_folder import FolderHook, not_fatal
from tinygan.report import Report

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch.utils.tensorboard import SummaryWriter


class LossPlot(RowsHook):
    """Draw all losses, and below them the other statistics, as ``loss_plot.png``.

    It is drawn at the end of each epoch and of the run. Raises ImportError without matplotlib:
    ``pip install "tinygan[plots]"``.

    Examples:
        >>> plot = LossPlot("runs/faces")
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        require("matplotlib", extra="plots", wanted_by="LossPlot")
        super().__init__(folder, every=100)
        self._curves: dict[str, list[tuple[int, float]]] = {}
        """Each statistic's steps and values, by its name."""
        self._figure: Figure | None = None

    def _take(self, rows: list[dict[str, float]]) -> None:
        for row in rows:
            for name in row.keys() - {"step", "epoch", "images"}:
                self._curves.setdefault(name, []).append((int(row["step"]), row[name]))

    def on_epoch_end(self, trainer: Run) -> None:
        with not_fatal(self.folder / "loss_plot.png"):
            self._draw()

    def on_fit_end(self, trainer: Run) -> None:
        self._draw()

    def _draw(self) -> None:
        self._read()
        if self._figure is None:
            # A Figure of its own, without pyplot, needs no display and no global state.
            from matplotlib.figure import Figure

            # One for all pictures: each has megabytes, which Python's collector is slow to find.
            self._figure = Figure(figsize=(10, 8), layout="constrained")
        self._figure.clear()
        above, below = self._figure.subplots(2, 1, sharex=True, height_ratios=(5, 3))
        is_gan = self._curves.keys() >= {"loss_generator", "loss_discriminator"}
        whose = "Generator and Discriminator Loss" if is_gan else "Losses"
        above.set(title=f"{whose} During Training", ylabel="Loss")
        below.set(xlabel="iterations", ylabel="Other statistics")
        # The generator's first, as in the tutorial.
        for name in sorted(self._curves, reverse=True):
            axes = above if name.startswith("loss_") else below
            label = short(name).removeprefix("Loss_").removeprefix("loss_")
            axes.plot(*zip(*self._curves[name]), label=label)
        for axes in (above, below):
            if axes.lines:
                axes.legend()
        self._figure.savefig(self.folder / "loss_plot.png")

    def state_dict(self) -> dict[str, Any]:
        self._read()
        return {
            name: torch.tensor(curve, dtype=torch.float64) for name, curve in self._curves.items()
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._curves = {
            name: [(int(step), value) for step, value in curve.tolist()]
            for name, curve in state.items()
        }
        self._unread = []


class TensorBoard(FolderHook):
    """Write statistics and the fixed noise's images for ``tensorboard --logdir runs/faces``.

    They are written every so many steps, in the folder's folder ``tensorboard``; each time waits
    for the device. Raises ImportError without tensorboard: ``pip install "tinygan[tensorboard]"``.

    Examples:
        >>> board = TensorBoard("runs/faces", every=50, images_every=500)
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, every: int = 50, images_every: int = 500
    ) -> None:
        require("tensorboard", extra="tensorboard", wanted_by="TensorBoard")
        super().__init__(folder)
        self.every = checks.count("every", every)
        self.images_every = checks.count("images_every", images_every)
        self._writer: SummaryWriter | None = None

    def on_step_start(self, trainer: Run) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # What an earlier one wrote of later steps is discarded.
            self._writer = SummaryWriter(
                str(self.folder / "tensorboard"), purge_step=trainer.step + 1
            )

    def on_step_end(self, trainer: Run, report: Report) -> None:
        assert self._writer is not None
        with not_fatal(self.folder):
            if trainer.step % self.every == 0:
                for name, value in report.floats().items():  # sync
                    self._writer.add_scalar(name, value, trainer.step)
            if trainer.step % self.images_every == 0:
                self._write_samples(trainer)

    def _write_samples(self, trainer: Run) -> None:
        from torchvision.transforms.functional import pil_to_tensor

        if self._writer is not None:
            picture = pil_to_tensor(pictures.grid(trainer.pictures()))
            self._writer.add_image("samples", picture, trainer.step)

    def on_fit_end(self, trainer: Run) -> None:
        self._write_samples(trainer)
        self._close()

    def on_exception(self, trainer: Run, error: BaseException) -> None:
        self._close()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._close()

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
