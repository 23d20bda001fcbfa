"""What the ranks of a run exchange: averages in each phase, and agreements before these."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import torch

from tinygan.distributed import DifferentRanksError, RankError, Ranks
from tinygan.nets import traits
from tinygan.player import Player

NO_BATCH = -1  # the size where ranks agree without a batch; 0 is the end of an epoch
BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes per element


class Request(NamedTuple):
    """A request to stop: why, and by which signal, or 0."""

    reason: str
    signal: int = 0


@dataclass
class Replica:
    """One rank's part in a run; alone, it exchanges nothing."""

    ranks: Ranks
    players: Iterable[Player]
    measured: Callable[[], Sequence[torch.Tensor]]  # the statistics of a phase
    compared_step: int = 0  # when all ranks were last found to hold the same bits

    @torch.no_grad()
    def average(self, player: Player, share: float) -> None:
        """Average gradients, statistics and batch norm's, all weighted by ``share``."""
        if self.ranks.count == 1:
            return
        given = list(self.measured())
        # No rank may wait below for one that has failed, or that sends less.
        learning = bytes(weight.grad is not None for weight in player.parameters)
        kinds = self.ranks.gather([NO_BATCH, len(given) << 32 | zlib.crc32(learning), 0])
        if len({kind for _, kind, _ in kinds}) > 1:
            raise RankError(
                "ranks must log the same statistics and have gradients of the same weights in each "
                "step; neither log nor pay in an if."
            )
        given += player.gradients()
        # By .data, for graphs that have yet to go backward may have saved these.
        for each in self.players:
            given += [s.data for s in traits.running_statistics(each.module).values()]
        for dtype in dict.fromkeys(tensor.dtype for tensor in given):
            tensors = [tensor for tensor in given if tensor.dtype == dtype]
            sizes = [tensor.numel() for tensor in tensors]
            flat = tensors[0].new_empty(sum(sizes))
            views = [part.view(t.shape) for part, t in zip(flat.split(sizes), tensors)]
            torch._foreach_copy_(views, tensors)
            self.ranks.sum(flat.mul_(share))
            torch._foreach_copy_(tensors, views)

    def agree(
        self, size: int = NO_BATCH, digest: int = 0, request: Request | None = None
    ) -> Request | None:
        """Return the request to stop that any rank has; if none, compare the next whole batches."""
        if self.ranks.count == 1:
            return request
        asked = 0 if request is None else 1 + request.signal
        rows = self.ranks.gather([size, digest, asked])
        asking = [asked for _, _, asked in rows]
        if not any(asking):
            if other := [str(rank) for rank, row in enumerate(rows) if row[:2] != rows[0][:2]]:
                raise RankError(
                    f"all ranks must be given the same batches; rank {', '.join(other)} differs "
                    f"from rank 0 (sizes by rank: {[size for size, *_ in rows]}); use data.Loader, "
                    "or a DataLoader with generator=torch.Generator().manual_seed(1) and no "
                    "DistributedSampler."
                )
            return None
        reasons = self.ranks.gather_objects(request and request.reason)
        first = next(rank for rank, code in enumerate(asking) if code)
        reason = request.reason if request else f"{reasons[first]} (rank {first})"
        return Request(reason, max(asking) - 1)

    def fail(self, error: Exception) -> None:
        """Tell the other ranks of an error, unless it came from them: they end by it too."""
        if self.ranks.count > 1 and not isinstance(error, RankError):
            with suppress(RankError):  # the first error is the one to raise
                self.ranks.gather([NO_BATCH, 0, 0], error)

    def check_identical(self, step: int) -> None:
        """Raise, on all ranks, if their weights, moments or statistics differ; after ``agree``."""
        if self.ranks.count == 1:
            return
        theirs = self.ranks.gather_objects(_sums_of_bits(self.players))
        for name, sum_of_bits in theirs[0].items():
            if other := [str(r) for r, sums in enumerate(theirs) if sums.get(name) != sum_of_bits]:
                raise DifferentRanksError(
                    f"ranks must hold the same bits, got {name} that differs on rank "
                    f"{', '.join(other)} from rank 0's at step {step}; let hooks change weights "
                    "and gradients on every rank alike, and run the same command to go on from "
                    f"step {self.compared_step}, at which they last did, or before."
                )
        self.compared_step = step


def _sums_of_bits(players: Iterable[Player]) -> dict[str, int]:
    """Sum the elements, as integers by their bits, of each tensor that ranks share."""
    shared: dict[str, torch.Tensor] = {}
    for player in players:
        own = dict(player.module.named_parameters()) | traits.running_statistics(player.module)
        shared |= {f"{player.name}.{name}": tensor for name, tensor in own.items()}
        for name, weight in player.module.named_parameters():
            for kind, moment in player.optimizer.state.get(weight, {}).items():
                if isinstance(moment, torch.Tensor):
                    shared[f"{player.name} optimizer.{name}.{kind}"] = moment
    sums = [t.detach().view(BITS[t.element_size()]).sum(dtype=torch.int64) for t in shared.values()]
    return dict(zip(shared, torch.stack([each.to(sums[0].device) for each in sums]).tolist()))
