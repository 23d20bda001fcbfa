"""One run in several processes, called ranks: thin over torchrun and torch.distributed."""

from __future__ import annotations

import atexit
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

TIMEOUT = 300.0  # seconds


class RankError(RuntimeError):
    """Another rank has failed, or the ranks do not fit together."""


class LostRankError(RankError):
    """Another rank has died or does not answer."""


class DifferentRanksError(RankError):
    """The ranks no longer hold the same weights."""


@dataclass(eq=False)
class Ranks:
    """The processes of one run, and which of them this is: what ``join`` returns.

    Examples:
        >>> [Ranks(rank, 3).part(8) for rank in range(3)]
        [slice(0, 3, None), slice(3, 6, None), slice(6, 8, None)]
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0  # the number on this machine
    timeout: float = TIMEOUT
    groups: Sequence[Any] = (None, None, None)  # averages; messages; asking who is silent
    _last_sign: float = 0.0

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which logs, draws and saves."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """This rank's GPU, or the CPU on a machine without GPUs."""
        return torch.device(f"cuda:{self.local_rank}" if torch.cuda.is_available() else "cpu")

    def sizes(self, size: int) -> list[int]:
        """Return the sizes of the ranks' parts of a batch, the largest first."""
        # Batch norm needs two images per rank: each rank takes all of a batch that has fewer.
        if size < 2 * self.count:
            return [size] * self.count
        return [(size + self.count - 1 - rank) // self.count for rank in range(self.count)]

    def part(self, size: int) -> slice:
        """Return which images of a batch are this rank's; parts differ by one image at most."""
        sizes = self.sizes(size)
        stop = min(size, sum(sizes[: self.rank + 1]))
        return slice(stop - sizes[self.rank], stop)

    def share(self, size: int, multiple: int = 1) -> float:
        """Return the weight of this rank's mean, if each uses a multiple of so many images."""
        used = [part // multiple for part in self.sizes(size)]
        return used[self.rank] / sum(used)

    def sum(self, tensor: torch.Tensor) -> None:
        """Replace a tensor by its sum over all ranks, with the same bits on each."""
        if self.count > 1:
            with self._noticing():
                dist.all_reduce(tensor, group=self.groups[0])

    def gather(self, numbers: Sequence[int], error: BaseException | None = None) -> list[list[int]]:
        """Return the integers of each rank; raise a RankError here if others give an error."""
        if self.count == 1:
            return [list(numbers)]
        own = torch.tensor([error is not None, *numbers], dtype=torch.int64, device="cpu")
        rows = [torch.empty_like(own) for _ in range(self.count)]
        with self._noticing():
            dist.all_gather(rows, own, group=self.groups[1])
        if failed := [rank for rank, row in enumerate(rows) if row[0]]:
            lines = map(str.rstrip, traceback.format_exception_only(error)) if error else ()
            texts = self.gather_objects("; ".join(lines))
            if error is None:
                raise RankError("; ".join(f"rank {rank} failed: {texts[rank]}" for rank in failed))
        return [row[1:].tolist() for row in rows]

    def gather_objects(self, value: Any) -> list[Any]:
        """Return the value of each of several ranks."""
        found = [value] * self.count
        with self._noticing():
            dist.all_gather_object(found, value, group=self.groups[1])
        return found

    def send(self, value: Any) -> Any:
        """Return rank 0's value on each of several ranks."""
        box = [value]
        with self._noticing():
            dist.broadcast_object_list(box, 0, group=self.groups[1])
        return box[0]

    def first(self, work: Callable[[], Any], doing: str) -> Any:
        """Work on rank 0 while the others wait; they give up if no ``sign`` comes in time."""
        if self.count == 1:
            return work()
        result = None
        if self.is_first:
            try:
                result = work()
            except BaseException as error:
                error.add_note(f"while {doing}")
                with suppress(RankError):  # the first error is the one to raise
                    self.gather([1], error)
                raise
        while self.gather([self.is_first])[0] == [0]:
            pass  # that was a sign
        return self.send(result)

    def sign(self) -> None:
        """Tell those who wait in ``first`` that its work goes on. Cheap to call often."""
        if self.count > 1 and time.monotonic() - self._last_sign > min(1.0, self.timeout / 4):
            self.gather([0])
            self._last_sign = time.monotonic()

    @contextmanager
    def _noticing(self) -> Iterator[None]:
        """Turn a connection that is broken or silent into a LostRankError."""
        begin = time.monotonic()
        try:
            yield
        except RuntimeError as error:
            atexit.unregister(_leave)  # it might wait for the lost rank
            what = "lost the connection to another rank, which has ended"
            if time.monotonic() - begin > 0.9 * self.timeout:
                what = f"got no answer for {self.timeout:g} s: "
                try:
                    limit = timedelta(seconds=5)
                    dist.monitored_barrier(self.groups[2], limit, wait_all_ranks=True)
                except RuntimeError as found:
                    what += str(found).splitlines()[0]
            raise LostRankError(
                f"rank {self.rank} {what}; the output of the other ranks, or torchrun's summary, "
                "says why. Run the same command to go on."
            ) from error


ALONE = Ranks()  # a run in one process
_joined: dict[Any, Ranks] = {}


def join(*, timeout: float = TIMEOUT) -> Ranks:
    """Join the other processes of this run: all must call it, as trainers and loaders do.

    They are those of the script's own process group, or else torchrun's. After ``timeout`` seconds
    without an answer another rank counts as lost.

    Examples:
        >>> join().count
        1
    """
    if not timeout > 0:
        raise ValueError(f"timeout must be above 0 seconds, got {timeout!r}; use 300.")
    gpus = torch.cuda.device_count()
    if not dist.is_initialized():
        if (size := os.environ.get("WORLD_SIZE", "1")) == "1":
            return ALONE
        if missing := [n for n in ("RANK", "MASTER_ADDR", "MASTER_PORT") if n not in os.environ]:
            raise ValueError(
                f"WORLD_SIZE is {size}, but {', '.join(missing)} must be set too; start the script "
                "with torchrun, or unset WORLD_SIZE."
            )
        if gpus:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))  # what "cuda" means
        patience = timedelta(seconds=max(timeout, TIMEOUT))  # some start slowly
        store, rank, count = next(rendezvous("env://", timeout=patience))
        # torchrun's store outlives ranks that it restarts, with what the dead ones have left in it.
        store = PrefixStore(f"{count} ranks, {os.environ.get('TORCHELASTIC_RESTART_COUNT')}", store)
        backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
        dist.init_process_group(backend, None, patience, count, rank, store)
        atexit.register(_leave)
    rank, count, group = dist.get_rank(), dist.get_world_size(), dist.group.WORLD
    if count == 1:
        return ALONE
    if group not in _joined:
        limit = timedelta(seconds=timeout)
        groups = [dist.new_group(timeout=limit, backend=b) for b in (None, "gloo", "gloo")]
        local_rank = int(os.environ.get("LOCAL_RANK", rank % max(1, gpus)))
        _joined[group] = Ranks(rank, count, local_rank, timeout, groups)
        _joined[group].gather([])  # a rank that left before this would break the others' joining
    return _joined[group]


def _leave() -> None:
    # Whoever holds a group keeps its threads, and one that needs the interpreter when that has
    # ended aborts the process.
    for ranks in _joined.values():
        ranks.groups = ()
    _joined.clear()
    if dist.is_initialized():
        dist.destroy_process_group()


is_launched = dist.is_torchelastic_launched  # whether torchrun started this process


def launch(count: int) -> NoReturn:
    """Replace this program by torchrun, which runs it again as ``count`` ranks on this machine.

    Examples:
        >>> if "--ngpu=4" in sys.argv and not is_launched():  # the ranks come by here too
        ...     launch(4)
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}; use the number of GPUs.")
    # torchrun gives each rank one thread; here the ranks share all cores.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    os.execv(sys.executable, [sys.executable, *torchrun, *sys.argv])
