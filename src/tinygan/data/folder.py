"""Images from a folder or a zip, decoded as the DCGAN tutorial does."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision.transforms import functional as transforms
from typing_extensions import override

from tinygan import checks

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


def image_folder(
    root: str | os.PathLike[str], image_size: int | tuple[int, int] = 64, channels: int = 3
) -> ImageFiles:
    """Find the images of a folder, flat or nested, or of a zip, which is read in place.

    Each is resized until its short side fits, cropped about its centre and scaled to [-1, 1], as
    the DCGAN tutorial does. Hidden files and folders are passed over.

    Args:
        root: the folder or the zip.
        image_size: height and width in pixels, at least 8; one int for a square.
        channels: 3 for colour or 1 for grey.

    Returns:
        A data set of images (C, H, W), float32 in [-1, 1], in the order of their names.

    Raises:
        ValueError: for a root that is missing, is neither folder nor zip, or holds no images; for
            a size under 8 or channels other than 1 or 3.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     Image.new("RGB", (178, 218)).save(f"{root}/000001.jpg")
        ...     image_folder(root, image_size=64)[0].shape
        torch.Size([3, 64, 64])
    """
    size = checks.size("image_size", image_size, at_least=8)
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 or 3, got {channels!r}; use 3 for colour.")
    path = Path(root)
    if path.is_dir():
        names = sorted(_names_in_folder(path))
    elif path.is_file() and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = sorted(name for name in archive.namelist() if _is_image(name))
    else:
        found = "another kind of file" if path.exists() else "nothing there"
        raise ValueError(f"root must be a folder or a zip, got {path}: {found}; check the path.")
    if not names:
        raise ValueError(
            f"root must hold images ({', '.join(EXTENSIONS)}), got {path} with none; "
            "check the path."
        )
    return ImageFiles(path, names, size, channels)


def _is_image(name: str) -> bool:
    path = PurePosixPath(name)
    # Archives made on a Mac carry a hidden twin of every file under __MACOSX.
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return path.suffix.lower() in EXTENSIONS and not hidden


def _names_in_folder(root: Path) -> Iterator[str]:
    # Links to folders are not followed: they may lead round in a circle.
    for folder, _, files in os.walk(root):
        for file in files:
            name = (Path(folder) / file).relative_to(root).as_posix()
            if _is_image(name):
                yield name


class ImageFiles(Dataset[torch.Tensor]):
    """The images of a folder or zip by name; made by ``image_folder``."""

    def __init__(
        self, root: Path, names: list[str], image_size: tuple[int, int], channels: int
    ) -> None:
        self.root = root
        self.names = names
        self.image_size = image_size
        self.channels = channels
        self._archive: tuple[int, zipfile.ZipFile] | None = None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.names)

    @override
    def __getitem__(self, index: int) -> torch.Tensor:
        """Return image ``index``, (C, H, W) in [-1, 1].

        Raises:
            ValueError: for a file that cannot be decoded, naming it.
        """
        name = self.names[index]
        try:
            with Image.open(io.BytesIO(self._read(name))) as image:
                pixels = image.convert("RGB" if self.channels == 3 else "L")
        except (OSError, SyntaxError, zipfile.BadZipFile) as error:  # what Pillow's decoders raise
            raise ValueError(
                f"image must be readable, got {name} in {self.root}: {error}; remove or replace it."
            ) from error
        return to_tensor(pixels, self.image_size)

    def _read(self, name: str) -> bytes:
        if self.root.is_dir():
            return (self.root / name).read_bytes()
        # Each process opens the zip for itself: a file position cannot be shared.
        if self._archive is None or self._archive[0] != os.getpid():
            self._archive = (os.getpid(), zipfile.ZipFile(self.root))
        return self._archive[1].read(name)

    @override
    def __getstate__(self) -> dict[str, Any]:
        """Leave the open zip behind when the data set is sent to another process."""
        return {**self.__dict__, "_archive": None}


def to_tensor(image: Image.Image, image_size: tuple[int, int]) -> torch.Tensor:
    """Resize, crop about the centre and scale a picture: (C, H, W), float32 in [-1, 1].

    For a square this is the tutorial's Resize(n), CenterCrop(n), ToTensor, Normalize(.5, .5); an
    oblong is covered in the same way, by the smallest resize that leaves no gap.

    Args:
        image: of mode "RGB" (C = 3) or "L" (C = 1).
        image_size: (height, width) in pixels.

    Examples:
        >>> to_tensor(Image.new("RGB", (178, 218)), (64, 64)).shape
        torch.Size([3, 64, 64])
    """
    height, width = image_size
    # int() of the longer side, not round(): that is how torchvision's Resize(n) counts.
    if image.height * width >= image.width * height:
        resized = (max(height, int(width * image.height / image.width)), width)
    else:
        resized = (height, max(width, int(height * image.width / image.height)))
    covered = transforms.resize(image, list(resized))
    cropped = transforms.center_crop(covered, [height, width])
    pixels: torch.Tensor = transforms.to_tensor(cropped)
    return pixels.mul_(2).sub_(1)
