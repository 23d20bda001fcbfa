"""Numbers that change during a run, as pure functions of the number of real images seen.

Schedules have no state, so a resumed run has the right numbers without saving anything, and a
schedule means the same for every batch size. Images are counted before the step: the first step
sees 0. Any function of an int will do; make it a module's own function or a ``functools.partial``
of one, whose name a checkpoint can tell.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

from tinygan._run import checks

Schedule: TypeAlias = Callable[[int], float]
"""Maps the number of real images that a run has seen to a value."""


def linear(start: float, end: float, *, until: int, begin: int = 0) -> Schedule:
    """Return a straight line from ``start`` at image ``begin`` to ``end`` at image ``until``.

    Raises ValueError for values that are not finite, and for ``until`` not after ``begin``.

    Examples:
        >>> linear(0.2, 0.0, until=1000)(500)
        0.1
    """
    return _between(_linear, "(-inf, inf)", start, end, until, begin)


def cosine(start: float, end: float, *, until: int, begin: int = 0) -> Schedule:
    """Return half a cosine wave from ``start`` to ``end``; arguments and errors as in ``linear``.

    end + (start - end) (1 + cos(pi t)) / 2, where t goes from 0 at ``begin`` to 1 at ``until``:
    Loshchilov and Hutter (2017), equation 5, without restarts, as in R3GAN (Huang et al., 2024).

    Examples:
        >>> round(cosine(2e-4, 5e-5, until=1_000_000)(500_000), 9)
        0.000125
    """
    return _between(_cosine, "(-inf, inf)", start, end, until, begin)


def exponential(start: float, end: float, *, until: int, begin: int = 0) -> Schedule:
    """Return start (end / start)^t, t as in ``cosine``: a change by one factor with each image.

    Arguments and errors are as in ``linear``, and both values above 0.

    Examples:
        >>> exponential(10.0, 0.1, until=1_000_000)(500_000)
        1.0
    """
    return _between(_exponential, "(0, inf)", start, end, until, begin)


def inverse_sqrt(start: float, *, begin: int) -> Schedule:
    """Return ``start`` until image ``begin``, then ``start`` times sqrt(begin / n) at image n.

    As in EDM2 (Karras et al. 2024), for runs of any length. Raises ValueError for a ``start`` that
    is not finite, and for ``begin`` below 1.

    Examples:
        >>> inverse_sqrt(1e-3, begin=10_000)(40_000)
        0.0005
    """
    start = checks.number("start", start, "(-inf, inf)")
    return partial(_inverse_sqrt, start=start, begin=checks.count("begin", begin))


def warm_up(value: float | Schedule, *, images: int) -> Schedule:
    """Return a value, or another schedule, times n / ``images`` for the first ``images`` images.

    Goyal et al. (2017), section 2.2. Raises ValueError for ``images`` below 1, and for values that
    ``checked`` refuses.

    Examples:
        >>> warm_up(cosine(2e-4, 0.0, until=1_000_000), images=10_000)(0)
        0.0
    """
    value = checked("value", value, "(-inf, inf)")
    return partial(_warm_up, value=value, images=checks.count("images", images))


def stairs(value: Schedule, *, every: int) -> Schedule:
    """Return another schedule, made to change only every so many images and stay in between.

    Raises ValueError for ``every`` below 1.

    Examples:
        >>> stairs(linear(0.0, 1.0, until=100), every=10)(59)
        0.5
    """
    return partial(_stairs, value=value, every=checks.count("every", every))


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

    Raises ValueError for a number outside the interval or a schedule that starts outside it.

    Examples:
        >>> checked("weight", 10, "[0, inf)")
        10.0
    """
    if callable(value):
        value_at(value, 0, name, interval)
        return value
    return checks.number(name, value, interval)


def _between(
    curve: Callable[..., float], interval: str, start: float, end: float, until: int, begin: int
) -> Schedule:
    start = checks.number("start", start, interval)
    end = checks.number("end", end, interval)
    checks.count("begin", begin, at_least=0)
    checks.count("until", until, at_least=begin + 1)
    return partial(_value, curve=curve, start=start, end=end, until=until, begin=begin)


def _value(
    images: int, *, curve: Callable[..., float], start: float, end: float, until: int, begin: int
) -> float:
    t = min(1.0, max(0.0, (images - begin) / (until - begin)))
    # Rounding may carry the value past the ends.
    return min(max(curve(start, end, t), min(start, end)), max(start, end))


def _linear(start: float, end: float, t: float) -> float:
    return start * (1 - t) + end * t


def _cosine(start: float, end: float, t: float) -> float:
    return _linear(end, start, (1 + math.cos(math.pi * t)) / 2)


def _exponential(start: float, end: float, t: float) -> float:
    return float(start ** (1 - t) * end**t)  # not start * (end / start)**t, which may overflow


def _inverse_sqrt(images: int, *, start: float, begin: int) -> float:
    return start * math.sqrt(begin / max(begin, images))


def _warm_up(seen: int, *, value: float | Schedule, images: int) -> float:
    return value_at(value, seen) * min(1.0, seen / images)


def _stairs(seen: int, *, value: Schedule, every: int) -> float:
    return value_at(value, seen // every * every)
