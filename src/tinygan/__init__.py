"""GANs on PyTorch: training algorithms that read like the papers, in runs that resume exactly.

To read the code, begin with ``nets/dcgan.py``, ``losses.py``, ``penalties.py``, ``algorithms.py``,
``trainer.py`` and ``hook.py``.
"""

from tinygan import (
    algorithms,
    augmentations,
    data,
    distributed,
    hooks,
    losses,
    metrics,
    penalties,
    pictures,
    recipes,
    sampling,
    schedules,
    seeds,
)
from tinygan._execution.execution import Execution
from tinygan.batch import Batch
from tinygan.gan_trainer import GANTrainer
from tinygan.hook import Hook
from tinygan.nets.dcgan import DCGANDiscriminator, DCGANGenerator, join_images
from tinygan.nets.weights import spectral_norm, weights_init
from tinygan.player import Player, Players
from tinygan.report import Report
from tinygan.trainer import Trainer
from tinygan.version import __version__ as __version__

__all__ = [
    "Batch",
    "DCGANDiscriminator",
    "DCGANGenerator",
    "Execution",
    "GANTrainer",
    "Hook",
    "Player",
    "Players",
    "Report",
    "Trainer",
    "algorithms",
    "augmentations",
    "data",
    "distributed",
    "hooks",
    "join_images",
    "losses",
    "metrics",
    "penalties",
    "pictures",
    "recipes",
    "sampling",
    "schedules",
    "seeds",
    "spectral_norm",
    "weights_init",
]
