"""What makes a player's optimizer, the DCGAN paper's choice, and what is saved of one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.optim import SGD, Adam, Optimizer
from torch.utils._pytree import tree_map

OptimizerFactory: TypeAlias = Callable[[Iterable[tuple[str, nn.Parameter]]], Optimizer]
"""Makes an optimizer of a net's named parameters, for example ``partial(Adam, lr=1e-4)``."""

# The DCGAN paper's (section 4): momentum lowered to 0.5, without which training oscillates.
# Fused does the same arithmetic in one kernel instead of one per parameter.
dcgan_adam: OptimizerFactory = partial(Adam, lr=2e-4, betas=(0.5, 0.999), fused=True)

EXECUTION = ("fused", "foreach", "capturable", "differentiable")
"""Options of how an optimizer computes, not what: the choice of the machine that a run is on."""

REMEDY = "use functools.partial(torch.optim.Adam, lr=2e-4), for example."


def make(factory: OptimizerFactory, module: nn.Module) -> Optimizer:
    """Return an optimizer of the parameters of ``module`` that are to be trained."""
    if not callable(factory):
        raise TypeError(
            f"an optimizer must be given as what makes it, got {type(factory).__name__}; {REMEDY}"
        )
    # Named, so that the optimizer's state can be matched by name rather than by position.
    made = factory([(name, p) for name, p in module.named_parameters() if p.requires_grad])
    kind = type(made).__name__
    if not isinstance(made, Optimizer):
        raise TypeError(f"what makes an optimizer must return one, got {kind}; {REMEDY}")
    closure = inspect.signature(made.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise ValueError(f"an optimizer must step without a closure, got {kind}; {REMEDY}")
    _names(made, module)  # or it moves another net's
    return made


def decides_on_device(optimizer: Optimizer) -> bool:
    """Return whether an optimizer can skip its next step by a flag on the device: fused ones do."""
    if optimizer.param_groups[0]["params"][0].device.type == "mps":
        return False  # there kernels of older PyTorch do not look at the flag (pytorch#186360)
    # What a subclass does in a step of its own, such as averaging weights, knows no flag.
    if not type(optimizer).step.__module__.startswith("torch."):
        return False
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
    """Return an optimizer's state by the names of parameters, without how it is executed.

    ``own`` is what its ``state_dict`` has besides options and moments, as that of a wrapper has.
    """
    left_out = ("params", "param_names", *EXECUTION)
    groups = [
        {"parameters": names, "options": {k: v for k, v in group.items() if k not in left_out}}
        for group, names in zip(optimizer.param_groups, _names(optimizer, module))
    ]
    # Not by the attribute state, which wrappers may leave empty.
    own = {k: v for k, v in optimizer.state_dict().items() if k != "param_groups"}
    state = dict(own.pop("state", {}))
    in_order = [name for group in groups for name in group["parameters"]]
    moments = {name: dict(state.pop(i)) for i, name in enumerate(in_order) if i in state}
    own |= {"state": state} if state else {}
    return {"groups": groups, "moments": moments, "own": own}


def load_state(optimizer: Optimizer, module: nn.Module, saved: dict[str, Any]) -> None:
    """Give an optimizer the options and moments of a saved state; others stay as they are."""
    device = optimizer.param_groups[0]["params"][0].device

    def placed(value: Any) -> Any:  # but for counts and the like, which may be anywhere
        return value.to(device) if getattr(value, "ndim", 0) else value

    options = [dict(group) for group in optimizer.param_groups]
    for group, saved_group in zip(options, saved["groups"]):
        group.update(tree_map(placed, saved_group["options"]))
    own = tree_map(placed, saved.get("own", {}))
    in_order = [name for names in _names(optimizer, module) for name in names]
    kept = {i: saved["moments"][k] for i, k in enumerate(in_order) if k in saved["moments"]}
    # PyTorch moves the moments to where the parameters are, and the step counts to where the
    # group's own way of executing needs them.
    state = own.get("state", {}) | kept
    optimizer.load_state_dict(optimizer.state_dict() | own | {"state": state})
    for group, wanted in zip(optimizer.param_groups, options):
        group.update(wanted)  # a wrapper may have loaded old ones


def _names(optimizer: Optimizer, module: nn.Module) -> list[list[str]]:
    """Return the names of each group's parameters; raise ValueError for those of other nets."""
    names = {each: name for name, each in module.named_parameters()}
    try:
        return [[names[each] for each in group["params"]] for group in optimizer.param_groups]
    except KeyError:
        kind = type(optimizer).__name__
        raise ValueError(
            f"an optimizer must move its own net's weights, got {kind} of others; make it of the "
            "parameters that it is given, after layers are replaced."
        ) from None
