"""Looking at what nets do, without changing how they train."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Within the ``with`` block nets are in evaluation mode; afterwards each part is as before.

    Examples:
        >>> net = nn.BatchNorm2d(3)
        >>> with evaluating(net):
        ...     net.training
        False
        >>> net.training
        True
    """
    was_training = {part: part.training for net in modules for part in net.modules()}
    for net in modules:
        net.eval()
    try:
        yield
    finally:
        for part, training in was_training.items():
            part.training = training
