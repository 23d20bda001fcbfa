"""The data path alone: from JPEGs in a folder to batches of floats in [-1, 1]."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch

import tinygan

import jpegs
import report as results
from jpegs import BATCH, WORKERS, tutorial_loader
from measuring import Ratio, in_turn, seconds
from report import Report


def take(batches: Iterable[Any], epochs: int) -> None:
    """Take all batches of some epochs; look at the last one."""
    for _ in range(epochs):
        for batch in batches:
            images = batch if isinstance(batch, torch.Tensor) else batch[0]
    assert images.dtype == torch.float32
    assert images.shape[1:] == (3, 64, 64)
    low, high = images.aminmax()
    assert -1 <= low < -0.2, low
    assert 0.2 < high <= 1, high


def test_data(
    device: torch.device, quick: bool, report: Report, pictures: list[Path], tmp_path: Path
) -> None:
    """Take the batches of each way to load in turn, and pack a few times."""
    count = 300 if quick else 4000
    root = jpegs.link(pictures, tmp_path / "images", count)
    mean_kb = statistics.mean(picture.stat().st_size for picture in pictures) / 1000
    table = report.table(f"Data alone, 64 px, batch {BATCH}, {count:,} JPEGs of 178 x 218")

    packings = 0

    def pack() -> tinygan.data.PackedImages:
        nonlocal packings
        packings += 1  # each time a new file: one that is there might be used as it is
        path = tmp_path / f"{packings}.npy"
        return tinygan.data.pack(root, path, 64, workers=WORKERS, progress=False)

    packed = pack()
    files = tinygan.data.image_folder(root, 64)
    load = partial(tinygan.data.Loader, batch_size=BATCH, seed=999)
    # The fast ones go through the images more often, for the clock's sake.
    often = 2 if quick else 20
    ways: dict[str, tuple[Iterable[Any], int]] = {
        "ImageFolder, 2 workers": (tutorial_loader(root), 1),
        "image_folder, 2 workers": (load(files, workers=WORKERS), 1),
        "packed": (load(packed), often),
    }
    if device.type == "cuda":
        ways["packed, on the GPU"] = load(packed, device=device), often

    def run(batches: Iterable[Any], epochs: int) -> float:
        return seconds(lambda: take(batches, epochs), device) / epochs

    for batches, epochs in ways.values():
        run(batches, epochs)  # the files are in the page cache after this
    times, errors = in_turn(
        {name: partial(run, *way) for name, way in ways.items()}
        | {"packing, 2 workers": lambda: seconds(pack, device)},
        budget=0 if quick else 40,
    )
    assert not errors, errors
    base = times["ImageFolder, 2 workers"]
    for name, blocks in times.items():
        ratio = Ratio.of(base, blocks)
        table.row(way=name, images_per_s=count / statistics.median(blocks), **ratio.columns)
        if name == "packed":
            report.measured(results.PACKED, ratio.median)
    table.note(
        f"The JPEGs have {mean_kb:.1f} KB on average and are in the page cache. Whole epochs, the "
        "start of workers included; medians of "
        f"{len(base)} rounds in turn. All give float32 in [-1, 1]."
    )
    table.note("ratio: to ImageFolder with the tutorial's transforms; median, and its range.")
    shutil.rmtree(tmp_path)  # pytest would keep it
