"""Recipes: small functions that return all that a GAN is made of, in one place."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import nn

from tinygan import losses, schedules
from tinygan import penalties as penalties_
from tinygan._execution.execution import Execution
from tinygan._run import checks
from tinygan.augmentations import Augmentation, diff_augment
from tinygan.gan_trainer import GANTrainer
from tinygan.hook import Hook
from tinygan.hooks.rates import Schedule as Rates
from tinygan.nets.dcgan import DCGANDiscriminator, DCGANGenerator
from tinygan.nets.r3gan import R3GANDiscriminator, R3GANGenerator
from tinygan.nets.weights import spectral_norm, weights_init
from tinygan.schedules import Schedule

Value: TypeAlias = float | Schedule
Nets: TypeAlias = Callable[..., tuple[nn.Module, nn.Module]]
"""Makes a new G and D. With ``bounded=True`` D has spectral norm; with ``weights=None`` it keeps
PyTorch's own initial weights. Other keyword arguments go to D."""


@dataclass(frozen=True)
class Recipe:
    """What a GAN is made of, for one trainer; names are those of ``GANTrainer``.

    Examples:
        >>> trainer = tutorial(dcgan_nets(8, width=4)).trainer(seed=1)
    """

    generator: nn.Module
    discriminator: nn.Module
    optimizer: partial[Any]  # makes each player's
    loss: losses.Loss | losses.PairedLoss = losses.non_saturating
    penalties: Sequence[penalties_.Penalty] = ()
    augment: Sequence[Augmentation] = ()
    d_steps: int = 1
    ema_half_life: Value | None = None
    hooks: Sequence[Hook] = ()  # the recipe's own, such as a schedule

    def trainer(
        self,
        *,
        hooks: Iterable[Hook] = (),
        seed: int = 999,
        device: torch.device | str | None = None,
        execution: Execution = Execution(),  # noqa: B008 - it is a constant
        accumulate: int = 1,
    ) -> GANTrainer:
        """Return the trainer; ``hooks`` come after the recipe's."""
        return GANTrainer(
            self.generator, self.discriminator, loss=self.loss, penalties=self.penalties,
            augment=self.augment, d_steps=self.d_steps, accumulate=accumulate,
            ema_half_life=self.ema_half_life, generator_optimizer=self.optimizer,
            discriminator_optimizer=self.optimizer, hooks=[*self.hooks, *hooks], seed=seed,
            device=device, execution=execution,
        )  # fmt: skip


def dcgan_nets(
    image_size: int | tuple[int, int] = 64,
    channels: int = 3,
    *,
    width: int = 64,
    latent_dim: int = 100,
    num_classes: int | None = None,
    seed: int = 999,
) -> Nets:
    """Return what makes DCGAN's nets; ``width`` is the ``base_channels`` of both.

    Weights are as after ``torch.manual_seed(seed)``, G's first; global random state does not move.

    Examples:
        >>> generator, discriminator = dcgan_nets(8, width=4)(norm=None)
    """

    def nets(
        *, bounded: bool = False, weights: Any = weights_init, **of_d: Any
    ) -> tuple[nn.Module, nn.Module]:
        with _seeded(seed):
            g = DCGANGenerator(image_size, channels, latent_dim, width, num_classes=num_classes)
            g.apply(weights_init)
            d = DCGANDiscriminator(image_size, channels, width, num_classes=num_classes, **of_d)
            if weights is not None:
                d.apply(weights)
            return g, spectral_norm(d) if bounded else d

    return nets


