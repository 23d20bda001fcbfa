"""All that is done to durable files, one operation each, so that a test can let any of them fail.

A new file is created, written and synchronised, and then renamed into its place.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO


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
