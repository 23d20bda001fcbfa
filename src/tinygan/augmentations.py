"""Augmentations: random changes to every example, real or fake, before D sees it.

Real examples and fakes go through the same differentiable function, so that G learns the data's own
distribution, not that of augmented examples (Zhao et al. 2020, section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from tinygan import sampling, schedules, seeds
from tinygan._run import checks
from tinygan.batch import Batch, Draw
from tinygan.nets.traits import layout
from tinygan.schedules import Schedule

__all__ = ["Augmentation", "diff_augment", "instance_noise"]


@dataclass(frozen=True)
class Augmentation:
    """A random function in two parts, so that random numbers are drawn before the step.

    Args:
        draw: draws a tensor (N, ...), a row for each example, see ``tinygan.Batch``.
        apply: maps examples (N, ...) and what was drawn for them to examples of the same shape,
            differentiably.
        synced: whether a fake is changed by the same random numbers as the real example beside it.

    Examples:
        >>> dim = Augmentation(sampling.one_each, lambda x, drawn: x * drawn.view(-1, 1, 1, 1))
    """

    draw: Draw
    apply: Callable[[Tensor, Tensor], Tensor]
    synced: bool = False


def listed(given: Augmentation | Sequence[Augmentation] | None) -> tuple[Augmentation, ...]:
    """Return one, several or no augmentations as a tuple; raise TypeError for anything else."""
    remedy = "call the function, as in augmentations.diff_augment()."
    return checks.several("augment", given, Augmentation, remedy)


def applied(
    augmentations: Sequence[Augmentation], examples: Tensor, batch: Batch, which: str
) -> Tensor:
    """Return examples, augmented with the step's draws for ``which`` of them, such as "real"."""
    changed = examples
    for number, augmentation in enumerate(augmentations):
        name = f"augment.{number}" if augmentation.synced else f"augment.{number}.{which}"
        drawn = batch.draw(name, augmentation.draw)
        changed = augmentation.apply(changed, drawn)
        if changed.shape != examples.shape:
            raise ValueError(
                f"augment[{number}] must return the shape that it is given, "
                f"{tuple(examples.shape)}, got {tuple(changed.shape)}; change each example alone."
            )
    if not augmentations or examples.dim() != 4:
        return changed
    return changed.to(examples.dtype, memory_format=layout(changed.device))


def instance_noise(deviation: float | Schedule = 0.1) -> Augmentation:
    """Return noise from N(0, deviation^2) on every number of an example; it may fade.

    It makes the distributions of real examples and fakes overlap, so that D cannot win outright
    (Sonderby et al. 2017; Arjovsky and Bottou 2017). The deviation is a number or a schedule, at
    least 0, where images are in [-1, 1].

    Examples:
        >>> fading = instance_noise(schedules.linear(0.1, 0.0, until=1000))
    """
    deviation = schedules.checked("deviation", deviation, "[0, inf)")
    return Augmentation(partial(sampling.noise, deviation=deviation), torch.add)


def diff_augment(
    *,
    colour: bool = True,
    translation: float = 0.125,
    cutout: float = 0.5,
    p: float | Schedule = 1.0,
    synced: bool = False,
) -> Augmentation:
    """Return DiffAugment (Zhao et al. 2020), for data of a few thousand images or fewer.

    It changes each image's colours, moves the image, with grey (0) coming in from outside, and
    makes a rectangle of it grey. All shares and probabilities are in [0, 1].

    Args:
        colour: brightness changes by U(-0.5, 0.5), saturation by a factor from U(0, 2), contrast
            by one from U(0.5, 1.5).
        translation: the furthest move, up, down, left and right, as a share of the sides.
        cutout: the sides of the rectangle as a share of the image's.
        p: the probability that an image is augmented: a number, or a schedule (Karras et al. 2020,
            section 2.2, who draw for each change separately).
        synced: whether a fake is changed like the real image beside it, with which a paired loss
            compares it (as in https://github.com/IFeelBloated/R3GAN2).

    Examples:
        >>> gently = diff_augment(colour=False, p=schedules.linear(0.0, 0.8, until=100_000))
    """
    translation = checks.number("translation", translation, "[0, 1]")
    cutout = checks.number("cutout", cutout, "[0, 1]")
    draw = partial(_eight_each, p=schedules.checked("p", p, "[0, 1]"))
    change = partial(_diff_augment, colour=colour, translation=translation, cutout=cutout)
    return Augmentation(draw, change if p == 1 else partial(_some, change=change), synced)


def _eight_each(
    shape: Sequence[int], generator: torch.Generator, images: int, *, p: float | Schedule
) -> Tensor:
    """Draw seven numbers for each image, and 1 or 0: whether to use them."""
    seven = seeds.drawn(torch.rand, (shape[0], 7), generator)
    used = sampling.one_each(shape, generator) < schedules.value_at(p, images, "p", "[0, 1]")
    return torch.cat([seven, used[:, None].to(seven)], 1)


def _some(images: Tensor, drawn: Tensor, *, change: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    # Not by an index: a captured step cannot know how many there will be.
    return torch.where(drawn[:, 7].view(-1, 1, 1, 1) == 1, change(images, drawn), images)


def _diff_augment(
    x: Tensor, drawn: Tensor, *, colour: bool, translation: float, cutout: float
) -> Tensor:
    brightness, saturation, contrast, down, right, row, column, _ = drawn.T[..., None, None, None]
    if colour:
        x = x + brightness - 0.5
        grey = x.mean(1, keepdim=True)
        x = grey + 2 * saturation * (x - grey)
        mean = x.mean((1, 2, 3), keepdim=True)
        x = mean + (contrast + 0.5) * (x - mean)
    x = _moved(_moved(x, 2, down, translation), 3, right, translation)
    if cutout == 0:
        return x
    return x * ~(_covered(x, 2, row, cutout) & _covered(x, 3, column, cutout))


def _moved(images: Tensor, axis: int, share: Tensor, translation: float) -> Tensor:
    """Move each image along an axis by a whole number of pixels, drawn evenly by its share."""
    most = int(images.shape[axis] * translation + 0.5)
    if most == 0:
        return images
    padded = F.pad(images, [0, 0, most, most] if axis == 2 else [most, most, 0, 0])
    places = (share * (2 * most + 1)).long() + _places(images, axis)
    # Not indexing: no two places are the same, so its gradient is a plain scatter, exact and the
    # same each time on a GPU too.
    return padded.gather(axis, places.expand(images.shape))


def _covered(images: Tensor, axis: int, share: Tensor, cutout: float) -> Tensor:
    """Return which rows or columns of each image its rectangle covers; its centre is inside."""
    side = images.shape[axis]
    length = int(side * cutout + 0.5)
    first = (share * (side + 1 - length % 2)).long() - length // 2
    places = _places(images, axis)
    return (places >= first) & (places < first + length)


def _places(images: Tensor, axis: int) -> Tensor:
    """Return the numbers of an axis's rows or columns, along that axis."""
    places = torch.arange(images.shape[axis], device=images.device)
    return places.view(-1, 1) if axis == 2 else places
