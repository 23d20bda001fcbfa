"""A batch of a data set's examples, as PyTorch's ``DataLoader`` makes it; what fails is named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import default_collate

from tinygan._run.batches import REMEDY, STACKABLE


def load(dataset: Any, indices: Sequence[int]) -> Any:
    """Return the batch of the examples at some indices."""
    examples, at = [], f"{list(indices)}"
    try:
        if getattr(dataset, "__getitems__", None):  # it would rather give them together
            examples = dataset.__getitems__(indices)
        else:
            for index in indices:
                at = f"[{index}]"
                examples.append(dataset[index])
    except (StopIteration, GeneratorExit) as error:  # they would end the epoch without a word
        raise RuntimeError(
            f"dataset must give an example for each index, got {type(error).__name__} from "
            f"dataset{at}; correct its __getitem__ or its length."
        ) from error
    except Exception as error:
        error.add_note(f"raised by dataset{at}")
        raise
    try:
        return default_collate(examples)
    except Exception as error:
        got = _misfit(examples, indices) or " ".join(str(error).split())
        raise TypeError(f"dataset must give {STACKABLE}, got {got}; {REMEDY}.") from error


def _misfit(examples: Sequence[Any], indices: Sequence[int]) -> str:
    """Name examples that cannot be stacked, by their kind or shape, or nothing."""
    kinds = []
    for each in examples:
        first = each[0] if isinstance(each, (tuple, list)) and each else each
        kind = f"{type(first).__module__}.{type(first).__qualname__}".removeprefix("builtins.")
        is_array = isinstance(first, (torch.Tensor, np.ndarray))
        kinds.append(f"{kind} of shape {tuple(first.shape)}" if is_array else kind)
    for index, other in zip(indices, kinds):
        if other != kinds[0]:
            return f"{kinds[0]} from [{indices[0]}] and {other} from [{index}]"
    is_stackable = " of shape " in kinds[0] or isinstance(examples[0], Mapping)
    return "" if is_stackable else f"{kinds[0]} from [{indices[0]}]"
