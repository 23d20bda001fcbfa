"""Pictures of a run: training images, sample grids, an animation, real images beside fakes."""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch
from PIL import Image

from tinygan import pictures
from tinygan._run import checks
from tinygan.hook import Run
from tinygan.hooks.run_folder import FolderHook, not_fatal, prepared
from tinygan.report import Report

MAX_FRAMES = 100
EARLY = 10_000  # images; until then a run that goes well looks no better than one that fails


class TrainingGrid(FolderHook):
    """Write the first 64 training images as ``training_images.png``, as soon as they are seen.

    Look at it before you wait for a run: wrong crops, colours and ranges show at once. A resumed
    run leaves the picture as it is; if there is none, it shows the first images since.

    Examples:
        >>> grid = TrainingGrid("runs/faces")
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        super().__init__(folder)
        self._path = self.folder / "training_images.png"
        self._images, self._missing = torch.empty(0, dtype=torch.float32, device="cpu"), 0

    def on_fit_start(self, trainer: Run) -> None:
        super().on_fit_start(trainer)
        if trainer.step == 0 or not self._path.exists():
            self._images, self._missing = torch.empty(0, dtype=torch.float32, device="cpu"), 64

    def on_step_start(self, trainer: Run) -> None:
        if self._missing > 0:
            new = trainer.real[: self._missing].cpu()
            if self._missing == 64:
                pictures.value_range(new)  # an error now for what is no image
            self._images = torch.cat([self._images, new])
            self._missing = 64 - len(self._images)
            with not_fatal(self.folder, (OSError, ValueError)):
                grid = pictures.grid(pictures.shown(self._images))
                self._save_picture(grid, self._path)
            if self._missing == 0:  # they are of no more use
                self._images = self._images[:0].clone()


class RealBesideFake(FolderHook):
    """At the end, write ``real_beside_fake.png``: the last 64 training images beside fakes.

    The fakes are the 64 images of the fixed noise. Before 10,000 images it says "too early".

    Examples:
        >>> picture = RealBesideFake("runs/faces")
    """

    def on_fit_start(self, trainer: Run) -> None:
        super().on_fit_start(trainer)
        self._last: list[torch.Tensor] = []

    def on_step_start(self, trainer: Run) -> None:
        if not self._last:
            pictures.value_range(trainer.real)  # an error now for what is no image
        self._last.append(trainer.real[-64:].clone())
        while sum(map(len, self._last[1:])) >= 64:
            del self._last[0]

    def on_fit_end(self, trainer: Run) -> None:
        if self._last:  # else nothing has been trained
            with not_fatal(path := self.folder / "real_beside_fake.png", (ValueError,)):
                real = pictures.grid(pictures.shown(torch.cat(self._last)[-64:]))
                early = f" (after {trainer.images:,} images: too early to judge)"
                title = "Fake Images" + early * (trainer.images < EARLY)
                picture = pictures.titled(("Real Images", real), (title, _grid(trainer)))
                self._save_picture(picture, path)
            self._last = []


class SampleGrid(FolderHook):
    """Write a grid of the 64 images of the fixed noise, as ``samples/step_000500.png``.

    There is one before the first step, one every so many steps, and one at the end. Writing one
    removes those of later steps, which an earlier run left, and the one at the end of an earlier
    call of ``fit``: the pictures do not depend on interruptions.

    Examples:
        >>> grid = SampleGrid("runs/faces", every=500)
    """

    def __init__(self, folder: str | os.PathLike[str], *, every: int = 500) -> None:
        super().__init__(folder)
        self.every = checks.count("every", every)

    @property
    def frames(self) -> list[Path]:
        """The pictures written so far, in the order of their steps."""
        found = self.folder.glob("samples/step_*.png")
        return sorted((p for p in found if re.fullmatch(r"step_\d+\.png", p.name)), key=_step_of)

    def on_fit_start(self, trainer: Run) -> None:
        super().on_fit_start(trainer)
        prepared(self.folder / "samples")
        self._begins = True

    def on_step_start(self, trainer: Run) -> None:
        # Not in on_fit_start: a run that is refused at its first batch destroys nothing.
        if self._begins:
            self._begins = False
            # An error now for what is no image; a run that goes on may have drifted.
            grid = _grid(trainer, strict=trainer.step == 0)
            if trainer.step == 0:
                with not_fatal(self.folder / "samples"):
                    self._write(trainer, grid)

    def on_step_end(self, trainer: Run, report: Report) -> None:
        if trainer.step % self.every == 0:
            # A generator that has diverged is another's matter: the run may go back.
            with not_fatal(self.folder / "samples", (OSError, ValueError)):
                self._write(trainer, _grid(trainer))

    def on_fit_end(self, trainer: Run) -> None:
        with not_fatal(self.folder / "samples", (ValueError,)):
            self._write(trainer, _grid(trainer))

    def _write(self, trainer: Run, grid: Image.Image) -> None:
        steps = {_step_of(frame): frame for frame in self.frames}
        last = max((step for step in steps if step < trainer.step), default=0)
        for step, frame in steps.items():
            if step > trainer.step or (step == last and step % self.every != 0):
                frame.unlink()
        path = self.folder / "samples" / f"step_{trainer.step:06d}.png"
        self._save_picture(grid, path)


def _grid(trainer: Run, *, strict: bool = False) -> Image.Image:
    """Return the grid of the run's pictures."""
    return pictures.grid(pictures.shown(trainer.pictures(), strict=strict))


def _step_of(frame: Path) -> int:
    return int(frame.stem.removeprefix("step_"))


class Animation(FolderHook):
    """At the end, make ``progress.gif`` and ``progress.html`` of the grids of ``SampleGrid``.

    The page has play, pause and a slider, and works offline. Of more than 100 grids evenly spaced
    ones are shown. Raises ValueError, as ``fit`` begins, if no ``SampleGrid`` of the same folder
    comes before it in the list of hooks.

    Examples:
        >>> both = [SampleGrid("runs/faces"), Animation("runs/faces")]
    """

    _draws_from = SampleGrid

    def on_fit_end(self, trainer: Run) -> None:
        shown = SampleGrid(self.folder).frames
        if (last := len(shown) - 1) >= MAX_FRAMES:
            shown = [shown[round(i * last / (MAX_FRAMES - 1))] for i in range(MAX_FRAMES)]
        pictures.save_gif(shown, path := self.folder / "progress.gif")
        self._show(path)
        captions = [f"step {_step_of(frame)}" for frame in shown]
        pictures.save_html(shown, self.folder / "progress.html", captions=captions)
