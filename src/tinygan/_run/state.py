"""A run's state: is it the same run?

States are compared by what is in them, in words that are the same in every process: nothing here
knows nets, optimizers or hooks.
"""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any

import torch

from tinygan._run import checks

Words = dict[str, str]
State = dict[str, Any]


def parts(name: str, value: object) -> Words:
    """Return a setting in words; each part of it, if it has parts, under its own name."""
    if is_dataclass(value):
        inner = {each.name: getattr(value, each.name) for each in fields(value)}
    elif isinstance(value, (list, tuple)):
        inner = {str(number): each for number, each in enumerate(value)}
    else:
        return {name: in_words(value)}
    return {k: v for part, each in inner.items() for k, v in parts(f"{name}.{part}", each).items()}


def name_of(function: object) -> str:
    """Return a function's or a class's name, with the arguments of a ``functools.partial``.

    Examples:
        >>> name_of(partial(int, base=2))
        'builtins.int(base=2)'
    """
    if isinstance(function, partial):
        given = [in_words(value) for value in function.args]
        given += [f"{name}={in_words(value)}" for name, value in function.keywords.items()]
        return f"{name_of(function.func)}({', '.join(given)})"
    named: Any = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def in_words(value: object) -> str:
    """Return a value in words that are the same in every process."""
    if isinstance(value, (list, tuple)):
        return f"({', '.join(map(in_words, value))})"
    words = repr(value)
    # Not where a function lies in this process's memory.
    return name_of(value) if callable(value) and " at 0x" in words else words


def differences(
    saved: State, here: State, words: tuple[str, str] = checks.SAVED_AND_NOW
) -> tuple[Words, Words]:
    """Return by name what differs between two states, and what is never allowed to."""
    (then, then_hooks), (now, now_hooks) = _words(saved), _words(here)
    if then["players"] != now["players"]:
        return {}, checks.differences(then, now, words)
    never = checks.differences(_shapes(saved), _shapes(here), words)
    # An option that one side does not know is no difference where the other has its default.
    for one, other, knows in ((then, now, here), (now, then, saved)):
        for name, default in knows.get("defaults", {}).items():
            if name not in one and other.get(name) == default:
                del other[name]
    if more := [*never][5:]:  # of what may be hundreds
        never = {name: never[name] for name in [*never][:5]}
        never["and"] = f"the shapes of {len(more)} other tensors"
    if not never:
        then |= _groups(saved, here)
        now |= _groups(here, saved)
    known = matched_hooks(saved, here)
    for name, settings in then_hooks.items():
        if name not in known.values() and (settings or saved["hooks"].get(name)):
            then[f"hooks.{name}"] = "there"
    for name, settings in now_hooks.items():
        if name in known:
            then |= {f"hooks.{name}.{k}": v for k, v in then_hooks[known[name]].items()}
            now |= {f"hooks.{name}.{k}": v for k, v in settings.items()}
        elif settings:
            now[f"hooks.{name}"] = "there"
    return checks.differences(then, now, words), never


def matched_hooks(saved: State, here: State) -> Words:
    """Return for each hook here the name by which it was saved: of its class, and most alike."""
    known: Words = {}
    then, now = (
        {
            name: (name.partition("-")[0], state.get("folders", {}).get(name), settings)
            for name, settings in _words(state)[1].items()
        }
        for state in (saved, here)
    )
    for alike in (3, 2, 1):  # by class, folder and settings; by class and folder; by class
        for name, key in now.items():
            for old, old_key in then.items():
                is_free = name not in known and old not in known.values()
                if is_free and key[:alike] == old_key[:alike]:
                    known[name] = old
    return known


def _words(state: State) -> tuple[Words, dict[str, Words]]:
    """Return a state's words, and apart from them those of each hook, by its name."""
    others: Words = {}
    hooks: dict[str, Words] = {name: {} for name in state["hooks"]}
    for name, value in state["configuration"].items():
        # The library's own names lack their modules, and nets theirs: they may be moved.
        told = re.sub(r"\btinygan\.(\w+\.)*", "tinygan.", value)
        if name.startswith("hooks."):
            _, hook, setting = name.split(".", 2)
            hooks.setdefault(hook, {})[setting] = told
        else:
            others[name] = told.rpartition(".")[2] if name in state["players"] else told
    return others, hooks


def _shapes(state: State) -> Words:
    return {
        f"{owner}.{name}": str(tuple(value.shape))
        for owner, player in state["players"].items()
        for name, value in player["module"].items()
        if isinstance(value, torch.Tensor)
    }


def _groups(state: State, other: State) -> Words:
    """Return what each optimizer's groups hold, in order if its own state may count them."""
    found: Words = {}
    for owner, player in state["players"].items():
        own = player["optimizer"].get("own")
        theirs = other["players"][owner]["optimizer"].get("own")
        if own and theirs is None:  # of a version that did not save it
            found[f"{owner} optimizer.own state"] = ", ".join(own)
        # What an optimizer itself saves may count parameters by their order.
        order = list if own or theirs else sorted
        for index, group in enumerate(player["optimizer"]["groups"]):
            found[f"{owner} optimizer.group {index}"] = ", ".join(order(group["parameters"]))
    return found
