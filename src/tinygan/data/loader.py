"""Batches whose order and flips are pure functions of (seed, epoch, index)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from tinygan import distributed, seeds
from tinygan._run import batches, checks, signals
from tinygan.data.gathering import Gatherer, in_memory
from tinygan.data.workers import iterating
from tinygan.distributed import Ranks


class Loader:
    """Load batches of a data set, shuffled anew each epoch, the same way for the same seed.

    Order and flips depend on (seed, epoch) alone: not on the number of workers, the global random
    state, or what was loaded before. Of several ranks each loads its part of each batch; ``whole``
    is how many images the whole of the last batch has.

    Loading is PyTorch's ``DataLoader``, except for data sets with all images in memory, which load
    many times as fast, without workers: packed images, drawn faces, and whatever has ``pixels``, a
    tensor (N, C, H, W) of uint8, perhaps ``labels``, (N, ...), and no ``[index]`` of its own. Their
    batches are images in [-1, 1], or [images, labels].

    Args:
        dataset: anything with ``len`` and ``[index]`` that gives an image (C, H, W), or a tuple
            that begins with one; a tensor (N, C, H, W) too.
        batch_size: images per batch, of all ranks together.
        seed: decides the order and the flips.
        shuffle: False for the data set's own order in every epoch.
        drop_last: leave out the last batch if it is short.
        flip: mirror each example, left to right, with probability 1/2, anew in each epoch.
        workers: processes that load in the background; 0 loads in this one.
        timeout: seconds after which workers that give nothing are taken for stuck.
        device: where batches are wanted; None for the CPU. Images in memory are moved to a GPU
            once, if they take at most a quarter of what is free there. Others go there by
            page-locked memory.
        ranks: the processes of the run; None for those that torchrun has started.

    Raises:
        ValueError: for an argument out of range, or ``pixels`` or ``labels`` that do not fit.
        RuntimeError: while iterating, for workers that died or are stuck. One that dies while it
            hands a batch over may be a ConnectionError.

    Examples:
        >>> [len(batch) for batch in Loader(torch.zeros(10, 3, 8, 8), batch_size=4)]
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
        flip: bool = False,
        workers: int = 0,
        timeout: float = 300,
        device: torch.device | str | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.dataset, self.size = dataset, len(dataset)  # type: ignore[arg-type]
        self.batch_size = checks.count("batch_size", batch_size)
        if batch_size > self.size:
            raise ValueError(
                f"batch_size must be at most the number of images, {self.size}, got {batch_size}; "
                "use smaller batches or more images."
            )
        if not timeout > 0:
            raise ValueError(f"timeout must be above 0 seconds, got {timeout!r}; use 300.")
        self.seed, self.shuffle, self.drop_last, self.flip = seed, shuffle, drop_last, flip
        seeds.mix(seed)  # or it would be refused in the first epoch
        self.workers = checks.count("workers", workers, at_least=0)
        self.timeout = timeout
        self.ranks = ranks or distributed.join()
        # After joining: "cuda" is another one on each rank.
        self.device = None if device is None else checks.device(device)
        self._in_memory = in_memory(dataset)
        self._gatherer: Gatherer | None = None
        self.whole = self.epoch = self._given = self._resume_after = 0

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
        wholes, flips = self._plan(epoch)[given:], self._flips(epoch)
        plan = [indices[self.ranks.part(len(indices))] for indices in wholes]
        if self._in_memory is None:
            source = self._loaded(epoch, plan, flips)
        else:
            # Not before the first iteration: the nets should have had their memory by then.
            if self._gatherer is None:
                self._gatherer = Gatherer(*self._in_memory, self.device or torch.device("cpu"))
            source = self._gatherer.batches(plan, flips)
        with batches.closing(source):
            for whole, batch in zip(wholes, source):
                given += 1
                self.epoch, self._given, self.whole = epoch, given, len(whole)
                yield batch
        self.epoch, self._given = epoch + 1, 0

    def _loaded(
        self, epoch: int, plan: list[torch.Tensor], flips: torch.Tensor | None
    ) -> Iterator[Any]:
        # A DataLoader of its own for each iteration: two that run at once, or one that is left
        # half-way or interrupted, cannot disturb each other or the next.
        loader: DataLoader[Any] = DataLoader(
            self.dataset,  # type: ignore[arg-type]
            batch_sampler=[indices.tolist() for indices in plan],
            num_workers=self.workers,
            worker_init_fn=signals.ignore,
            timeout=self.timeout if self.workers else 0,
            pin_memory=self.device is not None and self.device.type == "cuda",
            # Without one of its own, the DataLoader would draw from the global generator.
            generator=seeds.generator(self.seed, "workers", epoch),
        )
        try:
            with iterating(loader) as loaded:
                for indices, batch in zip(plan, loaded):
                    if flips is not None:
                        _flip(batch, flips[indices])
                    yield batch if self.device is None else _moved(batch, self.device)
        except Exception as error:
            if self.workers:
                error.add_note(
                    f"while loading in epoch {epoch} with workers={self.workers} and "
                    f"timeout={self.timeout} s; workers=0 shows where it fails."
                )
            raise

    def _plan(self, epoch: int) -> list[torch.Tensor]:
        """Return the indices of each whole batch of an epoch."""
        order = torch.arange(self.size, device="cpu")
        if self.shuffle:
            draws = seeds.generator(self.seed, "order", epoch)
            order = torch.randperm(self.size, generator=draws, device="cpu")
        return list(order.split(self.batch_size))[: len(self)]

    def _flips(self, epoch: int) -> torch.Tensor | None:
        """Return for each image, by its index, whether the epoch mirrors it: (size,) of bool."""
        if not self.flip:
            return None
        draws = seeds.generator(self.seed, "flip", epoch)
        return seeds.drawn(torch.rand, (self.size,), draws) < 0.5

    @property
    def configuration(self) -> dict[str, object]:
        """What the batches depend on besides the epoch: of the loader, and of the data set."""
        names = ("size", "batch_size", "shuffle", "drop_last", "flip")
        own = {"seed": int(self.seed), **{name: getattr(self, name) for name in names}}
        of_data: dict[str, object] = getattr(self.dataset, "configuration", {})
        return own | {f"dataset.{name}": value for name, value in of_data.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the data, and what the batches depend on."""
        return {"epoch": self.epoch, "given": self._given, "configuration": self.configuration}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved place; raise ValueError, with every difference, for other batches."""
        then = state["configuration"]
        checks.refuse(checks.differences(then, self.configuration, prefix="batches."))
        self.epoch = state["epoch"]
        self._given = self._resume_after = state["given"]


def _moved(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, list | tuple):
        return [_moved(each, device) for each in batch]
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=device.type == "cuda")
    return batch


def _flip(batch: Any, which: torch.Tensor) -> None:
    """Mirror the images (N, C, H, W) of a new batch where ``which`` is true; not its labels.

    In place, for a new tensor would not be in page-locked memory.
    """
    several = batch if isinstance(batch, list | tuple) else [batch]
    images = [each for each in several if isinstance(each, torch.Tensor) and each.dim() == 4]
    if not images or images[0] is not several[0]:
        raise ValueError(
            "flip must be of batches that begin with images (N, C, H, W); leave it out."
        )
    for each in images:  # all of an example alike, such as a photograph and its outline
        each[which] = each[which].flip(-1)
