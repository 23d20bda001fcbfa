"""A run's checkpoints in one folder: which there are, the newest good one, which may go.

Files are named by their step, as ``step_000500.pt``. One named ``step_000500.pinned.pt`` is kept
for ever, and files of any other name are left alone.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tinygan._run import checkpoint, disk
from tinygan._run.checkpoint import CheckpointError

logger = logging.getLogger(__name__)

NAME = re.compile(r"step_(\d+)(\.pinned)?\.pt")


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


def find(path: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return the file that a path means and its content: that file, or a run's newest good one.

    None is for the folder of a run that is yet to begin.

    Raises:
        CheckpointError: for a named file that is not whole, or a folder with none that is.
    """
    if path.is_file() or path.suffix == ".pt":
        return path, checkpoint.load(path)
    return newest_good(path if files(path) else inside(path))


def inside(run: Path) -> Path:
    """Return the folder of a run's checkpoints."""
    return run / "checkpoints"


def newest_good(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest file that is whole, with its content; None if there are no files at all.

    Files that are not whole are passed over, each with a warning that says why.

    Raises:
        CheckpointError: if there are files and none is whole: a run is not lost by starting anew.
    """
    candidates = files(folder)
    for path in reversed(candidates):
        try:
            return path, checkpoint.load(path)
        except CheckpointError as error:
            logger.warning("passed over: %s", error)
    if candidates:
        raise CheckpointError(
            f"a checkpoint must be whole, got {len(candidates)} in {folder} of which none is; "
            "restore one from a backup, or move them away to start anew."
        )
    return None


def prune(folder: Path, keep: int, is_good: Callable[[Path], bool], sure: int) -> None:
    """Remove what is older than the ``keep`` newest good files; pinned ones stay, uncounted.

    As many more stay of those up to the step ``sure``, if the newest ones are not.
    What cannot be removed is told and stays: the newer files are as safe with it as without.
    """
    newest = newest_sure = 0
    for path in reversed(files(folder)):
        if is_pinned(path):
            continue
        is_sure = step_of(path) <= sure
        if newest >= keep and not (is_sure and newest_sure < keep):
            try:
                disk.remove(path)
            except OSError as error:
                logger.error("NOT REMOVED, an older checkpoint stays: %s", error)
        elif is_good(path):
            newest += 1
            newest_sure += is_sure


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of processes that died while saving."""
    for path in folder.glob(f"*.pt{checkpoint.TEMPORARY}*"):
        disk.remove(path)
