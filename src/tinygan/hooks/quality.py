"""FID and others during a run, and the best checkpoint by them."""

from __future__ import annotations

import logging
import math
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from tinygan import metrics, seeds
from tinygan._run import checks
from tinygan._run.checkpoint import remove_leftovers
from tinygan._run.checks import require
from tinygan._run.state import name_of
from tinygan.distributed import ALONE
from tinygan.hook import Run
from tinygan.hooks.checkpoint import Checkpoint
from tinygan.hooks.logs import as_json
from tinygan.hooks.run_folder import FolderHook, LogFile
from tinygan.metrics.fidelity import image_batches
from tinygan.nets.compatibility import check_range
from tinygan.report import Report

logger = logging.getLogger(__name__)

PART = 1000  # images generated at a time, so that a large count needs little memory

Measure = Callable[[torch.Tensor, torch.Tensor], Mapping[str, float]]
"""Called as ``measure(real_features, fake_features)``; returns values by name."""


class Quality(FolderHook):
    """Compare generated with real images every so many steps, and keep the best checkpoint.

    Each measurement is a line of ``quality.jsonl``. When its value is the lowest so far, the run is
    saved as ``best.pt``, from which ``trainer.resume("runs/faces/best.pt")`` goes on. A save that
    fails is logged and training continues.

    The images are generated from the same noise each time, by G's moving average if there is one.
    The real features are computed once, before the first step, when it also measures once on trial.
    A run that goes back to an earlier step forgets later measurements; ``best.pt`` may then be of a
    later step until a better one replaces it. A run that goes on with another measure, module,
    count or number of real images starts its search for the best again.

    It must be the last hook but ``Checkpoint``. On several ranks, rank 0 measures while the others
    wait, at most for the timeout of ``tinygan.distributed.join``, 300 seconds. Without a module or
    a measure of your own it needs torch-fidelity: ``pip install "tinygan[metrics]"``.

    Args:
        folder: where to write.
        real: real images (N, C, H, W), in [-1, 1] or uint8, or batches of these; or their features
            (N, D), from ``metrics.features`` with the same module. Not the run's own loader.
        every: how often, in steps.
        count: how many images to generate each time; published values of FID are of 50,000.
        module: the net whose features are compared; by default ``metrics.inception()``.
        measure: called as ``measure(real_features, fake_features)``, returns values by name.
        best: the name of the value of which the lowest is best; None to keep no checkpoint.
        labels: the classes of the generated images, (count,) of int64; by default each in turn.
        seed: of the noise.

    Attributes:
        best_value: the lowest value so far, at first infinite.
        best_step: its step, at first None.

    Raises:
        ImportError: without torch-fidelity, where it is needed.
        ValueError: for arguments out of range; as ``fit`` begins, for anything that would prevent
            measuring or writing.

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
        measure: Measure = metrics.quality,
        best: str | None = "fid",
        labels: torch.Tensor | None = None,
        seed: int = 0,
    ) -> None:
        if module is None or measure is metrics.quality:
            require("torch_fidelity", extra="metrics", wanted_by="Quality")
        if measure is metrics.quality and best not in ("fid", "kid", None):
            raise ValueError(
                f"best must be fid, kid or None, because the lowest value is the best, got "
                f"{best!r}; for another value, write a measure of which the lowest is best."
            )
        if module is not None and not isinstance(module, nn.Module):
            raise ValueError(
                f"module must be a torch.nn.Module, got {module!r}; wrap a function in one."
            )
        if labels is not None and labels.shape != (count,):
            raise ValueError(
                f"labels must be ({count},), as many as count, got {tuple(labels.shape)}; give "
                "one for each generated image."
            )
        super().__init__(folder)
        self.every = checks.count("every", every)
        self.count = checks.count("count", count)
        self.module, self.measure, self.best = module, measure, best
        self.labels, self.seed = labels, seed
        self.best_value = math.inf
        self.best_step: int | None = None
        self._best_of: dict[str, str] | None = None
        """The comparison that ``best_value`` is a result of."""
        self._real = real
        self._features: torch.Tensor | None = None
        self._file = LogFile(self.folder / "quality.jsonl")

    def on_fit_start(self, trainer: Run) -> None:
        if not hasattr(trainer, "sample"):
            raise ValueError(
                f"Quality needs a trainer with a method sample, such as GANTrainer, got "
                f"{type(trainer).__name__}; measure other games with hooks.every(n, function)."
            )
        after = trainer.hooks[trainer.hooks.index(self) + 1 :]
        others = [type(hook).__name__ for hook in after if not isinstance(hook, Checkpoint)]
        if others:
            raise ValueError(
                f"Quality must be the last hook but Checkpoint, got {', '.join(others)} after it, "
                "whose state would be a step behind in best.pt; move Quality behind."
            )
        if getattr(self._real, "ranks", ALONE).count > 1:
            raise ValueError(
                "real must be all images, got a loader that gives each rank its part; make it "
                "with ranks=tinygan.distributed.ALONE."
            )
        super().on_fit_start(trainer)
        remove_leftovers(self.folder)
        if self.module is None:
            self.module = metrics.inception(device=trainer.device)
        if self._features is None:
            self._features = self._features_of_real(self.module)
            self._measured(trainer)  # on trial: better an error now than after hours

    def _features_of_real(self, module: nn.Module) -> torch.Tensor:
        if isinstance(self._real, torch.Tensor) and self._real.dim() == 2:
            return self._real

        def in_range() -> Iterator[torch.Tensor]:
            for batch in image_batches(self._real):
                check_range(batch)  # as the trainer would
                yield batch

        return metrics.features(in_range(), module)

    def on_step_end(self, trainer: Run, report: Report) -> None:
        if trainer.step % self.every != 0:
            return
        values = self._measured(trainer)
        self._file.write([as_json({"step": trainer.step, "images": trainer.images, **values})])
        if self.best is None:
            return
        comparison = self._comparison()
        if self._best_of not in (None, comparison):
            logger.warning(
                "the search for the best starts again: %.6g at step %s was a result of %s, now it "
                "is %s", self.best_value, self.best_step, self._best_of, comparison,
            )  # fmt: skip
            self.best_value, self.best_step = math.inf, None
        self._best_of = comparison
        value = values[self.best]
        if not math.isfinite(value):
            logger.warning("%s is %s at step %d: not the best", self.best, value, trainer.step)
        # Not among skipped steps, after whose weights nothing was finite.
        if value < self.best_value and trainer.skipped.in_row == 0:
            self._save(trainer, value)

    def _comparison(self) -> dict[str, str]:
        """Return in words what makes two values comparable."""
        labels = None if self.labels is None else zlib.crc32(self.labels.cpu().numpy().tobytes())
        assert self._features is not None
        return {
            "value": str(self.best),
            "measure": name_of(self.measure),
            "module": name_of(self.module),
            "real": str(tuple(self._features.shape)),  # no sum: GPUs do not agree on its digits
            "count": str(self.count),
            "labels": str(labels),
            "seed": str(self.seed),
        }

    def _measured(self, trainer: Any) -> dict[str, float]:
        assert self._features is not None
        assert self.module is not None
        labels = self.labels
        if labels is None and trainer.num_classes is not None:
            labels = torch.arange(self.count) % trainer.num_classes
        parts = (
            trainer.sample(
                len(places),
                seed=seeds.mix(self.seed, "quality", part),
                labels=None if labels is None else labels[places],
            )
            for part, places in enumerate(torch.arange(self.count).split(PART))
        )
        values = self.measure(self._features, metrics.features(parts, self.module))
        try:
            found = {str(name): float(value) for name, value in values.items()}
        except (AttributeError, TypeError) as error:
            raise ValueError(
                f"measure must return numbers by name, got {values!r}; for example "
                '{"distance": 0.5}.'
            ) from error
        if self.best is not None and self.best not in found:
            raise ValueError(
                f"best must be one of the measured values, {', '.join(found)}, got {self.best!r}; "
                "name one of these."
            )
        return found

    def _save(self, trainer: Run, value: float) -> None:
        before = self.best_value, self.best_step
        # First, because it is part of what is saved.
        self.best_value, self.best_step = value, trainer.step
        try:
            trainer.save(self.folder / "best.pt")
        except (OSError, ValueError) as error:
            self.best_value, self.best_step = before
            logger.error(
                "NOT SAVED as the best at step %d, training continues: %s", trainer.step, error
            )

    def on_fit_end(self, trainer: Run) -> None:
        self._file.finish()

    def state_dict(self) -> dict[str, Any]:
        return {
            "file": self._file.state_dict(),
            "best_value": self.best_value,
            "best_step": self.best_step,
            "best_of": self._best_of,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._file.load_state_dict(state["file"])
        self.best_value, self.best_step = state["best_value"], state["best_step"]
        self._best_of = state.get("best_of")
