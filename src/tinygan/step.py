"""One training step in four pieces: D backward, D update, G backward, G update.

Each piece does device work only and waits for nothing. Python, and so every hook, runs between the
pieces. Together they are Goodfellow et al. (2014), algorithm 1, with the DCGAN tutorial's choices:
one D update per G update, separate real and fake passes through D, and G's loss on the same fakes
seen by the updated D. Nothing in them is random: what is, comes with the inputs.

What is not finite leaves no trace: an update whose loss or gradients are not is skipped on the
device, and buffers go back to what they were. If D's update is skipped, so is G's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from tinygan import batch_norm, optimizers, precision
from tinygan.augmentations import Augmentation
from tinygan.compiled import forwards
from tinygan.finite import Buffers, SkippedSteps, all_finite
from tinygan.inputs import Inputs
from tinygan.losses import Loss, PairedLoss
from tinygan.penalties import Judge, Penalty


@dataclass
class Player:
    """One side of the game: a net and the optimizer that moves it.

    Attributes:
        moved: whether the last update moved the weights, or was skipped because something was not
            finite: a scalar of bool on the device. What averages weights must ask it.
    """

    name: Literal["discriminator", "generator"]
    module: nn.Module
    optimizer: Optimizer
    moved: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        device = next(self.module.parameters()).device
        self.moved = torch.zeros((), dtype=torch.bool, device=device)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters that the optimizer moves."""
        # Not by a walk through the net, which takes as long as several small kernels.
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def gradients(self) -> list[torch.Tensor]:
        """Return the gradients that lie in ``.grad``."""
        return [p.grad for p in self.parameters if p.grad is not None]

    def update(self, finite: torch.Tensor) -> None:
        """Move the weights along the gradients that lie in ``.grad``, if ``finite`` is true.

        Fused optimizers decide on the device. Others cannot, so for them the host waits for it.
        """
        if optimizers.decides_on_device(self.optimizer):
            # The protocol between PyTorch's GradScaler and its optimizers.
            self.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
            self.optimizer.step()
            del self.optimizer.found_inf  # type: ignore[attr-defined]
        elif finite:  # sync
            self.optimizer.step()
        self.moved.copy_(finite)


@dataclass(frozen=True)
class StepReport:
    """What one step measured: detached scalar tensors, still on the device.

    Args:
        loss_d: D's loss on real plus fake images (the tutorial's Loss_D).
        loss_g: G's loss (Loss_G).
        d_real: mean of D(x), D's probability of "real" for the real images.
        d_fake: mean of D(G(z)) before D's update.
        d_fake_after: mean of D(G(z)) after it.
    """

    loss_d: torch.Tensor
    loss_g: torch.Tensor
    d_real: torch.Tensor
    d_fake: torch.Tensor
    d_fake_after: torch.Tensor

    def stacked(self) -> torch.Tensor:
        """Return the values as one tensor (5,), in the order of the fields, without waiting."""
        return torch.stack([getattr(self, name) for name in STATISTICS])

    def floats(self) -> dict[str, float]:
        """Return the values by name. Waits for the device, once for all of them."""
        return dict(zip(STATISTICS, self.stacked().tolist()))


STATISTICS = tuple(field.name for field in fields(StepReport))
"""The names of a report's values, in order."""


def _mean(name: str, cost: object, *counts: int) -> torch.Tensor:
    """Return the mean of costs of one of the ``counts``: else they were mixed by mistake."""
    if not isinstance(cost, torch.Tensor) or cost.shape not in [(count,) for count in counts]:
        given = tuple(cost.shape) if isinstance(cost, torch.Tensor) else type(cost).__name__
        raise ValueError(
            f"{name} must give a cost for each logit, ({counts[0]},), got {given}; sum over all "
            "axes but the first, and leave the mean to the trainer."
        )
    if not cost.requires_grad:
        raise ValueError(
            f"{name} must give costs that weights can learn from, got some without gradients; "
            "detach nothing, and make slopes by tinygan.penalties.slopes or create_graph=True."
        )
    return cost.mean()


def _probability(logits: torch.Tensor) -> torch.Tensor:
    return logits.detach().sigmoid().mean()


