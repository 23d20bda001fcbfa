"""Do the nets and the batches fit each other? Asked before the first step."""

from __future__ import annotations

import warnings

import torch
from torch import nn

from tinygan.nets.traits import evaluating, has_batch_norm


def check_nets(generator: nn.Module, discriminator: nn.Module) -> None:
    """Raise ValueError if what the nets say about themselves does not match."""
    for name in ("image_size", "channels", "num_classes"):
        made, judged = (getattr(net, name, None) for net in (generator, discriminator))
        if name == "image_size":  # an int is a square
            made, judged = ((x, x) if isinstance(x, int) else x for x in (made, judged))
        # Nets that do not give a size or channels are tried on the first batch instead.
        unknown = name != "num_classes" and None in (made, judged)
        if made != judged and not unknown:
            raise ValueError(
                f"generator and discriminator must agree on {name}, got {made} and {judged}; "
                f"build both with the same {name}."
            )
    last = discriminator
    while children := list(last.children()):  # what it is sure to end in
        if not isinstance(last, nn.Sequential) and len(children) > 1:
            break
        last = children[-1]
    if isinstance(last, nn.Sigmoid):
        raise ValueError(
            "discriminator must return logits, got probabilities from a final Sigmoid; remove that "
            "layer: the losses apply it themselves."
        )


@torch.no_grad()
def check_first_batch(
    real: torch.Tensor,
    labels: torch.Tensor | None,
    z: torch.Tensor,
    generator: nn.Module,
    discriminator: nn.Module,
) -> None:
    """Raise ValueError if a batch or noise (2, Z) does not suit the nets; they do not change."""
    if not real.is_floating_point():
        raise ValueError(
            f"images must be floating point in [-1, 1], got {real.dtype}; scale bytes with "
            "images / 127.5 - 1."
        )
    join = getattr(discriminator, "join", 1)
    z = z.repeat(join, 1)
    classes = []
    if labels is not None:
        check_labels(labels, len(real), generator.num_classes)  # type: ignore[arg-type]
        classes.append(labels[:1].expand(len(z)).to(z.device))
    with evaluating(generator, discriminator):
        fake = _tried("generator", generator, z, *classes)
        if len(real) == 0 or fake.shape[1:] != real.shape[1:]:
            raise ValueError(
                f"a batch must have the shape (N, {str(tuple(fake.shape[1:]))[1:]} that the "
                f"generator makes, got {tuple(real.shape)}; change the nets (image_size, channels) "
                "or the data, and batch a data set with tinygan.data.Loader."
            )
        if real.dim() == 4:
            check_range(real)
        if len(real) == 1 and (has_batch_norm(generator) or has_batch_norm(discriminator)):
            raise ValueError(
                "batch size must be at least 2 with batch norm, got 1; use larger batches, or nets "
                "with norm=None."
            )
        logits = _tried("discriminator", discriminator, fake, *classes)
    if logits.shape[:1] != (len(z) // join,):
        raise ValueError(
            f"discriminator must return logits (N, ...), got {tuple(logits.shape)} for N={len(z)}; "
            "keep the first axis, or, if it judges m images together, give it an attribute join, m."
        )


def _tried(name: str, net: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
    """Return what a net makes of inputs; its errors name it and their shapes."""
    try:
        made: torch.Tensor = net(*inputs)
    except Exception as error:
        shapes = " and ".join(str(tuple(tensor.shape)) for tensor in inputs)
        error.add_note(f"raised by the {name}, which must take inputs of shape {shapes}")
        raise
    return made


def check_range(images: torch.Tensor) -> None:
    """Raise ValueError for images outside [-1, 1], and warn of images in [0, 1]."""
    low, high = images.min().item(), images.max().item()
    # Resizing may leave the range by rounding. NaN compares false, so it fails this too.
    if not (low >= -1.001 and high <= 1.001):
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


def check_labels(labels: torch.Tensor, count: int, num_classes: int) -> None:
    """Raise ValueError for labels that are not (N,) of int64, or not classes of the nets."""
    if labels.shape != (count,) or labels.dtype != torch.int64:
        raise ValueError(
            f"labels must be (N,) of int64, got {tuple(labels.shape)} of {labels.dtype} for "
            f"N={count}; give each example the number of its class."
        )
    low, high = labels.aminmax() if count else (0, 0)
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"labels must be in [0, {num_classes}), got [{int(low)}, {int(high)}]; count classes "
            "from 0, and build the nets with as many num_classes."
        )
