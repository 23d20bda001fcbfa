"""The files of a folder or a zip by name: nothing is extracted, nothing blocks."""

from __future__ import annotations

import io
import os
import stat
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import IO, Any

from typing_extensions import override

from tinygan.data.decoding import BadImageError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif")

# Bytes. Most images are smaller: looked at from several ends, they are faster in memory.
_SMALL = 2**18


def open_root(root: Path, max_bytes: int) -> Folder | Zip:
    """Return the files of a folder or zip, each of at most ``max_bytes``.

    Raises:
        ValueError: for a root that is missing or is neither.
    """
    if root.is_dir():
        return Folder(root, max_bytes)
    if root.is_file() and zipfile.is_zipfile(root):
        return Zip(root, max_bytes)
    found = "another kind of file" if root.exists() else "nothing there"
    raise ValueError(f"root must be a folder or a zip, got {root}: {found}; check the path.")


def _is_image(name: str) -> bool:
    path = PurePosixPath(name)
    # Archives made on a Mac carry a hidden twin of every file under __MACOSX.
    hidden = any(part == "__MACOSX" or part.startswith(".") for part in path.parts if part != "..")
    return path.suffix.lower() in EXTENSIONS and not hidden and not name.endswith("/")


class Folder:
    """The files of a folder, flat or nested."""

    def __init__(self, root: Path, max_bytes: int) -> None:
        self.root = root
        self._max_bytes = max_bytes
        self.unlisted: dict[str, str] = {}
        """Folders inside that cannot be looked into, and why."""
        self.names = sorted(self._find())
        """The images, by their extensions."""

    def _find(self) -> Iterator[str]:
        def note(error: OSError) -> None:
            name = os.path.relpath(error.filename, self.root)
            self.unlisted[name] = error.strerror or str(error)

        # Links to folders are not followed: they may lead round in a circle.
        for folder, _, files in os.walk(self.root, onerror=note):
            inside = PurePosixPath(os.path.relpath(folder, self.root))
            yield from filter(_is_image, (str(inside / file) for file in files))

    def stamps(self) -> dict[str, tuple[int, int]]:
        """Return each file's size in bytes and time in ns, by which a changed one is known.

        What cannot be looked at, a folder too, has (-1, 0).
        """
        return {name: self._stamp(name) for name in (*self.unlisted, *self.names)}

    def _stamp(self, name: str) -> tuple[int, int]:
        if name not in self.unlisted:
            with suppress(OSError):
                status = os.stat(os.path.join(self.root, name))
                return status.st_size, status.st_mtime_ns
        return -1, 0

    def open(self, name: str) -> IO[bytes]:
        """Open a file that can be read to its end.

        Raises:
            BadImageError: for a file of another kind, an empty or a huge one.
            OSError: for one that cannot be opened.
        """
        path = os.path.join(self.root, name)
        status = os.stat(path)
        # Opening a FIFO waits for someone to write; reading a device may never end.
        if not stat.S_ISREG(status.st_mode):
            raise BadImageError("no regular file")
        _check_size(status.st_size, self._max_bytes)
        if status.st_size > _SMALL:
            return open(path, "rb")
        with open(path, "rb") as file:
            return io.BytesIO(file.read())


class Zip:
    """The members of a zip, read in place."""

    def __init__(self, root: Path, max_bytes: int) -> None:
        self.root = root
        self._max_bytes = max_bytes
        self._archive: tuple[int, zipfile.ZipFile] | None = None
        self.unlisted: dict[str, str] = {}
        try:
            members = self._open_archive().namelist()
        except Exception as error:  # zipfile has as many errors for damage as Pillow
            raise ValueError(
                f"root must be a zip that can be read, got {root}: {error}; get it anew."
            ) from error
        # Of members with the same name the last counts, as when a zip is unpacked.
        self.names = sorted(set(filter(_is_image, members)))

    def _open_archive(self) -> zipfile.ZipFile:
        # Each process opens the zip for itself: a file position cannot be shared.
        if self._archive is None or self._archive[0] != os.getpid():
            self._archive = (os.getpid(), zipfile.ZipFile(self.root))
        return self._archive[1]

    def stamps(self) -> dict[str, tuple[int, int]]:
        """Return each member's size in bytes and CRC-32: the same in every copy of the zip."""
        members = self._open_archive().NameToInfo
        return {name: (members[name].file_size, members[name].CRC) for name in self.names}

    def open(self, name: str) -> IO[bytes]:
        """Read a member and compare its checksum.

        Raises:
            BadImageError: for an empty, huge or encrypted one, or one of a rare compression.
            Exception: whatever zipfile raises for damage.
        """
        archive = self._open_archive()
        member = archive.getinfo(name)
        _check_size(member.file_size, self._max_bytes)
        if member.flag_bits & 1:
            raise BadImageError("encrypted")
        # zipfile inflates step by step, but expands bzip2 and LZMA into memory without bound.
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise BadImageError(f"zip compression of type {member.compress_type}")
        with archive.open(member) as file:
            # Not read(): that would inflate what goes beyond the size that is declared.
            return io.BytesIO(file.read(member.file_size))

    @override
    def __getstate__(self) -> dict[str, Any]:
        """Leave the open zip behind when sent to another process."""
        return {**self.__dict__, "_archive": None}


def _check_size(size: int, max_bytes: int) -> None:
    if size == 0:
        raise BadImageError("empty")
    if size > max_bytes:
        raise BadImageError(f"{size} bytes, more than {max_bytes}, a great many for max_pixels")
