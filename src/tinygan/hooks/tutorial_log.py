"""The DCGAN tutorial's log line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tqdm import tqdm
from typing_extensions import override

from tinygan._run import checks
from tinygan.hook import Hook, Run
from tinygan.hooks.run_folder import LogFile
from tinygan.report import Report

TUTORIAL = ("loss_discriminator", "loss_generator", "d_real", "d_fake", "d_fake_after")
"""The tutorial's statistics: Loss_D, Loss_G, D(x), and D(G(z)) before D's update and after."""


class TutorialLog(Hook):
    r"""Print the tutorial's line at the first step of an epoch and every 50 steps from there.

    In format it is the tutorial's, character for character, ``?`` standing for a count that is not
    known::

        [0/5][50/1583]\tLoss_D: 0.3567\tLoss_G: 12.2064\tD(x): 0.9364\tD(G(z)): 0.1409 / 0.0000

    Args:
        folder: where to keep the lines as well, as ``log.txt``; None for nowhere.
        every: how often, in steps; each line waits for the device.

    Examples:
        >>> log = TutorialLog(every=50)
    """

    first_rank_only = True

    def __init__(self, folder: str | os.PathLike[str] | None = None, *, every: int = 50) -> None:
        self.every = checks.count("every", every)
        self.folder = folder
        self._file = None if folder is None else LogFile(Path(folder) / "log.txt")

    @override
    def on_fit_start(self, trainer: Run) -> None:
        if self._file is not None:
            self._file.open()

    @override
    def on_step_start(self, trainer: Run) -> None:
        if trainer.step == 0:
            self._write("Starting Training Loop...")

    @override
    def on_step_end(self, trainer: Run, report: Report) -> None:
        index = trainer.batch - 1  # the tutorial counts from 0
        if index % self.every == 0:
            self._write(tutorial_line(trainer, report))

    @override
    def on_fit_end(self, trainer: Run) -> None:
        if self._file is not None:
            self._file.finish()

    def _write(self, line: str) -> None:
        tqdm.write(line)  # prints above a progress bar, if there is one
        if self._file is not None:
            self._file.write([line])

    @override
    def state_dict(self) -> dict[str, Any]:
        return {} if self._file is None else self._file.state_dict()

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self._file is not None and state:
            self._file.load_state_dict(state)


def tutorial_line(trainer: Run, report: Report) -> str:
    """Return the tutorial's line for the step just done. Waits for the device.

    Raises:
        ValueError: for a report without the tutorial's five statistics.
    """
    epochs, batches = trainer.total_epochs, trainer.batches_per_epoch
    missing = [name for name in TUTORIAL if name not in report]
    if missing:
        raise ValueError(
            f"TutorialLog shows {', '.join(TUTORIAL)}, got a report without {', '.join(missing)}; "
            "use JSONLog for the statistics of other algorithms."
        )
    values = report.floats()  # sync
    loss_d, loss_g, d_real, d_fake, d_fake_after = (values[name] for name in TUTORIAL)
    return (
        f"[{trainer.epoch}/{'?' if epochs is None else epochs}]"
        f"[{trainer.batch - 1}/{'?' if batches is None else batches}]"
        f"\tLoss_D: {loss_d:.4f}\tLoss_G: {loss_g:.4f}\tD(x): {d_real:.4f}"
        f"\tD(G(z)): {d_fake:.4f} / {d_fake_after:.4f}"
    )
