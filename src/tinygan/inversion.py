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

    Adam improves the z of the nearest of 1,024 random images, ``starts`` for each, in so many
    ``steps``. After each z is cut to the length of 95 % of drawn z, as Bojanowski et al. (2018,
    https://arxiv.org/abs/1707.05776) keep z in a ball. Distance is the root of the mean squared
    difference of pixels. That of ``features``, a net from images to anything, counts as much in the
    search, if it is given. ``labels`` are classes, (N,) or one for all; None finds them too. The
    generator does not change; the same seed finds the same z. Raises ValueError for images of
    another shape or range, and for unknown labels.

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
    wanted, classes = images.to(made.device).float(), getattr(generator, "num_classes", None)
    candidates = sampling.generate(generator, pool).float()  # each class in turn
    distances = torch.cdist(wanted.flatten(1), candidates.flatten(1)).cpu()
    kinds = torch.arange(CANDIDATES) % (classes or 1)
    if labels is not None:
        labels = torch.as_tensor(labels).cpu().expand(len(images))
        distances[labels[:, None] != kinds] = math.inf
    nearest = distances.topk(starts, largest=False).indices.flatten()
    of_image = torch.arange(len(images)).repeat_interleave(starts)
    z, kinds = pool[nearest], kinds[nearest] if labels is None else labels[of_image]
    lengths = pool.norm(dim=1).quantile(torch.tensor([0.025, 0.975])).tolist()
    costs, parts = torch.empty(len(z)), torch.arange(len(z)).split(TOGETHER)
    bar = notebook.bar(desc="inverting", total=steps * len(parts), delay=1, shown=progress)
    with bar, evaluating(generator, *([features] if features else [])):
        for some in parts:
            points = [z[some].to(made.device), kinds[some].to(made.device)][: 1 + bool(classes)]
            target = wanted[of_image[some]]
            z[some], costs[some] = _improved(
                generator, points, target, features, lengths, steps, bar
            )
    best = costs.view(-1, starts).argmin(1) + torch.arange(0, len(z), starts)
    found = None if classes is None else kinds[best]
    made = sampling.generate(generator, z[best], labels=found)
    return Inverted(z[best], made, _squares(made, wanted).sqrt(), found)


def _squares(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the mean squared difference of each row, (n,)."""
    return (a.float() - b.float()).square().flatten(1).mean(1)


def _improved(
    generator: nn.Module,
    points: Sequence[torch.Tensor],
    wanted: torch.Tensor,
    features: nn.Module | None,
    lengths: Sequence[float],
    steps: int,
    bar: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return z (n, Z) whose images are nearer to those wanted, and how far they still are, (n,)."""
    z = points[0].clone().requires_grad_()
    adam = torch.optim.Adam([z], RATE, (0.9, 0.99))  # 0.999 remembers the first steps too long
    for step in range(steps + 1):  # the last only looks
        with torch.enable_grad():
            made = generator(z.to(example(generator)), *points[1:])
            cost = _squares(made, wanted)
            if features is not None:
                cost = cost + _squares(features(made), features(wanted))
        if step < steps:
            adam.param_groups[0]["lr"] = RATE * (1 + math.cos(math.pi * step / steps)) / 2
            (z.grad,) = torch.autograd.grad(cost.sum(), z)
            adam.step()
            length = z.detach().norm(dim=1, keepdim=True)
            z.detach().mul_(length.clamp(*lengths) / length)
            bar.update()
    return z.detach().cpu(), cost.detach().cpu()
