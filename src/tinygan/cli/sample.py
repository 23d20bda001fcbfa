"""``tinygan sample``: images by seed."""

from __future__ import annotations

import argparse
import re

import torch

from tinygan import latents, pictures
from tinygan._run import disk, notebook
from tinygan.cli.loaded import chosen, file_of, folder_of, generator_of


def run(a: argparse.Namespace) -> None:
    """Write the images, and say where."""
    generator = generator_of(a)
    a.seeds = a.seeds and [*dict.fromkeys(a.seeds)]  # each makes one file
    seeds, z, labels = chosen(a, generator)
    out = a.out = a.out or folder_of(a.run) / "images"
    images = notebook.bar(iterable=latents.images(generator, z, labels), total=len(z), delay=1)
    if a.grid:
        out = file_of(a, "grid.png")
        names = latents.class_names(generator)
        rows = None if labels is None else [names[number] for number in labels.tolist()]
        with disk.renamed(out) as file:
            pictures.grid(torch.stack([*images]), labels=rows).save(file, "PNG")
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        files = [f"seed_{seed:04d}" for seed in seeds]
        if labels is not None:
            names = [re.sub(r"[^\w-]+", "_", name) for name in latents.class_names(generator)]
            files = [f"{file}_{names[number]}" for file, number in zip(files, labels.tolist())]
        pictures.save_images(images, files, out)
    print(f"{len(z)} images: {out}")
