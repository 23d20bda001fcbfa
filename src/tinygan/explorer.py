"""A page to look at what a generator makes: in any browser, without Python or a network."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Iterator
from importlib import resources

import torch
from torch import nn

from tinygan import pictures, sampling
from tinygan._run import checks, disk
from tinygan.latents import by_seed, slerp
from tinygan.nets.r3gan import R3GANGenerator

SIDE = 17  # images along each side of a map; of images over 64 pixels 9, so that files stay small
POSITIONS, REACH = 9, 4  # of sliders, which go from -4 to 4; drawn z differ by about 1 each way


def save_explorer(generator: nn.Module, path: str | os.PathLike[str], *, seed: int = 0) -> None:
    """Write one HTML file in which to look at what a generator makes, without Python or a network.

    It has maps between four images and sliders that move one along ``directions``, for each of up
    to ten classes. ``seed`` is the first image's, the next ones follow.

    Examples:
        >>> import tinygan
        >>> save_explorer(tinygan.DCGANGenerator(16, base_channels=4), "explore.html")
    """
    file = checks.path("path", path)
    classes = getattr(generator, "num_classes", None)
    kinds = [None] if classes is None else [*range(classes)][:10]
    maps, faces = (3, 6) if classes is None else (1, 3)  # of each class
    numbers = range(seed, seed + max(4 * maps, faces))
    z = by_seed(generator, numbers)
    height, width = pictures.shown(sampling.generate(generator, z[:1])).shape[2:]
    side = SIDE if height * width <= 64 * 64 else 9
    ways, known = directions(generator)
    moves = (
        torch.linspace(-REACH, REACH, POSITIONS, dtype=torch.float32, device="cpu")[:, None]
        * ways[:, None]
    )

    def sheets(points: torch.Tensor, columns: int) -> Iterator[str]:
        for kind in kinds:  # a picture of all points, as a data: URL
            images, memory = sampling.generate(generator, points, labels=kind), io.BytesIO()
            picture = pictures.grid(pictures.shown(images), columns=columns, padding=0)
            picture.save(memory, "WEBP", quality=90)
            yield "data:image/webp;base64," + base64.b64encode(memory.getvalue()).decode()

    content = {
        "side": side, "positions": POSITIONS, "reach": REACH, "seed": numbers[0], "ways": len(ways),
        "known": known, "kinds": kinds, "size": [width, height],
        "facts": getattr(generator, "facts", {}),
        "maps": [[*sheets(_between(z[4 * i : 4 * i + 4], side), side)] for i in range(maps)],
        "sliders": [[*sheets((z[i] + moves).flatten(0, 1), POSITIONS)] for i in range(faces)],
    }  # fmt: skip
    page = resources.files("tinygan").joinpath("explorer.html").read_text("utf-8")
    data = json.dumps(content, default=str).replace("<", "\\u003c")  # so no name ends the script
    with disk.renamed(file) as opened:
        disk.write(opened, page.replace("$data", data).encode())


def directions(generator: nn.Module) -> tuple[torch.Tensor, bool]:
    """Return six orthonormal directions of z at most, and whether the net's weights tell them.

    They are the main singular vectors (Shen and Zhou 2021, https://arxiv.org/abs/2007.06600) of the
    first linear or convolutional layer that takes z, or z and then classes; without one, random.
    """
    length, classes = by_seed(generator, [0]).shape[1], getattr(generator, "num_classes", None) or 0
    found, known = torch.linalg.qr(by_seed(generator, range(length)))[0], False
    # R3GAN's takes more after z, and has layers of as many inputs that do not take it.
    is_r3gan = isinstance(generator, R3GANGenerator)
    for part in [generator.scale] if is_r3gan else generator.modules():
        if isinstance(part, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            axis = 0 if isinstance(part, nn.ConvTranspose2d) else 1
            if is_r3gan or part.weight.shape[axis] in (length, length + classes):
                weights = part.weight.detach().float().cpu().movedim(axis, -1).flatten(0, -2)
                found, known = torch.linalg.svd(weights[:, :length], full_matrices=False)[2], True
                break
    largest = found.gather(1, found.abs().argmax(1, keepdim=True))
    return (found * largest.sign())[:6], known  # an SVD's signs are arbitrary


def _between(corners: torch.Tensor, side: int) -> torch.Tensor:
    """Return z on a square with four corners, row by row: (side * side, Z)."""
    t = torch.linspace(0, 1, side, dtype=torch.float32, device="cpu")
    a, b, c, d = corners[:, None].expand(-1, side, -1)
    left, right = (way.repeat_interleave(side, 0) for way in (slerp(a, c, t), slerp(b, d, t)))
    return slerp(left, right, t.repeat(side))
