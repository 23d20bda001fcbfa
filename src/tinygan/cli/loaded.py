"""The generator that a command works with."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn

from tinygan import latents
from tinygan.generators import load_generator


def generator_of(a: argparse.Namespace) -> nn.Module:
    """Return the generator of ``a.run``, on ``a.device``, or a GPU if there is one."""
    device = a.device or ("cuda" if torch.cuda.is_available() else "cpu")
    return load_generator(a.run, device=device)


def chosen(a: argparse.Namespace) -> tuple[nn.Module, list[int], torch.Tensor, list[torch.Tensor]]:
    """Return the generator, the seeds, the z of each, and the class of each if there are any."""
    generator, seeds = generator_of(a), a.seeds or [*range(a.seed, a.seed + a.n)]
    a.out.parent.mkdir(parents=True, exist_ok=True)
    named = latents.classes(generator, a.labels)
    labels = [torch.tensor([named[seed % len(named)] for seed in seeds])] if named else []
    return generator, seeds, latents.by_seed(generator, seeds, a.truncation), labels


def folder_of(run: Path) -> Path:
    """Return the folder in which a command writes what it makes of a run or file by default."""
    return run if run.is_dir() else run.parent
