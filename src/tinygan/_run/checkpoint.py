"""Checkpoints: durable files of plain values and tensors, and the folder in which a run has them.

The format is PyTorch's, a zip file with checksums. ``torch.load`` ignores those (pytorch#28858), so
``load`` checks them.

In a run's folder files are named by their step, as ``step_000500.pt``. Those of any other name are
left alone.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from tinygan._run import disk

logger = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """A file that is not a whole checkpoint; the message names it and says why."""


def save(content: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a dictionary of plain values and tensors to ``path``; folders above it are made.

    When this returns, the file is on the disk and has been read back. Whatever goes wrong, an older
    file at ``path`` is still there.
    """
    data = to_bytes(content)  # in memory, so that an error of the disk stays an OSError
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"path must be a file, got the folder {path}; use {path / 'run.pt'}.")
    new = [folder for folder in path.absolute().parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    for folder in new:
        disk.sync_folder(folder.parent)
    with disk.renamed(path) as file:
        disk.write(file, data)
        if disk.read(Path(file.name)) != data:  # while the old file is still in its place
            raise OSError(f"{file.name} does not read back as it was written; check the disk.")


def to_bytes(content: dict[str, Any]) -> bytes:
    """Return the bytes of a file with plain values and tensors."""
    check_plain(content, "content")
    memory = io.BytesIO()
    torch.save(content, memory)
    return memory.getvalue()


def from_bytes(data: bytes) -> Any:
    """Return what ``to_bytes`` was given, with all tensors on the CPU. Executes nothing of it."""
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def check_plain(content: object, name: str) -> None:
    """Raise TypeError for what ``load`` would refuse, because it is no plain value or tensor."""
    for where, value in _leaves(content, name):
        kind = type(value)
        # Not isinstance: NumPy's float64 is a float, and yet an object of NumPy's when it is saved.
        is_plain = kind in (type(None), bool, int, float, str)
        if not is_plain and not isinstance(value, torch.Tensor):
            raise TypeError(
                f"{where} must be a plain value or a tensor, got a {kind.__module__}."
                f"{kind.__qualname__}; convert it, for example with float() or torch.as_tensor()."
            )


def not_finite(content: object, name: str) -> dict[str, bool]:
    """Return by name which tensors have values that are not finite, and whether any is NaN."""
    return {
        where: bool(value.isnan().any())
        for where, value in _leaves(content, name)
        if isinstance(value, torch.Tensor) and not value.isfinite().all()
    }


def _leaves(value: object, name: str) -> Iterator[tuple[str, object]]:
    """Yield all that is in plain dictionaries, lists and tuples, their keys too, with its name."""
    if type(value) in (dict, OrderedDict):
        for key, inner in value.items():  # type: ignore[attr-defined]
            yield from _leaves(key, f"a key of {name}")
            yield from _leaves(inner, f"{name}[{key!r}]")
    elif type(value) in (list, tuple):
        for index, inner in enumerate(value):  # type: ignore[arg-type]
            yield from _leaves(inner, f"{name}[{index}]")
    else:
        yield name, value


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what ``save`` wrote, with all tensors on the CPU. Executes nothing from the file.

    Whatever is wrong with the file, or missing, is a CheckpointError.
    """
    try:
        data = disk.read(Path(path))
        _check_records(data)
        content = from_bytes(data)
        if not isinstance(content, dict):
            raise TypeError(f"it holds a {type(content).__name__}")
        folders = content.get("folders", {})  # of a run's hooks, saved relative to the file
        folders |= {k: os.path.abspath(Path(path).parent / at) for k, at in folders.items()}
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint {path}; check the path.") from None
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds pickled objects, which are not loaded; save net.state_dict() instead."
        ) from error
    except Exception as error:  # damaged bytes make decoders raise almost anything
        raise CheckpointError(
            f"checkpoint must be whole, got {path}: {type(error).__name__}: {error}; "
            "use an older one."
        ) from error
    return content


def _check_records(data: bytes) -> None:
    """Raise for bytes that are not a zip of stored records whose checksums are right."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for record in archive.infolist():
            if record.compress_type != zipfile.ZIP_STORED:
                raise zipfile.BadZipFile("its records are compressed")  # and might be a zip bomb
            if record.external_attr & 0x10:  # of which torch reads nothing, and gives old memory
                raise zipfile.BadZipFile("a record is a directory")
        if broken := archive.testzip():
            raise zipfile.BadZipFile(f"the checksum of {broken} is wrong")


def path_of(folder: Path, step: int) -> Path:
    """Return the path of a step's file."""
    return folder / f"step_{step:06d}.pt"


def step_of(path: Path) -> int:
    """Return the step at which a file was saved: 500 for ``step_000500.pt``."""
    return int(path.stem.removeprefix("step_"))


def files(folder: Path) -> list[Path]:
    """Return the checkpoints, good or not, in the order of their steps: 99 before 100."""
    found = folder.glob("step_*.pt")
    return sorted((p for p in found if p.stem.removeprefix("step_").isdecimal()), key=step_of)


def load_whole(path: Path) -> dict[str, Any] | None:
    """Return a run's state, or None if the file is not there or not whole."""
    with contextlib.suppress(CheckpointError):
        return load(path)
    return None


def find(path: Path) -> tuple[Path | None, dict[str, Any]]:
    """Return a file, or a folder's newest whole one, and its content; None and {} for a new run."""
    if path.is_file() or path.suffix in (".pt", ".pth", ".ckpt"):
        return path, load(path)
    candidates = files(path) or files(path / "checkpoints")
    for candidate in reversed(candidates):
        try:
            return candidate, load(candidate)
        except CheckpointError as error:
            logger.warning("passed over: %s", error)
    if candidates:  # to begin anew would lose the run
        raise CheckpointError(
            f"all {len(candidates)} checkpoints in {path} are damaged; restore one from a backup, "
            "or move them away to begin a new run."
        )
    # News, and no fault; but where logging is not set up, only warnings are seen.
    logger.warning("%s holds no checkpoint: starting a new run", path)
    return None, {}
