"""GANs on PyTorch: training algorithms that read like the papers, in runs that resume exactly.

To read the code, begin with ``nets/dcgan.py``, ``losses.py``, ``penalties.py``, ``algorithms.py``,
``trainer.py`` and ``hook.py``.
"""

import importlib
from typing import TYPE_CHECKING, Any

from tinygan.version import __version__ as __version__

if TYPE_CHECKING:
    from tinygan import (
        algorithms,
        augmentations,
        data,
        distributed,
        hooks,
        latents,
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
    from tinygan.explorer import save_explorer
    from tinygan.exporting import export
    from tinygan.gan_trainer import GANTrainer
    from tinygan.generators import load_generator, save_generator
    from tinygan.hook import Hook
    from tinygan.inversion import invert
    from tinygan.nets.dcgan import DCGANDiscriminator, DCGANGenerator, join_images
    from tinygan.nets.r3gan import R3GANDiscriminator, R3GANGenerator
    from tinygan.nets.weights import spectral_norm, weights_init
    from tinygan.player import Player, Players
    from tinygan.report import Report
    from tinygan.trainer import Trainer

# Where each name is, if it is not a module: imported when it is first used, so that ``tinygan
# --help`` does not wait for PyTorch.
_HOMES = {
    "Batch": "batch", "DCGANDiscriminator": "nets.dcgan", "DCGANGenerator": "nets.dcgan",
    "Execution": "_execution.execution", "GANTrainer": "gan_trainer", "Hook": "hook",
    "Player": "player", "Players": "player", "R3GANDiscriminator": "nets.r3gan",
    "R3GANGenerator": "nets.r3gan", "Report": "report", "Trainer": "trainer", "export": "exporting",
    "invert": "inversion", "join_images": "nets.dcgan",
    "load_generator": "generators", "save_explorer": "explorer", "save_generator": "generators",
    "spectral_norm": "nets.weights", "weights_init": "nets.weights",
}  # fmt: skip

__all__ = [
    "Batch", "DCGANDiscriminator", "DCGANGenerator", "Execution", "GANTrainer", "Hook", "Player",
    "Players", "R3GANDiscriminator", "R3GANGenerator", "Report", "Trainer", "algorithms",
    "augmentations", "data", "distributed", "export", "hooks", "invert", "join_images", "latents",
    "load_generator", "losses", "metrics", "penalties", "pictures", "recipes", "sampling",
    "save_explorer", "save_generator", "schedules", "seeds", "spectral_norm", "weights_init",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module 'tinygan' has no attribute {name!r}")
    if name not in _HOMES:
        return importlib.import_module(f"tinygan.{name}")
    found = getattr(importlib.import_module(f"tinygan.{_HOMES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """List the public names, imported or not."""
    return sorted({*globals(), *__all__})
