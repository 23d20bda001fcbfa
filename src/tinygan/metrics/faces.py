"""Which attributes a generator's faces have, read by a small net."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tinygan import seeds
from tinygan._run import checks
from tinygan.data import CartoonFaces
from tinygan.metrics.fidelity import applied, image_batches
from tinygan.metrics.modes import ModeCoverage, check_range, mode_coverage

SIDE = 32  # pixels at which faces are read; more takes longer and gains little
WIDTH = 16
BATCH = 64
EPOCHS = 8
RATE = 0.012
HELD_OUT = 1000


class AttributeReader:
    """Reads the attributes of drawn faces, ``data.CartoonFaces``, from their images.

    A convolutional net that learns from drawn faces when it is made, in about 20 seconds on one
    core. It reads some value out of any image: its answers for blurred or broken faces are guesses.

    Args:
        image_size: height and width of the faces to read, in pixels.
        channels: 3 for colour or 1 for grey.
        seed: chooses the faces that it learns from.
        faces: how many it learns from, at least 64; more make it better, and slower to make.

    Attributes:
        accuracy: for each attribute, the share in [0, 1] of 1,000 other faces that it reads right.

    Examples:
        >>> reader = AttributeReader(8, faces=64)
        >>> reader.read(CartoonFaces(5, image_size=8).pixels).shape
        torch.Size([5, 6])
    """

    def __init__(
        self,
        image_size: int | tuple[int, int] = 64,
        channels: int = 3,
        *,
        seed: int = 0,
        faces: int = 10_000,
    ) -> None:
        checks.count("faces", faces, at_least=BATCH)
        # Other faces than those of any seed that a user is likely to train on.
        drawn = CartoonFaces(faces, image_size, channels, seed=seeds.mix(seed, "reader learns"))
        others = CartoonFaces(HELD_OUT, image_size, channels, seed=seeds.mix(seed, "reader tries"))
        self._counts = list(drawn.ATTRIBUTES.values())
        generator = seeds.generator(seed, "reader")
        with torch.device("cpu"):  # where its optimizer counts its steps, too
            self._net = _net(channels, sum(self._counts), generator)
            self._learn(drawn, generator)
        right = (self.read(others.pixels) == others.attributes).double().mean(0)
        self.accuracy = dict(zip(drawn.ATTRIBUTES, right.tolist()))

    @torch.enable_grad()
    def _learn(self, drawn: CartoonFaces, generator: torch.Generator) -> None:
        images = torch.cat([_small(batch) for batch in image_batches(drawn.pixels)])
        batches = len(images) // BATCH
        optimizer = torch.optim.AdamW(self._net.parameters(), weight_decay=0.05)
        steps = EPOCHS * batches + 1
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
        for _ in range(EPOCHS):
            order = torch.randperm(len(images), generator=generator, device="cpu")
            for indices in order[: batches * BATCH].split(BATCH):
                logits = self._net(images[indices]).split(self._counts, 1)
                wanted = drawn.attributes[indices].T
                loss: Any = sum(F.cross_entropy(*pair) for pair in zip(logits, wanted))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()

    def read(self, images: torch.Tensor | Iterable[object]) -> torch.Tensor:
        """Return each image's attributes, (N, 6) of int64, as in ``CartoonFaces.attributes``.

        Images are (N, C, H, W), in [-1, 1] or uint8, or batches of these; errors are as for
        ``metrics.features``.
        """
        logits = applied(map(_small, image_batches(images)), self._net)
        return torch.stack([part.argmax(1) for part in logits.split(self._counts, 1)], dim=1)


def _net(channels: int, outputs: int, generator: torch.Generator) -> nn.Module:
    """Return a net whose first weights come from the given generator, not the global one."""
    last = nn.utils.skip_init(nn.Linear, 4 * WIDTH * (SIDE // 8) ** 2, outputs, dtype=torch.float32)
    nn.init.normal_(last.weight, std=0.01, generator=generator)
    nn.init.zeros_(last.bias)
    parts: list[nn.Module] = []
    for inputs, width in itertools.pairwise((channels, WIDTH, 2 * WIDTH, 4 * WIDTH)):
        shape: dict[str, Any] = {"kernel_size": 3, "stride": 2, "padding": 1, "bias": False}
        convolution = nn.utils.skip_init(nn.Conv2d, inputs, width, **shape, dtype=torch.float32)
        nn.init.kaiming_normal_(convolution.weight, generator=generator)
        parts += [convolution, nn.BatchNorm2d(width, dtype=torch.float32), nn.ReLU()]
    return nn.Sequential(*parts, nn.Flatten(), last)


def _small(images: torch.Tensor) -> torch.Tensor:
    return F.interpolate(images.float(), (SIDE, SIDE), mode="area")


def attribute_coverage(
    attributes: torch.Tensor,
    counts: Mapping[str, int] = CartoonFaces.ATTRIBUTES,
    *,
    together: int = 1,
) -> dict[str, ModeCoverage]:
    """Return the ``ModeCoverage`` of each attribute, or of each combination of several.

    One misread sample makes a value count as found, so look at the divergence too.

    Args:
        attributes: (N, A) of int64, from ``AttributeReader.read``.
        counts: the name of each column and its number of values, all equally likely.
        together: how many attributes to combine: 2 for all pairs, A for all at once. The names in
            the result are joined by " x ".

    Raises:
        ValueError: for other shapes, or values out of range.

    Examples:
        >>> coverage = attribute_coverage(CartoonFaces(200, image_size=8).attributes, together=2)
        >>> len(coverage), coverage["mouth x glasses"].found
        (15, 9)
    """
    if attributes.dim() != 2 or attributes.shape[1] != len(counts):
        raise ValueError(
            f"attributes must be (N, {len(counts)}), got {tuple(attributes.shape)}; give one "
            f"column for each of {', '.join(counts)}."
        )
    checks.number("together", together, f"[1, {len(counts)}]")
    columns = dict(zip(counts, attributes.T))
    for name, column in columns.items():
        check_range(name, column, counts[name])
    found = {}
    for names in itertools.combinations(counts, together):
        modes = torch.zeros_like(attributes[:, 0])
        for name in names:
            modes = modes * counts[name] + columns[name]
        found[" x ".join(names)] = mode_coverage(modes, math.prod(counts[n] for n in names))
    return found
