"""What makes a player's optimizer, and the DCGAN paper's choice."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TypeAlias

from torch import nn
from torch.optim import Adam, Optimizer

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
