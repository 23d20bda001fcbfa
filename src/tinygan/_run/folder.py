"""A run's checkpoints in one folder: which there are, the newest good one, which may go.

Files are named by their step, as ``step_000500.pt``. One named ``step_000500.pinned.pt`` is kept
for ever, and files of any other name are left alone.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tinygan._run import checkpoint, disk
from tinygan._run.checkpoint import CheckpointError

logger = logging.getLogger(__name__)

NAME = re.compile(r"step_(\d+)(\.pinned)?\.pt")


def inside(run: Path) -> Path:
    """Return the folder of a run's checkpoints."""
    return run / "checkpoints"


def path_of(folder: Path, step: int, *, pinned: bool = False) -> Path:
    """Return the path of a step's file."""
    return folder / f"step_{step:06d}{'.pinned' if pinned else ''}.pt"


def step_of(path: Path) -> int:
    """Return the step at which a file was saved: 500 for ``step_000500.pt``."""
    match = NAME.fullmatch(path.name)
    assert match is not None, path
    return int(match[1])


def is_pinned(path: Path) -> bool:
    """Return whether a file is never removed."""
    return path.name.endswith(".pinned.pt")


def files(folder: Path) -> list[Path]:
    """Return the checkpoints, good or not, in the order of their steps: 99 before 100."""
    found = folder.iterdir() if folder.is_dir() else []
    return sorted((path for path in found if NAME.fullmatch(path.name)), key=step_of)


def load(path: Path) -> dict[str, Any]:
    """Return a run's state, in which its hooks' folders were saved relative to the file."""
    state = checkpoint.load(path)
    folders = state.get("folders", {}).items()
    return state | {"folders": {k: os.path.abspath(path.parent / at) for k, at in folders}}


def find(path: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return a named file, or the newest whole one of a run's folder, and its content.

    None stands for the folder of a run that is yet to begin.
    """
    if path.is_file() or path.suffix == ".pt":
        return path, load(path)
    candidates = files(path) or files(inside(path))
    for candidate in reversed(candidates):
        try:
            return candidate, load(candidate)
        except CheckpointError as error:
            logger.warning("passed over: %s", error)
    if candidates:  # to begin anew would lose the run
        raise CheckpointError(
            f"a checkpoint must be whole, got {len(candidates)} in {path} and none of them is; "
            "restore one from a backup, or move them away to begin a new run."
        )
    return None


def prune(folder: Path, keep: int, is_good: Callable[[Path], bool], sure: int) -> None:
    """Remove what is older than the ``keep`` newest good files; pinned ones stay, uncounted.

    If the newest ones are of steps after ``sure``, as many more stay of those up to it.
    """
    newest = newest_sure = 0
    for path in reversed(files(folder)):
        if is_pinned(path):
            continue
        is_sure = step_of(path) <= sure
        if newest >= keep and not (is_sure and newest_sure < keep):
            try:
                disk.remove(path)
            except OSError as error:  # the newer files are as safe with it as without
                logger.error("NOT REMOVED, an older checkpoint stays: %s", error)
        elif is_good(path):
            newest += 1
            newest_sure += is_sure


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of processes that died while saving."""
    for path in folder.glob(f"*.pt{checkpoint.TEMPORARY}*"):
        disk.remove(path)
