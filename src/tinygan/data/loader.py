"""Batches whose order is a pure function of (seed, epoch)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from tinygan import checks, seeds


class Loader:
    """Load batches of a data set, shuffled anew each epoch, the same way for the same seed.

    The order depends on (seed, epoch) alone: not on the number of workers, on the global random
    state, or on what was loaded before. Loading itself is PyTorch's ``DataLoader``.

    Args:
        dataset: anything with ``len`` and ``[index]`` that gives an image (C, H, W), or a tuple
            that begins with one; a tensor (N, C, H, W) too.
        batch_size: images per batch.
        seed: names the order.
        shuffle: False for the data set's own order in every epoch.
        drop_last: leave out the last batch if it is short.
        workers: processes that load in the background; 0 loads in this one.
        pin_memory: give batches in page-locked memory, from which copies to a GPU are faster.

    Raises:
        ValueError: for a batch size under 1 or over the number of images.

    Examples:
        >>> loader = Loader(torch.zeros(10, 3, 8, 8), batch_size=4)
        >>> [len(batch) for batch in loader]
        [4, 4, 2]
    """

    def __init__(
        self,
        dataset: Dataset[Any] | torch.Tensor,
        batch_size: int,
        *,
        seed: int = 999,
        shuffle: bool = True,
        drop_last: bool = False,
        workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self.dataset = dataset
        self.size = len(dataset)  # type: ignore[arg-type]
        self.batch_size = checks.count("batch_size", batch_size)
        if batch_size > self.size:
            raise ValueError(
                f"batch_size must be at most the number of images, {self.size}, got {batch_size}; "
                "use smaller batches or more images."
            )
        self.seed = seed
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.workers = checks.count("workers", workers, at_least=0)
        self.pin_memory = pin_memory
        self.epoch = 0
        self._given = 0
        self._resume_after = 0

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        whole, short = divmod(self.size, self.batch_size)
        return whole + (short > 0 and not self.drop_last)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration takes; else each takes the next one."""
        self.epoch = epoch
        self._given = self._resume_after = 0

    def __iter__(self) -> Iterator[Any]:
        """Give the epoch's batches, or what is left of them after ``load_state_dict``."""
        done, self._resume_after = self._resume_after, 0
        return self._batches(self.epoch, done)

    def _batches(self, epoch: int, given: int) -> Iterator[Any]:
        # A DataLoader of its own for each iteration: two that run at once, or one that is left
        # half-way or interrupted, cannot disturb each other or the next.
        loader: DataLoader[Any] = DataLoader(
            self.dataset,  # type: ignore[arg-type]
            batch_sampler=self._plan(epoch)[given:],
            num_workers=self.workers,
            pin_memory=self.pin_memory,
            # Without one of its own, the DataLoader would draw from the global generator.
            generator=seeds.generator(self.seed, "workers", epoch),
        )
        for batch in loader:
            given += 1
            self.epoch, self._given = epoch, given
            yield batch
        self.epoch, self._given = epoch + 1, 0

    def _plan(self, epoch: int) -> list[list[int]]:
        """Return the indices of each batch of an epoch."""
        order = (
            torch.randperm(self.size, generator=seeds.generator(self.seed, "order", epoch))
            if self.shuffle
            else torch.arange(self.size)
        )
        return [indices.tolist() for indices in order.split(self.batch_size)][: len(self)]

    def _configuration(self) -> dict[str, int]:
        """Return what the order of the batches depends on, besides the epoch."""
        names = ("size", "batch_size", "seed", "shuffle", "drop_last")
        return {name: getattr(self, name) for name in names}

    def state_dict(self) -> dict[str, int]:
        """Return the place in the data, and what the order depends on."""
        return {"epoch": self.epoch, "given": self._given, **self._configuration()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to the place that ``state_dict`` returned; the next iteration starts there.

        Raises:
            ValueError: if the order would be another: for other images, batches or seeds.
        """
        for name, value in self._configuration().items():
            if state[name] != value:
                raise ValueError(
                    f"{name} must be as when the state was saved, {state[name]}, got {value}; "
                    f"make the Loader with {state[name]}."
                )
        self.epoch = state["epoch"]
        self._given = self._resume_after = state["given"]
