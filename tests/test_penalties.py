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

DIFFERENCES = {"r1": penalties.r1, "r2": penalties.r2}
BY_STEPS = {f"{kind}, step": partial(DIFFERENCES[kind], step=0.01) for kind in DIFFERENCES}
"""Finite differences, whose slopes are those along what is drawn."""

by_differences = pytest.mark.parametrize("kind", DIFFERENCES)
every_way = pytest.mark.parametrize("kind", KINDS | BY_STEPS)


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


@every_way
def test_each_image_pays_for_itself(kind):
    """What an image pays in a batch is what it pays alone: no norm is taken over the batch."""
    d, (real, fake) = smooth_discriminator(), two_batches(4)
    penalty = (KINDS | BY_STEPS)[kind](2.0)
    drawn = drawn_for(penalty, real)
    together = penalty.cost(d, real, fake, *drawn)
    assert together.shape == (4,)
    for i in range(4):
        rows = [tensor[i : i + 1] for tensor in (real, fake, *drawn)]
        torch.testing.assert_close(together[i : i + 1], penalty.cost(d, *rows))


@every_way
def test_gradients_reach_the_discriminators_weights(kind):
    """They are the numerical ones, with respect to each of D's weights."""
    net, (real, fake) = smooth_discriminator(), two_batches(2)
    penalty = (KINDS | BY_STEPS)[kind](2.0)
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


@by_differences
@pytest.mark.parametrize("shape", [(3, 2, 2), (2,), (1, 32)], ids=["images", "points", "sound"])
@given(weight=st.floats(0, 100), step=st.floats(1e-3, 1))
def test_differences_of_a_linear_discriminator(kind, shape, weight, step):
    """Its slope a along n is a n, exactly: w / 2 (a n)^2, whatever the step."""
    a = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    real, fake = torch.randn(2, 5, *shape, dtype=torch.float64)
    penalty = DIFFERENCES[kind](weight, step=step)
    cost = paid(penalty, lambda x: (x * a).flatten(1).sum(1), real, fake)
    along = (drawn_for(penalty, real)[0] / step * a).flatten(1).sum(1)
    torch.testing.assert_close(cost, weight / 2 * along**2, rtol=1e-9, atol=1e-9)


@by_differences
@given(step=st.floats(1e-3, 1), curvature=st.floats(-2, 2))
def test_differences_of_a_quadratic_discriminator(kind, step, curvature):
    """D(x) = c / 2 |x|^2 rises by c (x n + s / 2 |n|^2) in a step, so the cost shows at which x."""
    real, fake = two_batches(3)
    penalty = DIFFERENCES[kind](2.0, step=step)
    cost = paid(penalty, lambda x: curvature / 2 * x.flatten(1).square().sum(1), real, fake)
    n, x = (drawn_for(penalty, real)[0] / step).flatten(1), {"r1": real, "r2": fake}[kind]
    rise = curvature * ((x.flatten(1) * n).sum(1) + step / 2 * n.square().sum(1))
    torch.testing.assert_close(cost, rise**2, rtol=1e-9, atol=1e-9)


def mean_of(penalty, d, x, count=100_000):
    """Return the mean cost of one example (1, ...) over many draws, and its standard error."""
    x = x.expand(count, *x.shape[1:])
    with torch.no_grad():
        cost = paid(penalty, d, x, x)
    return cost.mean().item(), cost.std().item() / count**0.5


def test_differences_are_right_on_average_but_for_their_square():
    """On c / 2 |x|^2 of d numbers it is c^2 |x|^2 + s^2 c^2 d (d + 2) / 4, and |a|^2 on a x."""
    x, c, d = torch.tensor([[0.6, -0.8, 2.0]], dtype=torch.float64), 1.5, 3
    square = c**2 * x.square().sum().item()
    for step in (1e-3, 1.0):
        penalty = penalties.r1(2.0, step=step)
        mean, error = mean_of(penalty, lambda x: c / 2 * x.square().sum(1), x)
        bias = step**2 * c**2 * d * (d + 2) / 4
        assert mean == pytest.approx(square + bias, abs=4 * error)
        assert step < 1 or bias > 20 * error  # or the test would not see it
        mean, error = mean_of(penalty, lambda x: x @ torch.tensor([3.0, 4.0, 0.0]).double(), x)
        assert mean == pytest.approx(25, abs=4 * error)


