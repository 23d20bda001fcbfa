"""One run in several processes, its ranks, which ``torchrun`` starts: thin over torch.distributed.

    torchrun --nproc-per-node 2 train.py

Each rank trains on its part of each batch. ``GANTrainer``, ``data.Loader`` and ``data.pack`` join
by themselves. Where a rank trains, and what one of them should print, is left to the script::

    ranks = tinygan.distributed.join()
    trainer = tinygan.GANTrainer(generator, discriminator, device=ranks.device)
    if ranks.is_first:
        print("done")
"""

from __future__ import annotations

import atexit
import datetime
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from tinygan._execution import roll_call
from tinygan._run import checks

TIMEOUT = 300.0
"""Seconds without a sign of another rank after which it is taken for dead or stuck."""

POLL = 0.05  # seconds between looks at what rank 0 has to say

_MEANWHILE = "its own output, or torchrun's summary, may say why; run the same command to go on"


class RankError(RuntimeError):
    """Another rank has failed, or ranks are not what they should be to each other."""


class LostRankError(RankError):
    """Another rank has ended without a word, or is stuck."""


class DifferentRanksError(RankError):
    """Ranks do not hold the same weights any more."""


class Ranks:
    """The processes of one run, and which of them this is. ``join`` makes it.

    Args:
        rank: this process's number, from 0.
        count: how many there are.
        local_rank: its number on this machine.
        timeout: seconds without a sign of another rank after which it is lost.
        names: who each rank is, for messages.
        store: where ranks leave each other words.
        control: a group of gloo's, in which they exchange numbers.

    Examples:
        >>> ALONE.rank, ALONE.count, ALONE.gather([1, 2])
        (0, 1, [[1, 2]])
    """

    def __init__(
        self,
        rank: int = 0,
        count: int = 1,
        *,
        local_rank: int = 0,
        timeout: float = TIMEOUT,
        names: Sequence[str] = (),
        store: PrefixStore | None = None,
        control: dist.ProcessGroup | None = None,
    ) -> None:
        self.rank = rank
        self.count = count
        self.local_rank = local_rank
        self.timeout = timeout
        self.names = names
        self.lost = False
        self._store: Any = store
        self._control = control
        self._roll_call = roll_call.RollCall(store, rank, names, timeout)
        self._works = 0
        self._last_sign = 0.0

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which logs, draws and saves."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """This rank's GPU, or the CPU where there are none.

        Raises:
            ValueError: if the machine has GPUs, and fewer of them than ranks.
        """
        if not torch.cuda.is_available():
            return torch.device("cpu")
        if self.local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"ranks must have a GPU each, got {torch.cuda.device_count()} GPUs for rank "
                f"{self.local_rank} of this machine; start fewer ranks, or train on the CPU."
            )
        return torch.device("cuda", self.local_rank)

    def part(self, size: int) -> slice:
        """Return which images of a batch of ``size`` are this rank's.

        Parts differ by an image at most. A batch of fewer than two images per rank, as batch norm
        needs, is not shared out: each rank takes all of it.

        Examples:
            >>> [Ranks(rank, 3).part(8) for rank in range(3)]
            [slice(0, 3, None), slice(3, 6, None), slice(6, 8, None)]
        """
        if size < 2 * self.count:
            return slice(0, size)
        each, more = divmod(size, self.count)
        start = self.rank * each + min(self.rank, more)
        return slice(start, start + each + (self.rank < more))

    def least(self, size: int) -> int:
        """Return how many images of a batch of ``size`` the smallest part has.

        Examples:
            >>> Ranks(0, 3).least(8)
            2
        """
        return size // self.count if size >= 2 * self.count else size

    def share(self, size: int, multiple: int = 1) -> float:
        """Return the weight of this rank's mean in the mean over a batch of ``size``.

        Args:
            size: examples of the whole batch.
            multiple: the number that what a rank uses of its part is a multiple of.

        Examples:
            >>> [Ranks(rank, 3).share(10, 2) for rank in range(3)]
            [0.5, 0.25, 0.25]
        """
        if size < 2 * self.count:
            return 1 / self.count
        each, more = divmod(size, self.count)
        used = [(each + (rank < more)) // multiple for rank in range(self.count)]
        return used[self.rank] / sum(used)

    def gather(self, numbers: Sequence[int]) -> list[list[int]]:
        """Return the numbers, as many on each rank, of all ranks.

        Raises:
            LostRankError: as all that waits for the others.
        """
        if self.count == 1:
            return [list(numbers)]
        own = torch.tensor(numbers, dtype=torch.int64)
        found = [torch.empty_like(own) for _ in range(self.count)]
        with self._noticing():
            dist.all_gather(found, own, group=self._control)
        return [row.tolist() for row in found]

    def gather_texts(self, text: str) -> list[str]:
        """Return what each rank says."""
        if self.count == 1:
            return [text]
        data = text.encode(errors="backslashreplace")  # names of files may be any bytes
        longest = max(row[0] for row in self.gather([len(data)]))
        rows = self.gather([len(data), *data.ljust(longest)])
        return [bytes(row[1 : 1 + row[0]]).decode() for row in rows]

    def sum(self, tensor: torch.Tensor) -> None:
        """Make a tensor, in place, the sum over all ranks; it is bit for bit the same on each."""
        if self.count > 1:
            with self._noticing():
                dist.all_reduce(tensor)

    def send(self, data: bytes) -> bytes:
        """Return rank 0's bytes on all ranks."""
        if self.count == 1:
            return data
        size, *_ = (row[0] for row in self.gather([len(data)]))
        sent = torch.empty(size, dtype=torch.uint8)
        if self.is_first:
            sent = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        with self._noticing():
            dist.broadcast(sent, 0, group=self._control)
        return sent.numpy().tobytes()

    def first(self, work: Callable[[], Any], doing: str) -> Any:
        """Do some work on rank 0, while the others wait; return its result, plain values, on all.

        Args:
            work: what is to be done; it may take any time, if it calls ``sign`` now and then.
            doing: what it does, for the error of those who wait in vain.

        Raises:
            RankError: on the others, if it fails on rank 0.
            LostRankError: on the others, if there is no sign of rank 0 for the timeout.
        """
        if self.count == 1:
            return work()
        self._works += 1
        key = f"work/{self._works}"
        if not self.is_first:
            with self._noticing():
                found = self._wait_for(key, doing)
            # Rank 0 may keep the store, and is not to end before all have read it.
            if "error" in found:
                with suppress(RankError):  # the first error is the one to tell
                    self.gather([0])
                raise RankError(f"rank 0 failed, {doing}: {found['error']}")
            self.gather([0])
            return found["result"]
        try:
            result = work()
        except BaseException as error:
            self._store.set(key, json.dumps({"error": describe(error)}))
            with suppress(RankError):
                self.gather([0])
            raise
        self._store.set(key, json.dumps({"result": result}))
        self.gather([0])
        return result

    def _wait_for(self, key: str, doing: str) -> dict[str, Any]:
        signs, since = 0, time.monotonic()
        while not self._store.check([key]):
            time.sleep(POLL)
            now = self._store.add("signs", 0)
            if now != signs:
                signs, since = now, time.monotonic()
            if time.monotonic() - since > self.timeout:
                raise LostRankError(
                    f"rank {self.rank} has waited for rank 0, {self.names[0]}, {doing}, without a "
                    f"sign of it for {self.timeout:g} s; {_MEANWHILE}."
                )
        found: dict[str, Any] = json.loads(self._store.get(key))
        return found

    def sign(self) -> None:
        """Let those who wait for this rank know that its work goes on. Cheap to call often."""
        if self.count > 1 and time.monotonic() - self._last_sign > min(1.0, self.timeout / 4):
            self._last_sign = time.monotonic()
            self._store.add("signs", 1)

    @contextmanager
    def _noticing(self) -> Iterator[None]:
        """Make of a connection that is broken or silent an error that names the lost ranks."""
        begin = time.monotonic()
        try:
            yield
        except RankError:
            self.lost = True
            raise
        except RuntimeError as error:
            self.lost = True
            # A connection that was closed is noticed at once.
            waited = time.monotonic() - begin > 0.9 * self.timeout
            raise LostRankError(f"{self._roll_call.who_is_lost(waited)}; {_MEANWHILE}.") from error


