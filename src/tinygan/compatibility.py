"""Do the nets and the batches fit each other? Asked before the first step."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

# Resizing in floating point may leave the range by rounding, not by more.
RANGE_TOLERANCE = 1e-3


def check_nets(generator: nn.Module, discriminator: nn.Module) -> None:
    """Raise ValueError if the nets say that they do not fit each other.

    Nets that do not say (without ``image_size`` or ``channels``) are tried on the first batch.
    """
    for name in ("image_size", "channels"):
        made, judged = getattr(generator, name, None), getattr(discriminator, name, None)
        if made is not None and judged is not None and made != judged:
            raise ValueError(
                f"generator and discriminator must agree on {name}, got {made} and {judged}; "
                f"build both with the same {name}."
            )
    last = list(discriminator.modules())[-1]
    if isinstance(last, nn.Sigmoid):
        raise ValueError(
            "discriminator must return logits, got probabilities from a final Sigmoid; remove that "
            "layer: the losses apply it themselves."
        )


@torch.no_grad()
def check_first_batch(
    real: torch.Tensor, z: torch.Tensor, generator: nn.Module, discriminator: nn.Module
) -> None:
    """Raise ValueError if the first batch does not suit the nets. Changes no state of theirs.

    Args:
        real: the batch of images, on any device.
        z: noise for two images, (2, Z).
        generator: in training mode.
        discriminator: in training mode.
    """
    if real.dim() != 4:
        raise ValueError(
            f"images must be (N, C, H, W), got the shape {tuple(real.shape)}; add the missing axis "
            "with images.unsqueeze(1), say."
        )
    # NaN compares false, so it fails this too.
    low, high = real.min().item(), real.max().item()
    if not (low >= -1 - RANGE_TOLERANCE and high <= 1 + RANGE_TOLERANCE):
        raise ValueError(
            f"images must be in [-1, 1], got [{low:.4g}, {high:.4g}]; scale bytes with "
            "images / 127.5 - 1, and [0, 1] with images * 2 - 1."
        )
    if len(real) == 1:
        for net in (generator, discriminator):
            if any(isinstance(module, _BatchNorm) for module in net.modules()):
                raise ValueError(
                    "batch size must be at least 2 with batch norm, got 1; use larger batches, or "
                    "nets with norm=None."
                )
    with evaluating(generator), evaluating(discriminator):
        fake: torch.Tensor = generator(z)
        if fake.shape[1:] != real.shape[1:]:
            raise ValueError(
                f"images must be of the shape that the generator makes, {tuple(fake.shape[1:])}, "
                f"got {tuple(real.shape[1:])}; change image_size and channels of the nets or of "
                "the data."
            )
        logits = discriminator(fake)
    if logits.shape != (len(z),):
        raise ValueError(
            f"discriminator must return one logit per image, (N,), got {tuple(logits.shape)} for "
            f"N={len(z)}; end its forward with .flatten()."
        )


class evaluating:  # noqa: N801 - reads as what it does: with evaluating(net)
    """Within the ``with`` block the net is in evaluation mode; afterwards each part is as before.

    Examples:
        >>> net = nn.BatchNorm2d(3)
        >>> with evaluating(net):
        ...     net.training
        False
        >>> net.training
        True
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def __enter__(self) -> None:
        self._was_training = {part: part.training for part in self._module.modules()}
        self._module.eval()

    def __exit__(self, *_: object) -> None:
        for part, training in self._was_training.items():
            part.training = training
