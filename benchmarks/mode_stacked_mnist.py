"""Stacked MNIST: images of three digits, a mode each, and the classifier that reads them."""

from __future__ import annotations

import zlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

import tinygan
from tinygan import data, metrics, pictures, sampling, seeds


class Stacked:
    """Stacked MNIST by PacGAN's protocol: a mode is a number of three digits, one per channel.

    Args:
        file: an .npz with ``train_images`` (N, 28, 28) of uint8, ``train_labels``, and ``test_``
            likewise.
        classifier: where the classifier of digits is kept; it is trained if it is not there.
    """

    name = "stacked"
    samples = 26_000
    shown = 64
    batch = 64
    steps = 100_000
    weight = 1.0
    optimizer = staticmethod(partial(torch.optim.Adam, lr=2e-4, betas=(0.5, 0.999), fused=True))
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

    def made_of(self) -> dict[str, str]:
        """Return in words what results depend on besides the trainer and the nets."""
        digits = zlib.crc32(self.digits.images.numpy().tobytes())
        return {"data": f"{len(self)} of {digits}, {self.batch}, {self.samples}"}

    def nets(
        self, *, bounded: bool = False, sharp: bool = False, **of_d: Any
    ) -> tuple[nn.Module, nn.Module]:
        """Return DCGAN's nets of width 64; ``sharp`` is for points alone."""
        generator = tinygan.DCGANGenerator(28).apply(tinygan.weights_init)
        discriminator = tinygan.DCGANDiscriminator(28, **of_d).apply(tinygan.weights_init)
        return generator, tinygan.spectral_norm(discriminator) if bounded else discriminator

    def hooks(self, steps: int) -> list[tinygan.Hook]:
        """Return what a run needs: nothing, its rates stay."""
        return []

    def batches(self, seed: int, steps: int) -> data.Loader:
        """Return a loader of 2,000 batches per epoch, on the device."""
        return data.Loader(self, self.batch, seed=seed, drop_last=True, device=self.device)

    def coverage(self, samples: torch.Tensor) -> metrics.ModeCoverage:
        """Return which numbers samples (N, 3, 28, 28) show, as the classifier reads them."""
        return metrics.mode_coverage(numbers(samples, self.classifier), 1000, data=self.shares)

    def real(self, count: int) -> torch.Tensor:
        """Return data to draw beside samples."""
        return self.pixels[:count].float() / 127.5 - 1

    def picture(self, panels: dict[str, torch.Tensor]) -> Image.Image:
        """Draw images side by side, with the panels' names above."""
        return pictures.titled(*((title, pictures.grid(x)) for title, x in panels.items()))


def numbers(images: torch.Tensor, classifier: nn.Module) -> torch.Tensor:
    """Return the number, (N,) of int64, that the digits in an image's three channels make."""
    channels = metrics.features(images.flatten(0, 1)[:, None], classifier).argmax(1)
    return (channels.view(-1, 3) * torch.tensor([100, 10, 1])).sum(1)


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
    trained = path.exists()
    if trained:
        net.load_state_dict(torch.load(path, map_location=device))
    else:
        _train(net, digits, device)
    accuracy = _accuracy(net, digits, device)
    print(f"the classifier reads {accuracy:.2%} of the digits for tests rightly", flush=True)
    if accuracy < LEAST_ACCURACY:
        raise RuntimeError(
            f"the classifier must read {LEAST_ACCURACY:.1%} of the digits for tests rightly, got "
            f"{accuracy:.2%}; give an .npz with all of MNIST, and remove {path} if it is there."
        )
    if trained:
        return net
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