ALONE = Ranks()
"""A run in one process."""

_joined: list[Ranks] = []


def join(*, timeout: float = TIMEOUT) -> Ranks:
    """Return the ranks that ``torchrun`` has started, of which this process becomes one.

    Without torchrun the process is alone. A process joins once: later calls return the same.

    Args:
        timeout: seconds without a sign of another rank after which it is taken for dead or stuck.

    Examples:
        >>> join().count
        1
    """
    if not timeout > 0:
        raise ValueError(f"timeout must be above 0 seconds, got {timeout!r}; use 300, say.")
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    if not _joined:
        _joined.append(_join(timeout))
    return _joined[0]


def _join(timeout: float) -> Ranks:
    limit = datetime.timedelta(seconds=timeout)
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if torch.cuda.is_available() and local_rank < torch.cuda.device_count():
        torch.cuda.set_device(local_rank)  # what "cuda" means from here on
    # Some need longer to start than the timeout, which is that of a run.
    patience = datetime.timedelta(seconds=max(timeout, TIMEOUT))
    shared, rank, count = next(rendezvous("env://", timeout=patience))
    # torchrun keeps its store when it restarts ranks, with all that the dead ones have left in it.
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    shared = PrefixStore(f"restart {restart} of {count} ranks", shared)
    store = PrefixStore("tinygan", shared)
    store.set(f"name/{rank}", roll_call.own_name())
    names = [store.get(f"name/{each}").decode() for each in range(count)]  # all have come
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
        store=PrefixStore("torch", shared), rank=rank, world_size=count, timeout=limit,
    )  # fmt: skip
    # What ranks tell each other is on the host, where no GPU is waited for.
    control = dist.new_group(backend="gloo", timeout=limit)
    assert isinstance(control, dist.ProcessGroup)
    ranks = Ranks(
        rank, count, local_rank=local_rank, timeout=timeout, names=names, store=store,
        control=control,
    )  # fmt: skip
    atexit.register(_leave, ranks)
    return ranks


def _leave(ranks: Ranks) -> None:
    if not ranks.lost:  # or it might wait for them
        dist.destroy_process_group()


def describe(error: BaseException) -> str:
    """Return an error in one line, with its notes.

    Examples:
        >>> describe(ValueError("no"))
        'ValueError: no'
    """
    notes: list[str] = getattr(error, "__notes__", [])
    return "; ".join([f"{type(error).__name__}: {error}", *notes])


def is_launched() -> bool:
    """Return whether torchrun has started this process.

    Examples:
        >>> is_launched()
        False
    """
    return dist.is_torchelastic_launched()


def launch(count: int) -> NoReturn:
    """Run this program again as ``count`` ranks on this machine, by torchrun; end as they end.

    Examples:
        >>> if "--ngpu=4" in sys.argv and not is_launched():  # the ranks come by here too
        ...     launch(4)
    """
    checks.count("count", count)
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main

    # As torchrun does, but for all cores rather than for one per rank.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    try:
        main(["--standalone", "--nproc-per-node", str(count), *sys.argv])
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        raise SystemExit(failure.exitcode if failure.exitcode > 0 else 1) from None
    except SignalException as error:  # which the ranks have had as well
        raise SystemExit(128 + error.sigval) from None
    raise SystemExit(0)
