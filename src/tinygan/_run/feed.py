"""What a step is given: this rank's examples on the device, and what is drawn for them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch

from tinygan import seeds
from tinygan._run import batches as batches_of
from tinygan.batch import Batch, Draws
from tinygan.hook import Run


class Feed:
    """Makes a step's batch of what a loader gives.

    Args:
        run: whose steps these are.
        dtype: of examples in floating point.
        d_steps: turns of D in a step.
        accumulate: parts of a batch, which are of one size, as are D's turns.

    Attributes:
        multiple: what the size of this rank's part must be a multiple of; the rest is left out.
    """

    def __init__(self, run: Run, dtype: torch.dtype, d_steps: int, accumulate: int) -> None:
        self._run = run
        self._dtype = dtype
        self._join: int = math.prod(getattr(player.module, "join", 1) for player in run.players)
        self._d_steps, self._accumulate = d_steps, accumulate
        self.multiple = d_steps * accumulate * self._join

    def check_size(self, size: int) -> None:
        """Raise ValueError if this rank's part of an epoch's first batch has an odd size."""
        batches_of.check_size(
            size, d_steps=self._d_steps, accumulate=self._accumulate, join=self._join
        )

    def part_of(
        self, given: Sequence[torch.Tensor], batches: Iterable[object]
    ) -> tuple[list[torch.Tensor], int]:
        """Return this rank's part of a batch, and how many examples the whole batch has."""
        return batches_of.part(given, batches, self._run.ranks)

    def is_too_small(self, size: int) -> bool:
        """Whether a batch of ``size`` is smaller than what the algorithm needs of this rank."""
        least: int = self._run.ranks.least(size)
        return least < self.multiple

    def share(self, size: int) -> float:
        """Return the weight of this rank's mean in the mean over a whole batch of ``size``."""
        share: float = self._run.ranks.share(size, self.multiple)
        return share

    def moved(self, own: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Return as many whole multiples of examples as there are, on the device."""
        whole = len(own[0]) // self.multiple * self.multiple
        return tuple(self._moved(tensor[:whole]) for tensor in own)

    def _moved(self, tensor: torch.Tensor) -> torch.Tensor:
        dtype = self._dtype if tensor.is_floating_point() else tensor.dtype
        # The layout in which convolutions of images run fastest.
        layout = torch.channels_last if tensor.dim() == 4 else torch.preserve_format
        return tensor.to(self._run.device, dtype, non_blocking=True, memory_format=layout)

    def batch(self, examples: tuple[torch.Tensor, ...], size: int) -> Batch:
        """Return the next step's batch: this rank's examples, of a whole batch of ``size``."""
        start = self._run.ranks.part(size).start
        own = slice(start, start + len(examples[0]))
        shape = (size, *examples[0].shape[1:])
        return Batch(examples, Draws(self.generator, shape, own, self._run.images, self._run.step))

    def generator(self, name: str, step: int | None = None) -> torch.Generator:
        """Return what draws the numbers of a name in a step, after a rollback other ones."""
        run = self._run
        again = (run.rollbacks,) if run.rollbacks else ()
        key = (name, run.step if step is None else step, *again)
        return seeds.generator(run.seed, *key, device=run.device)
