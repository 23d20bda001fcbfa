"""One file of decoded images: their bytes, then what they are. It is mapped, not read."""

from __future__ import annotations

import json
import math
import os
import struct
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch.utils.data import Dataset
from typing_extensions import override

from tinygan.data import folder
from tinygan.data.decoding import scale

LAYOUT = 1
"""The number of the layout: bytes (N, C, H, W), the manifest as JSON, the trailer."""

MAGIC = b"tinygan packed\0\n"

# The manifest's length in bytes, its CRC-32, the magic.
_TRAILER = struct.Struct("<QL16s")


class NotPackedError(ValueError):
    """A file of another kind; the message names it."""


class DamagedError(Exception):
    """A packed file that cannot be used; the text says why."""


def ending(manifest: dict[str, Any]) -> bytes:
    """Return what follows the pixels in a packed file."""
    text = json.dumps(manifest, separators=(",", ":")).encode()
    return text + _TRAILER.pack(len(text), zlib.crc32(text), MAGIC)


def pixel_bytes(manifest: dict[str, Any]) -> int:
    """Return how many bytes the pixels take."""
    return math.prod((manifest["count"], manifest["channels"], *manifest["image_size"]))


def read_manifest(path: Path) -> dict[str, Any]:
    """Return what a packed file says of itself.

    Raises:
        NotPackedError: for a file that is none, or whose end is missing.
        DamagedError: for one whose manifest is damaged, of another layout, or of other pixels.
        OSError: for one that cannot be read.
    """
    if path.is_file():  # of other kinds, some never end
        with open(path, "rb") as file:
            manifest = manifest_in(file)
        if manifest is not None:
            return manifest
    raise NotPackedError(
        f"path must be a packed file, got {path}, which is of another kind or was cut off; "
        "remove it if it is not needed, or name another path."
    )


def manifest_in(file: BinaryIO) -> dict[str, Any] | None:
    """Return the manifest of an open file, or None for a file that is not packed."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _TRAILER.size))
    trailer = file.read()
    if len(trailer) != _TRAILER.size or not trailer.endswith(MAGIC):
        return None
    length, checksum, _ = _TRAILER.unpack(trailer)
    file.seek(max(0, size - _TRAILER.size - length))
    text = file.read(min(length, size))
    return _checked(text[:length], checksum, size - _TRAILER.size - length)


def _checked(text: bytes, checksum: int, pixels: int) -> dict[str, Any]:
    if zlib.crc32(text) != checksum:
        raise DamagedError("its manifest is damaged")
    manifest: dict[str, Any] = json.loads(text)
    if manifest["layout"] != LAYOUT:
        raise DamagedError(f"its layout is number {manifest['layout']}, known is {LAYOUT}")
    if pixels != pixel_bytes(manifest):
        raise DamagedError(f"it has {pixels} bytes of pixels instead of {pixel_bytes(manifest)}")
    return manifest


def differences(saved: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """Return in words what has changed since images were packed.

    Examples:
        >>> size = {"image_size": [64, 64]}
        >>> saved = size | {"sources": [["a.jpg", 100, 7], ["b.jpg", 100, 7]]}
        >>> differences(saved, size | {"sources": [["a.jpg", 100, 8], ["c.jpg", 100, 7]]})
        ['1 file is new', '1 is gone', '1 has changed']
    """
    found: list[str] = []
    if saved["sources"] != here["sources"] and saved.get("source") == here.get("source"):
        old, new = ({name: stamp for name, *stamp in each["sources"]} for each in (saved, here))
        counts = {
            "new": len(new.keys() - old.keys()),
            "gone": len(old.keys() - new.keys()),
            "changed": sum(new[name] != old[name] for name in new.keys() & old.keys()),
        }
        for what, count in counts.items():
            if count:
                noun = "" if found else " file" if count == 1 else " files"
                is_ = ("has" if count == 1 else "have") if what == "changed" else None
                found.append(f"{count}{noun} {is_ or ('is' if count == 1 else 'are')} {what}")
    for name, value in here.items():
        if name not in ("sources", "transform") and saved[name] != value:
            found.append(f"{name} was {_in_words(saved[name])}, is {_in_words(value)}")
    return found


def _in_words(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, list) else str(value)


def open_packed(path: str | os.PathLike[str]) -> PackedImages:
    """Open a file that ``pack`` made, on whatever machine, without the images it was made of.

    Args:
        path: the packed file.

    Raises:
        ValueError: for a file that is missing, of another kind, cut off or of a wrong length.

    Examples:
        >>> from tinygan.data import pack
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as root:
        ...     Image.new("RGB", (178, 218)).save(f"{root}/000001.jpg")
        ...     _ = pack(root, f"{root}/faces.packed", image_size=32, workers=0)
        ...     len(open_packed(f"{root}/faces.packed"))
        1
    """
    path = Path(path)
    try:
        if not path.exists():
            raise DamagedError("No such file or directory")
        return PackedImages(path, read_manifest(path))
    except (DamagedError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(
            f"path must be a packed file, got {path}: {reason}; pack the images anew."
        ) from error


class PackedImages(Dataset[torch.Tensor]):
    """Images that were decoded once, mapped from a file; made by ``pack`` and ``open_packed``.

    Attributes:
        pixels: all images, (N, C, H, W) of uint8. Only what is used is read from the disk.
        labels: None, for there are none.
        rejected: the files that were left out, and why.
        damaged: the files that others stand in for, and why.
    """

    labels = None

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path.absolute()  # so that worker processes find it from wherever they are
        self.image_size: tuple[int, int] = tuple(manifest["image_size"])
        self.channels: int = manifest["channels"]
        self.rejected: dict[str, str] = manifest["rejected"]
        self.damaged: dict[str, str] = manifest["damaged"]
        self._names: str = manifest["names"]
        # Private, so that what is written to the tensor by mistake does not reach the file.
        mapped = torch.from_file(
            str(path), shared=False, size=pixel_bytes(manifest), dtype=torch.uint8
        )
        self.pixels = mapped.view(manifest["count"], self.channels, *self.image_size)
        self._file = _identity(path)

    @property
    def configuration(self) -> dict[str, str | int]:
        """What these images are: the same as that of the files they were made of."""
        return folder.describe(len(self), self.image_size, self.channels, self._names)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.pixels)

    @override
    def __getitem__(self, index: int) -> torch.Tensor:
        """Return image ``index``, (C, H, W) in [-1, 1]."""
        return scale(self.pixels[range(len(self))[index]])

    @override
    def __reduce__(self) -> tuple[Any, ...]:
        """Send the path to another process, not the pixels."""
        return _reopen, (self.path, self._file)


def _identity(path: Path) -> tuple[int, ...]:
    """Return what is another number if another file comes to be there."""
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _reopen(path: Path, file: tuple[int, ...]) -> PackedImages:
    images = open_packed(path)
    if images._file != file:
        raise ValueError(
            f"path must hold the images that it held before, got {path}, which was packed anew; "
            "open it with data.open_packed."
        )
    return images
