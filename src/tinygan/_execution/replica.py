"""What one rank of a run exchanges with the others, and when.

Each rank has the whole state of the run, and trains on its part of each batch. Gradients are
averaged once per phase, between its backward and its update piece, in one all-reduce; with them go
the phase's statistics, and batch norm's.

Ranks meet in agreements: before each step, at the end of its pieces, and around a run. What one is
asked there, all are asked; what one has failed in, all fail in. A rank that fails between two
agreements still gives what the others wait for, as NaN, so that they skip the step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch

from tinygan.distributed import DifferentRanksError, RankError, Ranks, describe
from tinygan.nets import traits
from tinygan.optimizers import parameter_names
from tinygan.player import Player

NO_BATCH = -1
"""The size where ranks meet without a batch, or the end of an epoch, at hand."""

BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Types as which tensors are summed up bit by bit, by the bytes of an element."""


MOST_STATISTICS = 32
"""Statistics of a phase that ranks average: of a fixed number, so that all send as much."""


class Request(NamedTuple):
    """A request to stop: why, and by which signal, or 0."""

    reason: str
    signal: int = 0


class _Word(NamedTuple):
    """What a rank says in an agreement, in numbers."""

    failed: int = 0
    size: int = NO_BATCH
    digest: int = 0
    asked: int = 0
    signal: int = 0


class Replica:
    """One rank's part in a run; with one rank alone, all of it, and nothing is exchanged.

    Args:
        ranks: all of them.
        players: whose gradients are averaged.
        measured: returns the statistics of the phase that has just ended, scalars.

    Attributes:
        order: the players in the order in which a step yields them.
        compared_step: the step at which all ranks were last found to hold the same bits.
    """

    def __init__(
        self,
        ranks: Ranks,
        players: Iterable[Player],
        measured: Callable[[], Sequence[torch.Tensor]],
    ) -> None:
        self.ranks = ranks
        self.order: list[Player] = []
        self.compared_step = 0
        self._players = list(players)
        self._measured = measured
        self._due: list[Player] = []
        """Whose gradients the other ranks wait for, before the next agreement."""

    def begin_step(self) -> None:
        """From here to the next agreement, all ranks average each player's gradients."""
        self._due = list(self.order)

    def average(self, player: Player, share: float) -> None:
        """Make gradients and statistics of a part of a batch those of all of it.

        Args:
            player: whose gradients these are.
            share: the weight of this part's mean in that of all.
        """
        if self.ranks.count > 1:
            self._reduce(player, share)
            del self._due[:1]

    @torch.no_grad()
    def _reduce(self, player: Player, share: float | None) -> None:
        """Take part with the weight ``share``; for None, spoil it for all and change nothing."""
        scalars = [] if share is None else list(self._measured())
        if len(scalars) > MOST_STATISTICS:
            raise ValueError(
                f"a phase must log at most {MOST_STATISTICS} statistics in a run of several ranks, "
                f"got {len(scalars)}; log fewer."
            )
        weights = player.parameters
        statistics = weights[0].new_zeros(MOST_STATISTICS)
        if scalars:
            statistics[: len(scalars)] = torch.stack([s.to(statistics) for s in scalars])
        # By .data, for graphs that have yet to go backward may have saved these.
        running = [
            statistic.data
            for each in self._players
            for statistic in traits.running_statistics(each.module).values()
        ]
        # Parameters without a gradient count too: if lengths differed, ranks would hang.
        places = [*weights, statistics, *running]
        given = [*(p.grad for p in weights), statistics, *running]
        # In the order of the places: that of a set differs between processes.
        for dtype in dict.fromkeys(place.dtype for place in places):
            pairs = [pair for pair in zip(places, given) if pair[0].dtype == dtype]
            sizes = [place.numel() for place, _ in pairs]
            flat = torch.zeros(sum(sizes), dtype=dtype, device=places[0].device)
            parts = [part.view(p.shape) for part, (p, _) in zip(flat.split(sizes), pairs)]
            views = [part for part, (_, tensor) in zip(parts, pairs) if tensor is not None]
            tensors = [tensor for _, tensor in pairs if tensor is not None]
            if share is None:
                self.ranks.sum(flat.fill_(float("nan")))
            else:
                torch._foreach_copy_(views, tensors)
                self.ranks.sum(flat.mul_(share))
                torch._foreach_copy_(tensors, views)
        if scalars:
            torch._foreach_copy_(scalars, list(statistics[: len(scalars)].unbind()))

    def agree(
        self, size: int = NO_BATCH, digest: int = 0, request: Request | None = None
    ) -> Request | None:
        """Meet the other ranks; return the request to stop that any of them has, if there is one.

        Args:
            size: images of the whole batch that is next, 0 for none in this epoch.
            digest: stands for what must be the same on each rank.
            request: what this rank was asked.

        Raises:
            RankError: on all ranks, if one of them has failed, or is elsewhere in the data.
        """
        if self.ranks.count == 1:
            return request
        signal = 0 if request is None else request.signal
        words = self._meet(_Word(0, size, digest, request is not None, signal))
        sizes, digests = [word.size for word in words], [word.digest for word in words]
        if len(set(sizes)) > 1:
            raise RankError(
                "ranks must have batches of as many images, got, in the order of ranks, "
                f"{', '.join(map(_in_words, sizes))}; give them batches of the same data, of the "
                "same size."
            )
        if len(set(digests)) > 1:
            others = [str(rank) for rank, each in enumerate(digests) if each != digests[0]]
            raise RankError(
                "ranks must be given the same batches, of which each takes its part, got others "
                f"than rank 0's on rank {', '.join(others)}; use data.Loader, or a DataLoader "
                "with generator=torch.Generator().manual_seed(1), say, and no DistributedSampler."
            )
        asked = [rank for rank, word in enumerate(words) if word.asked]
        if not asked:
            return None
        # Each has a reason of its own, or is told by the first that has one.
        reasons = self.ranks.gather_texts("" if request is None else request.reason)
        reason = request.reason if request else f"{reasons[asked[0]]} (rank {asked[0]})"
        return Request(reason, max(word.signal for word in words))

    def fail(self, error: Exception) -> None:
        """Tell the other ranks of an error, unless it came from them: they end by it too."""
        if self.ranks.count == 1 or isinstance(error, RankError):
            return
        try:
            for player in self._due:
                self._reduce(player, None)
            self._meet(_Word(failed=1), describe(error))
        except Exception as second:  # the first is the one to raise
            error.add_note(f"the other ranks could not be notified: {describe(second)}")

    def _meet(self, own: _Word, error: str = "") -> list[_Word]:
        """Return what each rank says; raise RankError if others have failed and this has not."""
        self._due = []
        words = [_Word(*numbers) for numbers in self.ranks.gather(own)]
        failed = [rank for rank, word in enumerate(words) if word.failed]
        if failed:
            texts = self.ranks.gather_texts(error)
            if not own.failed:
                raise RankError("; ".join(f"rank {rank} failed: {texts[rank]}" for rank in failed))
        return words

    def check_identical(self, step: int) -> None:
        """Raise RankError, on all ranks, if their weights, moments or statistics are not the same.

        To be called straight after an agreement.
        """
        if self.ranks.count == 1:
            return
        tensors = {k: v for player in self._players for k, v in shared_tensors(player).items()}
        sums = sums_of_bits(tensors.values())
        counts = self.ranks.gather([len(sums)])
        rows = self.ranks.gather(sums) if len({count for (count,) in counts}) == 1 else counts
        for number, values in enumerate(zip(*rows)):
            if len(set(values)) > 1:
                differs = [str(rank) for rank, value in enumerate(values) if value != values[0]]
                raise DifferentRanksError(
                    f"ranks must hold the same bits, got {list(tensors)[number]} that differs on "
                    f"rank {', '.join(differs)} from rank 0's at step {step}; let hooks change "
                    "weights and gradients on every rank alike, and go on from a checkpoint of "
                    f"step {self.compared_step} or before."
                )
        self.compared_step = step


