"""The images below a root, each decoded when it is asked for."""

from __future__ import annotations

import hashlib
import logging
import os
from typing import Any

import torch
from torch.utils.data import Dataset

from tinygan._run import checks
from tinygan.data import decoding
from tinygan.data.decoding import BadImageError
from tinygan.data.labels import Labels, read_labels
from tinygan.data.sources import EXTENSIONS, listed, open_source

_log = logging.getLogger(__name__)

Example = torch.Tensor | tuple[torch.Tensor, torch.Tensor]


def image_folder(
    root: str | os.PathLike[str],
    image_size: int | tuple[int, int] = 64,
    channels: int = 3,
    *,
    labels: Labels = None,
    max_pixels: int = 64_000_000,
) -> ImageFiles:
    """Find the images of a folder, a zip or a tar, at any depth; decode each when it is asked for.

    Each is turned upright, put on white where it is transparent, resized until its short side fits,
    cropped about its centre and scaled to [-1, 1], as the DCGAN tutorial does. Warnings name what
    is left out. A damaged image ends the run when it is decoded: ``pack`` leaves those out.

    Args:
        root: the folder, zip or tar; the tar may not be compressed.
        image_size: height and width in pixels, at least 8; one int for a square.
        channels: 3 for colour or 1 for grey, whatever the files have.
        labels: "folders" if sub-folders are classes; or a table from file names below ``root`` to
            classes: a mapping, or a .csv or .json file, which may be in ``root``.
        max_pixels: how many an image may have; larger ones are bad, and never decoded.

    Returns:
        A data set of images (C, H, W), float32 in [-1, 1], sorted by name. With labels, of pairs
        (image, label), label () of int64.

    Raises:
        ValueError: for a root without images or of another kind; for images without a class.

    Examples:
        >>> from PIL import Image
        >>> Image.new("RGB", (178, 218)).save("000001.jpg")
        >>> image_folder(".", image_size=64)[0].shape
        torch.Size([3, 64, 64])
    """
    images = ImageFiles(root, image_size, channels, labels, max_pixels)
    images.refuse_bad(max_bad=1)
    images.warn()
    return images


class Images(Dataset[Example]):
    """Images that have names, and perhaps labels.

    Attributes:
        names: their file names below the root, sorted.
        labels: their classes, (N,) of int64, or None.
        classes, num_classes: the names of the classes, and how many there are, or None.
        rejected: the files that were left out, and why.
        passed_over: files and folders that are hidden, or no images by their names.
        configuration: what the images are, for comparison with those of another run.
    """

    def __init__(
        self, image_size: tuple[int, int], channels: int, described: dict[str, Any]
    ) -> None:
        self.image_size, self.channels = image_size, channels
        self.names: list[str] = described["names"]
        self.rejected: dict[str, str] = described["rejected"]
        self.passed_over: list[str] = described["passed_over"]
        self.classes: list[str] | None = described["classes"]
        self.num_classes = None if self.classes is None else len(self.classes)
        self.configuration: dict[str, str | int] = {
            "images": len(self.names),
            "image_size": str(image_size),
            "channels": channels,
            "names": _digest("\0".join(self.names).encode("utf-8", "surrogatepass")),
        }
        self.labels: torch.Tensor | None = None
        if self.classes is not None:
            self.labels = torch.tensor(described["labels"], dtype=torch.int64, device="cpu")
            self.configuration["labels"] = _digest(self.labels.numpy().tobytes())

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.names)

    def __getitem__(self, index: int) -> Example:
        """Return image ``index``, (C, H, W) in [-1, 1], and its label if there are labels."""
        image = decoding.scale(self._pixels(index))
        return image if self.labels is None else (image, self.labels[index])

    def _pixels(self, index: int) -> torch.Tensor:
        raise NotImplementedError


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


class ImageFiles(Images):
    """The images of a folder, a zip or a tar; made by ``image_folder``."""

    def __init__(
        self, root: Any, size: int | tuple[int, int], channels: int, labels: Labels, max_pixels: int
    ) -> None:
        image_size = checks.size("image_size", size, at_least=8)
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, got {channels!r}; use 3 for colour.")
        self.max_pixels = checks.count("max_pixels", max_pixels)
        self.source = source = open_source(root, max_pixels)
        if not source.stamps:
            kinds = ", ".join(EXTENSIONS)
            raise ValueError(f"root must hold images ({kinds}), got {root} with none; check it.")
        super().__init__(image_size, channels, vars(source) | read_labels(labels, source))

    def refuse_bad(self, max_bad: float) -> None:
        """Raise ValueError if all files are bad, or more than the fraction ``max_bad`` of them."""
        found, bad, root = len(self.source.stamps), len(self.rejected), self.source.root
        if bad > max_bad * found or bad == found:
            raise ValueError(
                f"root must hold good images (max_bad={max_bad:g}), got {bad} bad of {found} "
                f"in {root}: {listed(self.rejected)}; repair or remove them, or check the path."
            )

    def warn(self) -> None:
        """Name what is left out or passed over."""
        for names, what in (
            (self.rejected, "left out as bad"),
            (self.passed_over, "passed over as no images by their names"),
        ):
            if names:
                _log.warning("%s: %s (%d): %s.", self.source.root, what, len(names), listed(names))

    def _pixels(self, index: int) -> torch.Tensor:
        try:
            return self.in_bytes(index)
        except BadImageError as error:
            raise ValueError(
                f"images must be readable, got {self.names[index]!r} in {self.source.root} "
                f"({error}); remove it, or use data.pack, which leaves bad images out."
            ) from error

    def in_bytes(self, index: int) -> torch.Tensor:
        """Return an image before it is scaled, (C, H, W) of uint8, or raise ``BadImageError``."""
        with decoding.one_error():
            content = self.source.read(self.names[index])
            picture = decoding.decode(content, self.channels, self.max_pixels)
        return decoding.to_pixels(picture, self.image_size)
