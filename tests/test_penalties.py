"""Penalties: D's slope, what it costs, and when."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import tinygan
from tinygan import penalties

from helpers import fingerprint, tiny_images, tiny_trainer


def smooth_discriminator() -> nn.Module:
    """Return a D of 8x8 images without batch norm, in float64, whose slope varies."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 4, 2, 1), nn.Tanh(), nn.Flatten(), nn.Linear(64, 1), nn.Flatten(0)
    ).double()


@given(st.floats(0, 100), st.integers(1, 4))
def test_r1_is_the_squared_slope_at_each_image(weight, count):
    """It equals weight / 2 times the sum of squared derivatives found by central differences."""
    d, real = smooth_discriminator(), tiny_images(count).double()
    costs = penalties.r1(weight).cost(d, real, torch.empty(0))
    assert costs.shape == (count,)
    h = 1e-5
    for image, cost in zip(real, costs):
        moved = h * torch.eye(image.numel(), dtype=torch.float64).view(-1, *image.shape)
        with torch.no_grad():
            slope = (d(image + moved) - d(image - moved)) / (2 * h)
        torch.testing.assert_close(cost.detach(), weight / 2 * slope.square().sum())


def test_r1_moves_the_discriminators_weights():
    """Its gradient reaches D's weights: D becomes flatter along it."""
    d, real = smooth_discriminator(), tiny_images(8).double()
    cost = partial(penalties.r1().cost, d, real, real)
    before = cost().mean()
    before.backward()
    torch.optim.SGD(d.parameters(), lr=1e-3).step()
    assert cost().mean() < before


def test_a_lazy_penalty_is_paid_in_every_kth_step_and_k_times():
    """D's gradients hold k times the penalty's in steps 0, k, 2k, and nothing of it in others."""
    paid = []
    slope = 3.0

    def cost(discriminator, real, fake):
        assert real.shape == fake.shape
        return slope * next(discriminator.parameters()).sum().expand(len(real))

    class Keep(tinygan.Hook):
        def on_gradients(self, trainer, player):
            if player.name == "discriminator":
                paid.append(next(player.module.parameters()).grad.clone())

    still = partial(torch.optim.SGD, lr=0.0, fused=True)
    runs = []
    for penalty in (None, penalties.Penalty(cost, every=4)):
        paid.clear()
        trainer = tiny_trainer(
            hooks=[Keep()],
            penalty=penalty,
            generator_optimizer=still,
            discriminator_optimizer=still,
        )
        trainer.fit([tiny_images()], steps=9)
        runs.append([*paid])
    for step, (without, with_it) in enumerate(zip(*runs)):
        expected = 4 * slope if step % 4 == 0 else 0.0
        difference = with_it - without
        torch.testing.assert_close(difference, torch.full_like(difference, expected))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_penalties_are_computed_in_the_weights_own_type(dtype):
    """Gradients of gradients are not taken in few bits, and the loss scale does not change them."""
    seen = []

    def cost(discriminator, real, fake):
        seen.append((real.dtype, fake.dtype, discriminator(real).dtype))
        return discriminator(real).square()

    tiny_trainer(penalty=penalties.Penalty(cost), dtype=dtype).fit([tiny_images()], steps=1)
    assert seen == [(torch.float32,) * 3]


def test_a_run_with_another_penalty_is_refused():
    """Its weight and how lazy it is belong to what a run is."""
    state = tiny_trainer(penalty=penalties.r1(1.0)).state_dict()
    for other in (None, penalties.r1(2.0), penalties.r1(1.0, every=8)):
        with pytest.raises(ValueError, match=r"penalty: tinygan\.penalties\._r1_cost\(weight=1"):
            tiny_trainer(penalty=other).load_state_dict(state)
    tiny_trainer(penalty=penalties.r1(1.0)).load_state_dict(state)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: penalties.r1(-1.0), "weight must be at least 0, got -1.0; use 10.0, say."),
        (lambda: penalties.r1(every=0), "every must be at least 1, got 0; use 1 or more."),
        (lambda: penalties.r1(float("nan")), "weight must be at least 0, got nan; use 10.0, say."),
    ],
)
def test_bad_penalties_are_refused(make, sentence):
    """The error names the value and the rule."""
    with pytest.raises(ValueError) as error:
        make()
    assert str(error.value) == sentence


def test_what_makes_a_penalty_is_none():
    """A function in place of what it returns is named."""
    with pytest.raises(TypeError, match=r"penalty must be a tinygan\.penalties\.Penalty, got "):
        tiny_trainer(penalty=penalties.r1)


def test_a_penalty_of_nothing_changes_nothing():
    """R1 of weight 0 leaves every bit of the weights as it is without."""
    ends = []
    for penalty in (None, penalties.r1(0.0, every=1)):
        trainer = tiny_trainer(penalty=penalty)
        # Batch norm counts a pass through D more; without it nothing differs.
        trainer.discriminator.main[1].eval()
        trainer.fit([tiny_images()], steps=3)
        ends.append(
            {k: v for k, v in fingerprint(trainer).items() if ".main." in k and "running" not in k}
        )
    assert [
        n for n in ends[0] if "num_batches" not in n and not torch.equal(ends[0][n], ends[1][n])
    ] == []
