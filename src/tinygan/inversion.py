"""From images back to z: to where a generator makes them, or the nearest that it can make."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from tinygan import pictures, sampling
from tinygan._run import checks, notebook
from tinygan.latents import by_seed
from tinygan.nets.traits import evaluating, example

CANDIDATES = 1024  # random z; each image starts from those whose images are nearest
TOGETHER = 128  # starts that are improved at once, so that memory is bounded
RATE = 0.5  # of Adam at first, then along a cosine to 0; measured to be better than 0.3 and 1


class Inverted(NamedTuple):
    """N z with their images, labels, and ``distances`` (N,) from the images that were wanted."""

    z: torch.Tensor
    images: torch.Tensor
    distances: torch.Tensor
    labels: torch.Tensor | None


def invert(
    generator: nn.Module,
    images: torch.Tensor,
    *,
    steps: int = 300,
    starts: int = 4,
    labels: torch.Tensor | int | None = None,
    features: nn.Module | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Inverted:
    """Find the z (N, Z) whose images are nearest to ``images``, (N, C, H, W) in [-1, 1].

    Adam improves the z of the ``starts`` nearest of 1,024 random images; ``labels`` (N,) are those
    of the best, if not given. z keeps a length that 95 % of drawn z have, as Bojanowski et al.
    (2018, https://arxiv.org/abs/1707.05776) keep it in a ball. The loss is the mean squared
    difference of pixels, plus that of ``features``, a net from images to anything; distances are
    roots of the former. Raises ValueError for images of another shape or range or unknown labels.

    Examples:
        >>> import tinygan
        >>> generator = tinygan.DCGANGenerator(16, base_channels=4)
        >>> invert(generator, torch.zeros(2, 3, 16, 16), steps=3).z.shape
        torch.Size([2, 100])
    """
    checks.count("steps", steps, at_least=0)
    checks.number("starts", checks.count("starts", starts), f"[1, {CANDIDATES}]")
    pictures.value_range(images)
    pool = by_seed(generator, range(CANDIDATES * seed, CANDIDATES * (seed + 1)))
    made = sampling.generate(generator, pool[:1].expand(len(images), -1), labels=labels)
    if made.shape != images.shape or not images.is_floating_point():
        raise ValueError(
            f"images must be floats (N, {str(tuple(made.shape[1:]))[1:]} as the generator makes "
            f"them, got {images.dtype} {tuple(images.shape)}; data.image_folder resizes and scales."
        )
    wanted = images.to(made.device).float()
    if labels is not None:
        labels = torch.as_tensor(labels, device="cpu").expand(len(images))
    z, kinds = _nearest(generator, wanted, pool, labels, starts)
    wanted = wanted.repeat_interleave(starts, 0)
    views = [nn.Identity(), *([features] if features else [])]
    lengths = [float(pool.norm(dim=1).quantile(share)) for share in (0.025, 0.975)]
    parts, found = torch.arange(len(z), device="cpu").split(TOGETHER), []
    bar = notebook.bar(desc="inverting", total=steps * len(parts), delay=1, shown=progress)
    with bar, evaluating(generator, *views):
        for part in parts:
            given = [] if kinds is None else [kinds[part].to(made.device)]
            at = z[part], given, wanted[part]
            found.append(_improved(generator, *at, views, lengths, steps, bar))
    z = torch.cat(found)
    made = sampling.generate(generator, z, labels=kinds).float()
    errors = (made - wanted).square().flatten(1).mean(1).sqrt().cpu()
    best = errors.view(-1, starts).argmin(1) + starts * torch.arange(len(images), device="cpu")
    return Inverted(z[best], made[best], errors[best], None if kinds is None else kinds[best])


def _nearest(
    generator: nn.Module,
    wanted: torch.Tensor,
    pool: torch.Tensor,
    labels: torch.Tensor | None,
    starts: int,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the z, and the classes if there are any, of the images nearest to each wanted one."""
    classes = getattr(generator, "num_classes", None)
    made = sampling.generate(generator, pool).float()  # of each class in turn
    distances = torch.cdist(wanted.flatten(1), made.flatten(1)).cpu()
    kinds = torch.arange(len(pool), device="cpu") % (classes or 1)
    if labels is not None:
        distances[labels[:, None] != kinds] = math.inf
    nearest = distances.topk(starts, largest=False).indices.flatten()
    if labels is not None:  # also where the pool has too few of a class
        return pool[nearest], labels.repeat_interleave(starts)
    return pool[nearest], kinds[nearest] if classes else None


@torch.enable_grad()
def _improved(
    generator: nn.Module,
    z: torch.Tensor,
    given: list[torch.Tensor],
    wanted: torch.Tensor,
    views: Sequence[nn.Module],
    lengths: Sequence[float],
    steps: int,
    bar: Any,
) -> torch.Tensor:
    """Return z after some steps of Adam towards the wanted images, cut to a range of lengths."""
    point = z.to(wanted.device).clone().requires_grad_()
    aims = [view(wanted).detach() for view in views]
    adam = torch.optim.Adam([point], betas=(0.9, 0.99))  # 0.999 remembers for too long
    for step in range(steps):
        seen = generator(point.to(example(generator)), *given).float()
        differences = [view(seen) - aim for view, aim in zip(views, aims)]
        costs = [each.square().flatten(1).mean(1).sum() for each in differences]
        (point.grad,) = torch.autograd.grad(torch.stack(costs).sum(), point)
        adam.param_groups[0]["lr"] = RATE * (1 + math.cos(math.pi * step / steps)) / 2
        adam.step()
        length = point.detach().norm(dim=1, keepdim=True)
        point.detach().mul_(length.clamp(*lengths) / length)
        bar.update()
    return point.detach().cpu()
