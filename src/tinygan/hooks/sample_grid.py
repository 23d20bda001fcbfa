"""Grids of what the generator makes of the fixed noise."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from typing_extensions import override

from tinygan import pictures
from tinygan._run import checks
from tinygan.hook import Hook, Run
from tinygan.hooks.run_folder import not_fatal, prepared, save_picture
from tinygan.report import Report

NAME = re.compile(r"step_\d+\.png")


class SampleGrid(Hook):
    """Write a grid of the 64 images of the fixed noise, as ``samples/step_000500.png``.

    There is one before the first step, one every so many steps, and one at the end. If the run then
    goes on, the one at the end makes way, so that a run has the same pictures however often it was
    interrupted.

    Args:
        folder: where the folder ``samples`` is made. Pictures of an earlier run in it, of steps
            that this run has yet to do, are removed.
        every: how often, in steps.

    Examples:
        >>> grid = SampleGrid("runs/faces", every=500)
    """

    first_rank_only = True

    def __init__(self, folder: str | os.PathLike[str], *, every: int = 500) -> None:
        self.folder = Path(folder)
        self.every = checks.count("every", every)
        self._started = False

    @property
    def frames(self) -> list[Path]:
        """The pictures written so far, in the order of their steps."""
        found = self.folder.glob("samples/step_*.png")
        return sorted((p for p in found if NAME.fullmatch(p.name)), key=step_of)

    @override
    def on_fit_start(self, trainer: Run) -> None:
        prepared(self.folder / "samples")
        self._started = False

    @override
    def on_step_start(self, trainer: Run) -> None:
        if self._started:
            return
        # Not before: a run that is refused at its first batch destroys nothing.
        self._started = True
        for frame in self.frames:
            step = step_of(frame)
            if step > trainer.step or (step == trainer.step and step % self.every != 0):
                frame.unlink()
        if trainer.step == 0:
            with not_fatal(self.folder / "samples"):
                self._write(trainer)

    @override
    def on_step_end(self, trainer: Run, report: Report) -> None:
        if trainer.step % self.every == 0:
            with not_fatal(self.folder / "samples"):
                self._write(trainer)

    @override
    def on_fit_end(self, trainer: Run) -> None:
        self._write(trainer)

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._started = False

    def _write(self, trainer: Run) -> None:
        path = self.folder / "samples" / f"step_{trainer.step:06d}.png"
        save_picture(pictures.grid(trainer.pictures()), path)


def step_of(frame: Path) -> int:
    """Return the step at which a picture was made: 500 for ``step_000500.png``."""
    return int(frame.stem.removeprefix("step_"))
