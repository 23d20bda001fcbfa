"""All that is done to durable files, one operation each, so that a test can let any of them fail.

``renamed`` is made of these: the one way in which a file is written whole or not at all.
"""

from __future__ import annotations

import glob
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def renamed(path: Path) -> Iterator[BinaryIO]:
    """Open a file beside ``path``, which gets that name when it is whole and on the disk.

    Whatever goes wrong, an older file at ``path`` stays. Such files of processes of this host that
    have died, for paths that end alike, are removed first.
    """
    own = f"{path.suffix}.{socket.gethostname()}."
    partial = path.with_name(f"{path.stem}{own}{os.getpid()}.partial")
    for left in path.parent.glob(f"*{glob.escape(own)}*.partial"):
        # One of our number is of a process that had it before, as in a container.
        if left == partial or _is_dead(left.name.split(".")[-2]):
            with suppress(OSError):  # perhaps somebody else's, and not in the way
                remove(left)
    try:
        with create(partial) as file:
            yield file
            sync(file)
        replace(partial, path)
        sync_folder(path.parent)
    except BaseException:
        with suppress(OSError):  # the first error is the one to report
            remove(partial)
        raise


def _is_dead(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except (PermissionError, ValueError):  # somebody else's, or no number
        pass
    return False


def create(path: Path) -> BinaryIO:
    """Open a new file for writing; its mode follows the umask."""
    return open(path, "xb")


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
