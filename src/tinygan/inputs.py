"""What one step is computed from: images, noise, and all else that is random in it.

Drawn before the step, as a function of the seed and the step, so that the step itself has nothing
random in it: it can be replayed as a CUDA graph, resumed exactly and split over ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from tinygan import seeds

if TYPE_CHECKING:
    from tinygan.trainer import GANTrainer


@dataclass(frozen=True)
class Inputs:
    """The inputs of one step, of this rank's part of the batch.

    Args:
        real: the real images, (N, C, H, W).
        z: the noise, (N, Z).
        labels: the classes of the real images, which are also those of the fakes, (N,); None for
            nets without classes.
        drawn: what augmentation and penalties have drawn, by name, each (N, ...).
        due: which of the penalties D pays in this step, by their index.
        size: images of the whole batch, of which these may be a part.
    """

    real: torch.Tensor
    z: torch.Tensor
    labels: torch.Tensor | None = None
    drawn: Mapping[str, torch.Tensor] = field(default_factory=dict)
    due: tuple[int, ...] = ()
    size: int = 0

    @property
    def classes(self) -> tuple[torch.Tensor, ...]:
        """What the nets take besides noise or images: the labels, if there are any."""
        return () if self.labels is None else (self.labels,)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return all tensors by name."""
        labels = {} if self.labels is None else {"labels": self.labels}
        return {"real": self.real, "z": self.z, **labels, **self.drawn}

    def clone(self) -> Inputs:
        """Return a copy in memory of its own."""
        return Inputs(
            self.real.clone(),
            self.z.clone(),
            None if self.labels is None else self.labels.clone(),
            {name: tensor.clone() for name, tensor in self.drawn.items()},
            self.due,
            self.size,
        )

    def copy_(self, other: Inputs) -> None:
        """Write another's values into these tensors."""
        given = other.tensors()
        for name, tensor in self.tensors().items():
            tensor.copy_(given[name])


def of_step(trainer: GANTrainer, size: int) -> Inputs:
    """Return what a trainer's next step is computed from: this rank's part of a batch of ``size``.

    All that is random is drawn for the whole batch, so that the parts of all ranks are those of one
    process.

    Raises:
        ValueError: for a draw that has not one row for each image.
    """
    own, real = trainer.ranks.part(size), trainer.real
    due = tuple(i for i, each in enumerate(trainer.penalties) if trainer.step % each.every == 0)
    draws = {f"penalty.{i}": trainer.penalties[i].draw for i in due}
    for i, augmentation in enumerate(trainer.augmentations):
        for which in ("real", "fake", "generator"):
            draws[f"augment.{i}.{which}"] = augmentation.draw
    drawn = {}
    for name, draw in draws.items():
        if draw is not None:
            generator = random(trainer, name, trainer.step)
            rows = draw((size, *real.shape[1:]), generator, trainer.images)
            if rows.shape[:1] != (size,):
                raise ValueError(
                    f"{name} must draw a row for each image of the whole batch, {size}, got "
                    f"{tuple(rows.shape)}; begin its shape with shape[0]."
                )
            drawn[name] = rows[own][: len(real)]
    z = trainer.noise(trainer.step, size)[own][: len(real)]
    return Inputs(real, z, trainer.labels, drawn, due, size)


def random(trainer: GANTrainer, name: str, step: int) -> torch.Generator:
    """Return what draws the numbers of a name and a step, after a rollback other ones."""
    key = (name, step) if trainer.rollbacks == 0 else (name, step, trainer.rollbacks)
    return seeds.generator(trainer.seed, *key, device=trainer.device)
