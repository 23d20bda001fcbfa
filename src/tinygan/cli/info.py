"""``tinygan info``: what a run or a generator is."""

from __future__ import annotations

import argparse

from tinygan.generators import load_generator


def run(a: argparse.Namespace) -> None:
    """Print it."""
    print(load_generator(a.run))
