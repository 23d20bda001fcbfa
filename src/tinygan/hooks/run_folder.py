"""What hooks that write share: a folder, pictures, and logs that go back to where a run resumes."""

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

from tinygan.hook import Hook, Run

logger = logging.getLogger(__name__)


class FolderHook(Hook):
    """A hook that writes into a folder, which must be writable when ``fit`` begins."""

    first_rank_only = True

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def on_fit_start(self, trainer: Run) -> None:
        prepared(self.folder)


def prepared(folder: Path) -> Path:
    """Make a folder if need be; raise ValueError if it cannot be written."""
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
        with suppress(OSError):  # the first error is the one to raise
            temporary.unlink(missing_ok=True)
        raise


@contextmanager
def not_fatal(path: Path) -> Iterator[None]:
    """Log a failed write instead of raising it: training continues."""
    try:
        yield
    except OSError as error:
        logger.error("NOT WRITTEN, training continues: %s: %s", path, error)


class LogFile:
    """A file of lines, which forgets those that a resumed run will write again.

    Its state is its size: 0 for a new run, so that it replaces what an earlier run left, but only
    when it first writes. Lines that could not be written are kept and written with the next.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self._pending = ""

    def write(self, lines: Iterable[str]) -> None:
        """Append lines; log a failure and try again next time."""
        self._pending += "".join(f"{line}\n" for line in lines)
        with not_fatal(self.path):
            self.finish()

    def finish(self) -> None:
        """Write the lines that are still to be written, or raise OSError."""
        if not self._pending:
            return
        data = self._pending.encode()
        with open(self.path, "ab") as file:
            # Cut off an earlier run's lines, those of steps to be done again, and failed writes.
            self.size = min(self.size, file.tell())
            file.truncate(self.size)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # a checkpoint may count on these bytes
        self.size += len(data)
        self._pending = ""

    def state_dict(self) -> dict[str, Any]:
        """Return the size in bytes, and what is still to be written."""
        return {"size": self.size, "pending": self._pending}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the state back; the next write cuts the file to its size."""
        self.size, self._pending = state["size"], state["pending"]
