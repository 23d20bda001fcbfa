"""Argument checks whose errors say name, value, rule and remedy."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any, TypeVar

T = TypeVar("T")


def count(name: str, value: int, *, at_least: int = 1) -> int:
    """Return ``value`` if it is an int of at least ``at_least``.

    Raises:
        ValueError: naming the argument, its value, the rule and the remedy.

    Examples:
        >>> count("channels", 3)
        3
    """
    # bool is an int to Python, but nobody means True images.
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{name} must be an int, got {value!r}; use {at_least} or more.")
    if value < at_least:
        raise ValueError(
            f"{name} must be at least {at_least}, got {value}; use {at_least} or more."
        )
    return value


def number(name: str, value: Any, interval: str, *, say: float) -> float:
    """Return ``value`` if it is a number of the ``interval``, such as "[0, 1)".

    Raises:
        ValueError: naming the argument, its value, the interval, and ``say`` as the remedy.

    Examples:
        >>> number("weight", 0.5, "[0, inf)", say=10.0)
        0.5
    """
    inside = isinstance(value, Real) and not isinstance(value, bool)
    if inside:
        low, high = (float(end) for end in interval[1:-1].split(","))
        # NaN is in none of them: it compares false.
        inside = low <= value if interval[0] == "[" else low < value
        inside &= value <= high if interval[-1] == "]" else value < high
    if not inside:
        raise ValueError(f"{name} must be in {interval}, got {value!r}; use {say}, say.")
    return float(value)


def several(name: str, given: Any, kind: type[T], remedy: str) -> tuple[T, ...]:
    """Return one, several or no things of a kind as a tuple.

    Raises:
        TypeError: for anything else, naming the argument, its value, the kind and the remedy.

    Examples:
        >>> several("size", 3, int, "give 3."), several("size", None, int, "give 3.")
        ((3,), ())
    """
    found = tuple(given) if isinstance(given, list | tuple) else () if given is None else (given,)
    for one in found:
        if not isinstance(one, kind):
            wanted = f"{kind.__module__}.{kind.__qualname__}"
            raise TypeError(f"{name} must be a {wanted} or several, got {one!r}; {remedy}")
    return found


def size(name: str, value: int | tuple[int, int], *, at_least: int = 1) -> tuple[int, int]:
    """Return ``value`` as (height, width), each of at least ``at_least`` pixels.

    Raises:
        ValueError: for anything but an int or a pair of ints that large.

    Examples:
        >>> size("image_size", 64)
        (64, 64)
    """
    if isinstance(value, int):
        value = (value, value)
    if not isinstance(value, tuple) or len(value) != 2:
        raise ValueError(
            f"{name} must be an int or a pair (height, width), got {value!r}; "
            "use 64 or (61, 47), say."
        )
    height, width = (count(name, side, at_least=at_least) for side in value)
    return height, width


SAVED_AND_NOW = ("when saved", "now")


def differences(
    saved: Mapping[str, object],
    here: Mapping[str, object],
    words: tuple[str, str] = SAVED_AND_NOW,
) -> list[str]:
    """Return one line for each name whose value is not the same on both sides.

    Examples:
        >>> differences({"seed": 1, "size": 8}, {"seed": 2, "size": 8})
        ['seed: 1 when saved, 2 now']
    """
    names = [*saved, *(name for name in here if name not in saved)]
    then, now = words
    return [
        f"{name}: {saved.get(name, 'nothing')} {then}, {here.get(name, 'nothing')} {now}"
        for name in names
        if saved.get(name) != here.get(name)
    ]


def same(name: str, saved: Mapping[str, object], here: Mapping[str, object]) -> None:
    """Raise ValueError, with every difference, if something is not as it was saved.

    Examples:
        >>> same("batches", {"seed": 1}, {"seed": 1})
    """
    refuse(name, differences(saved, here))


def refuse(name: str, found: list[str]) -> None:
    """Raise ValueError if any differences were found."""
    if found:
        raise ValueError(
            f"{name} must be as when the run was saved, got differences:\n  "
            + "\n  ".join(found)
            + "\ngo on with what was saved, or start a new run in another folder."
        )
