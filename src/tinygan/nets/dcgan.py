"""The DCGAN nets of Radford et al. (2015, https://arxiv.org/abs/1511.06434), for any image size.

At 64x64 with the defaults they are the PyTorch DCGAN tutorial's nets, layer for layer, without the
final Sigmoid: D returns logits, because losses on logits stay finite where log(sigmoid(x)) does
not. One rule gives every other size. Each stage halves both sides, rounding up, until the shorter
one is 4 to 8 pixels:

    64 -> 32 -> 16 -> 8 -> 4          four stages
    61 -> 31 -> 16 -> 8               three stages (beside 47 -> 24 -> 12 -> 6)

A convolution of stride 2 and padding 1 lands exactly on each of these sizes, down or up, if its
kernel is 4 where the larger side is even and 3 where it is odd.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import nn

from tinygan._run import checks
from tinygan.nets.inputs import check_images, checked_noise
from tinygan.nets.saved import Generator

Size: TypeAlias = tuple[int, int]  # height, width
Norm: TypeAlias = Callable[[int], nn.Module]
Activation: TypeAlias = Callable[[], nn.Module]


class DCGANGenerator(Generator):
    """Turn noise into images by transposed convolutions.

    Args:
        image_size: height and width in pixels, or one int for a square; each at least 8.
        channels: of the image; 3 for colour, 1 for grey.
        latent_dim: Z, the length of the noise vector.
        base_channels: width of the layer next to the image; it doubles with each stage inwards.
        max_channels: a cap on that doubling, or None.
        norm: makes the normalisation of a hidden layer, given its width; None is none, and biases.
        activation: makes the activation of a hidden layer.
        num_classes: K. If given, ``forward`` also takes labels, which are appended to z as K
            numbers, all 0 but one (Mirza and Osindero 2014).

    Examples:
        >>> DCGANGenerator(image_size=(61, 47))(torch.randn(2, 100)).shape
        torch.Size([2, 3, 61, 47])
    """

    def __init__(
        self,
        image_size: int | Size = 64,
        channels: int = 3,
        latent_dim: int = 100,
        base_channels: int = 64,
        *,
        max_channels: int | None = None,
        norm: Norm | None = nn.BatchNorm2d,
        activation: Activation = partial(nn.ReLU, inplace=True),
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        self.image_size = checks.size("image_size", image_size, at_least=8)
        self.channels = checks.count("channels", channels)
        self.latent_dim = checks.count("latent_dim", latent_dim)
        self.base_channels, self.max_channels = base_channels, max_channels
        self.norm, self.activation = norm, activation
        self.num_classes = num_classes
        inputs = self.latent_dim
        if num_classes is not None:
            self.num_classes = checks.count("num_classes", num_classes)
            # Not a learned vector as long as z: with it G soon ignores everything but the class.
            inputs += self.num_classes
        kernels, widths, smallest = _stages(self.image_size, base_channels, max_channels)
        bias = norm is None

        # The first layer opens one pixel of noise onto the whole smallest map.
        up = nn.ConvTranspose2d(inputs, widths[-1], smallest, bias=bias)
        layers = _hidden(up, norm, activation)
        for stage in reversed(range(1, len(widths))):
            wide, narrow = widths[stage], widths[stage - 1]
            up = nn.ConvTranspose2d(wide, narrow, kernels[stage], 2, 1, bias=bias)
            layers += _hidden(up, norm, activation)
        up = nn.ConvTranspose2d(widths[0], channels, kernels[0], 2, 1, bias=False)
        self.main = nn.Sequential(*layers, up, nn.Tanh())

    def forward(self, z: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """Map noise (N, Z) or (N, Z, 1, 1), and labels (N,) or shares (N, K), to (N, C, H, W)."""
        z, shares = checked_noise(self, z, labels)
        if shares is not None:
            z = torch.cat([z, shares], dim=1)
        images: torch.Tensor = self.main(z[:, :, None, None])
        return images


class DCGANDiscriminator(nn.Module):
    """Turn images into logits by strided convolutions; a high logit means "real".

    Args:
        join: m, how many images D judges together, see ``join_images``.
        num_classes: K. If given, ``forward`` also takes labels, and judges them by a projection
            (Miyato and Koyama 2018, equation 3) of the whole last map. Only with ``join=1``.
        image_size: this and all others as in ``DCGANGenerator``.

    Examples:
        >>> DCGANDiscriminator(28, join=2)(torch.zeros(8, 3, 28, 28)).shape
        torch.Size([4])
    """

    def __init__(
        self,
        image_size: int | Size = 64,
        channels: int = 3,
        base_channels: int = 64,
        *,
        max_channels: int | None = None,
        norm: Norm | None = nn.BatchNorm2d,
        activation: Activation = partial(nn.LeakyReLU, 0.2, inplace=True),
        join: int = 1,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        self.image_size = checks.size("image_size", image_size, at_least=8)
        self.channels = checks.count("channels", channels)
        self.join = checks.count("join", join)
        self.num_classes = num_classes
        kernels, widths, smallest = _stages(self.image_size, base_channels, max_channels)
        if num_classes is not None:
            if join > 1:
                raise ValueError(
                    f"join must be 1 with num_classes, got {join}: images of several classes have "
                    "no label together; leave one of the two out."
                )
            # Each class has a filter as large as the last map: features that are summed or averaged
            # over places, after so few layers, do not tell one digit from another.
            features = widths[-1] * smallest[0] * smallest[1]
            self.num_classes = checks.count("num_classes", num_classes)
            self.embedding = nn.Embedding(self.num_classes, features)
            # As small as the last convolution, so that at first the class hardly counts.
            nn.init.normal_(self.embedding.weight, 0.0, 0.02)

        # No normalisation next to the image: the paper found that it destabilises training.
        down = nn.Conv2d(channels * join, widths[0], kernels[0], 2, 1, bias=False)
        layers = _hidden(down, None, activation)
        for stage in range(1, len(widths)):
            narrow, wide = widths[stage - 1], widths[stage]
            down = nn.Conv2d(narrow, wide, kernels[stage], 2, 1, bias=norm is None)
            layers += _hidden(down, norm, activation)
        self.main = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, smallest, bias=False))

    def forward(self, images: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """Map images (N, C, H, W), and labels (N,) of int64, to logits (N,) or (N / m,)."""
        check_images(self, images, labels)
        if self.join > 1:
            images = join_images(images, self.join)
        *body, last = self.main
        for layer in body:
            images = layer(images)
        logits: torch.Tensor = last(images).reshape(-1)
        if labels is not None:
            logits = logits + (images.flatten(1) * self.embedding(labels)).sum(1)
        return logits


def join_images(images: torch.Tensor, count: int) -> torch.Tensor:
    """Join each m = ``count`` images along the channels: (N, C, H, W) to (N / m, m C, H, W).

    A D that sees several images at once notices when G makes only a few kinds (PacGAN, Lin et al.
    2018). A D of your own calls this first in its ``forward``, and has an attribute ``join``, m, by
    which trainers know to leave out the images that are left over.

    Examples:
        >>> join_images(torch.zeros(8, 3, 8, 8), 2).shape
        torch.Size([4, 6, 8, 8])
    """
    checks.count("count", count)
    if len(images) == 0 or len(images) % count:
        raise ValueError(
            f"images to join must be a multiple of {count}, got {len(images)}; leave some out, or "
            "use batches that are a multiple of it."
        )
    return images.reshape(len(images) // count, -1, *images.shape[2:])


def _stages(
    size: Size, base_channels: int, max_channels: int | None
) -> tuple[list[Size], list[int], Size]:
    """Return each stage's kernel and width, from the image inwards, and the smallest map's size."""
    checks.count("base_channels", base_channels)
    if max_channels is not None:
        checks.count("max_channels", max_channels)
    kernels, widths = [], []
    # floor(log2(n)) is n.bit_length() - 1, exact where a float logarithm might not be.
    for stage in range(min(size).bit_length() - 3):
        height, width = size
        kernels.append((4 - height % 2, 4 - width % 2))
        channels = base_channels * 2**stage
        widths.append(min(channels, max_channels or channels))
        size = (height + 1) // 2, (width + 1) // 2
    return kernels, widths, size


def _hidden(
    conv: nn.Conv2d | nn.ConvTranspose2d, norm: Norm | None, activation: Activation
) -> list[nn.Module]:
    """Return a hidden layer: convolution, normalisation, activation."""
    layers: list[nn.Module] = [conv]
    makers: list[tuple[str, Any, list[int], str]] = [
        ("norm", norm, [conv.out_channels], "layer of a width, as nn.InstanceNorm2d does"),
        ("activation", activation, [], "layer, as nn.SiLU does"),
    ]
    for name, make, given, what in makers if norm else makers[1:]:
        try:
            layers.append(make(*given))
        except (TypeError, AttributeError) as error:
            raise TypeError(
                f"{name} must make a {what}, got {make!r}; give the class, or a functools.partial "
                "of it."
            ) from error
    return layers
