"""The pieces of a step as CUDA graphs: recorded once, then replayed without Python in between.

A step is some hundreds of small kernels, which a GPU runs faster than Python can ask for them. A
graph asks for all of a piece at once. A piece is what the algorithm does up to its next border, or
a player's update. Hooks run at the borders as ever: they may read gradients and weights, change
them in place, replace a gradient, change the learning rate, load a state.

Python inside the nets, the algorithm and the optimizers (hooks of their own, a line that prints)
runs only while a step is recorded.
"""

from __future__ import annotations

import gc
import logging
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from typing import TypeAlias

import torch
from torch import nn

from tinygan import optimizers
from tinygan._execution.cuda_graphs import Recorder, Replay, recorder_for
from tinygan._execution.step import Done, Progress, Step
from tinygan.batch import Batch, Draw
from tinygan.player import Player
from tinygan.report import Report

_log = logging.getLogger(__name__)

WARM_UP = 3
"""Eager steps before a recording: libraries choose and prepare their kernels in the first ones."""

MOST = 4
"""Kinds of steps that are recorded: whole and short batches, with the penalty and without."""

MOST_ANEW = 16
"""How often all is recorded anew: more often, it would cost more than it brings."""

Kind: TypeAlias = tuple[tuple[torch.Size, ...], tuple[bool, ...], int]
"""The shapes of the batch, the answers of ``batch.every``, and the whole batch's size.

By the last, ranks with parts of unequal size record and replay in the same steps, as they must: a
learning rate that changes has not the same bits in both.
"""