def shared_tensors(player: Player) -> dict[str, torch.Tensor]:
    """Return by name what is the same on all ranks: weights, batch norm's statistics, moments."""
    names = parameter_names(player.module)
    found: dict[str, torch.Tensor] = {}
    for name, weight in player.module.named_parameters():
        found[f"{player.name}.{name}"] = weight
    for name, statistic in traits.running_statistics(player.module).items():
        found[f"{player.name}.{name}"] = statistic
    for parameter, moments in player.optimizer.state.items():
        for name, value in moments.items():
            if isinstance(value, torch.Tensor):
                found[f"{player.name} optimizer.{names[id(parameter)]}.{name}"] = value
    return found


def _in_words(size: int) -> str:
    return {NO_BATCH: "no batch", 0: "the end of the epoch"}.get(size, str(size))


def sums_of_bits(tensors: Iterable[torch.Tensor]) -> list[int]:
    """Return for each tensor the sum of its elements, each taken for an integer by its bits.

    Examples:
        >>> sums_of_bits([torch.tensor([1.0, 1.0]), torch.tensor([0.0])])
        [2130706432, 0]
    """
    sums = [
        tensor.detach().view(BITS[tensor.element_size()]).sum(dtype=torch.int64)
        for tensor in tensors
    ]
    # Some optimizers count their steps on the CPU.
    found: list[int] = torch.stack([total.to(sums[0].device) for total in sums]).tolist()  # sync
    return found
