"""What the trainer asks of its batches: examples, a length if there is one, a place to resume.

Batches are anything that can be iterated once per epoch: a ``tinygan.data.Loader``, a PyTorch
``DataLoader``, a list of tensors.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import traceback
import warnings
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset

from tinygan._run import checks

logger = logging.getLogger(__name__)

Place = dict[str, Any]


def images(batch: object) -> torch.Tensor:
    """Return the images of a batch, which is a tensor or begins with one: (images, labels)."""
    return tensors(batch[:1] if isinstance(batch, (tuple, list)) else batch)[0]


def labels(batch: object) -> torch.Tensor:
    """Return the labels of a batch (images, labels)."""
    second = batch[1] if isinstance(batch, (tuple, list)) and len(batch) > 1 else None
    if not isinstance(second, torch.Tensor):
        raise TypeError(
            "batches must give (images, labels) to nets with num_classes, both tensors, got "
            f"{type(batch).__name__} without labels; or build the nets without num_classes."
        )
    return second


def tensors(batch: object) -> tuple[torch.Tensor, ...]:
    """Return the tensors of a batch, which is one or a tuple of them, with a row per example."""
    given = tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)
    if not given or not all(isinstance(each, torch.Tensor) and each.dim() for each in given):
        kinds = ", ".join(type(each).__name__ for each in given) or "nothing"
        remedy = (
            "give the data set's examples as tensors, and a data set itself by "
            "data.Loader(dataset, batch_size=64)"
        )
        if isinstance(batch, Mapping):
            kinds = f"a dict with the keys {', '.join(map(repr, batch))}"
            first = repr(next(iter(batch), "image"))
            remedy = (
                f"take batch[{first}]: let the data set give that, or tuples that begin with it"
            )
        raise TypeError(
            f"batches must be tensors (N, ...) or tuples of tensors, got {kinds}; {remedy}."
        )
    if len({len(each) for each in given}) > 1:
        raise ValueError(
            "the tensors of a batch must have one first dimension, got "
            f"{[len(each) for each in given]}; give each example a row in each."
        )
    return given


def check_size(size: int, *, d_steps: int, accumulate: int, join: int) -> None:
    """Raise ValueError if an epoch's first batch cannot be split as it must be."""
    parts = d_steps * accumulate
    if size % parts or size < parts * join:
        raise ValueError(
            f"each rank's batch size must be a multiple of d_steps * accumulate = {d_steps} * "
            f"{accumulate}, and each part must hold at least {join}, got {size}; for each rank use "
            f"{max(size // parts, join) * parts}."
        )


def part(
    given: Sequence[torch.Tensor], batches: Iterable[object], ranks: Any
) -> tuple[Sequence[torch.Tensor], int]:
    """Return a rank's part of a batch's tensors, and how many examples the whole batch has."""
    if getattr(batches, "ranks", None) is ranks:  # a Loader gives each rank its own part
        return given, batches.whole  # type: ignore[attr-defined]
    own = ranks.part(len(given[0]))
    return [tensor[own] for tensor in given], len(given[0])


def digest(given: Sequence[torch.Tensor], batches: Iterable[object], ranks: Any) -> int:
    """Return a number for the content of a batch that each rank has loaded whole, else 0."""
    found = 0
    if ranks.count > 1 and getattr(batches, "ranks", None) is not ranks:
        for tensor in given:
            content = tensor.detach().cpu().contiguous()
            found = zlib.crc32(content.view(torch.uint8).numpy().tobytes(), found)
    return found


def length(batches: Iterable[object]) -> int | None:
    """Return the number of batches in an epoch, or None if that is not known."""
    is_data_set = isinstance(batches, Dataset) and not isinstance(batches, IterableDataset)
    if is_data_set or isinstance(batches, torch.Tensor):
        raise TypeError(
            f"batches must be whole batches, got a {type(batches).__name__}, which gives single "
            "examples; wrap it in data.Loader(dataset, batch_size=64)."
        )
    if isinstance(batches, Iterator) or not isinstance(batches, Iterable):
        raise TypeError(
            f"batches must be iterable once per epoch, got a {type(batches).__name__}; give a list "
            "or a data.Loader(images, batch_size=64)."
        )
    try:
        return len(batches)  # type: ignore[arg-type]
    except TypeError:  # a DataLoader over an IterableDataset has __len__ and raises this
        return None


