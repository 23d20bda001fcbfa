"""Randomness as a pure function: one seed and a few words name every random draw.

The library draws nothing from PyTorch's global generators. An epoch's order is named ``(seed,
"order", epoch)``, a step's noise ``(seed, "noise", step)``. No draw depends on earlier ones, so a
run can be stopped, resumed, split or watched without changing a bit.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable, Sequence

import torch


def mix(seed: int, *key: str | int) -> int:
    """Hash a seed and a key to a new seed in [0, 2**63), the same on every machine.

    Raises ValueError for a seed that is not an int: NumPy's are, and True is not.

    Examples:
        >>> mix(999, "noise", 0) == mix(999, "noise", 0) != mix(999, "noise", 1)
        True
    """
    if isinstance(seed, bool) or not hasattr(seed, "__index__"):
        raise ValueError(f"seed must be an int, got {seed!r}; use any, such as 999.")
    # operator.index takes NumPy's ints, and refuses floats.
    words = [part if isinstance(part, str) else operator.index(part) for part in (seed, *key)]
    hashed = hashlib.blake2b(repr(words).encode(), digest_size=8)
    return int.from_bytes(hashed.digest(), "big") >> 1


def generator(seed: int, *key: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a fresh generator for the draw that ``key`` names; devices draw different numbers.

    Examples:
        >>> order = torch.randperm(4, generator=generator(999, "order", 0))
    """
    return torch.Generator(device).manual_seed(mix(seed, *key))


def drawn(
    make: Callable[..., torch.Tensor], shape: Sequence[int], generator: torch.Generator
) -> torch.Tensor:
    """Return what ``torch.rand`` or ``torch.randn`` draws: float32, where the generator is.

    Examples:
        >>> flips = drawn(torch.rand, (4,), generator(999, "flip", 0)) < 0.5
    """
    return make(*shape, generator=generator, dtype=torch.float32, device=generator.device)
