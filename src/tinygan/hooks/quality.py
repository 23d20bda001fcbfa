"""FID and others during a run, and the best checkpoint by them."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from tinygan import metrics, pictures, seeds
from tinygan._run import checks
from tinygan._run.state import name_of
from tinygan.distributed import ALONE
from tinygan.hook import Run
from tinygan.hooks.checkpoint import Checkpoint
from tinygan.hooks.logs import as_json
from tinygan.hooks.run_folder import LogHook
from tinygan.metrics.fidelity import CHUNK, applied
from tinygan.report import Report

logger = logging.getLogger(__name__)

PART = 1000  # images generated at a time, so that a large count needs little memory


class Quality(LogHook):
    """Compare generated with real images every so many steps, and keep the best checkpoint.

    Each measurement is a line of ``quality.jsonl``. When its value is the lowest so far, the run is
    saved as ``best.pt``, from which ``trainer.resume("runs/faces/best.pt")`` goes on. A save that
    fails is logged and training continues.

    It must be the last hook but ``Checkpoint``, and measures once on trial as ``fit`` begins. On
    several ranks, rank 0 measures while the others wait, at most for the timeout of
    ``tinygan.distributed.join``. Without a module or a measure of your own it needs torch-fidelity:
    ``pip install "tinygan[metrics]"``.

    Args:
        folder: where to write.
        real: real images (N, C, H, W), in [-1, 1] or uint8, or batches of these; or their features
            (N, D), from ``metrics.features`` with the same module. Not the run's own loader.
        every: how often, in steps.
        count: how many images to generate each time, of each class in turn; published values of
            FID are of 50,000.
        module: the net whose features are compared; by default ``metrics.inception()``.
        measure: called as ``measure(real_features, fake_features)``, returns values by name.
        best: the name of the value to minimise; None to keep no checkpoint.

    Attributes:
        best_value: the lowest value so far, at first infinite.
        best_step: its step, at first None.

    Raises:
        ImportError: without torch-fidelity, where it is needed.
        ValueError: for arguments out of range; as ``fit`` begins, for what cannot be measured.

    Examples:
        >>> faces = torch.zeros(500, 3, 64, 64)
        >>> watch = Quality("runs/faces", faces, every=1000, count=500, module=nn.Flatten())
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        real: torch.Tensor | Iterable[object],
        *,
        every: int = 1000,
        count: int = 10_000,
        module: nn.Module | None = None,
        measure: Callable[[torch.Tensor, torch.Tensor], Mapping[str, float]] = metrics.quality,
        best: str | None = "fid",
    ) -> None:
        if module is None or measure is metrics.quality:
            checks.require("torch_fidelity", extra="metrics", wanted_by="Quality")
        if measure is metrics.quality and best not in ("fid", "kid", None):
            raise ValueError(
                f"best must be fid, kid or None, because the lowest value is the best, got "
                f"{best!r}; for another value, write a measure of which the lowest is best."
            )
        checks.takes("measure", measure, "(real, fake)", "see tinygan.metrics.quality.")
        super().__init__(folder, "quality.jsonl")
        self.every = checks.count("every", every)
        self.count = checks.count("count", count)
        self.module: Any = module
        self.measure, self.best = measure, best
        self.best_value = math.inf
        self.best_step: int | None = None
        self._real = real
        self._features = torch.empty(0, dtype=torch.float64, device="cpu")
        self._comparison = [str(best), name_of(measure), name_of(module), str(count)]

    def on_fit_start(self, trainer: Run) -> None:
        after = trainer.hooks[trainer.hooks.index(self) + 1 :]
        others = [type(hook).__name__ for hook in after if not isinstance(hook, Checkpoint)]
        if others:
            raise ValueError(
                f"only Checkpoint may come after Quality, got {', '.join(others)} after it, "
                "whose state would be a step behind in best.pt; move Quality behind."
            )
        if getattr(self._real, "ranks", ALONE).count > 1:
            raise ValueError(
                "real must be all images, got a loader that gives each rank its part; make it "
                "with ranks=tinygan.distributed.ALONE."
            )
        super().on_fit_start(trainer)
        if self.module is None:
            self.module = metrics.inception(device=trainer.device)
        if len(self._features) > 0:
            return
        if isinstance(self._real, torch.Tensor) and self._real.dim() == 2:
            self._features = self._real
        else:
            self._features = metrics.features(self._real, self.module)
        # On trial: better an error now than after hours. A run that goes on may have drifted.
        self._measured(trainer, strict=trainer.step == 0)

    def on_step_end(self, trainer: Run, report: Report) -> None:
        if trainer.step % self.every != 0:
            return
        try:
            values = self._measured(trainer)
        except ValueError as error:  # a generator that has diverged: the run may go back
            logger.error("NOT MEASURED at step %d, training continues: %s", trainer.step, error)
            return
        self._write([as_json({"step": trainer.step, "images": trainer.images, **values})])
        if self.best is None or trainer.skipped.in_row > 0:  # that was not finite
            return
        before = self.best_value, self.best_step
        if values[self.best] < self.best_value:
            # First, because it is part of what is saved.
            self.best_value, self.best_step = values[self.best], trainer.step
            try:
                trainer.save(self.folder / "best.pt")
            except (OSError, ValueError) as error:
                self.best_value, self.best_step = before
                failed = "NOT SAVED as the best at step %d, training continues: %s"
                logger.error(failed, trainer.step, error)

    def _measured(self, trainer: Any, *, strict: bool = False) -> dict[str, float]:
        parts = (
            trainer.sample(min(PART, self.count - first), seed=seeds.mix(0, "quality", part))
            for part, first in enumerate(range(0, self.count, PART))
        )
        parts = (pictures.shown(part, strict=strict) for part in parts)
        made = applied((chunk for part in parts for chunk in part.split(CHUNK)), self.module)
        values = self.measure(self._features, made)
        if self.best is not None and self.best not in values:
            raise ValueError(
                f"best must be one of the measured values, {', '.join(values)}, got {self.best!r}."
            )
        return {name: float(value) for name, value in values.items()}

    def state_dict(self) -> dict[str, Any]:
        best = {"value": self.best_value, "step": self.best_step, "of": self._comparison}
        return {"best": best, **super().state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.best_value, self.best_step = state["best"]["value"], state["best"]["step"]
        if state["best"]["of"] != self._comparison:
            self.best_value, self.best_step = math.inf, None
            again = "the search for the best starts again: %s when saved, %s now"
            logger.warning(again, state["best"]["of"], self._comparison)
