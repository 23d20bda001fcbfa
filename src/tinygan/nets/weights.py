"""The weights of nets: how they are drawn at first, and how they can bound a net's slope."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from tinygan.nets.traits import evaluating


@torch.no_grad()
def weights_init(module: nn.Module) -> None:
    """Draw one layer's weights as the DCGAN paper does; use it as ``net.apply(weights_init)``.

    Convolutions are drawn from N(0, 0.02), scales of batch norm from N(1, 0.02); its shifts become
    0 (Radford et al. 2015, section 4). It draws from PyTorch's global generator, as the tutorial
    does: call ``torch.manual_seed`` first to repeat it. A weight that weight norm or pruning
    computes is drawn as a whole; below spectral norm its original is.

    Examples:
        >>> import tinygan
        >>> generator = tinygan.DCGANGenerator().apply(weights_init)
    """
    if isinstance(module, _ConvNd):
        _draw(module, 0.0)
    elif isinstance(module, _BatchNorm) and module.affine:
        _draw(module, 1.0)
        nn.init.zeros_(module.bias)


def _draw(layer: Any, mean: float) -> None:
    """Draw a layer's weight from N(mean, 0.02), also if it is computed from other tensors."""
    own, was_training = layer._parameters, layer.training
    # PyTorch's older wrappers compute the weight before each pass.
    hooks = layer._forward_pre_hooks.values()
    older = [hook for hook in hooks if isinstance(hook, (SpectralNorm, WeightNorm))]
    if is_parametrized(layer, "weight"):
        with evaluating(layer):  # to read spectral norm's weight in training moves its vectors
            drawn = nn.init.normal_(torch.empty_like(layer.weight), mean, 0.02)
        layer.weight = drawn
    else:  # the second and third names are those of PyTorch's older wrappers
        drawn = next(own[name] for name in ("weight", "weight_orig", "weight_v") if name in own)
        nn.init.normal_(drawn, mean, 0.02)
        for hook in older:
            if isinstance(hook, WeightNorm):
                layer.weight_g.copy_(torch.norm_except_dim(drawn, 2, hook.dim))
    # Spectral norm's vectors follow, as in training, in as many iterations as PyTorch takes.
    layer.train()
    for _ in range(15):
        _ = layer.weight
        for hook in older:
            hook(layer, ())
    layer.train(was_training)


def spectral_norm(net: nn.Module) -> nn.Module:
    """Divide each layer's weights by their largest singular value (Miyato et al. 2018).

    This bounds D's slope without a penalty. It changes convolutions, linear layers and embeddings
    in place, by PyTorch's parametrization, which draws from the global generator. Use it for a D
    with ``norm=None``: batch norm would change the slope again. A convolution's weights count as a
    matrix, outputs by all else; its slope may reach its kernel over its stride, rounded up: 2 here.

    Examples:
        >>> import tinygan
        >>> d = spectral_norm(tinygan.DCGANDiscriminator(32, norm=None).apply(weights_init))
    """
    bounded = (_ConvNd, nn.Linear, nn.Embedding)
    layers = [layer for layer in net.modules() if isinstance(layer, bounded)]
    if not layers or any("weight" not in layer._parameters for layer in layers):
        given = "some that are already parametrized" if layers else "no weights to divide"
        raise ValueError(
            f"net must have layers with plain weights, got {given}; call spectral_norm once, on D."
        )
    if not all(layer.weight.any() for layer in layers):
        raise ValueError(
            "net must have weights to divide, got a layer whose weights are all 0, as R3GAN's nets "
            "have at first; use a penalty, such as penalties.r1()."
        )
    for layer in layers:
        parametrizations.spectral_norm(layer)  # it knows the axis of a layer's outputs
        for part in layer.modules():
            if type(part) is parametrizations._SpectralNorm:
                part.__class__ = _SpectralNorm
    return net


class _SpectralNorm(parametrizations._SpectralNorm):
    """PyTorch's, not in autocast's 16 bits: they leave 3 digits of the vectors, which are kept."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            found: torch.Tensor = super().forward(weight)
        return found
