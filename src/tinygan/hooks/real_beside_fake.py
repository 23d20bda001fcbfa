"""Real images beside generated ones."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from typing_extensions import override

from tinygan import pictures
from tinygan.hook import Hook, Run
from tinygan.hooks.first_images import FirstImages
from tinygan.hooks.run_folder import prepared, save_picture


class RealBesideFake(Hook):
    """At the end, write 64 real images beside the fixed noise's, as ``real_beside_fake.png``.

    The real ones are the run's first.

    Args:
        folder: where to write.

    Examples:
        >>> picture = RealBesideFake("runs/faces")
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
        self._first.add(trainer.real)

    @override
    def on_fit_end(self, trainer: Run) -> None:
        if len(self._first.images) == 0:  # stopped before the first step
            return
        fake = trainer.pictures()
        picture = pictures.titled(
            ("Real Images", pictures.grid(self._first.images)),
            ("Fake Images", pictures.grid(fake)),
        )
        save_picture(picture, self.folder / "real_beside_fake.png")

    @override
    def state_dict(self) -> dict[str, Any]:
        return self._first.state_dict()

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._first.load_state_dict(state)
