"""Crashes: let any operation of the disk fail, or be the last one of a process."""

from __future__ import annotations

import contextlib
import inspect
from functools import partial

import pytest

from tinygan._run import disk

# By reflection, so that a new operation cannot be forgotten; renamed() is made of these.
OPERATIONS = [
    name
    for name, thing in vars(disk).items()
    if inspect.isfunction(thing) and thing.__module__ == disk.__name__ and name[0] != "_"
    if thing is not disk.renamed
]


@contextlib.contextmanager
def watched(stand_in):
    """Let ``stand_in(name, operate, *arguments)`` take the place of every operation of the disk."""
    with pytest.MonkeyPatch.context() as patch:
        for name in OPERATIONS:
            patch.setattr(disk, name, partial(stand_in, name, getattr(disk, name)))
        yield


class SimulatedCrash(BaseException):
    """The process dies here: no handler for errors may run."""


class Dies:
    """Ends the process at one operation, when a share of it is done: none, all, or part of it."""

    def __init__(self, at, share):
        self.at, self.share, self.calls = at, share, []

    def __call__(self, name, operate, *arguments):
        """Stand in for an operation."""
        self.calls.append(name)
        if len(self.calls) <= self.at:
            return operate(*arguments)
        if len(self.calls) == self.at + 1:  # and after that, the dead do nothing
            if name == "write":
                file, content = arguments
                operate(file, content[: int(self.share * len(content))])
            elif self.share == 1:
                done = operate(*arguments)
                if name == "create":
                    done.close()
        raise SimulatedCrash
