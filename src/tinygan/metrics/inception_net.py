"""The net by whose features FID and KID are published, in torch-fidelity's translation of it."""

from __future__ import annotations

import os

import torch
from torch import nn
from typing_extensions import override

from tinygan._run.checks import require


def inception(
    *, weights: str | os.PathLike[str] | None = None, device: torch.device | str = "cpu"
) -> nn.Module:
    """Return the Inception net by whose features FID and KID are published: D is 2048.

    It takes images (N, 3, H, W), or of one channel, of any size in [-1, 1], and gives features
    (N, 2048). They are rounded to bytes first, as those of image files are.

    Args:
        weights: a file that holds the net's weights, in torch-fidelity's format; None for the one
            that torch-fidelity downloads once, some 95 MB, into PyTorch's own cache. Reading a
            file executes what is in it, so give one that you trust.
        device: where to apply it.

    Raises:
        ImportError: if torch-fidelity is not installed.
        ValueError: if the weights are neither there nor can be downloaded.

    Examples:
        >>> inception(weights="elsewhere.pth")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: weights must be those of torch-fidelity's Inception net, got elsewhere.pth: ...
    """
    require("torch_fidelity", extra="metrics", wanted_by="inception")
    from torch_fidelity.feature_extractor_inceptionv3 import (
        URL_INCEPTION_V3,
        FeatureExtractorInceptionV3,
    )

    try:
        # The first weights of its layers, which are then replaced, come from the global generator.
        with torch.random.fork_rng(devices=[]):
            net = FeatureExtractorInceptionV3(
                "inception-v3-compat",
                ["2048"],
                feature_extractor_weights_path=None if weights is None else os.fspath(weights),
                verbose=False,
            )
    except Exception as error:  # damaged bytes make decoders raise almost anything
        wanted = "the download" if weights is None else os.fspath(weights)
        raise ValueError(
            f"weights must be those of torch-fidelity's Inception net, got {wanted}: {error}; "
            f"download {URL_INCEPTION_V3} where there is internet, and give weights=FILE."
        ) from error
    return Inception(net).to(device)


class Inception(nn.Module):
    """Images in [-1, 1] to what torch-fidelity's net takes, and its features out of it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    @override
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the features (N, 2048) of images (N, 1 or 3, H, W) in [-1, 1]."""
        if images.shape[1] not in (1, 3):
            raise ValueError(
                f"images must have 1 or 3 channels for Inception, got {images.shape[1]}; use "
                "another module, such as a classifier of your own images."
            )
        found: torch.Tensor = self.net(to_bytes(images.expand(-1, 3, -1, -1)))[0]
        return found


def to_bytes(images: torch.Tensor) -> torch.Tensor:
    """Return images in [-1, 1] as uint8 in 0 to 255: just the bytes that they were scaled from.

    Examples:
        >>> to_bytes(torch.tensor([-1.0, 0.0, 1.0]))
        tensor([  0, 128, 255], dtype=torch.uint8)
    """
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
