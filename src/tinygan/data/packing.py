"""Decode a folder or zip of images once, into one file: resumable, in parallel, whole or not."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch.utils.data import Dataset
from tqdm import tqdm
from typing_extensions import override

from tinygan import distributed
from tinygan._run import batches, checks, disk
from tinygan.data import decoding, files, folder, packed
from tinygan.data.folder import ImageFiles
from tinygan.data.loader import Loader
from tinygan.data.packed import DamagedError, PackedImages, open_packed
from tinygan.distributed import ALONE, Ranks

_log = logging.getLogger(__name__)

# Bytes. Batches on their way from the workers lie in /dev/shm, which containers keep small.
_BATCH = 2**20

# Batches after which the file is synchronised: a second's work, and less than one to do again.
_CHUNK = 16


def pack(
    root: str | os.PathLike[str],
    path: str | os.PathLike[str],
    image_size: int | tuple[int, int] = 64,
    channels: int = 3,
    *,
    max_pixels: int = 64_000_000,
    max_bad: float = 0.1,
    workers: int = 2,
    progress: bool = True,
    ranks: Ranks | None = None,
) -> PackedImages:
    """Decode the images of a folder or zip once, into the file ``path``, and map that.

    The images are those of ``image_folder`` with the same arguments, bit for bit. A file that is
    there already is mapped at once, if the images are as they were by their names, sizes and times
    (in a zip: checksums); else it is replaced, with a warning that says what has changed.

    The file takes N * C * H * W bytes. It appears when it is whole; until then what is there so far
    lies beside it, and the next call goes on with that, whatever ended the last one.

    In a run of several ranks rank 0 packs, and the others wait and map the same file. So it must
    lie on a disk that all see, or have been packed on each machine before.

    Args:
        root: the folder or the zip.
        path: the packed file. Folders above it are made.
        image_size: height and width in pixels, at least 8; one int for a square.
        channels: 3 for colour or 1 for grey, whatever the files have.
        max_pixels: how many an image may have, as for ``image_folder``.
        max_bad: the fraction of files that may be bad, from 0 to 1.
        workers: processes that decode; 0 decodes in this one. They change nothing but the speed.
        progress: show a bar, where there is a terminal.
        ranks: the processes of the run; None for those that torchrun has started.

    Raises:
        ValueError: for all that ``image_folder`` raises it for; for a ``path`` at which another
            kind of file is, which cannot be written, or which another process is packing.
        RuntimeError: for workers that died or are stuck.
        RankError: if rank 0 could not pack, or gave no sign for the ranks' timeout.
        OSError: if the disk is full, say.

    Examples:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as root:
        ...     Image.new("RGB", (178, 218)).save(f"{root}/000001.jpg")
        ...     pack(root, f"{root}/faces.packed", image_size=64, workers=0).pixels.shape
        torch.Size([1, 3, 64, 64])
    """
    size = folder.check_arguments(image_size, channels, max_pixels, max_bad)
    checks.count("workers", workers, at_least=0)
    ranks = distributed.join() if ranks is None else ranks

    def work() -> PackedImages:
        source = folder.open_source(root, max_pixels)
        return _pack(
            source, Path(path), size, channels, max_pixels, max_bad, workers, progress, ranks.sign
        )

    if ranks.count == 1:
        return work()
    ranks.first(lambda: len(work()), f"packing {path}")
    return open_packed(path)


def _pack(
    source: files.Folder | files.Zip,
    path: Path,
    size: tuple[int, int],
    channels: int,
    max_pixels: int,
    max_bad: float,
    workers: int,
    progress: bool,
    sign: Callable[[], object],
) -> PackedImages:
    wanted = {
        "layout": packed.LAYOUT,
        "image_size": list(size),
        "channels": channels,
        "max_pixels": max_pixels,
        "transform": decoding.TRANSFORM,
        "transform_version": decoding.TRANSFORM_VERSION,
        "source": "folder" if isinstance(source, files.Folder) else "zip",
        # Before anything is decoded: what changes meanwhile is decoded anew by the next call.
        "sources": [[name, *stamp] for name, stamp in source.stamps().items()],
    }
    if os.path.lexists(path):
        images, reasons = _reusable(path, wanted)
        if images is not None:
            _tell_of_bad(images, source.root, max_bad)
            return images
        _log.warning("%s is packed anew: %s.", path, "; ".join(reasons))
    decoded = folder.look_through(source, size, channels, max_pixels, max_bad, sign)
    manifest = wanted | {
        "count": len(decoded),
        "names": decoded.configuration["names"],
        "rejected": decoded.rejected,
    }
    partial = path.with_name(f"{path.name}.{_digest(manifest)}.partial")
    with _alone(path, partial) as file:
        _write_pixels(file, decoded, path, workers, progress, sign)
        decoded.check()
        damaged = decoded.damaged()
        _refuse_passing_damage(file, damaged, len(decoded))
        manifest["damaged"] = damaged
        disk.write(file, packed.ending(manifest))
        disk.sync(file)
        # By the same descriptor: to close another one would give up the lock.
        assert packed.manifest_in(file) == manifest  # nobody else wrote to it
        disk.replace(partial, path)
        disk.sync_folder(path.parent)
    return PackedImages(path, manifest)


def _reusable(path: Path, wanted: dict[str, Any]) -> tuple[PackedImages | None, list[str]]:
    """Return the images of a packed file, or in words why they are not those that are wanted."""
    try:
        manifest = packed.read_manifest(path)
    except DamagedError as error:
        return None, [str(error)]
    reasons = packed.differences(manifest, wanted)
    return (None if reasons else PackedImages(path, manifest)), reasons


def _tell_of_bad(images: PackedImages, root: Path, max_bad: float) -> None:
    """Warn of what was found bad when the images were packed; raise if that is too much now."""
    bad = images.damaged | images.rejected
    found = len(images) + len(images.rejected)
    folder.refuse_bad(root, bad, len(bad), found, max_bad)
    if bad:
        named = folder.listed(bad, len(bad))
        _log.warning(
            "%d of %d files in %s were bad when packed: %s; remove %s to try them again.",
            len(bad), found, root, named, images.path,
        )  # fmt: skip


def _refuse_passing_damage(file: BinaryIO, damaged: dict[str, str], count: int) -> None:
    """Begin anew, and raise, if an image could not be decoded once and can be now.

    What cannot be read for a while (a disk that is away, too many open files) must not be replaced
    by its neighbour for ever.
    """
    passed = [name for name, reason in damaged.items() if reason == folder.PASSED]
    if passed:
        disk.truncate(file, 0)
        raise OSError(
            f"images could not be decoded at first, but could be later: {len(passed)} of {count}, "
            f"{passed[0]!r} among them; their disk or the memory may be in trouble; pack again."
        )


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest).encode()).hexdigest()[:16]


@contextmanager
def _alone(path: Path, partial: Path) -> Iterator[BinaryIO]:
    """Open the partial file as the only process that packs to ``path``; remove other ones."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = disk.append(partial)
    except OSError as error:
        raise ValueError(
            f"path must be in a folder that can be written, got {path}: "
            f"{error.strerror or error}; name another."
        ) from error
    with file:
        # The name may be gone, or be another file's, if one that packed was just done.
        if (
            not _lock(file)
            or not partial.exists()
            or not os.path.samestat(os.fstat(file.fileno()), os.stat(partial))
        ):
            raise _in_progress(path)
        pattern = re.compile(re.escape(path.name) + r"\.[0-9a-f]{16}\.partial")
        for other in path.parent.iterdir():
            if other != partial and pattern.fullmatch(other.name):
                with disk.append(other) as unfinished:
                    if not _lock(unfinished):
                        raise _in_progress(path)
                    disk.remove(other)
        yield file


