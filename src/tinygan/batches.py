"""What the trainer asks of its batches: images, a length if there is one, and a place to resume.

Batches are anything that can be iterated once per epoch: a ``tinygan.data.Loader``, a PyTorch
``DataLoader``, a list of tensors.
"""

from __future__ import annotations

import itertools
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from tinygan import checks
from tinygan.compatibility import check_labels
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


def part(
    batch: object, batches: Iterable[object], ranks: Ranks, *, num_classes: int | None = None
) -> tuple[torch.Tensor, torch.Tensor | None, int]:
    """Return a rank's images and labels of a batch, and how many images the whole batch has.

    A ``tinygan.data.Loader`` loads each rank its part; of others each loads the whole.

    Raises:
        TypeError: for batches of nothing else than images.
        ValueError: for labels on the CPU that are not of the nets' classes.

    Examples:
        >>> from tinygan.distributed import ALONE
        >>> whole = torch.zeros(4, 3, 8, 8)
        >>> images, labels, size = part(whole, [whole], ALONE)
        >>> images.shape, labels, size
        (torch.Size([4, 3, 8, 8]), None, 4)
    """
    found, classes = images(batch), labels(batch) if num_classes is not None else None
    if classes is not None and num_classes is not None and classes.device.type == "cpu":
        check_labels(classes, len(found), num_classes)  # here it waits for nothing
    if _shared_out(batches, ranks):
        return found, classes, batches.whole  # type: ignore[attr-defined]
    own = ranks.part(len(found))
    return found[own], None if classes is None else classes[own], len(found)


def _shared_out(batches: Iterable[object], ranks: Ranks) -> bool:
    return getattr(batches, "ranks", None) is ranks


def digest(batch: object, batches: Iterable[object], ranks: Ranks, *, labelled: bool) -> int:
    """Return a number for the content of a batch that each rank has loaded whole, else 0."""
    if ranks.count == 1 or _shared_out(batches, ranks):
        return 0
    content = images(batch).detach().cpu().contiguous()
    found = zlib.crc32(content.view(torch.uint8).numpy().tobytes())
    if labelled:
        found = zlib.crc32(labels(batch).cpu().contiguous().numpy().tobytes(), found)
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
