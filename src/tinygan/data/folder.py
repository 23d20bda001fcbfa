"""The images of a folder or a zip: which are good, and what stands in for those that are not."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from typing_extensions import override

from tinygan._run import checks
from tinygan.data import decoding, files
from tinygan.data.decoding import BadImageError

_log = logging.getLogger(__name__)

PASSED = "could not be read before"
"""Why an image is damaged that is not any more."""

# More would bury what a message is about.
_NAMED = 10


def image_folder(
    root: str | os.PathLike[str],
    image_size: int | tuple[int, int] = 64,
    channels: int = 3,
    *,
    max_pixels: int = 64_000_000,
    max_bad: float = 0.1,
) -> ImageFiles:
    """Find the images of a folder, flat or nested, or of a zip, which is read in place.

    Each is turned upright if its EXIF block says so, put on white where it is transparent, resized
    until its short side fits, cropped about its centre and scaled to [-1, 1], as the DCGAN tutorial
    does. Hidden files and folders are passed over.

    Every file is looked at, as far as its header, before anything else happens. Bad ones are
    left out, with one warning that names them. Damage further inside is found when the image is
    decoded: the file is named then, once, and the next good one by name stands in for it.

    Args:
        root: the folder or the zip.
        image_size: height and width in pixels, at least 8; one int for a square.
        channels: 3 for colour or 1 for grey, whatever the files have.
        max_pixels: how many an image may have; larger ones are bad, and never decoded.
            ``PIL.Image.MAX_IMAGE_PIXELS`` limits them besides.
        max_bad: the fraction of files that may be bad, from 0 to 1.

    Returns:
        A data set of images (C, H, W), float32 in [-1, 1], in the order of their names. Its
        ``rejected`` tells the files that were left out, and why.

    Raises:
        ValueError: for a root that is missing, is neither folder nor zip, or holds no images; for
            more bad files than ``max_bad``, naming them; for a size under 8 or channels other
            than 1 or 3.

    Examples:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as root:
        ...     Image.new("RGB", (178, 218)).save(f"{root}/000001.jpg")
        ...     image_folder(root, image_size=64)[0].shape
        torch.Size([3, 64, 64])
    """
    size = check_arguments(image_size, channels, max_pixels, max_bad)
    return look_through(open_source(root, max_pixels), size, channels, max_pixels, max_bad)


def check_arguments(
    image_size: int | tuple[int, int], channels: int, max_pixels: int, max_bad: float
) -> tuple[int, int]:
    """Return the size as (height, width); raise ValueError for arguments out of their ranges."""
    size = checks.size("image_size", image_size, at_least=8)
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 or 3, got {channels!r}; use 3 for colour.")
    checks.count("max_pixels", max_pixels)
    if not isinstance(max_bad, int | float) or not 0 <= max_bad <= 1:
        raise ValueError(f"max_bad must be from 0 to 1, got {max_bad!r}; use 0.1, say.")
    return size


def open_source(root: str | os.PathLike[str], max_pixels: int) -> files.Folder | files.Zip:
    """List the files of a folder or zip; raise ValueError if it is neither."""
    # A pixel takes 8 bytes at most, as 16-bit RGBA; the rest is for metadata and further frames.
    return files.open_root(Path(root), max_bytes=8 * max_pixels + 2**26)


def look_through(
    source: files.Folder | files.Zip,
    image_size: tuple[int, int],
    channels: int,
    max_pixels: int,
    max_bad: float,
    sign: Callable[[], object] = int,
) -> ImageFiles:
    """Look at every file's header, and return the good ones with one warning about the others.

    ``sign`` is called at each, for those who wait.
    """
    root = source.root
    rejected = dict(source.unlisted)
    for name in source.names:
        sign()
        try:
            with decoding.one_error(), source.open(name) as file:
                decoding.look_at(file, max_pixels)
        except BadImageError as error:
            rejected[name] = str(error)
    if not source.names and not rejected:
        raise ValueError(
            f"root must hold images ({', '.join(files.EXTENSIONS)}), got {root} with none; "
            "check the path."
        )
    images = ImageFiles(source, rejected, image_size, channels, max_pixels, max_bad)
    images.check()
    if rejected:
        _log.warning(
            "%d of %d files in %s are bad and left out: %s.",
            len(rejected), images.found, root, listed(rejected, len(rejected)),
        )  # fmt: skip
    return images


def listed(bad: dict[str, str], count: int) -> str:
    """Return names and reasons for a message: the first of ``bad``, and how many there are more."""
    # repr() keeps line breaks and undecodable bytes of a name out of the message.
    named = [f"{name!r} ({reason})" for name, reason in islice(bad.items(), _NAMED)]
    return ", ".join(named) + (f" and {count - len(named)} more" if count > len(named) else "")


def refuse_bad(
    root: os.PathLike[str], bad: dict[str, str], count: int, found: int, max_bad: float
) -> None:
    """Raise ValueError if ``count`` bad files of ``found`` are all, or too many; name the first."""
    if count == found:
        raise ValueError(
            f"root must hold good images, got {root} with {count} bad ones: "
            f"{listed(bad, count)}; check the path."
        )
    if count > max_bad * found:
        raise ValueError(
            f"max_bad must be at least the fraction of bad files, got {max_bad:g} with "
            f"{count} of {found} bad in {root}: {listed(bad, count)}; "
            "repair or remove them, or raise max_bad."
        )


def describe(
    images: int, image_size: tuple[int, int], channels: int, names: str
) -> dict[str, str | int]:
    """Return a ``configuration``: what a run compares when it goes on, with a hash of the names."""
    return {
        "images": images,
        "image_size": str(image_size),
        "channels": channels,
        "names": names,
    }


class ImageFiles(Dataset[torch.Tensor]):
    """The images of a folder or zip by name; made by ``image_folder``."""

    def __init__(
        self,
        source: files.Folder | files.Zip,
        rejected: dict[str, str],
        image_size: tuple[int, int],
        channels: int,
        max_pixels: int,
        max_bad: float,
    ) -> None:
        self.root = source.root
        self.names = [name for name in source.names if name not in rejected]
        self.rejected = rejected
        """The files that were left out, and why."""
        self.found = len(self.names) + len(rejected)
        """How many files there are, good and bad."""
        self.image_size = image_size
        self.channels = channels
        self.max_pixels = max_pixels
        self.max_bad = max_bad
        self._source = source
        # Asked for with every batch: 200,000 names take 15 ms.
        names = "\0".join(self.names).encode("utf-8", "surrogatepass")
        self._digest = hashlib.sha256(names).hexdigest()[:16]
        # What decoding finds, in memory that all worker processes share: they begin anew in each
        # epoch, and a file is to be named once. A flag has one byte, so nothing needs a lock.
        self._bad = torch.zeros(len(self.names), dtype=torch.bool).share_memory_()
        self._named = torch.zeros(len(self.names), dtype=torch.bool).share_memory_()

    @property
    def configuration(self) -> dict[str, str | int]:
        """What these images are, wherever they lie: for comparison with those of another run."""
        return describe(len(self.names), self.image_size, self.channels, self._digest)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.names)

    @override
    def __getitem__(self, index: int) -> torch.Tensor:
        """Return image ``index``, (C, H, W) in [-1, 1]; for a damaged one, the next good one.

        Raises:
            ValueError: when more files than ``max_bad`` turn out to be bad, naming them.
        """
        return decoding.scale(self.in_bytes(index))

    def in_bytes(self, index: int) -> torch.Tensor:
        """Return what ``[index]`` does before it is scaled: (C, H, W) of uint8."""
        index = range(len(self.names))[index]
        if not self._named[index]:
            try:
                return self._decode(index)
            except BadImageError as error:
                reason = error
            self._bad[index] = self._named[index] = True
            name = self.names[index]
            _log.warning("%r in %s is bad, the next takes its place: %s.", name, self.root, reason)
        return self._stand_in(index)

    def _decode(self, index: int) -> torch.Tensor:
        with decoding.one_error(), self._source.open(self.names[index]) as file:
            picture = decoding.decode(file, self.channels, self.max_pixels)
        return decoding.to_pixels(picture, self.image_size)

    def _stand_in(self, index: int) -> torch.Tensor:
        """Return the next good image by name, the same whoever asks; after the last, the first."""
        while True:
            self.check()
            index = (index + 1) % len(self.names)
            if not self._bad[index]:
                try:
                    return self._decode(index)
                except BadImageError:
                    # Not named here, but when it is asked for itself, which one process does.
                    self._bad[index] = True

    def check(self) -> None:
        """Raise if no file is good, or more are bad than ``max_bad`` allows.

        Raises:
            ValueError: naming the first of them.
        """
        count = len(self.rejected) + int(self._bad.sum())
        if count < self.found and count <= self.max_bad * self.found:
            return
        bad = self.damaged(_NAMED) | self.rejected
        refuse_bad(self.root, bad, count, self.found, self.max_bad)

    def damaged(self, most: int | None = None) -> dict[str, str]:
        """Return what decoding has found so far, and why: the first ``most`` by name, or all."""
        # Other processes may have found them, so the reasons are looked for once more.
        indices = self._bad.nonzero().flatten().tolist()[:most]
        return {self.names[index]: self._damage(index) for index in indices}

    def _damage(self, index: int) -> str:
        try:
            self._decode(index)
        except BadImageError as error:
            return str(error)
        return PASSED

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Share the flags of a copy with its own worker processes."""
        self.__dict__.update(state)
        self._bad.share_memory_()
        self._named.share_memory_()
