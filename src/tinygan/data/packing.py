"""Images decoded once, into an array of bytes that is mapped: NAME.npy, and NAME.json beside it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch.utils.data import Dataset

from tinygan import distributed
from tinygan._run import batches, checks, disk, notebook
from tinygan.data import decoding
from tinygan.data.decoding import BadImageError
from tinygan.data.folder import ImageFiles, Images
from tinygan.data.labels import Labels
from tinygan.data.loader import Loader
from tinygan.data.sources import listed
from tinygan.distributed import ALONE, Ranks

_log = logging.getLogger(__name__)

FORMAT = "tinygan packed images 1"

# Bytes. Batches on their way from the workers lie in /dev/shm, which containers keep small.
_BATCH = 2**20


def pack(
    root: str | os.PathLike[str],
    path: str | os.PathLike[str],
    image_size: int | tuple[int, int] = 64,
    channels: int = 3,
    *,
    labels: Labels = None,
    max_pixels: int = 64_000_000,
    max_bad: float = 0.1,
    workers: int = 2,
    progress: bool = True,
    ranks: Ranks | None = None,
) -> PackedImages:
    """Decode the images of a folder, zip or tar once, into the array ``path``, and map that.

    The array is one of NumPy's, uint8 (N, C, H, W): the images of ``image_folder`` with the same
    arguments, without bad ones. The .json beside it has their names and labels, and the bad files.

    An array that is there is used if the files are the same, by their names, sizes and times (in a
    zip: checksums). Else it is made anew, with a warning that says what has changed.

    Rank 0 of several packs, and the others wait and map the same file. So it must lie on a disk
    that all see, or have been packed on each machine before.

    Args:
        root, image_size, channels, labels, max_pixels: as for ``image_folder``.
        path: the array; its name ends in .npy. Folders above it are made.
        max_bad: the fraction of files that may be bad, from 0 to 1.
        workers: processes that decode; 0 decodes in this one. As for ``Loader``, a script needs
            ``if __name__ == "__main__":`` where Python does not fork.
        progress: show a bar, where there is a terminal or a notebook.
        ranks: the processes of the run; None for those that torchrun has started.

    Raises:
        ValueError: as ``image_folder``; for more bad files than ``max_bad``, naming them; for a
            ``path`` where somebody else's file is.
        OSError: for an array that cannot be written, or an image that fails to decode once.
        RuntimeError: for workers that died, are stuck or cannot start, or a RankError if rank 0
            could not pack.

    Examples:
        >>> from PIL import Image
        >>> Image.new("RGB", (178, 218)).save("000001.jpg")
        >>> pack(".", "faces.npy", image_size=64, workers=0).pixels.shape
        torch.Size([1, 3, 64, 64])
    """
    checks.count("workers", workers, at_least=0)
    checks.number("max_bad", max_bad, "[0, 1]")
    path, ranks = checks.path("path", path), ranks or distributed.join()

    def work() -> None:
        images = ImageFiles(root, image_size, channels, labels, max_pixels)
        wanted = {
            "transform": decoding.TRANSFORM,
            "image_size": list(images.image_size),
            "channels": channels,
            "max_pixels": max_pixels,
            # Before anything is decoded: what changes meanwhile is decoded anew by the next call.
            "sources": {name: list(stamp) for name, stamp in images.source.stamps.items()},
        }
        saved = _manifest(path)
        if saved:
            changed = [name for name, value in wanted.items() if saved.get(name) != value]
            reason = f"{' and '.join(changed)} changed" if changed else _trouble(path, saved)
            if not reason:
                images.rejected = saved["rejected"]
                images.refuse_bad(max_bad)
                images.warn()
                _describe(path, saved, images)
                return
            _log.warning("%s is packed anew: %s.", path, reason)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Workers start before the file is begun: they would hold its lock as well, and for some
        # seconds longer if this process is killed.
        decoded = _decoded(images, max_bad, workers)
        next(decoded)
        bar = notebook.bar(desc="packing", total=len(images), delay=1, shown=progress)
        with closing(decoded), disk.renamed(path) as file, bar:
            for done in _write(file, images, max_bad, decoded):
                bar.update(done)
                ranks.sign()
            disk.sync(file)  # or the old array would have no manifest while this one is written
            status = os.fstat(file.fileno())
            wanted |= {"format": FORMAT, "bytes": status.st_size, "time": status.st_mtime_ns}
            # First, for an array without a manifest could be anybody's, and is never written over.
            _describe(path, wanted | {"sha256": _sha256(Path(file.name), ranks.sign)}, images)

    ranks.first(work, f"packing {path}")
    return open_packed(path)


def open_packed(path: str | os.PathLike[str]) -> PackedImages:
    """Map an array that ``pack`` made, on any machine, without the files that it was made of.

    A copy with another time is compared with its checksum first. An array that is missing or
    damaged, or that ``pack`` did not make, is a ValueError.

    Examples:
        >>> from PIL import Image
        >>> Image.new("RGB", (178, 218)).save("000001.jpg")
        >>> len(open_packed(pack(".", "faces.npy", image_size=64, workers=0).path))
        1
    """
    return PackedImages(checks.path("path", path))


class PackedImages(Images):
    """Images that were decoded once, mapped from a file; made by ``pack`` and ``open_packed``.

    Attributes:
        pixels: all images, (N, C, H, W) of uint8. Only what is used is read from the disk.
    """

    def __init__(self, path: Path, expected: str | None = None) -> None:
        self.path = path.absolute()  # so that worker processes find it from wherever they are
        manifest = _manifest(path)
        trouble = _trouble(path, manifest) if manifest else "there is no such file"
        self._digest = hashlib.sha256(json.dumps(manifest).encode()).hexdigest()
        if not trouble:
            # "c": what is written to the tensor by mistake does not reach the file.
            self.pixels = torch.from_numpy(np.load(path, mmap_mode="c"))
            if expected not in (None, self._digest) or _manifest(path) != manifest:
                trouble = "it was packed anew meanwhile"
        if trouble:
            raise ValueError(f"path must be a packed array, got {path}: {trouble}; pack it again.")
        _, channels, height, width = self.pixels.shape
        super().__init__((height, width), channels, manifest)

    def _pixels(self, index: int) -> torch.Tensor:
        return self.pixels[range(len(self))[index]]

    def __reduce__(self) -> tuple[Any, ...]:
        """Send the path to another process, not the pixels."""
        return PackedImages, (self.path, self._digest)


def _manifest(path: Path) -> dict[str, Any]:
    """Return what is known of an array, or {} if nothing is there; refuse a stranger's files."""
    if path.suffix != ".npy":
        raise ValueError(f"path must end in .npy, got {path}; use {path.with_suffix('.npy')}.")
    beside = path.with_suffix(".json")
    if not os.path.lexists(path) and not os.path.lexists(beside):
        return {}
    with suppress(ValueError, TypeError, LookupError):
        manifest: dict[str, Any] = json.loads(beside.read_bytes() if beside.is_file() else b"")
        if manifest["format"] == FORMAT and {"time", "bytes", "sha256", "names"} <= manifest.keys():
            return manifest
    raise ValueError(
        f"{path} or the {beside.name} beside it was not made by this version's data.pack; move "
        "them away, or name another path."
    )


