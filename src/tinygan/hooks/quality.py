"""FID and others while the run goes on, and the best checkpoint by them."""

from __future__ import annotations

import logging
import math
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn
from typing_extensions import override

from tinygan import metrics, seeds
from tinygan._run import checks
from tinygan._run.checks import require
from tinygan._run.folder import remove_leftovers
from tinygan._run.state import name_of
from tinygan.distributed import ALONE
from tinygan.hook import Hook, Run
from tinygan.hooks.checkpoint import Checkpoint
from tinygan.hooks.json_log import as_json
from tinygan.hooks.run_folder import LogFile
from tinygan.metrics.applying import image_batches
from tinygan.nets.compatibility import check_range
from tinygan.report import Report

logger = logging.getLogger(__name__)

PART = 1000
"""Images generated at a time, so that those of a large count need little memory."""

Measure = Callable[[torch.Tensor, torch.Tensor], Mapping[str, float]]
"""Called as ``measure(real_features, fake_features)``; returns values by their names."""


@runtime_checkable
class SampledRun(Protocol):
    """A run that gives as many samples as one wants: a ``GANTrainer``'s."""

    num_classes: int | None

    def sample(
        self, count: int = 64, *, seed: int = 0, labels: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Return generated images."""


class Quality(Hook):
    """Compare generated with real images every so many steps, and keep the best checkpoint.

    Each time writes a line to ``quality.jsonl`` with the step and what was measured. When the least
    value so far was measured, the run is saved as ``best.pt``, to sample from it or go on from it:
    ``trainer.resume("runs/faces/best.pt")``. A save that fails is logged and the run goes on.

    The generated images are of the same noise each time, by G's moving average if there is one, and
    of each class in turn if there are any. The real ones' features are made once, before the first
    step; then it measures once for nothing, so that what cannot be measured is told at once.

    In a run of several ranks rank 0 measures while the others wait: this, and the features of the
    real images with the first measurement, must take less time than the timeout of
    ``tinygan.distributed.join``, 300 seconds.

    When a run goes back to an earlier step, it forgets what it measured since. ``best.pt`` may
    then be of such a step, until a better one replaces it. A run that goes on with another measure,
    module, count or number of real images begins its search for the best anew.

    It must be the last hook but ``Checkpoint``, because it saves the state of those before it.

    Needs torch-fidelity, unless it is given both another net and another measure:
    ``pip install "tinygan[metrics]"``.

    Args:
        folder: where to write.
        real: real images (N, C, H, W) in [-1, 1], or of uint8, or batches of such; or their
            features (N, D), from ``metrics.features`` with the same module. Not the loader that the
            run trains on, whose place in the data is the trainer's.
        every: how often, in steps.
        count: how many images are generated each time. Published values of FID are of 50,000.
        module: the net whose features are compared; None for ``metrics.inception()``, on the
            trainer's device.
        measure: called as ``measure(real_features, fake_features)``; returns values by their names.
            The default is ``metrics.quality``: FID, KID, precision and recall.
        best: the name of the value by which a checkpoint is the best, which is the least of it;
            None to keep none.
        labels: the classes of the generated images, (count,) of int64, for data with more of some
            than of others; None for each in turn.
        seed: of the noise.

    Attributes:
        best_value: the least value so far; infinite before there is one.
        best_step: the step at which it was measured; None before there is one.

    Raises:
        ImportError: if torch-fidelity is not installed.
        ValueError: for counts under 1, other than ``count`` labels and, when ``fit`` is called,
            for a folder that cannot be written, hooks in another order, real images out of range,
            weights of Inception that are nowhere, or what cannot be measured.

    Examples:
        >>> faces = torch.zeros(500, 3, 64, 64)
        >>> watch = Quality("runs/faces", faces, every=1000, count=500, module=nn.Flatten())
    """

    first_rank_only = True

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
                f"best must be fid or kid, of which the least is the best, or None, got {best!r}; "
                "for another value give a measure of which the least is the best."
            )
        if module is not None and not isinstance(module, nn.Module):
            raise ValueError(
                f"module must be a torch.nn.Module, got {module!r}; wrap a function in one."
            )
        self.folder = Path(folder)
        self.every = checks.count("every", every)
        self.count = checks.count("count", count)
        self.module = module
        self.measure = measure
        self.best = best
        if labels is not None and labels.shape != (count,):
            raise ValueError(
                f"labels must be ({count},), as many as count, got {tuple(labels.shape)}; give "
                "each generated image one."
            )
        self.labels = labels
        self.seed = seed
        self.best_value = math.inf
        self.best_step: int | None = None
        self._real = real
        self._features: torch.Tensor | None = None
        self._comparing: dict[str, str] | None = None
        """What makes two values comparable, in words; known when fit begins."""
        self._best_of: dict[str, str] | None = None
        """The same, of ``best_value``."""
        self._file = LogFile(self.folder / "quality.jsonl")

    @override
    def on_fit_start(self, trainer: Run) -> None:
        if not isinstance(trainer, SampledRun):
            raise ValueError(
                "Quality needs a trainer that samples, such as GANTrainer, got "
                f"{type(trainer).__name__}; measure other games by hooks.every(n, function)."
            )
        after = trainer.hooks[trainer.hooks.index(self) + 1 :]
        others = [type(hook).__name__ for hook in after if not isinstance(hook, Checkpoint)]
        if others:
            raise ValueError(
                f"Quality must be the last hook but Checkpoint, got {', '.join(others)} after it, "
                "which would not have seen the step that is saved; move Quality behind."
            )
        if getattr(self._real, "ranks", ALONE).count > 1:
            raise ValueError(
                "real must be all images, got a loader that gives each rank its part; make it "
                "with ranks=tinygan.distributed.ALONE."
            )
        self._file.open()  # which makes sure that the folder takes files
        remove_leftovers(self.folder)
        # What cannot be measured is better told now than after hours.
        if self.module is None:
            self.module = metrics.inception(device=trainer.device)
        if self._features is None:
            self._features = self._features_of_real()
            self._measured(trainer)
        labels = None if self.labels is None else zlib.crc32(self.labels.cpu().numpy().tobytes())
        self._comparing = {
            "value": str(self.best),
            "measure": name_of(self.measure),
            "module": name_of(self.module),
            "real": str(tuple(self._features.shape)),  # no sum: GPUs do not agree on its digits
            "count": str(self.count),
            "labels": str(labels),
            "seed": str(self.seed),
        }
        self._forget_the_best_of_others()

    def _forget_the_best_of_others(self) -> None:
        """Begin the search anew if the best so far was by another comparison than this one."""
        if self.best_step is not None and self._best_of not in (None, self._comparing):
            logger.warning(
                "the search for the best begins anew: %.6g at step %d was of %s, now it is of %s",
                self.best_value, self.best_step, self._best_of, self._comparing,
            )  # fmt: skip
            self.best_value, self.best_step = math.inf, None
        self._best_of = self._comparing

    def _features_of_real(self) -> torch.Tensor:
        if isinstance(self._real, torch.Tensor) and self._real.dim() == 2:
            return self._real
        assert self.module is not None
        return metrics.features(_in_range(self._real), self.module)

    @override
    def on_step_end(self, trainer: Run, report: Report) -> None:
        if trainer.step % self.every != 0:
            return
        assert isinstance(trainer, SampledRun)
        values = self._measured(trainer)
        row = {"step": trainer.step, "images": trainer.images, **values}
        self._file.write([as_json(row)])
        if self.best is None:
            return
        value = values[self.best]
        if not math.isfinite(value):
            logger.warning("%s is %s at step %d: not the best", self.best, value, trainer.step)
        # Not among skipped steps, whose weights are those from which nothing was finite.
        if value < self.best_value and trainer.skipped.in_row == 0:
            self._save(trainer, value)

    def _measured(self, trainer: SampledRun) -> dict[str, float]:
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
                f"measure must return numbers by their names, got {values!r}; return "
                '{"distance": 0.5}, say.'
            ) from error
        if self.best is not None and self.best not in found:
            raise ValueError(
                f"best must be one of what is measured, {', '.join(found)}, got {self.best!r}; "
                "name one of these."
            )
        return found

    def _save(self, trainer: Run, value: float) -> None:
        before = self.best_value, self.best_step
        # First, for it is part of what is saved.
        self.best_value, self.best_step = value, trainer.step
        try:
            trainer.save(self.folder / "best.pt")
        except (OSError, ValueError) as error:
            self.best_value, self.best_step = before
            logger.error(
                "NOT SAVED as the best, at step %d, the run goes on: %s", trainer.step, error
            )

    @override
    def on_fit_end(self, trainer: Run) -> None:
        self._file.finish()

    @override
    def state_dict(self) -> dict[str, Any]:
        return {
            "file": self._file.state_dict(),
            "best_value": self.best_value,
            "best_step": self.best_step,
            "best_of": self._best_of,
        }

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._file.load_state_dict(state["file"])
        self.best_value, self.best_step = state["best_value"], state["best_step"]
        self._best_of = state.get("best_of")
        if self._comparing is not None:
            self._forget_the_best_of_others()


def _in_range(images: torch.Tensor | Iterable[object]) -> Iterator[torch.Tensor]:
    """Give real images in batches, if they are what the trainer would train on."""
    for batch in image_batches(images):
        check_range(batch)
        yield batch
