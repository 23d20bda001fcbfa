"""The entries of ``speedrun.py``: each is a function that returns all that a run is.

A new record is a function of a track and a seed, and its name in ``ENTRIES``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from tinygan import Execution, recipes
from tinygan.recipes import Nets, Recipe


@dataclass(frozen=True)
class Track:
    """What is the same for all who compete. An entry is free to have other nets and batches."""

    batch_size: int
    width: int
    samples: int  # generated images that are compared with as many held-out ones
    images: int  # what the tutorial's loop sees, and all whose entry has no length of its own
    marks: tuple[int, ...]  # images after which G is kept on the way
    trial: int | None = None  # images that end every run of a trial
    image_size: int = 64

    def nets(self, seed: int) -> Nets:
        """Return what makes the tutorial's nets, with a seed's first weights."""
        return recipes.dcgan_nets(self.image_size, width=self.width, seed=seed)


TRACKS = {
    # 45 epochs of the 8,000 faces: half an hour of two cores, see docs/speed.md.
    "laptop": Track(64, 32, 2_000, images=360_000, marks=(36_000, 72_000, 180_000)),
    # As many images as five epochs of all of CelebA.
    "gpu": Track(128, 64, 10_000, images=5 * 202_599, marks=(100_000, 200_000, 500_000)),
}


@dataclass(frozen=True)
class Entry:
    """All that a run is; its recipe is None for the tutorial's own loop."""

    recipe: Recipe | None
    batch_size: int
    flip: bool = False  # mirror images at random
    images: int | None = None  # its length; None for the track's
    execution: Execution = Execution()  # noqa: RUF009 - it is a constant


def small_batches(track: Track, seed: int) -> Entry:
    """Return the quick recipe, in 16 bits; benchmarks/results/ has what else was tried."""
    recipe = recipes.quick(track.nets(seed))
    return Entry(recipe, 12, flip=True, images=36_000, execution=Execution(torch.bfloat16))


ENTRIES: dict[str, Callable[[Track, int], Entry]] = {
    "tutorial-loop": lambda track, _: Entry(None, track.batch_size),
    "tutorial": lambda track, seed: Entry(recipes.tutorial(track.nets(seed)), track.batch_size),
    "hinge": lambda track, seed: Entry(recipes.hinge(track.nets(seed)), track.batch_size),
    "relativistic": lambda track, seed: Entry(
        recipes.relativistic(track.nets(seed)), track.batch_size
    ),
    "small-batches": small_batches,
}


class Contender:
    """An entry that is ready to train: ``train(batches)`` takes one step per batch.

    ``net`` is the generator that is sampled from; ``made_of`` says what a result depends on.
    """

    def __init__(self, name: str, track: Track, seed: int, device: str) -> None:
        torch.manual_seed(seed)  # all that the tutorial's loop draws, and nets of one's own
        entry = self.entry = ENTRIES[name](track, seed)
        self.made_of = {"track": str(track), "entry": str(replace(entry, recipe=None))}
        if entry.recipe is None:
            # Here, because it needs the tutorial.py of the tests.
            from contenders import Setting, Tutorial

            shape = track.image_size, entry.batch_size, track.width
            trained = Tutorial(Setting(*shape, device, seed))
            self.train = trained.train
            self.net = nn.Sequential(nn.Unflatten(1, (-1, 1, 1)), trained.generator)
            self.net.latent_dim = 100
        else:
            trained = entry.recipe.trainer(seed=seed, device=device, execution=entry.execution)
            self.train = lambda batches: trained.fit(batches, epochs=1)
            self.net = trained.average.net if trained.average else trained.generator
            self.made_of |= trained.state_dict()["configuration"]
        self.made_of["nets"] = f"{trained.generator} {trained.discriminator}"
