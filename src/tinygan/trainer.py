"""The trainer: a loop you can read beside the paper, and hooks that watch it."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, final

import torch
from torch import nn

from tinygan import (
    augmentations,
    batch_norm,
    checkpoint,
    checkpoint_folder,
    checks,
    distributed,
    inputs,
    losses,
    optimizers,
    penalties,
    precision,
    run_state,
    sampling,
    seeds,
    signals,
)
from tinygan import batches as batches_of
from tinygan.average import Average
from tinygan.capture import CapturedStep
from tinygan.compatibility import check_first_batch, check_nets
from tinygan.distributed import LostRankError, Ranks
from tinygan.finite import NonFiniteError, SkippedSteps
from tinygan.hook import Hook, call, call_on_exception, check_hooks
from tinygan.optimizers import OptimizerFactory, dcgan_adam
from tinygan.replica import NO_BATCH, Replica, Request
from tinygan.step import Player, Step

logger = logging.getLogger(__name__)

END = object()
"""What stands for "no more batches", which no loader can give."""

CHECK_EVERY = 50
"""How often, in steps, the count of skipped steps is read, which waits for the device."""

MAX_SKIPPED = 20
"""Skipped steps in a row after which a run goes back or ends: chance does not explain more."""


@final
class GANTrainer:
    """Train a generator against a discriminator.

    The defaults are the DCGAN tutorial's. A new idea is a loss, a prior, an optimizer or a hook:
    the class is not for subclassing.

    Args:
        generator: maps z (N, Z) to images (N, C, H, W) in [-1, 1]; if its attribute
            ``num_classes`` is a number, z and labels (N,).
        discriminator: maps images to logits (N,), without a sigmoid, or, if it packs m of them,
            to (N // m,); if G takes labels, images and labels.
        loss: what the players pay, see ``tinygan.losses``; None for the tutorial's.
        penalty: what D pays besides, see ``tinygan.penalties``: one or several; None for nothing.
        augment: what is done at random to all images before D sees them, see
            ``tinygan.augmentations``: one or several, one after the other; None for nothing.
        ema_half_life: images after which weights count half in a moving average of G's, which is
            what ``sample`` then uses; None for no average.
        prior: draws z, see ``tinygan.sampling``.
        generator_optimizer: makes G's optimizer from its named parameters.
        discriminator_optimizer: makes D's.
        hooks: what watches the run, called in this order.
        seed: names every random draw of the run.
        device: where to train; None for where the generator is.
        latent_dim: Z; None for ``generator.latent_dim``.
        dtype: the type in which the nets are applied in training, by autocast: ``torch.bfloat16``,
            or ``torch.float16`` for GPUs that lack it; None for the weights' own. The weights, the
            losses and the images of ``sample`` keep theirs.
        compile: apply the nets by ``torch.compile`` in training, which takes a minute at first.
        capture: on a GPU, record the pieces of a step as CUDA graphs, after some steps, and replay
            them, see ``tinygan.capture``.
        ranks: the processes of the run; None for those that torchrun has started, see
            ``tinygan.distributed``.
        sync_batch_norm: let batch norm see the whole batch of a run of several ranks, on GPUs;
            else each rank's sees its own part.

    Attributes:
        step: completed steps, each one D phase and one G phase.
        images: real images seen so far.
        epoch: completed epochs.
        batch: completed batches of the current epoch.
        dtype: the type in which the nets are applied in training.
        weights_dtype: that of their weights, of ``real`` and of samples.
        real: the current step's real images (N, C, H, W) on the device, this rank's part of the
            batch; empty before the first.
        labels: their classes (N,), which are also those of the fakes; None without classes.
        num_classes: how many classes the nets know; None for nets without.
        average: the moving average of G, whose ``net`` is sampled from; None if there is none.
        stop_reason: what the last ``stop`` said, or None.
        target_epochs, target_steps: what the current ``fit`` runs to; None if not given.
        batches_per_epoch: the length of the current ``fit``'s batches; None if not known.
        rollbacks: how often the run went back to a checkpoint; each gives it other noise.
        between_steps: whether the state is that of a complete step or epoch, seen by all hooks.

    Raises:
        ValueError: for nets that do not fit each other, or a discriminator that ends in a sigmoid,
            or ``sync_batch_norm`` on a CPU, or with ``capture`` or a penalty.
        TypeError: for a hook or a loss that is none, or an optimizer for what makes one.

    Examples:
        >>> import tinygan
        >>> trainer = GANTrainer(
        ...     tinygan.DCGANGenerator(8, base_channels=4).apply(tinygan.weights_init),
        ...     tinygan.DCGANDiscriminator(8, base_channels=4).apply(tinygan.weights_init),
        ... )
        >>> trainer.fit([torch.zeros(16, 3, 8, 8)], epochs=2)
        >>> trainer.step, trainer.sample(5).shape
        (2, torch.Size([5, 3, 8, 8]))
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        *,
        loss: losses.Loss | losses.PairedLoss | None = None,
        penalty: penalties.Penalty | Sequence[penalties.Penalty] | None = None,
        augment: augmentations.Augmentation | Sequence[augmentations.Augmentation] | None = None,
        ema_half_life: float | None = None,
        prior: sampling.Prior = sampling.normal,
        generator_optimizer: OptimizerFactory = dcgan_adam,
        discriminator_optimizer: OptimizerFactory = dcgan_adam,
        hooks: Sequence[Hook] = (),
        seed: int = 999,
        device: torch.device | str | None = None,
        latent_dim: int | None = None,
        dtype: torch.dtype | None = None,
        compile: bool = False,
        capture: bool = False,
        ranks: Ranks | None = None,
        sync_batch_norm: bool = False,
    ) -> None:
        check_nets(generator, discriminator)
        check_hooks(hooks)
        if latent_dim is None:
            latent_dim = getattr(generator, "latent_dim", None)
            if latent_dim is None:
                raise ValueError(
                    "latent_dim must be known, got None and a generator without the attribute "
                    "latent_dim; pass latent_dim=100, say."
                )
        self.latent_dim = checks.count("latent_dim", latent_dim)
        self.num_classes: int | None = getattr(generator, "num_classes", None)
        self._pack: int = getattr(discriminator, "pack", 1)
        # Before the device is asked for: "cuda" is another one on each rank.
        self.ranks = distributed.join() if ranks is None else ranks
        example = next(generator.parameters())
        self.device = torch.device(device) if device is not None else example.device
        self.dtype = precision.check(dtype, example.dtype)
        self.weights_dtype = example.dtype
        self.prior = prior
        self.hooks = tuple(hooks)
        self.seed = seed
        if sync_batch_norm:
            if capture or penalty:
                raise ValueError(
                    "sync_batch_norm must be without capture and penalty, got one of them; leave "
                    "it out: it can be neither recorded nor differentiated twice."
                )
            generator = batch_norm.synchronised(generator, self.device)
            discriminator = batch_norm.synchronised(discriminator, self.device)

        # Channels last is the layout in which convolutions run fastest.
        self.generator = generator.to(self.device).to(memory_format=torch.channels_last)
        self.discriminator = discriminator.to(self.device).to(memory_format=torch.channels_last)
        make = optimizers.make
        self.players = (
            Player("discriminator", discriminator, make(discriminator_optimizer, discriminator)),
            Player("generator", generator, make(generator_optimizer, generator)),
        )
        self.average = None if ema_half_life is None else Average(self.generator, ema_half_life)
        self.loss = losses.checked(losses.non_saturating() if loss is None else loss)
        self.penalties = penalties.listed(penalty)
        if self.penalties and batch_norm.is_in(self.discriminator):
            warnings.warn(
                "a penalty of a discriminator with batch norm mixes each image's slope with those "
                "of its batch; build it with norm=None.",
                stacklevel=2,
            )
        self.augmentations = augmentations.listed(augment)
        pieces = Step(
            *self.players,
            self.loss,
            penalties=self.penalties,
            augmentations=self.augmentations,
            dtype=dtype,
            compile=compile,
        )
        self._step = CapturedStep(pieces) if capture else pieces
        self._replica = Replica(self.ranks, self._step)

        self.step = 0
        self.images = 0
        self.epoch = 0
        self.batch = 0
        self.real = torch.empty(0)
        self.labels: torch.Tensor | None = None
        self.stop_reason: str | None = None
        self.target_epochs: int | None = None
        self.target_steps: int | None = None
        self.batches_per_epoch: int | None = None
        self.rollbacks = 0
        self.between_steps = True
        self._place: dict[str, Any] | None = None
        self._loaded = False
        self._received = signals.Received()
        self._all_stop = False
        self._too_many_skipped: NonFiniteError | None = None

    def fit(
        self,
        batches: Iterable[object],
        *,
        epochs: int | None = None,
        steps: int | None = None,
    ) -> None:
        """Train until ``epochs`` epochs or ``steps`` steps are complete, counted from the start.

        The target is absolute: calling again with the same one returns at once, and with a larger
        one goes on where the run stands, in the middle of an epoch too.

        The first SIGINT (Ctrl-C) or SIGTERM is a request to stop: the step is finished,
        ``on_fit_end`` is called, and then KeyboardInterrupt or SystemExit(143) raised. A second
        one ends the process at once.

        With several ranks all begin with the state of rank 0. A request to stop, a signal or an
        error on one of them ends all after the same step.

        Args:
            batches: iterable again and again, once per epoch, of images (N, C, H, W) in [-1, 1]
                or of (images, labels): a ``tinygan.data.Loader``, a ``DataLoader``, a list.
            epochs: the target in epochs; give either this or ``steps``.
            steps: the target in steps.

        Raises:
            ValueError: for both or neither of the targets, batches that give nothing, images that
                do not fit the nets or the range.
            NonFiniteError: for losses or gradients that were not finite in 20 steps in a row, if
                no hook goes back to a checkpoint.
            RankError: if another rank has failed, is lost, or holds other weights than rank 0.
        """
        if (epochs is None) == (steps is None):
            raise ValueError(
                f"give exactly one of epochs and steps, got epochs={epochs!r} and steps={steps!r}; "
                "use epochs=5, say."
            )
        self.target_epochs = None if epochs is None else checks.count("epochs", epochs)
        self.target_steps = None if steps is None else checks.count("steps", steps)
        self.batches_per_epoch = batches_of.length(batches)
        self.real = torch.empty(0)
        self.stop_reason = None
        self._all_stop = False
        if self._loaded:  # other batches may follow in one process, but what is resumed is one run
            try:
                batches_of.check_same(batches, self._place)
            except ValueError as error:
                self._replica.fail(error)
                raise
            self._loaded = False
        self.generator.train()
        self.discriminator.train()
        if not self.between_steps:
            logger.warning(
                "step %d was left unfinished by an error and is begun again: this is no longer the "
                "run that it was; to go on exactly, call trainer.resume(...) first.",
                self.step + 1,
            )
        with signals.as_requests(self.stop) as self._received:
            try:
                self._share_state(batches)
                call(self._watching, "on_fit_start", self)
                if self.batch == self.batches_per_epoch:
                    # Saved after an epoch's last step, before its end: that comes first, even if
                    # the target is reached.
                    self._train_epoch(batches)
                while not self._finished():
                    try:
                        self._train_epoch(batches)
                    except NonFiniteError as error:
                        self._go_back(error)
                self._agree()
                self._replica.check_identical(self.step, self.players)
                call(self._watching, "on_fit_end", self)
                self._agree()
            except BaseException as error:  # an interrupt is an ending too; hooks must hear of it
                if isinstance(error, LostRankError):
                    logger.error("%s", error)  # at once: hooks may wait for a GPU that waits for it
                elif isinstance(error, Exception):
                    self._replica.fail(error)
                call_on_exception(self._watching, self, error)
                raise

    def _train_epoch(self, batches: Iterable[object]) -> None:
        """Train on what is left of the current epoch, or until the run is finished."""
        rest, self.batch = batches_of.rest_of_epoch(batches, self.epoch, self.batch, self._place)
        with batches_of.closing(rest):
            batch: object = None
            while not self._finished():
                batch = next(rest, END)
                images, labels, size = self._part_of(batch, batches)
                if batch is END or self._stopping:
                    break  # asked to stop while waiting: this batch will be fetched again
                if self._fills_no_pack(size):
                    self.batch, self._place = self.batch + 1, batches_of.state(batches)
                    continue
                self._replica.begin_step(self.players)
                # Where the batches stand once this one is trained on: asked before any hook
                # runs, and kept only when the step is complete.
                place = batches_of.state(batches)
                self.between_steps = False
                # Not before its first batch is there: a run may be stopped while it waits for it.
                if self.batch == 0:
                    call(self._watching, "on_epoch_start", self)
                self._train_step(images, labels, size, place)
            if batch is END and self.batch == 0:
                raise ValueError(
                    f"batches must give something in every epoch, got nothing in epoch "
                    f"{self.epoch}; check that the data set holds at least one whole batch."
                )
            if not self._stopping:  # or a run that is stopped would check where others do not
                self._check_skipped()
            # The length tells that an epoch is complete even if the run ends with its last batch;
            # the batches are asked for one more, so that they know it too.
            if batch is END or (
                0 < self.batch == self.batches_per_epoch and next(rest, END) is END
            ):
                self.epoch += 1
                self.batch = 0
                self._place = batches_of.state(batches)
                self.between_steps = False
                call(self._watching, "on_epoch_end", self)
                self.between_steps = True

    def _part_of(
        self, batch: object, batches: Iterable[object]
    ) -> tuple[torch.Tensor, torch.Tensor | None, int]:
        """Return this rank's images and labels, and the batch's size, when all ranks have theirs.

        There all go on, or all stop.
        """
        images, labels, size, digest = torch.empty(0), None, 0, 0
        if batch is not END:
            classes = self.num_classes
            images, labels, size = batches_of.part(batch, batches, self.ranks, num_classes=classes)
            begins = self.real.numel() == 0 and not self._fills_no_pack(size)
            if begins or (self.batch == 0 and self.ranks.least(size) < self._pack):
                nets = self.generator, self.discriminator
                check_first_batch(images, labels, self.noise(0, 2), *nets)
            if self.real.numel() == 0 or self.batch == 0:
                labelled = classes is not None
                digest = batches_of.digest(batch, batches, self.ranks, labelled=labelled)
        self._agree(size, digest)
        if self.step % CHECK_EVERY == 0:
            self._replica.check_identical(self.step, self.players)
        return images, labels, size

    def _fills_no_pack(self, size: int) -> bool:
        """Whether a batch that is not an epoch's first is too small for D: it is left out."""
        return self.batch > 0 and self.ranks.least(size) < self._pack

    def _agree(self, size: int = NO_BATCH, digest: int = 0) -> None:
        """Meet the other ranks: a request to stop that one has is all ranks' from here on."""
        asked = self.stop_reason
        request = None if asked is None else Request(asked, self._received.number)
        request = self._replica.agree(size, digest, request)
        if request is not None:
            self.stop_reason = request.reason
            self._received.relay(request.signal)
            self._all_stop = True

    def _train_step(
        self,
        images: torch.Tensor,
        labels: torch.Tensor | None,
        size: int,
        place: dict[str, Any] | None,
    ) -> None:
        """One iteration: D backward, D update, G backward, G update, and hooks between them."""
        whole = len(images) // self._pack * self._pack  # what does not fill a pack is left out
        self.real = images[:whole].to(
            self.device, self.weights_dtype, non_blocking=True, memory_format=torch.channels_last
        )
        self.labels = None if labels is None else labels[:whole].to(self.device, non_blocking=True)
        call(self._watching, "on_step_start", self)

        discriminator, generator = self.players
        self._step.discriminator_backward(inputs.of_step(self, size))
        self._replica.average(discriminator, size)
        call(self._watching, "on_gradients", self, discriminator)
        self._step.discriminator_update()
        call(self._watching, "on_update", self, discriminator)
        self._step.generator_backward()
        self._replica.average(generator, size)
        call(self._watching, "on_gradients", self, generator)
        self._step.generator_update()
        call(self._watching, "on_update", self, generator)
        if self.average is not None:  # behind the hooks, which may change weights
            self.average.update(self.images + size, size, generator.moved)
        self._replica.agree()

        self.step += 1
        self.images += size
        self.batch += 1
        self._place = place
        if self.step % CHECK_EVERY == 0:
            self._check_skipped()
        call(self._watching, "on_step_end", self, self._step.report())
        self.between_steps = True

    @property
    def skipped(self) -> SkippedSteps:
        """The count of steps that were not finite and left no trace."""
        return self._step.skipped

    @property
    def loss_scale(self) -> precision.LossScale | None:
        """What float16's losses are multiplied by; None for other types."""
        return self._step.loss_scale

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

    def _go_back(self, error: NonFiniteError) -> None:
        """Let a hook load an earlier state and give the run other noise, or raise the error."""
        if self.ranks.count > 1 and error is not self._too_many_skipped:
            raise error  # by a hook of one rank: others do not go back
        rollbacks = self.rollbacks
        self._loaded = False
        call(self._watching, "on_non_finite", self, error)
        self._replica.agree()
        [loaded], *_ = self.ranks.gather([self._loaded])
        if not loaded:
            raise error
        self._share_state()
        self._loaded = False
        self.rollbacks = rollbacks + 1
        if self.ranks.is_first:
            went_back = "went back to step %d (rollback %d): %s"
            logger.warning(went_back, self.step, self.rollbacks, error)

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

    @property
    def _watching(self) -> list[Hook]:
        """The hooks that this rank's events reach."""
        return [hook for hook in self.hooks if self.ranks.is_first or not hook.first_rank_only]

    @property
    def _stopping(self) -> bool:
        # One of several ranks stops where all have agreed to.
        return self._all_stop or (self.ranks.count == 1 and self.stop_reason is not None)

    def _finished(self) -> bool:
        return (
            self._stopping
            or (self.target_steps is not None and self.step >= self.target_steps)
            or (self.target_epochs is not None and self.epoch >= self.target_epochs)
        )

    def noise(self, step: int, count: int) -> torch.Tensor:
        """Return the z of a training step, (count, Z): a pure function of the seed and the step.

        The first rows of a larger count are others: a part of a batch takes its part of the whole.
        After a rollback the noise is other noise, or the run would fail in the same way again.
        """
        z = self.prior(count, self.latent_dim, inputs.random(self, "noise", step))
        if z.shape != (count, self.latent_dim):
            raise ValueError(
                f"prior must draw z of the shape {(count, self.latent_dim)}, got {tuple(z.shape)}; "
                "give each image a row, as sampling.normal does."
            )
        return z.to(self.weights_dtype)

    @property
    def total_steps(self) -> int | None:
        """The steps at which the current ``fit`` is complete, or None if that is not known.

        They are fewer, by one per epoch, where the last batch is left out as it fills no pack.
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
    def fixed_noise(self) -> torch.Tensor:
        """The 64 vectors z, (64, Z), whose images show the run's progress."""
        generator = seeds.generator(self.seed, "fixed noise")
        return self.prior(64, self.latent_dim, generator)

    def sample(
        self,
        count: int = 64,
        *,
        seed: int = 0,
        labels: torch.Tensor | int | None = None,
        average: bool = True,
    ) -> torch.Tensor:
        """Return ``count`` generated images, (count, C, H, W) in [-1, 1], drawn with ``seed``.

        See ``generate`` for how, and for the other arguments; the run is left untouched.
        """
        z = self.prior(
            checks.count("count", count), self.latent_dim, seeds.generator(seed, "sample")
        )
        return self.generate(z, labels=labels, average=average)

    def generate(
        self,
        z: torch.Tensor,
        *,
        labels: torch.Tensor | int | None = None,
        average: bool = True,
    ) -> torch.Tensor:
        """Return G's images for ``z`` (N, Z): (N, C, H, W) in [-1, 1] on the trainer's device.

        Nothing of the run changes, see ``tinygan.sampling.generate``.

        Args:
            z: the noise.
            labels: the classes wanted, (N,) of int64, or one for all; None for each in turn.
            average: whether G's moving average makes the images, if there is one, or G itself.

        Raises:
            ValueError: for labels that the nets do not know, or any if they know no classes.
        """
        averaged = average and self.average is not None
        net = self.average.net if averaged else self.generator  # type: ignore[union-attr]
        return sampling.generate(net, z, labels=labels)

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
        if self.ranks.count == 1:
            return
        own = {f"batches.{k}": v for k, v in batches_of.configuration(batches).items()}
        own |= {"target.epochs": str(self.target_epochs), "target.steps": str(self.target_steps)}
        data = b""
        if self.ranks.is_first:
            state = {"run": self.state_dict(), "other": own, "between_steps": self.between_steps}
            data = checkpoint.to_bytes(state)
        self._replica.agree()
        data = self.ranks.send(data)
        if not self.ranks.is_first:
            state = checkpoint.from_bytes(data)
            words = ("on rank 0", f"on rank {self.ranks.rank}")
            found = run_state.differences(self, state["run"], words)
            found += checks.differences(state["other"], own, words)
            if found:
                raise ValueError(
                    "ranks must be alike, got differences:\n  " + "\n  ".join(found)
                    + "\nuse the same nets, seeds and data on every rank."
                )  # fmt: skip
            self._place = run_state.restore(self, state["run"])
            self.between_steps = state["between_steps"]
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
            >>> print(GANTrainer(*nets).resume("runs/new"))
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
