"""What watches a run: logs, curves, pictures, measurements, checkpoints; and what sets rates."""

from tinygan.hook import every
from tinygan.hooks.checkpoint import Checkpoint
from tinygan.hooks.generator import SaveGenerator
from tinygan.hooks.images import Animation, RealBesideFake, SampleGrid, TrainingGrid
from tinygan.hooks.logs import JSONLog, LossPlot, ProgressBar, TensorBoard, TutorialLog
from tinygan.hooks.quality import Quality
from tinygan.hooks.rates import Schedule
from tinygan.hooks.together import usual

__all__ = [
    "Animation",
    "Checkpoint",
    "JSONLog",
    "LossPlot",
    "ProgressBar",
    "Quality",
    "RealBesideFake",
    "SampleGrid",
    "SaveGenerator",
    "Schedule",
    "TensorBoard",
    "TrainingGrid",
    "TutorialLog",
    "every",
    "usual",
]
