"""What generators and discriminators here are given: checked, with errors that help."""

from __future__ import annotations

from typing import Any

import torch


def checked_noise(
    net: Any, z: torch.Tensor, labels: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return a generator's noise as (N, Z), and its labels, if any, as shares (N, K)."""
    if z.dim() < 2 or z[0].numel() != net.latent_dim:
        raise ValueError(
            f"z must be (N, {net.latent_dim}), got {tuple(z.shape)}; draw it with "
            f"torch.randn(N, {net.latent_dim})."
        )
    z = z.flatten(1)  # view(len(z), -1) would fix an exported net's batch size
    _check_labels(labels, net.num_classes)
    if labels is None:
        return z, None
    # type_as is for traced nets: there, device= is for ever that of the tracing.
    known = torch.arange(net.num_classes, device=z.device).type_as(labels)
    shares = labels if labels.dim() == 2 else labels[:, None] == known
    return z, shares.to(z.dtype)


def check_images(net: Any, images: torch.Tensor, labels: torch.Tensor | None) -> None:
    """Raise ValueError for images or labels that a discriminator was not built for."""
    if images.shape[1:] != (net.channels, *net.image_size):
        raise ValueError(
            f"images must be (N, {net.channels}, {net.image_size[0]}, {net.image_size[1]}), "
            f"got {tuple(images.shape)}; build the net for their size and channels."
        )
    _check_labels(labels, net.num_classes)


def _check_labels(labels: torch.Tensor | None, num_classes: int | None) -> None:
    """Raise ValueError unless labels are given to a net with classes, and to no other."""
    # The trainer and sampling check their range, before: here it would wait for the device.
    if (labels is None) != (num_classes is None):
        given = "none" if labels is None else f"some of shape {tuple(labels.shape)}"
        raise ValueError(
            f"labels must be given to a net with num_classes, and to no other, got {given} for "
            f"num_classes={num_classes}; build the net with num_classes=10, or without."
        )
