"""Features that need no download: a convolutional net with random weights."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from tinygan import seeds
from tinygan._run import checks

WIDTH, DEPTH = 64, 4


def random_net(channels: int = 3, *, seed: int = 0) -> nn.Module:
    """Return a net of random convolutions, the same on every machine, as features of images.

    It maps images (N, C, H, W) of 8 pixels or more to the means and deviations of its maps, (N,
    512). They tell blur, grain and few kinds of images, but nothing of faces: what they say of a
    generator is less than what ``inception()`` says. Features of random nets are compared by Naeem
    et al. (2020, https://arxiv.org/abs/2002.09797).

    Examples:
        >>> random_net()(torch.zeros(2, 3, 16, 16)).shape
        torch.Size([2, 512])
    """
    return RandomNet(checks.count("channels", channels), seed)


class RandomNet(nn.Module):
    """Convolutions, each with half the resolution of the one before."""

    def __init__(self, channels: int, seed: int) -> None:
        super().__init__()
        self.layers = nn.ParameterList()
        for layer in range(DEPTH):
            inputs = WIDTH if layer else channels
            draws = seeds.generator(seed, "random net", layer)
            weights = seeds.drawn(torch.randn, (WIDTH, inputs, 3, 3), draws)
            # He et al. (2015): activations neither grow nor fade.
            scaled = weights * math.sqrt(2 / (9 * inputs))
            self.layers.append(nn.Parameter(scaled, requires_grad=False))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images (N, C, H, W) to features (N, 512)."""
        found, maps = [], images
        for weight in self.layers:
            maps = F.conv2d(maps, weight, padding=1).relu()
            found += [maps.mean((2, 3)), maps.std((2, 3), correction=0)]
            maps = F.avg_pool2d(maps, 2, ceil_mode=True)
        return torch.cat(found, 1)
