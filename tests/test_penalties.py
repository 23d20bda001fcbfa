"""Penalties on D's slope: their value and gradients, when they are applied, and in which type."""

from __future__ import annotations

import warnings
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import tinygan
from tinygan import penalties, schedules

import recipes
from helpers import tiny_images, tiny_trainer

# The tiny net has it, so that what a penalty does to its statistics is seen.
pytestmark = pytest.mark.filterwarnings("ignore:a penalty of a discriminator with batch norm")

KINDS = {
    "r1": penalties.r1,
    "r2": penalties.r2,
    "wgan_gp": penalties.wgan_gp,
    "dragan": penalties.dragan,
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def smooth_discriminator():
    """Return a D of 8x8 images without batch norm, in float64, whose slope varies."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 4, 2, 1), nn.Tanh(), nn.Flatten(), nn.Linear(64, 1), nn.Flatten(0)
    ).double()


def drawn_for(penalty, images):
    """Return what a penalty draws for a batch, as it is passed to its cost."""
    if penalty.draw is None:
        return []
    return [penalty.draw(images.shape, torch.Generator().manual_seed(0), 0).double()]


def paid(penalty, d, real, fake):
    """Return what D pays for each image."""
    return penalty.weight * penalty.cost(d, real, fake, *drawn_for(penalty, real))


def two_batches(count):
    """Return real images and fakes of 8x8 pixels, in float64."""
    images = tiny_images(2 * count).double()
    return images[:count], images[count:]


def wanted(kind, weight, length):
    """Return what the papers ask for, where D's slope has this length."""
    return weight / 2 * length**2 if kind in ("r1", "r2") else weight * (length - 1) ** 2


@every_kind
@pytest.mark.parametrize("shape", [(3, 2, 2), (2,), (1, 32)], ids=["images", "points", "sound"])
@given(weight=st.floats(0, 100), scale=st.floats(0, 3))
def test_penalties_of_a_linear_discriminator(kind, shape, weight, scale):
    """Its slope a is the same everywhere: w / 2 |a|^2, or w (|a| - 1)^2, whatever examples are."""
    a = scale * torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    real, fake = torch.randn(2, 5, *shape, dtype=torch.float64)
    penalty = KINDS[kind](weight)
    cost = paid(penalty, lambda x: (x * a).flatten(1).sum(1), real, fake)
    expected = wanted(kind, weight, a.norm()).expand(5)
    torch.testing.assert_close(cost, expected, rtol=1e-9, atol=1e-9)


@every_kind
@given(weight=st.floats(0, 100), curvature=st.floats(-2, 2))
def test_penalties_of_a_quadratic_discriminator(kind, weight, curvature):
    """D(x) = c / 2 |x|^2 has the slope c x, so the cost shows at which x it was computed."""
    real, fake = two_batches(3)
    penalty = KINDS[kind](weight)
    drawn = drawn_for(penalty, real)
    e = drawn[0].view(3, -1, 1, 1)[:, :1] if drawn else None
    where = {
        "r1": lambda: real,
        "r2": lambda: fake,
        "wgan_gp": lambda: e * real + (1 - e) * fake,
        "dragan": lambda: real + drawn[0],
    }[kind]()
    cost = paid(penalty, lambda x: curvature / 2 * x.flatten(1).square().sum(1), real, fake)
    expected = wanted(kind, weight, abs(curvature) * where.flatten(1).norm(dim=1))
    torch.testing.assert_close(cost, expected, rtol=1e-9, atol=1e-9)


@every_kind
def test_each_image_pays_for_itself(kind):
    """What an image pays in a batch is what it pays alone: no norm is taken over the batch."""
    d, (real, fake) = smooth_discriminator(), two_batches(4)
    penalty = KINDS[kind](2.0)
    drawn = drawn_for(penalty, real)
    together = penalty.cost(d, real, fake, *drawn)
    assert together.shape == (4,)
    for i in range(4):
        rows = [tensor[i : i + 1] for tensor in (real, fake, *drawn)]
        torch.testing.assert_close(together[i : i + 1], penalty.cost(d, *rows))


@every_kind
def test_gradients_reach_the_discriminators_weights(kind):
    """They are the numerical ones, with respect to each of D's weights."""
    net, (real, fake) = smooth_discriminator(), two_batches(2)
    penalty = KINDS[kind](2.0)
    drawn = drawn_for(penalty, real)
    names = [name for name, _ in net.named_parameters()]

    def costs(*weights):
        def d(images):
            return torch.func.functional_call(net, dict(zip(names, weights)), (images,))

        return penalty.cost(d, real, fake, *drawn).mean()

    weights = [p.detach().clone().requires_grad_() for p in net.parameters()]
    assert torch.autograd.gradcheck(costs, weights)
    moved = torch.autograd.grad(costs(*weights), weights, allow_unused=True, materialize_grads=True)
    # A bias of the last layer shifts logits and not slopes.
    assert [name for name, g in zip(names, moved) if not g.any()] == ["3.bias"]


@pytest.mark.parametrize("kind", ["wgan_gp", "dragan"])
def test_a_flat_discriminator_gives_no_nan(kind):
    """Where D's slope is 0, and a norm has no derivative, gradients are 0."""
    weight = torch.zeros(192, dtype=torch.float64, requires_grad=True)
    real, fake = two_batches(2)
    penalty = KINDS[kind](1.0)
    drawn = drawn_for(penalty, real)
    cost = penalty.cost(lambda x: x.flatten(1) @ weight, real, fake, *drawn)
    cost.sum().backward()
    assert cost.tolist() == [1.0, 1.0]
    assert not weight.grad.any()


def test_a_weight_is_a_number_or_a_schedule():
    """The term is the cost times the weight, or the weight after the images seen."""
    d, (real, fake) = smooth_discriminator(), two_batches(2)
    falling = penalties.r1(schedules.exponential(8.0, 0.5, until=100))
    batch = tinygan.Batch.of(real)
    for images, now in ((0, 8.0), (50, 2.0), (100, 0.5), (1000, 0.5)):
        batch.draws.images = images
        batch.draws.drawn.clear()
        expected = now * penalties.r1().cost(d, real, fake)
        for penalty in (falling, penalties.r1(now)):
            torch.testing.assert_close(penalty.term(d, real, fake, batch, 0), expected)


@given(groups=st.integers(1, 4), joined=st.integers(1, 4))
def test_images_that_are_judged_together_have_one_slope(groups, joined):
    """It is that of all of them, and WGAN-GP mixes all by the first share drawn for them."""
    seen = []
    a = torch.arange(1.0, 12 * joined + 1, dtype=torch.float64)

    class Joining(nn.Module):
        join = joined

        def forward(self, images):
            seen.append(tinygan.join_images(images.detach(), joined).flatten(1))
            return tinygan.join_images(images, joined).flatten(1) @ a

    real = torch.ones(groups * joined, 3, 2, 2, dtype=torch.float64)
    torch.testing.assert_close(penalties.slopes(Joining(), real), a.expand(groups, -1))
    drawn = torch.rand(len(real), generator=torch.Generator().manual_seed(0))
    penalties.wgan_gp().cost(Joining(), real, -real, drawn)
    shares = (seen[1] + 1) / 2
    torch.testing.assert_close(shares, drawn[::joined, None].double().expand(shares.shape))


def test_wgan_gp_draws_evenly_between_and_dragan_as_far_as_it_says():
    """Both draw a row for each image, of the distribution that their papers name."""
    shape = (4000, 1, 1, 1)
    between = penalties.wgan_gp().draw(shape, torch.Generator().manual_seed(0), 0)
    assert between.shape == (4000,)
    assert between.min() >= 0
    assert between.max() < 1
    assert between.mean().item() == pytest.approx(0.5, abs=0.02)
    assert between.std().item() == pytest.approx(12**-0.5, abs=0.01)
    around = penalties.dragan(noise=0.5).draw(shape, torch.Generator().manual_seed(0), 0)
    assert around.shape == shape
    assert around.mean().item() == pytest.approx(0, abs=0.03)
    assert around.std().item() == pytest.approx(0.5, abs=0.02)


def test_a_lazy_penalty_is_paid_in_every_kth_step_and_k_times():
    """D's gradients hold k times the penalty's in steps 0, k, 2k, and nothing of it in others."""
    gradients, slope = [], 3.0

    def cost(discriminator, real, fake):
        assert real.shape == fake.shape
        return slope * next(discriminator.parameters()).sum().expand(len(real))

    class Keep(tinygan.Hook):
        def on_gradients(self, trainer, player):
            if player.name == "discriminator":
                gradients[-1].append(next(player.module.parameters()).grad.clone())

    still = partial(torch.optim.SGD, lr=0.0, fused=True)
    optimizers = {"generator_optimizer": still, "discriminator_optimizer": still}
    for penalty in (None, penalties.Penalty(cost, every=4)):
        gradients.append([])
        trainer = tiny_trainer(hooks=[Keep()], penalties=penalty, **optimizers)
        trainer.fit([tiny_images()], steps=9)
    for step, (without, with_it) in enumerate(zip(*gradients)):
        expected = torch.full_like(without, 4 * slope if step % 4 == 0 else 0.0)
        torch.testing.assert_close(with_it - without, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_penalties_are_computed_in_the_weights_own_type(dtype):
    """Gradients of gradients are not taken in few bits, and the loss scale does not change them."""
    seen = []

    def cost(discriminator, real, fake):
        seen.append((real.dtype, fake.dtype, discriminator(real).dtype))
        return discriminator(real).square()

    tiny_trainer(penalties=penalties.Penalty(cost), dtype=dtype).fit([tiny_images()], steps=1)
    assert set(seen) == {(torch.float32,) * 3}


def test_a_run_with_another_penalty_is_refused():
    """Its weight and how lazy it is belong to what a run is."""
    falling, slower, lower = (
        penalties.r1(schedules.exponential(1.0, end, until=until))
        for end, until in ((0.1, 100), (0.1, 200), (0.2, 100))
    )
    plain = penalties.r1(1.0)
    others = [None, penalties.r1(2.0), penalties.r1(1.0, every=8), falling]
    for own, different in ((plain, others), (falling, [plain, slower, lower])):
        state = tiny_trainer(penalties=own).state_dict()
        tiny_trainer(penalties=own).load_state_dict(state)
        for other in different:
            with pytest.raises(ValueError, match=r"penalties\.0\.\w+: .* when saved"):
                tiny_trainer(penalties=other).load_state_dict(state)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: penalties.r1(-1.0), "weight must be in [0, inf), got -1.0"),
        (lambda: penalties.r1("10"), "weight must be in [0, inf), got '10'"),
        (lambda: penalties.r1(True), "weight must be in [0, inf), got True"),
        (lambda: penalties.r1(every=0), "every must be at least 1, got 0; use 1"),
        (lambda: penalties.wgan_gp(float("inf")), "weight must be in [0, inf), got inf"),
        (lambda: penalties.dragan(noise=-1.0), "noise must be in [0, inf), got -1.0"),
    ],
)
def test_bad_penalties_are_refused(make, sentence):
    """The error names the value and the rule."""
    with pytest.raises(ValueError) as error:
        make()
    assert str(error.value).startswith(sentence)


def test_batch_norm_beside_a_penalty_is_pointed_out():
    """A warning says so where the trainer is made; a D without it is as it should be."""
    with pytest.warns(UserWarning, match="batch norm mixes each example's slope .* norm=None"):
        tiny_trainer(penalties=penalties.r1())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tinygan.GANTrainer(*recipes.nets(), penalties=penalties.r1())
