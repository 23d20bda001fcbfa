"""One step: the algorithm, run from border to border, and what happens at its borders.

What is not finite leaves no trace: an update whose cost or gradients are not is skipped on the
device, and so are all after it in the step; at its end the nets' buffers go back to what they were.
Nothing here waits for the device, but for optimizers that are not fused.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace

import torch

from tinygan._execution import finite
from tinygan._execution.precision import LossScale
from tinygan.algorithms import Algorithm
from tinygan.batch import Batch
from tinygan.player import Player, Players
from tinygan.report import Report


@dataclass
class Done:
    """What has been done of a step.

    Attributes:
        start: the weights of all players before the step.
        moves: the players that have moved, in order, each with its weights before that.
    """

    start: dict[Player, list[torch.Tensor]] = field(default_factory=dict)
    moves: list[tuple[Player, list[torch.Tensor]]] = field(default_factory=list)


@dataclass
class Progress:
    """What a step has measured so far.

    Attributes:
        total: not finite as soon as something was not; a scalar.
        bad: whether that is so: a bool on the device.
        measured: a cost and a total for each update, in which to look for the cause.
        moved: the players that have been updated, or skipped.
        phase: what the phase that has just ended has logged, by name.
        logged: what all have, by name.
    """

    total: torch.Tensor
    bad: torch.Tensor
    measured: list[torch.Tensor] = field(default_factory=list)
    moved: list[Player] = field(default_factory=list)
    phase: dict[str, torch.Tensor] = field(default_factory=dict)
    logged: dict[str, list[torch.Tensor]] = field(default_factory=dict)

    def copy(self) -> Progress:
        """Return a copy, of the same tensors."""
        return replace(
            self,
            measured=list(self.measured),
            moved=list(self.moved),
            phase=dict(self.phase),
            logged={name: list(values) for name, values in self.logged.items()},
        )


class Step:
    """A step, executed eagerly: ``for player in step.phases(batch): step.update(player)``.

    Args:
        players: who plays.
        algorithm: what they play.
        accumulate: in how many parts a batch goes through the algorithm before its players move.
        loss_scale: float16's; None for other types.
    """

    def __init__(
        self,
        players: Players,
        algorithm: Algorithm,
        *,
        accumulate: int = 1,
        loss_scale: LossScale | None = None,
    ) -> None:
        self.players = players
        self.algorithm = algorithm
        self.accumulate = accumulate
        self.loss_scale = loss_scale
        self.device = players[0].device
        self.skipped = finite.SkippedSteps(self.device)
        self.buffers = finite.Buffers(player.module for player in players)
        self._zero = torch.zeros((), device=self.device)
        self._false = torch.zeros((), dtype=torch.bool, device=self.device)
        self._loggers: dict[str, str] = {}
        self.order: list[Player] = []
        """The players that a step yields, in order; known when it was rehearsed."""
        self.progress = Progress(self._zero, self._false)

    def phases(self, batch: Batch, done: Done | None = None) -> Generator[Player]:
        """Run the algorithm; give each player whose gradients are final, to be updated.

        The parts of an accumulated batch are run side by side, from border to border.

        Args:
            batch: what the algorithm is given.
            done: what has been done of this step already, as by a graph: the algorithm is run
                again up to there without effect.

        Raises:
            ValueError: for an algorithm that breaks a rule.
        """
        parts = batch.parts(self.accumulate)
        runs: list[Generator[Player]] = []
        self._loggers.clear()
        for player in self.players:
            player.begin(share=1 / len(parts))
        try:
            runs += [started(self.algorithm, self.players, part) for part in parts]
            if done is None:
                self.buffers.keep()
                self.progress = Progress(self._zero, self._false)
            else:
                self._go_through_again(runs, done)
            number = 0 if done is None else len(done.moves)
            while (reached := self._go_on(runs, number)) is not None:
                reached.unscale()
                yield reached
                reached.owes = False
                number += 1
            self._end()
        finally:
            for run in runs:  # or a traceback would keep their graphs
                run.close()

    def _go_on(self, runs: Sequence[Generator[Player]], number: int) -> Player | None:
        """Run the phase of a number; return whom it ends with, who is the same in every step."""
        due = self.order[number] if number < len(self.order) else None
        for player in self.players:
            # Let no graph of a part wait for a later phase while the other parts are computed.
            player.recompute = self.accumulate > 1 and player is not due
        reached = self._next_border(runs)
        if self.order and reached is not due:
            names = [player.name for player in self.order]
            raise ValueError(
                f"an algorithm must yield the same players in every step, {', '.join(names)}, got "
                f"{'its end' if reached is None else reached.name} as number {number + 1}; what "
                "depends on batch.every may be what is paid, but not who is yielded."
            )
        return reached

    @torch.no_grad()
    def _go_through_again(self, runs: Sequence[Generator[Player]], done: Done) -> None:
        """Come to the border after some moves, as all was when the algorithm came there first."""
        progress, buffers = self.progress, self.buffers.copies()
        now = {player: _copies(player.parameters) for player in self.players}
        for player, weights in done.start.items():
            player.set_weights(weights)
        self.buffers.restore_if(~self._false)
        for number, (player, _) in enumerate(done.moves):
            later = done.moves[number:]
            for each in self.players:
                # What one pays here for a border that is yet to come must be paid once more.
                each.muted = any(each is other for other, _ in later)
            with torch.enable_grad():
                self._next_border(runs)
            player.owes = False
            after = [weights for other, weights in later[1:] if other is player]
            player.set_weights(after[0] if after else now[player])
        for player in self.players:
            player.muted = False
            player.set_weights(now[player])
        self.buffers.put(buffers)
        self.progress = progress

    def rehearse(self, batch: Batch) -> list[Player]:
        """Run the algorithm once without moving anything; return the players that it yields.

        Raises:
            TypeError: for an algorithm that is no generator function, or yields what is no player.
            ValueError: for one that breaks another rule.
        """
        parameters = [p for player in self.players for p in player.parameters]
        gradients = [p.grad for p in parameters]
        buffers = self.buffers.copies()
        order: list[Player] = []
        self._loggers.clear()
        try:
            with ExitStack() as stack:
                for player in self.players:
                    stack.enter_context(player.rehearsing())
                    player.begin(share=1 / self.accumulate)
                # One part of several: more would need the memory of the whole batch.
                part, *_ = batch.parts(self.accumulate)
                runs = [stack.enter_context(closing(started(self.algorithm, self.players, part)))]
                while (reached := self._next_border(runs)) is not None:
                    order.append(reached)
                    reached.owes = False
        finally:
            for parameter, gradient in zip(parameters, gradients):
                parameter.grad = gradient
            self.buffers.put(buffers)
        for player in self.players:
            if player not in order:
                raise ValueError(
                    "an algorithm must yield each of its players, got one that never yields the "
                    f"{player.name}; add `yield players.{player.name}` where its gradients are "
                    "final, or leave it out of players."
                )
        self.order = order
        return order

    def _next_border(self, runs: Sequence[Generator[Player]]) -> Player | None:
        """Return the player that all runs yield next, or None at their end."""
        reached: list[Player | None] = []
        phase: dict[str, torch.Tensor] = {}
        for run in runs:
            grad_was_on = torch.is_grad_enabled()
            reached.append(next(run, None))
            if torch.is_grad_enabled() != grad_was_on:
                torch.set_grad_enabled(grad_was_on)
                raise ValueError(
                    "an algorithm must yield outside torch.no_grad() and the like, got a yield in "
                    "such a block; hooks and updates would run in it."
                )
            seen: set[str] = set()
            for player in self.players:
                for name, value in player.take_notes().items():
                    owner = self._loggers.setdefault(name, player.name)
                    if owner != player.name or name in seen:
                        raise ValueError(
                            f"a statistic's name must be used once, got {name} from the {owner} "
                            f"and the {player.name}; rename one."
                        )
                    seen.add(name)
                    phase[name] = phase[name] + value if name in phase else value
        self.progress.phase = phase
        for name, value in phase.items():
            self.progress.logged.setdefault(name, []).append(value)
        return self._same(reached)

    def _same(self, reached: Sequence[Player | None]) -> Player | None:
        player = reached[0]
        if any(each is not player for each in reached):
            raise ValueError(
                "an algorithm must yield the same players for each part of a batch, got others; "
                "what it yields may depend on batch.every alone."
            )
        if player is None:
            for each in self.players:
                if each.owes:
                    raise ValueError(
                        f"the {each.name} must be yielded after what it pays, got a payment after "
                        f"its last yield; end the algorithm with `yield players.{each.name}`."
                    )
            return None
        if not any(player is each for each in self.players):
            raise TypeError(
                f"an algorithm must yield its players, got {player!r}; yield one of "
                f"{', '.join(f'players.{each.name}' for each in self.players)}."
            )
        if not player.owes or not player.gradients():
            raise ValueError(
                f"the {player.name} must get gradients from its loss, got none; let it pay before "
                "it is yielded, for what its weights have a part in: nothing on the way may detach."
            )
        return player

    def update(self, player: Player) -> None:
        """Move a player, unless something was not finite in this phase or in one before it."""
        player.update(self.measure(player))

    def measure(self, player: Player) -> torch.Tensor:
        """Return whether a player must not move, 1 or 0: a float scalar on the device."""
        # Asked here, not before: ranks have averaged them, and hooks may have changed gradients.
        now = self.progress
        loss = now.phase.get(f"loss_{player.name}", self._zero)
        now.total = finite.total([now.total.to(loss.dtype), loss], player.gradients())
        now.bad = finite.is_not(now.total)
        now.measured += [loss, now.total]
        now.moved.append(player)
        return now.bad.float()

    def _end(self) -> None:
        now = self.progress
        self.skipped.causes = [
            f"the {player.name}'s {what}"
            for player in now.moved
            for what in ("loss was", "gradients were")
        ]
        self.skipped.count(now.measured, now.bad)
        self.buffers.restore_if(now.bad)
        if self.loss_scale is not None:
            self.loss_scale.update(~now.bad)
        means = [v[0] if len(v) == 1 else torch.stack(v).mean() for v in now.logged.values()]
        self._report = Report(list(now.logged), torch.stack(means))

    def measured(self) -> list[torch.Tensor]:
        """Return the statistics of the phase that has just ended: scalars to average over ranks."""
        return list(self.progress.phase.values())

    def begin_anew(self) -> None:
        """Forget what is kept of other steps: here nothing."""

    def report(self) -> Report:
        """Return the statistics of the step that has just ended."""
        return self._report


def started(algorithm: Algorithm, players: Players, batch: Batch) -> Generator[Player]:
    """Return a run of an algorithm, before its first line.

    Raises:
        TypeError: for an algorithm that is no generator function.
    """
    run: object = algorithm(players, batch)
    if not isinstance(run, Generator):
        raise TypeError(
            f"algorithm must be a generator function of (players, batch), got one that returns "
            f"{type(run).__name__}; yield each player when its gradients are final."
        )
    return run


def _copies(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [tensor.detach().clone() for tensor in tensors]
