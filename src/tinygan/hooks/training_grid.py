"""What the nets are shown: a grid of training images."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from typing_extensions import override

from tinygan import pictures
from tinygan.hook import Hook, Run
from tinygan.hooks.first_images import FirstImages
from tinygan.hooks.run_folder import not_fatal, prepared, save_picture


class TrainingGrid(Hook):
    """Write the first 64 training images as ``training_images.png``, as soon as they are seen.

    Look at it before you wait for a run: wrong crops, colours and ranges show at once.

    Args:
        folder: where to write.

    Examples:
        >>> grid = TrainingGrid("runs/faces")
    """

    first_rank_only = True

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._first = FirstImages()

    @override
    def on_fit_start(self, trainer: Run) -> None:
        prepared(self.folder)

    @override
    def on_step_start(self, trainer: Run) -> None:
        if self._first.add(trainer.real):
            picture = pictures.titled(("Training Images", pictures.grid(self._first.images)))
            path = self.folder / "training_images.png"
            with not_fatal(path):
                save_picture(picture, path)

    @override
    def state_dict(self) -> dict[str, Any]:
        return self._first.state_dict()

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._first.load_state_dict(state)
