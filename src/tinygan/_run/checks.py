"""Arguments, and what a checkpoint was saved from: errors say name, value, rule and remedy."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Collection, Mapping
from numbers import Real
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def count(name: str, value: int, *, at_least: int = 1) -> int:
    """Return ``value`` if it is an int of at least ``at_least``."""
    # bool is an int to Python, but nobody means True images.
    is_int = isinstance(value, int) and not isinstance(value, bool)
    if not is_int or value < at_least:
        rule = f"at least {at_least}" if is_int else "an int"
        raise ValueError(f"{name} must be {rule}, got {value!r}; use {at_least} or more.")
    return value


def number(name: str, value: Any, interval: str) -> float:
    """Return ``value`` if it is a number of the ``interval``, such as "[0, 1)"."""
    inside = isinstance(value, Real) and not isinstance(value, bool)
    if inside:
        low, high = (float(end) for end in interval[1:-1].split(","))
        # NaN is in none of them: it compares false.
        inside = low <= value if interval[0] == "[" else low < value
        inside &= value <= high if interval[-1] == "]" else value < high
    if not inside:
        raise ValueError(f"{name} must be in {interval}, got {value!r}; use a number in it.")
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
    pair = (value, value) if isinstance(value, int) else value
    if not isinstance(pair, tuple) or len(pair) != 2:
        raise ValueError(
            f"{name} must be an int or (height, width), got {value!r}; for example 64."
        )
    height, width = (count(name, side, at_least=at_least) for side in pair)
    return height, width


def path(name: str, value: Any) -> Path:
    """Return ``value`` as a path, if it is one."""
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{name} must be a path, got {value!r}; give a string or a pathlib.Path.")
    return Path(value)


def require(module: str, *, extra: str, wanted_by: str) -> None:
    """Raise ImportError, naming the pip command, if an extra's library is not installed."""
    if importlib.util.find_spec(module) is None:
        raise ImportError(f'{wanted_by} needs {module}: pip install "tinygan[{extra}]"')


SAVED_AND_NOW = ("when saved", "now")


def differences(
    saved: Mapping[str, object],
    here: Mapping[str, object],
    words: tuple[str, str] = SAVED_AND_NOW,
    prefix: str = "",
) -> dict[str, str]:
    """Return what is not the same on both sides: both values, by their prefixed names."""
    then, now = words
    return {
        prefix + name: f"{saved.get(name, 'missing')} {then}, {here.get(name, 'missing')} {now}"
        for name in {**saved, **here}
        if saved.get(name) != here.get(name)
    }


def refuse(
    found: Mapping[str, str], allow: Collection[str] = (), never: Mapping[str, str] | None = None
) -> None:
    """Raise ValueError for differences but those whose names, or their beginnings, are allowed."""
    beginnings = tuple(word + end for word in allow for end in (".", " "))
    refused = {
        name: both
        for name, both in found.items()
        if name not in allow and not name.startswith(beginnings)
    }
    remedy = f"To resume anyway: trainer.resume(..., allow={[*allow, *refused]})"
    if never:
        refused |= never
        remedy = "No other nets can go on from it."
    if refused:
        lines = [f"  {name}: {both}" for name, both in refused.items()]
        lines.append(f"Use what was saved, or begin a new run in another folder. {remedy}")
        raise ValueError("\n".join(["this checkpoint belongs to a different run:", *lines]))
