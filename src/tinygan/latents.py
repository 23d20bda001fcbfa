"""Points of a generator's noise by their seeds, and ways between them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import nn
from torch.nn.functional import normalize

from tinygan import sampling, seeds
from tinygan._run import checks

__all__ = ["by_seed", "fade", "slerp", "walk"]


def by_seed(generator: nn.Module, numbers: Iterable[int], truncation: float = 1.0) -> torch.Tensor:
    """Return each seed's z, (N, Z), on the CPU: it depends on its own seed alone.

    It is drawn by the generator's ``prior``, or from N(0, I). ``truncation``, in [0, 1], scales it
    towards 0, for fewer surprises and less variety. Raises ValueError for others and for no seeds.

    Examples:
        >>> import tinygan
        >>> z = by_seed(tinygan.DCGANGenerator(16), [3, 14, 15], truncation=0.7)
    """
    checks.number("truncation", truncation, "[0, 1]")
    draw: sampling.Prior = getattr(generator, "prior", sampling.normal)
    length = checks.count("latent_dim", getattr(generator, "latent_dim", None))
    rows = [draw(1, length, seeds.generator(seed, "z")) for seed in numbers]
    checks.count("the number of seeds", len(rows))
    return truncation * torch.cat(rows)


def slerp(a: torch.Tensor, b: torch.Tensor, t: torch.Tensor | float) -> torch.Tensor:
    """Go from a to b, (N, Z) or (Z,), along an arc (Shoemake 1985); ``t`` is from 0 to 1.

    Lengths go evenly from one to the other: on a straight line they would be too short for N(0, I).
    ``t`` may have one number for each row. Between parallel vectors the way is straight.

    Examples:
        >>> slerp(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 3.0]), 0.5)
        tensor([1.4142, 1.4142])
    """
    t = torch.as_tensor(t, dtype=a.dtype, device=a.device)[..., None]
    angle = _angle(a, b)[..., None]
    parallel = angle.sin() < 1e-4  # there rounding would decide on the direction
    sine = angle.sin().where(~parallel, 1)
    arc = ((1 - t) * angle).sin() * normalize(a, dim=-1) + (t * angle).sin() * normalize(b, dim=-1)
    length = a.norm(dim=-1, keepdim=True).lerp(b.norm(dim=-1, keepdim=True), t)
    way = a.lerp(b, t).where(parallel, arc / sine * length)
    return a.where(t == 0, b.where(t == 1, way))


def walk(points: torch.Tensor, count: int) -> torch.Tensor:
    """Return a closed way through points (P, Z), back to the first, in steps: (count, Z).

    It goes by ``slerp``, at the same angle for each step, from the first point to one step before
    it. A point that is repeated is a pause, as long as the mean way between two.

    Examples:
        >>> steps = walk(torch.eye(3), 300)
    """
    part, t = _places(points, count)
    return slerp(points[part], points.roll(-1, 0)[part], t)


def fade(shares: torch.Tensor, points: torch.Tensor, count: int) -> torch.Tensor:
    """Return classes' shares (count, K) in each step of ``walk``, from those of its points, (P, K).

    Examples:
        >>> fade(torch.eye(2), torch.eye(2), 4)[1]
        tensor([0.5000, 0.5000])
    """
    part, t = _places(points, count)
    return shares[part].lerp(shares.roll(-1, 0)[part], t[:, None].to(shares))


def _places(points: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the part of a walk that each step is in, and its place there, from 0 to 1."""
    angles = _angle(points.double(), points.roll(-1, 0).double())
    moving = angles > 1e-4
    angles = angles.where(moving, angles[moving].mean() if moving.any() else 1)
    ends = angles.cumsum(0)
    places = torch.arange(checks.count("count", count), device=ends.device) * (ends[-1] / count)
    part = torch.searchsorted(ends, places)
    return part, (1 - (ends[part] - places) / angles[part]).clamp(0, 1)


def _angle(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the angle between vectors, more exactly than an arc cosine does."""
    a, b = normalize(a, dim=-1), normalize(b, dim=-1)
    return 2 * torch.atan2((a - b).norm(dim=-1), (a + b).norm(dim=-1))


def images(
    generator: nn.Module, z: torch.Tensor, labels: torch.Tensor | None = None
) -> Iterator[torch.Tensor]:
    """Make the images (C, H, W) of z (N, Z) one by one; 64 are in memory."""
    for first in range(0, len(z), 64):
        part = slice(first, first + 64)
        yield from sampling.generate(
            generator, z[part], labels=None if labels is None else labels[part]
        )


def class_names(generator: nn.Module) -> list[str]:
    """Return the names of a net's classes, or else their numbers."""
    numbers = [str(number) for number in range(getattr(generator, "num_classes", None) or 0)]
    return (numbers and getattr(generator, "facts", {}).get("classes")) or numbers


def classes(generator: nn.Module, text: str | None) -> list[int]:
    """Return the classes of "cat,3", by their names, or else numbers; None is all there are."""
    names = class_names(generator)
    numbers = [str(number) for number in range(len(names))]
    wanted = names if text is None else [name.strip() for name in text.split(",")]
    for name in wanted:
        if not names:
            raise ValueError(f"labels must be left out, got {name!r}: this net has no classes.")
        if name not in names and name not in numbers:
            raise ValueError(
                f"labels must be known classes, got {name!r}; these are: {', '.join(names[:20])}."
            )
    return [(names if name in names else numbers).index(name) for name in wanted]