class Step:
    """The pieces of one step, executed eagerly.

    Between the pieces it holds what flows from one to the next: the fakes, with the graph that
    leads back to G, and tensors that are written in place, so that a piece may also be replayed.

    Args:
        discriminator: the player D.
        generator: the player G.
        loss: what the players pay.
        penalties: what D pays besides.
        augmentations: what is done to images before D sees them, one after the other.
        dtype: the type in which the nets are applied; None for their weights' own.
        compile: apply the nets by ``torch.compile``.
    """

    def __init__(
        self,
        discriminator: Player,
        generator: Player,
        loss: Loss | PairedLoss,
        *,
        penalties: Sequence[Penalty] = (),
        augmentations: Sequence[Augmentation] = (),
        dtype: torch.dtype | None = None,
        compile: bool = False,
    ) -> None:
        self.discriminator = discriminator
        self.generator = generator
        self.loss = loss
        self.penalties = penalties
        self.augmentations = augmentations
        weight = next(generator.module.parameters())
        self.device, self._weights = weight.device, weight.dtype
        self._dtype = precision.check(dtype, weight.dtype)
        # It belongs to autocast: nets that are in float16 themselves have none.
        scaled = self._dtype == torch.float16 and self._weights != torch.float16
        self.loss_scale = precision.LossScale(self.device) if scaled else None
        self.skipped = SkippedSteps(self.device)
        self._buffers = {
            player.name: Buffers(player.module) for player in (discriminator, generator)
        }
        self._finite = torch.ones(4, dtype=torch.bool, device=self.device)
        """Whether the losses and gradients were finite, in the order of ``finite.CAUSES``."""
        self._statistics = torch.zeros(len(STATISTICS), dtype=weight.dtype, device=self.device)
        self._fake: torch.Tensor
        self._inputs: Inputs
        self._make, self._judge, self._judge_for_generator = forwards(
            generator.module, discriminator.module, compiled=compile
        )

    def discriminator_backward(self, inputs: Inputs) -> None:
        """Leave in D's ``.grad`` the gradient of its loss on real images and on fakes.

        The real pass is taken back before the fake pass begins: batch norm sees each kind alone,
        as in the tutorial, and only one of the two graphs is in memory at a time. A paired loss
        needs both graphs; batch norm still sees each kind alone.
        """
        d = self.discriminator
        d.optimizer.zero_grad()
        for buffers in self._buffers.values():
            buffers.keep()

        real = self._augmented(inputs.real, inputs, "real")
        real_logits = self._logits(self._judge, real, *inputs.classes)
        if isinstance(self.loss, Loss):
            loss_real = _mean("loss.real", self.loss.real(real_logits), len(real_logits))
            self._scaled(loss_real).backward()

        self._make_fakes(inputs)
        fake = self._augmented(self._fake.detach(), inputs, "fake")
        fake_logits = self._logits(self._judge, fake, *inputs.classes)
        if isinstance(self.loss, Loss):
            loss_fake = _mean("loss.fake", self.loss.fake(fake_logits), len(fake_logits))
            self._scaled(loss_fake).backward()
            loss = loss_real.detach() + loss_fake.detach()
        else:
            cost = self.loss.discriminator(real_logits, fake_logits)
            loss = _mean("loss.discriminator", cost, len(fake_logits))
            self._scaled(loss).backward()

        for index in inputs.due:
            self._penalise(index, real, fake.to(self._weights), inputs)
        self._unscale(d)

        report = [loss.detach(), _probability(real_logits), _probability(fake_logits)]
        self._statistics[:3].copy_(torch.stack(report))

    def discriminator_update(self) -> None:
        """Move D, unless something was not finite."""
        self._update(self.discriminator)

    def make_fakes_again(self, inputs: Inputs) -> None:
        """Make the fakes of D's phase anew: for a G phase that cannot be replayed after all."""
        never = torch.zeros((), dtype=torch.bool, device=self.device)
        self._buffers["generator"].restore_unless(never)
        self._make_fakes(inputs)

    def generator_backward(self) -> None:
        """Leave in G's ``.grad`` the gradient of its loss on the same fakes, by D as it is now.

        Only G's gradients are computed: D's ``.grad`` stays as D's update left it, and the work
        for it, a twelfth of the step, is saved.
        """
        g = self.generator
        g.optimizer.zero_grad()
        self._buffers["discriminator"].keep()

        inputs = self._inputs
        fake = self._augmented(self._fake, inputs, "generator")
        logits = self._logits(self._judge_for_generator, fake, *inputs.classes)
        if isinstance(self.loss, Loss):
            cost = self.loss.generator(logits)
        else:
            with torch.no_grad():
                real = self._augmented(inputs.real, inputs, "real")
                real_logits = self._logits(self._judge, real, *inputs.classes)
            cost = self.loss.generator(real_logits, logits)
        loss = _mean("loss.generator", cost, len(logits))
        learning = [p for p in g.parameters if p.requires_grad]
        self._scaled(loss).backward(inputs=learning)
        if not g.gradients():
            raise ValueError(
                "the generator must get gradients from its loss, got none; let them flow through "
                "augment and the loss: nothing on the way may detach."
            )
        self._unscale(g)

        del self._fake, self._inputs
        self._statistics[3:].copy_(torch.stack([loss.detach(), _probability(logits)]))

    def generator_update(self) -> None:
        """Move G, unless something was not finite in its phase or in D's."""
        self._update(self.generator)
        self._buffers["generator"].restore_unless(self.generator.moved)
        self.skipped.count(self._finite)
        if self.loss_scale is not None:
            self.loss_scale.update(self._finite.all())

    def _update(self, player: Player) -> None:
        # Asked here, not before: ranks have averaged them, and hooks may have changed gradients.
        loss, cause = (0, 0) if player is self.discriminator else (3, 2)
        self._finite[cause].copy_(self._statistics[loss].isfinite())
        self._finite[cause + 1].copy_(all_finite(player.gradients()))
        player.update(self._finite[: cause + 2].all())
        # Both phases have moved D's buffers.
        self._buffers["discriminator"].restore_unless(player.moved)

    def _make_fakes(self, inputs: Inputs) -> None:
        self._inputs = inputs
        with precision.autocast(self.device, self._dtype, self._weights):
            self._fake = self._make(inputs.z, *inputs.classes)

    def _augmented(self, images: torch.Tensor, inputs: Inputs, which: str) -> torch.Tensor:
        if not self.augmentations:
            return images
        changed = images.to(self._weights)
        for index, augmentation in enumerate(self.augmentations):
            changed = augmentation.apply(changed, inputs.drawn[f"augment.{index}.{which}"])
            if changed.shape != images.shape:
                raise ValueError(
                    f"augment {index} must give images of the same shape, {tuple(images.shape)}, "
                    f"got {tuple(changed.shape)}; change each image for itself."
                )
        return changed.to(self._weights, memory_format=torch.channels_last)

    def _logits(
        self, judge: Callable[..., Any], images: torch.Tensor, *labels: torch.Tensor
    ) -> torch.Tensor:
        with precision.autocast(self.device, self._dtype, self._weights):
            logits: torch.Tensor = judge(images, *labels)
        return logits.to(self._weights)

    def _penalise(self, index: int, real: torch.Tensor, fake: torch.Tensor, inputs: Inputs) -> None:
        """Add to D's ``.grad`` that of a penalty, as many times as it is left out in between."""
        penalty, net = self.penalties[index], self.discriminator.module
        # Not autocast, and by the net itself: gradients of gradients are delicate in few bits,
        # and torch.compile has none.
        judge: Judge = net if inputs.labels is None else OfClasses(net, inputs.labels)
        drawn = [] if penalty.draw is None else [inputs.drawn[f"penalty.{index}"]]
        cost = penalty.cost(judge, real, fake, *drawn)
        packs = len(real) // getattr(net, "pack", 1)
        mean = _mean(f"penalty {index}", cost, packs, len(real))
        self._scaled(penalty.every * mean).backward()

    def _scaled(self, loss: torch.Tensor) -> torch.Tensor:
        return loss if self.loss_scale is None else self.loss_scale.scaled(loss)

    def _unscale(self, player: Player) -> None:
        if self.loss_scale is not None:
            self.loss_scale.unscale(player.gradients())

    def measured(self, player: Player) -> list[torch.Tensor]:
        """Return what the player's backward piece has measured of its images.

        These are its statistics, which ``report`` will give, and batch norm's running ones. With
        several ranks they are averaged in place, as gradients are.
        """
        running = batch_norm.running_statistics(self.discriminator.module)
        if player is self.discriminator:
            return [self._statistics[:3], *running.values()]
        # Those of G only now: the graph of the fakes, which was made in D's phase, held them.
        running_of_generator = batch_norm.running_statistics(self.generator.module)
        return [self._statistics[3:], *running.values(), *running_of_generator.values()]

    def begin_anew(self) -> None:
        """Forget what is kept of other steps: here nothing."""

    def report(self) -> StepReport:
        """Return the statistics of the step whose pieces have just run."""
        loss_d, d_real, d_fake, loss_g, d_fake_after = self._statistics.clone()
        return StepReport(loss_d, loss_g, d_real, d_fake, d_fake_after)


class OfClasses:
    """D for images of given classes: what a penalty calls where there are any."""

    def __init__(self, net: nn.Module, labels: torch.Tensor) -> None:
        self.net, self.labels = net, labels
        self.pack = getattr(net, "pack", 1)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits of images of those classes."""
        logits: torch.Tensor = self.net(images, self.labels)
        return logits
