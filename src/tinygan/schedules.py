"""Numbers that change in the course of a run, as pure functions of the real images seen.

They have no state. So a resumed run has the right numbers without anything that was saved, and a
schedule means the same for every batch size. Images are counted before the step: in the first one
they are 0.

A schedule may stand for the number wherever an argument says so: for what ``hooks.Schedule`` sets,
such as learning rates and betas, for the weights of penalties, the strength of augmentations and
the half-life of the moving average. Any function of an int will do. One of a module's own, or a
``functools.partial`` of one, has a name, by which a checkpoint knows it.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

from tinygan._run import checks

Schedule: TypeAlias = Callable[[int], float]
"""Maps the real images that a run has seen to a number."""


def constant(value: float) -> Schedule:
    """Return a schedule that never changes.

    Args:
        value: any finite number.

    Examples:
        >>> constant(2e-4)(1_000_000)
        0.0002
    """
    return partial(_constant, value=_finite("value", value))


def linear(start: float, end: float, *, until: int, begin: int = 0) -> Schedule:
    """Return a straight line from ``start`` to ``end``.

    Args:
        start: the value up to ``begin``.
        end: the value from ``until`` on.
        until: in images, after ``begin``.
        begin: in images, at least 0.

    Raises:
        ValueError: for values that are not finite, or ``until`` that is not after ``begin``.

    Examples:
        >>> fade = linear(0.2, 0.0, until=1000)
        >>> fade(0), fade(500), fade(5000)
        (0.2, 0.1, 0.0)
    """
    values = _finite("start", start), _finite("end", end)
    return _between(_linear, values, begin, until)


def cosine(start: float, end: float, *, until: int, begin: int = 0) -> Schedule:
    """Return half a wave from ``start`` to ``end``: flat at both, and steepest between.

    end + (start - end) (1 + cos(pi t)) / 2, where t goes from 0 at ``begin`` to 1 at ``until``
    (Loshchilov and Hutter 2017, equation 5, without restarts; R3GAN, Huang et al. 2024, for rates,
    Adam's second beta, penalty weights and half-life). For arguments and errors see ``linear``.

    Examples:
        >>> rate = cosine(2e-4, 5e-5, until=1_000_000)
        >>> rate(0), round(rate(500_000), 9), rate(1_000_000)
        (0.0002, 0.000125, 5e-05)
    """
    values = _finite("start", start), _finite("end", end)
    return _between(_cosine, values, begin, until)


def exponential(start: float, end: float, *, until: int, begin: int = 0) -> Schedule:
    """Return a change from ``start`` to ``end`` by the same factor with each image.

    start (end / start)^t, where t goes from 0 at ``begin`` to 1 at ``until``. Both values are above
    0, which factors never reach. For the other arguments and errors see ``linear``.

    Examples:
        >>> weight = exponential(10.0, 0.1, until=1_000_000)
        >>> weight(0), weight(500_000), weight(1_000_000)
        (10.0, 1.0, 0.1)
    """
    values = (
        checks.number("start", start, "(0, inf)", example=10.0),
        checks.number("end", end, "(0, inf)", example=0.1),
    )
    return _between(_exponential, values, begin, until)


def warm_up(value: float | Schedule, *, images: int) -> Schedule:
    """Return a schedule that rises in a straight line from 0 to what it is made of.

    ``value`` times n / ``images``, as long as n is less than that (Goyal et al. 2017, section 2.2).

    Args:
        value: a number, or a schedule, which goes on meanwhile.
        images: how long it rises, at least 1.

    Raises:
        ValueError: for ``images`` under 1, or a value that is not finite.
        TypeError: for a value that is neither a number nor a function of the images seen.

    Examples:
        >>> rate = warm_up(cosine(2e-4, 0.0, until=1_000_000), images=10_000)
        >>> rate(0), rate(1_000_000)
        (0.0, 0.0)
    """
    value = checked("value", value, "(-inf, inf)", example=2e-4)
    return partial(_warm_up, value=value, images=checks.count("images", images))


def value_at(
    value: float | Schedule,
    images: int,
    name: str = "a schedule",
    interval: str = "(-inf, inf)",
    *,
    example: float = 0.1,
) -> float:
    """Return a number, or what a schedule gives after so many images.

    Args:
        value: one or the other.
        images: the real images seen, at least 0.
        name: what an error calls it.
        interval: where a schedule's values must lie, such as "[0, 1)".
        example: a value that errors suggest.

    Raises:
        ValueError: for a schedule that gives no number of the interval.

    Examples:
        >>> value_at(0.5, 100), value_at(linear(1.0, 0.0, until=100), 75)
        (0.5, 0.25)
    """
    if not callable(value):
        return float(value)
    return checks.number(f"{name} at {images} images", value(images), interval, example=example)


def checked(
    name: str, value: float | Schedule, interval: str, *, example: float
) -> float | Schedule:
    """Return a number of the interval as a float, or a schedule that begins in it as it is.

    Raises:
        ValueError: for a number outside of the interval, or a schedule that begins there.
        TypeError: for a function that cannot be called with the images seen.

    Examples:
        >>> checked("weight", 10, "[0, inf)", example=10.0)
        10.0
    """
    if not callable(value):
        return checks.number(name, value, interval, example=example)
    try:
        inspect.signature(value).bind(0)
    except TypeError:
        raise TypeError(
            f"{name} must be a number or a function of the images seen, got {value!r}; call what "
            f"makes a schedule, as in schedules.cosine({example}, 0.0, until=1_000_000)."
        ) from None
    value_at(value, 0, name, interval, example=example)
    return value


def _finite(name: str, value: float) -> float:
    return checks.number(name, value, "(-inf, inf)", example=0.1)


def _between(
    curve: Callable[..., float], values: tuple[float, float], begin: int, until: int
) -> Schedule:
    checks.count("begin", begin, at_least=0)
    checks.count("until", until, at_least=begin + 1)
    start, end = values
    return partial(curve, start=start, end=end, until=until, begin=begin)


def _constant(images: int, *, value: float) -> float:
    return value


def _share(images: int, begin: int, until: int) -> float:
    """Return how much of the way is done, in [0, 1]."""
    return min(1.0, max(0.0, (images - begin) / (until - begin)))


def _within(value: float, start: float, end: float) -> float:
    """Return a value that rounding may have carried past the ends, between them."""
    return min(max(value, min(start, end)), max(start, end))


def _linear(images: int, *, start: float, end: float, until: int, begin: int) -> float:
    share = _share(images, begin, until)
    return _within(start * (1 - share) + end * share, start, end)


def _cosine(images: int, *, start: float, end: float, until: int, begin: int) -> float:
    left = (1 + math.cos(math.pi * _share(images, begin, until))) / 2
    return _within(start * left + end * (1 - left), start, end)


def _exponential(images: int, *, start: float, end: float, until: int, begin: int) -> float:
    share = _share(images, begin, until)
    # Not start (end / start)^share: the quotient might be too large for a float.
    return _within(start ** (1 - share) * end**share, start, end)


def _warm_up(seen: int, *, value: float | Schedule, images: int) -> float:
    return value_at(value, seen) * min(1.0, seen / images)
