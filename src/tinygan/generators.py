"""A generator from any file that holds one: a run's folder, a checkpoint, bare weights."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from tinygan import sampling
from tinygan._run import checkpoint, checks
from tinygan.nets import traits
from tinygan.nets.dcgan import DCGANGenerator
from tinygan.nets.r3gan import R3GANGenerator
from tinygan.nets.saved import CONFIG, WEIGHTS, checksum, facts_in, layer_of, save_generator

__all__ = ["load_generator", "save_generator"]

CLASSES: dict[str, type[nn.Module]] = {
    "tinygan.DCGANGenerator": DCGANGenerator, "tinygan.R3GANGenerator": R3GANGenerator,
}  # fmt: skip
"""What can be made from a configuration: nothing else is looked up or imported."""

PRIORS = {"normal": sampling.normal, "uniform": sampling.uniform}


def load_generator(
    path: str | os.PathLike[str],
    *,
    into: nn.Module | None = None,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """Return a saved generator, in evaluation mode. Executes nothing from the file.

    Args:
        path: a run's folder, whose moving average is taken if there is one; a folder or a
            ``.safetensors`` file by ``save_generator``; a checkpoint; or the bare weights of the
            DCGAN tutorial's net, a ``.pt`` file.
        into: a net for the weights, where it is not one of tinygan's: ``MyNet(...)``.
        device: where it shall be.

    The net has an attribute ``facts``, with what is known of it besides: ``classes``, ``step``.

    Raises:
        ValueError: for a path that holds no generator, a file that is damaged or of pickled
            objects, an unknown class, or weights that do not fit.

    Examples:
        >>> import tinygan
        >>> tinygan.DCGANGenerator(16, channels=1).save("digits")
        >>> generator = load_generator("digits")
        >>> sampling.generate(generator, sampling.normal(4, 100, torch.Generator())).shape
        torch.Size([4, 1, 16, 16])
    """
    where, device = checks.path("path", path), checks.device(device)
    if into is not None and not isinstance(into, nn.Module):
        raise TypeError(f"into must be a net, got {into!r}; make one: into=MyNet(...).")
    file, config, weights = _read(_file_of(where))
    net = into if into is not None else _made(file, config, weights)
    try:
        net.load_state_dict(weights, assign=into is None)
    except RuntimeError as error:
        raise ValueError(
            f"weights must fit the net, got those of a {config.get('class', 'net')} in {file} for "
            f"a {type(net).__name__}; build it with the same arguments, and give it as into=.\n"
            f"{error}"
        ) from error
    object.__setattr__(net, "facts", facts_in(config, net))
    if into is None:  # one's own net may not work in it
        net.to(memory_format=traits.layout(device))
    return net.to(device).eval()


def _file_of(path: Path) -> Path:
    """Return the file of weights that a path stands for."""
    if not path.is_dir():
        if path.exists():
            return path
        raise ValueError(f"path must hold a generator, got {path}, which is not there.")
    for folder in (path, path / "generator"):
        if (folder / WEIGHTS).exists():
            return folder / WEIGHTS
    if (path / "checkpoints").is_dir() or checkpoint.files(path):
        file, _ = checkpoint.find(path)  # it raises if all are damaged
        if file is not None:
            return file
        raise ValueError(
            f"path must hold a generator, got the run {path}, which has none yet; wait for its "
            "first checkpoint."
        )
    raise ValueError(
        f"path must hold a generator, got the folder {path}, which is no run; give a folder that "
        f"holds {WEIGHTS} or checkpoints, or train one first: tinygan train - --out {path}"
    )


def _read(file: Path) -> tuple[Path, dict[str, Any], dict[str, torch.Tensor]]:
    """Return a file, what it says of its generator, and the weights."""
    if file.suffix == ".safetensors":
        return file, *_read_safetensors(file)
    content = checkpoint.load(file)
    if "players" not in content:
        return file, {}, _bare(file, content)
    if "generator" not in content["players"]:
        raise ValueError(
            f"{file} must have a player called generator, got {', '.join(content['players'])}; "
            "load the checkpoint into your own trainer."
        )
    player = content["players"]["generator"]
    config = content.get("nets", {}).get("generator", {})
    if "latent_dim" not in config:  # of an earlier version: the rest is known by the weights
        said = content.get("configuration", {}).get("generator.latent_dim", "")
        config = {"latent_dim": int(said)} if said.isdecimal() else {}
    config |= {"step": content["step"], "images": content["images"]}
    return file, config, dict(player.get("average", player["module"]))


def _read_safetensors(file: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    try:
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata() or {}
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        text, beside = "{}", file.parent / CONFIG
        if "tinygan" in metadata:
            own = json.loads(metadata["tinygan"])
            text = own["config"]
            if own["crc32"] != checksum(text, weights):
                raise ValueError("its checksum is wrong")
        elif file.name == WEIGHTS and beside.exists():
            text = beside.read_text("utf-8")  # by other tools
        config = json.loads(text)
        if not isinstance(config, dict):
            raise ValueError("its configuration is no JSON object")
    except Exception as error:  # damaged bytes make decoders raise almost anything
        raise ValueError(
            f"generator must be whole, got {file}: {error}; copy it again, or load a checkpoint."
        ) from error
    return config, weights


def _bare(file: Path, content: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return bare weights, without the prefix that ``nn.DataParallel`` puts before each name."""
    if not content or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise ValueError(
            f"{file} must hold a checkpoint or a generator's weights, got a dictionary of "
            f"{', '.join(map(str, content)) or 'nothing'}; save net.state_dict()."
        )
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}


