"""One durable file: plain values and tensors, whole or not there at all.

It is written beside its place and renamed into it, so a crash leaves the old file, the new one, or
both. The format is PyTorch's, a zip file with checksums. ``torch.load`` ignores those
(pytorch#28858), so ``load`` checks them.
"""

from __future__ import annotations

import contextlib
import io
import os
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from tinygan._run import disk

TEMPORARY = ".tmp-"

PLAIN = (type(None), bool, int, float, str)

DIRECTORY = 0x10
"""The attribute of MS-DOS by which torch's reader takes a record for a directory."""


class CheckpointError(ValueError):
    """A file that is not a whole checkpoint; the message names it and says why."""


def save(content: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a dictionary of plain values and tensors to ``path``, whose folder must exist.

    When this returns, the file is on the disk and has been read back. Whatever goes wrong, an older
    file at ``path`` is still there, and no temporary file is left unless the process died.

    Raises:
        TypeError: for what ``load`` would refuse, by its name in ``content``.
        OSError: if the file could not be written, or does not read back as it was written.
    """
    path = Path(path)
    data = to_bytes(content)  # in memory, so that an error of the disk stays an OSError
    temporary = path.with_name(f"{path.name}{TEMPORARY}{os.getpid()}")
    try:
        disk.remove(temporary)  # of a dead process that had our number
        with disk.create(temporary) as file:
            disk.write(file, data)
            disk.sync(file)
        # While the old file is still in its place.
        if disk.read(temporary) != data:
            raise OSError(f"{temporary} does not read back as it was written; check the disk.")
        disk.replace(temporary, path)
        disk.sync_folder(path.parent)
    except Exception:
        # The folder may not even let a file go; the first error is the one to report.
        with contextlib.suppress(OSError):
            disk.remove(temporary)
        raise


def to_bytes(content: dict[str, Any]) -> bytes:
    """Return the bytes of a file with plain values and tensors."""
    check_plain(content, "content")
    memory = io.BytesIO()
    torch.save(content, memory)
    return memory.getvalue()


def from_bytes(data: bytes) -> Any:
    """Return what ``to_bytes`` was given, with all tensors on the CPU. Executes nothing of it."""
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def check_plain(value: object, name: str) -> None:
    """Raise TypeError for what ``load`` would refuse, because it is no plain value or tensor."""
    kind = type(value)
    if kind in (dict, OrderedDict):
        for key, inner in value.items():  # type: ignore[attr-defined]
            check_plain(key, f"a key of {name}")
            check_plain(inner, f"{name}[{key!r}]")
    elif kind in (list, tuple):
        for index, inner in enumerate(value):  # type: ignore[arg-type]
            check_plain(inner, f"{name}[{index}]")
    # Not isinstance: NumPy's float64 is a float, and yet an object of NumPy's when it is saved.
    elif kind not in PLAIN and not isinstance(value, torch.Tensor):
        raise TypeError(
            f"{name} must be a plain value or a tensor, got a {kind.__module__}.{kind.__qualname__}"
            "; convert it, for example with float() or torch.as_tensor()."
        )


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what ``save`` wrote, with all tensors on the CPU. Executes nothing from the file.

    Raises:
        CheckpointError: for a file that is missing, cut, altered or of another kind.
    """
    try:
        data = disk.read(Path(path))
    except OSError as error:
        raise CheckpointError(
            f"checkpoint must be readable, got {path}: {error.strerror or error}; check the path."
        ) from error
    try:
        _check_records(data)
        content = from_bytes(data)
        if not isinstance(content, dict):
            raise TypeError(f"it holds a {type(content).__name__}")
    except Exception as error:  # damaged bytes make decoders raise almost anything
        raise CheckpointError(
            f"checkpoint must be whole, got {path}: {type(error).__name__}: {error}; "
            "use an older one."
        ) from error
    return content


def _check_records(data: bytes) -> None:
    """Raise for bytes that are not a zip of stored records whose checksums are right."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        records = archive.infolist()
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise zipfile.BadZipFile("its records are compressed")  # and might be a zip bomb
        if any(record.external_attr & DIRECTORY for record in records):
            raise zipfile.BadZipFile("a record is a directory")  # not read: memory as it was
        broken = archive.testzip()
    if broken is not None:
        raise zipfile.BadZipFile(f"the checksum of {broken} is wrong")
