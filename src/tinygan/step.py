"""One training step in four pieces: D backward, D update, G backward, G update.

Each piece does device work only and waits for nothing. Python, and so every hook, runs between the
pieces. Together they are Goodfellow et al. (2014), algorithm 1, with the DCGAN tutorial's choices:
one D update per G update, separate real and fake passes through D, and G's loss on the same fakes
seen by the updated D.

What is not finite leaves no trace: an update whose loss or gradients are not is skipped on the
device, and buffers go back to what they were. If D's update is skipped, so is G's.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal

import torch
from torch import nn
from torch.optim import Optimizer

from tinygan.finite import Buffers, SkippedSteps, all_finite
from tinygan.losses import Loss


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
    moved: torch.Tensor = field(default_factory=lambda: torch.tensor(False))

    def gradients(self) -> list[torch.Tensor]:
        """Return the gradients that lie in ``.grad``."""
        return [p.grad for p in self.module.parameters() if p.grad is not None]

    def update(self, finite: torch.Tensor) -> None:
        """Move the weights along the gradients that lie in ``.grad``, if ``finite`` is true.

        Fused optimizers decide on the device. Others cannot, so for them the host waits for it.
        """
        # SGD leaves its momentum uninitialised if its first fused step is skipped.
        unborn = not self.optimizer.state and any(
            group.get("momentum") for group in self.optimizer.param_groups
        )
        # The protocol between PyTorch's GradScaler and its optimizers.
        if getattr(self.optimizer, "_step_supports_amp_scaling", False) and not unborn:
            self.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
            self.optimizer.step()
            del self.optimizer.found_inf  # type: ignore[attr-defined]
        elif finite:  # sync
            self.optimizer.step()
        self.moved = finite


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


def _probability(logits: torch.Tensor) -> torch.Tensor:
    return logits.detach().sigmoid().mean()


class Step:
    """The pieces of one step, executed eagerly.

    Between the pieces it holds what flows from one to the next: the fakes, with the graph that
    leads back to G, and the statistics.
    """

    def __init__(self, discriminator: Player, generator: Player, loss: Loss) -> None:
        self.discriminator = discriminator
        self.generator = generator
        self.loss = loss
        self.skipped = SkippedSteps(next(generator.module.parameters()).device)
        self._buffers = {
            player.name: Buffers(player.module) for player in (discriminator, generator)
        }
        self._finite: list[torch.Tensor]
        self._fake: torch.Tensor
        self._of_discriminator: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
        self._of_generator: tuple[torch.Tensor, torch.Tensor]

    def discriminator_backward(self, real: torch.Tensor, z: torch.Tensor) -> None:
        """Leave in D's ``.grad`` the gradient of its loss on ``real`` and on fakes made of ``z``.

        The real pass is taken back before the fake pass begins: batch norm sees each kind alone,
        as in the tutorial, and only one of the two graphs is in memory at a time.
        """
        d, g = self.discriminator, self.generator
        d.optimizer.zero_grad()
        for buffers in self._buffers.values():
            buffers.keep()

        real_logits = d.module(real)
        loss_real = self.loss.real(real_logits).mean()
        loss_real.backward()

        self._fake = g.module(z)
        fake_logits = d.module(self._fake.detach())
        loss_fake = self.loss.fake(fake_logits).mean()
        loss_fake.backward()

        loss = loss_real.detach() + loss_fake.detach()
        self._finite = [loss.isfinite()]
        self._of_discriminator = (loss, _probability(real_logits), _probability(fake_logits))

    def discriminator_update(self) -> None:
        """Move D, unless something was not finite."""
        self._update(self.discriminator)

    def generator_backward(self) -> None:
        """Leave in G's ``.grad`` the gradient of its loss on the same fakes, by D as it is now.

        Only G's gradients are computed: D's ``.grad`` stays as D's update left it, and the work
        for it, a twelfth of the step, is saved.
        """
        g = self.generator
        g.optimizer.zero_grad()
        self._buffers["discriminator"].keep()

        logits = self.discriminator.module(self._fake)
        loss = self.loss.generator(logits).mean()
        loss.backward(inputs=[p for p in g.module.parameters() if p.requires_grad])

        del self._fake
        self._finite.append(loss.detach().isfinite())
        self._of_generator = (loss.detach(), _probability(logits))

    def generator_update(self) -> None:
        """Move G, unless something was not finite in its phase or in D's."""
        self._update(self.generator)
        self._buffers["generator"].restore_unless(self.generator.moved)
        self.skipped.count(torch.stack(self._finite))

    def _update(self, player: Player) -> None:
        # Asked here, not before: hooks may have changed the gradients.
        self._finite.append(all_finite(player.gradients()))
        player.update(torch.stack(self._finite).all())
        # Both phases have moved D's buffers.
        self._buffers["discriminator"].restore_unless(player.moved)

    def report(self) -> StepReport:
        """Return the statistics of the step whose pieces have just run."""
        loss_d, d_real, d_fake = self._of_discriminator
        loss_g, d_fake_after = self._of_generator
        return StepReport(loss_d, loss_g, d_real, d_fake, d_fake_after)