class CapturedStep:
    """A step whose pieces are recorded, for each kind of step, and then replayed.

    What cannot be recorded runs eagerly, with one warning.

    Args:
        step: the step that is to be recorded.

    Attributes:
        watched: whether hooks run between the pieces. What they may have changed is then looked for
            after each of them, and not only once before the step.
    """

    def __init__(self, step: Step) -> None:
        self._step = step
        self.watched = True
        self.skipped = step.skipped
        self.loss_scale = step.loss_scale
        self._recorder = recorder_for(step.device)
        self._warned: set[str] = set()
        if self._recorder is None:
            self._warn("capture needs a CUDA device, got %s: steps run eagerly.", step.device)
        self._asked: set[int] = set()
        self._seen: Counter[Kind] = Counter()
        self._drawn: dict[Kind, dict[str, Draw]] = {}
        """How each kind of step draws, by the names of its draws."""
        self._waits: dict[Kind, list[str]] = {}
        """What the last eager step of each kind has waited for."""
        self._recordings: dict[Kind, _Recording] = {}
        self._memory = _Memory()
        # A constant rate is recorded as such, in all its bits; one that has changed, as a tensor.
        self._rates_change = False
        self._forgotten = 0
        self._border: _Border | None = None
        """Where the step that is replayed stands; None in one that runs eagerly."""
        self._done: Done | None = None
        """What a replayed step has done, if hooks may end the replay."""
        self._waited: list[str] = []
        self._report: Report | None = None

    def phases(self, batch: Batch) -> Generator[Player]:
        """Do as ``Step.phases`` does."""
        self._done, self._waited, self._report, self._border = None, [], None, None
        recording = self._recording(batch)
        if recording is not None:
            yield from self._replayed(recording, batch)
            return
        yield from self._eager_phases(batch)
        self._asked |= batch.draws.asked
        kind = self._kind(batch)
        self._seen[kind] += 1
        self._waits[kind] = self._waited
        self._drawn[kind] = {name: draw for name, (draw, _) in batch.draws.drawn.items()}

    def _replayed(self, recording: _Recording, batch: Batch) -> Iterator[Player]:
        """Replay a step; if a hook changes what the graphs hold, run the rest of it eagerly."""
        recording.refill(batch)
        if self.watched:
            self._done = Done(self._memory.copied(self._step.players))
        for border in recording.borders:
            border.replay_phase()
            self._border, self._step.progress = border, border.reached
            yield border.player
            if self._border is not None:
                self._step.progress = border.moved.copy()
            if self._border is None or self._is_stale(recording):
                self._border = None
                yield from self._eager_phases(batch)
                return
        self._report = recording.replay_end()

    def _is_stale(self, recording: _Recording) -> bool:
        return self.watched and not recording.is_as_recorded()

    def _eager_phases(self, batch: Batch) -> Iterator[Player]:
        with closing(self._step.phases(batch, self._done)) as phases:
            while True:
                with self._eagerly():
                    player = next(phases, None)
                if player is None:
                    return
                yield player

    def update(self, player: Player) -> None:
        """Do as ``Step.update`` does."""
        border = self._border
        if border is not None:
            if self._done is not None:
                self._done.moves.append((player, self._memory.copy_at(border.number, player)))
            if not self._is_stale(border.recording) and border.replay_update():
                return
            self._border, self._step.progress = None, border.reached.copy()
        with self._eagerly():
            skip = self._step.measure(player)
        with self._eagerly(recorded=optimizers.recordable(player.optimizer)):
            player.update(skip)

    def measured(self) -> list[torch.Tensor]:
        """Do as ``Step.measured`` does."""
        return self._step.measured()

    def begin_anew(self) -> None:
        """Record all steps anew: the state may be another, on this rank or on others."""
        self._recordings.clear()
        self._seen.clear()
        if self._recorder is not None:
            self._recorder = recorder_for(self._step.device)

    def report(self) -> Report:
        """Do as ``Step.report`` does."""
        return self._step.report() if self._report is None else self._report

    @contextmanager
    def _eagerly(self, *, recorded: bool = True) -> Iterator[None]:
        if self._recorder is None:
            yield
            return
        with self._recorder.eagerly() as waits:
            yield
        if recorded:
            self._waited += waits

    def _kind(self, batch: Batch) -> Kind:
        shapes = tuple(tensor.shape for tensor in batch.tensors)
        answers = tuple(batch.draws.step % steps == 0 for steps in sorted(self._asked))
        return shapes, answers, batch.draws.shape[0]

    def _recording(self, batch: Batch) -> _Recording | None:
        """Return what to replay for such a batch, or None to run it eagerly."""
        kind = self._kind(batch)
        recording = self._recordings.get(kind)
        # If one is stale so are the others: they know the same tensors.
        known = recording or next(iter(self._recordings.values()), None)
        if known is not None and not known.is_as_recorded():
            self._forget(known)
        elif recording is not None:
            return recording
        if self._recorder is None or self._seen[kind] < WARM_UP:
            return None
        if len(self._recordings) == MOST:
            self._warn("batches of more than %d kinds: those after them run eagerly.", MOST)
            return None
        try:
            if self._waits[kind]:  # better found before a recording than in it
                raise RuntimeError(self._waits[kind][0])
            with _no_collection():
                recording = _Recording(
                    self._step,
                    self._recorder,
                    batch,
                    self._drawn[kind],
                    self._memory,
                    rates_change=self._rates_change,
                )
        except Exception as error:
            self._recordings.clear()
            self._recorder = None
            self._warn("a step cannot be captured, so all run eagerly: %s", error)
            return None
        for player in recording.eager:
            self._warn(
                "the update of the %s cannot be captured and runs eagerly: its optimizer is a %s; "
                "Adam, AdamW and SGD can, with fused=True.",
                player.name, type(player.optimizer).__name__,
            )  # fmt: skip
        self._recordings[kind] = recording
        return recording

    def _forget(self, recording: _Recording) -> None:
        """Begin anew, because something is not as it was recorded."""
        self._rates_change = self._rates_change or recording.rates_have_changed()
        self._recordings.clear()
        self._seen.clear()
        self._forgotten += 1
        # A pool of memory cannot be reopened.
        self._recorder = recorder_for(self._step.device)
        if self._forgotten > MOST_ANEW:
            self._recorder = None
            self._warn(
                "steps were recorded %d times and something had changed each time: they run "
                "eagerly from here on.", self._forgotten,
            )  # fmt: skip

    def _warn(self, sentence: str, *arguments: object) -> None:
        if sentence not in self._warned:
            self._warned.add(sentence)
            _log.warning(sentence, *arguments)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Collect no garbage within the block: a graph that is destroyed there spoils a recording."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class _Memory:
    """What the recordings of all kinds write to, and hooks or the rest of a step read."""

    def __init__(self) -> None:
        self._gradients: dict[nn.Parameter, torch.Tensor] = {}
        self._weights: dict[tuple[int | None, Player], list[torch.Tensor]] = {}

    def for_gradients(self, players: Iterable[Player]) -> dict[nn.Parameter, torch.Tensor]:
        """Return memory for the gradient of each parameter."""
        for player in players:
            for parameter in player.parameters:
                if parameter not in self._gradients:
                    self._gradients[parameter] = torch.empty_like(parameter)
        return self._gradients

    def copied(self, players: Iterable[Player]) -> dict[Player, list[torch.Tensor]]:
        """Return the weights of all players as they are now, in memory of their own."""
        return {player: self.copy_at(None, player) for player in players}

    @torch.no_grad()
    def copy_at(self, border: int | None, player: Player) -> list[torch.Tensor]:
        """Return a player's weights as they are now; the next call for the border overwrites them.

        Args:
            border: the number of a border of the step; None for its start.
            player: whose weights.
        """
        weights: list[torch.Tensor] = [*player.parameters]
        found = self._weights.setdefault((border, player), [])
        found += [torch.empty_like(weight) for weight in weights[len(found) :]]
        torch._foreach_copy_(found, weights)
        return found


