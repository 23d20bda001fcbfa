"""Statistics in the terminal, in files, as curves and in TensorBoard."""

from __future__ import annotations

import json
import os
import time
from array import array
from contextlib import suppress
from math import isfinite, nan
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from tinygan import pictures
from tinygan._run import checks, disk, notebook
from tinygan.hook import Hook, Run
from tinygan.hooks.run_folder import FolderHook, LogHook, not_fatal
from tinygan.report import COUNTERS, Report

TUTORIAL = {
    "loss_discriminator": "Loss_D: {:.4f}",
    "loss_generator": "Loss_G: {:.4f}",
    "d_real": "D(x): {:.4f}",
    "d_fake": "D(G(z)): {:.4f}",
    "d_fake_after": "{:.4f}",
}

MAX_POINTS = 1000


class TutorialLog(LogHook):
    r"""Print the tutorial's line at an epoch's first step and every so many steps from there.

    It is the tutorial's to the character, with ``?`` for a count that is not known. It needs the
    statistics of ``algorithms.gan``::

        [0/5][50/1583]\tLoss_D: 0.3567\tLoss_G: 12.2064\tD(x): 0.9364\tD(G(z)): 0.1409 / 0.0000

    With a ``folder`` the lines are also written to ``log.txt``. Each waits for the device.

    Examples:
        >>> log = TutorialLog("runs/faces", every=50)
    """

    _needs_folder = False

    def __init__(self, folder: str | os.PathLike[str] | None = None, *, every: int = 50) -> None:
        super().__init__(folder, "log.txt")
        self.every = checks.count("every", every)

    def on_step_start(self, trainer: Run) -> None:
        if trainer.step == 0:
            self._print("Starting Training Loop...")

    def on_step_end(self, trainer: Run, report: Report) -> None:
        index = trainer.batch - 1  # the tutorial counts from 0
        if index % self.every != 0:
            return
        values = torch.stack([report[name] for name in TUTORIAL]).tolist()  # sync
        *shown, after = (form.format(value) for form, value in zip(TUTORIAL.values(), values))
        epochs, batches = trainer.total_epochs, trainer.batches_per_epoch
        place = f"[{trainer.epoch}/{epochs or '?'}][{index}/{batches or '?'}]"
        self._print("\t".join([place, *shown]) + f" / {after}")

    def _print(self, line: str) -> None:
        tqdm.write(line)  # prints above a progress bar, if there is one
        self._write([line])


