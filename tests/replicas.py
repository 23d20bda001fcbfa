"""What several ranks should do, written out for one process: replicas that take turns.

Plain PyTorch, and nothing of tinygan's but the nets and the batches: to be compared with.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce


def train(
    nets: tuple[nn.Module, nn.Module],
    batches: Iterable[torch.Tensor],
    noise: Callable[[int, int], torch.Tensor],
    count: int,
    steps: int,
) -> tuple[nn.Module, nn.Module]:
    """Train G and D on batches (N, C, H, W) as ``count`` replicas do; return the first one's."""
    replicas = [copy.deepcopy(nets) for _ in range(count)]
    optimizers = [torch.optim.Adam(net.parameters(), 2e-4, (0.5, 0.999)) for net in replicas[0]]
    step = 0
    while step < steps:
        for real in batches:
            shares = shares_of(len(real), count)
            z = noise(step, len(real))
            fakes = []
            for (g, d), part in zip(replicas, shares):
                d.zero_grad()
                cost(d(real[part]), 1).backward()
                fakes.append(g(z[part]))
                cost(d(fakes[-1].detach()), 0).backward()
            average([d for _, d in replicas], shares)
            move([d for _, d in replicas], optimizers[1])
            for (g, d), fake in zip(replicas, fakes):
                g.zero_grad()
                cost(d(fake), 1).backward()
            average([g for g, _ in replicas], shares)
            average_statistics([d for _, d in replicas], shares)
            move([g for g, _ in replicas], optimizers[0])
            step += 1
            if step == steps:
                break
    return replicas[0]


def shares_of(size: int, count: int) -> list[slice]:
    """Cut a batch into parts that differ by one image at most, the larger ones first."""
    if size < 2 * count:
        return [slice(0, size)] * count
    sizes = [size // count + (rank < size % count) for rank in range(count)]
    return [slice(sum(sizes[:rank]), sum(sizes[: rank + 1])) for rank in range(count)]


def cost(logits: torch.Tensor, label: int) -> torch.Tensor:
    """Return the tutorial's loss, by its mean over what a replica sees."""
    return bce(logits, torch.full_like(logits, label))


def average(nets: list[nn.Module], shares: list[slice]) -> None:
    """Give the first replica the gradient of the mean over all images."""
    total = sum(part.stop - part.start for part in shares)
    weights = [(part.stop - part.start) / total for part in shares]
    for of_replicas in zip(*(net.parameters() for net in nets)):
        mean = sum(p.grad * weight for p, weight in zip(of_replicas, weights))
        of_replicas[0].grad = mean
    average_statistics(nets, shares)


def average_statistics(nets: list[nn.Module], shares: list[slice]) -> None:
    """Give all replicas the mean of their running means and variances."""
    total = sum(part.stop - part.start for part in shares)
    weights = [(part.stop - part.start) / total for part in shares]
    for of_replicas in zip(*(net.buffers() for net in nets)):
        if of_replicas[0].is_floating_point():
            mean = sum(b * weight for b, weight in zip(of_replicas, weights))
            for buffer in of_replicas:
                buffer.copy_(mean)


def move(nets: list[nn.Module], optimizer: torch.optim.Optimizer) -> None:
    """Move the first replica, and the others to where it is."""
    optimizer.step()
    with torch.no_grad():
        for first, *others in zip(*(net.parameters() for net in nets)):
            for other in others:
                other.copy_(first)
