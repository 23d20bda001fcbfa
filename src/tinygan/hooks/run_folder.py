"""What hooks that write share: a folder, pictures, and logs that go back to where a run resumes."""

from __future__ import annotations

import logging
import os
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from tinygan import pictures
from tinygan._run import checks, disk, notebook
from tinygan.hook import Hook, Run

logger = logging.getLogger(__name__)


class FolderHook(Hook):
    """A hook that writes into a folder, which must be writable when ``fit`` begins.

    ``fit`` raises ValueError for two of a class in one folder, and for one that draws from the
    files of another but does not come after it. In a notebook pictures are shown as well.
    """

    first_rank_only = True
    _draws_from: type[FolderHook] | None = None
    _needs_folder = True
    _display: Any = None

    def __init__(self, folder: str | os.PathLike[str] | None) -> None:
        self.folder = None
        if folder is not None or self._needs_folder:
            self.folder = checks.path(f"{type(self).__name__}'s folder", folder)

    def on_fit_start(self, trainer: Run) -> None:
        self._display = None  # another cell of a notebook has its own
        if self.folder is None:
            return
        prepared(self.folder)
        here = os.path.realpath(self.folder)
        known = [hook for hook in trainer.hooks if isinstance(hook, FolderHook) and hook.folder]
        same = [hook for hook in known if os.path.realpath(hook.folder) == here]
        own, other = type(self).__name__, self._draws_from
        if [type(hook) for hook in same].count(type(self)) > 1:
            raise ValueError(f"{self.folder} must have one {own}, got two; leave one out.")
        if other is not None and not any(isinstance(h, other) for h in same[: same.index(self)]):
            raise ValueError(
                f"{own} must come after a {other.__name__} of the same folder, got none for "
                f"{self.folder}; put {other.__name__}({str(self.folder)!r}) before it in hooks."
            )

    def _save_picture(self, picture: Image.Image, path: Path) -> None:
        """Write a picture whole or not at all: half a picture would spoil the animation."""
        with disk.renamed(path) as file:
            picture.save(file, "PNG")
        self._show(path)

    def _show(self, path: Path) -> None:
        if notebook.is_here():
            picture = notebook.gif(path) if path.suffix == ".gif" else pictures.fitting(path)
            self._display = notebook.show(picture, self._display)


def prepared(folder: Path) -> None:
    """Make a folder if need be; raise ValueError if it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"folder must be writable, got {folder}: {error}; choose another folder."
        ) from error


@contextmanager
def not_fatal(path: Path, errors: tuple[type[Exception], ...] = (OSError,)) -> Iterator[None]:
    """Log a failed write, or another error, instead of raising it: training continues."""
    try:
        yield
    except errors as error:
        logger.error("NOT WRITTEN, training continues: %s: %s", path, error)


class LogHook(FolderHook):
    """A hook that writes lines to a file, and forgets those that a resumed run will write again.

    Its state is the file's size, and a checksum of its end: 0 for a new run, so that it replaces
    what an earlier run left, but only when it first writes. So does a run that goes on where
    another run's log is. Lines that could not be written are kept and written with the next.
    """

    def __init__(self, folder: str | os.PathLike[str] | None, name: str) -> None:
        super().__init__(folder)
        self._path = None if self.folder is None else self.folder / name
        self._size, self._end, self._pending = 0, 0, ""

    def _write(self, lines: Iterable[str]) -> None:
        if self._path is not None:
            self._pending += "".join(f"{line}\n" for line in lines)
            with not_fatal(self._path):
                self._flush()

    def _flush(self) -> None:
        if self._path is None or not self._pending:
            return
        with open(self._path, "a+b") as file:
            # Cut off an earlier run's lines, those of steps to be done again, and failed writes.
            if _end(file, self._size) != self._end:
                self._size = 0
            file.truncate(self._size)
            file.write(self._pending.encode())
            file.flush()
            os.fsync(file.fileno())  # a checkpoint may count on these bytes
            self._size = file.tell()
            self._end = _end(file, self._size)
        self._pending = ""

    def on_fit_end(self, trainer: Run) -> None:
        self._flush()

    def state_dict(self) -> dict[str, Any]:
        return {"size": self._size, "end": self._end, "pending": self._pending}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._size, self._pending = state["size"], state["pending"]
        self._end = state.get("end", 0)


def _end(file: BinaryIO, size: int) -> int:
    """Return a checksum of what lies in the file before a size, of the last kilobyte at most."""
    start = max(0, size - 1024)
    file.seek(start)
    return zlib.crc32(file.read(size - start))
