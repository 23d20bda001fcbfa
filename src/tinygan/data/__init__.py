"""Images from a folder, zip or tar, packed or not, drawn faces, an exactly repeating loader."""

from tinygan.data.cartoon_faces import CartoonFaces
from tinygan.data.folder import ImageFiles, image_folder
from tinygan.data.loader import Loader
from tinygan.data.packing import PackedImages, open_packed, pack

__all__ = [
    "CartoonFaces", "ImageFiles", "Loader", "PackedImages", "image_folder", "open_packed", "pack",
]  # fmt: skip
