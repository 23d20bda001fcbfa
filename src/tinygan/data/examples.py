"""A batch of a data set's examples, as PyTorch's ``DataLoader`` makes it; what fails is named."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import default_collate

from tinygan._run.batches import REMEDY, STACKABLE


def load(dataset: Any, indices: Sequence[int]) -> Any:
    """Return the batch of the examples at some indices."""
    with torch.device("cpu"):  # whatever PyTorch's default: a label may be a number as yet
        return _stacked(_taken(dataset, indices), indices)


def _taken(dataset: Any, indices: Sequence[int]) -> list[Any]:
    at = f"{list(indices)}"
    try:
        if getattr(dataset, "__getitems__", None):  # it would rather give them together
            return list(dataset.__getitems__(indices))
        examples = []
        for index in indices:
            at = f"[{index}]"
            examples.append(dataset[index])
        return examples
    except (StopIteration, GeneratorExit) as error:  # they would end the epoch without a word
        raise RuntimeError(
            f"dataset must give an example for each index, got {type(error).__name__} from "
            f"dataset{at}; correct its __getitem__ or its length."
        ) from error
    except Exception as error:
        error.add_note(f"raised by dataset{at}")
        raise


def _stacked(examples: list[Any], indices: Sequence[int]) -> Any:
    try:
        return default_collate(examples)
    except Exception as error:
        kinds = [_kind(each) for each in examples]
        other = next((n for n, kind in enumerate(kinds) if kind != kinds[0]), 0)
        also = f"{kinds[other]} from [{indices[other]}]" if other else " ".join(str(error).split())
        got = f"{kinds[0]} from [{indices[0]}] and {also}"
        raise TypeError(f"dataset must give {STACKABLE}, got {got}; {REMEDY}.") from error


def _kind(example: Any) -> str:
    first = example[0] if isinstance(example, (tuple, list)) and example else example
    name = f"{type(first).__module__}.{type(first).__qualname__}".removeprefix("builtins.")
    return f"{name} of shape {tuple(first.shape)}" if hasattr(first, "shape") else name
