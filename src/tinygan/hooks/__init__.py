"""What watches a run: progress, logs, pictures. One small file per idea."""

from tinygan.hook import every
from tinygan.hooks.animation import Animation
from tinygan.hooks.checkpoint import Checkpoint
from tinygan.hooks.json_log import JSONLog
from tinygan.hooks.loss_plot import LossPlot
from tinygan.hooks.progress_bar import ProgressBar
from tinygan.hooks.quality import Quality
from tinygan.hooks.real_beside_fake import RealBesideFake
from tinygan.hooks.sample_grid import SampleGrid
from tinygan.hooks.schedule import Schedule
from tinygan.hooks.tensorboard import TensorBoard
from tinygan.hooks.torch_scheduler import TorchScheduler
from tinygan.hooks.training_grid import TrainingGrid
from tinygan.hooks.tutorial_log import TutorialLog

__all__ = [
    "Animation",
    "Checkpoint",
    "JSONLog",
    "LossPlot",
    "ProgressBar",
    "Quality",
    "RealBesideFake",
    "SampleGrid",
    "Schedule",
    "TensorBoard",
    "TorchScheduler",
    "TrainingGrid",
    "TutorialLog",
    "every",
]
