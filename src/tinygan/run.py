"""A run: what it counts and remembers, and how it is saved and resumed."""

from __future__ import annotations

import copy
import inspect
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from tinygan import optimizers, seeds
from tinygan._execution.capture import CapturedStep
from tinygan._execution.finite import NonFiniteError
from tinygan._execution.replica import Replica
from tinygan._execution.step import Step
from tinygan._run import batches as batches_of
from tinygan._run import checkpoint, checks
from tinygan._run.state import State, differences, matched_hooks, name_of, parts
from tinygan.algorithms import Algorithm
from tinygan.distributed import Ranks
from tinygan.nets.saved import describe, facts_of
from tinygan.nets.traits import evaluating
from tinygan.player import Player, Players
from tinygan.version import __version__

logger = logging.getLogger(__name__)

CHECK_EVERY = 50
"""How often, in steps, the count of skipped steps is read, which waits for the device."""

MAX_SKIPPED = 20
"""Skipped steps in a row after which a run goes back or ends: chance does not explain more."""

SCHEMA = 2
"""The number of a checkpoint's layout; it grows when older files need another reader."""

COUNTERS = ("step", "images", "epoch", "batch", "rollbacks")

DECLARED = ("image_size", "channels", "latent_dim")
"""What nets may say of themselves, and must say again when a run goes on."""