def _trouble(path: Path, manifest: dict[str, Any]) -> str:
    """Return why an array is not the one that its manifest describes, or nothing."""
    if not path.is_file():
        return "the array is missing"
    status, time = path.stat(), manifest["time"]
    if (status.st_size, status.st_mtime_ns) == (manifest["bytes"], time):
        return ""
    # A copy, or a crash came between the two renames.
    if _sha256(path) != manifest["sha256"]:
        return "it is not the array that its manifest describes"
    with suppress(OSError):
        os.utime(path, ns=(time, time))  # next time that is enough
    return ""


def _sha256(path: Path, sign: Callable[[], object] = int) -> str:
    """Return a file's checksum; ``sign`` is called now and then, for ranks that wait."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(2**16):
            found.update(chunk)
            sign()
    return found.hexdigest()


def _describe(path: Path, manifest: dict[str, Any], images: ImageFiles) -> None:
    """Write the manifest of an array, unless it is there."""
    good = [index for index, name in enumerate(images.names) if name not in images.rejected]
    new = manifest | {
        "rejected": images.rejected,
        "passed_over": images.passed_over,
        "names": [images.names[index] for index in good],
        "labels": None if images.labels is None else images.labels[good].tolist(),
        "classes": images.classes,
    }
    if new != manifest:
        with disk.renamed(path.with_suffix(".json")) as file:
            disk.write(file, json.dumps(new).encode())


class _Attempts(Dataset[tuple[torch.Tensor, str]]):
    """Images as bytes, with what is wrong with them."""

    def __init__(self, images: ImageFiles) -> None:
        self.images = images
        shape = (images.channels, *images.image_size)
        self.blank = torch.zeros(shape, dtype=torch.uint8, device="cpu")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, str]:
        try:
            return self.images.in_bytes(index), ""
        except BadImageError as error:
            return self.blank, str(error)


def _decoded(images: ImageFiles, max_bad: float, workers: int) -> Generator[Any]:
    """Yield None once the workers run; then batches of images in bytes, with what is wrong."""
    images.refuse_bad(max_bad)
    attempts = _Attempts(images)
    size = min(max(1, _BATCH // attempts.blank.numel()), len(images))
    loader = Loader(attempts, size, shuffle=False, workers=workers, ranks=ALONE)
    with batches.closing(iter(loader)) as loaded:
        first = next(loaded)
        yield None
        yield first
        yield from loaded


def _write(
    file: BinaryIO, images: ImageFiles, max_bad: float, decoded: Iterator[Any]
) -> Iterator[int]:
    """Write the array of the good images, note others as rejected; give how many are done."""
    shape, names, start = (images.channels, *images.image_size), images.names, 0
    disk.write(file, _header(0, shape))
    for pixels, reasons in decoded:
        good = [row for row, reason in enumerate(reasons) if not reason]
        kept = pixels if len(good) == len(pixels) else pixels[good]  # mostly without a copy
        disk.write(file, kept.numpy().reshape(-1).data)
        bad = {names[start + row]: reason for row, reason in enumerate(reasons) if reason}
        images.rejected = dict(sorted((images.rejected | bad).items()))
        images.refuse_bad(max_bad)
        start += len(pixels)
        yield len(pixels)
    bad_rows = [index for index, name in enumerate(names) if name in images.rejected]
    again = _Attempts(images)
    passing = [names[index] for index in bad_rows if not again[index][1]]
    if passing:  # they must not be left out for ever
        raise OSError(
            f"these images failed to decode once and then succeeded: {listed(passing)}; the disk "
            "or the memory may be faulty; pack again."
        )
    file.seek(0)
    disk.write(file, _header(len(names) - len(bad_rows), shape))
    images.warn()


def _header(count: int, shape: tuple[int, ...]) -> bytes:
    """Return the 128 bytes with which NumPy's files begin, version 1.0."""
    kind = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)}
    return b"\x93NUMPY\x01\x00\x76\x00" + repr(kind).ljust(117).encode() + b"\n"
