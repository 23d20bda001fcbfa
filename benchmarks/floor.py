"""The floor: how fast this machine could take a step at best, counted and measured.

A step must do its arithmetic and must move its activations, weights and Adam's state through
memory. Both are counted below; the rates at which this machine multiplies matrices and copies
memory are measured in the same run. The floor is the longer of the two times. No cache is counted
on, so small batches on machines with large caches may come out below it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from contenders import Contender, HandTuned, Setting
from measuring import ClockedBatches, seconds

NORMED = 14
"""How often an activation of a layer with batch norm is written or read per forward and backward.

Forward: the convolution writes y; the statistics read it; normalising reads it and writes a; the
next layer reads a: 5. Backward: the next layer writes da; two sums read da and y; the gradient dy
reads both again and is written; the convolution's two gradients read dy each, and the next layer's
weights read a: 9.
"""

PLAIN = 9
"""Likewise without batch norm: a written and read; da written, read with a, dy written and read
twice, a read for the next layer's weights."""


def flops_per_image(make: Callable[[Setting], Contender], image_size: int, width: int) -> float:
    """Return the counted floating-point operations of one image in a contender's step."""
    setting = Setting(image_size, batch_size=2, width=width, device="cpu")
    contender = make(setting)
    with FlopCounterMode(display=False) as counter:
        contender.train(ClockedBatches(setting.batch(), steps=1))
    return counter.get_total_flops() / setting.batch_size


def bytes_per_step(setting: Setting, dtype: torch.dtype | None) -> float:
    """Return the bytes that a step must write and read at least, by the model above.

    Activations and the weights that the passes read are in ``dtype``; gradients of weights, Adam's
    moments and the weights it moves are in fp32.
    """
    size = (dtype or torch.float32).itemsize
    generator, discriminator = setting.nets()
    image = 3 * setting.image_size**2
    # D's pass is made three times, each forward and backward; it reads the image twice.
    moved = _moved(generator, torch.zeros(2, 100, device=setting.device))
    moved += 3 * (_moved(discriminator, setting.batch()[:2]) + 2 * image)
    g, d = (sum(p.numel() for p in net.parameters()) for net in (generator, discriminator))
    # Forward and backward read the weights, D's three times; the gradients are written, D's twice.
    passes = (2 * g + 6 * d) * size + (g + 2 * d) * 4
    adam = 7 * 4 * (g + d)  # reads weight, gradient and two moments, writes all but the gradient
    return setting.batch_size * moved * size + passes + adam


@torch.no_grad()
def _moved(net: nn.Module, inputs: torch.Tensor) -> float:
    """Return how many values of one image a net's forward and backward write and read."""
    leaves = [module for module in net.modules() if not list(module.children())]
    moved = 0

    def count(times: int, output: torch.Tensor) -> None:
        nonlocal moved
        moved += times * output[0].numel()

    handles = [
        leaf.register_forward_hook(lambda _leaf, _inputs, output, times=times: count(times, output))
        for leaf, following in zip(leaves, [*leaves[1:], None])
        if isinstance(leaf, nn.Conv2d | nn.ConvTranspose2d)
        for times in [NORMED if isinstance(following, nn.BatchNorm2d) else PLAIN]
    ]
    net(inputs)
    for handle in handles:
        handle.remove()
    return moved


@dataclass(frozen=True)
class Rates:
    """What the machine can do.

    Attributes:
        flops: floating-point operations per second in a large product of matrices, by dtype. In
            fp32 on CUDA with TF32, which cuDNN's convolutions use by default.
        bytes: written and read per second in a large copy.
    """

    flops: dict[torch.dtype, float]
    bytes: float

    @classmethod
    def measure(cls, device: torch.device, quick: bool) -> Rates:
        """Measure both: the fastest of several runs."""
        side = 256 if quick else 8192 if device.type == "cuda" else 2048
        before = torch.get_float32_matmul_precision()
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high")
        flops = {}
        for dtype in (torch.float32, torch.bfloat16):
            a = torch.randn(side, side, device=device).to(dtype)
            b = torch.randn(side, side, device=device).to(dtype)
            flops[dtype] = 2 * side**3 / _fastest(lambda a=a, b=b: a @ b, device)
        torch.set_float32_matmul_precision(before)
        length = 2**20 if quick else 2**31 if device.type == "cuda" else 2**28
        source = torch.zeros(length, dtype=torch.uint8, device=device)
        target = torch.ones_like(source)
        return cls(flops, 2 * length / _fastest(lambda: target.copy_(source), device))

    def floor(self, setting: Setting, flops_per_image: float, dtype: torch.dtype | None) -> float:
        """Return the seconds that a step takes at best."""
        arithmetic = setting.batch_size * flops_per_image / self.flops[dtype or torch.float32]
        return max(arithmetic, bytes_per_step(setting, dtype) / self.bytes)


def _fastest(work: Callable[[], object], device: torch.device) -> float:
    # Not the median: a ceiling that was measured while others had the machine is none.
    work()
    return min(seconds(work, device) for _ in range(25))


def least_flops(setting: Setting) -> float:
    """Return the counted operations per image of the loop that computes nothing in vain."""
    return flops_per_image(HandTuned, setting.image_size, setting.width)
