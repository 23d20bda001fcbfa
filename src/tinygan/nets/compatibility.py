"""Do the nets and the batches fit each other? Asked before the first step."""

from __future__ import annotations

import warnings

import torch
from torch import nn

from tinygan.nets import traits
from tinygan.nets.traits import evaluating

# Resizing in floating point may leave the range by rounding, not by more.
RANGE_TOLERANCE = 1e-3


def check_nets(generator: nn.Module, discriminator: nn.Module) -> None:
    """Raise ValueError if the nets say that they do not fit each other.

    Nets that do not say (without ``image_size`` or ``channels``) are tried on the first batch.
    """
    for name in ("image_size", "channels"):
        made, judged = (_said(net, name) for net in (generator, discriminator))
        if made is not None and judged is not None and made != judged:
            raise ValueError(
                f"generator and discriminator must agree on {name}, got {made} and {judged}; "
                f"build both with the same {name}."
            )
    made, judged = (getattr(net, "num_classes", None) for net in (generator, discriminator))
    if made != judged:
        raise ValueError(
            f"generator and discriminator must agree on num_classes, got {made} and {judged}; "
            "build both with the same num_classes, or neither."
        )
    if isinstance(_last_layer(discriminator), nn.Sigmoid):
        raise ValueError(
            "discriminator must return logits, got probabilities from a final Sigmoid; remove that "
            "layer: the losses apply it themselves."
        )


def _said(net: nn.Module, name: str) -> object:
    """Return what a net says of its images; an int for a size means a square."""
    value = getattr(net, name, None)
    return (value, value) if name == "image_size" and isinstance(value, int) else value


def _last_layer(net: nn.Module) -> nn.Module:
    """Return the layer that a net surely ends in: of a chain the last, of an only child that."""
    children = list(net.children())
    if children and (isinstance(net, nn.Sequential) or len(children) == 1):
        return _last_layer(children[-1])
    return net


@torch.no_grad()
def check_first_batch(
    real: torch.Tensor,
    labels: torch.Tensor | None,
    z: torch.Tensor,
    generator: nn.Module,
    discriminator: nn.Module,
) -> None:
    """Raise ValueError if the first batch does not suit the nets. Changes no state of theirs.

    Args:
        real: the batch of images, on any device.
        labels: their classes; None for nets without.
        z: noise for two images, (2, Z).
        generator: in training mode.
        discriminator: in training mode.
    """
    if not real.is_floating_point():
        raise ValueError(
            f"images must be floating point in [-1, 1], got {real.dtype}; scale bytes with "
            "images / 127.5 - 1."
        )
    pack = getattr(discriminator, "pack", 1)
    z = z.repeat(pack, 1)
    classes = []
    if labels is not None:
        check_labels(labels, len(real), generator.num_classes)  # type: ignore[arg-type]
        classes.append(labels[:1].expand(len(z)).to(z.device))
    with evaluating(generator), evaluating(discriminator):
        fake = _tried("generator", generator, z, *classes)
        if len(real) == 0 or (fake.dim() == 4 and real.dim() != 4):
            raise ValueError(
                f"a batch must be images (N, C, H, W), got the shape {tuple(real.shape)}; batch a "
                "data set with tinygan.data.Loader, and add a missing axis with unsqueeze."
            )
        if real.dim() == 4:
            check_range(real)
        if len(real) == 1:
            for net in (generator, discriminator):
                if traits.has_batch_norm(net):
                    raise ValueError(
                        "batch size must be at least 2 with batch norm, got 1; use larger batches, "
                        "or nets with norm=None."
                    )
        if fake.shape[1:] != real.shape[1:]:
            raise ValueError(
                f"images must be of the shape that the generator makes, {tuple(fake.shape[1:])}, "
                f"got {tuple(real.shape[1:])}; change image_size and channels of the nets or of "
                "the data."
            )
        logits = _tried("discriminator", discriminator, fake, *classes)
    if logits.shape[:1] != (len(z) // pack,):
        raise ValueError(
            f"discriminator must return logits (N, ...), got {tuple(logits.shape)} for "
            f"N={len(z)}; keep the first axis, and if it packs m images say so by an "
            "attribute pack."
        )


def check_range(images: torch.Tensor) -> None:
    """Raise ValueError for images that are not in [-1, 1], and warn of those that are in [0, 1].

    Examples:
        >>> check_range(torch.zeros(2, 3, 8, 8))
    """
    # NaN compares false, so it fails this too.
    low, high = images.min().item(), images.max().item()
    if not (low >= -1 - RANGE_TOLERANCE and high <= 1 + RANGE_TOLERANCE):
        raise ValueError(
            f"images must be in [-1, 1], got [{low:.4g}, {high:.4g}]; scale bytes with "
            "images / 127.5 - 1, and [0, 1] with images * 2 - 1."
        )
    if low >= 0 and high > 0.5:
        warnings.warn(
            f"the first batch has no value below 0, its range is [{low:.4g}, {high:.4g}]: are "
            "these images in [0, 1]? The nets expect [-1, 1]; scale with images * 2 - 1.",
            stacklevel=2,
        )


def _tried(name: str, net: nn.Module, *given: torch.Tensor) -> torch.Tensor:
    try:
        made: torch.Tensor = net(*given)
    except (RuntimeError, ValueError, TypeError) as error:
        shapes = " and ".join(str(tuple(tensor.shape)) for tensor in given)
        raise ValueError(
            f"{name} must take inputs of the shape {shapes}, got an error from it: "
            f"{error}; check its sizes, channels and latent_dim."
        ) from error
    return made


def check_labels(labels: torch.Tensor, count: int, num_classes: int) -> None:
    """Raise ValueError for labels that are not one class of the nets' for each image.

    Examples:
        >>> check_labels(torch.tensor([0, 9]), 2, num_classes=10)
    """
    if labels.shape != (count,) or labels.dtype != torch.int64:
        raise ValueError(
            f"labels must be (N,) of int64, got {tuple(labels.shape)} of {labels.dtype} for "
            f"N={count}; give each image the number of its class."
        )
    if count == 0:
        return
    low, high = labels.min().item(), labels.max().item()
    if low < 0 or high >= num_classes:
        more = "" if low < 0 else f", or build the nets with num_classes={int(high) + 1}"
        raise ValueError(
            f"labels must be in [0, {num_classes}), got [{low}, {high}]; count classes from 0"
            f"{more}."
        )
