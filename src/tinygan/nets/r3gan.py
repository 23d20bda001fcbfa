"""The R3GAN nets of Huang et al. (2024, https://arxiv.org/abs/2501.05441): ResNets without norms.

With the defaults they are the paper's for FFHQ at 64x64, of 22 million weights each. Each stage has
residual blocks at one size; between stages maps double or halve by a fixed filter, and D is G
backwards. Nothing is normalised. Instead first weights keep the variance of what a layer is given,
and each block begins as the identity (fix-up, Zhang et al. 2019). The constructors draw them, from
PyTorch's global generator: do not apply ``weights_init``, which would undo it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from tinygan._run import checks
from tinygan.nets.dcgan import Size
from tinygan.nets.gradients import SLOPE, convolved, leaky_relu
from tinygan.nets.inputs import check_images, checked_noise
from tinygan.nets.saved import Generator

EMBEDDED = 64  # numbers that stand for a class beside z


class R3GANGenerator(Generator):
    """Turn noise into images: z scales the channels of a small learned map, a ResNet enlarges it.

    As in the paper no tanh bounds the images, and D sees them so. In evaluation mode, as samples,
    they are cut to [-1, 1], beyond which their gradient is 0.

    Args:
        image_size: height and width in pixels, or one int for a square. Halved once for each width
            but the first, it must come to whole pixels, 2 to 16 on the shorter side.
        channels: of the image; 3 for colour, 1 for grey.
        latent_dim: Z, the length of the noise vector.
        widths: channels of each stage, from the smallest maps to the image. One int is the width of
            maps of up to 32 pixels, beyond which it halves with each stage, as in the paper; the
            smallest maps then have 4 to 7 pixels on the shorter side, if the size can be halved so.
        blocks: residual blocks in each stage.
        group_width: channels in each group of the blocks' 3x3 convolution; where they do not divide
            them, the next larger number that does. 32 for the paper's ImageNet.
        num_classes: K. If given, ``forward`` also takes labels; 64 learned numbers for each class
            are appended to z.

    Examples:
        >>> R3GANGenerator(32, widths=(32, 32, 32, 16))(torch.randn(2, 64)).shape
        torch.Size([2, 3, 32, 32])
    """

    def __init__(
        self,
        image_size: int | Size = 64,
        channels: int = 3,
        latent_dim: int = 64,
        *,
        widths: int | Sequence[int] = 768,
        blocks: int = 2,
        group_width: int = 16,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        self.image_size, self.widths, smallest = _stages(image_size, widths)
        self.channels = checks.count("channels", channels)
        self.latent_dim = checks.count("latent_dim", latent_dim)
        self.blocks = checks.count("blocks", blocks)
        self.group_width = checks.count("group_width", group_width)
        self.num_classes = num_classes
        inputs = self.latent_dim
        if num_classes is not None:
            self.num_classes = checks.count("num_classes", num_classes)
            self.embedding = _linear(self.num_classes, EMBEDDED)
            inputs += EMBEDDED
        self.scale = _linear(inputs, self.widths[0])
        basis = self.scale.weight.new_empty(*smallest, self.widths[0])
        self.basis = nn.Parameter(nn.init.normal_(basis))
        layers: list[nn.Module] = []
        for before, width in zip((self.widths[0], *self.widths), self.widths):
            if layers:
                layers += [_linear(before, width)] * (before != width) + [_Resample(up=True)]
            layers += [_Block(width, group_width, blocks * len(self.widths)) for _ in range(blocks)]
        self.main = nn.Sequential(*layers, _linear(self.widths[-1], channels))

    def forward(self, z: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """Map noise (N, Z) or (N, Z, 1, 1), and labels (N,) or shares (N, K), to (N, C, H, W)."""
        z, shares = checked_noise(self, z, labels)
        if shares is not None:
            z = torch.cat([z, self.embedding(shares)], dim=1)
        images: torch.Tensor = self.main(self.basis * self.scale(z)[:, None, None, :])
        images = images.permute(0, 3, 1, 2)
        return images if self.training else images.clamp(-1, 1)


class R3GANDiscriminator(nn.Module):
    """Turn images into logits by a ResNet; a high logit means "real".

    Args:
        num_classes: K. If given, ``forward`` also takes labels, and judges them by a projection
            (Miyato and Koyama 2018, equation 3).
        image_size: this and all others as in ``R3GANGenerator``: widths, too, begin with the
            smallest maps.

    Examples:
        >>> R3GANDiscriminator(32, widths=(32, 32, 32, 16))(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2])
    """

    def __init__(
        self,
        image_size: int | Size = 64,
        channels: int = 3,
        *,
        widths: int | Sequence[int] = 768,
        blocks: int = 2,
        group_width: int = 16,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        self.image_size, self.widths, smallest = _stages(image_size, widths)
        self.channels = checks.count("channels", channels)
        self.blocks = checks.count("blocks", blocks)
        self.group_width = checks.count("group_width", group_width)
        self.num_classes = num_classes
        layers: list[nn.Module] = [_linear(channels, self.widths[-1])]
        inwards = self.widths[::-1]
        for width, after in zip(inwards, (*inwards[1:], None)):
            layers += [_Block(width, group_width, blocks * len(self.widths)) for _ in range(blocks)]
            if after is not None:
                layers += [_Resample(up=False)] + [_linear(width, after)] * (width != after)
        top = self.widths[0]
        self.main = nn.Sequential(*layers)
        self.last = _linear(top, 1 if num_classes is None else top)
        basis = self.last.weight.new_empty(*smallest, top)
        self.basis = nn.Parameter(nn.init.normal_(basis, 0, math.prod(smallest) ** -0.5))
        if num_classes is not None:
            self.num_classes = checks.count("num_classes", num_classes)
            self.embedding = nn.Embedding(self.num_classes, top)
            # The linear layer of one-hot labels that the paper has, with a gain of 1 / sqrt(C).
            nn.init.normal_(self.embedding.weight, 0, (top * self.num_classes) ** -0.5)

    def forward(self, images: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """Map images (N, C, H, W), and labels (N,) of int64, to logits (N,)."""
        check_images(self, images, labels)
        maps = self.main(images.permute(0, 2, 3, 1))
        features: torch.Tensor = self.last((maps * self.basis).sum((1, 2)))
        if labels is not None:
            features = features * self.embedding(labels)
        logits: torch.Tensor = features.sum(1)
        return logits


class _Block(nn.Module):
    """An inverted bottleneck: to twice the width, 3x3 in groups, and back, added to its input."""

    def __init__(self, width: int, group_width: int, depth: int) -> None:
        super().__init__()
        inner = 2 * width
        groups = (n for n in range(inner // group_width, 0, -1) if inner % n == 0)
        # Fix-up: a step then changes a deep net's output by no more than a shallow one's.
        gain = math.sqrt(2 / (1 + SLOPE**2)) * depth**-0.25
        self.widen = _drawn(nn.Linear(width, inner), gain)
        self.mix = _drawn(_Conv3x3(inner, inner, 3, padding=1, groups=next(groups, 1)), gain)
        self.narrow = _linear(inner, width, gain=0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = leaky_relu(self.mix(leaky_relu(self.widen(x))))
        return torch.add(x, self.narrow(h))


class _Conv3x3(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return convolved(x, self.weight, self.bias, groups=self.groups)


class _Resample(nn.Module):
    """Double or halve both sides bilinearly: the filter [1, 3, 3, 1], with zeros beyond borders."""

    def __init__(self, *, up: bool) -> None:
        super().__init__()
        self.up = up

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # Computed on the device: no weight, and no copy, which a CUDA graph could not record.
        most, channels = 1.0 if self.up else 0.5, x.shape[3]
        places = torch.arange(-0.75 * most, most, most / 2, dtype=x.dtype, device=x.device)
        taps = most - places.type_as(x).abs()  # type_as is for traced nets, as for labels
        kernel = torch.outer(taps, taps).expand(channels, 1, 4, 4)
        return convolved(x, kernel, stride=2, groups=channels, transposed=self.up)


def _linear(inputs: int, outputs: int, gain: float = 1.0) -> nn.Linear:
    """Return a linear layer without a bias, with weights from N(0, gain^2 / inputs)."""
    layer: nn.Linear = _drawn(nn.Linear(inputs, outputs, bias=False), gain)
    return layer


def _drawn(layer: Any, gain: float = 1.0) -> Any:
    """Return a layer with weights from N(0, gain^2 / fan-in), and a bias of 0."""
    nn.init.normal_(layer.weight, 0, gain / math.sqrt(layer.weight[0].numel()))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _stages(image_size: int | Size, widths: Any) -> tuple[Size, tuple[int, ...], Size]:
    """Return the size and the widths of all stages, and the size of the smallest maps."""
    height, width = size = checks.size("image_size", image_size)
    shorter = min(size)
    if isinstance(widths, Sequence) and not isinstance(widths, str) and len(widths):
        found = tuple(checks.count("widths", each) for each in widths)
    else:
        widest, sides = checks.count("widths", widths), [shorter]
        while sides[0] >= 8 and math.gcd(*size) % 2 ** len(sides) == 0:
            sides.insert(0, sides[0] // 2)
        found = tuple(max(1, widest >> ((side - 1) // 32).bit_length()) for side in sides)
    factor = 2 ** (len(found) - 1)
    if height % factor or width % factor or not 2 <= shorter // factor <= 16:
        needed = 2 ** ((shorter - 1) // 16).bit_length()
        near = "x".join(str(max(2, needed * round(side / needed))) for side in size)
        remedy = "one int for widths" if isinstance(widths, Sequence) else near
        raise ValueError(
            "image_size must have sides that stay whole when halved once for each width but the "
            f"first, and end with 2 to 16 pixels on the shorter one, got {height}x{width}, "
            f"and {len(found)} for widths; use {remedy}, or the DCGAN nets, which take any size."
        )
    return size, found, (height // factor, width // factor)
