"""The weights of nets: how they are drawn at first, and how a net's slope is bounded by them."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrize import is_parametrized
from typing_extensions import override

_CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@torch.no_grad()
def weights_init(module: nn.Module) -> None:
    """Draw one layer's weights as the DCGAN paper does; use it as ``net.apply(weights_init)``.

    Convolutions are drawn from N(0, 0.02), batch norm scales from N(1, 0.02), batch norm shifts
    are zero (Radford et al. 2015, section 4); other layers are left alone. It draws from PyTorch's
    global generator, as the tutorial does: call ``torch.manual_seed`` first to repeat it.

    Examples:
        >>> import tinygan
        >>> _ = torch.manual_seed(999)
        >>> generator = tinygan.DCGANGenerator().apply(weights_init)
    """
    if isinstance(module, _CONVOLUTIONS):
        # A parametrised weight (spectral norm, say) is computed anew at each use: writing to it
        # would be lost, so the original beneath it is drawn.
        computed = is_parametrized(module, "weight")
        name = "parametrizations.weight.original" if computed else "weight"
        nn.init.normal_(module.get_parameter(name), 0.0, 0.02)
        if computed:
            _settle(module)
    elif isinstance(module, _BATCH_NORMS) and module.affine:
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


def _settle(module: nn.Module) -> None:
    """Let spectral norm's vectors follow weights that were drawn anew, as uses in training do."""
    was_training = module.training
    module.train()
    for _ in range(15):  # as many as PyTorch takes at first
        _ = module.weight
    module.train(was_training)


def spectral_norm(net: nn.Module) -> nn.Module:
    """Divide the weights of all layers by their largest singular value (Miyato et al. 2018).

    So D's slope is bounded without a penalty. A convolution's weights are taken for a matrix, of
    outputs by all else; its own slope may be its kernel over its stride, rounded up: in the nets
    here 2. It is for a D with ``norm=None``, whose slope no batch norm changes again.

    PyTorch's own parametrization does it, by one power iteration at each use in training, whose
    first vectors come from PyTorch's global generator.

    Args:
        net: whose convolutions, linear layers and embeddings are changed in place.

    Returns:
        The net.

    Raises:
        ValueError: for a net without such layers, or whose weights are parametrized already.

    Examples:
        >>> import tinygan
        >>> d = tinygan.DCGANDiscriminator(32, norm=None).apply(weights_init)
        >>> d = spectral_norm(d)
        >>> d(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2])
    """
    bounded = (*_CONVOLUTIONS, nn.Linear, nn.Embedding)
    layers = [layer for layer in net.modules() if isinstance(layer, bounded)]
    if not layers or any(is_parametrized(layer, "weight") for layer in layers):
        given = "some that are parametrized" if layers else "none with weights to divide"
        raise ValueError(
            f"net must have layers whose weights are their own, got {given}; call spectral_norm "
            "once, on D."
        )
    for layer in layers:
        # Over the axis of a transposed convolution's outputs, as PyTorch chooses it.
        parametrizations.spectral_norm(layer)
        for part in layer.modules():
            if type(part) is parametrizations._SpectralNorm:
                part.__class__ = _SpectralNorm
    return net


class _SpectralNorm(parametrizations._SpectralNorm):
    """PyTorch's, in the weights' own type under autocast too.

    CUDA's autocast applies ``mv`` in 16 bits: the power iteration would find its vectors, which it
    keeps, and the norm to three digits.
    """

    @override
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            found: torch.Tensor = super().forward(weight)
        return found
