"""Where hooks write: a folder that takes files, and logs that go back to where a run resumes."""

from __future__ import annotations

import os
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

    Its state is its size. A new run's is 0, so that it replaces what an earlier run left.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0

    def open(self) -> None:
        """Cut the file to the size that the run knows of."""
        prepared(self.path.parent)
        with open(self.path, "ab") as file:
            self.size = min(self.size, os.path.getsize(self.path))
            file.truncate(self.size)

    def write(self, lines: Iterable[str]) -> None:
        """Append lines; they are on disk when this returns, as far as the system tells."""
        data = "".join(f"{line}\n" for line in lines).encode()
        with open(self.path, "ab") as file:
            file.write(data)
        self.size += len(data)

    def state_dict(self) -> dict[str, Any]:
        """Return the size in bytes."""
        return {"size": self.size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back the size; the next ``open`` cuts the file to it."""
        self.size = state["size"]
