"""What the trainer asks of its batches: images, a length if there is one, and a place to resume.

Batches are anything that can be iterated once per epoch: a ``tinygan.data.Loader``, a PyTorch
``DataLoader``, a list of tensors.
"""

from __future__ import annotations

import itertools
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from tinygan._run import checks
from tinygan.distributed import Ranks


def images(batch: object) -> torch.Tensor:
    """Return the images of a batch, which is a tensor or begins with one: (images, labels).

    Raises:
        TypeError: for anything else.

    Examples:
        >>> images((torch.zeros(4, 3, 8, 8), torch.arange(4))).shape
        torch.Size([4, 3, 8, 8])
    """
    first = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if not isinstance(first, torch.Tensor):
        raise TypeError(
            f"batches must give images or (images, labels), got {type(batch).__name__}; "
            "give tensors (N, C, H, W)."
        )
    return first


def labels(batch: object) -> torch.Tensor:
    """Return the labels of a batch (images, labels).

    Raises:
        TypeError: for anything else.

    Examples:
        >>> labels((torch.zeros(4, 3, 8, 8), torch.arange(4)))
        tensor([0, 1, 2, 3])
    """
    second = batch[1] if isinstance(batch, (tuple, list)) and len(batch) > 1 else None
    if not isinstance(second, torch.Tensor):
        given = type(batch).__name__ if second is None else f"labels of {type(second).__name__}"
        raise TypeError(
            f"batches must give (images, labels) to nets with num_classes, got {given}; give "
            "tensors (N, C, H, W) and (N,), or build the nets without num_classes."
        )
    return second


def tensors(batch: object) -> tuple[torch.Tensor, ...]:
    """Return the tensors of a batch, which is one or a tuple of them.

    Raises:
        TypeError: for anything else.
        ValueError: for tensors of other first dimensions.

    Examples:
        >>> [len(tensor) for tensor in tensors((torch.zeros(4, 2), torch.arange(4)))]
        [4, 4]
    """
    given = tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)
    if not given or not all(isinstance(each, torch.Tensor) and each.dim() for each in given):
        kinds = ", ".join(type(each).__name__ for each in given) or "an empty one"
        raise TypeError(
            f"batches must be tensors (N, ...) or tuples of tensors, got {kinds}; give the data "
            "set's examples as tensors."
        )
    sizes = [len(each) for each in given]
    if len(set(sizes)) > 1:
        raise ValueError(
            f"the tensors of a batch must have one first dimension, got {sizes}; give each "
            "example a row in each."
        )
    return given


def turns_of(algorithm: Callable[..., object]) -> int:
    """Return in how many turns of one size an algorithm says that it splits a batch.

    Examples:
        >>> from tinygan import algorithms
        >>> turns_of(algorithms.gan(d_steps=5))
        5
    """
    turns: int = getattr(algorithm, "turns", 1)
    return turns


def check_size(size: int, *, d_steps: int, accumulate: int, join: int) -> None:
    """Raise ValueError if an epoch's first batch cannot be shared out as it must be.

    Examples:
        >>> check_size(64, d_steps=2, accumulate=4, join=1)
    """
    if size % (d_steps * accumulate):
        fits = size // (d_steps * accumulate) * d_steps * accumulate
        raise ValueError(
            f"each rank's batch size must be a multiple of d_steps * accumulate = {d_steps} * "
            f"{accumulate}, got {size}; use {max(fits, d_steps * accumulate)}."
        )
    if size < d_steps * accumulate * join:
        raise ValueError(
            f"a batch must have {d_steps * accumulate * join} images or more, as many as D joins "
            f"in each turn and part, got {size}; use larger batches, or join fewer."
        )


def part(
    given: Sequence[torch.Tensor], batches: Iterable[object], ranks: Ranks
) -> tuple[list[torch.Tensor], int]:
    """Return a rank's part of the tensors of a batch, and how many examples the whole batch has.

    A ``tinygan.data.Loader`` loads each rank its part; of others each loads the whole.

    Examples:
        >>> from tinygan.distributed import ALONE
        >>> [images], size = part([torch.zeros(4, 3, 8, 8)], [], ALONE)
        >>> images.shape, size
        (torch.Size([4, 3, 8, 8]), 4)
    """
    if _shared_out(batches, ranks):
        return list(given), batches.whole  # type: ignore[attr-defined]
    own = ranks.part(len(given[0]))
    return [tensor[own] for tensor in given], len(given[0])