class ProgressBar(Hook):
    """Show steps done, speed, time left and statistics, in a terminal or a notebook.

    Every so many steps it reads the statistics, for which it waits for the device.

    Examples:
        >>> bar = ProgressBar(every=20)
    """

    first_rank_only = True

    def __init__(self, *, every: int = 20) -> None:
        self.every = checks.count("every", every)
        self._bar: Any = None

    def on_fit_start(self, trainer: Run) -> None:
        self._bar = notebook.bar(total=trainer.total_steps, initial=trainer.step, unit="step")

    def on_step_end(self, trainer: Run, report: Report) -> None:
        self._bar.update(trainer.step - self._bar.n)  # less than 0 if the run has gone back
        if trainer.step % self.every == 0 and not self._bar.disable:
            # Losses first: a narrow terminal cuts off the rest. (It waits for the device.)
            values = sorted(report.floats().items(), key=lambda v: not v[0].startswith("loss_"))
            self._bar.set_postfix({name: f"{v:.3f}" for name, v in values}, refresh=False)

    def on_fit_end(self, trainer: Run) -> None:
        self._close()

    def on_exception(self, trainer: Run, error: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()


class JSONLog(LogHook):
    """Write every step's counters and statistics to ``log.jsonl``, one JSON object per line.

    A value that is not finite is null. There is no time in it, so two runs with one seed write the
    same bytes. Lines are written every so many steps and at an epoch's end, each time with one wait
    for the device.

    Examples:
        >>> log = JSONLog("runs/faces", every=50)
    """

    def __init__(self, folder: str | os.PathLike[str], *, every: int = 50) -> None:
        super().__init__(folder, "log.jsonl")
        self.every = checks.count("every", every)
        # Steps' counters and statistics, of which the latter are still on the device.
        self._unread: list[tuple[dict[str, int], Report]] = []

    def on_step_end(self, trainer: Run, report: Report) -> None:
        self._unread.append(({name: getattr(trainer, name) for name in COUNTERS}, report))
        if len(self._unread) >= self.every:
            self._read()

    def on_epoch_end(self, trainer: Run) -> None:
        self._read()

    def on_fit_end(self, trainer: Run) -> None:
        self._read()
        self._flush()

    def on_exception(self, trainer: Run, error: BaseException) -> None:
        self._read()

    def _read(self) -> None:
        unread, self._unread = self._unread, []
        if unread:
            # Not one table: a penalty is only in the reports of the steps in which it is due.
            values = iter(torch.cat([report.stacked() for _, report in unread]).tolist())  # sync
            self._write(
                as_json(counters | {name: next(values) for name in report})
                for counters, report in unread
            )

    def state_dict(self) -> dict[str, Any]:
        self._read()
        return super().state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._unread = []


def as_json(row: dict[str, float]) -> str:
    """Return a row as one line of JSON, with null for infinite values and NaN."""
    return json.dumps({name: value if isfinite(value) else None for name, value in row.items()})


class LossPlot(FolderHook):
    """Draw all losses, and below them the other statistics, as ``loss_plot.png``.

    It is drawn from the ``log.jsonl`` of ``JSONLog`` at the end of the run, and of epochs if that
    takes a twentieth of the time or less. What is not finite is a gap; of more than 1,000 values
    the means of finite neighbours are shown. Raises ImportError without matplotlib,
    ``pip install "tinygan[plots]"``, and ValueError, as ``fit`` begins, if no ``JSONLog`` of the
    same folder comes before it in the list of hooks.

    Examples:
        >>> both = [JSONLog("runs/faces"), LossPlot("runs/faces")]
    """

    _draws_from = JSONLog

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        checks.require("matplotlib", extra="plots", wanted_by="LossPlot")
        # A Figure of its own, without pyplot, needs no display and no global state.
        from matplotlib.figure import Figure

        super().__init__(folder)
        # One for all pictures: each has megabytes, which Python's collector is slow to find.
        self._figure = Figure(figsize=(10, 8), layout="constrained")

    def on_fit_start(self, trainer: Run) -> None:
        super().on_fit_start(trainer)
        self._not_before = 0.0

    def on_epoch_end(self, trainer: Run) -> None:
        begin = time.monotonic()
        if begin >= self._not_before:
            with not_fatal(self.folder):
                self._draw()
            # A long log takes seconds: at most a twentieth of a run.
            self._not_before = time.monotonic() + 19 * (time.monotonic() - begin)

    def on_fit_end(self, trainer: Run) -> None:
        self._draw()

    def _draw(self) -> None:
        if not (log := self.folder / "log.jsonl").exists():  # stopped before the first step
            return
        curves: dict[str, array[float]] = {}  # step, value, step, value, ...
        with open(log, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                with suppress(ValueError, LookupError, TypeError, AttributeError):  # no row of ours
                    row = json.loads(line)
                    for name in [name for name in row if name not in COUNTERS]:
                        value = nan if row[name] is None else float(row[name])
                        curves.setdefault(name, array("d")).extend((float(row["step"]), value))
        self._figure.clear()
        panels = 1 + any(not name.startswith("loss_") for name in curves)
        ratios = (5, 3)[:panels]
        axes = self._figure.subplots(panels, sharex=True, height_ratios=ratios, squeeze=False)
        above, below = axes[0, 0], axes[-1, 0]  # one, if there are losses alone
        below.set(xlabel="iterations", ylabel="Other statistics")
        above.set(title="Losses During Training", ylabel="Loss")
        # The generator's first, as in the tutorial.
        for name, curve in sorted(curves.items(), key=lambda curve: curve[0] != "loss_generator"):
            points = np.array(curve).reshape(-1, 2)
            parts = np.array_split(points, min(len(points), MAX_POINTS))
            panel = above if name.startswith("loss_") else below
            panel.plot(*zip(*map(_mean, parts)), label=name.removeprefix("loss_"))
        for panel in {above, below}:
            if panel.lines:
                panel.legend(loc="upper left", bbox_to_anchor=(1, 1))  # beside the curves
        with disk.renamed(path := self.folder / "loss_plot.png") as file:
            self._figure.savefig(file, format="png")
        self._show(path)


def _mean(points: np.ndarray) -> np.ndarray:
    """Return the mean of the points (n, 2) whose values are finite, or else of all."""
    good = points[np.isfinite(points[:, 1])]
    mean: np.ndarray = (good if len(good) else points).mean(0)
    return mean


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
        checks.require("tensorboard", extra="tensorboard", wanted_by="TensorBoard")
        super().__init__(folder)
        self.every = checks.count("every", every)
        self.images_every = checks.count("images_every", images_every)
        self._writer: Any = None

    def on_step_start(self, trainer: Run) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # What an earlier one wrote of later steps is discarded.
            self._writer = SummaryWriter(self.folder / "tensorboard", purge_step=trainer.step + 1)

    def on_step_end(self, trainer: Run, report: Report) -> None:
        with not_fatal(self.folder):
            if trainer.step % self.every == 0:
                for name, value in report.floats().items():  # sync
                    self._writer.add_scalar(name, value, trainer.step)
            if trainer.step % self.images_every == 0:
                self._write_samples(trainer)

    def _write_samples(self, trainer: Run) -> None:
        if self._writer is not None:
            with not_fatal(self.folder, (ValueError,)):
                picture = np.asarray(pictures.grid(pictures.shown(trainer.pictures())))
                self._writer.add_image("samples", picture, trainer.step, dataformats="HWC")

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
