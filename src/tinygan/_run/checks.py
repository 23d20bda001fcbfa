"""Arguments, and what a checkpoint was saved from: errors say name, value, rule and remedy."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import math
import os
from collections.abc import Collection, Iterable, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def count(name: str, value: Any, *, at_least: int = 1) -> int:
    """Return ``value`` as an int, if it is one, NumPy's too, of at least ``at_least``."""
    # bool is an int to Python, but nobody means True images.
    is_int = isinstance(value, Integral) and not isinstance(value, bool)
    if not is_int or value < at_least:
        rule = f"at least {at_least}" if is_int else "an int"
        raise ValueError(f"{name} must be {rule}, got {value!r}; use {at_least} or more.")
    return int(value)


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


def tensor(name: str, value: object) -> None:
    """Raise TypeError for what is no tensor."""
    if not isinstance(value, torch.Tensor):
        kind = type(value).__name__
        raise TypeError(f"{name} must be a tensor, got {kind}; use torch.as_tensor or torch.stack.")


def several(name: str, given: Any, kind: type[T], remedy: str) -> tuple[T, ...]:
    """Return one thing of a kind, several or None as a tuple."""
    is_one = isinstance(given, str | kind) or not isinstance(given, Iterable)
    is_one |= isinstance(given, set | frozenset) and kind is not str  # in which order?
    found = () if given is None else (given,) if is_one else tuple(given)
    for one in found:
        if not isinstance(one, kind):
            wanted = f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
            if isinstance(one, type) and issubclass(one, kind):
                remedy = f"call the class: {one.__name__}(...)."
            raise TypeError(f"{name} must be a {wanted} or a list of them, got {one!r}; {remedy}")
    return found


def takes(name: str, function: Any, arguments: str, remedy: str, kind: str = "function") -> None:
    """Raise TypeError for anything that cannot be called with arguments such as "(real, fake)"."""
    function = getattr(function, "forward", function)  # of a net
    got = getattr(function, "__name__", repr(function))
    try:
        signature = inspect.signature(function)
        got += str(signature)
        signature.bind(*arguments.split(","))
    except ValueError:
        return  # built-in functions have no signature
    except TypeError:
        raise TypeError(f"{name} must be a {kind} of {arguments}, got {got}; {remedy}") from None


def size(name: str, value: int | tuple[int, int], *, at_least: int = 1) -> tuple[int, int]:
    """Return ``value`` as (height, width), each of at least ``at_least`` pixels."""
    pair = (value, value) if isinstance(value, Integral) else value
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise ValueError(
            f"{name} must be an int or (height, width), got {value!r}; for example 64."
        )
    height, width = (count(name, side, at_least=at_least) for side in pair)
    return height, width


def image_range(low: float, high: float) -> str:
    """Raise ValueError for images from ``low`` to ``high``, unless these are in [-1, 1].

    Returns what is to be said if none is below 0, as in [0, 1]; else nothing.
    """
    got = f"got [{low:.4g}, {high:.4g}]"
    if not math.isfinite(high - low):
        raise ValueError(
            f"images must be finite, {got}; look at the data, and at what divides by a number "
            "that may be 0."
        )
    if low < -1.001 or high > 1.001:  # resizing may leave the range by rounding
        raise ValueError(
            f"images must be in [-1, 1], {got}; scale bytes with images / 127.5 - 1, or [0, 1] "
            "with images * 2 - 1, once; cut off what bicubic resizing leaves with clamp(-1, 1)."
        )
    pale = f"images must be in [-1, 1], {got} and none below 0: if they are in [0, 1], scale them "
    return f"{pale}with images * 2 - 1." if low >= 0 and high > 0.5 else ""


def path(name: str, value: object) -> Path:
    """Return ``value`` as a path, if it is one."""
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise ValueError(
            f"{name} must name a file or folder, got {value!r}; use 'runs/faces', or '.' for here."
        )
    return Path(value)


def device(value: torch.device | str | int) -> torch.device:
    """Return ``value`` as a device that this machine has."""
    try:
        return torch.empty(0, dtype=torch.uint8, device=torch.device(value)).device
    except Exception as error:  # PyTorch has one for names, and others for each driver
        reason = str(error).strip().partition("\n")[0].partition(". ")[0]
        raise ValueError(
            f"device must be one that this machine has, got {value!r} ({reason}); use "
            f"{'cuda' if torch.cuda.is_available() else 'cpu'!r}, or leave it out."
        ) from error


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
    """Return what is not the same on both sides: both values, by their prefixed names.

    What one side does not know is the same if it is off on the other: a later version's setting.
    """
    then, now = words
    return {
        prefix + name: f"{saved.get(name, 'missing')} {then}, {here.get(name, 'missing')} {now}"
        for name, value in {**saved, **here}.items()
        if saved.get(name) != here.get(name)
        and ((name in saved and name in here) or str(value) not in ("None", "False"))
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
        for word in allow:
            if not any(name.startswith(word) for name in found):
                for meant in difflib.get_close_matches(word, refused, 1):
                    lines.append(f"  allow={word!r} is none of these; did you mean {meant!r}?")
        lines.append(f"Use what was saved, or begin a new run in another folder. {remedy}")
        raise ValueError("\n".join(["this checkpoint belongs to a different run:", *lines]))