class Run:
    """What hooks see of a trainer, and checkpoints keep. Reading changes nothing.

    Attributes:
        step, images, epoch, batch: completed steps, real examples seen, completed epochs, and
            completed batches of the current epoch.
        players: by name and in order.
        data: the current step's batch on the device, this rank's part: its tensors (N, ...).
        hooks: all hooks, in order.
        seed, device, dtype: what random draws depend on; where and in which type the run trains.
        ranks: the processes of the run.
        skipped: the count of steps that were not finite and left no trace.
        loss_scale: what float16's losses are multiplied by; None for other types.
        stop_reason: what the last ``stop`` said, or None.
        target_epochs, target_steps: what the current ``fit`` runs to; None if not given.
        batches_per_epoch: the length of the current ``fit``'s batches; None if not known.
        rollbacks: how often the run went back to a checkpoint; each gives it other noise.
        between_steps: whether the state is that of a complete step or epoch, seen by all hooks.
    """

    def __init__(
        self,
        players: Players,
        algorithm: Algorithm,
        hooks: Sequence[Any],
        seed: int,
        dtype: torch.dtype,
        ranks: Ranks,
        step: Step | CapturedStep,
        replica: Replica,
        sample: Callable[[Players], torch.Tensor] | None = None,
    ) -> None:
        self.players, self.algorithm, self.hooks = players, algorithm, tuple(hooks)
        self.seed, self.dtype, self.ranks = seed, dtype, ranks
        seeds.mix(seed)  # or it would be refused in the first step
        self.device, self.weights_dtype = players[0].device, players[0].weights_dtype
        self.step = self.images = self.epoch = self.batch = self.rollbacks = 0
        self.data: tuple[torch.Tensor, ...] = ()
        self.stop_reason: str | None = None
        self.target_epochs: int | None = None
        self.target_steps: int | None = None
        self.batches_per_epoch: int | None = None
        self.between_steps = True
        self._step, self._replica, self._sample = step, replica, sample
        self.skipped, self.loss_scale = step.skipped, step.loss_scale
        # Where the batches stand, by what they say, once the last complete step was fetched.
        self._place: State | None = None
        self._allow: tuple[str, ...] = ()
        self._loaded = self._is_fitting = False
        self._token = object()  # by which hooks know their run, and do not keep it alive
        self._too_many_skipped: NonFiniteError | None = None

    @property
    def real(self) -> torch.Tensor:
        """The current step's real examples (N, ...): the first of ``data``, or empty."""
        return self.data[0] if self.data else torch.empty(0, dtype=torch.float32, device="cpu")

    @property
    def total_steps(self) -> int | None:
        """The steps of the current ``fit``, if all batches are used; None if not known."""
        if self.target_epochs is None or self.batches_per_epoch is None:
            return self.target_steps
        return self.target_epochs * self.batches_per_epoch

    @property
    def total_epochs(self) -> int | None:
        """The epochs, begun ones included, of the current ``fit``; None if not known."""
        if self.target_steps is None or self.batches_per_epoch is None:
            return self.target_epochs
        return -(-self.target_steps // self.batches_per_epoch)

    @property
    def compared_step(self) -> int:
        """The step at which all of several ranks were last found to hold the same bits."""
        return self._replica.compared_step

    @torch.no_grad()
    def pictures(self) -> torch.Tensor:
        """Return the images (N, C, H, W) in [-1, 1] that show how far the run is."""
        if not callable(self._sample):
            raise ValueError(
                f"sample must make the images that hooks show, got {self._sample!r}; make the "
                "trainer with sample=lambda players: players.generator.sample(z)."
            )
        with evaluating(*(player.module for player in self.players)):
            images = self._sample(self.players)
        if not isinstance(images, torch.Tensor) or images.dim() != 4:
            given = tuple(getattr(images, "shape", ())) or type(images).__name__
            raise ValueError(f"sample must return images (N, C, H, W) in [-1, 1], got {given}.")
        return images

    def stop(self, reason: str) -> None:
        """Ask ``fit`` to return after the current step; ``stop_reason`` keeps why."""
        self.stop_reason = reason

    @property
    def _watching(self) -> list[Any]:
        """The hooks that this rank's events reach."""
        return [hook for hook in self.hooks if self.ranks.is_first or not hook.first_rank_only]

    def _check_skipped(self) -> None:
        """Log skipped steps; raise NonFiniteError if there are too many in a row."""
        try:
            sentence = self.skipped.report(self.step, MAX_SKIPPED)
        except NonFiniteError as error:
            self._too_many_skipped = error
            raise
        if sentence is not None and self.ranks.is_first:
            if self.loss_scale is not None:
                scale = float(self.loss_scale.state[0])  # sync
                sentence += f" In float16 that is how the loss scale is found; it is {scale:g} now."
            logger.warning("%s", sentence)

    def __reduce__(self) -> Any:
        """Refuse ``torch.save(trainer)`` and ``copy.deepcopy``."""
        raise TypeError("a trainer must be saved by trainer.save(path), and made anew to resume.")

    def state_dict(self) -> State:
        """Return all that the run needs to go on; its tensors are live: copy them, or save them."""
        state = self._state_without_hooks()
        hooks = {name: hook.state_dict() for name, hook in self._named_hooks().items()}
        # Hooks without a state are left out, so that runs in two folders have equal states.
        folders = {name: at for name, at in state["folders"].items() if hooks[name]}
        return state | {"hooks": hooks, "folders": folders}

    def _state_without_hooks(self) -> State:
        """Return all by which a run is known: hooks may have no state yet."""
        words = {
            "seed": str(self.seed),
            "dtype": str(self.dtype),
            "players": ", ".join(player.name for player in self.players),
            "algorithm": name_of(self.algorithm),
        }
        for name, value in getattr(self.algorithm, "settings", {}).items():
            words |= parts(name, value)
        for player in self.players:
            words |= _words_of(player)
        folders = {}
        for name, hook in self._named_hooks().items():
            for setting, value in hook.settings.items():
                words |= parts(f"hooks.{name}.{setting}", value)
            if isinstance(where := getattr(hook, "folder", None), (str, os.PathLike)):
                folders[name] = os.path.abspath(where)
        return {
            "schema": SCHEMA,
            "versions": {"tinygan": __version__, "torch": str(torch.__version__)},
            "configuration": words,
            "defaults": {
                f"{player.name} optimizer.{name}": str(option.default)
                for player in self.players
                for name, option in inspect.signature(type(player.optimizer)).parameters.items()
            },
            "players": {player.name: _state_of(player) for player in self.players},
            "nets": {p.name: facts_of(p.module) | describe(p.module) for p in self.players},
            "hooks": {name: {} for name in self._named_hooks()},
            "folders": folders,
            "skipped": self.skipped.counts,
            "batches": self._place,
            **{name: getattr(self, name) for name in COUNTERS},
            **({} if self.loss_scale is None else {"loss_scale": self.loss_scale.state}),
        }

    def _named_hooks(self) -> dict[str, Any]:
        """Return the hooks by the names of their classes, numbered if there are several of one."""
        found: dict[str, Any] = {}
        for hook in self.hooks:
            name = type(hook).__name__
            number = 1 + sum(type(other).__name__ == name for other in found.values())
            found[name if number == 1 else f"{name}-{number}"] = hook
        return found

    def load_state_dict(self, state: State) -> None:
        """Take back what ``state_dict`` returned; ValueError, and no change, if it does not fit.

        The device, and how optimizers are executed (fused, foreach), are this trainer's own.
        """
        if state.get("schema") != SCHEMA:
            remedy = f"load it by the version that wrote it: {state.get('versions')}"
            if "schema" not in state:
                remedy = "weights go into net.load_state_dict, before the trainer is made"
            raise ValueError(
                f"a checkpoint must have schema {SCHEMA}, got {state.get('schema')!r}; {remedy}."
            )
        found, never = differences(state, self._state_without_hooks())
        checks.refuse(found, self._allow, never)
        if found:
            logger.warning("going on, as allowed, with what differs: %s", found)
        self._restore(state, found)
        self._loaded = self.between_steps = True

    def _restore(self, state: State, found: Mapping[str, str]) -> None:
        """Take in a state that fits, except for the options that are found to differ."""
        known = matched_hooks(state, self._state_without_hooks())
        state = copy.deepcopy(state)  # optimizers keep the very tensors they are given
        for player in self.players:
            _load(player, state["players"][player.name], found)
        for name, hook in self._named_hooks().items():
            if known.get(name) in state["hooks"]:
                hook.load_state_dict(state["hooks"][known[name]])
        for name in COUNTERS:
            setattr(self, name, state[name])
        self.skipped.load(state["skipped"])
        if self.loss_scale is not None and "loss_scale" in state:
            self.loss_scale.state.copy_(state["loss_scale"])
        self._place = state["batches"]

    def _check_not_in_fit(self, call: str) -> None:
        """Raise ValueError if ``fit`` runs: it would not notice the call, and train on."""
        if self._is_fitting:
            raise ValueError(
                f"{call} must not be called while the same trainer is in fit, for example by a "
                "hook or another thread; call it before or after."
            )

    def _check_batches(self, batches: Iterable[object]) -> None:
        """Raise ValueError for other batches than were saved or begun, unless they are allowed."""
        if self._loaded or self.batch:  # between epochs others may follow in one process
            try:
                self._place, self.batch = batches_of.fitting(
                    batches, self._place, self.batch, self._allow
                )
            except ValueError as error:
                if not self._loaded:
                    error.add_note(
                        f"epoch {self.epoch} began with other batches; finish it with them"
                    )
                raise
        self._loaded = False

    def _share_state(self, batches: Iterable[object] = ()) -> None:
        """Give all ranks the state of rank 0, if they are alike."""
        if self.ranks.count == 1:
            return
        own = {"target.epochs": str(self.target_epochs), "target.steps": str(self.target_steps)}
        for name, value in getattr(batches, "configuration", {}).items():
            own[f"batches.{name}"] = str(value)
        data = b""
        if self.ranks.is_first:
            state = {"run": self.state_dict(), "own": own, "between_steps": self.between_steps}
            data = checkpoint.to_bytes(state)
        self._replica.agree()
        data = self.ranks.send(data)
        if not self.ranks.is_first:
            sent = checkpoint.from_bytes(data)
            words = ("on rank 0", f"on rank {self.ranks.rank}")
            found, never = differences(sent["run"], self._state_without_hooks(), words)
            found |= never | checks.differences(sent["own"], own, words)
            if found:
                lines = "".join(f"\n  {name}: {both}" for name, both in found.items())
                raise ValueError(f"ranks must be alike, got differences:{lines}")
            self._restore(sent["run"], {})
            self.between_steps = sent["between_steps"]
        self._step.begin_anew()
        self._replica.agree()
        self._replica.compared_step = self.step

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the run's state into one file, whole or not at all; see ``hooks.Checkpoint``.

        Folders above it are made. Raises ValueError for what is not finite, or a ``path`` that is
        a folder, and OSError if the file could not be written.
        """
        path = checks.path("path", path)
        state = self.state_dict()
        self.check_finite(state)
        # Relative, for a run's folder may be moved; but not to another of Windows' drives.
        drive = os.path.splitdrive(path.absolute())[0]
        folders = {
            name: os.path.relpath(at, path.parent) if at.startswith(drive) else at
            for name, at in state["folders"].items()
        }
        checkpoint.save(state | {"folders": folders}, path)

    @cached_property
    def _infinite(self) -> dict[str, bool]:
        """What is infinite before the first step, as an attention mask is; first asked then."""
        return checkpoint.not_finite({p.name: _nets_of(p) for p in self.players}, "players")

    def check_finite(self, state: State) -> None:
        """Raise ValueError for what is not finite in a state, and was before the first step."""
        for where, has_nan in checkpoint.not_finite(state["players"], "players").items():
            if has_nan or where not in self._infinite:
                raise ValueError(
                    f"what is saved must be finite, got {where} with values that are not; go back "
                    "to an earlier checkpoint, or make a mask before the first step."
                )

    def resume(
        self, path: str | os.PathLike[str], *, allow: str | Iterable[str] = ()
    ) -> Path | None:
        """Go on from a checkpoint; return its file, or None for a new run, and say so.

        So the same program begins a run and finishes it. In a folder, files that are not whole are
        passed over with a warning. All ranks of a run call this together; rank 0 reads.

        Args:
            path: ``hooks.Checkpoint``'s folder, of which the newest good file is taken, or a file,
                which ends in ``.pt``.
            allow: what may differ from the run that was saved, by the names that the error gives:
                ``"generator optimizer.lr"``, or the beginning of several, ``"hooks"``. The new
                values are used. Nets of other shapes are never allowed.

        Raises:
            CheckpointError: for a file that is missing or damaged, or a folder of damaged ones.
            ValueError: for the checkpoint of a different run, with every difference.

        Examples:
            >>> import tinygan
            >>> nets = tinygan.DCGANGenerator(8), tinygan.DCGANDiscriminator(8)
            >>> print(tinygan.GANTrainer(*nets).resume("runs/new"))
            None
        """
        self._check_not_in_fit("resume")
        where = checks.path("path", path)
        self._allow = checks.several("allow", allow, str, "use names from the error.")
        file: Path | None = self.ranks.first(
            lambda: self._resume_here(where), f"resuming from {path}"
        )
        if file is not None:
            try:
                self._share_state()
            except Exception as error:
                self._replica.fail(error)
                raise
            self._loaded = True
        return file

    def _resume_here(self, path: Path) -> Path | None:
        file, state = checkpoint.find(path)
        try:
            if file is not None:
                self.load_state_dict(state)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
        return file


def _words_of(player: Player) -> dict[str, str]:
    """Return in words what must be the same of a player when a run goes on."""
    own = f"{player.name} optimizer"
    words = {player.name: name_of(type(player.module)), own: name_of(type(player.optimizer))}
    for name in DECLARED:
        value = getattr(player.module, name, ...)
        if isinstance(value, int | str | tuple | list | None):  # or it means something else
            words[f"{player.name}.{name}"] = str(value)
    if player.average is not None:
        words |= parts(f"{player.name}.ema_half_life", player.average.half_life)
    for name, value in getattr(player.optimizer, "defaults", {}).items():
        if name not in optimizers.EXECUTION:
            plain = value.item() if isinstance(value, torch.Tensor) else value
            words[f"{own}.{name}"] = str(plain)
    return words


def _nets_of(player: Player) -> State:
    nets = {"module": player.module}
    if player.average is not None:
        nets["average"] = player.average.net
    return {name: net.state_dict() for name, net in nets.items()}


def _state_of(player: Player) -> State:
    """Return what must be remembered of a player."""
    return _nets_of(player) | {"optimizer": optimizers.state_of(player.optimizer, player.module)}


def _load(player: Player, saved: State, found: Mapping[str, str]) -> None:
    """Take that back, except for the optimizer's options that are found to differ."""
    tensors = [each for each in saved["module"].values() if isinstance(each, torch.Tensor)]
    if any(each.dim() == 4 and not each.is_contiguous() for each in tensors):
        player.lay_out(torch.channels_last)  # so that samples have the same bits before a fit too
    player.module.load_state_dict(saved["module"])
    if player.average is not None:
        player.average.net.load_state_dict(saved["average" if "average" in saved else "module"])
    own = f"{player.name} optimizer"
    if own in found:  # of another class, for which the moments mean nothing
        return
    if any(name.startswith(f"{own}.group ") for name in found):
        saved["optimizer"] |= {"groups": [], "own": {}}
    for group in saved["optimizer"]["groups"]:
        for name in [name for name in group["options"] if f"{own}.{name}" in found]:
            del group["options"][name]
    optimizers.load_state(player.optimizer, player.module, saved["optimizer"])
