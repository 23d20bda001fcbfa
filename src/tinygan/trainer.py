"""The trainer: a loop to be read beside the algorithm."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import torch

from tinygan import seeds
from tinygan._execution.capture import CapturedStep
from tinygan._execution.execution import Execution, checked
from tinygan._execution.finite import NonFiniteError
from tinygan._execution.replica import NO_BATCH, Replica, Request
from tinygan._execution.step import Step
from tinygan._run import batches as batches_of
from tinygan._run import checks, signals
from tinygan.algorithms import Algorithm, check_algorithm
from tinygan.batch import Batch, Draws
from tinygan.distributed import LostRankError
from tinygan.hook import (
    Hook,
    call,
    call_on_exception,
    check_hooks,
    check_unused,
    listens_at_borders,
)
from tinygan.nets.traits import layout
from tinygan.player import Player, Players
from tinygan.run import CHECK_EVERY, Run

logger = logging.getLogger(__name__)

END = object()
"""Stands for "no more batches", which no loader can give."""
LOST = object()
"""Stands for a batch that a signal to stop has cost, as it ended those who load."""


class Trainer(Run):
    """Train the players of any adversarial game by an algorithm.

    ``GANTrainer`` is this for a generator and a discriminator. The page "Your own algorithm" of the
    documentation explains how to write one.

    Args:
        players: who plays, each with its own optimizer.
        algorithm: a generator function of the players and a batch, see ``tinygan.algorithms``.
        sample: a function that makes the images (N, C, H, W) in [-1, 1] which hooks show, called as
            ``sample(players)`` with all nets in evaluation mode; None for games without images.
        accumulate: in how many parts a batch goes through the algorithm before its players move.
            It divides the memory that is needed, and batch norm sees each part alone.
        hooks: they watch the run, one or several, and are called in this order.
        seed: decides all that the run draws. Initial weights, and the loader's order, have seeds
            of their own.
        device: where to train; None for where the first player's net is.
        execution: how steps are run: in which type, compiled or captured, by which processes.

    Its attributes are those of ``tinygan.run.Run``.

    Raises:
        ValueError: for players that share names or weights, or an execution that is not possible.
        TypeError: for anything that is not a hook, a player or an algorithm.

    Examples:
        >>> from torch import nn
        >>> from tinygan import algorithms
        >>> generator, discriminator = nn.Linear(4, 2), nn.Linear(2, 1)
        >>> generator.latent_dim = 4
        >>> players = [Player("discriminator", discriminator), Player("generator", generator)]
        >>> trainer = Trainer(players, algorithms.gan())
        >>> trainer.fit([torch.zeros(16, 2)], epochs=3)
        >>> trainer.step
        3
    """

    def __init__(
        self,
        players: Sequence[Player],
        algorithm: Algorithm,
        *,
        sample: Callable[[Players], torch.Tensor] | None = None,
        accumulate: int = 1,
        hooks: Iterable[Hook] = (),
        seed: int = 999,
        device: torch.device | str | None = None,
        execution: Execution = Execution(),  # noqa: B008 - it is a constant
    ) -> None:
        game = Players(players)
        check_algorithm(algorithm)
        accumulate = checks.count("accumulate", accumulate)
        watching = check_hooks(hooks)
        self._execution = checked(execution)
        ranks, dtype, scale = execution.prepare(game, device)
        self._eager = step = Step(game, algorithm, accumulate=accumulate, loss_scale=scale)
        replica = Replica(ranks, game, step.measured)
        executed = CapturedStep(step, alone=ranks.count == 1) if execution.capture else step
        super().__init__(game, algorithm, watching, seed, dtype, ranks, executed, replica, sample)
        joins = [checks.count("join", getattr(player.module, "join", 1)) for player in game]
        turns = getattr(algorithm, "turns", 1)
        # What the size of this rank's part is a multiple of: the rest is left out.
        self._parts = {"d_steps": turns, "accumulate": accumulate, "join": math.prod(joins)}
        self._multiple = math.prod(self._parts.values())
        self._received = signals.Received()
        self._all_stop = False
        self._rehearsed: set[int] = set()  # sizes of batches
        self._layout = layout(self.device)

    def fit(
        self, batches: Iterable[object], *, epochs: int | None = None, steps: int | None = None
    ) -> None:
        """Train until ``epochs`` epochs or ``steps`` steps are complete, counted from the start.

        The target is absolute: a second call with the same target returns at once, and one with a
        larger target goes on where the run stands, in the middle of an epoch too.

        The first SIGINT (Ctrl-C) or SIGTERM is a request to stop: the step is finished,
        ``on_fit_end`` is called, and KeyboardInterrupt or SystemExit(143) is raised. A second one
        takes effect at once, in the middle of the step.

        With several ranks all begin with the state of rank 0. A request to stop or a signal on one
        of them ends all after the same step. An error ends all in the same step, which the other
        ranks may complete.

        Args:
            batches: can be iterated once per epoch, and gives tensors (N, ...) or tuples of them
                that begin with the real examples; images are in [-1, 1]. A
                ``tinygan.data.Loader``, a ``DataLoader``, a list.
            epochs: the target in epochs; give either this or ``steps``.
            steps: the target in steps.

        Raises:
            ValueError: for both or neither of the targets, batches that do not fit the nets or the
                range, an algorithm that breaks a rule.
            TypeError: for batches that are not tensors, cannot be iterated again, or lack labels.
            NonFiniteError: for 20 steps in a row that were not finite, if no hook goes back.
            RankError: if another rank has failed, is lost, or holds other weights.
        """
        with (
            self._begun(batches, epochs, steps),
            self._execution.cudnn_trials(),
            signals.as_requests(self.stop) as self._received,
        ):
            try:
                self._check_batches(batches)
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
                        self._check_batches(batches)
                self._agree()
                self._replica.check_identical(self.step)
                call(self._watching, "on_fit_end", self)
                self._agree()
            except BaseException as error:  # an interrupt is an ending too; hooks must hear of it
                if isinstance(error, LostRankError):
                    logger.error("%s", error)  # at once: hooks may wait for a GPU that waits for it
                elif isinstance(error, Exception):
                    self._replica.fail(error)
                call_on_exception(self._watching, self, error)
                raise

    @contextmanager
    def _begun(
        self, batches: Iterable[object], epochs: int | None, steps: int | None
    ) -> Iterator[None]:
        """Check the arguments of ``fit`` and make ready; within the block the trainer is in it."""
        self._check_not_in_fit("fit")
        if not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
            raise ValueError(
                "fit needs gradients, but gradients are disabled here; call it outside "
                "torch.no_grad() and inference_mode(), after torch.set_grad_enabled(True)."
            )
        if (epochs is None) == (steps is None):
            raise ValueError(
                f"give either epochs or steps, got epochs={epochs!r} and steps={steps!r}; for "
                "example epochs=5."
            )
        self.target_epochs = None if epochs is None else checks.count("epochs", epochs)
        self.target_steps = None if steps is None else checks.count("steps", steps)
        self.batches_per_epoch = batches_of.length(batches)
        self.data = ()
        self.stop_reason = None
        self._all_stop = False
        check_unused(self.hooks, self._token)
        self.players.check_optimizers()
        _ = self._infinite
        for player in self.players:
            # A net that trains may have parts that do not, such as a frozen batch norm.
            if not player.module.training:
                player.module.train()
        if not self.between_steps:
            logger.warning(
                "an error left step %d unfinished; it is started again, so this run differs from "
                "one without the error. To go on exactly, call trainer.resume(...) first.",
                self.step + 1,
            )
        self._is_fitting = True
        try:
            yield
        finally:
            self._is_fitting = False

    def _train_epoch(self, batches: Iterable[object]) -> None:
        """Train on what is left of the current epoch, or until the run is finished."""
        rest, self.batch = batches_of.rest_of_epoch(batches, self.epoch, self.batch, self._place)
        with batches_of.closing(rest):
            batch: object = None
            while not self._finished():
                batch = self._next(rest)
                examples, size = self._part_of(batch, batches)
                if batch is END or self._stopping:
                    break  # asked to stop while waiting: this batch will be fetched again
                if self.batch > 0 and self._is_too_small(size):
                    self.batch, self._place = self.batch + 1, batches_of.state(batches)
                    continue
                # Where the batches stand once this one is trained on: asked before any hook
                # runs, and kept only when the step is complete.
                place = batches_of.state(batches)
                self.between_steps = False
                # Not before its first batch is there: a run may be stopped while it waits for it.
                if self.batch == 0:
                    call(self._watching, "on_epoch_start", self)
                self._train_step(examples, size, place)
            if batch is END and self.batch == 0:
                raise ValueError(
                    f"batches must not be empty, got none in epoch {self.epoch}; check that the "
                    "data set holds at least one whole batch."
                )
            if not self._stopping:  # or a run that is stopped would check where others do not
                self._check_skipped()
            # By its length an epoch is complete even if the run ends with its last batch; the
            # batches are asked for one more, so that they know it too.
            if batch is END or (
                0 < self.batch == self.batches_per_epoch and self._next(rest) is END
            ):
                batches_of.check_complete(self.epoch, self.batch, self.batches_per_epoch)
                self.epoch += 1
                self.batch = 0
                self._place = batches_of.state(batches)
                self.between_steps = False
                call(self._watching, "on_epoch_end", self)
                self.between_steps = True

    def _next(self, rest: Iterator[object]) -> object:
        try:
            return next(rest, END)
        except Exception as error:
            if self._received.number:  # it went to the whole process group, workers included
                return END if self.batch == self.batches_per_epoch else LOST
            batches_of.explain(error)
            raise

    def _train_step(
        self, examples: tuple[torch.Tensor, ...], size: int, place: dict[str, Any] | None
    ) -> None:
        """Run the algorithm once: at each of its borders a player moves, and hooks run."""
        self.data = examples
        call(self._watching, "on_step_start", self)
        if isinstance(self._step, CapturedStep):
            self._step.watch(listens_at_borders(self.hooks))  # the same on all ranks
        for player in self.players:
            if player.average is not None:
                player.average.begin(self.images, size)

        with closing(self._step.phases(self._batch(examples, size))) as phases:
            for player in phases:
                self._replica.average(player, self.ranks.share(size, self._multiple))
                call(self._watching, "on_gradients", self, player)
                self._step.update(player)
                call(self._watching, "on_update", self, player)

        self.step += 1
        self.images += size
        self.batch += 1
        self._place = place
        if self.step % CHECK_EVERY == 0:
            self._check_skipped()
        call(self._watching, "on_step_end", self, self._step.report)
        self.between_steps = True

    def _batch(self, examples: Sequence[torch.Tensor], size: int) -> Batch:
        """Return the next step's batch: this rank's examples, of a whole batch of ``size``."""
        start = self.ranks.part(size).start
        own = slice(start, start + len(examples[0]))
        shape = (size, *examples[0].shape[1:])
        return Batch(examples, Draws(self._generator, shape, own, self.images, self.step))

    def _generator(self, name: str, step: int | None = None) -> torch.Generator:
        """Return the random generator of a name in a step; after a rollback it draws other numbers.

        Otherwise the run would fail in the same way again.
        """
        again = (self.rollbacks,) if self.rollbacks else ()
        key = (name, self.step if step is None else step, *again)
        return seeds.generator(self.seed, *key, device=self.device)

    def _part_of(
        self, batch: object, batches: Iterable[object]
    ) -> tuple[tuple[torch.Tensor, ...], int]:
        """Return this rank's examples and the whole batch's size, when all ranks have theirs.

        From there, all go on or all stop.
        """
        examples: tuple[torch.Tensor, ...] = ()
        size, digest = 0, 0
        if batch is not END and batch is not LOST:
            given = self._examples(batch)
            own, size = batches_of.part(given, batches, self.ranks)
            begins = not self.data and not (self.batch > 0 and self._is_too_small(size))
            if begins:
                smallest, self._eager.whole = batches_of.sizes(batches, size)
                self._try(own, size, smallest if self._ends_epoch() else size)
            elif self.batch == 0 and self._is_too_small(size):
                self._check_first(own)
            if not self.data or self.batch == 0:
                digest = batches_of.digest(given, batches, self.ranks)
            whole = len(own[0]) // self._multiple * self._multiple
            examples = tuple(self._moved(tensor[:whole]) for tensor in own)
        self._agree(size, digest)
        if self.step % CHECK_EVERY == 0:
            self._replica.check_identical(self.step)
        return examples, size

    def _try(self, own: Sequence[torch.Tensor], size: int, smallest: int) -> None:
        """Check a fit's first batch, and rehearse with it, in a layout that all nets take.

        Channels last is the layout in which convolutions of images run fastest, but a net that
        calls ``view`` may need the usual one: it alone, or, at last, all that is in the run.
        """
        players, plain, fast = list(self.players), torch.contiguous_format, layout(self.device)
        held = itertools.chain(own, *(player.module.parameters() for player in players))
        tries: list[list[Player]] = [[]]
        if fast != plain and any(tensor.dim() == 4 for tensor in held):
            tries += [*([each] for each in players if len(players) > 1), players]
        failed: Exception | None = None
        for usual in tries:
            if not self._rehearsed:
                for player in players:
                    player.lay_out(plain if player in usual else fast)
                self._layout = plain if usual == players else fast
            try:
                for each in dict.fromkeys((size, smallest)):
                    self._try_size(own, each, size)
                failed = None  # it would keep what was computed
                return
            except (RuntimeError, AssertionError) as error:
                failed = failed or error
                if self._rehearsed or isinstance(error, torch.OutOfMemoryError):
                    break
        assert failed is not None
        raise failed

    def _try_size(self, own: Sequence[torch.Tensor], size: int, first: int) -> None:
        """Rehearse with as many examples of a first batch as one of ``size`` has here."""
        part = self.ranks.part(size)
        rows = (part.stop - part.start) // self._multiple * self._multiple
        try:
            if size == first:
                self._check_first(own)
            if rows and size not in self._rehearsed:
                self._eager.rehearse(
                    self._batch([self._moved(tensor[:rows]) for tensor in own], size)
                )
                self._rehearsed.add(size)
        except Exception as error:
            lone = "Expected more than 1 value per channel" in str(error)
            if isinstance(error, torch.OutOfMemoryError) or (size == first and not lone):
                raise
            which = "the last or smallest batch" if size < first or self.batch else "batches"
            raise ValueError(
                f"{which} must have a size that the nets can train on, got {size}, which fails "
                f"with {str(error)!r}; use another batch size, drop_last=True, or nets without "
                "batch norm."
            ) from error

    def _ends_epoch(self) -> bool:
        """Return whether this fit comes to an epoch's last batch, as far as that is known."""
        steps, length = self.target_steps, self.batches_per_epoch
        return steps is None or length is None or steps - self.step >= length - self.batch

    def _is_too_small(self, size: int) -> bool:
        """Return whether a batch of ``size`` is smaller than what the algorithm needs of a rank."""
        return bool(self.ranks.sizes(size)[-1] < self._multiple)

    def _moved(self, tensor: torch.Tensor) -> torch.Tensor:
        dtype = self.weights_dtype if tensor.is_floating_point() else tensor.dtype
        form = self._layout if tensor.dim() == 4 else torch.preserve_format
        if tensor.is_inference():  # autograd could not keep it
            tensor = tensor.clone()
        aside = self.device.type == "cuda"  # MPS may copy after the batch is freed (pytorch#189690)
        return tensor.to(self.device, dtype, non_blocking=aside, memory_format=form)

    def _examples(self, batch: object) -> Sequence[torch.Tensor]:
        """Return the tensors of a batch that the algorithm is given."""
        return batches_of.tensors(batch)

    def _check_first(self, examples: Sequence[torch.Tensor]) -> None:
        """Raise ValueError if this rank's part of a first batch does not fit."""
        if self.batch == 0:  # an epoch's last batch may be short
            batches_of.check_size(len(examples[0]), **self._parts)

    def _agree(self, size: int = NO_BATCH, digest: int = 0) -> None:
        """Meet the other ranks: from here on, a request to stop one rank stops all."""
        asked = self.stop_reason
        request = None if asked is None else Request(asked, self._received.number)
        request = self._replica.agree(size, digest, request)
        if request is not None:
            self.stop_reason = request.reason
            self._received.relay(request.signal)
            self._all_stop = True

    def _go_back(self, error: NonFiniteError) -> None:
        """Let a hook load an earlier state and draw other noise from there, or raise the error."""
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
        self.rollbacks = rollbacks + 1
        if self.ranks.is_first:
            went_back = "went back to step %d (rollback %d): %s"
            logger.warning(went_back, self.step, self.rollbacks, error)

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
