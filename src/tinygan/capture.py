"""The pieces of a step as CUDA graphs: recorded once, then replayed without Python in between.

A piece of DCGAN's step is some hundred small kernels, which a GPU runs faster than Python can ask
for them. A graph asks for all of them at once. Hooks run between the pieces as ever: they may read
gradients and weights, change them in place, replace a gradient, change the learning rate, load a
state.

Python inside the nets, the loss and the optimizers (hooks of their own, a line that prints) runs
only while a step is recorded.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeAlias

import torch

from tinygan import optimizers
from tinygan.cuda_graphs import Recorder, Replay, recorder_for
from tinygan.inputs import Inputs
from tinygan.step import Player, Step, StepReport

_log = logging.getLogger(__name__)

WARM_UP = 3
"""Eager steps before a recording: libraries choose and prepare their kernels in the first ones."""

MOST = 4
"""Kinds of steps that are recorded: whole and short batches, with the penalty and without."""

MOST_ANEW = 16
"""How often all is recorded anew: more often, it would cost more than it brings."""

Kind: TypeAlias = tuple[tuple[torch.Size, ...], tuple[int, ...], int]
"""The shapes of the inputs, which penalties D pays, and the whole batch's size.

By the last, ranks with parts of unequal size record and replay in the same steps, as they must: a
learning rate that changes has not the same bits in both.
"""


class CapturedStep:
    """A step whose pieces are recorded, for each kind of batch, and then replayed.

    What cannot be recorded runs eagerly, with one warning.

    Args:
        step: the step that is to be recorded.
    """

    def __init__(self, step: Step) -> None:
        self._step = step
        self.skipped = step.skipped
        self.loss_scale = step.loss_scale
        self._recorder = recorder_for(step.device)
        self._warned: set[str] = set()
        if self._recorder is None:
            self._warn("capture needs a CUDA device, got %s: steps run eagerly.", step.device)
        self._seen: Counter[Kind] = Counter()
        self._recordings: dict[Kind, _Recording] = {}
        self._current: _Recording | None = None
        # A constant rate is recorded as such, in all its bits; one that has changed, as a tensor.
        self._rates_change = False
        self._forgotten = 0
        self._waits: list[str] = []

    def discriminator_backward(self, inputs: Inputs) -> None:
        """Do as ``Step.discriminator_backward`` does."""
        self._inputs = inputs
        self._current = self._recording(inputs)
        if self._current is None:
            self._eagerly(partial(self._step.discriminator_backward, inputs))
        else:
            self._current.discriminator_backward(inputs)

    def discriminator_update(self) -> None:
        """Do as ``Step.discriminator_update`` does."""
        if self._current is None or not self._current.discriminator_update():
            self._eagerly(self._step.discriminator_update, self._step.discriminator)

    def generator_backward(self) -> None:
        """Do as ``Step.generator_backward`` does."""
        if self._current is None:
            self._eagerly(self._step.generator_backward)
        elif not self._current.generator_backward():
            self._eagerly(partial(self._step.make_fakes_again, self._inputs))
            self._eagerly(self._step.generator_backward)

    def generator_update(self) -> None:
        """Do as ``Step.generator_update`` does."""
        if self._current is None or not self._current.generator_update():
            self._eagerly(self._step.generator_update, self._step.generator)

    def measured(self, player: Player) -> list[torch.Tensor]:
        """Do as ``Step.measured`` does."""
        return self._step.measured(player)

    def begin_anew(self) -> None:
        """Record all steps anew: the state may be another, on this rank or on others."""
        self._recordings.clear()
        self._seen.clear()
        if self._recorder is not None:
            self._recorder = recorder_for(self._step.device)

    def report(self) -> StepReport:
        """Do as ``Step.report`` does."""
        return self._step.report()

    def _eagerly(self, piece: Callable[[], object], mover: Player | None = None) -> None:
        if self._recorder is None:
            piece()
            return
        with self._recorder.eagerly() as waits:
            piece()
        if mover is None or optimizers.recordable(mover.optimizer):
            self._waits += waits

    def _recording(self, inputs: Inputs) -> _Recording | None:
        """Return what to replay for such a batch, or None to run it eagerly."""
        shapes = tuple(tensor.shape for tensor in inputs.tensors().values())
        kind = (shapes, inputs.due, inputs.size)
        recording = self._recordings.get(kind)
        # If one is stale so are the others: they know the same tensors.
        known = recording or next(iter(self._recordings.values()), None)
        if known is not None and not known.is_as_recorded():
            self._forget(known)
        elif recording is not None:
            return recording
        self._seen[kind] += 1
        if self._recorder is None or self._seen[kind] <= WARM_UP:
            self._waits.clear()
            return None
        if len(self._recordings) == MOST:
            self._warn("batches of more than %d kinds: those after them run eagerly.", MOST)
            return None
        try:
            if self._waits:  # by the step before: better found before a recording than in it
                raise RuntimeError(self._waits[0])
            recording = _Recording(
                self._step, self._recorder, inputs, rates_change=self._rates_change
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


class _Recording:
    """The four pieces for one kind of batch, and what of them has an address in the graphs."""

    def __init__(
        self,
        step: Step,
        recorder: Recorder,
        inputs: Inputs,
        *,
        rates_change: bool,
    ) -> None:
        d, g = self._players = step.discriminator, step.generator
        self._rates_change = rates_change
        self._inputs = inputs.clone()
        self.eager = [p for p in self._players if not optimizers.recordable(p.optimizer)]
        """Players whose updates cannot be recorded."""
        self._parts = [part for player in self._players for part in player.module.modules()]
        moved = [player for player in self._players if player not in self.eager]
        self._moved = [(player, parameter) for player in moved for parameter in player.parameters]
        # Kept, so that no memory that a graph writes to is ever given to others.
        self._held = [tensor.detach() for tensor in self._tensors()]
        self._known = self._facts()
        with (
            self._untouched(),
            optimizers.recording(d.optimizer, rates_change) as self._rates_d,
            optimizers.recording(g.optimizer, rates_change) as self._rates_g,
        ):
            # In the order in which they are replayed, because they share memory.
            self._d_backward = recorder.record(partial(step.discriminator_backward, self._inputs))
            self._d_update = None if d in self.eager else recorder.record(step.discriminator_update)
            self._g_backward = recorder.record(step.generator_backward)
            self._g_update = None if g in self.eager else recorder.record(step.generator_update)
            self._gradients = {
                player.name: [(p, p.grad) for p in player.parameters] for player in self._players
            }
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

    def discriminator_backward(self, inputs: Inputs) -> None:
        """Replay the piece, on these inputs."""
        self._inputs.copy_(inputs)
        self._d_backward()
        self._give_gradients(self._players[0])

    def discriminator_update(self) -> bool:
        """Replay the update; return False if it must run eagerly."""
        return self._update(self._players[0], self._d_update, self._rates_d)

    def generator_backward(self) -> bool:
        """Replay the piece; return False if it must run eagerly, on fakes that are made anew."""
        if self._known != self._facts():
            return False
        self._g_backward()
        self._give_gradients(self._players[1])
        return True

    def generator_update(self) -> bool:
        """Replay the update; return False if it must run eagerly."""
        return self._update(self._players[1], self._g_update, self._rates_g)

    def _update(self, player: Player, replay: Replay | None, rates: list[torch.Tensor]) -> bool:
        if replay is None or not self.is_as_recorded() or not self._take_gradients(player):
            return False
        for group, rate in zip(player.optimizer.param_groups, rates):
            rate.fill_(group["lr"])
        replay()
        return True

    def _give_gradients(self, player: Player) -> None:
        """Make ``.grad`` the tensors that the graph has written."""
        for parameter, gradient in self._gradients[player.name]:
            parameter.grad = gradient

    def _take_gradients(self, player: Player) -> bool:
        """Copy gradients that a hook has replaced to where the graph reads them, if it can."""
        for parameter, recorded in self._gradients[player.name]:
            if parameter.grad is not recorded:
                if parameter.grad is None or recorded is None:
                    return False
                recorded.copy_(parameter.grad)
                parameter.grad = recorded
        return True

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
