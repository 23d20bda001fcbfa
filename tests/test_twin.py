"""The trainer beside the tutorial's own loop: the same nets, data and noise, step for step."""

from __future__ import annotations

from dataclasses import fields
from functools import partial

import pytest
import torch

import tinygan

import tutorial


def train_both(width, steps, **arguments):
    """Train our nets and the tutorial's on the same batches; return both, and both statistics."""
    torch.manual_seed(0)
    batches = [torch.rand(6, 3, 64, 64, dtype=torch.float64) * 2 - 1 for _ in range(steps - 1)]
    batches.append(batches[0][:4])  # the tutorial's last batch is short
    nets = (
        tinygan.DCGANGenerator(base_channels=width).apply(tinygan.weights_init).double(),
        tinygan.DCGANDiscriminator(base_channels=width).apply(tinygan.weights_init).double(),
    )
    twins = (
        tutorial.make_generator(ngf=width).double(),
        tutorial.make_discriminator(ndf=width).double(),
    )
    for net, twin in zip(nets, twins):
        twin.load_state_dict(net.main.state_dict())
    reports = []
    keep = tinygan.hooks.every(1, lambda trainer, report: reports.append(report.floats()))
    trainer = tinygan.GANTrainer(*nets, hooks=[keep], seed=3, **arguments)
    trainer.fit(batches, epochs=1)
    expected = tutorial.Loop(*twins).train(batches, trainer.noise)
    return (
        [net.main.state_dict() for net in nets],
        [t.state_dict() for t in twins],
        reports,
        expected,
    )


@pytest.mark.parametrize("width", [8, pytest.param(64, marks=pytest.mark.slow, id="default width")])
def test_twenty_steps_agree_with_the_tutorial(width):
    """In float64, weights, batch norm statistics, losses and D's means agree to 1e-8."""
    nets, twins, reports, expected = train_both(width, 20)
    close = partial(torch.testing.assert_close, rtol=0, atol=1e-8)
    for field in fields(expected):
        name = {"loss_d": "loss_discriminator", "loss_g": "loss_generator"}.get(field.name)
        ours = [report[name or field.name] for report in reports]
        theirs = getattr(expected, field.name)
        close(torch.tensor(ours), torch.tensor(theirs), msg=lambda text, f=field: f"{f}: {text}")
    for net, twin in zip(nets, twins):
        for name, value in twin.items():
            close(net[name], value, msg=lambda text, name=name: f"{name}: {text}")


def test_the_comparison_can_fail():
    """A learning rate one part in a thousand off is seen: the tolerance is not too wide."""
    adam = partial(torch.optim.Adam, lr=2.002e-4, betas=(0.5, 0.999))
    (net, _), (twin, _), *_ = train_both(2, 2, generator_optimizer=adam)
    assert max((net[name] - value).abs().max().item() for name, value in twin.items()) > 1e-8
