"""What makes a player's optimizer, the DCGAN paper's choice, and what is saved of one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.optim import SGD, Adam, Optimizer

OptimizerFactory: TypeAlias = Callable[[Iterable[tuple[str, nn.Parameter]]], Optimizer]
"""Makes an optimizer of a net's named parameters, for example ``partial(Adam, lr=1e-4)``."""

# The DCGAN paper's (section 4): momentum lowered to 0.5, without which training oscillates.
# Fused does the same arithmetic in one kernel instead of one per parameter.
dcgan_adam: OptimizerFactory = partial(Adam, lr=2e-4, betas=(0.5, 0.999), fused=True)

EXECUTION = ("fused", "foreach", "capturable", "differentiable")
"""Options of how an optimizer computes, not what: the choice of the machine that a run is on."""


def make(factory: OptimizerFactory, module: nn.Module) -> Optimizer:
    """Return an optimizer of the parameters of ``module`` that are to be trained."""
    if not callable(factory):
        raise TypeError(
            f"an optimizer must be given as what makes it, got {type(factory).__name__}; use "
            "functools.partial(torch.optim.Adam, lr=2e-4), for example."
        )
    # Named, so that the optimizer's state can be matched by name rather than by position.
    return factory([(name, p) for name, p in module.named_parameters() if p.requires_grad])


def decides_on_device(optimizer: Optimizer) -> bool:
    """Return whether an optimizer can skip its next step by a flag on the device: fused ones do."""
    if optimizer.param_groups[0]["params"][0].device.type == "mps":
        return False  # there kernels of older PyTorch do not look at the flag (pytorch#186360)
    # SGD leaves its momentum uninitialised if its first fused step is skipped.
    unborn = not optimizer.state and any(group.get("momentum") for group in optimizer.param_groups)
    return getattr(optimizer, "_step_supports_amp_scaling", False) and not unborn


def recordable(optimizer: Optimizer) -> bool:
    """Return whether a step of an optimizer can be recorded as a CUDA graph."""
    return decides_on_device(optimizer) and all(
        "capturable" in group or isinstance(optimizer, SGD) for group in optimizer.param_groups
    )


@contextmanager
def recording(optimizer: Optimizer, rates_change: bool) -> Iterator[list[torch.Tensor]]:
    """Let a step be recorded within the block.

    Rates that are to change are recorded as tensors, one per group, which the block is given.
    """
    before = [dict(group) for group in optimizer.param_groups]
    rates: list[torch.Tensor] = []
    try:
        for group in optimizer.param_groups:
            if "capturable" in group:
                group["capturable"] = True
            if rates_change:
                # Of the only type in which PyTorch's kernels read it.
                rate = torch.empty((), dtype=torch.float32, device=group["params"][0].device)
                group["lr"] = rate.fill_(group["lr"])
                rates.append(rate)
        yield rates
    finally:
        for group, own in zip(optimizer.param_groups, before):
            group.update(own)


def state_of(optimizer: Optimizer, module: nn.Module) -> dict[str, Any]:
    """Return an optimizer's state by the names of parameters, without how it is executed."""
    names: dict[torch.Tensor, str] = {each: name for name, each in module.named_parameters()}
    left_out = ("params", "param_names", *EXECUTION)
    return {
        "groups": [
            {
                "parameters": [names[parameter] for parameter in group["params"]],
                "options": {k: v for k, v in group.items() if k not in left_out},
            }
            for group in optimizer.param_groups
        ],
        "moments": {names[each]: dict(moments) for each, moments in optimizer.state.items()},
    }


def load_state(optimizer: Optimizer, module: nn.Module, saved: dict[str, Any]) -> None:
    """Give an optimizer the options and moments of a saved state; others stay as they are."""
    own = optimizer.state_dict()["param_groups"]
    for group, saved_group in zip(own, saved["groups"]):
        group.update(saved_group["options"])
    names: dict[torch.Tensor, str] = {each: name for name, each in module.named_parameters()}
    in_order = [names[each] for group in optimizer.param_groups for each in group["params"]]
    moments = {i: saved["moments"][k] for i, k in enumerate(in_order) if k in saved["moments"]}
    # PyTorch moves the moments to where the parameters are, and the step counts to where the
    # group's own way of executing needs them.
    optimizer.load_state_dict({"state": moments, "param_groups": own})
