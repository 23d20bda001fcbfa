"""The DCGAN nets of Radford et al. (2015, https://arxiv.org/abs/1511.06434), for any image size.

At 64x64 with the defaults they are the PyTorch DCGAN tutorial's nets, layer for layer, without the
final Sigmoid: D gives logits, because losses on logits stay finite where log(sigmoid(x)) does not.

One rule gives every other size. Each stage halves a side, rounding up, until the smaller one is
4 to 8 pixels:

    64 -> 32 -> 16 -> 8 -> 4          four stages
    61 -> 31 -> 16 -> 8               three stages (beside 47 -> 24 -> 12 -> 6)

A convolution of stride 2 and padding 1 lands exactly on each of them, down or up, if its kernel is
4 where the larger side is even and 3 where it is odd.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from typing_extensions import override

from tinygan._run import checks


def _map_sizes(image_size: tuple[int, int]) -> list[tuple[int, int]]:
    """Return the sizes of the maps from the image down to the smallest, both included."""
    # floor(log2(n)) is n.bit_length() - 1, exact where a float logarithm might not be.
    stages = min(image_size).bit_length() - 3
    sizes = [image_size]
    for _ in range(stages):
        height, width = sizes[-1]
        sizes.append(((height + 1) // 2, (width + 1) // 2))
    return sizes


def _kernel(larger: tuple[int, int]) -> tuple[int, int]:
    """Return the kernel that joins a map of the ``larger`` size with its half."""
    height, width = (4 if side % 2 == 0 else 3 for side in larger)
    return height, width


def _widths(stages: int, base: int, cap: int | None) -> list[int]:
    """Return the channels after each stage, from the image inwards: doubling, up to the cap."""
    widths = [base * 2**stage for stage in range(stages)]
    return widths if cap is None else [min(width, cap) for width in widths]


class DCGANGenerator(nn.Module):
    """Turn noise into images by transposed convolutions.

    Args:
        image_size: height and width in pixels, one int for a square; each at least 8.
        channels: of the image; 3 for colour, 1 for grey.
        latent_dim: Z, the length of the noise vector.
        base_channels: width of the layer next to the image; it doubles per stage inwards.
        max_channels: a cap on that doubling; None for none.
        norm: makes the normalisation of a width; None for none (those layers
            then get a bias).
        activation: makes the activation between layers.
        num_classes: K, makes images of a class, which ``forward`` then takes as a label. It is
            put beside z as K numbers, all 0 but one (Mirza and Osindero 2014). None for none.

    Raises:
        ValueError: for a size under 8 or a count under 1, naming it.

    Examples:
        >>> DCGANGenerator(image_size=(61, 47))(torch.randn(2, 100)).shape
        torch.Size([2, 3, 61, 47])
        >>> digits = DCGANGenerator(28, channels=1, num_classes=10)
        >>> digits(torch.randn(2, 100), torch.tensor([3, 7])).shape
        torch.Size([2, 1, 28, 28])
    """

    def __init__(
        self,
        image_size: int | tuple[int, int] = 64,
        channels: int = 3,
        latent_dim: int = 100,
        base_channels: int = 64,
        *,
        max_channels: int | None = None,
        norm: Callable[[int], nn.Module] | None = nn.BatchNorm2d,
        activation: Callable[[], nn.Module] = partial(nn.ReLU, inplace=True),
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        self.image_size = checks.size("image_size", image_size, at_least=8)
        self.channels = checks.count("channels", channels)
        self.latent_dim = checks.count("latent_dim", latent_dim)
        self.num_classes = num_classes
        checks.count("base_channels", base_channels)
        if max_channels is not None:
            checks.count("max_channels", max_channels)
        # Not a learned vector as long as z: with it G soon hears nothing but the class.
        given = latent_dim
        if num_classes is not None:
            given += checks.count("num_classes", num_classes)

        *larger, smallest = _map_sizes(self.image_size)
        widths = _widths(len(larger), base_channels, max_channels)

        def stage(conv: nn.Module, width: int) -> list[nn.Module]:
            return [conv, *([norm(width)] if norm else []), activation()]

        bias = norm is None
        # The first layer opens one pixel of Z channels onto the whole smallest map.
        layers = stage(nn.ConvTranspose2d(given, widths[-1], smallest, bias=bias), widths[-1])
        for depth in reversed(range(1, len(larger))):
            conv = nn.ConvTranspose2d(
                widths[depth], widths[depth - 1], _kernel(larger[depth]), 2, 1, bias=bias
            )
            layers += stage(conv, widths[depth - 1])
        layers += [
            nn.ConvTranspose2d(widths[0], channels, _kernel(larger[0]), 2, 1, bias=False),
            nn.Tanh(),
        ]
        self.main = nn.Sequential(*layers)

    @override
    def forward(self, z: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """Map noise (N, Z) or (N, Z, 1, 1) to images (N, C, H, W) in [-1, 1].

        Args:
            z: the noise.
            labels: the classes wanted, (N,) of int64, if the net has any.

        Raises:
            ValueError: for noise of another shape, or labels that are missing or of no use.
        """
        if z.dim() < 2 or z[0].numel() != self.latent_dim:
            raise ValueError(
                f"z must be (N, {self.latent_dim}), got {tuple(z.shape)}; draw it with "
                f"torch.randn(N, {self.latent_dim}), say."
            )
        z = z.reshape(len(z), self.latent_dim)
        _check_labels(labels, self.num_classes, len(z))
        if labels is not None and self.num_classes is not None:
            known = torch.arange(self.num_classes, device=z.device)
            z = torch.cat([z, (labels[:, None] == known).to(z.dtype)], dim=1)
        images: torch.Tensor = self.main(z[:, :, None, None])
        return images


class DCGANDiscriminator(nn.Module):
    """Turn images into logits by strided convolutions; a high logit means "real".

    Args:
        image_size: height and width in pixels, one int for a square; each at least 8.
        channels: of the image; 3 for colour, 1 for grey.
        base_channels: width of the layer next to the image; it doubles per stage inwards.
        max_channels: a cap on that doubling; None for none.
        norm: makes the normalisation of a width, from the second stage on; None for none (the
            convolutions then get a bias).
        activation: makes the activation between layers.
        pack: m, how many images are judged together, see ``pack``; 1 for each alone.
        num_classes: judges images of a class, which ``forward`` then takes as a label, by a
            projection (Miyato and Koyama 2018, equation 3) of the whole last map. None for none.

    Raises:
        ValueError: for a size under 8 or a count under 1, naming it, or classes of packed images.

    Examples:
        >>> DCGANDiscriminator(image_size=(61, 47))(torch.zeros(2, 3, 61, 47)).shape
        torch.Size([2])
        >>> DCGANDiscriminator(28, pack=2)(torch.zeros(8, 3, 28, 28)).shape
        torch.Size([4])
    """

    def __init__(
        self,
        image_size: int | tuple[int, int] = 64,
        channels: int = 3,
        base_channels: int = 64,
        *,
        max_channels: int | None = None,
        norm: Callable[[int], nn.Module] | None = nn.BatchNorm2d,
        activation: Callable[[], nn.Module] = partial(nn.LeakyReLU, 0.2, inplace=True),
        pack: int = 1,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        self.image_size = checks.size("image_size", image_size, at_least=8)
        self.channels = checks.count("channels", channels)
        self.pack = checks.count("pack", pack)
        self.num_classes = num_classes
        checks.count("base_channels", base_channels)
        if max_channels is not None:
            checks.count("max_channels", max_channels)

        *larger, smallest = _map_sizes(self.image_size)
        widths = _widths(len(larger), base_channels, max_channels)
        if num_classes is not None:
            if pack > 1:
                raise ValueError(
                    f"pack must be 1 with num_classes, got {pack}: images of several classes have "
                    "no label together; leave one of the two out."
                )
            # Each class has a filter of the last map, places and all: summed or averaged over
            # places, the features of so few layers do not tell a digit from another.
            places = smallest[0] * smallest[1]
            self.embedding = nn.Embedding(
                checks.count("num_classes", num_classes), widths[-1] * places
            )
            # As small as the last convolution: at first the class hardly counts.
            nn.init.normal_(self.embedding.weight, 0.0, 0.02)
        # No normalisation next to the image: the paper found that it destabilises training.
        layers = [
            nn.Conv2d(channels * pack, widths[0], _kernel(larger[0]), 2, 1, bias=False),
            activation(),
        ]
        for depth in range(1, len(larger)):
            layers.append(
                nn.Conv2d(
                    widths[depth - 1],
                    widths[depth],
                    _kernel(larger[depth]),
                    2,
                    1,
                    bias=norm is None,
                )
            )
            layers += [norm(widths[depth])] if norm else []
            layers.append(activation())
        layers.append(nn.Conv2d(widths[-1], 1, smallest, bias=False))
        self.main = nn.Sequential(*layers)

    @override
    def forward(self, images: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """Map images (N, C, H, W) in [-1, 1] to logits (N,), or (N / m,) with packing.

        Args:
            images: real or not.
            labels: the classes that they are said to be of, (N,) of int64, if the net has any.

        Raises:
            ValueError: for images of another shape, or labels that are missing or of no use.
        """
        if images.shape[1:] != (self.channels, *self.image_size):
            raise ValueError(
                f"images must be (N, {self.channels}, {self.image_size[0]}, {self.image_size[1]}), "
                f"got {tuple(images.shape)}; build the net for their size and channels."
            )
        _check_labels(labels, self.num_classes, len(images))
        if self.pack > 1:
            images = pack(images, self.pack)
        if labels is None:
            alone: torch.Tensor = self.main(images)
            return alone.reshape(-1)
        *body, last = self.main
        for layer in body:
            images = layer(images)
        projection = (images.flatten(1) * self.embedding(labels)).sum(1)
        logits: torch.Tensor = last(images).reshape(-1) + projection
        return logits


def _check_labels(labels: torch.Tensor | None, num_classes: int | None, count: int) -> None:
    if (labels is None) != (num_classes is None):
        given = "none" if labels is None else f"some of shape {tuple(labels.shape)}"
        raise ValueError(
            f"labels must be given to a net with num_classes, and to no other, got {given} for "
            f"num_classes={num_classes}; build the net with num_classes=10, say, or without."
        )
    # Not whether they are in range, which would wait for the device: for others G makes images of
    # no class, and D's embedding fails. The trainer and sampling look at them before.
    if labels is not None and (labels.shape != (count,) or labels.dtype != torch.int64):
        raise ValueError(
            f"labels must be (N,) of int64, got {tuple(labels.shape)} of {labels.dtype} for "
            f"N={count}; give each image the number of its class."
        )


def pack(images: torch.Tensor, count: int) -> torch.Tensor:
    """Put each ``count`` images in a row together, channel by channel (PacGAN, Lin et al. 2018).

    A D that sees several images of one kind at once sees at once that G makes only few kinds. Use
    it at the start of a D of your own, which then gives one logit for each pack, and has an
    attribute ``pack``: by that a trainer knows to leave out images that do not fill one.

    Args:
        images: (N, C, H, W).
        count: m, which divides N.

    Returns:
        Packs (N / m, m C, H, W).

    Raises:
        ValueError: for images that do not fill whole packs, one at least, or a count under 1.

    Examples:
        >>> pack(torch.zeros(8, 3, 8, 8), 2).shape
        torch.Size([4, 6, 8, 8])
    """
    checks.count("count", count)
    if len(images) == 0 or len(images) % count:
        raise ValueError(
            f"images must fill whole packs of {count}, got {len(images)}; leave some out, or use "
            "batches that are a multiple of it."
        )
    return images.reshape(len(images) // count, -1, *images.shape[2:])
