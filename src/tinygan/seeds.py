"""Randomness as a pure function: one seed and a few words name every random draw.

Nothing in this library draws from PyTorch's global generators. The order of an epoch is named
``(seed, "order", epoch)``, the noise of a step ``(seed, "noise", step)``, a drawn face
``(seed, "face", index)``. So a draw does not depend on what was drawn before it: a run can be
stopped, resumed, split or watched without changing a bit.
"""

from __future__ import annotations

import hashlib
import operator

import torch


def mix(seed: int, *key: str | int) -> int:
    """Hash a seed and a key to a new seed in [0, 2**63).

    Different keys give unrelated seeds; the same key gives the same seed on every machine.

    Examples:
        >>> mix(999, "noise", 0) == mix(999, "noise", 0) != mix(999, "noise", 1)
        True
    """
    # operator.index takes NumPy's ints for what they are, and no floats.
    words = [part if isinstance(part, str) else operator.index(part) for part in (seed, *key)]
    text = repr(words).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def generator(seed: int, *key: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a fresh random generator on ``device`` for the draw that ``key`` names.

    Args:
        seed: the run's seed, any int.
        key: what is drawn, such as ``("noise", step)``.
        device: where the draw happens. A CPU and a GPU draw different numbers for the same key.

    Examples:
        >>> torch.randperm(4, generator=generator(999, "order", 0)).shape
        torch.Size([4])
    """
    return torch.Generator(device).manual_seed(mix(seed, *key))
