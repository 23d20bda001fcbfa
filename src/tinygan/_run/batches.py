"""What the trainer asks of its batches: examples, a length if there is one, a place to resume.

Batches are anything that can be iterated once per epoch: a ``tinygan.data.Loader``, a PyTorch
``DataLoader``, a list of tensors.
"""

from __future__ import annotations

import itertools
import logging
import warnings
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from tinygan._run import checks

logger = logging.getLogger(__name__)

Place = dict[str, Any]


def images(batch: object) -> torch.Tensor:
    """Return the images of a batch, which is a tensor or begins with one: (images, labels)."""
    first = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if not isinstance(first, torch.Tensor):
        raise TypeError(
            f"batches must give images or (images, labels), got {type(batch).__name__}; "
            "give tensors (N, C, H, W)."
        )
    return first


def labels(batch: object) -> torch.Tensor:
    """Return the labels of a batch (images, labels)."""
    second = batch[1] if isinstance(batch, (tuple, list)) and len(batch) > 1 else None
    if not isinstance(second, torch.Tensor):
        given = type(batch).__name__ if second is None else f"labels of {type(second).__name__}"
        raise TypeError(
            f"batches must give (images, labels) to nets with num_classes, got {given}; give "
            "tensors (N, C, H, W) and (N,), or build the nets without num_classes."
        )
    return second


def tensors(batch: object) -> tuple[torch.Tensor, ...]:
    """Return the tensors of a batch, which is one or a tuple of them, with a row per example."""
    given = tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)
    if not given or not all(isinstance(each, torch.Tensor) and each.dim() for each in given):
        kinds = ", ".join(type(each).__name__ for each in given) or "nothing"
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
    """Return in how many turns of equal size an algorithm says that it splits a batch."""
    turns: int = getattr(algorithm, "turns", 1)
    return turns


def check_size(size: int, *, d_steps: int, accumulate: int, pack: int) -> None:
    """Raise ValueError if an epoch's first batch cannot be split as it must be."""
    parts = d_steps * accumulate
    if size % parts:
        raise ValueError(
            f"each rank's batch size must be a multiple of d_steps * accumulate = {d_steps} * "
            f"{accumulate}, got {size}; use {max(size // parts, 1) * parts}."
        )
    if size < parts * pack:
        raise ValueError(
            f"a batch must have {parts * pack} images or more, as many as D packs "
            f"in each turn and part, got {size}; use larger batches, or a smaller pack."
        )


def part(
    given: Sequence[torch.Tensor], batches: Iterable[object], ranks: Any
) -> tuple[list[torch.Tensor], int]:
    """Return a rank's part of a batch's tensors, and how many examples the whole batch has."""
    if getattr(batches, "ranks", None) is ranks:  # a Loader gives each rank its own part
        return list(given), batches.whole  # type: ignore[attr-defined]
    own = ranks.part(len(given[0]))
    return [tensor[own] for tensor in given], len(given[0])


def digest(given: Sequence[torch.Tensor], batches: Iterable[object], ranks: Any) -> int:
    """Return a number for the content of a batch that each rank has loaded whole, else 0."""
    if ranks.count == 1 or getattr(batches, "ranks", None) is ranks:
        return 0
    found = 0
    for tensor in given:
        content = tensor.detach().cpu().contiguous()
        found = zlib.crc32(content.view(torch.uint8).numpy().tobytes(), found)
    return found


def length(batches: Iterable[object]) -> int | None:
    """Return the number of batches in an epoch, or None if that is not known."""
    once = isinstance(batches, Iterator)
    if once or not (hasattr(batches, "__iter__") or hasattr(batches, "__getitem__")):
        given = f"a {type(batches).__name__}" if once else repr(batches)
        raise TypeError(
            f"batches must be iterable once per epoch, got {given}; pass a list or a loader."
        )
    try:
        return len(batches)  # type: ignore[arg-type]
    except TypeError:  # a DataLoader over an IterableDataset has __len__ and raises this
        return None


def state(batches: Iterable[object]) -> Place | None:
    """Return where the batches stand, if they can say so (``state_dict``), else None."""
    if hasattr(batches, "state_dict") and hasattr(batches, "load_state_dict"):
        saved: Place = batches.state_dict()
        return saved
    return None


def configuration(batches: Iterable[object]) -> dict[str, str]:
    """Return in words what the batches say that they depend on, if they do."""
    found = getattr(batches, "configuration", None)
    if not isinstance(found, Mapping):
        return {}
    return {str(name): str(value) for name, value in found.items()}


def fitting(
    batches: Iterable[object], saved: Place | None, done: int, allow: Collection[str] = ()
) -> tuple[Place | None, int]:
    """Return a saved place, and how many batches of its epoch are done, as these batches have it.

    With another batch size the epoch goes on at the same image, if a batch begins there. Otherwise,
    or if its order is another one, it starts over. Differences must be allowed.
    """
    if saved is None or "configuration" not in saved or not hasattr(batches, "configuration"):
        return saved, done
    then, now = saved["configuration"], batches.configuration
    found = checks.differences(then, now, prefix="batches.")
    checks.refuse(found, allow)
    if not found:
        return saved, done
    if not {"size", "batch_size", "drop_last"} <= then.keys():  # the user's own kind of batches
        return {**saved, "configuration": now}, done
    seen, given = done * then["batch_size"], 0
    if seen + (then["batch_size"] if then["drop_last"] else 1) > then["size"]:
        given = length(batches) or 0  # the epoch is complete
    elif not found.keys() & {"batches.seed", "batches.size", "batches.shuffle"}:
        given = seen // now["batch_size"] if seen % now["batch_size"] == 0 else 0
    differing = "; ".join(f"{name}: {both}" for name, both in found.items())
    goes_on = f"goes on at batch {given}" if given or not done else "starts over"
    logger.warning("going on with other batches: %s; the epoch %s", differing, goes_on)
    return {**saved, "configuration": now, "given": given}, given


def rest_of_epoch(
    batches: Iterable[object],
    epoch: int,
    done: int,
    saved: Place | None,
    allow: Collection[str] = (),
) -> tuple[Iterator[object], int]:
    """Return an iterator over an epoch's batches after the first ``done``, and how many it skips.

    Batches with a state go back to ``saved``, a sequence is skipped forward. Others cannot resume
    in the middle: the epoch starts over, with a warning, and the second value is 0.
    """
    setters = [getattr(batches, "set_epoch", None)]
    setters.append(getattr(getattr(batches, "sampler", None), "set_epoch", None))
    for set_epoch in filter(None, setters):
        set_epoch(epoch)
    if done and saved is not None:
        saved, done = fitting(batches, saved, done, allow)
    if done == 0 and any(setters):
        return iter(batches), 0
    if saved is not None and hasattr(batches, "load_state_dict"):
        batches.load_state_dict(saved)
        return iter(batches), done
    if done == 0:
        return iter(batches), 0
    if isinstance(batches, Sequence):
        return itertools.islice(batches, done, None), done
    if done == length(batches):  # only its end has yet to come
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
