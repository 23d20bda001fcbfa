"""Pictures of a run: training images, sample grids, an animation, real images beside fakes."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch

from tinygan import pictures
from tinygan._run import checks
from tinygan.hook import Run
from tinygan.hooks.run_folder import FolderHook, not_fatal, prepared, save_picture
from tinygan.report import Report


class _FirstImages(FolderHook):
    """Collects the run's first 64 real images, and remembers them across a resume."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        super().__init__(folder)
        self._images = torch.empty(0)

    def on_step_start(self, trainer: Run) -> None:
        if trainer.real.dim() != 4:
            raise ValueError(
                f"pictures need images (N, C, H, W), got {tuple(trainer.real.shape)}; leave out "
                "hooks that show images."
            )
        missing = 64 - len(self._images)
        if missing > 0:
            taken = trainer.real[:missing].cpu()
            self._images = torch.cat([self._images.to(taken.dtype), taken])

    def state_dict(self) -> dict[str, Any]:
        return {"images": self._images}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._images = state["images"]


class TrainingGrid(_FirstImages):
    """Write the first 64 training images as ``training_images.png``, as soon as they are seen.

    Look at it before you wait for a run: wrong crops, colours and ranges show at once.

    Examples:
        >>> grid = TrainingGrid("runs/faces")
    """

    def on_step_start(self, trainer: Run) -> None:
        before = len(self._images)
        super().on_step_start(trainer)
        if len(self._images) > before:
            picture = pictures.titled(("Training Images", pictures.grid(self._images)))
            with not_fatal(self.folder):
                save_picture(picture, self.folder / "training_images.png")


class RealBesideFake(_FirstImages):
    """At the end, write ``real_beside_fake.png``: the first 64 training images, and generated ones.

    The generated images are those of the fixed noise.

    Examples:
        >>> picture = RealBesideFake("runs/faces")
    """

    def on_fit_end(self, trainer: Run) -> None:
        if len(self._images) > 0:  # else stopped before the first step
            picture = pictures.titled(
                ("Real Images", pictures.grid(self._images)),
                ("Fake Images", pictures.grid(trainer.pictures())),
            )
            save_picture(picture, self.folder / "real_beside_fake.png")


class SampleGrid(FolderHook):
    """Write a grid of the 64 images of the fixed noise, as ``samples/step_000500.png``.

    There is one before the first step, one every so many steps, and one at the end. If the run goes
    on after that, it removes the last one, so that the pictures do not depend on interruptions. An
    earlier run's pictures of steps that this run has yet to do are removed, too.

    Examples:
        >>> grid = SampleGrid("runs/faces", every=500)
    """

    def __init__(self, folder: str | os.PathLike[str], *, every: int = 500) -> None:
        super().__init__(folder)
        self.every = checks.count("every", every)
        self._started = False

    @property
    def frames(self) -> list[Path]:
        """The pictures written so far, in the order of their steps."""
        found = self.folder.glob("samples/step_*.png")
        return sorted((p for p in found if re.fullmatch(r"step_\d+\.png", p.name)), key=_step_of)

    def on_fit_start(self, trainer: Run) -> None:
        prepared(self.folder / "samples")
        self._started = False

    def on_step_start(self, trainer: Run) -> None:
        if self._started:
            return
        # Not before: a run that is refused at its first batch destroys nothing.
        self._started = True
        for frame in self.frames:
            step = _step_of(frame)
            if step > trainer.step or (step == trainer.step and step % self.every != 0):
                frame.unlink()
        if trainer.step == 0:
            with not_fatal(self.folder / "samples"):
                self._write(trainer)

    def on_step_end(self, trainer: Run, report: Report) -> None:
        if trainer.step % self.every == 0:
            with not_fatal(self.folder / "samples"):
                self._write(trainer)

    def on_fit_end(self, trainer: Run) -> None:
        self._write(trainer)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._started = False

    def _write(self, trainer: Run) -> None:
        path = self.folder / "samples" / f"step_{trainer.step:06d}.png"
        save_picture(pictures.grid(trainer.pictures()), path)


def _step_of(frame: Path) -> int:
    return int(frame.stem.removeprefix("step_"))


class Animation(FolderHook):
    """At the end, make ``progress.gif`` and ``progress.html`` of the grids of ``SampleGrid``.

    The page has play, pause and a slider, and works offline. Raises ValueError, as ``fit`` begins,
    if no ``SampleGrid`` of the same folder comes before it in the list of hooks.

    Args:
        folder: ``SampleGrid``'s.
        seconds_per_frame: how long each picture is shown, above 0.
        max_frames: of more pictures than this, 2 or more, evenly spaced ones are taken.

    Examples:
        >>> both = [SampleGrid("runs/faces"), Animation("runs/faces")]
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        seconds_per_frame: float = 0.25,
        max_frames: int = 100,
    ) -> None:
        super().__init__(folder)
        self.seconds = checks.number("seconds_per_frame", seconds_per_frame, "(0, inf)")
        self.max_frames = checks.count("max_frames", max_frames, at_least=2)

    def on_fit_start(self, trainer: Run) -> None:
        before = trainer.hooks[: trainer.hooks.index(self)]
        if not any(isinstance(h, SampleGrid) and h.folder == self.folder for h in before):
            raise ValueError(
                "Animation must come after a SampleGrid of the same folder, got none for "
                f"{self.folder}; put SampleGrid({str(self.folder)!r}) before it in hooks."
            )

    def on_fit_end(self, trainer: Run) -> None:
        shown = SampleGrid(self.folder).frames
        if len(shown) > self.max_frames:
            last, count = len(shown) - 1, self.max_frames
            shown = [shown[round(i * last / (count - 1))] for i in range(count)]
        pictures.save_gif(shown, self.folder / "progress.gif", seconds_per_frame=self.seconds)
        pictures.save_html(
            shown,
            self.folder / "progress.html",
            title="The same noise, as the generator learns",
            captions=[f"step {_step_of(frame)}" for frame in shown],
            seconds_per_frame=self.seconds,
        )
