"""Where hooks write: a folder that takes files, and logs that go back to where a run resumes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any


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


class LogFile:
    """A text file that grows by lines, and forgets those that a resumed run will write again.

    Its state is its size. A new run's is 0, so that it replaces what an earlier run left; it does
    so only when it writes, so that a run which is refused before its first step destroys nothing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self._cut = False

    def open(self) -> None:
        """Make sure that the file can be written, and leave it as it is."""
        prepared(self.path.parent)
        self._cut = False

    def write(self, lines: Iterable[str]) -> None:
        """Append lines to what this run has written so far."""
        data = "".join(f"{line}\n" for line in lines).encode()
        with open(self.path, "ab") as file:
            if not self._cut:
                self.size = min(self.size, file.tell())
                file.truncate(self.size)
                self._cut = True
            file.write(data)
        self.size += len(data)

    def state_dict(self) -> dict[str, Any]:
        """Return the size in bytes."""
        return {"size": self.size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back the size; the next writing cuts the file to it."""
        self.size = state["size"]
