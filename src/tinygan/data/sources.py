"""The image files of a folder, a zip or a tar, by name. Nothing is extracted, nothing blocks."""

from __future__ import annotations

import os
import stat
import tarfile
import zipfile
from collections.abc import Collection, Iterator, Mapping
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from tinygan._run import checks

EXTENSIONS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff",
    ".ppm", ".pgm",
)  # fmt: skip

# A name, with a / at the end if it is a folder's; a size, and a time or checksum; what is wrong.
Entry = tuple[str, tuple[int, int], str]

_UNKNOWN = (-1, 0)


class Source:
    """What lies below a root: ``names`` of images, ``rejected`` and why, and ``passed_over``.

    ``stamps`` has what the first two are known again by.
    """

    def __init__(self, root: Path, max_bytes: int) -> None:
        self.root = root
        self.stamps: dict[str, tuple[int, int]] = {}
        self.rejected: dict[str, str] = {}
        self.passed_over: list[str] = []
        for name, stamp, trouble in sorted(self._entries()):
            is_image = name.lower().endswith(EXTENSIONS) and not _is_hidden(name)
            if not is_image and not (trouble and name.endswith("/")):
                self.passed_over.append(name)
                continue
            self.stamps[name] = stamp
            of_size = "" if stamp[0] else "empty"
            if stamp[0] > max_bytes:
                of_size = f"{stamp[0]} bytes, a great many for max_pixels"
            if reason := trouble or of_size:
                self.rejected[name] = reason
        self.names = [name for name in self.stamps if name not in self.rejected]

    def _entries(self) -> Iterator[Entry]:
        raise NotImplementedError

    def read(self, name: str) -> bytes:
        """Read a file; raise anything for one that cannot be read."""
        raise NotImplementedError


def open_source(root: str | os.PathLike[str], max_pixels: int) -> Source:
    """List what lies below a root; raise ValueError if it is no folder, zip or tar."""
    root = checks.path("root", root)
    # A pixel takes 8 bytes at most, as 16-bit RGBA; the rest is for metadata and further frames.
    max_bytes = 8 * max_pixels + 2**26
    found = []
    for kind in (_Folder,) if root.is_dir() else (_Tar, _Zip) if root.is_file() else ():
        try:
            return kind(root, max_bytes)
        except Exception as error:  # damage has as many errors here as in images
            found.append(str(error))
    raise ValueError(
        f"root must be a folder, a zip or a tar that is not compressed, got {root}: "
        f"{'; '.join(found) or 'no file there'}; check the path."
    )


def listed(names: Collection[str]) -> str:
    """Return the first ten names for a message, with reasons if it has them; count the rest."""
    # repr() keeps line breaks and undecodable bytes of a name out of the message.
    first = [
        f"{name!r} ({names[name]})" if isinstance(names, Mapping) else repr(name)
        for name in islice(names, 10)
    ]
    return ", ".join(first) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _is_hidden(name: str) -> bool:
    # Archives made on a Mac carry a hidden twin of every file under __MACOSX.
    parts = PurePosixPath(name).parts
    return any(part == "__MACOSX" or (part[0] == "." and part != "..") for part in parts)


class _Folder(Source):
    def _entries(self) -> Iterator[Entry]:
        # A link is followed unless it leads up again, to where it would be met once more.
        up = [self.root.resolve(), *self.root.resolve().parents]
        folders = [("", {(each.stat().st_dev, each.stat().st_ino) for each in up})]
        while folders:
            folder, above = folders.pop()
            try:
                names = [folder + name for name in os.listdir(self.root / folder)]
            except OSError as error:
                yield folder or "/", _UNKNOWN, error.strerror or str(error)
                continue
            for name in names:
                try:
                    status = os.stat(self.root / name)
                except OSError as error:  # such as a link to nowhere
                    yield name, _UNKNOWN, error.strerror or str(error)
                    continue
                identity = status.st_dev, status.st_ino
                if not stat.S_ISDIR(status.st_mode):
                    trouble = "" if stat.S_ISREG(status.st_mode) else "no regular file"
                    yield name, (status.st_size, status.st_mtime_ns), trouble
                elif _is_hidden(name) or identity in above:
                    yield f"{name}/", _UNKNOWN, ""
                else:
                    folders.append((f"{name}/", above | {identity}))

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()


class _Zip(Source):
    _archive: tuple[int, zipfile.ZipFile] | None = None

    def _open_archive(self) -> zipfile.ZipFile:
        # Each process opens the zip for itself: a file position cannot be shared.
        if self._archive is None or self._archive[0] != os.getpid():
            self._archive = (os.getpid(), zipfile.ZipFile(self.root))
        return self._archive[1]

    def _entries(self) -> Iterator[Entry]:
        # Of members with the same name the last counts, as when a zip is unpacked.
        for name, member in self._open_archive().NameToInfo.items():
            # zipfile inflates step by step, but expands bzip2 and LZMA without bound.
            good = member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
            trouble = "" if good else f"zip compression of type {member.compress_type}"
            if not member.is_dir():
                yield name, (member.file_size, member.CRC), trouble

    def read(self, name: str) -> bytes:
        archive = self._open_archive()
        with archive.open(name) as file:
            # Not all of it: that would inflate what goes beyond the size that is declared.
            return file.read(archive.getinfo(name).file_size)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_archive": None}


class _Tar(Source):
    def _entries(self) -> Iterator[Entry]:
        with tarfile.open(self.root, "r:") as archive:
            members = {str(PurePosixPath(member.name)): member for member in archive}
        self._places = {name: (each.offset_data, each.size) for name, each in members.items()}
        for name, member in members.items():
            trouble = "" if member.isreg() and not member.issparse() else "no regular file"
            if not member.isdir():
                yield name, (member.size, int(member.mtime)), trouble

    def read(self, name: str) -> bytes:
        start, size = self._places[name]
        with open(self.root, "rb") as file:
            file.seek(start)
            return file.read(size)
