"""Numbers that change during a run, as pure functions of the number of real images seen.

Schedules have no state, so a resumed run has the right numbers without saving anything, and a
schedule means the same for every batch size. Images are counted before the step: the first step
sees 0.

A schedule can replace a number in ``hooks.Schedule`` (learning rates, betas), penalty weights, the
strength of augmentations and the half-life of the moving average. Any function of an int will do;
make it a module's own function or a ``functools.partial`` of one, whose name a checkpoint can tell.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

from tinygan._run import checks

Schedule: TypeAlias = Callable[[int], float]
"""Maps the number of real images that a run has seen to a value."""


def constant(value: float) -> Schedule:
    """Return a schedule that never changes.

    Examples:
        >>> constant(2e-4)(1_000_000)
        0.0002
    """
    return partial(_constant, value=checks.number("value", value, "(-inf, inf)"))


def linear(start: float, end: float, *, until: int, begin: int = 0) -> Schedule:
    """Return a straight line from ``start`` at image ``begin`` to ``end`` at image ``until``.

    Raises ValueError for values that are not finite, and for ``until`` not after ``begin``.

    Examples:
        >>> fade = linear(0.2, 0.0, until=1000)
        >>> fade(0), fade(500), fade(5000)
        (0.2, 0.1, 0.0)
    """
    return _between(_linear, "(-inf, inf)", start, end, until, begin)


def cosine(start: float, end: float, *, until: int, begin: int = 0) -> Schedule:
    """Return half a cosine wave from ``start`` to ``end``; arguments and errors as in ``linear``.

    end + (start - end) (1 + cos(pi t)) / 2, where t goes from 0 at ``begin`` to 1 at ``until``:
    Loshchilov and Hutter (2017), equation 5, without restarts, as in R3GAN (Huang et al., 2024).

    Examples:
        >>> rate = cosine(2e-4, 5e-5, until=1_000_000)
        >>> rate(0), round(rate(500_000), 9), rate(1_000_000)
        (0.0002, 0.000125, 5e-05)
    """
    return _between(_cosine, "(-inf, inf)", start, end, until, begin)


def exponential(start: float, end: float, *, until: int, begin: int = 0) -> Schedule:
    """Return a change by the same factor with each image; arguments and errors as in ``linear``.

    start (end / start)^t, where t goes from 0 at ``begin`` to 1 at ``until``. Both are above 0.

    Examples:
        >>> weight = exponential(10.0, 0.1, until=1_000_000)
        >>> weight(0), weight(500_000), weight(1_000_000)
        (10.0, 1.0, 0.1)
    """
    return _between(_exponential, "(0, inf)", start, end, until, begin)


def warm_up(value: float | Schedule, *, images: int) -> Schedule:
    """Return a value, or another schedule, times n / ``images`` for the first ``images`` images.

    Goyal et al. (2017), section 2.2. Raises ValueError for ``images`` below 1 or a value that is
    not finite, and TypeError for one that is neither a number nor a schedule.

    Examples:
        >>> rate = warm_up(cosine(2e-4, 0.0, until=1_000_000), images=10_000)
        >>> rate(0), rate(1_000_000)
        (0.0, 0.0)
    """
    value = checked("value", value, "(-inf, inf)")
    return partial(_warm_up, value=value, images=checks.count("images", images))


def value_at(
    value: float | Schedule, images: int, name: str = "a schedule", interval: str = "(-inf, inf)"
) -> float:
    """Return a number, or a schedule's value after so many images.

    Raises ValueError for a scheduled value outside the interval.

    Examples:
        >>> value_at(linear(1.0, 0.0, until=100), 75)
        0.25
    """
    if not callable(value):
        return float(value)
    return checks.number(f"{name} at {images} images", value(images), interval)


def checked(name: str, value: float | Schedule, interval: str) -> float | Schedule:
    """Return a number as a float, or a schedule as it is.

    Raises ValueError for a number outside the interval or a schedule that starts outside it, and
    TypeError for a function that does not take the number of images.

    Examples:
        >>> checked("weight", 10, "[0, inf)")
        10.0
    """
    if not callable(value):
        return checks.number(name, value, interval)
    try:
        inspect.signature(value).bind(0)
    except TypeError:
        raise TypeError(
            f"{name} must be a number or a function of the images seen, got {value!r}; give it "
            "its arguments, as in schedules.cosine(2e-4, 0.0, until=1_000_000)."
        ) from None
    value_at(value, 0, name, interval)
    return value


def _between(
    curve: Callable[..., float], interval: str, start: float, end: float, until: int, begin: int
) -> Schedule:
    start = checks.number("start", start, interval)
    end = checks.number("end", end, interval)
    checks.count("begin", begin, at_least=0)
    checks.count("until", until, at_least=begin + 1)
    return partial(curve, start=start, end=end, until=until, begin=begin)


def _constant(images: int, *, value: float) -> float:
    return value


def _linear(images: int, *, start: float, end: float, until: int, begin: int) -> float:
    t = _progress(images, begin, until)
    return _clamped(start * (1 - t) + end * t, start, end)


def _cosine(images: int, *, start: float, end: float, until: int, begin: int) -> float:
    left = (1 + math.cos(math.pi * _progress(images, begin, until))) / 2
    return _clamped(start * left + end * (1 - left), start, end)


def _exponential(images: int, *, start: float, end: float, until: int, begin: int) -> float:
    t = _progress(images, begin, until)
    # Not start * (end / start)**t: the quotient may overflow.
    return _clamped(start ** (1 - t) * end**t, start, end)


def _progress(images: int, begin: int, until: int) -> float:
    return min(1.0, max(0.0, (images - begin) / (until - begin)))


def _clamped(value: float, start: float, end: float) -> float:
    # Rounding may have carried the value past the ends.
    return min(max(value, min(start, end)), max(start, end))


def _warm_up(seen: int, *, value: float | Schedule, images: int) -> float:
    return value_at(value, seen) * min(1.0, seen / images)
