"""Batches whose order and flips are pure functions of (seed, epoch, index)."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, suppress
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset

from tinygan import distributed, seeds
from tinygan._run import batches, checks
from tinygan.data.examples import load
from tinygan.data.gathering import Gatherer, in_memory
from tinygan.data.workers import Workers
from tinygan.distributed import Ranks


class Loader:
    """Load batches of a data set, shuffled anew each epoch, the same way for the same seed.

    Order and flips depend on (seed, epoch) alone: not on the number of workers, the global random
    state, or what was loaded before. Of several ranks each loads its part of each batch; ``whole``
    is how many images the whole of the last batch has.

    Batches are made as PyTorch's ``DataLoader`` makes them. Data sets with all images in memory
    load many times as fast, without workers: packed images, drawn faces, and whatever has
    ``pixels``, a tensor (N, C, H, W) of uint8, perhaps ``labels``, (N, ...), and no ``[index]`` of
    its own. Their batches are images in [-1, 1], or [images, labels].

    Args:
        dataset: anything with ``len`` and ``[index]`` that gives an image (C, H, W), or a tuple
            that begins with one; a tensor (N, C, H, W) too.
        batch_size: images per batch, of all ranks together.
        seed: decides the order and the flips.
        shuffle: False for the data set's own order in every epoch.
        drop_last: leave out the last batch if it is short.
        flip: mirror each example, left to right, with probability 1/2, anew in each epoch.
        workers: processes that load in the background; 0 loads in this one. They are kept from
            epoch to epoch, so they have the data set as it was in the first; give the loader
            another ``dataset`` to change it. What they draw from global random state depends on
            (seed, epoch, batch). Where Python does not fork (macOS, Windows, and by default from
            3.14), a script's code must be under ``if __name__ == "__main__":``.
        timeout: seconds after which workers that give nothing are taken for stuck.
        device: where batches are wanted; None for the CPU. Images in memory are moved to a GPU
            once, if they take at most a quarter of what is free there. Others go there by
            page-locked memory.
        ranks: the processes of the run; None for those that torchrun has started.

    Raises:
        ValueError: for an argument out of range, or ``pixels`` or ``labels`` that do not fit.
        TypeError: for what is no data set; while iterating, for examples that cannot be stacked.
        RuntimeError: while iterating, for workers that died, are stuck or cannot start, and for an
            example that is a StopIteration.

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
        self.dataset, self.size = dataset, _length(dataset)
        self.batch_size = checks.count("batch_size", batch_size)
        if batch_size > self.size:
            raise ValueError(
                f"batch_size must be at most the number of images, {self.size}, got {batch_size}; "
                "use smaller batches or more images."
            )
        self.seed, self.shuffle, self.drop_last, self.flip = seed, shuffle, drop_last, flip
        seeds.mix(seed)  # or it would be refused in the first epoch
        self.workers = checks.count("workers", workers, at_least=0)
        checks.number("timeout", timeout, "(0, inf)")
        self.timeout = timeout
        self.ranks = ranks or distributed.join()
        # After joining: "cuda" is another one on each rank.
        self.device = None if device is None else checks.device(device)
        self._in_memory = in_memory(dataset)
        self._gatherer: Gatherer | None = None
        self._workers: Workers | None = None
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
        if (size := _length(self.dataset)) != self.size:
            raise ValueError(
                f"dataset must keep its length, got {size}, and {self.size} when this Loader was "
                "made; make a new Loader."
            )
        wholes, flips = self._plan(epoch)[given:], self._flips(epoch)
        plan = [indices[self.ranks.part(len(indices))] for indices in wholes]
        if self._in_memory is None:
            source = self._loaded(epoch, given, plan, flips)
        else:
            # Not before the first iteration: the nets should have had their memory by then.
            if self._gatherer is None:
                self._gatherer = Gatherer(*self._in_memory, self.device or torch.device("cpu"))
            source = self._gatherer.batches(plan, flips)
        with batches.closing(source):
            for batch, whole in zip(source, wholes, strict=True):
                given += 1
                self.epoch, self._given, self.whole = epoch, given, len(whole)
                yield batch
        self.epoch, self._given = epoch + 1, 0

    def _loaded(
        self, epoch: int, given: int, plan: list[torch.Tensor], flips: torch.Tensor | None
    ) -> Iterator[Any]:
        tasks = [indices.tolist() for indices in plan]
        made = self._in_background if self.workers else self._made
        try:
            with closing(made(tasks, epoch, given)) as loaded:
                for batch, indices in zip(loaded, plan, strict=True):
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

    def _made(self, tasks: list[list[int]], _epoch: int, _given: int) -> Generator[Any]:
        for indices in tasks:
            yield load(self.dataset, indices)

    def _in_background(self, tasks: list[list[int]], epoch: int, given: int) -> Generator[Any]:
        # Taken out, so that an iteration that runs at the same time has workers of its own.
        workers, self._workers = self._workers, None
        if workers is None or not workers.can_go_on(self.dataset, self.workers):
            workers = Workers(
                self.dataset,
                self.workers,
                timeout=self.timeout,
                pin_memory=self.device is not None and self.device.type == "cuda",
                generator=seeds.generator(self.seed, "workers", self.ranks.rank),
            )
        key = self.seed, "workers", self.ranks.rank, epoch
        yield from workers.batches(
            [[seeds.mix(*key, number), *task] for number, task in enumerate(tasks, given)]
        )
        self._workers = workers

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_workers": None}

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


def _length(dataset: Any) -> int:
    """Return how many examples a data set has, if it is one."""
    got, remedy = f"a {type(dataset).__name__}", "give it len() and [index]"
    if isinstance(dataset, (str, os.PathLike)):
        remedy = f"use data.image_folder({str(dataset)!r}), or data.pack"
    elif isinstance(dataset, Mapping):
        remedy = f"give one of its values, {', '.join(map(repr, dataset))}"
    elif hasattr(dataset, "dataset"):
        remedy = "it gives batches already: give it to fit, or its data set here"
    elif isinstance(dataset, IterableDataset):
        remedy = "give fit a DataLoader of it"
    elif hasattr(dataset, "__getitem__") or hasattr(dataset, "pixels"):
        with suppress(TypeError):  # a tensor without dimensions has __len__ and raises this
            return checks.count("the number of examples in dataset", len(dataset))
    raise TypeError(f"dataset must give an example for each index, got {got}; {remedy}.")


def _moved(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, list | tuple):
        return [_moved(each, device) for each in batch]
    if isinstance(batch, torch.Tensor):
        if device.type == "cuda" and not batch.is_cuda:
            batch = batch.pin_memory()  # so that the host need not wait for the copy
        return batch.to(device, non_blocking=device.type == "cuda")
    return batch


def _flip(batch: Any, which: torch.Tensor) -> None:
    """Mirror the images (N, C, H, W) of a new batch where ``which`` is true; not its labels.

    In place, for a new tensor would not be in page-locked memory.
    """
    several = batch if isinstance(batch, list | tuple) else [batch]
    images = [each for each in several if isinstance(each, torch.Tensor) and each.dim() == 4]
    if not images or images[0] is not several[0]:
        got = [tuple(getattr(each, "shape", ())) or type(each).__name__ for each in several]
        raise ValueError(
            f"flip must be of batches that begin with images (N, C, H, W), got {got}; leave it out."
        )
    for each in images:  # all of an example alike, such as a photograph and its outline
        each[which] = each[which].flip(-1)
