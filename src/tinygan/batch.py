"""One step's examples, and the random numbers that go with them.

What is random is asked for by name and drawn for the whole batch, a row for each example, as a
function of (seed, name, step). A turn of a player, a part of an accumulated batch and a rank of
several each take their rows. So one process draws what many draw together, and a step that is
replayed as a CUDA graph or resumed draws what it would have drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch

from tinygan import seeds
from tinygan._run import checks

Draw: TypeAlias = Callable[[Sequence[int], torch.Generator, int], torch.Tensor]
"""A function ``(shape, generator, images)`` that returns a tensor with one row for each example.

``shape`` is that of the whole batch's first tensor, (N, ...), and ``images`` counts the real
examples seen before, for what changes in the course of a run.
"""


@dataclass
class Draws:
    """What is random in one step, by name, drawn when it is first asked for.

    Attributes:
        generator_for: makes the random generator of a name, for this step.
        shape: of the first tensor of the whole batch, of all ranks.
        own: which rows of the whole batch are this rank's.
        images: real examples seen before.
        step: the number of the step, from 0.
        drawn: what was drawn, by name, with the function that drew it.
        kinds: what was drawn by each name, in words.
        asked: the k for which it was asked whether this is a k-th step.
        recorded: whether this is a recording, which can draw nothing that was not drawn before.
    """

    generator_for: Callable[[str], torch.Generator]
    shape: tuple[int, ...]
    own: slice
    images: int = 0
    step: int = 0
    drawn: dict[str, tuple[Draw, torch.Tensor]] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    asked: set[int] = field(default_factory=set)
    recorded: bool = False

    def rows(self, name: str, draw: Draw, kind: str = "a draw of your own") -> torch.Tensor:
        """Return this rank's rows of a draw."""
        if self.kinds.setdefault(name, kind) != kind:
            raise ValueError(
                f"a draw's name must be used for one thing in a step, got {name} for {kind} after "
                f"{self.kinds[name]}; give each draw its own name."
            )
        if name not in self.drawn:
            if self.recorded:
                raise RuntimeError(f"{name} is drawn in some steps and not in others of its kind")
            self.drawn[name] = draw, self.draw(name, draw)
        return self.drawn[name][1]

    def draw(self, name: str, draw: Draw) -> torch.Tensor:
        """Draw this rank's rows, anew."""
        rows = draw(self.shape, self.generator_for(name), self.images)
        if rows.shape[:1] != self.shape[:1]:
            raise ValueError(
                f"{name} must draw one row for each example of the whole batch, {self.shape[0]}, "
                f"got {tuple(rows.shape)}; begin its shape with shape[0]."
            )
        return rows[self.own]


class Batch:
    """One step's examples, (N, ...) each: ``real, *labels = batch``, ``len(batch)``.

    Args:
        tensors: this rank's examples; all have the same first dimension.
        draws: what is random in the step.
        rows: which of the examples these are: slices, one applied after the other.
        part: which of how many parts of neighbours, of what ``rows`` leave.

    Examples:
        >>> batch = Batch.of(torch.zeros(4, 3, 8, 8), torch.arange(4))
        >>> images, labels = batch
        >>> len(batch), [len(turn) for turn in batch.split(2)], batch.normal("z", 100).shape
        (4, [2, 2], torch.Size([4, 100]))
    """

    def __init__(
        self,
        tensors: Sequence[torch.Tensor],
        draws: Draws,
        *,
        rows: tuple[slice, ...] = (),
        part: tuple[int, int] = (0, 1),
    ) -> None:
        self.tensors = tuple(tensors)
        self.draws = draws
        self._rows = rows
        self._part = part

    @classmethod
    def of(cls, *tensors: torch.Tensor, seed: int = 0, step: int = 0) -> Batch:
        """Return a batch as a run of one process would make it, to try an algorithm on."""
        device = tensors[0].device

        def generator_for(name: str) -> torch.Generator:
            return seeds.generator(seed, name, step, device=device)

        size = len(tensors[0])
        return cls(
            tensors, Draws(generator_for, tuple(tensors[0].shape), slice(0, size), step=step)
        )

    def _own(self, tensor: torch.Tensor) -> torch.Tensor:
        for rows in self._rows:
            tensor = tensor[rows]
        index, count = self._part
        if count == 1:
            return tensor
        if len(tensor) % count:
            raise ValueError(
                f"accumulate must divide each turn, got {count} parts of {len(tensor)} examples; "
                "use batches that are a multiple of turns times accumulate."
            )
        return tensor.chunk(count)[index]

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Give the tensors, as in ``real, labels = batch``."""
        return (self._own(tensor) for tensor in self.tensors)

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self._own(self.tensors[0]))

    def split(self, turns: int) -> list[Batch]:
        """Return the batch in turns; the first of n turns has every n-th example.

        So a turn has the same examples whether one process has the whole batch or several have a
        part each. Raises ValueError for fewer examples than turns.
        """
        if checks.count("turns", turns) == 1:
            return [self]
        if len(self) < turns:
            raise ValueError(
                f"a batch must have at least one example for each of {turns} turns, got "
                f"{len(self)}; use larger batches, and drop_last=True for a short last one."
            )
        every_nth = [(*self._rows, slice(turn, None, turns)) for turn in range(turns)]
        return [Batch(self.tensors, self.draws, rows=r, part=self._part) for r in every_nth]

    def parts(self, count: int) -> list[Batch]:
        """Return the batch in parts of neighbours; ``split`` takes its turns from each part."""
        if count == 1:
            return [self]
        each = [(index, count) for index in range(count)]
        return [Batch(self.tensors, self.draws, rows=self._rows, part=part) for part in each]

    def every(self, steps: int) -> bool:
        """Return whether this is every n-th step; step 0 is one.

        An algorithm that does something in some steps only must ask this, and nothing else: a
        captured run records each kind of step once. It yields the same players in all steps.
        """
        self.draws.asked.add(checks.count("steps", steps))
        return self.draws.step % steps == 0

    def draw(self, name: str, draw: Draw) -> torch.Tensor:
        """Return random numbers, (N, ...), one row for each example, by a ``Draw``.

        Within a step the same name gives the same numbers, and must come with the same function.
        """
        return self._own(self.draws.rows(name, draw))

    def normal(self, name: str, *shape: int) -> torch.Tensor:
        """Return numbers from N(0, 1), (N, *shape), in the floating type of the examples."""
        return self._random(name, torch.randn, shape)

    def uniform(self, name: str, *shape: int) -> torch.Tensor:
        """Return numbers from U(0, 1), (N, *shape), in the floating type of the examples."""
        return self._random(name, torch.rand, shape)

    def _random(
        self, name: str, make: Callable[..., torch.Tensor], shape: tuple[Any, ...]
    ) -> torch.Tensor:
        if not isinstance(name, str):
            raise TypeError(f"a draw must have a name, got {name!r}; call batch.normal('z', 100).")
        if len(shape) == 1 and isinstance(shape[0], tuple | list):  # as torch.randn takes it
            shape = tuple(shape[0])
        first = self.tensors[0]
        dtype = first.dtype if first.is_floating_point() else torch.float32

        def draw(whole: Sequence[int], generator: torch.Generator, images: int) -> torch.Tensor:
            # Drawn in float32, so that it is the same numbers in any type.
            return seeds.drawn(make, (whole[0], *shape), generator).to(dtype)

        return self._own(self.draws.rows(name, draw, f"{make.__name__} of the shape {shape}"))
