"""The generator that a command works with."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn

from tinygan.generators import load_generator


def generator_of(a: argparse.Namespace) -> nn.Module:
    """Return the generator of ``a.run``, on ``a.device``, or a GPU if there is one."""
    device = a.device or ("cuda" if torch.cuda.is_available() else "cpu")
    return load_generator(a.run, device=device)


def folder_of(run: Path) -> Path:
    """Return the folder in which a command writes what it makes of a run or file by default."""
    return run if run.is_dir() else run.parent
