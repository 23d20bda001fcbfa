"""The trainer beside the tutorial's own loop: the same nets, data and noise, step for step."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

import tinygan

import tutorial

STEPS = 20


class Statistics(tinygan.Hook):
    """Keeps every step's statistics as the tutorial keeps them."""

    def __init__(self):
        self.kept = tutorial.Statistics()

    def on_step_end(self, trainer, report):
        """Keep the values of one step."""
        for name, value in report.floats().items():
            own = {"loss_discriminator": "loss_d", "loss_generator": "loss_g"}.get(name, name)
            getattr(self.kept, own).append(value)


@pytest.mark.parametrize("width", [8, pytest.param(64, marks=pytest.mark.slow, id="default width")])
def test_twenty_steps_agree_with_the_tutorial(width):
    """In float64, weights, batch norm statistics, losses and D's means agree to 1e-8."""
    generator = torch.Generator().manual_seed(0)
    batches = [
        torch.rand(6, 3, 64, 64, generator=generator, dtype=torch.float64) * 2 - 1
        for _ in range(STEPS - 1)
    ]
    batches.append(batches[0][:4])  # the tutorial's last batch is short
    ours = tinygan.DCGANGenerator(base_channels=width).apply(tinygan.weights_init).double()
    our_judge = tinygan.DCGANDiscriminator(base_channels=width).apply(tinygan.weights_init).double()
    theirs = tutorial.make_generator(ngf=width).double()
    their_judge = tutorial.make_discriminator(ndf=width).double()
    theirs.load_state_dict(ours.main.state_dict())
    their_judge.load_state_dict(our_judge.main.state_dict())
    statistics = Statistics()
    trainer = tinygan.GANTrainer(ours, our_judge, hooks=[statistics], seed=3)

    trainer.fit(batches, epochs=1)
    expected = tutorial.Loop(theirs, their_judge).train(batches, trainer.noise)

    for field in fields(expected):
        torch.testing.assert_close(
            torch.tensor(getattr(statistics.kept, field.name)),
            torch.tensor(getattr(expected, field.name)),
            rtol=0,
            atol=1e-8,
            msg=lambda text, name=field.name: f"{name}: {text}",
        )
    for net, twin in ((ours, theirs), (our_judge, their_judge)):
        for name, value in twin.state_dict().items():
            torch.testing.assert_close(
                net.main.state_dict()[name],
                value,
                rtol=0,
                atol=1e-8,
                msg=lambda text, name=name: f"{name}: {text}",
            )


def test_the_comparison_can_fail():
    """A learning rate one part in a thousand off is seen: the tolerance is not too wide."""
    torch.manual_seed(0)
    batches = [torch.rand(6, 3, 64, 64, dtype=torch.float64) * 2 - 1 for _ in range(2)]
    ours = tinygan.DCGANGenerator(base_channels=2).apply(tinygan.weights_init).double()
    our_judge = tinygan.DCGANDiscriminator(base_channels=2).apply(tinygan.weights_init).double()
    theirs = tutorial.make_generator(ngf=2).double()
    their_judge = tutorial.make_discriminator(ndf=2).double()
    theirs.load_state_dict(ours.main.state_dict())
    their_judge.load_state_dict(our_judge.main.state_dict())
    trainer = tinygan.GANTrainer(
        ours,
        our_judge,
        generator_optimizer=lambda named: torch.optim.Adam(named, lr=2.002e-4, betas=(0.5, 0.999)),
    )

    trainer.fit(batches, epochs=1)
    tutorial.Loop(theirs, their_judge).train(batches, trainer.noise)

    drift = max(
        (ours.main.state_dict()[name] - value).abs().max().item()
        for name, value in theirs.state_dict().items()
    )
    assert drift > 1e-8