def r3gan_nets(
    image_size: int | tuple[int, int] = 64,
    channels: int = 3,
    *,
    width: int = 96,
    latent_dim: int = 64,
    num_classes: int | None = None,
    seed: int = 999,
) -> Nets:
    """Return what makes R3GAN's nets; ``width`` is that of maps of up to 32 pixels in both.

    The paper's is 768. They have no normalisation and weights of their own, so ``norm=None`` and
    ``weights=None`` of recipes change nothing; they cannot have spectral norm.

    Examples:
        >>> generator, discriminator = r3gan_nets(8, width=16)()
    """

    def nets(
        *, norm: None = None, weights: None = None, bounded: bool = False
    ) -> tuple[nn.Module, nn.Module]:
        shape: dict[str, Any] = {"widths": width, "num_classes": num_classes}
        with _seeded(seed):
            g = R3GANGenerator(image_size, channels, latent_dim, **shape)
            d = R3GANDiscriminator(image_size, channels, **shape)
            return g, spectral_norm(d) if bounded else d

    return nets


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw as after ``torch.manual_seed`` within the block, and leave global random state as is."""
    # On the CPU, whose generator alone is seeded, so that only its state must be put back.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        yield


def _adam(lr: float, beta1: float, beta2: float) -> partial[Any]:
    return partial(torch.optim.Adam, lr=lr, betas=(beta1, beta2), fused=True)


def tutorial(nets: Nets) -> Recipe:
    """Return the DCGAN tutorial's recipe: the non-saturating loss, and batch norm in both nets.

    Examples:
        >>> of_pairs = tutorial(partial(dcgan_nets(8, width=4), join=2))
    """
    return Recipe(*nets(), _adam(2e-4, 0.5, 0.999))


def hinge(nets: Nets) -> Recipe:
    """Return the hinge loss, with spectral norm in D (Miyato et al. 2018).

    Examples:
        >>> recipe = hinge(dcgan_nets(8, width=4))
    """
    return Recipe(*nets(norm=None, bounded=True), _adam(2e-4, 0.5, 0.999), losses.hinge)


def r1(nets: Nets, *, gamma: Value = 10.0, every: int = 16) -> Recipe:
    """Return the non-saturating loss, with R1 of weight ``gamma`` (Mescheder et al. 2018).

    Examples:
        >>> recipe = r1(dcgan_nets(8, width=4), gamma=1.0)
    """
    terms = [penalties_.r1(gamma, every=every)]
    return Recipe(*nets(norm=None), _adam(2e-4, 0.5, 0.999), penalties=terms)


def wgan_gp(nets: Nets, *, d_steps: int = 5) -> Recipe:
    """Return WGAN-GP (Gulrajani et al. 2017); a batch is split among the turns of D.

    Examples:
        >>> recipe = wgan_gp(dcgan_nets(8, width=4), d_steps=1)
    """
    loss, terms = losses.wasserstein, [penalties_.wgan_gp()]
    return Recipe(*nets(norm=None), _adam(1e-4, 0.0, 0.9), loss, terms, d_steps=d_steps)


def relativistic(
    nets: Nets, *, lr: float = 5e-4, gamma: Value = 0.5, every: int = 4,
    ema_half_life: Value | None = 10_000,
) -> Recipe:  # fmt: skip
    """Return R3GAN's game (Huang et al. 2024): pairing loss, R1 and R2; and an average of G.

    Examples:
        >>> recipe = relativistic(dcgan_nets(8, width=4), lr=1e-3)
    """
    terms = [penalties_.r1(gamma, every=every), penalties_.r2(gamma, every=every)]
    adam, loss = _adam(lr, 0.0, 0.99), losses.relativistic
    return Recipe(*nets(norm=None), adam, loss, terms, ema_half_life=ema_half_life)


def quick(nets: Nets, *, lr: float = 1e-3) -> Recipe:
    """Return ``relativistic`` in many small steps, for a CPU: batches of 12 have this rate.

    Penalties are in every 16th step, and Adam's second beta is 0.95. D keeps PyTorch's own initial
    weights: DCGAN's suit nets with batch norm. After 36,000 images the rate falls with the inverse
    root of the images seen. The average of G looks back over a share of the run, not over a fixed
    number of images. Both follow Karras et al. (2024). So a run may have any length.

    Examples:
        >>> recipe = quick(dcgan_nets(8, width=4))
    """
    checks.number("lr", lr, "[0, inf)")
    recipe = relativistic(partial(nets, weights=None), every=16, ema_half_life=math.inf)
    falling = Rates(lr=schedules.inverse_sqrt(lr, begin=36_000))
    return replace(recipe, optimizer=_adam(lr, 0.0, 0.95), hooks=[falling])


def r3gan(
    nets: Nets, *, burn_in: int = 20_000_000, lr: float | None = None, gamma: float = 2.0,
    augment: float = 0.3,
) -> Recipe:  # fmt: skip
    """Return R3GAN's recipe and schedules (Huang et al. 2024, appendix D), for ``r3gan_nets``.

    In the first ``burn_in`` images, along a cosine: the rate from ``lr`` to a quarter of it, Adam's
    second beta from 0.9 to 0.99, ``gamma`` to a tenth, the half-life of G's average from 0 to a
    40th of ``burn_in``, and the probability of DiffAugment from 0 to ``augment``. Then all stay.

    Without ``lr`` it is the paper's 2e-4, for widths from 768 on. For narrower nets, by G's
    ``widths``, it is 768 / width times that, at most 5e-3: a rule of thumb, tried with a width of
    32. Nets without ``widths`` have 2e-4.

    In the paper the burn-in is a fifth of most runs, and gamma is 1 for digits, 2 for faces of 64
    pixels and 150 for those of 256. It augments as Karras et al. (2020) do, with cutout, takes
    slopes before that, and gives G's turn images and z of its own. Here the beta rises in ten
    steps, because CUDA graphs are recorded anew for each.

    Examples:
        >>> recipe = r3gan(r3gan_nets(8, width=16), burn_in=100_000)
    """
    checks.count("burn_in", burn_in)
    checks.number("augment", augment, "[0, 1]")  # else it is an error on the way
    g, d = nets()
    if lr is None:
        lr = min(5e-3, 2e-4 * max(1, 768 / max(getattr(g, "widths", [768]))))
    checks.number("lr", lr, "[0, inf)")

    def from_to(start: float, end: float) -> Schedule:
        return schedules.cosine(start, end, until=burn_in)

    falling = from_to(gamma, gamma / 10)
    beta2 = schedules.stairs(from_to(0.9, 0.99), every=max(1, burn_in // 10))
    return Recipe(
        g, d, _adam(lr, 0.0, 0.9), losses.relativistic,
        [penalties_.r1(falling, every=1), penalties_.r2(falling, every=1)],
        [diff_augment(p=from_to(0.0, augment))], ema_half_life=from_to(0.0, burn_in / 40),
        hooks=[Rates(lr=from_to(lr, lr / 4), betas=(0.0, beta2))],
    )  # fmt: skip


RECIPES: dict[str, Callable[..., Recipe]] = {
    "tutorial": tutorial, "hinge": hinge, "r1": r1, "wgan-gp": wgan_gp,
    "relativistic": relativistic, "quick": quick, "r3gan": r3gan,
}  # fmt: skip
"""The recipes by name."""