def test_differences_of_a_convolutional_discriminator_are_right_on_average():
    """They are the exact penalty, within the standard error."""
    d, (real, _) = smooth_discriminator(), two_batches(1)
    exact = paid(penalties.r1(2.0), d, real, real).item()
    mean, error = mean_of(penalties.r1(2.0, step=1e-3), d, real, count=5_000)
    assert mean == pytest.approx(exact, abs=4 * error)
    assert error < 0.03 * mean


def test_differences_are_drawn_by_name():
    """A step draws the same each time it is asked, another step and the other penalty others."""
    d, (real, fake) = smooth_discriminator(), two_batches(4)
    both = [penalties.r1(2.0, step=0.01), penalties.r1(2.0, step=0.01)]

    def terms(step):
        batch = tinygan.Batch.of(real, step=step)
        return [penalty.term(d, real, fake, batch, n) for n, penalty in enumerate(both)]

    found = torch.stack([*terms(3), *terms(4)])
    assert torch.equal(found[:2], torch.stack(terms(3)))
    assert len(found.unique(dim=0)) == 4


@by_differences
def test_differences_judge_what_slopes_judge(kind):
    """Images that are judged together rise as one, a map of logits as its sum."""
    a = torch.arange(1.0, 25, dtype=torch.float64)

    class Joining(nn.Module):
        join = 2

        def forward(self, images):
            return tinygan.join_images(images, 2).flatten(1) @ a

    images = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    penalty = DIFFERENCES[kind](2.0, step=0.5)
    (noise,) = drawn_for(penalty, images)
    whole = noise.reshape(2, 24) / 0.5
    torch.testing.assert_close(paid(penalty, Joining(), images, images), (whole @ a).square())
    patches = nn.Conv2d(3, 1, 1, bias=False).double()
    along = (noise / 0.5 * patches.weight[0]).flatten(1).sum(1).square()
    torch.testing.assert_close(paid(penalty, patches, images, images), along)


@pytest.mark.parametrize("num_classes", [None, 3], ids=["images", "classes"])
def test_differences_are_of_the_compiled_net_in_the_weights_own_type(monkeypatch, num_classes):
    """A difference in bfloat16 would be rounding; slopes are of the net that is not compiled."""
    seen = []

    def compiled(net, **options):
        def apply(*given):
            if isinstance(net, tinygan.DCGANDiscriminator):
                seen.append((torch.is_autocast_enabled("cpu"), given[0].dtype, len(given)))
            return net(*given)

        return apply

    monkeypatch.setattr(torch, "compile", compiled)
    inputs = 1 if num_classes is None else 2
    batches = [batch[:inputs] for batch in recipes.batches()[:1]]
    for step, once in ((None, 0), (0.01, 2 * 2)):
        execution = tinygan.Execution(dtype=torch.bfloat16, compile=True)
        both = [penalties.r1(1.0, every=1, step=step), penalties.r2(1.0, every=1, step=step)]
        made = recipes.nets(num_classes=num_classes)
        trainer = tinygan.GANTrainer(*made, penalties=both, execution=execution)
        seen.clear()
        trainer.fit(batches, steps=1)
        # Beside them D judges real images, fakes, and fakes once more for G.
        assert sorted(seen) == sorted(
            [(True, torch.float32, inputs)] * 3 + [(False, torch.float32, inputs)] * once
        )


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
    """Its weight, how lazy it is, and how far differences go, belong to what a run is."""
    falling, slower, lower = (
        penalties.r1(schedules.exponential(1.0, end, until=until))
        for end, until in ((0.1, 100), (0.1, 200), (0.2, 100))
    )
    plain = penalties.r1(1.0)
    step, further = (penalties.r1(1.0, step=step) for step in (0.01, 0.02))
    others = [None, penalties.r1(2.0), penalties.r1(1.0, every=8), falling, step]
    runs = ((plain, others), (falling, [plain, slower, lower]), (step, [plain, further]))
    for own, different in runs:
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
        (lambda: penalties.r1(step=0.0), "step must be in (0, inf), got 0.0; use a number in it."),
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
