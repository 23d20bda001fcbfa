"""Real images beside generated ones."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from typing_extensions import override

from tinygan import pictures
from tinygan.hook import Hook
from tinygan.hooks.run_folder import prepared
from tinygan.trainer import GANTrainer


class RealBesideFake(Hook):
    """At the end, write 64 real images beside the fixed noise's, as ``real_beside_fake.png``.

    The real ones are the first batch's.

    Args:
        folder: where to write.

    Example:
        >>> picture = RealBesideFake("runs/faces")
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._real: torch.Tensor | None = None

    @override
    def on_fit_start(self, trainer: GANTrainer) -> None:
        """Make the folder."""
        prepared(self.folder)

    @override
    def on_step_start(self, trainer: GANTrainer) -> None:
        """Keep the first batch's images."""
        if self._real is None:
            self._real = trainer.real[:64].cpu()

    @override
    def on_fit_end(self, trainer: GANTrainer) -> None:
        """Write the picture, if there was a step to see real images in."""
        if self._real is not None:
            fake = trainer.generate(trainer.fixed_noise)
            pictures.titled(
                ("Real Images", pictures.grid(self._real)),
                ("Fake Images", pictures.grid(fake)),
            ).save(self.folder / "real_beside_fake.png")

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return the real images."""
        return {} if self._real is None else {"real": self._real}

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back the real images."""
        self._real = state.get("real")
