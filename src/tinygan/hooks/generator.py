"""The generator as files of its own, so that it can be used without the run."""

from __future__ import annotations

import json
import os
from typing import Any

from tinygan._run import checks
from tinygan.hook import Run
from tinygan.hooks.run_folder import FolderHook, not_fatal
from tinygan.nets.saved import configuration, facts_in, save_generator
from tinygan.report import Report


class SaveGenerator(FolderHook):
    """Write the generator into the folder ``generator`` every so many steps, and at the end.

    ``tinygan.load_generator`` reads it. It is the moving average, if the player has one. ``facts``
    are plain values to keep with it, such as ``classes=["cat", "dog"]``.

    Examples:
        >>> hook = SaveGenerator("runs/faces", every=500, trained_on="my photographs")
    """

    def __init__(self, folder: str | os.PathLike[str], *, every: int = 500, **facts: Any) -> None:
        super().__init__(folder)
        self.every, self._facts = checks.count("every", every), facts

    def on_fit_start(self, trainer: Run) -> None:
        super().on_fit_start(trainer)
        net = trainer.players.generator.module
        text = configuration(net, self._facts)  # an error now for facts that cannot be saved
        net.facts = facts_in(json.loads(text), net)  # type: ignore[assignment] # for checkpoints

    def on_step_end(self, trainer: Run, report: Report) -> None:
        if trainer.step % self.every == 0:
            with not_fatal(self.folder / "generator", (OSError, ValueError)):
                self._save(trainer)

    def on_fit_end(self, trainer: Run) -> None:
        with not_fatal(self.folder / "generator", (ValueError,)):
            self._save(trainer)

    def _save(self, trainer: Run) -> None:
        player = trainer.players.generator
        net = player.module if player.average is None else player.average.net
        facts = {"step": trainer.step, "images": trainer.images} | self._facts
        save_generator(net, self.folder / "generator", **facts)
