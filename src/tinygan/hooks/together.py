"""The hooks of a usual run, in one line."""

from __future__ import annotations

import logging
import os
from typing import Any

from tinygan.hook import Hook
from tinygan.hooks.checkpoint import Checkpoint
from tinygan.hooks.generator import SaveGenerator
from tinygan.hooks.images import Animation, RealBesideFake, SampleGrid, TrainingGrid
from tinygan.hooks.logs import JSONLog, LossPlot, ProgressBar, TutorialLog


def usual(folder: str | os.PathLike[str], *, every: int = 500, **facts: Any) -> list[Hook]:
    """Return what a run of a ``GANTrainer`` usually has: a bar, logs, pictures and checkpoints.

    Samples, the generator with its ``facts``, and the checkpoint are written every so many steps.
    Without matplotlib there is a warning instead of the loss plot.

    Examples:
        >>> watching = usual("runs/faces", every=100)
    """
    made = [
        ProgressBar(), TutorialLog(folder), JSONLog(folder), TrainingGrid(folder),
        SampleGrid(folder, every=every), Animation(folder), RealBesideFake(folder),
    ]  # fmt: skip
    try:
        made.append(LossPlot(folder))
    except ImportError as error:
        logging.getLogger(__name__).warning("there will be no loss_plot.png: %s", error)
    return [*made, SaveGenerator(folder, every=every, **facts), Checkpoint(folder, every=every)]