def _made(file: Path, config: dict[str, Any], weights: Mapping[str, torch.Tensor]) -> nn.Module:
    """Return a new net of the class and arguments that a configuration has."""
    if "class" not in config:
        config.update(_seen_from(file, weights, config.get("latent_dim")))
    kind = CLASSES.get(str(config["class"]))
    if kind is None:
        raise ValueError(
            f"class must be one of tinygan's, got {config['class']} in {file}; build the net and "
            "give it: load_generator(path, into=MyNet(...))."
        )
    try:
        arguments = {
            name: layer_of(value) if isinstance(value, dict) else value
            for name, value in config.items()
            if name in inspect.signature(kind).parameters
        }
        with torch.device("meta"):  # no weights are drawn, and none too large are allocated
            net = kind(**arguments)
        if (prior := config.get("prior", "normal")) != "normal":
            object.__setattr__(net, "prior", PRIORS[prior])
    except Exception as error:  # so may the constructors of layers
        raise ValueError(
            f"{file} must say how its net was made, got {config} ({error}); build the net and give "
            "it: load_generator(path, into=MyNet(...))."
        ) from error
    return net


def _seen_from(
    file: Path, weights: Mapping[str, torch.Tensor], latent_dim: int | None
) -> dict[str, Any]:
    """Return the arguments of the DCGAN generator that has these weights, as far as they show."""
    if latent_dim is not None:
        latent_dim = checks.count(f"latent_dim in {file}", latent_dim)
    kernels = [tensor.shape for tensor in weights.values() if tensor.dim() == 4]
    has_norm = "main.1.running_mean" in weights
    if "main.0.weight" not in weights or len(kernels) < 2 or has_norm == ("main.0.bias" in weights):
        raise ValueError(
            f"{file} must hold the weights of a DCGAN generator, got {', '.join([*weights][:3])} "
            "...; build the net and give it: load_generator(path, into=MyNet(...))."
        )
    height, width = kernels[0][2:]
    for kernel in kernels[1:]:  # each stage doubles a side, less one if its kernel is 3
        height, width = 2 * height - kernel[2] % 2, 2 * width - kernel[3] % 2
    inputs, widest = kernels[0][:2]
    base_channels, channels = kernels[-1][:2]
    return {
        "class": next(iter(CLASSES)),
        "image_size": [height, width],
        "channels": channels,
        "latent_dim": latent_dim or inputs,
        "base_channels": base_channels,
        "max_channels": widest,
        "num_classes": inputs - latent_dim if latent_dim not in (None, inputs) else None,
        **({} if has_norm else {"norm": None}),
    }
