"""Runs of several ranks: children that join each other as torchrun would have them do."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.distributed import TCPStore

import tinygan
from tinygan import data, distributed, hooks

from helpers import fingerprint, tiny_images, tiny_trainer
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


def run(
    folder: Path, count: int, function: Callable[..., object], *arguments: Any, timeout: float = 30
) -> list[Ended]:
    """Run a function on each of several ranks to its end; fail unless all end well."""
    ended = [child.wait() for child in start(folder, count, function, *arguments, timeout=timeout)]
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


class On(tinygan.Hook):
    """Does something at an event of one rank, at a step."""

    def __init__(self, rank: int, event: str, step: int, act: Callable[[Any], object]) -> None:
        def listen(trainer: tinygan.GANTrainer, *arguments: Any) -> None:
            if trainer.ranks.rank == rank and trainer.step == step:
                act(trainer)

        setattr(self, event, listen)


def fail(*arguments: Any) -> None:
    """Be a hook with a fault."""
    raise ValueError("boom")


def train(
    folder: Path, *watching: tinygan.Hook, steps: int = 12, batches: Any = None, every: int = 4
) -> dict[str, Any]:
    """Train in a folder that all ranks know; return how that ended, as plain values."""
    trainer = tiny_trainer(hooks=[*watching, hooks.Checkpoint(folder, every=every)])
    found: dict[str, Any] = {"error": None}
    try:
        trainer.resume(folder)
        trainer.fit(batches or data.Loader(tiny_images(), 8), steps=steps)
    except Exception as error:
        found["error"] = in_words(error)
    except (SystemExit, KeyboardInterrupt) as end:
        found["status"] = end.code if isinstance(end, SystemExit) else 130
    state = hashlib.sha256(pickle.dumps({k: v.numpy() for k, v in fingerprint(trainer).items()}))
    return found | {
        "step": trainer.step, "reason": trainer.stop_reason, "between": trainer.between_steps,
        "rollbacks": trainer.rollbacks, "state": state.hexdigest(), "saved": saved_in(folder),
    }  # fmt: skip


def in_words(error: BaseException) -> str:
    """Return an error's type and text, with its notes, in one line."""
    notes = getattr(error, "__notes__", [])
    return "; ".join([f"{type(error).__name__}: {error}", *notes]).replace("\n", " ")


def saved_in(folder: Path) -> list[str]:
    """Return the names of a run's checkpoints."""
    return sorted(path.name for path in folder.glob("checkpoints/*.pt"))


def keep(function: Callable[..., object], *arguments: Any) -> None:
    """Write what a function returns to a file of this rank; for ``kept``."""
    Path("kept.json").write_text(json.dumps(function(*arguments)))


def kept_by(folder: Path, rank: int) -> Any:
    """Return what a rank has kept."""
    return json.loads((folder / str(rank) / "kept.json").read_text())


def kept(folder: Path, count: int = 2) -> list[Any]:
    """Return what each rank has kept."""
    return [kept_by(folder, rank) for rank in range(count)]
