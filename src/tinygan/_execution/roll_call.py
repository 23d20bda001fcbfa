"""Who of the ranks is lost? Found by the first that notices, and left for the others to read.

Those lose more ranks than the one that began it, as each that notices ends in turn.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

GRACE = 5.0
"""Seconds that ranks have to say that they are alive, when one has noticed that some are not."""

POLL = 0.05  # seconds between looks at who has said so


def own_name() -> str:
    """Return who this process is."""
    return f"process {os.getpid()} on {socket.gethostname()}"


class RollCall:
    """Asks the ranks who is there.

    Args:
        store: a store of torch.distributed, in which ranks leave each other words.
        rank: which of them this is.
        names: who each of them is, by ``own_name``.
        timeout: seconds without a sign after which a rank is lost.
    """

    def __init__(self, store: Any, rank: int, names: Sequence[str], timeout: float) -> None:
        self._store = store
        self._rank = rank
        self._names = names
        self._timeout = timeout

    def who_is_lost(self, waited: bool) -> str:
        """Return a sentence that names the lost ranks.

        Args:
            waited: whether they were waited for, or a connection was closed.
        """
        try:
            self._store.set(f"alive/{self._rank}", "")
            if not self._store.check(["lost"]):
                found = [self._rank, waited, self._missing(waited)]
                self._store.compare_set("lost", "", json.dumps(found))
            finder, waited, missing = json.loads(self._store.get("lost"))
            missing = self._silent(missing) or missing  # or it is this one
        except RuntimeError:  # the store has ended with rank 0, or with torchrun
            finder, others = self._rank, set(range(len(self._names))) - {self._rank}
            missing = [rank for rank in sorted(others) if self._has_ended(rank)]
        names = [f"rank {rank} ({self._names[rank]})" for rank in missing]
        which = (" and " if waited else " or ").join(names) or "another rank"
        what = f"gave no sign for {self._timeout:g} s" if waited else "ended without a word"
        return f"{which} {what}, as rank {finder} found"

    def _missing(self, waited: bool) -> list[int]:
        """Return which ranks have ended, or do not say within a moment that they are alive."""
        missing = self._silent(range(len(self._names)))
        end = time.monotonic() + min(GRACE, self._timeout)
        while missing and time.monotonic() < end:
            ended = [rank for rank in missing if self._has_ended(rank)]
            if ended and not waited:
                return ended  # others may just not have noticed yet
            time.sleep(POLL)
            missing = self._silent(missing)
        return missing

    def _silent(self, ranks: Iterable[int]) -> list[int]:
        return [rank for rank in ranks if not self._store.check([f"alive/{rank}"])]

    def _has_ended(self, rank: int) -> bool:
        """Return whether a rank of this machine has surely ended."""
        _, number, _, host = self._names[rank].split()
        if host != socket.gethostname():
            return False
        try:
            # One that has ended keeps its number until its parent has looked: a zombie, Z.
            state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return Path("/proc/self").exists()
        return state == "Z"
