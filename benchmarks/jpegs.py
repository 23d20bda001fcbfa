"""Folders of JPEGs of CelebA's size, drawn, and the tutorial's way to load them.

They have 178 x 218 pixels and 7 to 10 KB each.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torchvision import datasets, transforms

from tinygan import data

# Drawn faces are smoother than photographs. With this much noise, in grey levels, their JPEGs
# are as large.
NOISE = 1.5

WORKERS = 2
BATCH = 128


def draw(folder: Path, count: int) -> list[Path]:
    """Draw ``count`` distinct faces into ``folder``."""
    folder.mkdir(parents=True)
    files = []
    generator = torch.Generator().manual_seed(999)
    for start in range(0, count, 500):  # so that few are in memory as tensors
        faces = data.CartoonFaces(min(500, count - start), (218, 178), seed=start)
        for index in range(len(faces)):
            pixels = (faces[index][0].permute(1, 2, 0) + 1) * 127.5
            noise = torch.randn(218, 178, 1, generator=generator) * NOISE
            file = folder / f"{start + index:06d}.jpg"
            image = (pixels + noise).round().clamp(0, 255).to(torch.uint8)
            Image.fromarray(image.numpy()).save(file, quality=90)
            files.append(file)
    return files


def link(files: list[Path], root: Path, count: int) -> Path:
    """Give the files ``count`` names in ``root``, in one folder inside, as ImageFolder needs it."""
    folder = root / "faces"
    folder.mkdir(parents=True)
    for index in range(count):
        os.link(files[index % len(files)], folder / f"{index + 1:06d}.jpg")
    return root


def tutorial_loader(root: Path) -> Iterable[Any]:
    """Return the tutorial's way to load a folder, at 64 pixels."""
    dataset = datasets.ImageFolder(
        root=str(root),
        transform=transforms.Compose(
            [
                transforms.Resize(64),
                transforms.CenterCrop(64),
                transforms.ToTensor(),
                transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
            ]
        ),
    )
    return torch.utils.data.DataLoader(dataset, batch_size=BATCH, shuffle=True, num_workers=WORKERS)