class _Border:
    """A border of a recorded step: the piece before it, and the update after it.

    Args:
        recording: what it belongs to.
        number: which of the step's borders it is, from 0.
        player: who is yielded there.
        phase: does what the algorithm does up to here.
        gradients: the player's parameters, each with the memory of its gradient, if it has one.
        reached: what the step has measured up to here.
        rates: the player's learning rates as tensors, if they change.
    """

    def __init__(
        self,
        recording: _Recording,
        number: int,
        player: Player,
        phase: Replay,
        gradients: list[tuple[nn.Parameter, torch.Tensor | None]],
        reached: Progress,
        rates: list[torch.Tensor],
    ) -> None:
        self.recording = recording
        self.number = number
        self.player = player
        self.reached = reached
        self._phase = phase
        self._gradients = gradients
        self._rates = rates

    def record_update(self, recorder: Recorder, step: Step) -> None:
        """Record the update, or what must be known for it if the optimizer cannot be recorded."""
        moves = optimizers.recordable(self.player.optimizer)

        def piece() -> None:
            self._skip = step.measure(self.player)
            if moves:
                self.player.update(self._skip)

        self._update, self._moves = recorder.record(piece), moves
        self.moved = step.progress.copy()

    def replay_phase(self) -> None:
        """Do what the algorithm does up to here, and give the gradients to hooks."""
        self._phase()
        for parameter, gradient in self._gradients:
            parameter.grad = gradient

    def replay_update(self) -> bool:
        """Move the player; return False if that must be done eagerly."""
        if not self._take_gradients():
            return False
        for group, rate in zip(self.player.optimizer.param_groups, self._rates):
            rate.fill_(group["lr"])
        self._update()
        if self._moves:
            self.player.skipped = self._skip
        else:
            self.player.update(self._skip)
        return True

    def _take_gradients(self) -> bool:
        """Copy gradients that a hook has replaced to where the graph reads them, if it can."""
        for parameter, own in self._gradients:
            if parameter.grad is not own:
                if parameter.grad is None or own is None:
                    return False
                own.copy_(parameter.grad)
                parameter.grad = own
        return True