def _lock(file: BinaryIO) -> bool:
    try:
        return disk.lock(file)
    except OSError as error:
        _log.warning("%s cannot be locked (%s): let no other process pack to it.", file.name, error)
        return True


def _in_progress(path: Path) -> ValueError:
    return ValueError(
        f"path must be packed by one process at a time, got {path}, which another one is packing; "
        "wait until it is done, or name another path."
    )


class _Bytes(Dataset[torch.Tensor]):
    """Images from number ``start`` on, (C, H, W) of uint8."""

    def __init__(self, images: ImageFiles, start: int) -> None:
        self._images, self._start = images, start

    def __len__(self) -> int:
        return len(self._images) - self._start

    @override
    def __getitem__(self, index: int) -> torch.Tensor:
        return self._images.in_bytes(self._start + index)


def _write_pixels(
    file: BinaryIO,
    images: ImageFiles,
    path: Path,
    workers: int,
    progress: bool,
    sign: Callable[[], object],
) -> None:
    """Append to a file, which may have some, what it lacks of the images' pixels."""
    one = math.prod((images.channels, *images.image_size))
    batch = max(1, _BATCH // one)
    whole = min(file.seek(0, os.SEEK_END) // one, len(images)) // (batch * _CHUNK)
    # The last whole chunk was written, but may not have been synchronised.
    start = max(0, whole - 1) * batch * _CHUNK
    if start:
        start = _find_damage(file, images, start, one)
        _log.warning("packing %s goes on at image %d of %d.", path, start, len(images))
    disk.truncate(file, start * one)
    loader = Loader(
        _Bytes(images, start),
        min(batch, len(images) - start),
        shuffle=False,
        workers=workers,
        ranks=ALONE,
    )
    bar = tqdm(
        total=len(images), initial=start, unit="image", desc="packing",
        disable=None if progress else True,
    )  # fmt: skip
    decoded = iter(loader)
    try:
        with bar, batches.closing(decoded):
            for number, pixels in enumerate(decoded, 1):
                disk.write(file, pixels.numpy().tobytes())
                if number % _CHUNK == 0:
                    disk.sync(file)
                bar.update(len(pixels))
                sign()
    except ValueError:
        images.check()  # says what there is to say, without a worker's traceback
        raise


def _find_damage(file: BinaryIO, images: ImageFiles, count: int, size: int) -> int:
    """Let the images know anew which of the first ``count`` are damaged; return how many are right.

    What stands in for a damaged one is the next good one, so the two are equal in the file. Few
    others are, and these are decoded. One that was damaged then and is not now ends what is right.
    """
    file.seek(0)
    last = file.read(size)
    for index in range(1, count + 1):
        this = file.read(size) if index < count else last  # the next of the last is not there yet
        if this == last and images.in_bytes(index - 1).numpy().tobytes() != last:
            return index - 1
        last = this
    return count
