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


def chosen(
    a: argparse.Namespace, generator: nn.Module
) -> tuple[list[int], torch.Tensor, torch.Tensor | None]:
    """Return the seeds, the z of each, and the class of each if there are any, by seed in turn."""
    seeds, labels = a.seeds or [*range(a.seed, a.seed + a.n)], None
    if named := latents.classes(generator, a.labels):
        labels = torch.as_tensor([named[seed % len(named)] for seed in seeds], device="cpu")
    return seeds, latents.by_seed(generator, seeds, a.truncation), labels


def labels_of(a: argparse.Namespace, generator: nn.Module, count: int) -> torch.Tensor:
    """Return ``--labels``, one for all or one for each of ``count``, in their order."""
    named = torch.as_tensor(latents.classes(generator, a.labels), device="cpu")
    if len(named) not in (1, count):
        raise ValueError(f"labels must be one, or one for each of {count}, got {a.labels!r}.")
    return named.expand(count)


def folder_of(run: Path) -> Path:
    """Return the folder in which a command writes what it makes of a run or file by default."""
    return run if run.is_dir() else run.parent


def file_of(a: argparse.Namespace, name: str) -> Path:
    """Return ``--out`` if it ends as a file's name, else that file in it, or beside the run."""
    out = a.out or folder_of(a.run)
    if out.is_dir() or out.suffix != Path(name).suffix:
        out /= name
    out.parent.mkdir(parents=True, exist_ok=True)
    return out
