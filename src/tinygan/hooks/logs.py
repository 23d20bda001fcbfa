"""Statistics in the terminal and in files: the tutorial's line, a progress bar, JSON lines."""

from __future__ import annotations

import json
import os
from abc import abstractmethod
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from tinygan._run import checks
from tinygan.hook import Hook, Run
from tinygan.hooks.run_folder import FolderHook, LogFile, prepared
from tinygan.report import Report

TUTORIAL = ("loss_discriminator", "loss_generator", "d_real", "d_fake", "d_fake_after")
"""The tutorial's Loss_D, Loss_G, D(x), and D(G(z)) before D's update and after it."""


class TutorialLog(Hook):
    r"""Print the tutorial's line at an epoch's first step and every so many steps from there.

    It is the tutorial's to the character, with ``?`` for a count that is not known::

        [0/5][50/1583]\tLoss_D: 0.3567\tLoss_G: 12.2064\tD(x): 0.9364\tD(G(z)): 0.1409 / 0.0000

    With a ``folder`` the lines are also written to ``log.txt``. Each waits for the device.

    Examples:
        >>> log = TutorialLog("runs/faces", every=50)
    """

    first_rank_only = True

    def __init__(self, folder: str | os.PathLike[str] | None = None, *, every: int = 50) -> None:
        self.folder = None if folder is None else Path(folder)
        self.every = checks.count("every", every)
        self._file = None if self.folder is None else LogFile(self.folder / "log.txt")

    def on_fit_start(self, trainer: Run) -> None:
        if self.folder is not None:
            prepared(self.folder)

    def on_step_start(self, trainer: Run) -> None:
        if trainer.step == 0:
            self._write("Starting Training Loop...")

    def on_step_end(self, trainer: Run, report: Report) -> None:
        index = trainer.batch - 1  # the tutorial counts from 0
        if index % self.every != 0:
            return
        missing = [name for name in TUTORIAL if name not in report]
        if missing:
            raise ValueError(
                f"TutorialLog shows {', '.join(TUTORIAL)}, got a report without "
                f"{', '.join(missing)}; use JSONLog for the statistics of other algorithms."
            )
        values = report.floats()  # sync
        loss_d, loss_g, d_real, d_fake, d_fake_after = (values[name] for name in TUTORIAL)
        epochs, batches = trainer.total_epochs, trainer.batches_per_epoch
        self._write(
            f"[{trainer.epoch}/{'?' if epochs is None else epochs}]"
            f"[{index}/{'?' if batches is None else batches}]"
            f"\tLoss_D: {loss_d:.4f}\tLoss_G: {loss_g:.4f}\tD(x): {d_real:.4f}"
            f"\tD(G(z)): {d_fake:.4f} / {d_fake_after:.4f}"
        )

    def on_fit_end(self, trainer: Run) -> None:
        if self._file is not None:
            self._file.finish()

    def _write(self, line: str) -> None:
        tqdm.write(line)  # prints above a progress bar, if there is one
        if self._file is not None:
            self._file.write([line])

    def state_dict(self) -> dict[str, Any]:
        return {} if self._file is None else self._file.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self._file is not None and state:
            self._file.load_state_dict(state)


class ProgressBar(Hook):
    """Show steps done, speed, time left and statistics; nothing where there is no terminal.

    Every so many steps it reads the statistics, for which it waits for the device.

    Examples:
        >>> bar = ProgressBar(every=20)
    """

    first_rank_only = True

    def __init__(self, *, every: int = 20) -> None:
        self.every = checks.count("every", every)
        self._bar: tqdm[Any] | None = None

    def on_fit_start(self, trainer: Run) -> None:
        # disable=None is tqdm's word for "unless there is a terminal".
        self._bar = tqdm(total=trainer.total_steps, initial=trainer.step, unit="step", disable=None)

    def on_step_end(self, trainer: Run, report: Report) -> None:
        assert self._bar is not None
        self._bar.update(trainer.step - self._bar.n)  # less than 0 if the run has gone back
        if trainer.step % self.every == 0 and not self._bar.disable:
            values = report.floats()  # sync
            # Losses first: a narrow terminal cuts off the rest.
            names = sorted(values, key=lambda name: not name.startswith("loss_"))
            shown = {short(name): f"{values[name]:.3f}" for name in names}
            self._bar.set_postfix(shown, refresh=False)

    def on_fit_end(self, trainer: Run) -> None:
        self._close()

    def on_exception(self, trainer: Run, error: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def short(name: str) -> str:
    """Return the tutorial's name of a loss, Loss_G, and any other name as it is."""
    return {"loss_generator": "Loss_G", "loss_discriminator": "Loss_D"}.get(name, name)


class RowsHook(FolderHook):
    """A hook that reads every step's statistics, for many steps at a time: one wait for all."""

    def __init__(self, folder: str | os.PathLike[str], every: int) -> None:
        super().__init__(folder)
        self.every = checks.count("every", every)
        self._unread: list[tuple[dict[str, int], Report]] = []

    @abstractmethod
    def _take(self, rows: list[dict[str, float]]) -> None:
        """Take what was read, one row per step: counters and statistics."""

    def on_step_end(self, trainer: Run, report: Report) -> None:
        counters = {"step": trainer.step, "epoch": trainer.epoch, "images": trainer.images}
        self._unread.append((counters, report))
        if len(self._unread) >= self.every:
            self._read()

    def _read(self) -> None:
        if self._unread:
            unread, self._unread = self._unread, []
            # Not one table: a penalty is only in the reports of the steps in which it is due.
            values = iter(torch.cat([report.stacked() for _, report in unread]).tolist())  # sync
            self._take([step | {name: next(values) for name in report} for step, report in unread])


class JSONLog(RowsHook):
    """Write every step's counters and statistics to ``log.jsonl``, one JSON object per line.

    A value that is not finite is null. There is no time in it, so two runs with one seed write the
    same bytes. Lines are written every so many steps, each time with one wait for the device. To
    read them: ``pandas.read_json(path, lines=True)``.

    Examples:
        >>> log = JSONLog("runs/faces", every=50)
    """

    def __init__(self, folder: str | os.PathLike[str], *, every: int = 50) -> None:
        super().__init__(folder, every)
        self._file = LogFile(self.folder / "log.jsonl")

    def _take(self, rows: list[dict[str, float]]) -> None:
        self._file.write(map(as_json, rows))

    def on_fit_end(self, trainer: Run) -> None:
        self._read()
        self._file.finish()

    def on_exception(self, trainer: Run, error: BaseException) -> None:
        self._read()

    def state_dict(self) -> dict[str, Any]:
        self._read()
        return self._file.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._file.load_state_dict(state)
        self._unread = []


def as_json(row: dict[str, float]) -> str:
    """Return a row as one line of JSON, with null for infinite values and NaN."""
    return json.dumps({name: value if isfinite(value) else None for name, value in row.items()})
