"""Do the nets and the batches fit each other? Asked before the first step."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from tinygan._run import checks
from tinygan.nets.dcgan import DCGANDiscriminator, DCGANGenerator

# What leaves numbers in [0, 1] there, by the names of autograd's nodes.
STAYING = re.compile("View|Reshape|Unsafe|Squeeze|Unsqueeze|Select|Slice|ToCopy|Clone|Mean|Clamp")


def check_nets(generator: nn.Module, discriminator: nn.Module) -> None:
    """Raise ValueError if what the nets say about themselves does not match."""
    if hasattr(discriminator, "latent_dim") and not hasattr(generator, "latent_dim"):
        raise ValueError(
            f"the generator must come first, got a {type(generator).__name__} and then a "
            f"{type(discriminator).__name__}, which has a latent_dim; exchange the two."
        )
    # In other classes these names may mean something else: such nets are tried on the first batch.
    ours = isinstance(generator, DCGANGenerator) and isinstance(discriminator, DCGANDiscriminator)
    for name in ("image_size", "channels", "num_classes") if ours else ():
        made, judged = (getattr(net, name) for net in (generator, discriminator))
        if name == "image_size":  # an int is a square
            made, judged = ((x, x) if isinstance(x, int) else x for x in (made, judged))
        if made != judged:
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
def check_generator(
    generator: Any, z: torch.Tensor, real: torch.Tensor, labels: torch.Tensor | None
) -> tuple[torch.Tensor, ...]:
    """Return a generator's fakes of z, and their labels if there are any.

    Raises ValueError for real examples that are not as the fakes are. ``generator``, a player, does
    not change while it is rehearsing.
    """
    if not real.is_floating_point():
        raise ValueError(
            f"images must be floating point in [-1, 1], got {real.dtype}; scale bytes with "
            "images / 127.5 - 1."
        )
    classes = []
    if labels is not None:
        check_labels(labels, generator.module.num_classes)
        classes.append(labels[:1].expand(len(z)).to(z.device))
    fake = _made(("noise", "labels", "examples"), generator, z, *classes)
    if len(real) == 0 or fake.shape[1:] != real.shape[1:]:
        remedy = (
            "change the nets (image_size, channels) or the data, and batch a data set with "
            "tinygan.data.Loader."
        )
        if real.dim() == fake.dim() == 4 and real.shape[3] == fake.shape[1] != real.shape[1]:
            remedy = "put the channels first, with images.permute(0, 3, 1, 2)."
        elif real[:, None].shape[1:] == fake.shape[1:]:
            remedy = "give the images their channel, with images[:, None]."
        raise ValueError(
            f"a batch must have the shape (N, {str(tuple(fake.shape[1:]))[1:]} that the "
            f"generator makes, got {tuple(real.shape)}; {remedy}"
        )
    check_range(real)
    if real.dim() == 4:
        low, high = fake.min().item(), fake.max().item()
        # A sigmoid's are about 0.5, a ReLU's begin at 0; others may lie above it by chance.
        positive = low == 0 < high or (low > 0 and high > 0.5)
        if low < -1.001 or high > 1.001 or positive:
            warnings.warn(
                f"the generator's first images are in [{low:.4g}, {high:.4g}], and should be in "
                "[-1, 1], as the real ones are; let it end in nn.Tanh().",
                stacklevel=2,
            )
    return fake, *classes


def check_discriminator(discriminator: Any, fake: torch.Tensor, *classes: torch.Tensor) -> None:
    """Raise ValueError unless a discriminator, a player, returns logits; warn of probabilities."""
    with torch.enable_grad():  # so that it can be seen how they were made
        logits = _made(("examples", "labels", "logits"), discriminator, fake, *classes)
    if logits.shape[:1] != (len(fake) // getattr(discriminator.module, "join", 1),):
        raise ValueError(
            f"discriminator must return logits (N, ...), got {tuple(logits.shape)} for "
            f"N={len(fake)}; keep the first axis, or, if it judges m images together, give it an "
            "attribute join, m."
        )
    node = logits.grad_fn
    while node is not None and STAYING.match(node.name()):
        node = node.next_functions[0][0]
    if node is not None and node.name().startswith(("Sigmoid", "Softmax", "Hardsigmoid")):
        warnings.warn(
            "the discriminator ends in a sigmoid or the like, so that all it returns is in [0, 1], "
            "but losses take logits; remove that layer: tinygan's losses apply it themselves.",
            stacklevel=2,
        )


def _made(names: Sequence[str], player: Any, *inputs: torch.Tensor) -> torch.Tensor:
    """Return what a player makes of inputs, if that is a tensor; else raise TypeError."""
    try:
        made = player(*inputs)
    except TypeError:
        checks.takes(
            f"the {player.name}", player.module, f"({', '.join(names[: len(inputs)])})",
            "both nets take labels if the generator has num_classes, their number, or neither.",
        )  # fmt: skip
        raise
    if not isinstance(made, torch.Tensor):
        raise TypeError(
            f"the {player.name} must return {names[2]} alone, a tensor (N, ...), got a "
            f"{type(made).__name__}; return the one that is trained on."
        )
    return made


def check_range(images: torch.Tensor) -> None:
    """Raise ValueError for images outside [-1, 1], or anything with NaN; warn of [0, 1]."""
    finite = images.isfinite()
    if not finite.all():
        broken = int((~finite).reshape(len(images), -1).any(1).sum())
        raise ValueError(
            f"images must be finite, got NaN or infinity in {broken} of {len(images)}; look at the "
            "data, and at what divides by a number that may be 0."
        )
    if images.dim() != 4:  # of other data no range is known
        return
    low, high = images.min().item(), images.max().item()
    checks.image_range(low, high)
    if low >= 0 and high > 0.5:
        warnings.warn(
            f"the first batch has no value below 0, its range is [{low:.4g}, {high:.4g}]: are "
            "these images in [0, 1]? The nets expect [-1, 1]; scale with images * 2 - 1.",
            stacklevel=2,
        )


def as_labels(labels: torch.Tensor, count: int) -> torch.Tensor:
    """Return labels (N,) of any integers as int64; raise ValueError for others."""
    if labels.shape != (count,) or labels.is_floating_point() or labels.is_complex():
        raise ValueError(
            f"labels must be (N,) of integers, got {tuple(labels.shape)} of {labels.dtype} for "
            f"N={count}; give each example the number of its class, by labels.long(), or for (N, "
            "1) by labels[:, 0], for one-hot labels by labels.argmax(1)."
        )
    return labels.long()


def check_labels(labels: torch.Tensor, num_classes: int) -> None:
    """Raise ValueError for labels (N,) of int64 that are not classes of the nets."""
    low, high = labels.aminmax() if len(labels) else (0, 0)
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"labels must be in [0, {num_classes}), got [{int(low)}, {int(high)}]; count classes "
            "from 0, and build the nets with as many num_classes."
        )
