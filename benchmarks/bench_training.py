"""The trainer's speed beside the tutorial's loop: the same nets, images and number of steps.

    pytest benchmarks/          on the CPU
    pytest benchmarks/ --gpu    on CUDA

Both sides train in turn, block by block, so that a machine that changes its speed changes it for
both. Quoted are the medians over the blocks, and the median of the ratios block by block.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

import tinygan

import tutorial


@dataclass(frozen=True)
class Setting:
    """What is trained, and how many steps and blocks are timed."""

    name: str
    width: int
    batch_size: int
    steps: int
    blocks: int


SETTINGS = {
    "cpu": [
        Setting("the tutorial's nets", width=64, batch_size=128, steps=1, blocks=7),
        Setting("a quarter as wide", width=16, batch_size=64, steps=8, blocks=7),
    ],
    "cuda": [
        Setting("the tutorial's nets", width=64, batch_size=128, steps=50, blocks=9),
        Setting("the tutorial's nets", width=64, batch_size=1024, steps=20, blocks=9),
    ],
}


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Return how long ``run`` takes, its work on the device included."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


@pytest.mark.parametrize("index", [0, 1])
def test_training_beside_the_tutorial(
    index: int, device: torch.device, report: Callable[[str], None]
) -> None:
    """Time both loops in turn, and report images per second and their ratio."""
    setting = SETTINGS[device.type][index]
    torch.manual_seed(999)
    batch = torch.rand(setting.batch_size, 3, 64, 64) * 2 - 1
    batches = [batch] * setting.steps
    trainer = tinygan.GANTrainer(
        tinygan.DCGANGenerator(base_channels=setting.width).apply(tinygan.weights_init),
        tinygan.DCGANDiscriminator(base_channels=setting.width).apply(tinygan.weights_init),
        device=device,
    )
    loop = tutorial.Loop(
        tutorial.make_generator(ngf=setting.width).apply(tutorial.weights_init).to(device),
        tutorial.make_discriminator(ndf=setting.width).apply(tutorial.weights_init).to(device),
    )

    def draw_noise(step: int, count: int) -> torch.Tensor:
        return torch.randn(count, 100, device=device)

    def theirs() -> None:
        loop.train(batches, draw_noise)

    def ours() -> None:
        trainer.fit(batches, steps=trainer.step + setting.steps)

    theirs(), ours()  # the first call of each operation is slow
    times = [(seconds(theirs, device), seconds(ours, device)) for _ in range(setting.blocks)]

    images = setting.batch_size * setting.steps
    slow, fast = (images / statistics.median(column) for column in zip(*times))
    ratio = statistics.median(a / b for a, b in times)
    lowest, highest = min(a / b for a, b in times), max(a / b for a, b in times)
    report(
        f"{setting.name:20} 64 px  batch {setting.batch_size:4}   tutorial {slow:8.1f}   "
        f"tinygan {fast:8.1f}   ratio {ratio:.2f} ({lowest:.2f} to {highest:.2f})"
    )
    assert trainer.step == (setting.blocks + 1) * setting.steps
