"""The trainer of a generator against a discriminator."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import final

import torch
from torch import nn
from typing_extensions import override

from tinygan import algorithms, augmentations, losses, penalties, sampling, schedules, seeds
from tinygan._execution.execution import Execution, checked
from tinygan._run import batches, checks
from tinygan.average import Average
from tinygan.hook import Hook
from tinygan.nets import traits
from tinygan.nets.compatibility import check_first_batch, check_labels, check_nets
from tinygan.optimizers import OptimizerFactory, dcgan_adam
from tinygan.player import Player
from tinygan.trainer import Trainer


@final
class GANTrainer(Trainer):
    """Train a generator against a discriminator: ``Trainer`` with ``algorithms.gan``.

    The defaults are the DCGAN tutorial's. A new idea is a loss, a net, an optimizer, a hook, or an
    algorithm for ``Trainer``: the class is not for subclassing.

    Args:
        generator: maps z (N, Z) to examples, such as images (N, C, H, W) in [-1, 1]. Its attribute
            ``latent_dim`` is Z. If it has ``num_classes``, a number, it maps z and labels (N,). If
            it has ``prior``, that draws z, see ``tinygan.sampling``; else z is from N(0, I).
        discriminator: maps examples to logits (N, ...), without a sigmoid, or, if it joins m of
            them, to (N // m, ...); if G takes labels, examples and labels.
        loss: what the players pay, see ``tinygan.losses``.
        penalty: extra terms in D's loss, see ``tinygan.penalties``: one or several; None for none.
        augment: random changes to all images before D sees them, see ``tinygan.augmentations``:
            one or several, one after the other; None for none.
        d_steps: turns of D for each of G, each with a part of the batch of its own.
        accumulate: in how many parts a batch goes through the nets before they move: it takes a
            part of the memory, and batch norm sees each part alone.
        ema_half_life: images after which weights count half in a moving average of G's, which is
            what ``sample`` then uses: a number, or a schedule; None for no average.
        generator_optimizer: makes G's optimizer from its named parameters.
        discriminator_optimizer: makes D's.
        hooks: what watches the run, called in this order.
        seed: names every random draw of the run.
        device: where to train; None for where the generator is.
        execution: in which type, compiled or captured, by which processes.

    Attributes:
        generator, discriminator: the nets.
        latent_dim: Z.
        num_classes: how many classes the nets know; None for nets without.
        prior: draws z.
        run: what ``tinygan.hook.Run`` lists.

    Raises:
        ValueError: for nets that do not fit each other, or a discriminator that ends in a sigmoid,
            or an execution that is not possible.
        TypeError: for anything that is not a hook or a loss, or an optimizer instead of a function
            that makes one.

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
        penalty: penalties.Penalty | Sequence[penalties.Penalty] | None = None,
        augment: augmentations.Augmentation | Sequence[augmentations.Augmentation] | None = None,
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
        check_nets(generator, discriminator)
        latent_dim = getattr(generator, "latent_dim", None)
        if latent_dim is None:
            raise ValueError(
                "the generator must have an attribute latent_dim, the length of its noise, got "
                "none; set generator.latent_dim = 100."
            )
        self.latent_dim = checks.count("latent_dim", latent_dim)
        self.num_classes: int | None = getattr(generator, "num_classes", None)
        self.prior: sampling.Prior = getattr(generator, "prior", sampling.normal)
        terms = penalties.listed(penalty)
        if checked(execution).sync_batch_norm and terms:
            raise ValueError(
                "sync_batch_norm must be without capture and penalty, got one of them; leave "
                "it out: it can be neither recorded nor differentiated twice."
            )
        if terms and traits.has_batch_norm(discriminator):
            warnings.warn(
                "a penalty of a discriminator with batch norm mixes each image's slope with those "
                "of its batch; build it with norm=None.",
                stacklevel=2,
            )
        algorithm = algorithms.gan(
            loss, penalties=terms, augment=augment, d_steps=d_steps, prior=self.prior
        )
        if device is None:
            device = next(generator.parameters()).device
        super().__init__(
            [
                Player("discriminator", discriminator, discriminator_optimizer),
                Player("generator", generator, generator_optimizer, ema_half_life=ema_half_life),
            ],
            algorithm,
            accumulate=accumulate,
            hooks=hooks,
            seed=seed,
            device=device,
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
        """The moving average of G, whose ``net`` is sampled from; None if there is none."""
        return self.players.generator.average

    @property
    def labels(self) -> torch.Tensor | None:
        """The classes (N,) of ``real``, which are also those of the fakes; None without classes."""
        return self.data[1] if len(self.data) > 1 else None

    @override
    def _examples(self, batch: object) -> Sequence[torch.Tensor]:
        images = batches.images(batch)
        if self.num_classes is None:
            return [images]
        labels = batches.labels(batch)
        if labels.device.type == "cpu":
            check_labels(labels, len(images), self.num_classes)  # here it waits for nothing
        return [images, labels]

    @override
    def _check_first(self, examples: Sequence[torch.Tensor]) -> None:
        real, *labels = examples
        check_first_batch(
            real,
            labels[0] if labels else None,
            self.noise(0, 2).to(self.weights_dtype),
            self.generator,
            self.discriminator,
        )
        super()._check_first(examples)

    def noise(self, step: int, count: int) -> torch.Tensor:
        """Return the z of a training step, (count, Z): a pure function of the seed and the step.

        The first rows of a larger draw are not the same: a part of a batch takes its rows of the
        whole batch's draw.
        After a rollback the noise is other noise, or the run would fail in the same way again.
        """
        draw = sampling.of_prior(self.prior, self.latent_dim)
        return draw((count,), self._feed.generator("noise", step), self.images).to(
            self.weights_dtype
        )

    @property
    def fixed_noise(self) -> torch.Tensor:
        """The 64 vectors z, (64, Z), whose images show the run's progress."""
        generator = seeds.generator(self.seed, "fixed noise")
        return self.prior(64, self.latent_dim, generator)

    @override
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
        """Return ``count`` generated images, (count, C, H, W) in [-1, 1], drawn with ``seed``.

        See ``generate`` for how, and for the other arguments; the run is left untouched.
        """
        z = self.prior(
            checks.count("count", count), self.latent_dim, seeds.generator(seed, "sample")
        )
        return self.generate(z, labels=labels, average=average)

    def generate(
        self,
        z: torch.Tensor,
        *,
        labels: torch.Tensor | int | None = None,
        average: bool = True,
    ) -> torch.Tensor:
        """Return G's images for ``z`` (N, Z): (N, C, H, W) in [-1, 1] on the trainer's device.

        Nothing of the run changes, see ``tinygan.sampling.generate``.

        Args:
            z: the noise.
            labels: the classes wanted, (N,) of int64, or one for all; None for each in turn.
            average: whether G's moving average makes the images, if there is one, or G itself.

        Raises:
            ValueError: for labels that the nets do not know, or any if they know no classes.
        """
        player = self.players.generator
        net = player.average.net if average and player.average is not None else player.module
        return sampling.generate(net, z, labels=labels)
