"""Data: images from a folder or zip, drawn faces, and a loader that repeats itself exactly."""

from tinygan.data.cartoon_faces import CartoonFaces
from tinygan.data.folder import ImageFiles, image_folder
from tinygan.data.loader import Loader

__all__ = ["CartoonFaces", "ImageFiles", "Loader", "image_folder"]
