"""The ring and the grid: points whose modes are counted, and nets for them.

A set, these or Stacked MNIST, has what ``modes.py`` asks for: ``name``, ``steps`` (the protocol's),
``samples``, ``shown`` (how many of them are drawn), ``weight`` (of zero-centred penalties),
``optimizer``, ``prior``, ``made_of``, ``hooks``, ``nets``, ``batches``, ``coverage``, ``real`` and
``picture``.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

import tinygan
from tinygan import Player, metrics, sampling, seeds

RATES = {"generator": 2e-3, "discriminator": 3e-3}
WIDTH = 128


def ring() -> Mixture:
    """Return eight modes on the unit circle."""
    angles = torch.arange(8) * (2 * math.pi / 8)
    return Mixture("ring", torch.stack([angles.cos(), angles.sin()], 1), sd=0.01, scale=1.2)


def grid() -> Mixture:
    """Return 25 modes, two apart."""
    line = torch.arange(-4.0, 5.0, 2.0)
    return Mixture("grid", torch.cartesian_prod(line, line), sd=0.05, scale=4.5)


class Decay(tinygan.Hook):
    """Lower both players' rates to 0 along half a cosine: a function of the step alone."""

    def __init__(self, rates: dict[str, float], steps: int) -> None:
        self.rates, self.steps = rates, steps

    def on_gradients(self, trainer: tinygan.GANTrainer, player: Player) -> None:
        """Set the rate of the update that follows."""
        rate = self.rates[player.name] * (1 + math.cos(math.pi * trainer.step / self.steps)) / 2
        for group in player.optimizer.param_groups:
            group["lr"] = rate


class Mixture:
    """Equal 2-D Gaussians. A point is an image of two channels and one pixel, in [-1, 1].

    Args:
        means: of the modes (K, 2).
        sd: of each mode.
        scale: what points are divided by.
    """

    steps = 20_000
    samples = shown = 2_500
    batch = 128
    weight = 0.02
    optimizer = staticmethod(partial(torch.optim.Adam, betas=(0.5, 0.99), fused=True))
    prior = staticmethod(sampling.normal)

    def __init__(self, name: str, means: torch.Tensor, *, sd: float, scale: float) -> None:
        self.name, self.means, self.sd, self.scale = name, means, sd, scale

    def made_of(self) -> dict[str, str]:
        """Return in words what results depend on besides the trainer and the nets."""
        data = f"{self.means.tolist()}, {self.sd}, {self.scale}, {self.batch}, {self.samples}"
        return {"rates": str(RATES), "data": data}

    def nets(
        self, *, norm: None = None, join: int = 1, bounded: bool = False, sharp: bool = False
    ) -> tuple[nn.Module, nn.Module]:
        """Return G and D: neither has batch norm here. ``sharp`` nets see and make finer points."""
        hidden, octaves = (4, 6) if sharp else (3, 4)
        generator = PointGenerator(latent_dim=2 if sharp else 4, hidden=hidden)
        discriminator = PointDiscriminator(join, octaves=octaves)
        return generator, tinygan.spectral_norm(discriminator) if bounded else discriminator

    def hooks(self, steps: int) -> list[tinygan.Hook]:
        """Return what a run of so many steps needs: rates that end at 0."""
        return [Decay(RATES, steps)]

    def batches(self, seed: int, steps: int) -> Sequence[torch.Tensor]:
        """Return the batches of a whole run."""
        return Points(self, seed, steps)

    def draw(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Return points as images (count, 2, 1, 1)."""
        modes = torch.randint(len(self.means), (count,), generator=generator)
        noise = torch.randn(count, 2, generator=generator)
        points = (self.means[modes] + self.sd * noise) / self.scale
        return points.clamp(-1, 1)[:, :, None, None]

    def coverage(self, samples: torch.Tensor) -> metrics.ModeCoverage:
        """Return which modes samples (N, 2, 1, 1) lie near, and how many of them do."""
        points = samples.flatten(1).cpu() * self.scale
        modes, near = metrics.nearest_mode(points, self.means, self.sd)
        return metrics.mode_coverage(modes, len(self.means), high_quality=near)

    def real(self, count: int) -> torch.Tensor:
        """Return data to draw beside samples."""
        return self.draw(count, seeds.generator(0, "picture"))

    def picture(self, panels: dict[str, torch.Tensor]) -> Image.Image:
        """Draw points side by side, with the panels' names above."""
        columns = min(4, len(panels))
        rows = -(-len(panels) // columns)
        figure = Figure(figsize=(2.4 * columns, 2.6 * rows), layout="constrained")
        for place, (title, images) in enumerate(panels.items(), start=1):
            points = images.flatten(1).cpu() * self.scale
            axes = figure.add_subplot(rows, columns, place, aspect="equal", title=title)
            axes.scatter(*points.T.numpy(), s=1, linewidths=0)
            axes.set(xlim=(-self.scale, self.scale), ylim=(-self.scale, self.scale))
            axes.set(xticks=[], yticks=[])
        file = io.BytesIO()
        figure.savefig(file, dpi=110)
        return Image.open(file)


class Points(Sequence[torch.Tensor]):
    """Fresh points for each step of a run: a pure function of the seed and the step."""

    def __init__(self, mixture: Mixture, seed: int, steps: int) -> None:
        self.mixture, self.seed, self.steps = mixture, seed, steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> torch.Tensor:
        if not 0 <= step < self.steps:
            raise IndexError(step)
        generator = seeds.generator(self.seed, "points", step)
        return self.mixture.draw(self.mixture.batch, generator)


def _layers(
    inputs: int, outputs: int, *, hidden: int, activation: Callable[[], nn.Module]
) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for width in [inputs, *[WIDTH] * (hidden - 1)]:
        layers += [nn.Linear(width, WIDTH), activation()]
    return [*layers, nn.Linear(WIDTH, outputs)]


class SteepTanh(nn.Module):
    """tanh(3 x), which saturates after smaller changes of the weights."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map each value to (-1, 1)."""
        return (3 * x).tanh()


class PointGenerator(nn.Module):
    """Hidden layers of tanh: they saturate, so G can be flat on modes and steep between."""

    def __init__(self, latent_dim: int, hidden: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.main = nn.Sequential(*_layers(latent_dim, 2, hidden=hidden, activation=SteepTanh))
        with torch.no_grad():  # steep from the start, or bridges between modes take long to thin
            self.main[0].weight.mul_(2)
            self.main[0].bias.mul_(2)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Map z (N, Z) to points (N, 2, 1, 1)."""
        return self.main(z)[:, :, None, None]


class PointDiscriminator(nn.Module):
    """Three hidden layers on the points and their waves, which show it what is a hundredth wide."""

    def __init__(self, join: int, octaves: int) -> None:
        super().__init__()
        self.join = join
        self.register_buffer("waves", math.pi * 2.0 ** torch.arange(octaves))
        inputs = 2 * join * (1 + 2 * octaves)
        activation = partial(nn.LeakyReLU, 0.2)
        self.main = nn.Sequential(*_layers(inputs, 1, hidden=3, activation=activation))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map points (N, 2, 1, 1) to logits (N / join,)."""
        points = tinygan.join_images(images, self.join).flatten(1)
        phases = (points[:, :, None] * self.waves).flatten(1)
        return self.main(torch.cat([points, phases.sin(), phases.cos()], 1)).flatten()
