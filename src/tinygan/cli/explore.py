"""``tinygan explore``: a page to look at a generator."""

from __future__ import annotations

import argparse

from tinygan.cli.loaded import file_of, generator_of
from tinygan.explorer import save_explorer


def run(a: argparse.Namespace) -> None:
    """Write the page; say where, and how large it is."""
    generator, out = generator_of(a), file_of(a, "explore.html")
    save_explorer(generator, out, seed=a.seed)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB, to open in a browser")
