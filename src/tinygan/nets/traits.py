"""What can be asked of any net: evaluation mode, batch norm and its statistics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.dropout import _DropoutNd


def has_batch_norm(net: nn.Module) -> bool:
    """Return whether a net has batch norm.

    Examples:
        >>> has_batch_norm(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)))
        True
    """
    return any(isinstance(part, _BatchNorm) for part in net.modules())


def running_statistics(net: nn.Module) -> dict[str, torch.Tensor]:
    """Return the running means and variances of a net's batch or instance norms, by name.

    Examples:
        >>> running_statistics(nn.Sequential(nn.BatchNorm1d(1)))
        {'0.running_mean': tensor([0.]), '0.running_var': tensor([1.])}
    """
    return {
        f"{name}.{kind}".lstrip("."): statistic
        for name, part in net.named_modules()
        if isinstance(part, _NormBase)
        for kind in ("running_mean", "running_var")
        if (statistic := getattr(part, kind)) is not None
    }


def synchronised(net: nn.Module, device: torch.device) -> nn.Module:
    """Return a net whose batch norms see the batches of all ranks (torch.nn.SyncBatchNorm).

    Its parameters are the same objects, by the same names.

    Raises:
        ValueError: on a CPU, for which PyTorch has none.

    Examples:
        >>> type(synchronised(nn.BatchNorm2d(3), torch.device("cuda"))).__name__
        'SyncBatchNorm'
    """
    if device.type != "cuda":
        raise ValueError(
            f"sync_batch_norm needs a CUDA device, got {device}; leave it out, and each rank's "
            "batch norm sees its own part of the batch."
        )
    converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    return converted


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Within the ``with`` block nets are in evaluation mode; afterwards each part is as before.

    Examples:
        >>> net = nn.BatchNorm2d(3)
        >>> with evaluating(net):
        ...     net.training
        False
        >>> net.training
        True
    """
    was_training = {part: part.training for net in modules for part in net.modules()}
    for net in modules:
        net.eval()
    try:
        yield
    finally:
        for part, training in was_training.items():
            part.training = training


def has_dropout(net: nn.Module) -> bool:
    """Return whether a net drops anything at random.

    Examples:
        >>> has_dropout(nn.Sequential(nn.Linear(2, 1), nn.Dropout(0.5)))
        True
    """
    return any(
        (isinstance(part, _DropoutNd) and part.p > 0)
        or (isinstance(part, nn.MultiheadAttention) and part.dropout > 0)
        for part in net.modules()
    )
