"""From JPEGs in a folder to trained nets: five epochs at 64 pixels, with logs and pictures."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision.utils

import tinygan
from tinygan import data, hooks

import jpegs
import report as results
import tutorial
from contenders import BF16, Z
from jpegs import BATCH, tutorial_loader
from measuring import first_line, seconds
from report import Report, cores

EPOCHS = 5
LOG_EVERY = 50
GRID_EVERY = 500


def tutorials_way(
    loader: Iterable[Any], width: int, device: torch.device, epochs: int, steps: int | None
) -> None:
    """Train as the tutorial does, with its lines and its grids; at most ``steps`` per epoch."""
    torch.manual_seed(999)
    generator = tutorial.make_generator(ngf=width).apply(tutorial.weights_init).to(device)
    discriminator = tutorial.make_discriminator(ndf=width).apply(tutorial.weights_init).to(device)
    loop = tutorial.Loop(generator, discriminator)
    fixed_noise = torch.randn(64, Z, 1, 1, device=device)
    grids = []

    def draw_noise(step: int, count: int) -> torch.Tensor:
        return torch.randn(count, Z, device=device)

    for epoch in range(epochs):
        images = itertools.islice((batch[0] for batch in loader), steps)
        # Its loop, in pieces that end where it prints.
        for index in itertools.count(step=LOG_EVERY):
            s = loop.train(itertools.islice(images, LOG_EVERY), draw_noise)
            if not s.loss_d:
                break
            last = s.loss_d[-1], s.loss_g[-1], s.d_real[-1], s.d_fake[-1], s.d_fake_after[-1]
            print(tutorial.log_line(epoch, epochs, index, len(loader), last))
            if index % GRID_EVERY == 0:
                with torch.no_grad():
                    fake = generator(fixed_noise).detach().cpu()
                grids.append(torchvision.utils.make_grid(fake, padding=2, normalize=True))


def tinygans_way(
    packed: data.PackedImages,
    folder: Path,
    width: int,
    device: torch.device,
    options: dict[str, Any],
) -> None:
    """Train with tinygan: the same lines and grids, a file of both, and a bar."""
    torch.manual_seed(999)
    trainer = tinygan.GANTrainer(
        tinygan.DCGANGenerator(base_channels=width).apply(tinygan.weights_init),
        tinygan.DCGANDiscriminator(base_channels=width).apply(tinygan.weights_init),
        hooks=[
            hooks.TutorialLog(folder),
            hooks.JSONLog(folder),
            hooks.SampleGrid(folder, every=GRID_EVERY),
            hooks.ProgressBar(),
        ],
        device=device,
        execution=tinygan.Execution(**options),
    )
    loader = data.Loader(packed, BATCH, device=device if device.type == "cuda" else None)
    trainer.fit(loader, epochs=EPOCHS)


def test_end_to_end(
    device: torch.device,
    quick: bool,
    report: Report,
    pictures: list[Path],
    tmp_path: Path,
) -> None:
    """Time the tutorial's way, packing, and tinygan's way."""
    gpu = device.type == "cuda"
    count, width = (256, 4) if quick else (202_599, 64) if gpu else (2560, 16)
    table = report.table(
        f"End to end: {EPOCHS} epochs of {count:,} JPEGs, 64 px, batch {BATCH}, width {width}"
    )
    root = jpegs.link(pictures, tmp_path / "images", count)

    def row(what: str, images: int, taken: float, remark: str | None = None) -> None:
        cells = {} if remark is None else {"remark": remark}
        table.row(what=what, seconds=taken, images_per_s=images / taken, **cells)

    loader = tutorial_loader(root)
    name = "tutorial: ImageFolder, 2 workers, its loop"
    if gpu and not quick:
        # All of it would take minutes. The difference of two lengths has no start-up in it.
        short, long = (
            seconds(lambda n=n: tutorials_way(loader, width, device, 1, n), device)
            for n in (50, 350)
        )
        steps = EPOCHS * len(loader)
        remark = f"scaled up from 300 of {steps:,} steps in {long - short:.1f} s"
        row(name, EPOCHS * count, (long - short) / 300 * steps, remark)
    else:
        taken = seconds(lambda: tutorials_way(loader, width, device, EPOCHS, None), device)
        row(name, EPOCHS * count, taken)

    workers = cores()
    path = tmp_path / "faces.npy"
    made: list[data.PackedImages] = []
    taken = seconds(
        lambda: made.append(data.pack(root, path, 64, workers=workers, progress=False)), device
    )
    row(f"tinygan: packing once, {workers} workers", count, taken)
    (packed,) = made

    modes: dict[str, dict[str, Any]] = {"bf16": {"dtype": BF16}}
    if gpu:
        modes = {
            "bf16 capture": {"dtype": BF16, "capture": True},
            "bf16 compile capture": {"dtype": BF16, "compile": True, "capture": True},
        }
    torch.compiler.reset()
    best = None
    for name, options in modes.items():
        try:
            taken = seconds(
                partial(tinygans_way, packed, tmp_path / name, width, device, options), device
            )
        except Exception as error:  # the other mode is still worth its number
            table.row(what=f"tinygan: {name}", remark=first_line(error))
            continue
        row(f"tinygan: {name}", EPOCHS * count, taken)
        best = taken if best is None else min(best, taken)
    if best is not None and count == 202_599:
        report.measured(results.FIVE_EPOCHS, best)
    table.note(
        "From making the nets to the last picture, compilation and capture included; packing apart."
        " Both log every 50 steps and draw every 500; tinygan keeps every step's figures in a file "
        "as well."
    )
    shutil.rmtree(tmp_path)  # pytest would keep it
