"""The progress of the fixed noise's images, as a GIF and as a page."""

from __future__ import annotations

import os
from pathlib import Path

from typing_extensions import override

from tinygan import pictures
from tinygan._run import checks
from tinygan.hook import Hook, Run
from tinygan.hooks.sample_grid import SampleGrid, step_of


class Animation(Hook):
    """At the end, turn the grids of ``SampleGrid`` into ``progress.gif`` and ``progress.html``.

    The page holds all it needs: play, pause and a slider work offline.

    Args:
        folder: the same as ``SampleGrid``'s, which must come before this in the list of hooks.
        seconds_per_frame: how long a picture is shown.
        max_frames: a longer run's pictures are thinned evenly to this many.

    Examples:
        >>> both = [SampleGrid("runs/faces"), Animation("runs/faces")]
    """

    first_rank_only = True

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        seconds_per_frame: float = 0.25,
        max_frames: int = 100,
    ) -> None:
        if seconds_per_frame <= 0:
            raise ValueError(
                f"seconds_per_frame must be above 0, got {seconds_per_frame}; use 0.25, say."
            )
        self.folder = Path(folder)
        self.seconds_per_frame = seconds_per_frame
        self.max_frames = checks.count("max_frames", max_frames, at_least=2)

    @override
    def on_fit_start(self, trainer: Run) -> None:
        self._sample_grid(trainer)

    @override
    def on_fit_end(self, trainer: Run) -> None:
        frames = thinned(self._sample_grid(trainer).frames, self.max_frames)
        pictures.save_gif(
            frames, self.folder / "progress.gif", seconds_per_frame=self.seconds_per_frame
        )
        pictures.save_html(
            frames,
            self.folder / "progress.html",
            title="The same noise, as the generator learns",
            captions=[f"step {step_of(frame)}" for frame in frames],
            seconds_per_frame=self.seconds_per_frame,
        )

    def _sample_grid(self, trainer: Run) -> SampleGrid:
        for hook in trainer.hooks[: trainer.hooks.index(self)]:
            if isinstance(hook, SampleGrid) and hook.folder == self.folder:
                return hook
        raise ValueError(
            f"Animation must come after a SampleGrid of its folder, got none for {self.folder}; "
            f"put SampleGrid({str(self.folder)!r}) before it in hooks."
        )


def thinned(frames: list[Path], most: int) -> list[Path]:
    """Return at most ``most`` (2 or more) frames, evenly spaced, with the first and the last."""
    if len(frames) <= most:
        return frames
    return [frames[round(i * (len(frames) - 1) / (most - 1))] for i in range(most)]
