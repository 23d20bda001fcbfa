"""The sets whose modes are counted, ring, grid and Stacked MNIST: their nets, how they are judged.

Each has what ``modes.py`` asks for: ``name``, ``steps`` (the protocol's), ``samples``, ``weight``
(of zero-centred penalties), ``optimizer``, ``prior``, ``hooks``, ``nets``, ``batches``,
``coverage``, ``real`` and ``picture``.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import nn
from torch.nn import functional as F

import tinygan
from tinygan import Player, data, metrics, pictures, sampling, seeds

STEPS = {"ring": 10_000, "grid": 10_000}
RATES = {"generator": 2e-3, "discriminator": 3e-3}
WIDTH = 128
LATENT = 4
OCTAVES = 4


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

    samples = 2_500
    batch = 128
    weight = 0.02
    optimizer = partial(torch.optim.Adam, betas=(0.5, 0.99), fused=True)
    prior = staticmethod(sampling.normal)

    def __init__(self, name: str, means: torch.Tensor, *, sd: float, scale: float) -> None:
        self.name, self.means, self.sd, self.scale = name, means, sd, scale
        self.steps = STEPS[name]

    def nets(self, *, pack: int, batch_norm: bool) -> tuple[nn.Module, nn.Module]:
        """Return G and D: neither has batch norm here."""
        return PointGenerator(), PointDiscriminator(pack)

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


def _layers(inputs: int, outputs: int, activation: type[nn.Module]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for width in (inputs, WIDTH, WIDTH):
        layers += [nn.Linear(width, WIDTH), activation()]
    return [*layers, nn.Linear(WIDTH, outputs)]


class SteepTanh(nn.Module):
    """tanh(3 x), which saturates after smaller changes of the weights."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map each value to (-1, 1)."""
        return (3 * x).tanh()


class PointGenerator(nn.Module):
    """Three hidden layers of tanh: they saturate, so G can be flat on modes and steep between."""

    latent_dim = LATENT

    def __init__(self) -> None:
        super().__init__()
        self.main = nn.Sequential(*_layers(LATENT, 2, SteepTanh))
        with torch.no_grad():  # steep from the start, or bridges between modes take long to thin
            self.main[0].weight.mul_(2)
            self.main[0].bias.mul_(2)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Map z (N, Z) to points (N, 2, 1, 1)."""
        return self.main(z)[:, :, None, None]


class PointDiscriminator(nn.Module):
    """Three hidden layers on the points and their waves, which show it what is a hundredth wide."""

    def __init__(self, pack: int) -> None:
        super().__init__()
        self.pack = pack
        self.register_buffer("waves", math.pi * 2.0 ** torch.arange(OCTAVES))
        inputs = 2 * pack * (1 + 2 * OCTAVES)
        self.main = nn.Sequential(*_layers(inputs, 1, partial(nn.LeakyReLU, 0.2)))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map points (N, 2, 1, 1) to logits (N / pack,)."""
        points = tinygan.pack(images, self.pack).flatten(1)
        phases = (points[:, :, None] * self.waves).flatten(1)
        return self.main(torch.cat([points, phases.sin(), phases.cos()], 1)).flatten()


