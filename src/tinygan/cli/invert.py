"""``tinygan invert``: the z whose images are nearest to some pictures."""

from __future__ import annotations

import argparse
import math

import numpy as np
import torch

from tinygan import latents, pictures
from tinygan._run import disk
from tinygan.cli.loaded import file_of, generator_of, labels_of
from tinygan.data import decoding
from tinygan.inversion import invert


def run(a: argparse.Namespace) -> None:
    """Write the z, and a picture of what was wanted and found; say how near that is."""
    generator = generator_of(a)
    channels, height, width = next(latents.images(generator, latents.by_seed(generator, [0]))).shape
    images = []
    for path in a.images:
        try:
            with decoding.one_error():
                picture = decoding.decode(path.read_bytes(), channels, 64_000_000)
        except decoding.BadImageError as error:
            raise ValueError(f"images must be readable, got {path} ({error}).") from error
        if picture.size != (width, height):
            print(
                f"{path}: {picture.width} x {picture.height} pixels, resized to {width} x {height}"
            )
        images.append(decoding.scale(decoding.to_pixels(picture, (height, width))))
    wanted = torch.stack(images)
    labels = labels_of(a, generator, len(wanted)) if a.labels else None
    found = invert(generator, wanted, steps=a.steps, starts=a.starts, labels=labels, seed=a.seed)
    sides = ("Wanted", wanted), ("Found", pictures.shown(found.images))
    out = file_of(a, "inverted.png")
    with disk.renamed(out) as file, disk.renamed(out.with_suffix(".npy")) as array:
        pictures.titled(*((name, pictures.grid(x)) for name, x in sides)).save(file, "PNG")
        np.save(array, found.z.numpy())
    names = latents.class_names(generator)
    for number, path in enumerate(a.images):
        kind = "" if found.labels is None else f", as {names[int(found.labels[number])]}"
        decibels = 20 * math.log10(2 / max(float(found.distances[number]), 1e-9))
        print(f"{path}: found to a PSNR of {decibels:.1f} dB{kind}")
    print(f"Both are in {out}, z is in {out.with_suffix('.npy')}.")
