"""Where hooks write: a folder that takes files, and logs that go back to where a run resumes."""

from __future__ import annotations

import io
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from PIL import Image

logger = logging.getLogger(__name__)


def prepared(folder: Path) -> Path:
    """Make the folder if need be and return it.

    Raises:
        ValueError: if it cannot be written, before a run depends on it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"folder must be writable, got {folder}: {error}; choose another folder."
        ) from error
    return folder


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture whole or not at all: half a picture would spoil the animation."""
    memory = io.BytesIO()
    picture.save(memory, "PNG")
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        temporary.write_bytes(memory.getvalue())
        temporary.replace(path)
    except OSError:
        with suppress(OSError):  # the first error is the one to tell
            temporary.unlink(missing_ok=True)
        raise


@contextmanager
def not_fatal(path: Path) -> Iterator[None]:
    """Make a loud message of a disk that is full or gone while the run goes on.

    Examples:
        >>> with not_fatal(Path("log.txt")):
        ...     raise OSError(28, "No space left on device")
    """
    try:
        yield
    except OSError as error:
        logger.error("NOT WRITTEN, the run goes on: %s: %s", path, error)


class LogFile:
    """A text file that grows by lines, and forgets those that a resumed run will write again.

    Its state is its size. A new run's is 0, so that it replaces what an earlier run left; it does
    so only when it writes, so that a run which is refused before its first step destroys nothing.
    Lines that the disk does not take are kept and written with the next.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self._pending = ""

    def open(self) -> None:
        """Make sure that the file can be written, and leave it as it is."""
        prepared(self.path.parent)

    def write(self, lines: Iterable[str]) -> None:
        """Append lines to what this run has written so far."""
        self._pending += "".join(f"{line}\n" for line in lines)
        with not_fatal(self.path):
            self.finish()

    def finish(self) -> None:
        """Write what is still to be written.

        Raises:
            OSError: if that is not possible.
        """
        if not self._pending:
            return
        with open(self.path, "ab") as file:
            # Cut what an earlier run left, or one that is gone back from, or a failed writing.
            self.size = min(self.size, file.tell())
            file.truncate(self.size)
            data = self._pending.encode()
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # a checkpoint may count on these bytes
        self.size += len(data)
        self._pending = ""

    def state_dict(self) -> dict[str, Any]:
        """Return the size in bytes, and what is still to be written."""
        return {"size": self.size, "pending": self._pending}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back the size; the next writing cuts the file to it."""
        self.size = state["size"]
        self._pending = state["pending"]
