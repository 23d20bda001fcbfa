"""Which attributes the faces have that a generator draws, read by a small net."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import nn

from tinygan import seeds
from tinygan._run import checks
from tinygan.data import CartoonFaces
from tinygan.metrics.applying import features, image_batches
from tinygan.metrics.modes import ModeCoverage, mode_coverage

SIDE = 32
"""Height and width, in pixels, at which faces are read: larger ones add time, and little else."""

WIDTH = 16
BATCH = 64
EPOCHS = 8
RATE = 0.012
HELD_OUT = 1000


class AttributeReader:
    """Reads the attributes of drawn faces, ``data.CartoonFaces``, from their images.

    It is a convolutional net that learns from drawn faces when it is made, in some 20 seconds on
    one core for 32 or 64 pixels. Nothing of it depends on, or changes, the global random state.

    It reads some value out of any image, of a face or not: what it says of blurred or broken faces
    is a guess. How well it reads real drawn faces it measures itself, on faces that it has not
    learnt from: of colour, 98 % of hair's colours and over 99 % of all else. Of bald faces only the
    brows have the hair's colour, and in grey images some colours of hair and eyes are the same.

    Args:
        image_size: of the faces to read, height and width in pixels.
        channels: 3 for colour or 1 for grey.
        seed: chooses the faces that it learns from; another seed, another reader.
        faces: how many those are; it reads better for more, and takes longer to make.

    Attributes:
        accuracy: for each attribute the share, in [0, 1], of 1,000 other faces that are read right.

    Raises:
        ValueError: for arguments that ``data.CartoonFaces`` refuses, or fewer than 64 faces.

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
        self.image_size, self.channels = drawn.image_size, channels
        self._counts = list(drawn.ATTRIBUTES.values())
        generator = seeds.generator(seed, "reader")
        self._net = _net(channels, sum(self._counts), generator)
        self._learn(drawn, generator)
        right = (self.read(others.pixels) == others.attributes).double().mean(0)
        self.accuracy = dict(zip(drawn.ATTRIBUTES, right.tolist()))

    @torch.enable_grad()
    def _learn(self, drawn: CartoonFaces, generator: torch.Generator) -> None:
        images = torch.cat([_small(batch) for batch in image_batches(drawn.pixels)])
        steps = EPOCHS * (len(images) // BATCH)
        optimizer = torch.optim.AdamW(self._net.parameters(), lr=RATE, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps + 1)
        for _ in range(EPOCHS):
            order = torch.randperm(len(images), generator=generator)
            for indices in order[: len(images) // BATCH * BATCH].split(BATCH):
                logits = self._net(images[indices]).split(self._counts, 1)
                wanted = drawn.attributes[indices].T
                loss = sum(F.cross_entropy(*pair) for pair in zip(logits, wanted))
                optimizer.zero_grad()
                torch.as_tensor(loss).backward()
                optimizer.step()
                schedule.step()

    def read(self, images: torch.Tensor | Iterable[object]) -> torch.Tensor:
        """Return the attributes of each image, (N, 6) of int64, as ``CartoonFaces`` has them.

        Args:
            images: (N, C, H, W) in [-1, 1] or of uint8, or batches of such.

        Raises:
            ValueError: for images of another size or number of channels.
        """
        logits = features((self._fitting(batch) for batch in image_batches(images)), self._net)
        return torch.stack([part.argmax(1) for part in logits.split(self._counts, 1)], dim=1)

    def _fitting(self, images: torch.Tensor) -> torch.Tensor:
        expected = (self.channels, *self.image_size)
        if tuple(images.shape[1:]) != expected:
            raise ValueError(
                f"images must be (N, {', '.join(map(str, expected))}), got {tuple(images.shape)}; "
                "make the reader for their size and channels."
            )
        return _small(images)


def _net(channels: int, outputs: int, generator: torch.Generator) -> nn.Module:
    """Return a net whose first weights come from the generator given, not from the global one."""

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        convolution = nn.utils.skip_init(
            nn.Conv2d, inputs, outputs, 3, stride=2, padding=1, bias=False
        )
        nn.init.kaiming_normal_(convolution.weight, generator=generator)
        return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]

    last = nn.utils.skip_init(nn.Linear, 4 * WIDTH * (SIDE // 8) ** 2, outputs)
    nn.init.normal_(last.weight, std=0.01, generator=generator)
    nn.init.zeros_(last.bias)
    return nn.Sequential(
        *block(channels, WIDTH),
        *block(WIDTH, 2 * WIDTH),
        *block(2 * WIDTH, 4 * WIDTH),
        nn.Flatten(),
        last,
    )


def _small(images: torch.Tensor) -> torch.Tensor:
    """Return images at the size at which they are read: averages of areas, or pixels repeated."""
    return F.interpolate(images.float(), (SIDE, SIDE), mode="area")


def attribute_coverage(
    attributes: torch.Tensor,
    counts: Mapping[str, int] = CartoonFaces.ATTRIBUTES,
    *,
    together: int = 1,
) -> dict[str, ModeCoverage]:
    """Say for each attribute, or each combination of some, how much of it occurs, and how evenly.

    A value counts as found if one sample has it, and some of many samples are misread. So look at
    the divergence as well, which a few of them hardly change.

    Args:
        attributes: of N samples, (N, A) of int64: from ``AttributeReader.read``.
        counts: for each of the A columns its name and how many values it takes, each as likely.
        together: how many attributes are looked at together: 2 for all pairs, A for all at once.

    Returns:
        a ``ModeCoverage`` by the names of the attributes, joined by " x ".

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
    checks.count("together", together)
    if together > len(counts):
        raise ValueError(
            f"together must be at most the number of attributes, {len(counts)}, got {together}; "
            f"use {len(counts)} for all at once."
        )
    for name, column in zip(counts, attributes.T):
        if len(column) and not (column.min() >= 0 and column.max() < counts[name]):
            raise ValueError(
                f"{name} must be from 0 to {counts[name] - 1}, got {int(column.min())} to "
                f"{int(column.max())}; count from 0."
            )
    found = {}
    columns = dict(zip(counts, attributes.T))
    for names in itertools.combinations(counts, together):
        modes = torch.zeros_like(attributes[:, 0])
        for name in names:
            modes = modes * counts[name] + columns[name]
        found[" x ".join(names)] = mode_coverage(modes, math.prod(counts[n] for n in names))
    return found
