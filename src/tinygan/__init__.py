"""GANs on PyTorch, small enough to read in an afternoon.

The nets are in ``models``, their initial weights in ``weights``, what the players pay in
``losses``, one step in ``step``, the loop in ``trainer``, what may watch it in ``hook``.
"""

from tinygan import (
    augmentations,
    data,
    distributed,
    hooks,
    losses,
    metrics,
    penalties,
    pictures,
    sampling,
    seeds,
)
from tinygan.hook import Hook
from tinygan.models import DCGANDiscriminator, DCGANGenerator, pack
from tinygan.step import Player, StepReport
from tinygan.trainer import GANTrainer
from tinygan.version import __version__ as __version__
from tinygan.weights import spectral_norm, weights_init

__all__ = [
    "DCGANDiscriminator",
    "DCGANGenerator",
    "GANTrainer",
    "Hook",
    "Player",
    "StepReport",
    "augmentations",
    "data",
    "distributed",
    "hooks",
    "losses",
    "metrics",
    "pack",
    "penalties",
    "pictures",
    "sampling",
    "seeds",
    "spectral_norm",
    "weights_init",
]
