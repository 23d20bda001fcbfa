"""A run: what it counts and remembers, and how it is saved and taken up again."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from tinygan._execution.capture import CapturedStep
from tinygan._execution.finite import NonFiniteError, SkippedSteps
from tinygan._execution.precision import LossScale
from tinygan._execution.replica import Replica
from tinygan._execution.step import Step
from tinygan._run import batches as batches_of
from tinygan._run import checkpoint, checkpoint_folder, run_state
from tinygan.algorithms import Algorithm
from tinygan.distributed import Ranks
from tinygan.hook import Hook
from tinygan.nets.traits import evaluating
from tinygan.player import Players

logger = logging.getLogger(__name__)

CHECK_EVERY = 50
"""How often, in steps, the count of skipped steps is read, which waits for the device."""

MAX_SKIPPED = 20
"""Skipped steps in a row after which a run goes back or ends: chance does not explain more."""


class SavedRun:
    """What of a trainer hooks see and checkpoints keep; see ``tinygan.hook.Run``.

    Args:
        players: who plays.
        algorithm: what they play.
        hooks: what watches the run.
        seed: names every random draw.
        dtype: the type in which the nets are applied.
        ranks: the processes of the run.
        step: what executes its steps.
        replica: this process's part in the run.
        sample: makes the images that hooks show.
    """

    def __init__(
        self,
        players: Players,
        algorithm: Algorithm,
        hooks: tuple[Hook, ...],
        seed: int,
        dtype: torch.dtype,
        ranks: Ranks,
        step: Step | CapturedStep,
        replica: Replica,
        sample: Callable[[Players], torch.Tensor] | None = None,
    ) -> None:
        self.players = players
        self.algorithm = algorithm
        self.hooks = hooks
        self.seed = seed
        self.dtype = dtype
        self.ranks = ranks
        self.device = players[0].device
        self.weights_dtype = players[0].weights_dtype
        self.step = 0
        self.images = 0
        self.epoch = 0
        self.batch = 0
        self.data: tuple[torch.Tensor, ...] = ()
        self.stop_reason: str | None = None
        self.target_epochs: int | None = None
        self.target_steps: int | None = None
        self.batches_per_epoch: int | None = None
        self.rollbacks = 0
        self.between_steps = True
        self._step = step
        self._sample = sample
        self._replica = replica
        self._place: dict[str, Any] | None = None
        """Where the batches stand, by what they say, once the last complete step was fetched."""
        self._loaded = False
        self._too_many_skipped: NonFiniteError | None = None

    @property
    def real(self) -> torch.Tensor:
        """The current step's real examples (N, ...) on the device, this rank's part of the batch.

        Empty before the first.
        """
        return self.data[0] if self.data else torch.empty(0)

    @torch.no_grad()
    def pictures(self) -> torch.Tensor:
        """Return the images (N, C, H, W) in [-1, 1] that show how far the run is.

        Raises:
            ValueError: for a trainer that was made without ``sample``.
        """
        if self._sample is None:
            raise ValueError(
                "sample must make the images that hooks show, got None; make the trainer with "
                "sample=lambda players: players.generator.sample(z)."
            )
        with evaluating(*(player.module for player in self.players)):
            images = self._sample(self.players)
        if not isinstance(images, torch.Tensor) or images.dim() != 4:
            given = tuple(images.shape) if hasattr(images, "shape") else type(images).__name__
            raise ValueError(f"sample must return images (N, C, H, W) in [-1, 1], got {given}.")
        return images

    @property
    def total_steps(self) -> int | None:
        """The steps at which the current ``fit`` is complete, or None if that is not known.

        One fewer per epoch if the last batch is too small for joined images, a turn or a part.
        """
        if self.target_epochs is None or self.batches_per_epoch is None:
            return self.target_steps
        return self.target_epochs * self.batches_per_epoch

    @property
    def total_epochs(self) -> int | None:
        """The epochs, begun ones included, that the current ``fit`` takes, or None likewise."""
        if self.target_steps is None or self.batches_per_epoch is None:
            return self.target_epochs
        return -(-self.target_steps // self.batches_per_epoch)

    @property
    def skipped(self) -> SkippedSteps:
        """The count of steps that were not finite and left no trace."""
        return self._step.skipped

    @property
    def loss_scale(self) -> LossScale | None:
        """What float16's losses are multiplied by; None for other types."""
        return self._step.loss_scale

    @property
    def _watching(self) -> list[Hook]:
        """The hooks that this rank's events reach."""
        return [hook for hook in self.hooks if self.ranks.is_first or not hook.first_rank_only]

    def _check_skipped(self) -> None:
        """Tell of skipped steps; raise NonFiniteError if there are too many in a row."""
        try:
            sentence = self.skipped.report(self.step, MAX_SKIPPED)
        except NonFiniteError as error:
            self._too_many_skipped = error
            raise
        if sentence is not None and self.loss_scale is not None:
            scale = float(self.loss_scale.state[0])  # sync
            sentence += f" In float16 that is how the loss scale is found; it is {scale:g} now."
        if sentence is not None and self.ranks.is_first:
            logger.warning("%s", sentence)

    def stop(self, reason: str) -> None:
        """Ask ``fit`` to return after the current step; ``stop_reason`` keeps why.

        Examples:
            >>> from tinygan import hooks
            >>> early = hooks.every(100, lambda trainer, report: trainer.stop("long enough"))
        """
        self.stop_reason = reason

    @property
    def compared_step(self) -> int:
        """The step at which all ranks were last found to hold the same bits; alone, this one."""
        return self.step if self.ranks.count == 1 else self._replica.compared_step

    def state_dict(self) -> dict[str, Any]:
        """Return all that the run needs to go on: plain values and tensors.

        The tensors are the live ones, as PyTorch's own ``state_dict`` gives: save or copy them
        before training on.
        """
        return run_state.collect(self, self._place)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what ``state_dict`` returned; ``fit`` then goes on from there.

        How optimizers are executed (fused, foreach, capturable) and the device are this trainer's
        own; everything else must be as it was.

        Raises:
            ValueError: for the state of another run, with every difference; nothing is changed.
        """
        self._place = run_state.restore(self, state)
        self._loaded = self.between_steps = True

    def _share_state(self, batches: Iterable[object] = ()) -> None:
        """Give all ranks the state of rank 0, if they are alike."""
        if self.ranks.count > 1:
            own = {f"batches.{k}": v for k, v in batches_of.configuration(batches).items()}
            own |= {
                "target.epochs": str(self.target_epochs),
                "target.steps": str(self.target_steps),
            }
            self._place = run_state.share(self, self._place, own, self._replica.agree)
            self._step.begin_anew()
            self._replica.agree()
            self._replica.compared_step = self.step

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the run's state into one file, whole or not at all; see ``hooks.Checkpoint``.

        Raises:
            ValueError: for weights, buffers or moments that are not finite.
            OSError: if the file could not be written; one that was there before still is.
        """
        state = self.state_dict()
        run_state.check_finite(state)
        checkpoint.save(state, path)

    def resume(self, path: str | os.PathLike[str]) -> Path | None:
        """Go on from a checkpoint: of a folder the newest good one, or just the given file.

        In a folder, files that are not whole are passed over with a warning. A folder that is not
        there, or holds no checkpoint, means a new run: the same program begins and finishes it.

        All ranks of a run call it together. Rank 0 reads, so the files need not lie elsewhere; how
        many ranks saved them does not matter.

        Args:
            path: ``hooks.Checkpoint``'s folder, or the one inside with the files, or a file, which
                ends in ``.pt``.

        Returns:
            The file that was loaded, or None for a new run.

        Raises:
            CheckpointError: for a file that is missing or not whole, or a folder with none that is.
            ValueError: for the checkpoint of another run, with every difference.

        Examples:
            >>> import tinygan
            >>> nets = tinygan.DCGANGenerator(8), tinygan.DCGANDiscriminator(8)
            >>> print(tinygan.GANTrainer(*nets).resume("runs/new"))
            None
        """
        file = self.ranks.first(lambda: self._resume_here(path), f"resuming from {path}")
        if file is None:
            return None
        try:
            self._share_state()
        except Exception as error:
            self._replica.fail(error)
            raise
        self._loaded = True
        return Path(file)

    def _resume_here(self, path: str | os.PathLike[str]) -> str | None:
        found = checkpoint_folder.find(Path(path))
        if found is None:
            return None
        file, state = found
        try:
            self.load_state_dict(state)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
        return str(file)
