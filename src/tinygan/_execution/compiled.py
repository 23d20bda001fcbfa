"""A net as a step applies it: as it is, or by torch.compile."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

Forward = Callable[..., Any]


def forwards(net: nn.Module, *, compiled: bool) -> tuple[Forward, Forward]:
    """Return how to apply a net, and how as if its weights were constants.

    Examples:
        >>> applied, frozen = forwards(nn.Linear(2, 3), compiled=False)
    """
    if not compiled:
        return net, net
    # Each batch size is compiled for itself: a short last batch must not slow down the others.
    applied, constant = (
        torch.compile(net, dynamic=False) for net in (net, partial(_without_gradients, net))
    )

    def frozen(*inputs: torch.Tensor) -> Any:
        with warnings.catch_warnings():
            # The compiler looks at the .grad of what it is given, which fakes do not have.
            warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
            return constant(*inputs)

    return applied, frozen


def _without_gradients(net: nn.Module, *inputs: torch.Tensor) -> Any:
    """Apply a net as if its weights were constants.

    Compiled code computes every gradient that its inputs may want, whatever is asked for in the
    end; and it may miss that ``requires_grad`` has been switched off and on.
    """
    constants = {name: weight.detach() for name, weight in net.named_parameters()}
    return torch.func.functional_call(net, constants, inputs)
