"""What makes a player's optimizer, and the DCGAN paper's choice."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeAlias

import torch
from torch import nn
from torch.optim import SGD, Adam, Optimizer

OptimizerFactory: TypeAlias = Callable[[Iterable[tuple[str, nn.Parameter]]], Optimizer]
"""Makes an optimizer for a net's named parameters: ``partial(torch.optim.Adam, lr=1e-4)``, say."""

# The DCGAN paper's (section 4): momentum lowered to 0.5, without which training oscillates.
# Fused does the same arithmetic in one kernel instead of one per parameter.
dcgan_adam: OptimizerFactory = partial(Adam, lr=2e-4, betas=(0.5, 0.999), fused=True)


def make(factory: OptimizerFactory, module: nn.Module) -> Optimizer:
    """Return an optimizer of the parameters of ``module`` that are to be trained.

    Raises:
        TypeError: for an optimizer instead of what makes one.

    Examples:
        >>> make(dcgan_adam, nn.Linear(2, 1)).param_groups[0]["lr"]
        0.0002
    """
    if not callable(factory):
        raise TypeError(
            f"an optimizer must be given as what makes it, got {type(factory).__name__}; use "
            "functools.partial(torch.optim.Adam, lr=2e-4), say."
        )
    # Named, so that the optimizer's state can be matched by name rather than by position.
    return factory([(name, p) for name, p in module.named_parameters() if p.requires_grad])


def decides_on_device(optimizer: Optimizer) -> bool:
    """Return whether an optimizer can skip its next step by a flag on the device, as fused ones do.

    Examples:
        >>> decides_on_device(dcgan_adam(nn.Linear(2, 1).named_parameters()))
        True
    """
    # SGD leaves its momentum uninitialised if its first fused step is skipped.
    unborn = not optimizer.state and any(group.get("momentum") for group in optimizer.param_groups)
    return getattr(optimizer, "_step_supports_amp_scaling", False) and not unborn


def recordable(optimizer: Optimizer) -> bool:
    """Return whether a step of an optimizer can be recorded as a CUDA graph.

    Examples:
        >>> recordable(torch.optim.Adam(nn.Linear(2, 1).parameters()))
        False
    """
    return decides_on_device(optimizer) and all(
        "capturable" in group or isinstance(optimizer, SGD) for group in optimizer.param_groups
    )


@contextmanager
def recording(optimizer: Optimizer, rates_change: bool) -> Iterator[list[torch.Tensor]]:
    """Within the block a step may be recorded; afterwards the options are as before.

    Args:
        optimizer: one that is ``recordable``, or is left alone within the block.
        rates_change: record the learning rates as tensors rather than as constants.

    Yields:
        The learning rates as tensors, one per group, if they are to change.

    Examples:
        >>> adam = dcgan_adam(nn.Linear(2, 1).named_parameters())
        >>> with recording(adam, rates_change=True) as rates:
        ...     pass  # record adam.step()
        >>> rates, adam.param_groups[0]["lr"]
        ([tensor(0.0002)], 0.0002)
    """
    before = [dict(group) for group in optimizer.param_groups]
    rates: list[torch.Tensor] = []
    try:
        for group in optimizer.param_groups:
            if "capturable" in group:
                group["capturable"] = True
            if rates_change:
                # Of the only type in which PyTorch's kernels read it.
                device = group["params"][0].device
                rate = torch.empty((), dtype=torch.float32, device=device).fill_(group["lr"])
                group["lr"] = rate
                rates.append(rate)
        yield rates
    finally:
        for group, own in zip(optimizer.param_groups, before):
            group.update(own)
