"""One kind of step, recorded as one graph or several, and what of it has an address in them."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from operator import attrgetter
from typing import Any, TypeAlias

import torch
from torch import nn

from tinygan import optimizers
from tinygan._execution.cuda_graphs import CUDAGraphs, Replay
from tinygan._execution.step import Step
from tinygan.batch import Batch, Draw
from tinygan.player import Player, Players
from tinygan.report import Report

Kind: TypeAlias = tuple[tuple[torch.Size, ...], tuple[bool, ...], int, bool]
"""Shapes of the batch, answers of ``batch.every``, the whole batch's size, and whether it is short.

The size makes ranks with parts of unequal size record and replay in the same steps. They must,
because a changing learning rate does not have the same bits in eager and in replayed steps.
"""

RATES = "learning rates"
"""What is recorded as tensors once it has changed."""


class Held:
    """What graphs hold of the players: each tensor by its place in memory, all else by its value.

    Attributes:
        rates_change: whether learning rates are recorded as tensors rather than as constants.
        eager: players whose updates cannot be recorded: of their optimizers graphs hold nothing.
        gradients: memory for each parameter's; it outlasts a step, for hooks may read at any time.
    """

    def __init__(self, players: Players, *, rates_change: bool) -> None:
        self.rates_change = rates_change
        self.eager = [p for p in players if not optimizers.recordable(p.optimizer)]
        self.gradients = {p: torch.empty_like(p) for each in players for p in each.parameters}
        # Walking through a net takes as long as several small kernels. A layer that is not in it
        # any more, or is new, shows in the part that it was put into.
        self._parts = {player: list(player.module.modules()) for player in players}
        self._weights = {p: [part._parameters for part in self._parts[p]] for p in players}
        self._buffers = {p: [part._buffers for part in self._parts[p]] for p in players}
        self._averages = {p: _named(p.average.net) for p in players if p.average is not None}
        self._then = {player: self._of(player) for player in players}

    def changed(self) -> list[tuple[Player, str]]:
        """Return whose is another now, and what: ``(generator, RATES)``."""
        return [
            (player, what)
            for player, then in self._then.items()
            if (now := self._of(player)) != then
            for what in then
            if now[what] != then[what]
        ]

    def check(self) -> None:
        """Raise RuntimeError if a hook has changed anything between two pieces of a step."""
        if changed := self.changed():
            raise refusal(in_words(changed))

    def _of(self, player: Player) -> dict[str, object]:
        parts, optimizer, average = self._parts[player], player.optimizer, player.average
        averaged = _tensors(self._averages.get(player, ()))
        weights = _tensors(self._weights[player])
        held: dict[str, object] = {
            "layers": [[p, *p._modules.values()] for p in parts if p._modules],
            # By their keys, of which PyTorch gives none twice.
            "PyTorch hooks": [[*hooks] for own in map(_HOOKS, parts) for hooks in own if hooks]
            + [[*hooks] for own in map(_HOOKS_OF_WEIGHTS, weights) for hooks in own if hooks]
            + [[*hooks] for hooks in _HOOKS_OF_OPTIMIZERS(optimizer) if hooks],
            "weights": _places(weights),
            "trained weights": [[*map(id, group["params"])] for group in optimizer.param_groups],
            "requires_grad": [weight.requires_grad for weight in weights],
            "buffers": _places(_tensors(self._buffers[player])),
            "training mode": [part.training for part in parts],
            "average": average and [id(average.net), *_places([*averaged, average.share])],
        }
        if player in self.eager:
            return held
        options = [
            {
                name: value.data_ptr() if isinstance(value, torch.Tensor) else value
                for name, value in group.items()
                if name not in ("params", "param_names")
            }
            for group in optimizer.param_groups
        ]
        rates = [each.pop("lr") for each in options]
        held |= {"moments": _places(_tensors(optimizer.state.values())), "options": options}
        return held if self.rates_change else held | {RATES: rates}


def in_words(changed: Iterable[tuple[Player, str]]) -> str:
    """Name changes: "the generator's weights, the generator's learning rates"."""
    return ", ".join(f"the {player.name}'s {what}" for player, what in changed)


def refusal(
    what: str,
    remedy: str = "do so in on_step_start or on_step_end, write into the tensors that are there",
) -> RuntimeError:
    """Return the error for what a hook must not change between two pieces of a step."""
    return RuntimeError(
        f"a hook changed {what} in the middle of a captured step; {remedy}, or train without "
        "capture."
    )


class Border:
    """A border of a recorded step: the piece before it, and the update after it.

    ``replay`` replays that piece. The update is recorded here, by ``record``; or only the check
    before it, if the optimizer cannot be recorded.
    """

    def __init__(
        self,
        step: Step,
        player: Player,
        replay: Replay,
        record: Callable[[Callable[[], object]], Replay],
        held: Held,
        rates: list[torch.Tensor],
    ) -> None:
        self.player = player
        self.phase = step.phase
        """The statistics of the phase, by name."""
        self.held = held
        self._step, self._replay_phase, self._rates = step, replay, rates
        self._moves = player not in held.eager
        self._gradients = [(p, p.grad) for p in player.parameters]

        def piece() -> None:
            step.measure(player)
            if self._moves:
                step.move(player)

        self._replay_update = record(piece)
        self._skipped = player.skipped

    def replay_phase(self) -> None:
        """Do what the algorithm does up to here, and give the gradients to hooks."""
        self._replay_phase()
        for parameter, memory in self._gradients:
            # Not the tensor itself: a hook may put its .data elsewhere.
            parameter.grad = None if memory is None else memory.detach()

    @torch.no_grad()
    def take_gradients(self) -> None:
        """Copy gradients that a hook has replaced to where the graph reads them."""
        replaced: list[tuple[nn.Parameter, torch.Tensor, torch.Tensor]] = []
        for parameter, memory in self._gradients:
            now = parameter.grad
            if now is None or memory is None:
                if now is not memory:
                    raise refusal(
                        f"which of the {self.player.name}'s weights have gradients",
                        "change their requires_grad in on_step_start or on_step_end",
                    )
            elif now.data_ptr() != memory.data_ptr() or now.stride() != memory.stride():
                # Fused optimizers take a gradient to lie in memory as its weight does.
                if self._moves and _layout(now) != _layout(memory):
                    raise refusal(f"the layout of the {self.player.name}'s gradients")
                # It may lie in another one's memory: all are read before any is written.
                replaced.append((parameter, memory, now.clone()))
        for parameter, memory, gradient in replaced:
            memory.copy_(gradient)
            parameter.grad = memory.detach()

    def fill_rates(self) -> None:
        """Write rates as they are now to where the graph reads them, if they are tensors there."""
        for group, rate in zip(self.player.optimizer.param_groups, self._rates):
            rate.fill_(group["lr"])

    def replay_update(self) -> None:
        """Move the player."""
        self._replay_update()
        self.player.skipped = self._skipped
        if not self._moves:
            self._step.move(self.player)


class Recording:
    """A step of one kind, recorded.

    Args:
        step: the step.
        recorder: turns pieces into graphs.
        held: what graphs hold of the players.
        batch: one of that kind.
        draws: how such a step draws, by the names of its draws.
        whole: whether there is one graph, replayed as the step begins, and not one for each piece.
    """

    def __init__(
        self,
        step: Step,
        recorder: CUDAGraphs,
        held: Held,
        batch: Batch,
        draws: dict[str, Draw],
        *,
        whole: bool,
    ) -> None:
        self._draws = replace(
            batch.draws,
            recorded=True,
            drawn={
                name: (draw, batch.draws.draw(name, draw).clone()) for name, draw in draws.items()
            },
        )
        self._batch = [tensor.clone() for tensor in batch.tensors]
        self.borders: list[Border] = []
        with _untouched(step.players):
            with _no_collection(), ExitStack() as stack:
                rates = {
                    p: stack.enter_context(optimizers.recording(p.optimizer, held.rates_change))
                    for p in step.players
                }
                phases = stack.enter_context(closing(step.phases(Batch(self._batch, self._draws))))
                player: Player | None = None

                def phase() -> None:
                    nonlocal player
                    player = next(phases, None)
                    if player is not None:
                        _keep_gradients(player, held.gradients)

                def pieces(record: Callable[[Callable[[], object]], Replay]) -> None:
                    # In the order in which they are replayed, because they share memory.
                    replay = record(phase)
                    while player is not None:
                        border = Border(step, player, replay, record, held, rates[player])
                        self.borders.append(border)
                        replay = record(phase)
                    self._replay_end = replay

                self._replay_begin: Replay = _nothing
                if whole:
                    self._replay_begin = recorder.record(lambda: pieces(_at_once))
                else:
                    pieces(recorder.record)
                self._report = step.report
            if changed := held.changed():
                raise RuntimeError(f"it replaces {in_words(changed)}, instead of writing to them")

    def begin(self, batch: Batch) -> None:
        """Write a batch, what is drawn for it, and rates to where the graphs read them."""
        for own, tensor in zip(self._batch, batch.tensors):
            own.copy_(tensor)
        for name, (draw, own) in self._draws.drawn.items():
            own.copy_(batch.draws.draw(name, draw))
        for border in self.borders:
            border.fill_rates()
        self._replay_begin()

    def replay_end(self) -> Report:
        """End the step; return its report, in memory of its own."""
        self._replay_end()
        return Report(self._report.names, self._report.stacked().clone())


def _nothing() -> None:
    pass


def _at_once(piece: Callable[[], object]) -> Replay:
    """Do a piece as a part of a larger one, which is recorded."""
    piece()
    return _nothing


_HOOKS = attrgetter(
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"
)
_HOOKS_OF_WEIGHTS = attrgetter("_backward_hooks", "_post_accumulate_grad_hooks")
_HOOKS_OF_OPTIMIZERS = attrgetter("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")


def _named(net: nn.Module) -> list[dict[str, Any]]:
    return [own for part in net.modules() for own in (part._parameters, part._buffers)]


def _tensors(named: Iterable[dict[str, Any]]) -> list[torch.Tensor]:
    return [each for own in named for each in own.values() if isinstance(each, torch.Tensor)]


def _places(tensors: list[torch.Tensor]) -> list[list[Any]]:
    # By the object too: another parameter in the same memory is none that the optimizer moves.
    what = (id, torch.Tensor.data_ptr, torch.Tensor.numel, torch.Tensor.stride)
    return [[*map(each, tensors)] for each in what]


def _layout(tensor: torch.Tensor) -> list[tuple[int, int]]:
    """Return sizes with strides; the stride of a single row says nothing."""
    return [(n, step if n > 1 else 0) for n, step in zip(tensor.shape, tensor.stride())]


@contextmanager
def _untouched(players: Players) -> Iterator[None]:
    """Put back after the block what Python did in it: on the device nothing has run."""
    gradients = [(p, p.grad) for player in players for p in player.parameters]
    buffers = [
        (part._buffers, dict(part._buffers))
        for player in players
        for part in player.module.modules()
    ]
    states = [(player.optimizer.state, set(player.optimizer.state)) for player in players]
    try:
        yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient  # hooks must still find those of the step before
        for own, before in buffers:
            own.update(before)
        for state, known in states:
            for born in set(state) - known:
                del state[born]


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
def _keep_gradients(player: Player, memory: dict[nn.Parameter, torch.Tensor]) -> None:
    """Move a player's gradients to memory that outlasts the step: hooks may look at any time."""
    with_gradients = [p for p in player.parameters if p.grad is not None]
    torch._foreach_copy_([memory[p] for p in with_gradients], player.gradients())
    for parameter in with_gradients:
        parameter.grad = memory[parameter]
