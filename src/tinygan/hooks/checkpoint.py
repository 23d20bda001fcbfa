"""Checkpoints while the run goes on, so that it can be taken up after any ending."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from tinygan._execution.finite import NonFiniteError
from tinygan._run import checkpoint, checks, disk
from tinygan._run.checkpoint import files, load_whole
from tinygan.distributed import DifferentRanksError, LostRankError
from tinygan.hook import Run
from tinygan.hooks.run_folder import FolderHook
from tinygan.report import Report

logger = logging.getLogger(__name__)


class Checkpoint(FolderHook):
    """Save the run every so many steps, as ``checkpoints/step_000500.pt``, and when it ends.

    ``trainer.resume(folder)`` goes on from the newest good file. A save that fails is logged and
    the run goes on; only the last one must succeed. After an error in the middle of a step the
    half-done state is saved as ``emergency_000500.pt``, which is only loaded if it is named. Too
    many steps in a row that are not finite make the run go back to the newest good file.

    It must be the last hook, because it saves the state of those before it.

    Args:
        folder: where the folder ``checkpoints`` is made.
        every: how often, in steps; each time waits for the device and the disk.
        keep: how many of the newest files stay. A copy under another name is left alone.
        max_rollbacks: how often the run may go back, in all.

    Examples:
        >>> checkpoint = Checkpoint("runs/faces", every=500, keep=2)
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        every: int = 500,
        keep: int = 2,
        max_rollbacks: int = 3,
    ) -> None:
        super().__init__(folder)
        self.folder /= "checkpoints"
        self.every = checks.count("every", every)
        self.keep = checks.count("keep", keep)
        self.max_rollbacks = checks.count("max_rollbacks", max_rollbacks, at_least=0)
        self._whole: set[Path] = set()
        self._saved: tuple[int, ...] | None = None
        self._started = False

    def on_fit_start(self, trainer: Run) -> None:
        self._started = False
        if (last := trainer.hooks[-1]) is not self:
            raise ValueError(
                f"Checkpoint must be the last hook, got {type(last).__name__} after it, which "
                "would not have seen the step that is saved; move Checkpoint to the end of hooks."
            )
        super().on_fit_start(trainer)
        # Their names are in the folders above, perhaps since a moment ago.
        for above in self.folder.absolute().parents[:2]:
            disk.sync_folder(above)
        for path in reversed(files(self.folder)):
            if checkpoint.step_of(path) > trainer.step and load_whole(path) is not None:
                raise ValueError(
                    f"folder must hold no checkpoints after the run's step, {trainer.step}, got "
                    f"{path}; go on with trainer.resume({str(self.folder.parent)!r}), choose "
                    "another folder, or, to go back, move the later ones away."
                )
        # An error about what could not be saved should come now, not after hours.
        state = trainer.state_dict()
        trainer.check_finite(state)
        checkpoint.check_plain(state, "state")
        here = checkpoint.path_of(self.folder, trainer.step)
        self._saved = None if load_whole(here) is None else _place(trainer)
        self._started = True

    def on_step_end(self, trainer: Run, report: Report) -> None:
        # A run that is asked to stop may have little time: it saves before it draws its pictures.
        # Otherwise not among skipped steps: what to go back to should lie before them.
        if trainer.stop_reason is not None or (
            trainer.step % self.every == 0 and trainer.skipped.in_row == 0
        ):
            try:
                self._save(trainer)
            except (OSError, ValueError) as error:
                message = "NOT SAVED at step %d, the run goes on, older checkpoints stay: %s"
                logger.error(message, trainer.step, error)

    def on_fit_end(self, trainer: Run) -> None:
        # A step that an error has left unfinished, in an earlier call, is in its emergency file.
        if self._saved != _place(trainer) and trainer.between_steps:
            self._save(trainer)
        if trainer.stop_reason is not None and trainer.stop_reason.startswith("SIG"):
            words = "stopped by %s after step %d, saved in %s; run the same command to go on"
            logger.warning(words, trainer.stop_reason, trainer.step, self.folder)

    def _save(self, trainer: Run) -> None:
        """Save, and remove what is older than the newest whole files, so many as are kept.

        Of several ranks, one that was saved before they were last compared stays as well.
        """
        path = checkpoint.path_of(self.folder, trainer.step)
        trainer.save(path)
        self._saved = _place(trainer)
        self._whole.add(path)
        if trainer.skipped.in_row > 0:  # what there is to go back to lies before, and stays
            return
        newest, has_sure = 0, trainer.ranks.count == 1
        for path in reversed(files(self.folder)):
            is_sure = checkpoint.step_of(path) <= trainer.compared_step
            if newest >= self.keep and (has_sure or not is_sure):
                self._whole.discard(path)
                try:
                    disk.remove(path)
                except OSError as error:  # the newer files are as safe with it as without
                    logger.error("NOT REMOVED, an older checkpoint stays: %s", error)
            elif path in self._whole or load_whole(path) is not None:
                self._whole.add(path)  # and is not read again
                newest += 1
                has_sure |= is_sure

    def on_non_finite(self, trainer: Run, error: NonFiniteError) -> None:
        if trainer.rollbacks >= self.max_rollbacks:
            error.add_note(f"the run has gone back {trainer.rollbacks} times already")
            return
        for path in reversed(files(self.folder)):
            state = load_whole(path)
            if state is not None and int(state["skipped"][0]) == 0:
                trainer.load_state_dict(state)
                return
            # A run that is stopped saves amid skipped steps too, which are now gone back from.
            if state is not None:
                disk.remove(path)
        error.add_note(f"{self.folder} holds no checkpoint to go back to")

    def on_exception(self, trainer: Run, error: BaseException) -> None:
        # An interrupt means at once, before the first step there is nothing to save, and a folder
        # that was refused is another run's. What lost ranks have left half-done may be anything.
        nothing = not isinstance(error, Exception) or isinstance(error, LostRankError)
        if nothing or trainer.step == 0 or not self._started:
            return
        if isinstance(error, DifferentRanksError):
            self._set_aside(trainer.compared_step)
        elif not trainer.between_steps or trainer.skipped.in_row > 0:
            path = self.folder / f"emergency_{trainer.step:06d}.pt"
            trainer.save(path)
            logger.error("the unfinished state was saved for inspection: %s", path)
        elif self._saved != _place(trainer):
            self._save(trainer)

    def _set_aside(self, step: int) -> None:
        """Rename what was saved after a step, so that no run goes on from it by itself."""
        for path in reversed(files(self.folder)):
            if checkpoint.step_of(path) > step:
                aside = self.folder / path.name.replace("step", "emergency")
                disk.replace(path, aside)
                logger.error("saved when ranks may have differed already, set aside: %s", aside)
        disk.sync_folder(self.folder)


def _place(trainer: Run) -> tuple[int, ...]:
    """Return how far a run is. Batches that are left out count in ``batch``, not in ``step``."""
    if trainer.batch == trainer.batches_per_epoch:  # the end of an epoch begins the next
        return trainer.step, trainer.epoch + 1, 0
    return trainer.step, trainer.epoch, trainer.batch
