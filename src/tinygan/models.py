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
from torch.nn.utils.parametrize import is_parametrized
from typing_extensions import override

from tinygan import checks


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

    Raises:
        ValueError: for a size under 8 or a count under 1, naming it.

    Examples:
        >>> DCGANGenerator(image_size=(61, 47))(torch.randn(2, 100)).shape
        torch.Size([2, 3, 61, 47])
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
    ) -> None:
        super().__init__()
        self.image_size = checks.size("image_size", image_size, at_least=8)
        self.channels = checks.count("channels", channels)
        self.latent_dim = checks.count("latent_dim", latent_dim)
        checks.count("base_channels", base_channels)
        if max_channels is not None:
            checks.count("max_channels", max_channels)

        *larger, smallest = _map_sizes(self.image_size)
        widths = _widths(len(larger), base_channels, max_channels)

        def stage(conv: nn.Module, width: int) -> list[nn.Module]:
            return [conv, *([norm(width)] if norm else []), activation()]

        bias = norm is None
        # The first layer opens one pixel of Z channels onto the whole smallest map.
        layers = stage(nn.ConvTranspose2d(latent_dim, widths[-1], smallest, bias=bias), widths[-1])
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
    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Map noise (N, Z) or (N, Z, 1, 1) to images (N, C, H, W) in [-1, 1].

        Raises:
            ValueError: for noise of another shape.
        """
        if z.dim() < 2 or z[0].numel() != self.latent_dim:
            raise ValueError(
                f"z must be (N, {self.latent_dim}), got {tuple(z.shape)}; draw it with "
                f"torch.randn(N, {self.latent_dim}), say."
            )
        images: torch.Tensor = self.main(z.reshape(len(z), self.latent_dim, 1, 1))
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

    Raises:
        ValueError: for a size under 8 or a count under 1, naming it.

    Examples:
        >>> DCGANDiscriminator(image_size=(61, 47))(torch.zeros(2, 3, 61, 47)).shape
        torch.Size([2])
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
    ) -> None:
        super().__init__()
        self.image_size = checks.size("image_size", image_size, at_least=8)
        self.channels = checks.count("channels", channels)
        checks.count("base_channels", base_channels)
        if max_channels is not None:
            checks.count("max_channels", max_channels)

        *larger, smallest = _map_sizes(self.image_size)
        widths = _widths(len(larger), base_channels, max_channels)
        # No normalisation next to the image: the paper found that it destabilises training.
        layers = [
            nn.Conv2d(channels, widths[0], _kernel(larger[0]), 2, 1, bias=False),
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
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images (N, C, H, W) in [-1, 1] to logits (N,).

        Raises:
            ValueError: for images of another shape.
        """
        if images.shape[1:] != (self.channels, *self.image_size):
            raise ValueError(
                f"images must be (N, {self.channels}, {self.image_size[0]}, {self.image_size[1]}), "
                f"got {tuple(images.shape)}; build the net for their size and channels."
            )
        logits: torch.Tensor = self.main(images)
        return logits.reshape(len(images))


_CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@torch.no_grad()
def weights_init(module: nn.Module) -> None:
    """Draw one layer's weights as the DCGAN paper does; use it as ``net.apply(weights_init)``.

    Convolutions are drawn from N(0, 0.02), batch norm scales from N(1, 0.02), batch norm shifts
    are zero (Radford et al. 2015, section 4); other layers are left alone. It draws from PyTorch's
    global generator, as the tutorial does: call ``torch.manual_seed`` first to repeat it.

    Examples:
        >>> _ = torch.manual_seed(999)
        >>> generator = DCGANGenerator().apply(weights_init)
    """
    if isinstance(module, _CONVOLUTIONS):
        # A parametrised weight (spectral norm, say) is computed anew at each use: writing to it
        # would be lost, so the original beneath it is drawn.
        name = "parametrizations.weight.original" if is_parametrized(module, "weight") else "weight"
        nn.init.normal_(module.get_parameter(name), 0.0, 0.02)
    elif isinstance(module, _BATCH_NORMS) and module.affine:
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
