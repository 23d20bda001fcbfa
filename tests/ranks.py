"""Runs of several ranks: children that join each other as torchrun would have them do."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.distributed import TCPStore

from tinygan import distributed

from processes import Child, Ended


def start(
    folder: Path, count: int, function: Callable[..., object], *arguments: Any, timeout: float = 30
) -> list[Child]:
    """Start a function on each of several ranks, each within a folder of its own number."""
    # As torchrun does, which outlives its ranks.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    children = []
    for rank in range(count):
        (folder / str(rank)).mkdir(exist_ok=True)
        place = (rank, count, store.port, timeout)
        children.append(Child(folder / str(rank), _enter, place, function, *arguments))
        children[-1].store = store  # for as long as they may need it
    return children


def run(folder: Path, count: int, function: Callable[..., object], *arguments: Any) -> list[Ended]:
    """Run a function on each of several ranks to its end; fail unless all end well."""
    ended = [child.wait() for child in start(folder, count, function, *arguments)]
    assert [end.returncode for end in ended] == [0] * count, [end.stderr for end in ended]
    return ended


def _enter(
    place: tuple[int, int, int, float], function: Callable[..., object], *arguments: Any
) -> None:
    rank, count, port, timeout = place
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip
    if count > 1:
        distributed.join(timeout=timeout)
    function(*arguments)
