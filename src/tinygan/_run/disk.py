"""All that is done to durable files, one operation each, so that a test can let any of them fail.

``renamed`` is made of these: the one way in which a file is written whole or not at all.
"""

from __future__ import annotations

import errno
import glob
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

# What disks answer that cannot synchronise a folder, as some on a network do.
NO_SUCH_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


@contextmanager
def renamed(path: Path) -> Iterator[BinaryIO]:
    """Open a file beside ``path``, which gets that name when it is whole and on the disk.

    Whatever goes wrong, an older file at ``path`` stays. Half-written files in the folder, for
    paths that end alike, are removed first if no process has them locked: their writers have died.
    """
    for left in path.parent.glob(f"*{glob.escape(path.suffix)}.{'[0-9a-f]' * 8}.partial"):
        with suppress(OSError), open(left, "r+b") as abandoned:
            _lock(abandoned)
            remove(left)
    file = _begun(path)
    partial = Path(file.name)
    try:
        with file:
            yield file
            sync(file)
            if fcntl is None:  # Windows renames no open file
                file.close()  # type: ignore[unreachable]
            replace(partial, path)  # while it is locked
        sync_folder(path.parent)
    except BaseException:
        with suppress(OSError):  # the first error is the one to report
            remove(partial)
        raise


def _begun(path: Path) -> BinaryIO:
    """Create a file with a name of its own beside a path, and lock it."""
    while True:
        file = create(path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial"))
        try:
            _lock(file)
        except (BlockingIOError, FileNotFoundError):  # another process has just removed it
            file.close()
            continue
        except OSError:  # no locks here: then nothing half-written is removed
            pass
        return file


def _lock(file: BinaryIO) -> None:
    """Lock a file until it is closed; raise OSError if another process has, or it is gone."""
    if fcntl is None:
        raise OSError("this system has no file locks that we know")
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.stat(file.name)


def create(path: Path) -> BinaryIO:
    """Open a new file for writing; its mode follows the umask."""
    return open(path, "xb")


def write(file: BinaryIO, content: bytes | memoryview) -> None:
    """Write all of the content, out of Python's buffer too."""
    file.write(content)
    file.flush()


def sync(file: BinaryIO) -> None:
    """Wait until what was written is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def replace(source: Path, target: Path) -> None:
    """Rename a file in one step, over an existing one too."""
    os.replace(source, target)


def sync_folder(folder: Path) -> None:
    """Wait until a rename in the folder is on the disk, where folders can be synchronised."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # Windows opens no folders
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_SUCH_SYNC:
            raise
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file, if it is there."""
    path.unlink(missing_ok=True)


def read(path: Path) -> bytes:
    """Return the content of a file."""
    return path.read_bytes()
