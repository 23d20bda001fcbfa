"""Who competes in ``speedrun.py``: each is a function that returns all that a run is.

A new record is a function of a track and a seed, and its name in ``ENTRIES``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import nn

from tinygan import Execution, recipes
from tinygan.recipes import Nets, Recipe


@dataclass(frozen=True)
class Track:
    """What is the same for all who compete.

    Args:
        batch_size, width: of the tutorial's loop, in images and in channels next to the image.
        samples: generated images that are compared with as many held-out ones.
        minutes, images: what ends a run that has no length of its own, whichever comes first.
        marks: minutes after which G is kept on the way.
        trial: images that end every run, if it is a trial.
    """

    batch_size: int
    width: int
    samples: int
    minutes: float = math.inf
    images: float = math.inf
    marks: tuple[float, ...] = ()
    trial: int | None = None
    image_size: int = 64

    def nets(self, seed: int) -> Nets:
        """Return what makes the tutorial's nets, with a seed's first weights."""
        return recipes.dcgan_nets(self.image_size, width=self.width, seed=seed)


TRACKS = {
    "laptop": Track(64, 32, 2_000, minutes=30, marks=(3, 5, 15)),
    # As many images as five epochs of all of CelebA.
    "gpu": Track(128, 64, 10_000, images=5 * 202_599, marks=(0.25, 0.5, 1, 2)),
}


@dataclass(frozen=True)
class Entry:
    """All that a run is.

    Args:
        recipe: of tinygan's trainer; None for the tutorial's own loop.
        batch_size: images per step.
        flip: whether images are mirrored at random.
        images: how many end the run, such as those of its schedules; None for the track's end.
        execution: how steps are run; without ``capture`` on the CPU, which has no graphs.
    """

    recipe: Recipe | None
    batch_size: int
    flip: bool = False
    images: int | None = None
    execution: Execution = Execution()  # noqa: RUF009 - it is a constant


ENTRIES: dict[str, Callable[[Track, int], Entry]] = {
    "tutorial-loop": lambda track, seed: Entry(None, track.batch_size),
    "tutorial": lambda track, seed: Entry(recipes.tutorial(track.nets(seed)), track.batch_size),
    "hinge": lambda track, seed: Entry(recipes.hinge(track.nets(seed)), track.batch_size),
    "relativistic": lambda track, seed: Entry(
        recipes.relativistic(track.nets(seed)), track.batch_size
    ),
}


class Contender:
    """An entry that is ready to train: ``train(batches)`` takes one step per batch.

    ``net`` is the generator that is sampled from; ``made_of`` says what a result depends on.
    """

    train: Callable[[Iterable[torch.Tensor]], None]
    net: nn.Module

    def __init__(self, name: str, track: Track, seed: int, device: str) -> None:
        torch.manual_seed(seed)  # all that the tutorial's loop draws, and nets of one's own
        entry = self.entry = ENTRIES[name](track, seed)
        self.made_of = {"track": str(track), "entry": str(replace(entry, recipe=None))}
        if entry.recipe is None:
            # Here, because it needs the tutorial.py of the tests.
            from contenders import Setting, Tutorial

            setting = Setting(track.image_size, entry.batch_size, track.width, device, seed)
            trained = Tutorial(setting)
            self.train, self.net = trained.train, trained.generator
        else:
            graphs = entry.execution.capture and device != "cpu"
            execution = replace(entry.execution, capture=graphs)
            trained = entry.recipe.trainer(seed=seed, device=device, execution=execution)
            self.train = lambda batches: trained.fit(batches, epochs=1)
            self.net = trained.average.net if trained.average else trained.generator
            self.made_of |= trained.state_dict()["configuration"]
        self.made_of["nets"] = f"{trained.generator} {trained.discriminator}"
