"""The image files of a folder, a zip or a tar, by name. Nothing is extracted, nothing blocks."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Collection, Iterator, Mapping
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import IO, Any

from tinygan.data.decoding import BadImageError

EXTENSIONS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff",
    ".ppm", ".pgm",
)  # fmt: skip

# A name; a size, and a time or checksum; what is wrong with the file, if it is to be an image.
Entry = tuple[str, tuple[int, int], str]

# Bytes. Most images are smaller; as they are read from several ends, memory is faster.
_SMALL = 2**18


class Source:
    """What lies below a root.

    ``names`` has the images that are worth opening, ``rejected`` what is known to be bad,
    ``stamps`` by what both are known again, ``passed_over`` what is hidden or no image by its name.
    """

    def __init__(self, root: Path, max_bytes: int) -> None:
        self.root, self._max_bytes = root, max_bytes
        self.stamps: dict[str, tuple[int, int]] = {}
        self.rejected: dict[str, str] = {}
        self.passed_over: list[str] = []
        for name, stamp, trouble in sorted(self._entries()):
            if not is_image(name):
                self.passed_over.append(name)
            else:
                self._note(name, stamp, trouble or self._trouble(stamp[0]))
        self.passed_over.sort()
        self.names = sorted(self.stamps.keys() - self.rejected.keys())

    def _note(self, name: str, stamp: tuple[int, int], trouble: str) -> None:
        self.stamps[name] = stamp
        if trouble:
            self.rejected[name] = trouble

    def _trouble(self, size: int) -> str:
        if size > self._max_bytes:
            return f"{size} bytes, more than {self._max_bytes}, a great many for max_pixels"
        return "" if size else "empty"

    def _entries(self) -> Iterator[Entry]:
        raise NotImplementedError

    def open(self, name: str) -> IO[bytes]:
        """Open a file; raise BadImageError, or anything else, for one that cannot be read."""
        raise NotImplementedError


def open_source(root: str | os.PathLike[str], max_pixels: int) -> Source:
    """List what lies below a root; raise ValueError if it is no folder, zip or tar."""
    root = Path(root)
    # A pixel takes 8 bytes at most, as 16-bit RGBA; the rest is for metadata and further frames.
    max_bytes = 8 * max_pixels + 2**26
    if root.is_dir():
        return _Folder(root, max_bytes)
    found = "another kind of file" if root.exists() else "nothing there"
    if root.is_file():
        try:
            if _is_tar(root):
                return _Tar(root, max_bytes)
            if zipfile.is_zipfile(root):
                return _Zip(root, max_bytes)
        except Exception as error:  # damage has as many errors here as in images
            raise ValueError(
                f"root must be an archive that can be read, got {root}: {error}; get it anew."
            ) from error
        if tarfile.is_tarfile(root):
            found = "a compressed tar, which cannot be read in place; decompress it"
    raise ValueError(f"root must be a folder, a zip or a tar, got {root}: {found}; check the path.")


def listed(names: Collection[str]) -> str:
    """Return the first ten names for a message, with reasons if it has them; count the rest."""
    # repr() keeps line breaks and undecodable bytes of a name out of the message.
    first = [
        f"{name!r} ({names[name]})" if isinstance(names, Mapping) else repr(name)
        for name in islice(names, 10)
    ]
    return ", ".join(first) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def is_image(name: str) -> bool:
    """Return whether a name is an image's."""
    return name.lower().endswith(EXTENSIONS) and not _is_hidden(name)


def _is_hidden(name: str) -> bool:
    # Archives made on a Mac carry a hidden twin of every file under __MACOSX.
    parts = name.split("/")
    return any(
        part == "__MACOSX" or (part[:1] == "." and part not in (".", "..")) for part in parts
    )


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
                self._note(folder, (-1, 0), error.strerror or str(error))
                continue
            for name in names:
                try:
                    status = os.stat(self.root / name)
                except OSError as error:  # such as a link to nowhere
                    yield name, (-1, 0), error.strerror or str(error)
                    continue
                identity = status.st_dev, status.st_ino
                if not stat.S_ISDIR(status.st_mode):
                    trouble = "" if stat.S_ISREG(status.st_mode) else "no regular file"
                    yield name, (status.st_size, status.st_mtime_ns), trouble
                elif _is_hidden(name) or identity in above:
                    self.passed_over.append(f"{name}/")
                else:
                    folders.append((f"{name}/", above | {identity}))

    def open(self, name: str) -> IO[bytes]:
        path = self.root / name
        status = os.stat(path)
        # It may have changed. Opening a FIFO waits for a writer; reading a device may never end.
        if not stat.S_ISREG(status.st_mode):
            raise BadImageError("no regular file")
        if trouble := self._trouble(status.st_size):
            raise BadImageError(trouble)
        return open(path, "rb") if status.st_size > _SMALL else io.BytesIO(path.read_bytes())


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
            trouble = "encrypted" if member.flag_bits & 1 else ""
            # zipfile inflates step by step, but expands bzip2 and LZMA without bound.
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                trouble = f"zip compression of type {member.compress_type}"
            if not member.is_dir():
                yield name, (member.file_size, member.CRC), trouble

    def open(self, name: str) -> IO[bytes]:
        member = self._open_archive().getinfo(name)
        with self._open_archive().open(member) as file:
            # Not read(): that would inflate what goes beyond the size that is declared.
            return io.BytesIO(file.read(member.file_size))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_archive": None}


def _is_tar(root: Path) -> bool:
    try:
        tarfile.open(root, "r:").close()
    except tarfile.TarError:
        return False
    return True


class _Tar(Source):
    def _entries(self) -> Iterator[Entry]:
        with tarfile.open(self.root, "r:") as archive:
            members = {str(PurePosixPath(member.name)): member for member in archive}
        self._places = {name: (each.offset_data, each.size) for name, each in members.items()}
        for name, member in members.items():
            trouble = "" if member.isreg() and not member.issparse() else "no regular file"
            if not member.isdir():
                yield name, (member.size, int(member.mtime)), trouble

    def open(self, name: str) -> IO[bytes]:
        start, size = self._places[name]
        with open(self.root, "rb") as file:
            file.seek(start)
            return io.BytesIO(file.read(size))
