"""Augmentation: what is done at random to every image before D sees it, real or fake.

Real images and fakes go through the same differentiable function, so that G learns the data's own
distribution and not that of augmented images (Zhao et al. 2020, section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from tinygan import sampling, schedules
from tinygan._run import checks
from tinygan.batch import Batch, Draw
from tinygan.schedules import Schedule


@dataclass(frozen=True)
class Augmentation:
    """A random function of images, in two parts, so that what is random is drawn before the step.

    Args:
        draw: draws a tensor (N, ...), a row for each image, see ``tinygan.sampling.Draw``.
        apply: maps images (N, C, H, W) and what was drawn for them to images of the same shape,
            in a way that gradients flow through.

    Examples:
        >>> dim = Augmentation(
        ...     draw=lambda shape, generator, seen: torch.rand(
        ...         shape[0], 1, 1, 1, generator=generator, device=generator.device
        ...     ),
        ...     apply=lambda images, drawn: images * drawn,
        ... )
    """

    draw: Draw
    apply: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def listed(given: Augmentation | Sequence[Augmentation] | None) -> tuple[Augmentation, ...]:
    """Return one, several or no augmentations as a tuple.

    Raises:
        TypeError: for anything else, such as the function that makes one.

    Examples:
        >>> len(listed([diff_augment(), instance_noise()]))
        2
    """
    remedy = "call what makes it, as in augmentations.diff_augment()."
    return checks.several("augment", given, Augmentation, remedy)


def applied(
    augmentations: Sequence[Augmentation], images: torch.Tensor, batch: Batch, which: str
) -> torch.Tensor:
    """Return images (N, C, H, W), augmented by what is drawn in the step for ``which`` of them.

    Raises:
        ValueError: for an augmentation that gives images of another shape.

    Examples:
        >>> images = torch.zeros(4, 3, 8, 8)
        >>> applied([diff_augment()], images, Batch.of(images), "real").shape
        torch.Size([4, 3, 8, 8])
    """
    changed = images
    for number, augmentation in enumerate(augmentations):
        drawn = batch.draw(f"augment.{number}.{which}", augmentation.draw)
        changed = augmentation.apply(changed, drawn)
        if changed.shape != images.shape:
            raise ValueError(
                f"augment {number} must give images of the same shape, {tuple(images.shape)}, "
                f"got {tuple(changed.shape)}; change each image for itself."
            )
    if not augmentations or images.dim() != 4:
        return changed
    return changed.to(images.dtype, memory_format=torch.channels_last)


def instance_noise(deviation: float | Schedule = 0.1) -> Augmentation:
    """Return noise from N(0, deviation^2) on every pixel, which may fade in the course of a run.

    With it the distributions of real images and of fakes overlap, so that D cannot win outright
    (Sonderby et al. 2017; Arjovsky and Bottou 2017).

    Args:
        deviation: the standard deviation, at least 0, where images are in [-1, 1]: a number, or a
            schedule, see ``tinygan.schedules``.

    Raises:
        ValueError: for a negative deviation.
        TypeError: for a deviation that is neither a number nor a function of the images seen.

    Examples:
        >>> noise = instance_noise(schedules.linear(0.1, 0.0, until=1000))
        >>> noise.draw((2, 3, 8, 8), torch.Generator(), 1000).abs().max()
        tensor(0.)
    """
    deviation = schedules.checked("deviation", deviation, "[0, inf)", example=0.1)
    if callable(deviation):
        return Augmentation(partial(_changing_noise, deviation=deviation), _sum)
    return Augmentation(partial(sampling.gaussian_noise, deviation=deviation), _sum)


def _sum(images: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    return images + noise


def _changing_noise(
    shape: Sequence[int], generator: torch.Generator, images: int, *, deviation: Schedule
) -> torch.Tensor:
    now = schedules.value_at(deviation, images, "deviation", "[0, inf)", example=0.1)
    if now == 0:
        return torch.zeros(tuple(shape), device=generator.device)
    return sampling.gaussian_noise(shape, generator, deviation=now)


def diff_augment(
    *,
    colour: bool = True,
    translation: float = 0.125,
    cutout: float = 0.5,
    p: float | Schedule = 1.0,
) -> Augmentation:
    """Return DiffAugment (Zhao et al. 2020), for data of some thousands of images or fewer.

    Each image's brightness, saturation and contrast are changed, it is moved, with grey (0) where
    it leaves, and a rectangle of it is made grey.

    Args:
        colour: whether the first three are changed: brightness by U(-0.5, 0.5), saturation by
            a factor of U(0, 2), contrast of U(0.5, 1.5).
        translation: how far it is moved at most, up, down, left and right, as a share of the
            sides in [0, 1].
        cutout: the sides of the rectangle as a share of the image's, in [0, 1].
        p: how probable it is that an image is augmented, in [0, 1], or else left as it is (Karras
            et al. 2020, section 2.2, who draw for each change apart): a number, or a schedule.

    Raises:
        ValueError: for a share or a probability out of range.
        TypeError: for a probability that is neither a number nor a function of the images seen.

    Examples:
        >>> augment = diff_augment(colour=False, cutout=0)
        >>> images = torch.ones(2, 3, 8, 8)
        >>> drawn = augment.draw(images.shape, torch.Generator().manual_seed(0), 0)
        >>> augment.apply(images, drawn).shape
        torch.Size([2, 3, 8, 8])
        >>> ever_more = diff_augment(p=schedules.linear(0.0, 0.8, until=100_000))
    """
    translation = checks.number("translation", translation, "[0, 1]", example=0.125)
    cutout = checks.number("cutout", cutout, "[0, 1]", example=0.5)
    p = schedules.checked("p", p, "[0, 1]", example=0.8)
    change = partial(_diff_augment, colour=colour, translation=translation, cutout=cutout)
    if p == 1:
        return Augmentation(draw=_seven_each, apply=change)
    return Augmentation(draw=partial(_eight_each, p=p), apply=partial(_some, change=change))


def _seven_each(shape: Sequence[int], generator: torch.Generator, images: int) -> torch.Tensor:
    return torch.rand(shape[0], 7, generator=generator, device=generator.device)


def _eight_each(
    shape: Sequence[int], generator: torch.Generator, images: int, *, p: float | Schedule
) -> torch.Tensor:
    """Draw the seven, and for each image whether they are to be used: 1 or 0."""
    seven = _seven_each(shape, generator, images)
    now = schedules.value_at(p, images, "p", "[0, 1]", example=0.8)
    used = torch.rand(shape[0], 1, generator=generator, device=generator.device) < now
    return torch.cat([seven, used.to(seven)], 1)


def _some(
    images: torch.Tensor,
    drawn: torch.Tensor,
    *,
    change: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    # Chosen among both, not indexed: a step that is recorded cannot know how many there are.
    return torch.where(drawn[:, 7].view(-1, 1, 1, 1) == 1, change(images, drawn), images)


def _diff_augment(
    images: torch.Tensor, drawn: torch.Tensor, *, colour: bool, translation: float, cutout: float
) -> torch.Tensor:
    if colour:
        brightness, saturation, contrast = drawn[:, :3].T.reshape(3, -1, 1, 1, 1)
        images = images + brightness - 0.5
        grey = images.mean(1, keepdim=True)
        images = grey + 2 * saturation * (images - grey)
        mean = images.mean((1, 2, 3), keepdim=True)
        images = mean + (contrast + 0.5) * (images - mean)
    for axis, share in ((2, drawn[:, 3]), (3, drawn[:, 4])):
        images = _moved(images, axis, share, translation)
    if cutout == 0:
        return images
    rows, columns = (
        _inside(images, axis, share, cutout) for axis, share in ((2, drawn[:, 5]), (3, drawn[:, 6]))
    )
    return images * ~(rows & columns)


def _moved(
    images: torch.Tensor, axis: int, share: torch.Tensor, translation: float
) -> torch.Tensor:
    """Move each image along an axis by a whole number of pixels, drawn evenly by its share."""
    side = images.shape[axis]
    most = int(side * translation + 0.5)
    if most == 0:
        return images
    padding = [0, 0, most, most] if axis == 2 else [most, most, 0, 0]
    padded = torch.nn.functional.pad(images, padding)
    first = _whole(share, 2 * most + 1)
    view = [1, 1, 1, 1]
    view[axis] = side
    places = first + torch.arange(side, device=images.device).view(view)
    # Not indexing: no two places are the same, so its gradient is a plain scatter, exact and the
    # same each time on a GPU too.
    return padded.gather(axis, places.expand(images.shape))


def _whole(share: torch.Tensor, count: int) -> torch.Tensor:
    """Return for each image a whole number under ``count``, as its share of [0, 1) says."""
    return (share * count).long().view(-1, 1, 1, 1)


def _inside(images: torch.Tensor, axis: int, share: torch.Tensor, cutout: float) -> torch.Tensor:
    """Return for each image which rows, or columns, its rectangle covers, its centre inside."""
    side = images.shape[axis]
    length = int(side * cutout + 0.5)
    view = [1, 1, 1, 1]
    view[axis] = side
    first = _whole(share, side + 1 - length % 2) - length // 2
    places = torch.arange(side, device=images.device).view(view)
    return (places >= first) & (places < first + length)
