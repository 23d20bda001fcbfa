"""The file operations of saving and packing, each alone, so that a test can make any of them fail.

Nothing else in the library writes what must not be lost.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO


def create(path: Path) -> BinaryIO:
    """Open a new file for writing; its mode follows the umask."""
    return open(path, "xb")


def append(path: Path) -> BinaryIO:
    """Open a file, new or not, for reading and for writing at its end."""
    return open(path, "a+b")


def lock(file: BinaryIO) -> bool:
    """Lock a file until it is closed; return False if another process has locked it."""
    import fcntl  # not on Windows, where the rest of the library can be imported

    # Not flock(): a worker that outlives its killed parent for seconds would inherit that.
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # POSIX leaves open which
        return False
    return True


def truncate(file: BinaryIO, size: int) -> None:
    """Cut a file to its first ``size`` bytes."""
    file.truncate(size)


def write(file: BinaryIO, content: bytes) -> None:
    """Write all of the content, out of Python's buffer too."""
    file.write(content)
    file.flush()


def sync(file: BinaryIO) -> None:
    """Wait until what was written is on the disk."""
    os.fsync(file.fileno())


def replace(source: Path, target: Path) -> None:
    """Rename a file in one step, over an existing one too."""
    os.replace(source, target)


def sync_folder(folder: Path) -> None:
    """Wait until a rename in the folder is on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file, if it is there."""
    path.unlink(missing_ok=True)


def read(path: Path) -> bytes:
    """Return the content of a file."""
    return path.read_bytes()