def _shared_out(batches: Iterable[object], ranks: Ranks) -> bool:
    return getattr(batches, "ranks", None) is ranks


def digest(given: Sequence[torch.Tensor], batches: Iterable[object], ranks: Ranks) -> int:
    """Return a number for the content of a batch that each rank has loaded whole, else 0."""
    if ranks.count == 1 or _shared_out(batches, ranks):
        return 0
    found = 0
    for tensor in given:
        content = tensor.detach().cpu().contiguous()
        found = zlib.crc32(content.view(torch.uint8).numpy().tobytes(), found)
    return found


def length(batches: Iterable[object]) -> int | None:
    """Return the number of batches in an epoch, or None if that is not known.

    Raises:
        TypeError: for what cannot be iterated, or only once, such as a generator.

    Examples:
        >>> length([1, 2, 3])
        3
    """
    if not hasattr(batches, "__iter__") and not hasattr(batches, "__getitem__"):
        raise TypeError(
            f"batches must be iterable once per epoch, got {batches!r}; pass a list or a loader."
        )
    if isinstance(batches, Iterator):
        raise TypeError(
            f"batches must be iterable once per epoch, got a {type(batches).__name__}, which gives "
            "its batches only once; pass a list or a loader."
        )
    try:
        return len(batches)  # type: ignore[arg-type]
    except TypeError:  # a DataLoader over an IterableDataset has __len__ and raises this
        return None


def state(batches: Iterable[object]) -> dict[str, Any] | None:
    """Return where the batches stand, if they can say so (``state_dict``), else None."""
    if hasattr(batches, "state_dict") and hasattr(batches, "load_state_dict"):
        saved: dict[str, Any] = batches.state_dict()
        return saved
    return None


def configuration(batches: Iterable[object]) -> dict[str, str]:
    """Return in words what the batches say that they depend on, if they do."""
    found = getattr(batches, "configuration", None)
    if not isinstance(found, Mapping):
        return {}
    return {str(name): str(value) for name, value in found.items()}


def check_same(batches: Iterable[object], saved: dict[str, Any] | None) -> None:
    """Raise ValueError if the batches say that they are others than those of a saved place."""
    if saved is not None and "configuration" in saved and hasattr(batches, "configuration"):
        checks.same("batches", saved["configuration"], batches.configuration)


def rest_of_epoch(
    batches: Iterable[object], epoch: int, done: int, saved: dict[str, Any] | None
) -> tuple[Iterator[object], int]:
    """Return an iterator over an epoch's batches after the first ``done``, and how many it skips.

    Batches with a state go back to ``saved``, a sequence is skipped forward. Others cannot resume
    in the middle: the epoch starts over, with a warning, and the second value is 0.
    """
    told = False
    for shuffled in (batches, getattr(batches, "sampler", None)):
        set_epoch = getattr(shuffled, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(epoch)
            told = True
    if done == 0 and told:
        return iter(batches), 0
    if saved is not None and hasattr(batches, "load_state_dict"):
        batches.load_state_dict(saved)
        return iter(batches), done
    if done == 0:
        return iter(batches), 0
    if isinstance(batches, Sequence):
        return itertools.islice(batches, done, None), done
    if done == length(batches):  # only its end is still to be told
        return iter(()), done
    warnings.warn(
        f"epoch {epoch} starts over: {done} of its batches are done, but a "
        f"{type(batches).__name__} cannot go back to its place; use tinygan.data.Loader, or "
        "batches with state_dict and load_state_dict.",
        stacklevel=2,
    )
    return iter(batches), 0


@contextmanager
def closing(iterator: Iterator[object]) -> Iterator[None]:
    """Close an iterator after the block, if it can be: its workers must not outlive the epoch."""
    try:
        yield
    finally:
        close = getattr(iterator, "close", None)
        if close is not None:
            close()
