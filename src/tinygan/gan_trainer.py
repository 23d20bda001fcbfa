"""The trainer of a generator against a discriminator."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, final

import torch
from torch import nn

from tinygan import algorithms, augmentations, losses, sampling, schedules, seeds
from tinygan import penalties as penalties_
from tinygan._execution.execution import Execution
from tinygan._run import batches, checks
from tinygan.average import Average
from tinygan.hook import Hook
from tinygan.nets import compatibility, traits
from tinygan.optimizers import OptimizerFactory, dcgan_adam
from tinygan.player import Player
from tinygan.trainer import Trainer

logger = logging.getLogger(__name__)

LOOK_EVERY = 47
"""How often, in steps, a batch's range is looked at: a prime, so not at the same of each epoch."""


@final
class GANTrainer(Trainer):
    """Train a generator against a discriminator: ``Trainer`` with ``algorithms.gan``.

    The defaults are the DCGAN tutorial's. A new idea is a loss, a net, an optimizer, a hook, or an
    algorithm for ``Trainer``: this class is not for subclassing.

    Args:
        generator: maps z (N, Z) to examples, such as images (N, C, H, W) in [-1, 1]. Its attribute
            ``latent_dim`` is Z. With an attribute ``num_classes`` it maps z and labels (N,), which
            batches give as integers of any type. With an attribute ``prior`` z is drawn by that,
            see ``tinygan.sampling``, else from N(0, I).
        discriminator: maps examples to logits (N, ...), without a sigmoid, or, if it joins m of
            them, to (N // m, ...). If G takes labels, so does D, after the examples.
        loss: the players' losses, see ``tinygan.losses``.
        penalties: extra terms in D's loss, see ``tinygan.penalties``: one or several.
        augment: random changes to all images before D sees them, see ``tinygan.augmentations``:
            one or several, applied in this order.
        d_steps: updates of D for each update of G, each on its own part of the batch.
        ema_half_life: the half-life, in images, of a moving average of G's weights and running
            statistics, from which ``sample`` then draws: a number, ``inf`` or a schedule, cut to
            .15 of the images seen; None for no average.
        generator_optimizer: a function that makes G's optimizer from its named parameters.
        discriminator_optimizer: the same for D.
        device: where to train; None for where the generator is.
        accumulate, hooks, seed, execution: as for ``Trainer``.

    Attributes:
        latent_dim: Z.
        num_classes: how many classes the nets know; None for nets without classes.
        prior: the function that draws z.

    Raises:
        ValueError: for nets that do not fit each other, a discriminator that ends in a sigmoid, or
            an execution that is not possible.
        TypeError: for anything that is not a hook or a loss, functions of other arguments, or an
            optimizer instead of a function that makes one.

    Examples:
        >>> import tinygan
        >>> trainer = GANTrainer(
        ...     tinygan.DCGANGenerator(8, base_channels=4).apply(tinygan.weights_init),
        ...     tinygan.DCGANDiscriminator(8, base_channels=4).apply(tinygan.weights_init),
        ... )
        >>> trainer.fit([torch.zeros(16, 3, 8, 8)], epochs=2)
        >>> trainer.step, trainer.sample(5).shape
        (2, torch.Size([5, 3, 8, 8]))
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        *,
        loss: losses.Loss | losses.PairedLoss = losses.non_saturating,
        penalties: penalties_.Penalty | Sequence[penalties_.Penalty] = (),
        augment: augmentations.Augmentation | Sequence[augmentations.Augmentation] = (),
        d_steps: int = 1,
        accumulate: int = 1,
        ema_half_life: float | schedules.Schedule | None = None,
        generator_optimizer: OptimizerFactory = dcgan_adam,
        discriminator_optimizer: OptimizerFactory = dcgan_adam,
        hooks: Iterable[Hook] = (),
        seed: int = 999,
        device: torch.device | str | None = None,
        execution: Execution = Execution(),  # noqa: B008 - it is a constant
    ) -> None:
        players = [
            Player("discriminator", discriminator, discriminator_optimizer),
            Player("generator", generator, generator_optimizer, ema_half_life=ema_half_life),
        ]
        compatibility.check_nets(generator, discriminator)
        self.latent_dim = checks.count("latent_dim", players[1].latent_dim)
        self.num_classes: int | None = getattr(generator, "num_classes", None)
        if self.num_classes is not None:
            checks.count("num_classes", self.num_classes)
        self.prior: sampling.Prior = getattr(generator, "prior", sampling.normal)
        self._looks: list[tuple[int, torch.Tensor]] = []
        terms = penalties_.listed(penalties)
        if terms and traits.has_batch_norm(discriminator):
            warnings.warn(
                "a penalty of a discriminator with batch norm mixes each example's slope with "
                "those of its batch; build the discriminator with norm=None.",
                stacklevel=2,
            )
        super().__init__(
            players,
            algorithms.gan(
                loss, penalties=terms, augment=augment, d_steps=d_steps, prior=self.prior
            ),
            accumulate=accumulate,
            hooks=hooks,
            seed=seed,
            device=next(generator.parameters()).device if device is None else device,
            execution=execution,
        )

    @property
    def generator(self) -> nn.Module:
        """G."""
        return self.players.generator.module

    @property
    def discriminator(self) -> nn.Module:
        """D."""
        return self.players.discriminator.module

    @property
    def average(self) -> Average | None:
        """The moving average of G, whose ``net`` is sampled from, or None."""
        return self.players.generator.average

    @property
    def labels(self) -> torch.Tensor | None:
        """The classes (N,) of ``real``, which are also those of the fakes; None without classes."""
        return self.data[1] if len(self.data) > 1 else None

    def _examples(self, batch: object) -> Sequence[torch.Tensor]:
        given = [batches.images(batch)]
        if self.num_classes is not None:
            given.append(compatibility.as_labels(batches.labels(batch), len(given[0])))
            if given[1].device.type == "cpu":  # which waits for no device here
                compatibility.check_labels(given[1], self.num_classes)
        # Known without waiting: bytes, or another shape, are refused as in a first batch.
        now, before = (
            [(tensor.shape[1:], tensor.is_floating_point() or tensor.dtype) for tensor in each]
            for each in (given, self.data)
        )
        if before and now != before:
            self._check_first(given)
        return given

    def _check_first(self, examples: Sequence[torch.Tensor]) -> None:
        real, *labels = examples
        discriminator, generator = self.players
        # As many as will go through the nets at once: some work with certain numbers only.
        z = self.noise(0, max(len(real) // self._multiple, 1) * self._parts["join"])
        with discriminator.applied.rehearsing(), generator.applied.rehearsing():
            given = labels[0] if labels else None
            fakes = compatibility.check_generator(generator, z, real, given, new=self.step == 0)
            super()._check_first(examples)
            compatibility.check_discriminator(discriminator, *fakes)

    def _train_step(self, examples: tuple[torch.Tensor, ...], *of_batch: Any) -> None:
        real = examples[0]
        if self.step % LOOK_EVERY == 1 and real.dim() == 4:
            # Not read before the skipped steps are, so that no step waits for it.
            self._looks.append((self.step + 1, torch.stack([real.min(), real.max()])))
        super()._train_step(examples, *of_batch)

    def _check_skipped(self) -> None:
        looks, self._looks = self._looks, []
        for step, seen in looks:
            try:
                checks.image_range(*seen.tolist())  # sync
            except ValueError as error:  # not raised: one odd batch is not worth a long run
                logger.warning("training continues, but in step %d %s", step, error)
        super()._check_skipped()

    def noise(self, step: int, count: int) -> torch.Tensor:
        """Return the z of a training step, (count, Z): a pure function of the seed and the step.

        It is drawn for the whole batch; the first rows of a larger draw are not the same.
        """
        draw = sampling.of_prior(self.prior, self.latent_dim)
        z = draw((count,), self._generator("noise", step), self.images)
        return z.to(self.weights_dtype)

    @property
    def fixed_noise(self) -> torch.Tensor:
        """The 64 vectors z, (64, Z), whose images show the run's progress."""
        return self.prior(64, self.latent_dim, seeds.generator(self.seed, "fixed noise"))

    def pictures(self) -> torch.Tensor:
        """Return the images of the fixed noise, (64, C, H, W) in [-1, 1]."""
        return self.generate(self.fixed_noise)

    def sample(
        self,
        count: int = 64,
        *,
        seed: int = 0,
        labels: torch.Tensor | int | None = None,
        average: bool = True,
    ) -> torch.Tensor:
        """Return images of noise drawn with ``seed``, (count, C, H, W); see ``generate``."""
        draws = seeds.generator(seed, "sample")
        z = self.prior(checks.count("count", count), self.latent_dim, draws)
        return self.generate(z, labels=labels, average=average)

    def generate(
        self,
        z: torch.Tensor,
        *,
        labels: torch.Tensor | int | None = None,
        average: bool = True,
    ) -> torch.Tensor:
        """Return G's images for ``z`` (N, Z), by ``tinygan.sampling.generate``: (N, C, H, W).

        With ``average`` they are made by G's moving average, if there is one. The run is left
        untouched.
        """
        player = self.players.generator
        net = player.average.net if average and player.average is not None else player.module
        return sampling.generate(net, z, labels=labels)