class Stacked:
    """Stacked MNIST by PacGAN's protocol: a mode is a number of three digits, one per channel.

    Args:
        file: an .npz with ``train_images`` (N, 28, 28) of uint8, ``train_labels``, and ``test_``
            likewise.
        classifier: where the classifier of digits is kept; it is trained if it is not there.
    """

    name = "stacked"
    samples = 26_000
    batch = 64
    steps = 100_000
    weight = 1.0
    optimizer = partial(torch.optim.Adam, lr=2e-4, betas=(0.5, 0.999), fused=True)
    prior = staticmethod(sampling.uniform)

    def __init__(self, file: Path, classifier: Path, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.digits = Digits(file)
        self.classifier = trained_classifier(self.digits, classifier, self.device)
        generator = seeds.generator(0, "triples")
        chosen = torch.randint(len(self.digits.images), (128_000, 3), generator=generator)
        self.pixels = self.digits.images[chosen]
        ones = self.digits.labels[chosen] * torch.tensor([100, 10, 1])
        self.shares = torch.bincount(ones.sum(1), minlength=1000).double() / len(chosen)

    def __len__(self) -> int:
        return len(self.pixels)

    def nets(self, *, pack: int, batch_norm: bool) -> tuple[nn.Module, nn.Module]:
        """Return DCGAN's nets of width 64; D without batch norm if it is to be penalised."""
        norm = nn.BatchNorm2d if batch_norm else None
        return (
            tinygan.DCGANGenerator(28).apply(tinygan.weights_init),
            tinygan.DCGANDiscriminator(28, norm=norm, pack=pack).apply(tinygan.weights_init),
        )

    def hooks(self, steps: int) -> list[tinygan.Hook]:
        """Return what a run needs: nothing, its rates stay."""
        return []

    def batches(self, seed: int, steps: int) -> data.Loader:
        """Return a loader of 2,000 batches per epoch, on the device."""
        return data.Loader(self, self.batch, seed=seed, drop_last=True, device=self.device)

    @torch.no_grad()
    def coverage(self, samples: torch.Tensor) -> metrics.ModeCoverage:
        """Return which numbers samples (N, 3, 28, 28) show, as the classifier reads them."""
        modes = [
            self.classifier(some.to(self.device).flatten(0, 1)[:, None]).argmax(1).view(-1, 3).cpu()
            for some in samples.split(1000)
        ]
        numbers = (torch.cat(modes) * torch.tensor([100, 10, 1])).sum(1)
        return metrics.mode_coverage(numbers, 1000, data=self.shares)

    def real(self, count: int) -> torch.Tensor:
        """Return data to draw beside samples."""
        return self.pixels[:count].float() / 127.5 - 1

    def picture(self, panels: dict[str, torch.Tensor]) -> Image.Image:
        """Draw 64 images of each side by side, with the panels' names above."""
        return pictures.titled(*((title, pictures.grid(x[:64])) for title, x in panels.items()))


class Digits:
    """All digits of an .npz: (N, 28, 28) of uint8 and their labels, those for tests last."""

    def __init__(self, file: Path) -> None:
        with np.load(file) as arrays:
            parts = [(arrays[f"{p}_images"], arrays[f"{p}_labels"]) for p in ("train", "test")]
        images, labels = (np.concatenate(both) for both in zip(*parts))
        self.images = torch.from_numpy(images)
        self.labels = torch.from_numpy(labels).long()
        self.train_size = len(parts[0][0])


LEAST_ACCURACY = 0.992


def trained_classifier(digits: Digits, path: Path, device: torch.device) -> nn.Module:
    """Return the classifier of digits at ``path``, trained first if it is not there.

    Raises:
        RuntimeError: if it reads less than 99.2 % of the digits for tests rightly.
    """
    net = _classifier().to(device).eval()
    if path.exists():
        net.load_state_dict(torch.load(path, map_location=device))
        return net
    _train(net, digits, device)
    accuracy = _accuracy(net, digits, device)
    print(f"the classifier reads {accuracy:.2%} of the digits for tests rightly")
    if accuracy < LEAST_ACCURACY:
        raise RuntimeError(f"the classifier must read {LEAST_ACCURACY:.1%}, got {accuracy:.2%}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(net.state_dict(), path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)
    return net


def _classifier() -> nn.Sequential:
    torch.manual_seed(0)

    def stage(inputs: int, outputs: int) -> list[nn.Module]:
        conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        return [conv, nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]

    layers = [*stage(1, 32), *stage(32, 64), *stage(64, 64)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.3), nn.Linear(64 * 9, 10))


def _train(net: nn.Module, digits: Digits, device: torch.device, epochs: int = 6) -> None:
    net.train()
    steps = epochs * (digits.train_size // 128)
    adam = torch.optim.Adam(net.parameters(), fused=True)
    rates = torch.optim.lr_scheduler.OneCycleLR(adam, 4e-3, total_steps=steps)
    for epoch in range(epochs):
        order = torch.randperm(digits.train_size, generator=seeds.generator(0, "digits", epoch))
        for chosen in order[: len(order) // 128 * 128].split(128):
            logits = net(_scaled(digits.images[chosen], device))
            F.cross_entropy(logits, digits.labels[chosen].to(device)).backward()
            adam.step()
            adam.zero_grad()
            rates.step()
    net.eval()


@torch.no_grad()
def _accuracy(net: nn.Module, digits: Digits, device: torch.device) -> float:
    images, labels = digits.images[digits.train_size :], digits.labels[digits.train_size :]
    read = torch.cat([net(_scaled(some, device)).argmax(1).cpu() for some in images.split(1000)])
    return (read == labels).double().mean().item()


def _scaled(images: torch.Tensor, device: torch.device) -> torch.Tensor:
    return images[:, None].to(device).float() / 127.5 - 1
