"""``tinygan sample``: images by seed."""

from __future__ import annotations

import argparse

import torch

from tinygan import latents, pictures
from tinygan._run import disk, notebook
from tinygan.cli.loaded import chosen


def run(a: argparse.Namespace) -> None:
    """Write the images, and say where."""
    generator, seeds, z, labels = chosen(a)
    images = notebook.bar(iterable=latents.images(generator, z, *labels), total=len(z))
    if a.grid:
        a.out.mkdir(parents=True, exist_ok=True)
        with disk.renamed(a.out / "grid.png") as file:
            names = latents.class_names(generator)
            rows = [names[number] for number in labels[0].tolist()] if labels else None
            pictures.grid(torch.stack([*images]), labels=rows).save(file, "PNG")
    else:
        pictures.save_images(images, (f"seed_{seed:04d}" for seed in seeds), a.out)
    print(f"{len(z)} images: {a.out / 'grid.png' if a.grid else a.out}")
