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
from tinygan.nets.r3gan import R3GANDiscriminator, R3GANGenerator

# What leaves numbers in [0, 1] there, by the names of autograd's nodes.
STAYING = re.compile("View|Reshape|Unsafe|Squeeze|Unsqueeze|Select|Slice|ToCopy|Clone|Mean|Clamp")


def check_nets(generator: nn.Module, discriminator: nn.Module) -> None:
    """Raise ValueError if what the nets say about themselves does not match."""
    if hasattr(discriminator, "latent_dim") and not hasattr(generator, "latent_dim"):
        raise ValueError(
            f"the generator must come first, got a {type(generator).__name__} and then a "
            f"{type(discriminator).__name__}, which has a latent_dim; exchange the two, or give "
            "the generator its latent_dim."
        )
    # In other classes these names may mean something else: such nets are tried on the first batch.
    ours = isinstance(generator, DCGANGenerator | R3GANGenerator) and isinstance(
        discriminator, DCGANDiscriminator | R3GANDiscriminator
    )
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
            "layer: losses take logits."
        )


@torch.no_grad()
def check_generator(
    generator: Any, z: torch.Tensor, real: torch.Tensor, labels: torch.Tensor | None, *, new: bool
) -> tuple[torch.Tensor, ...]:
    """Return a generator's fakes of z, and their labels if there are any.

    Raises ValueError for real examples that are not as the fakes are; warns of a ``new`` generator
    of another range. ``generator``, a player, does not change while it is rehearsing.
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
    with torch.enable_grad():  # so that it can be seen how they were made
        try:
            fake = _made(("noise", "labels", "examples"), generator, z, *classes)
        except RuntimeError as error:
            if "conv_transpose" in str(error):  # the tutorial's noise is (N, Z, 1, 1)
                error.add_note("noise is (N, Z); begin with z = z[:, :, None, None]")
            raise
    fake, last = fake.detach(), _last_node(fake)
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
    low, high = float(real.min()), float(real.max())
    if real.dim() != 4:  # of other data no range is known; these are NaN if they are infinite
        low, high = 0 * low, 0 * high
    if told := checks.image_range(low, high):
        warnings.warn(told, stacklevel=2)
    # R3GAN's nets have no bound while they train, as in the paper: they cut what they sample.
    if new and real.dim() == 4 and not isinstance(generator.module, R3GANGenerator):
        low, high = float(fake.min()), float(fake.max())
        above = last.startswith(("Sigmoid", "Relu", "Hardsigmoid", "Softplus"))
        if above or low < -1.001 or high > 1.001:
            warnings.warn(
                f"the generator's first images are in [{low:.4g}, {high:.4g}], "
                f"{'and none can be below 0' if above else 'beyond the range of the real ones'}; "
                "let it end in nn.Tanh(), for [-1, 1].",
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
    if _last_node(logits).startswith(("Sigmoid", "Softmax", "Hardsigmoid")):
        warnings.warn(
            "the discriminator ends in a sigmoid or the like, so that all it returns is in [0, 1], "
            "but losses take logits; remove that layer.",
            stacklevel=2,
        )


def _last_node(made: torch.Tensor) -> str:
    """Return the name of autograd's node that made a tensor, but for those that keep its range."""
    node = made.grad_fn
    while node is not None and STAYING.match(node.name()):
        node = node.next_functions[0][0]
    return "" if node is None else node.name()


def _made(names: Sequence[str], player: Any, *inputs: torch.Tensor) -> torch.Tensor:
    """Return what a player makes of inputs, if that is a tensor; else raise TypeError."""
    try:
        made = player(*inputs)
    except TypeError:
        remedy = "build both nets with num_classes, or neither."
        if len(inputs) == 1:
            remedy = "if it takes labels, set generator.num_classes to the number of classes."
        checks.takes(
            f"the {player.name}", player.module, f"({', '.join(names[: len(inputs)])})", remedy
        )
        raise
    except (RuntimeError, IndexError) as error:
        if len(inputs) > 1:
            error.add_note(
                "labels are class numbers (N,) of int64; F.one_hot makes vectors of them"
            )
        raise
    if not isinstance(made, torch.Tensor):
        raise TypeError(
            f"the {player.name} must return {names[2]} alone, a tensor (N, ...), got a "
            f"{type(made).__name__}; return the one that is trained on."
        )
    return made


def as_labels(labels: torch.Tensor, count: int, more: str = "") -> torch.Tensor:
    """Return labels (N,) of any integers as int64; raise ValueError for others, or ``more``."""
    if labels.shape != (count,) or labels.is_floating_point() or labels.is_complex():
        raise ValueError(
            f"labels must be (N,) of integers{more}, got {tuple(labels.shape)} of {labels.dtype} "
            f"for N={count}; give each example the number of its class, by labels.long(), or for "
            "(N, 1) by labels[:, 0], for one-hot labels by labels.argmax(1)."
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
