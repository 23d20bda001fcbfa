"""What can be asked of any net: evaluation mode, batch norm and its statistics, dropout."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.dropout import _DropoutNd


@contextmanager
def evaluating(*nets: nn.Module) -> Iterator[None]:
    """Put nets into evaluation mode within a ``with`` block; afterwards each part is as before."""
    was_training = {part: part.training for net in nets for part in net.modules()}
    for net in nets:
        net.eval()
    try:
        yield
    finally:
        for part, training in was_training.items():
            part.training = training


def example(net: nn.Module) -> torch.Tensor:
    """Return a tensor of the type and on the device that a net works with, if it has weights."""
    tensors = itertools.chain(net.parameters(), net.buffers())
    plain = torch.empty(0, dtype=torch.float32, device="cpu")
    return next((tensor for tensor in tensors if tensor.is_floating_point()), plain)


def layout(device: torch.device) -> torch.memory_format:
    """Return how images lie in memory: channels last, in which convolutions run fastest.

    Not on MPS, where older PyTorch has wrong gradients of batch norm in it (pytorch#175189).
    """
    return torch.contiguous_format if device.type == "mps" else torch.channels_last


def has_batch_norm(net: nn.Module) -> bool:
    """Return whether a net has batch norm."""
    return any(isinstance(part, _BatchNorm) for part in net.modules())


def has_dropout(net: nn.Module) -> bool:
    """Return whether a net drops anything at random."""
    return any(
        (isinstance(part, _DropoutNd) and part.p > 0)
        or (isinstance(part, nn.MultiheadAttention) and part.dropout > 0)
        for part in net.modules()
    )


def running_statistics(net: nn.Module) -> dict[str, torch.Tensor]:
    """Return the running means and variances of a net's batch or instance norms, by name."""
    return {
        f"{name}.{kind}".lstrip("."): statistic
        for name, part in net.named_modules()
        if isinstance(part, _NormBase)
        for kind in ("running_mean", "running_var")
        if (statistic := getattr(part, kind)) is not None
    }
