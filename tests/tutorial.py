"""The DCGAN tutorial, written out plainly: the slow twin of the nets, the step and the loop.

It keeps what the tutorial does and the library does not: a sigmoid in D, BCELoss on probabilities,
gradients for D in G's phase, a wait for the device at every statistic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn


def make_generator(nz: int = 100, ngf: int = 64, nc: int = 3) -> nn.Sequential:
    """Return the tutorial's 64x64 generator, as the ``main`` of its class."""
    widths = [nz, ngf * 8, ngf * 4, ngf * 2, ngf]
    layers: list[nn.Module] = []
    for i in range(4):
        stride, padding = (1, 0) if i == 0 else (2, 1)
        layers += [
            nn.ConvTranspose2d(widths[i], widths[i + 1], 4, stride, padding, bias=False),
            nn.BatchNorm2d(widths[i + 1]),
            nn.ReLU(True),
        ]
    return nn.Sequential(*layers, nn.ConvTranspose2d(ngf, nc, 4, 2, 1, bias=False), nn.Tanh())


def make_discriminator(ndf: int = 64, nc: int = 3) -> nn.Sequential:
    """Return the tutorial's 64x64 discriminator, as the ``main`` of its class."""
    layers: list[nn.Module] = [nn.Conv2d(nc, ndf, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, True)]
    for i in range(3):
        layers += [
            nn.Conv2d(ndf * 2**i, ndf * 2 ** (i + 1), 4, 2, 1, bias=False),
            nn.BatchNorm2d(ndf * 2 ** (i + 1)),
            nn.LeakyReLU(0.2, True),
        ]
    return nn.Sequential(*layers, nn.Conv2d(ndf * 8, 1, 4, 1, 0, bias=False), nn.Sigmoid())


def weights_init(module: nn.Module) -> None:
    """Draw a layer's weights by the name of its class, as the tutorial does."""
    name = type(module).__name__
    if "Conv" in name:
        nn.init.normal_(module.weight.data, 0.0, 0.02)
    elif "BatchNorm" in name:
        nn.init.normal_(module.weight.data, 1.0, 0.02)
        nn.init.constant_(module.bias.data, 0)


@dataclass
class Statistics:
    """What the tutorial prints and plots, one value per step."""

    loss_d: list[float] = field(default_factory=list)
    loss_g: list[float] = field(default_factory=list)
    d_real: list[float] = field(default_factory=list)
    d_fake: list[float] = field(default_factory=list)
    d_fake_after: list[float] = field(default_factory=list)


class Loop:
    """The tutorial's training loop, with its optimizers.

    Args:
        generator: the tutorial's generator.
        discriminator: the tutorial's discriminator.
    """

    def __init__(self, generator: nn.Module, discriminator: nn.Module) -> None:
        self.generator = generator
        self.discriminator = discriminator
        adam = partial(torch.optim.Adam, lr=0.0002, betas=(0.5, 0.999))
        self.optimizer_d = adam(discriminator.parameters())
        self.optimizer_g = adam(generator.parameters())
        self.device = next(generator.parameters()).device

    def train(
        self,
        batches: Iterable[torch.Tensor],
        draw_noise: Callable[[int, int], torch.Tensor],
    ) -> Statistics:
        """Train on ``batches``; ``draw_noise(step, count)`` gives z (count, nz)."""
        criterion = nn.BCELoss()
        s = Statistics()
        for step, data in enumerate(batches):
            # (1) Update D: maximize log(D(x)) + log(1 - D(G(z))), on real and fake batches apart.
            self.discriminator.zero_grad()
            real = data.to(self.device)
            label = torch.full((len(real),), 1.0, dtype=real.dtype, device=self.device)
            output = self.discriminator(real).view(-1)
            loss_real = criterion(output, label)
            loss_real.backward()
            s.d_real.append(output.mean().item())
            fake = self.generator(draw_noise(step, len(real))[:, :, None, None])
            label.fill_(0.0)
            output = self.discriminator(fake.detach()).view(-1)
            loss_fake = criterion(output, label)
            loss_fake.backward()
            s.d_fake.append(output.mean().item())
            loss_d = loss_real + loss_fake
            self.optimizer_d.step()

            # (2) Update G: maximize log(D(G(z))), by the updated D.
            self.generator.zero_grad()
            label.fill_(1.0)
            output = self.discriminator(fake).view(-1)
            loss_g = criterion(output, label)
            loss_g.backward()
            s.d_fake_after.append(output.mean().item())
            self.optimizer_g.step()

            s.loss_d.append(loss_d.item())
            s.loss_g.append(loss_g.item())
        return s


def log_line(epoch: int, epochs: int, index: int, batches: int, values: tuple[float, ...]) -> str:
    """Return the line that the tutorial prints."""
    return (
        "[%d/%d][%d/%d]\tLoss_D: %.4f\tLoss_G: %.4f\tD(x): %.4f\tD(G(z)): %.4f / %.4f"  # noqa: UP031
        % (epoch, epochs, index, batches, *values)
    )