def sizes(batches: Iterable[object], size: int) -> tuple[int, int]:
    """Return the sizes of an epoch's smallest and largest batch; (``size``, 0) if not known."""
    if type(batches) in (list, tuple):  # others may do something when they are iterated
        known = [len(images(batch)) for batch in batches]
        return min(known), max(known)
    loader: Any = batches
    plan = getattr(loader, "batch_sampler", loader)  # a DataLoader has one
    try:
        count = loader.size if plan is loader else len(plan.sampler)
        whole = min(count, plan.batch_size)
        short = 0 if plan.drop_last else count % whole
        if size in (short, whole):
            return short or size, whole
    except (AttributeError, TypeError):  # these do not say it
        pass
    return size, 0


def state(batches: Iterable[object]) -> Place | None:
    """Return where the batches stand, if they can say so, else None."""
    if hasattr(batches, "state_dict") and hasattr(batches, "load_state_dict"):
        saved: Place = batches.state_dict()
        return saved
    return None


def fitting(
    batches: Iterable[object], saved: Place | None, done: int, allow: Collection[str] = ()
) -> tuple[Place | None, int]:
    """Return a saved place and its batch number as these batches count; others must be allowed.

    With another batch size the epoch goes on at the same image, if a batch begins there. Otherwise,
    or if its order is another one, it starts over.
    """
    if saved is None or "configuration" not in saved or not hasattr(batches, "configuration"):
        return saved, done
    then, now = saved["configuration"], batches.configuration
    found = checks.differences(then, now, prefix="batches.")
    checks.refuse(found, allow)
    if found and {"size", "batch_size", "drop_last"} <= then.keys():  # or they are the user's own
        seen = done * then["batch_size"]
        if seen + (then["batch_size"] if then["drop_last"] else 1) > then["size"]:
            done = length(batches) or 0  # the epoch is complete
        elif not found.keys() <= {"batches.batch_size", "batches.drop_last", "batches.flip"}:
            done = 0
        else:
            done = 0 if seen % now["batch_size"] else seen // now["batch_size"]
        saved = saved | {"given": done}
        logger.warning("with other batches the epoch goes on at batch %d: %s", done, found)
    return {**saved, "configuration": now}, done


def rest_of_epoch(
    batches: Iterable[object], epoch: int, done: int, saved: Place | None
) -> tuple[Iterator[object], int]:
    """Return an iterator over an epoch's batches after the first ``done``, and how many it skips.

    Batches with a state go back to ``saved``, a sequence is skipped forward. Others cannot resume
    in the middle: the epoch starts over, with a warning, and the second value is 0.
    """
    is_set = False
    for each in (batches, getattr(batches, "sampler", None)):
        if set_epoch := getattr(each, "set_epoch", None):
            set_epoch(epoch)
            is_set = True
    if saved is not None and hasattr(batches, "load_state_dict") and (done or not is_set):
        batches.load_state_dict(saved)
    elif done and isinstance(batches, Sequence):
        return itertools.islice(batches, done, None), done
    elif done and done == length(batches):  # only its end has yet to come
        return iter(()), done
    elif done:
        warnings.warn(
            f"epoch {epoch} starts over: {done} of its batches are done, but a "
            f"{type(batches).__name__} cannot go back to its place; use tinygan.data.Loader, or "
            "batches with state_dict and load_state_dict.",
            stacklevel=2,
        )
        done = 0
    return iter(batches), done


def check_complete(epoch: int, given: int, length: int | None) -> None:
    """Warn of an epoch that was shorter than the length of its batches."""
    if length is not None and given < length:
        warnings.warn(
            f"epoch {epoch} ended after {given} of {length} batches; look for a data set that "
            "raises StopIteration, or whose length counts more than it gives.",
            stacklevel=2,
        )


STACKABLE = "tensors of one shape, or tuples that begin with one"
REMEDY = (
    "let the data set's transform end in images of one size, as tensors in [-1, 1], or use "
    "data.image_folder or data.pack, which decode and resize"
)


def explain(error: Exception) -> None:
    """Raise TypeError in place of a ``DataLoader``'s error about examples it cannot stack."""
    text = "".join(traceback.format_exception(error))  # of a worker too
    if STACKABLE not in text and "default_collate" in text:
        reason = str(error).strip().splitlines()[-1]
        raise TypeError(f"batches must be made of {STACKABLE}, got {reason}; {REMEDY}.") from error


def closing(iterator: Any) -> contextlib.AbstractContextManager[Any]:
    """Close an iterator after a block, if it can be: its workers must not outlive the epoch."""
    return contextlib.closing(iterator) if hasattr(iterator, "close") else contextlib.nullcontext()
