"""One kind of step, recorded: its pieces as graphs, and what of it has an address in them."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import nn

from tinygan import optimizers
from tinygan._execution.cuda_graphs import Recorder, Replay
from tinygan._execution.step import Step
from tinygan.batch import Batch, Draw
from tinygan.player import Player
from tinygan.report import Report

Kind: TypeAlias = tuple[tuple[torch.Size, ...], tuple[bool, ...], int]
"""The shapes of the batch, the answers of ``batch.every``, and the whole batch's size.

The last makes ranks with parts of unequal size record and replay in the same steps. They must,
because a changing learning rate does not have the same bits in eager and in replayed steps.
"""

Gradients: TypeAlias = dict[nn.Parameter, torch.Tensor]
"""Memory for the gradient of each parameter, which all kinds share and hooks may read any time."""


class Border:
    """A border of a recorded step: the piece before it, and the update after it."""

    def __init__(self, recording: Recording, player: Player, step: Step, phase: Replay) -> None:
        self.recording = recording
        self.player = player
        self.phase = step.phase
        """The statistics of the phase, by name."""
        self._replay_phase = phase
        self._gradients = [
            (p, p.grad, None if p.grad is None else p.grad.detach()) for p in player.parameters
        ]
        self._total_before = step.total

    def record_update(self, recorder: Recorder, step: Step, rates: list[torch.Tensor]) -> None:
        """Record the update, or only the check before it if the optimizer cannot be recorded."""
        self._rates = rates
        self._moves = self.player not in self.recording.eager
        self._step = step

        def piece() -> None:
            step.measure(self.player)
            if self._moves:
                step.move(self.player)

        self._replay_update = recorder.record(piece)
        self._total, self._bad, self._skip = step.total, step.bad, step.skip

    def replay_phase(self) -> None:
        """Do what the algorithm does up to here, and give the gradients to hooks."""
        self._replay_phase()
        for parameter, own, memory in self._gradients:
            if own is not None and memory is not None:
                own.data = memory  # which a hook may have exchanged
            parameter.grad = own

    def replay_update(self, *, look: bool) -> bool:
        """Move the player; return False if it must be moved eagerly.

        ``look`` asks whether a hook has changed the optimizer.
        """
        if not self._take_gradients():
            return False
        if look:
            self.recording.knows_nets()  # if not, that is an error at the next border
            if not self.recording.knows_optimizer(self.player):
                return False
        for group, rate in zip(self.player.optimizer.param_groups, self._rates):
            rate.fill_(group["lr"])
        self._replay_update()
        if self._moves:
            self.player.skipped = self._skip
        else:
            self._step.skip = self._skip
            self._step.move(self.player)
        return True

    def update_eagerly(self, step: Step) -> None:
        """Move the player as it is now, and leave for later pieces what they read."""
        step.total, step.phase = self._total_before, self.phase
        step.measure(self.player)
        self._total.copy_(step.total)
        self._bad.copy_(step.bad)
        step.move(self.player)

    def _take_gradients(self) -> bool:
        """Copy gradients that a hook has replaced to where the graph reads them, if it can."""
        for parameter, own, memory in self._gradients:
            now = parameter.grad
            if now is own and (own is None or _lies_in(own, memory)):
                continue
            if now is None or own is None or memory is None:
                return False
            memory.copy_(now)
            own.data = memory
            parameter.grad = own
        return True


class Recording:
    """A step of one kind, recorded.

    Args:
        step: the step.
        recorder: turns pieces into graphs.
        batch: one of that kind.
        draws: how such a step draws, by the names of its draws.
        gradients: where gradients are kept; filled for parameters that are not there yet.
        rates_change: record the learning rates as tensors rather than as constants.

    Attributes:
        eager: players whose updates cannot be recorded.
    """

    def __init__(
        self,
        step: Step,
        recorder: Recorder,
        batch: Batch,
        draws: dict[str, Draw],
        gradients: Gradients,
        *,
        rates_change: bool,
    ) -> None:
        self._players = step.players
        self._rates_change = rates_change
        self.eager = [p for p in step.players if not optimizers.recordable(p.optimizer)]
        self._parts = [part for player in step.players for part in player.module.modules()]
        # Kept, so that no memory that a graph writes to is ever given to others.
        self._tensors: list[tuple[dict[str, Any], str, torch.Tensor, torch.Tensor]] = [
            (tensors, name, tensor, tensor.detach())
            for part in self._parts
            for tensors in _tensors_of(part)
            for name, tensor in tensors.items()
            if tensor is not None
        ]
        self._moments = {player: self._moments_of(player) for player in step.players}
        self._modes = self._modes_now()
        for each in step.players:  # before the recording, which has memory of its own
            gradients |= {p: torch.empty_like(p) for p in each.parameters if p not in gradients}
        self._draws = replace(
            batch.draws,
            recorded=True,
            drawn={
                name: (draw, batch.draws.draw(name, draw).clone()) for name, draw in draws.items()
            },
        )
        self._batch = [tensor.clone() for tensor in batch.tensors]
        self.borders: list[Border] = []
        with _no_collection(), ExitStack() as stack:
            stack.enter_context(self._untouched())
            rates = {
                each: stack.enter_context(optimizers.recording(each.optimizer, rates_change))
                for each in step.players
            }
            phases = stack.enter_context(closing(step.phases(Batch(self._batch, self._draws))))
            # In the order in which they are replayed, because they share memory.
            while True:
                player: Player | None = None

                def phase() -> None:
                    nonlocal player
                    player = next(phases, None)
                    if player is not None:
                        _keep_gradients(player, gradients)

                replay = recorder.record(phase)
                if player is None:
                    break
                border = Border(self, player, step, replay)
                border.record_update(recorder, step, rates[player])
                self.borders.append(border)
            self._end, self._report = replay, step.report
            if self._has_replaced_tensors():
                raise RuntimeError(
                    "a net replaces its buffers, or an optimizer its state, instead of writing to "
                    "them"
                )
        self._options = {player: self._options_of(player) for player in self._players}

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
        for own, tensor in zip(self._batch, batch.tensors):
            own.copy_(tensor)
        for name, (draw, own) in self._draws.drawn.items():
            own.copy_(batch.draws.draw(name, draw))

    def replay_end(self) -> Report:
        """End the step; return its report, in memory of its own."""
        self._end()
        return Report(self._report.names, self._report.stacked().clone())

    def is_as_recorded(self) -> bool:
        """Return whether the graphs can be replayed, whatever hooks have changed."""
        return self.knows_nets() and all(map(self.knows_optimizer, self._players))

    @torch.no_grad()
    def knows_nets(self) -> bool:
        """Copy weights and buffers that were replaced to where the graphs read them.

        Returns:
            False if that is not possible, or other parts of the nets learn or are in training mode.
        """
        for tensors, name, tensor, memory in self._tensors:
            now: torch.Tensor | None = tensors.get(name)
            if now is tensor and _lies_in(tensor, memory):
                continue
            if now is None or now.shape != memory.shape or now.dtype != memory.dtype:
                return False
            if isinstance(tensor, nn.Parameter) and now is not tensor:
                return False  # the optimizer holds the other one
            memory.copy_(now)
            tensor.data = memory
            tensors[name] = tensor
        return self._modes == self._modes_now()

    @torch.no_grad()
    def knows_optimizer(self, player: Player) -> bool:
        """Copy moments that were replaced to where the graphs read them.

        Returns:
            False if that is not possible, or the optimizer has other options.
        """
        for parameter, name, own, memory in self._moments[player]:
            state = player.optimizer.state.get(parameter, {})
            now = state.get(name)
            if now is own and _lies_in(own, memory):
                continue
            if now is None or now.shape != memory.shape:
                return False
            memory.copy_(now)
            own.data = memory
            state[name] = own
        return self._options[player] == self._options_of(player)

    def _moments_of(
        self, player: Player
    ) -> list[tuple[nn.Parameter, str, torch.Tensor, torch.Tensor]]:
        if player in self.eager:
            return []
        state = player.optimizer.state
        return [
            (parameter, name, value, value.detach())
            for parameter in player.parameters
            for name, value in state.get(parameter, {}).items()
            if isinstance(value, torch.Tensor)
        ]

    def _has_replaced_tensors(self) -> bool:
        return any(tensors.get(name) is not own for tensors, name, own, _ in self._tensors) or any(
            [id(value) for *_, value, _ in self._moments_of(player)]
            != [id(v) for *_, v, _ in known]
            for player, known in self._moments.items()
        )

    def rates_have_changed(self) -> bool:
        """Return whether a learning rate that was recorded as a constant is another now."""
        return any(
            then.get("lr") != now.get("lr")
            for player in self._players
            for then, now in zip(self._options[player], self._options_of(player))
        )

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

    def _modes_now(self) -> list[bool]:
        """Return which tensors learn and which parts of the nets are in training mode."""
        learning = [tensor.requires_grad for _, _, tensor, _ in self._tensors]
        return learning + [part.training for part in self._parts]


def _lies_in(tensor: torch.Tensor, memory: torch.Tensor | None) -> bool:
    return memory is not None and tensor.data_ptr() == memory.data_ptr()


def _tensors_of(part: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    return part._parameters, part._buffers


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


@torch.no_grad()
def _keep_gradients(player: Player, memory: Gradients) -> None:
    """Move a player's gradients to memory that outlasts the step: hooks may look at any time."""
    with_gradients = [p for p in player.parameters if p.grad is not None]
    torch._foreach_copy_([memory[p] for p in with_gradients], player.gradients())
    for parameter in with_gradients:
        parameter.grad = memory[parameter]
