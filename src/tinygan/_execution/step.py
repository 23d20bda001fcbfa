"""One step: the algorithm, run from border to border, and what happens at its borders.

What is not finite leaves no trace: an update whose cost or gradients are not finite is skipped on
the device, and so are all after it in the step; at its end the nets' buffers are put back. Nothing
here waits for the device, except for optimizers that are not fused.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing

import torch

from tinygan import optimizers
from tinygan._execution import finite
from tinygan._execution.finite import LossScale
from tinygan.algorithms import Algorithm
from tinygan.batch import Batch
from tinygan.nets.buffers import Buffers
from tinygan.player import Player, Players
from tinygan.report import Ledger, Report


class Step:
    """A step, executed eagerly: ``for player in step.phases(batch): step.update(player)``.

    Args:
        players: all of them.
        algorithm: what they play.
        accumulate: in how many parts a batch goes through the algorithm before its players move.
        loss_scale: float16's; None for other types.

    Attributes:
        order: the players that a step yields, in order; empty before the rehearsal.
        phase: the statistics of the phase that has just ended, by name: scalars.
        whole: the size of batches that are not short; 0 if it is not known.
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
        self.order: list[Player] = []
        self.phase: dict[str, torch.Tensor] = {}
        self.whole = 0
        self._zero = torch.zeros((), dtype=torch.float32, device=self.device)
        self._total = self._zero
        """A scalar that is not finite as soon as anything in the step was not."""
        self._bad = torch.zeros((), dtype=torch.bool, device=self.device)
        """Whether that is so."""
        self._buffers = Buffers(player.module for player in players)
        self._loggers: dict[str, str] = {}
        """Which player logged each name."""
        self._logged: dict[str, list[torch.Tensor]] = {}
        self._measured: list[torch.Tensor] = []
        """A cost and a total for each update, in which to look for the cause."""
        self._moved: list[Player] = []

    def phases(self, batch: Batch) -> Generator[Player]:
        """Run the algorithm; give each player whose gradients are final, to be updated.

        The parts of an accumulated batch run side by side, from border to border.
        """
        parts = batch.parts(self.accumulate)
        for player in self.players:
            # To compile for a short batch takes as long again, for one step in each epoch.
            short = self.is_short(batch.draws.shape[0])
            player.applied.compiling = player.applied.compiled and not short
        runs: list[Generator[Player]] = []
        self.begin(1 / len(parts))
        try:
            runs += [started(self.algorithm, self.players, part) for part in parts]
            self._buffers.keep()
            number = 0
            while (reached := self._go_on(runs, number)) is not None:
                if self.loss_scale is not None:
                    self.loss_scale.unscale(reached.gradients())
                yield reached
                reached.ledger.paid = False
                number += 1
            self._end()
        finally:
            for run in runs:  # or a traceback would keep their graphs
                run.close()

    def is_short(self, size: int) -> bool:
        """Return whether a batch of a size is smaller than others, as an epoch's last may be."""
        return size < self.whole

    def begin(self, share: float = 1.0) -> None:
        """Begin a step in which the mean of a part of a batch counts ``share``."""
        scale = None if self.loss_scale is None else self.loss_scale.state[0]
        for player in self.players:
            player.ledger = Ledger(player.name, share, scale)
        self._total = self._zero
        self._loggers, self._logged, self._measured, self._moved = {}, {}, [], []

    def _go_on(self, runs: Sequence[Generator[Player]], number: int) -> Player | None:
        """Run the next phase; return the player it ends with, who is the same in every step."""
        due = self.order[number] if number < len(self.order) else None
        for player in self.players:
            # Let no graph of a part wait for a later phase while the other parts are computed.
            later = self.accumulate > 1 and number + 1 < len(self.order)
            player.applied.recompute = later and player is not due
        reached = self._next_border(runs)
        if self.order and reached is not due:
            names = [player.name for player in self.order]
            raise ValueError(
                f"an algorithm must yield the same players in every step, {', '.join(names)}, got "
                f"{'its end' if reached is None else reached.name} as number {number + 1}; let "
                "only what is paid depend on batch.every, not who is yielded."
            )
        return reached

    def rehearse(self, batch: Batch) -> list[Player]:
        """Run the algorithm once without moving anything; return the players that it yields.

        Raises:
            TypeError: for an algorithm that is no generator function, or yields no player.
            ValueError: for one that breaks another rule.
        """
        parameters = [p for player in self.players for p in player.parameters]
        gradients = [p.grad for p in parameters]
        order: list[Player] = []
        self.begin(1 / self.accumulate)
        try:
            with ExitStack() as stack:
                for player in self.players:
                    stack.enter_context(player.applied.rehearsing())
                # One part of several: more would need the memory of the whole batch.
                part, *_ = batch.parts(self.accumulate)
                runs = [stack.enter_context(closing(started(self.algorithm, self.players, part)))]
                while (reached := self._next_border(runs)) is not None:
                    order.append(reached)
                    reached.ledger.paid = False
        finally:
            for parameter, gradient in zip(parameters, gradients):
                parameter.grad = gradient
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
        self.phase = {}
        for run in runs:
            grad_was_on = torch.is_grad_enabled()
            reached.append(next(run, None))
            if torch.is_grad_enabled() != grad_was_on:
                torch.set_grad_enabled(grad_was_on)
                raise ValueError(
                    "an algorithm must yield outside torch.no_grad() and the like, got a yield in "
                    "such a block, in which hooks and updates would run."
                )
            self._collect()
        for name, value in self.phase.items():
            self._logged.setdefault(name, []).append(value)
        return self._same(reached)

    def _collect(self) -> None:
        """Take what the players have noted in a part's phase."""
        seen: set[str] = set()
        for player in self.players:
            for name, value in player.ledger.take().items():
                owner = self._loggers.setdefault(name, player.name)
                if owner != player.name or name in seen:
                    raise ValueError(
                        f"a statistic's name must be used once, got {name} from the {owner} and "
                        f"the {player.name}; rename one."
                    )
                seen.add(name)
                self.phase[name] = self.phase[name] + value if name in self.phase else value

    def _same(self, reached: Sequence[Player | None]) -> Player | None:
        player = reached[0]
        if any(each is not player for each in reached):
            raise ValueError(
                "an algorithm must yield the same players for each part of a batch; let what it "
                "yields depend on nothing in the batch."
            )
        if player is None:
            for each in self.players:
                if each.ledger.paid:
                    raise ValueError(
                        f"the {each.name} must be yielded after it pays, got a payment after its "
                        f"last yield; end the algorithm with `yield players.{each.name}`."
                    )
            return None
        if not any(player is each for each in self.players):
            raise TypeError(
                f"an algorithm must yield its players, got {player!r}; yield one of "
                f"{', '.join(f'players.{each.name}' for each in self.players)}."
            )
        if not player.ledger.paid or not player.gradients():
            raise ValueError(
                f"the {player.name} must have gradients when it is yielded, got none; let it pay a "
                "cost that depends on its weights first, and detach nothing on the way."
            )
        return player

    def update(self, player: Player) -> None:
        """Move a player, unless something was not finite in this phase or in one before it."""
        self.measure(player)
        self.move(player)

    def measure(self, player: Player) -> None:
        """Find out whether a player may move."""
        # Here, not before: ranks have averaged the gradients, and hooks may have changed them.
        loss = self.phase.get(f"loss_{player.name}", self._zero)
        self._total = finite.total([self._total.to(loss.dtype), loss], player.gradients())
        self._bad = finite.is_not(self._total)
        player.skipped = self._bad.float()
        self._measured += [loss, self._total]
        self._moved.append(player)

    def move(self, player: Player) -> None:
        """Move a player's weights along its gradients, unless ``player.skipped`` is 1.

        Fused optimizers decide on the device. For others the host has to wait.
        """
        optimizer = player.optimizer
        if optimizers.decides_on_device(optimizer):
            # The protocol between PyTorch's GradScaler and its optimizers.
            optimizer.found_inf = player.skipped  # type: ignore[attr-defined]
            optimizer.step()
            del optimizer.found_inf  # type: ignore[attr-defined]
        elif player.skipped == 0:  # sync
            optimizer.step()

    def _end(self) -> None:
        self.skipped.causes = [
            f"the {player.name}'s {what}"
            for player in self._moved
            for what in ("loss was", "gradients were")
        ]
        self.skipped.count(self._measured, self._bad)
        self._buffers.restore_if(self._bad)
        for player in self.players:
            if player.average is not None:
                player.average.update(player.skipped)
        if self.loss_scale is not None:
            self.loss_scale.update(~self._bad)
        means = [v[0] if len(v) == 1 else torch.stack(v).mean() for v in self._logged.values()]
        self.report = Report(list(self._logged), torch.stack(means))

    def measured(self) -> list[torch.Tensor]:
        """Return the statistics of the phase that has just ended, which ranks average."""
        return list(self.phase.values())

    def begin_anew(self) -> None:
        """Forget what is kept of other steps: here nothing."""


def started(algorithm: Algorithm, players: Players, batch: Batch) -> Generator[Player]:
    """Return a run of an algorithm, before its first line."""
    run: object = algorithm(players, batch)
    if not isinstance(run, Generator):
        raise TypeError(
            f"algorithm must be a generator function of (players, batch), got one that returns "
            f"{type(run).__name__}; yield each player when its gradients are final."
        )
    return run
