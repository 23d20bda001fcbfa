"""Points of a generator's noise, by their seeds, and ways between them.

A seed names one z, and so one image, whatever is made beside it and on which device.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import torch
from torch import nn

from tinygan import sampling, seeds
from tinygan._run import checks

__all__ = ["by_seed", "fade", "slerp", "walk"]


def by_seed(generator: nn.Module, numbers: Iterable[int], truncation: float = 1.0) -> torch.Tensor:
    """Return the z of each seed, (N, Z), on the CPU; each depends on its own seed alone.

    It is drawn by the generator's ``prior``, or from N(0, I). ``truncation``, in [0, 1], scales z
    towards 0, for fewer surprises and less variety. Raises ValueError for others, and for no seeds.

    Examples:
        >>> import tinygan
        >>> by_seed(tinygan.DCGANGenerator(16), [3, 14, 15], truncation=0.7).shape
        torch.Size([3, 100])
    """
    checks.number("truncation", truncation, "[0, 1]")
    draw = getattr(generator, "prior", sampling.normal)
    rows = [draw(1, generator.latent_dim, seeds.generator(seed, "z")) for seed in numbers]
    checks.count("the number of seeds", len(rows))
    return truncation * torch.cat(rows)


def slerp(a: torch.Tensor, b: torch.Tensor, t: torch.Tensor | float) -> torch.Tensor:
    """Go from a to b, (N, Z) or (Z,), along an arc (Shoemake 1985), at ``t`` in [0, 1].

    Lengths go evenly from one to the other, as those of N(0, I) are all alike; a straight line has
    shorter ones. ``t`` is a number, or a tensor with one for each row. Between parallel vectors the
    way is straight. Raises ValueError for another t, and for shapes that differ.

    Examples:
        >>> slerp(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 3.0]), 0.5)
        tensor([1.4142, 1.4142])
    """
    if a.shape != b.shape:
        raise ValueError(f"a and b must have one shape, got {[*a.shape]} and {[*b.shape]}; cut one.")
    t = torch.as_tensor(t, dtype=a.dtype, device=a.device)[..., None]
    for end in t.aminmax():
        checks.number("t", end.item(), "[0, 1]")
    straight = a.lerp(b, t)
    angle = _angle(a, b)[..., None]
    sine = angle.sin()
    parallel = sine < 1e-4  # there rounding would decide on the direction
    sine = sine.where(~parallel, 1)
    first, last = (each.norm(dim=-1, keepdim=True) for each in (a, b))
    arc = ((1 - t) * angle).sin() / sine * _unit(a) + (t * angle).sin() / sine * _unit(b)
    found = torch.where(parallel, straight, arc * first.lerp(last, t))
    return torch.where(t == 0, a, torch.where(t == 1, b, found))


def walk(points: torch.Tensor, count: int) -> torch.Tensor:
    """Return a closed way through points (P, Z) and back to the first, in steps: (count, Z).

    Each part is a ``slerp``, and each step the same angle. Step 0 is the first point, and the last
    is one step before it. A point that is repeated is a pause as long as a mean part.

    Examples:
        >>> walk(torch.eye(3), 300).shape
        torch.Size([300, 3])
    """
    part, t = _places(points, count)
    return slerp(points[part], points.roll(-1, 0)[part], t)


def fade(weights: torch.Tensor, points: torch.Tensor, count: int) -> torch.Tensor:
    """Return the weights (count, K) of classes during ``walk``, from those of its points, (P, K).

    Examples:
        >>> fade(torch.eye(2), torch.randn(2, 100), 4)[1]
        tensor([0.5000, 0.5000])
    """
    part, t = _places(points, count)
    return weights[part].lerp(weights.roll(-1, 0)[part], t[:, None].to(weights))


def _places(points: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each step's part of the walk, and how far it is in there, in [0, 1)."""
    checks.tensor("points", points)
    if points.dim() != 2 or 0 in points.shape:
        raise ValueError(f"points must be (P, Z), got {[*points.shape]}; use latents.by_seed.")
    angles = _angle(points.double(), points.roll(-1, 0).double())
    moving = angles > 1e-4
    angles = angles.where(moving, angles[moving].mean() if moving.any() else 1)
    ends = angles.cumsum(0)
    steps = torch.arange(checks.count("count", count), device=ends.device)
    place = steps * (ends[-1] / count)
    part = torch.searchsorted(ends, place, right=True).clamp_max(len(ends) - 1)
    return part, (1 - (ends[part] - place) / angles[part]).clamp(0, 1)


def _angle(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the angle between vectors; the arc cosine of their product would be less exact."""
    a, b = _unit(a), _unit(b)
    return 2 * torch.atan2((a - b).norm(dim=-1), (a + b).norm(dim=-1))


def _unit(a: torch.Tensor) -> torch.Tensor:
    return nn.functional.normalize(a, dim=-1)


def images(
    generator: nn.Module, z: torch.Tensor, labels: torch.Tensor | None = None
) -> Iterator[torch.Tensor]:
    """Make the images (C, H, W) of z (N, Z) one by one; only 64 are in memory."""
    for start in range(0, len(z), 64):
        some = None if labels is None else labels[start : start + 64]
        yield from sampling.generate(generator, z[start : start + 64], labels=some)


def seeds_of(text: str) -> list[int]:
    """Return the seeds of "1-64,70"; raise ValueError for what is not written so."""
    found: list[int] = []
    for part in text.split(","):
        ends = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part, re.ASCII)
        numbers = range(int(ends[1]), int(ends[2] or ends[1]) + 1) if ends else ()
        if not numbers:
            raise ValueError(f"seeds must be numbers and ranges, got {part!r}; use 1-64,70.")
        found += numbers
    return found


def labels_by_name(generator: nn.Module, names: str | None) -> torch.Tensor | None:
    """Return the numbers (n,) of classes such as "cat,3", names first; None is all there are.

    Raises ValueError for unknown ones. A net without classes has None, and takes no names.
    """
    count = getattr(generator, "num_classes", None)
    if count is None and names is not None:
        raise ValueError(f"labels must be left out for a net without classes, got {names!r}.")
    if count is None:
        return None
    numbers = [str(number) for number in range(count)]
    known = class_names(generator) or numbers
    wanted = known if names is None else [name.strip() for name in names.split(",")]
    for name in wanted:
        if name not in known and name not in numbers:
            some = ", ".join(known[:20]) + ", ..." * (count > 20)
            raise ValueError(f"labels must be known classes, got {name!r}; use some of {some}.")
    return torch.tensor([(known if name in known else numbers).index(name) for name in wanted])
