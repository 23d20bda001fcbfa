"""Arguments, and what a checkpoint was saved from: errors say name, value, rule and remedy."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Mapping
from numbers import Real
from typing import Any, TypeVar

T = TypeVar("T")


def count(name: str, value: int, *, at_least: int = 1) -> int:
    """Return ``value`` if it is an int of at least ``at_least``."""
    # bool is an int to Python, but nobody means True images.
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{name} must be an int, got {value!r}; use {at_least} or more.")
    if value < at_least:
        raise ValueError(
            f"{name} must be at least {at_least}, got {value}; use {at_least} or more."
        )
    return value


def number(name: str, value: Any, interval: str, *, example: float | None = None) -> float:
    """Return ``value`` if it is a number of the ``interval``, such as "[0, 1)"."""
    inside = isinstance(value, Real) and not isinstance(value, bool)
    if inside:
        low, high = (float(end) for end in interval[1:-1].split(","))
        # NaN is in none of them: it compares false.
        inside = low <= value if interval[0] == "[" else low < value
        inside &= value <= high if interval[-1] == "]" else value < high
    if not inside:
        remedy = "" if example is None else f"; for example {example}"
        raise ValueError(f"{name} must be in {interval}, got {value!r}{remedy}.")
    return float(value)


def several(name: str, given: Any, kind: type[T], remedy: str) -> tuple[T, ...]:
    """Return one thing of a kind, several or None as a tuple."""
    found = tuple(given) if isinstance(given, list | tuple) else () if given is None else (given,)
    for one in found:
        if not isinstance(one, kind):
            wanted = f"{kind.__module__}.{kind.__qualname__}"
            raise TypeError(f"{name} must be a {wanted} or several, got {one!r}; {remedy}")
    return found


def size(name: str, value: int | tuple[int, int], *, at_least: int = 1) -> tuple[int, int]:
    """Return ``value`` as (height, width), each of at least ``at_least`` pixels."""
    if isinstance(value, int):
        value = (value, value)
    if not isinstance(value, tuple) or len(value) != 2:
        raise ValueError(
            f"{name} must be an int or a pair (height, width), got {value!r}; "
            "for example 64 or (61, 47)."
        )
    height, width = (count(name, side, at_least=at_least) for side in value)
    return height, width


def require(module: str, *, extra: str, wanted_by: str) -> None:
    """Raise ImportError, naming the pip command, if an extra's library is not installed."""
    if importlib.util.find_spec(module) is None:
        raise ImportError(f'{wanted_by} needs {module}: pip install "tinygan[{extra}]"')


SAVED_AND_NOW = ("when saved", "now")


def differences(
    saved: Mapping[str, object],
    here: Mapping[str, object],
    words: tuple[str, str] = SAVED_AND_NOW,
    *,
    prefix: str = "",
) -> dict[str, str]:
    """Return what is not the same on both sides: both values, by their prefixed names."""
    names = [*saved, *(name for name in here if name not in saved)]
    then, now = words
    return {
        prefix + name: f"{saved.get(name, 'nothing')} {then}, {here.get(name, 'nothing')} {now}"
        for name in names
        if saved.get(name) != here.get(name)
    }


def same(name: str, saved: Mapping[str, object], here: Mapping[str, object]) -> None:
    """Raise ValueError, with every difference, if something is not as it was saved."""
    refuse(differences(saved, here, prefix=f"{name}."))


def refuse(
    found: Mapping[str, str], allow: Collection[str] = (), never: Mapping[str, str] | None = None
) -> None:
    """Raise ValueError for differences but those whose names, or their beginnings, are allowed."""
    refused = {name: both for name, both in found.items() if not _is_allowed(name, allow)}
    remedy = (
        "Use what was saved, or begin a new run in another folder. To go on with it all the same: "
        f"trainer.resume(..., allow={[*allow, *refused]})"
    )
    if never:
        remedy = "No other nets can go on from it: use those, or begin a new run in another folder."
        refused |= never
    if refused:
        lines = [f"  {name}: {both}" for name, both in refused.items()]
        raise ValueError("\n".join(["this checkpoint belongs to a different run:", *lines, remedy]))


def _is_allowed(name: str, allow: Collection[str]) -> bool:
    return any(name == word or name.startswith((f"{word}.", f"{word} ")) for word in allow)
