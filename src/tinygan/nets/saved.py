"""A generator as files that say what it is: its weights, and how to make the net that they fit.

A folder holds ``model.safetensors`` and ``config.json``, in the layout of huggingface_hub's
``PyTorchModelHubMixin``. The weights' file has the same configuration inside, so it is whole alone.
"""

from __future__ import annotations

import inspect
import json
import os
import zlib
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as to_safetensors
from torch import nn

from tinygan._run import checkpoint, checks, disk
from tinygan._run.state import in_words, name_of
from tinygan.version import __version__

WEIGHTS, CONFIG = "model.safetensors", "config.json"

DECLARED = ("image_size", "channels", "latent_dim", "num_classes")
"""What a generator may say of itself."""


class Generator(nn.Module):
    """A generator that keeps each argument of its constructor as an attribute of the same name.

    Attributes:
        facts: what is known of it besides, as plain values: ``classes`` (their names), ``images``
            and ``step`` (how far it was trained), ``trained_on``.
    """

    facts: Mapping[str, Any] = MappingProxyType({})  # all nets', so it must not change

    def save(self, path: str | os.PathLike[str], **facts: Any) -> None:
        """Save it, and what is known of it, by ``tinygan.save_generator``."""
        save_generator(self, path, **facts)


def save_generator(net: nn.Module, path: str | os.PathLike[str], **facts: Any) -> None:
    """Write a generator as a folder, or as one file if ``path`` ends in ``.safetensors``.

    ``tinygan.load_generator`` reads either, on any machine. ``facts`` are plain values to keep with
    it, such as ``classes=["cat", "dog"]``; those it has already stay. Raises ValueError for weights
    that are NaN, for facts that JSON does not have, and for those named as the net's own settings.

    Examples:
        >>> import tinygan
        >>> save_generator(tinygan.DCGANGenerator(8), "faces", trained_on="my photographs")
        >>> tinygan.load_generator("faces").image_size
        (8, 8)
    """
    path, config = checks.path("path", path), configuration(net, facts)
    weights = {
        # Clones: safetensors refuses channels last, and tensors that share memory.
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in net.state_dict().items()
    }
    for name, is_nan in checkpoint.not_finite(weights, "weights").items():
        if is_nan:
            raise ValueError(f"weights must not be NaN, got {name} with some; save it earlier.")
    # One entry: safetensors writes several in a random order, and equal runs have equal files.
    metadata = {"tinygan": json.dumps({"config": config, "crc32": checksum(config, weights)})}
    if path.suffix == ".safetensors":
        path.parent.mkdir(parents=True, exist_ok=True)
    else:
        path.mkdir(parents=True, exist_ok=True)
        with disk.renamed(path / CONFIG) as file:
            disk.write(file, config.encode())
        path = path / WEIGHTS
    with disk.renamed(path) as file:
        disk.write(file, to_safetensors(weights, metadata))


def configuration(net: nn.Module, facts: Mapping[str, Any]) -> str:
    """Return what a net is, how it was made, and what is known of it, as JSON."""
    if taken := facts.keys() & _own(net):
        raise ValueError(f"facts must have names of their own, got {sorted(taken)}; rename them.")
    known = {**facts_of(net), **facts}
    try:
        return json.dumps(known | describe(net), indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"facts must be plain values, got {known!r} ({error}); use text, numbers and lists."
        ) from error


def checksum(config: str, weights: Mapping[str, torch.Tensor]) -> int:
    """Return a checksum of a file's configuration and weights: safetensors has none."""
    found = zlib.crc32(config.encode())
    for name in sorted(weights):
        data = weights[name].reshape(-1).view(torch.uint8).numpy().data
        found = zlib.crc32(data, zlib.crc32(name.encode(), found))
    return found


def describe(net: nn.Module) -> dict[str, Any]:
    """Return in plain values what a net is, and how it was made if it is a ``Generator``."""
    kind = type(net)
    module = "tinygan" if kind.__module__.startswith("tinygan.") else kind.__module__
    config: dict[str, Any] = {"class": f"{module}.{kind.__qualname__}"}
    arguments = inspect.signature(kind).parameters if isinstance(net, Generator) else {}
    for name in arguments or DECLARED:
        value = getattr(net, name, ...)  # nets of one's own may lack it, or mean anything by it
        # Functions that are the default are left out: other tools take them from the class.
        is_default = callable(value) and name in arguments and value is arguments[name].default
        if value is not ... and not is_default:
            config[name] = value
    prior = getattr(net, "prior", None)
    config["prior"] = "normal" if prior is None else getattr(prior, "__name__", in_words(prior))
    plain: dict[str, Any] = json.loads(json.dumps(config, default=_plain))
    return plain | {"value_range": [-1, 1], "tinygan": __version__}


def facts_of(net: nn.Module) -> dict[str, Any]:
    """Return what is known of a net besides; nets of one's own may mean something else by it."""
    facts = getattr(net, "facts", None)
    return dict(facts) if isinstance(facts, Mapping) else {}


def _own(net: nn.Module) -> set[str]:
    """Return the names by which a configuration says what a net is, and how it was made."""
    return {*describe(net), *inspect.signature(type(net)).parameters}


def facts_in(config: Mapping[str, Any], net: nn.Module) -> dict[str, Any]:
    """Return what else a configuration says, and which tinygan wrote it."""
    own = _own(net) - {"tinygan"}
    return {name: value for name, value in config.items() if name not in own}


def _plain(value: Any) -> Any:
    """Return what JSON lacks: what makes a layer by its name and arguments, the rest in words."""
    if isinstance(value, partial):
        args = {"args": value.args} if value.args else {}
        return {**_plain(value.func), **args, **value.keywords}
    if callable(value):
        in_torch = getattr(nn, getattr(value, "__name__", ""), None) is value
        return {"layer": value.__name__ if in_torch else name_of(value)}
    return value.item() if isinstance(value, np.generic) else in_words(value)


def layer_of(described: Mapping[str, Any]) -> Any:
    """Return what makes a layer of torch.nn, described by its name and arguments.

    Raises ValueError for anything else: nothing but layers is looked up.
    """
    arguments = dict(described)
    name = arguments.pop("layer")
    kind = getattr(nn, name, None) if isinstance(name, str) else None
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise ValueError(
            f"layers must be those of torch.nn, got {name}; build the net and give it as into=."
        )
    return partial(kind, *arguments.pop("args", ()), **arguments) if arguments else kind
