"""What the nets are shown: a grid of training images."""

from __future__ import annotations

import os
from pathlib import Path

from typing_extensions import override

from tinygan import pictures
from tinygan.hook import Hook
from tinygan.hooks.run_folder import prepared
from tinygan.trainer import GANTrainer


class TrainingGrid(Hook):
    """Write up to 64 images of the first batch as ``training_images.png``, before the first step.

    Look at it before you wait for a run: wrong crops, colours and ranges show at once.

    Args:
        folder: where to write.

    Example:
        >>> grid = TrainingGrid("runs/faces")
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    @override
    def on_fit_start(self, trainer: GANTrainer) -> None:
        """Make the folder."""
        prepared(self.folder)

    @override
    def on_step_start(self, trainer: GANTrainer) -> None:
        """Write the picture, in the run's first step."""
        if trainer.step == 0:
            picture = pictures.titled(("Training Images", pictures.grid(trainer.real[:64])))
            picture.save(self.folder / "training_images.png")
