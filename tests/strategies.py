"""What the property tests draw: the shared vocabulary of sizes, nets and numbers."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

sides = st.integers(8, 70)
"""A side of an image in pixels, odd ones included: 8, 61, 47, ..."""

image_sizes = st.one_of(sides.map(lambda side: (side, side)), st.tuples(sides, sides))
"""(height, width), square or oblong: (64, 64), (61, 47), ..."""

channels = st.integers(1, 5)
"""Channels of an image: grey, colour, or more."""

widths = st.integers(1, 6)
"""``base_channels`` of a net that is fast to test."""

latent_dims = st.integers(1, 20)
"""The length of z."""

batch_sizes = st.integers(2, 5)
"""Images in a batch that batch norm accepts."""

seeds = st.integers(0, 2**63 - 1)
"""What names random draws."""

too_few = st.integers(-5, 0)
"""Counts that are none."""

not_ints = st.one_of(st.floats(), st.booleans(), st.text(), st.none())
"""What is no int, though Python may take it for one."""


@st.composite
def logits(draw: st.DrawFn, extreme: float = 30.0) -> torch.Tensor:
    """Draw logits (N,) in float64, of magnitude up to ``extreme``."""
    values = st.floats(-extreme, extreme, allow_nan=False, width=32)
    return torch.tensor(draw(st.lists(values, min_size=1, max_size=8)), dtype=torch.float64)


@st.composite
def images(draw: st.DrawFn) -> torch.Tensor:
    """Draw a batch of images (N, C, H, W) in [-1, 1]."""
    shape = (draw(batch_sizes), draw(channels), *draw(image_sizes))
    generator = torch.Generator().manual_seed(draw(seeds) >> 1)
    return torch.rand(shape, generator=generator) * 2 - 1