class _Recording:
    """A step of one kind, and what of it has an address in the graphs."""

    def __init__(
        self,
        step: Step,
        recorder: Recorder,
        batch: Batch,
        draws: dict[str, Draw],
        memory: _Memory,
        *,
        rates_change: bool,
    ) -> None:
        self._players = step.players
        self._rates_change = rates_change
        self.eager = [p for p in step.players if not optimizers.recordable(p.optimizer)]
        """Players whose updates cannot be recorded."""
        self._parts = [part for player in step.players for part in player.module.modules()]
        self._moved = [
            (player, parameter)
            for player in step.players
            if player not in self.eager
            for parameter in player.parameters
        ]
        # Kept, so that no memory that a graph writes to is ever given to others.
        self._held = [tensor.detach() for tensor in self._tensors()]
        self._known = self._facts()
        own = memory.for_gradients(step.players)
        self._draws = replace(
            batch.draws,
            recorded=True,
            drawn={
                name: (draw, batch.draws.draw(name, draw).clone()) for name, draw in draws.items()
            },
        )
        self._tensors_of_batch = [tensor.clone() for tensor in batch.tensors]
        self.borders: list[_Border] = []
        with ExitStack() as stack:
            stack.enter_context(self._untouched())
            rates = {
                player: stack.enter_context(optimizers.recording(player.optimizer, rates_change))
                for player in step.players
            }
            phases = stack.enter_context(
                closing(step.phases(Batch(self._tensors_of_batch, self._draws)))
            )
            # In the order in which they are replayed, because they share memory.
            while True:
                player: Player | None = None

                def phase() -> None:
                    nonlocal player
                    player = next(phases, None)
                    if player is not None:
                        _move_gradients(player, own)

                replay = recorder.record(phase)
                if player is None:
                    break
                gradients = [(p, p.grad) for p in player.parameters]
                border = _Border(
                    self,
                    len(self.borders),
                    player,
                    replay,
                    gradients,
                    step.progress.copy(),
                    rates[player],
                )
                border.record_update(recorder, step)
                self.borders.append(border)
            self._end, self._report = replay, step.report()
            if self._known != self._facts():
                raise RuntimeError(
                    "a net replaces its buffers, or an optimizer its state, instead of writing to "
                    "them"
                )
        self._options = {player.name: self._options_of(player) for player in self._players}

    @contextmanager
    def _untouched(self) -> Iterator[None]:
        """Put back after the block what Python did in it: on the device nothing has run."""
        parameters = [p for player in self._players for p in player.parameters]
        gradients = [p.grad for p in parameters]
        buffers = [dict(part._buffers) for part in self._parts]
        states = [set(player.optimizer.state) for player in self._players]
        try:
            yield
        finally:
            for parameter, gradient in zip(parameters, gradients):
                parameter.grad = gradient  # hooks must still find those of the step before
            for part, own in zip(self._parts, buffers):
                part._buffers.update(own)
            for player, known in zip(self._players, states):
                for born in set(player.optimizer.state) - known:
                    del player.optimizer.state[born]

    def refill(self, batch: Batch) -> None:
        """Write a batch, and what is drawn for it, to where the graphs read them."""
        for own, tensor in zip(self._tensors_of_batch, batch.tensors):
            own.copy_(tensor)
        for name, (draw, own) in self._draws.drawn.items():
            own.copy_(batch.draws.draw(name, draw))

    def replay_end(self) -> Report:
        """End the step; return its report, in memory of its own."""
        self._end()
        return Report(self._report.names, self._report.stacked().clone())

    def is_as_recorded(self) -> bool:
        """Return whether all that the graphs hold is still so: hooks may have changed it."""
        return self._known == self._facts() and not any(map(self._has_changed, self._players))

    def rates_have_changed(self) -> bool:
        """Return whether a learning rate that was recorded as a constant is another now."""
        return any(
            then.get("lr") != now.get("lr")
            for player in self._players
            for then, now in zip(self._options[player.name], self._options_of(player))
        )

    def _has_changed(self, player: Player) -> bool:
        return self._options[player.name] != self._options_of(player)

    def _options_of(self, player: Player) -> list[dict[str, object]]:
        """Return what the graph holds of an optimizer's options, a tensor by its address."""
        if player in self.eager:
            return []
        left_out = ("params", "param_names", "lr" if self._rates_change else "")
        return [
            {
                name: value.data_ptr() if isinstance(value, torch.Tensor) else value
                for name, value in group.items()
                if name not in left_out
            }
            for group in player.optimizer.param_groups
        ]

    def _tensors(self) -> list[torch.Tensor]:
        """Return the weights, buffers and moments that are there now."""
        found = [
            tensor
            for part in self._parts
            for tensors in (part._parameters, part._buffers)
            for tensor in tensors.values()
            if tensor is not None
        ]
        for player, parameter in self._moved:
            moments = player.optimizer.state.get(parameter, {}).values()
            found += [value for value in moments if isinstance(value, torch.Tensor)]
        return found

    def _facts(self) -> tuple[list[int], list[bool]]:
        """Return where tensors lie, and which parts of the nets learn or are in training mode."""
        tensors = self._tensors()
        flags = [tensor.requires_grad for tensor in tensors]
        flags += [part.training for part in self._parts]
        return [tensor.data_ptr() for tensor in tensors], flags


@torch.no_grad()
def _move_gradients(player: Player, own: dict[nn.Parameter, torch.Tensor]) -> None:
    """Move a player's gradients to memory that outlasts the step: hooks may look at any time."""
    with_gradients = [p for p in player.parameters if p.grad is not None]
    torch._foreach_copy_([own[p] for p in with_gradients], player.gradients())
    for parameter in with_gradients:
        parameter.grad = own[parameter]
