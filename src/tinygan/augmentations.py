"""Augmentation: what is done at random to every image before D sees it, real or fake.

Real images and fakes go through the same differentiable function, so that G learns the data's own
distribution and not that of augmented images (Zhao et al. 2020, section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from tinygan import checks, sampling
from tinygan.sampling import Draw


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
        TypeError: for what is none, such as what makes one.

    Examples:
        >>> len(listed([diff_augment(), instance_noise()]))
        2
    """
    remedy = "call what makes it, as in augmentations.diff_augment()."
    return checks.several("augment", given, Augmentation, remedy)


def instance_noise(deviation: float = 0.1, *, until: int | None = None) -> Augmentation:
    """Return noise from N(0, deviation^2) on every pixel, which may fade in the course of a run.

    With it the distributions of real images and of fakes overlap, so that D cannot win outright
    (Sonderby et al. 2017; Arjovsky and Bottou 2017).

    Args:
        deviation: the standard deviation at the start, at least 0, where images are in [-1, 1].
        until: the images after which there is none, to which it falls in a straight line; None
            for noise that stays.

    Raises:
        ValueError: for a negative deviation, or ``until`` under 1.

    Examples:
        >>> noise = instance_noise(0.1, until=1000)
        >>> noise.draw((2, 3, 8, 8), torch.Generator(), 1000).abs().max()
        tensor(0.)
    """
    deviation = checks.number("deviation", deviation, "[0, inf)", say=0.1)
    if until is not None:
        checks.count("until", until)
    return Augmentation(partial(_fading_noise, deviation=deviation, until=until), _sum)


def _sum(images: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    return images + noise


def _fading_noise(
    shape: Sequence[int],
    generator: torch.Generator,
    images: int,
    *,
    deviation: float,
    until: int | None,
) -> torch.Tensor:
    left = 1.0 if until is None else max(0.0, 1 - images / until)
    if left == 0:
        return torch.zeros(tuple(shape), device=generator.device)
    return sampling.gaussian_noise(shape, generator, deviation=deviation * left)


def diff_augment(
    *, colour: bool = True, translation: float = 0.125, cutout: float = 0.5
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

    Raises:
        ValueError: for a share out of range.

    Examples:
        >>> augment = diff_augment(colour=False, cutout=0)
        >>> images = torch.ones(2, 3, 8, 8)
        >>> drawn = augment.draw(images.shape, torch.Generator().manual_seed(0), 0)
        >>> augment.apply(images, drawn).shape
        torch.Size([2, 3, 8, 8])
    """
    translation = checks.number("translation", translation, "[0, 1]", say=0.125)
    cutout = checks.number("cutout", cutout, "[0, 1]", say=0.5)
    return Augmentation(
        draw=_seven_each,
        apply=partial(_diff_augment, colour=colour, translation=translation, cutout=cutout),
    )


def _seven_each(shape: Sequence[int], generator: torch.Generator, images: int) -> torch.Tensor:
    return torch.rand(shape[0], 7, generator=generator, device=generator.device)


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
