"""Penalties: D's slope, what it costs, and when."""

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
from helpers import fingerprint, tiny_images, tiny_trainer

# The tiny net has it, so that what a penalty does to its statistics is seen.
pytestmark = pytest.mark.filterwarnings("ignore:a penalty of a discriminator with batch norm")


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


@given(
    kind=st.sampled_from([penalties.r1, penalties.r2]),
    weight=st.floats(0.01, 100),
    share=st.floats(0.001, 1),
    until=st.integers(1, 10_000),
    images=st.integers(0, 20_000),
)
def test_a_weight_falls_by_the_same_factor_with_each_image(kind, weight, share, until, images):
    """After so many images the cost is that of the weight which a loop over images arrives at."""
    d, (real, fake) = smooth_discriminator(), two_batches(2)
    final = share * weight
    penalty = kind(schedules.exponential(weight, final, until=until), every=1)
    now = weight
    for _ in range(min(images, until)):
        now *= (final / weight) ** (1 / until)
    batch = tinygan.Batch.of(real)
    batch.draws.images = images
    wanted = kind(now).cost(d, real, fake)
    torch.testing.assert_close(penalty.term(d, real, fake, batch, 0), wanted, rtol=1e-5, atol=0)


KINDS = {
    "r1": penalties.r1,
    "r2": penalties.r2,
    "wgan_gp": penalties.wgan_gp,
    "dragan": penalties.dragan,
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def drawn_for(penalty, images, seed=0):
    """Return what a penalty draws for a batch, as it is passed to its cost."""
    if penalty.draw is None:
        return []
    drawn = penalty.draw(images.shape, torch.Generator().manual_seed(seed), 0)
    return [drawn.double()]


def two_batches(count):
    """Return real images and fakes of 8x8 pixels, in float64."""
    images = tiny_images(2 * count).double()
    return images[:count], images[count:]


@every_kind
@given(weight=st.floats(0, 100), count=st.integers(1, 5))
def test_each_image_pays_for_itself(kind, weight, count):
    """What an image pays in a batch is what it pays alone: no norm is taken over the batch."""
    d, (real, fake) = smooth_discriminator(), two_batches(count)
    penalty = KINDS[kind](weight)
    drawn = drawn_for(penalty, real)
    together = penalty.cost(d, real, fake, *drawn)
    assert together.shape == (count,)
    for i in range(count):
        rows = [tensor[i : i + 1] for tensor in (real, fake, *drawn)]
        torch.testing.assert_close(together[i : i + 1], penalty.cost(d, *rows))


@every_kind
@given(weight=st.floats(0, 100), slope=st.lists(st.floats(-3, 3), min_size=4, max_size=4))
def test_penalties_of_a_linear_discriminator(kind, weight, slope):
    """Its slope a is the same everywhere: w / 2 |a|^2, or w (|a| - 1)^2."""
    a = torch.tensor(slope, dtype=torch.float64)
    real, fake = (torch.randn(3, 1, 2, 2, dtype=torch.float64) for _ in range(2))
    penalty = KINDS[kind](weight)
    cost = penalty.cost(lambda x: x.flatten(1) @ a, real, fake, *drawn_for(penalty, real))
    length = a.norm()
    wanted = weight / 2 * length**2 if kind in ("r1", "r2") else weight * (length - 1) ** 2
    torch.testing.assert_close(cost, wanted.expand(3), rtol=1e-9, atol=1e-9)


@every_kind
@given(weight=st.floats(0, 100), curvature=st.floats(-2, 2))
def test_penalties_of_a_quadratic_discriminator(kind, weight, curvature):
    """D(x) = c / 2 |x|^2 has the slope c x, so what is paid shows at which x it was asked."""
    real, fake = two_batches(3)
    penalty = KINDS[kind](weight)
    drawn = drawn_for(penalty, real)

    def d(x):
        return curvature / 2 * x.flatten(1).square().sum(1)

    where = {
        "r1": lambda: real,
        "r2": lambda: fake,
        "wgan_gp": lambda: (
            drawn[0].view(-1, 1, 1, 1) * real + (1 - drawn[0].view(-1, 1, 1, 1)) * fake
        ),
        "dragan": lambda: real + drawn[0],
    }[kind]()
    length = abs(curvature) * where.flatten(1).norm(dim=1)
    wanted = weight / 2 * length**2 if kind in ("r1", "r2") else weight * (length - 1) ** 2
    torch.testing.assert_close(penalty.cost(d, real, fake, *drawn), wanted, rtol=1e-9, atol=1e-9)


@every_kind
def test_gradients_reach_the_discriminators_weights(kind):
    """They are the numerical ones, with respect to each of D's weights."""
    net, (real, fake) = smooth_discriminator(), two_batches(2)
    penalty = KINDS[kind](2.0)
    drawn = drawn_for(penalty, real)
    names = [name for name, _ in net.named_parameters()]

    def paid(*weights):
        def d(images):
            return torch.func.functional_call(net, dict(zip(names, weights)), (images,))

        return penalty.cost(d, real, fake, *drawn).mean()

    weights = [p.detach().clone().requires_grad_() for p in net.parameters()]
    assert torch.autograd.gradcheck(paid, weights)
    moved = torch.autograd.grad(paid(*weights), weights, allow_unused=True, materialize_grads=True)
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


@given(packs=st.integers(1, 4), packed=st.integers(1, 4))
def test_a_pack_pays_for_its_slope_as_a_whole(packs, packed):
    """With packing a row of slopes is that of one input of D: of all images in the pack."""
    a = torch.arange(1.0, 12 * packed + 1, dtype=torch.float64)
    real = torch.randn(packs * packed, 3, 2, 2, dtype=torch.float64)
    found = penalties.slopes(lambda x: tinygan.pack(x, packed).flatten(1) @ a, real)
    torch.testing.assert_close(found, a.expand(packs, -1))


@given(packs=st.integers(1, 4), packed=st.integers(1, 4))
def test_wgan_gp_looks_between_two_packs(packs, packed):
    """With packing all images of a pack are mixed by one share, the first that is drawn for it."""
    seen = []

    class Packing(nn.Module):
        pack = packed

        def forward(self, images):
            seen.append(images.detach())
            return tinygan.pack(images, packed).flatten(1).sum(1)

    real = torch.ones(packs * packed, 3, 2, 2)
    drawn = torch.rand(len(real), generator=torch.Generator().manual_seed(0))
    penalties.wgan_gp().cost(Packing(), real, -real, drawn)
    shares = (tinygan.pack(seen[0], packed).flatten(1) + 1) / 2
    torch.testing.assert_close(shares, drawn[::packed, None].expand(shares.shape))


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
    mean = sum((b - a).mean().item() for a, b in list(zip(*runs))[:8]) / 8
    assert mean == pytest.approx(slope, rel=1e-5), "on average, what an eager one would be"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_penalties_are_computed_in_the_weights_own_type(dtype):
    """Gradients of gradients are not taken in few bits, and the loss scale does not change them."""
    seen = []

    def cost(discriminator, real, fake):
        seen.append((real.dtype, fake.dtype, discriminator(real).dtype))
        return discriminator(real).square()

    tiny_trainer(penalty=penalties.Penalty(cost), dtype=dtype).fit([tiny_images()], steps=1)
    assert set(seen) == {(torch.float32,) * 3}


def test_a_run_with_another_penalty_is_refused():
    """Its weight and how lazy it is belong to what a run is."""
    state = tiny_trainer(penalty=penalties.r1(1.0)).state_dict()
    falling = penalties.r1(schedules.exponential(1.0, 0.1, until=100))
    for other in (None, penalties.r1(2.0), penalties.r1(1.0, every=8), falling):
        with pytest.raises(ValueError, match=r"penalty\.0\.\w+: .* when saved"):
            tiny_trainer(penalty=other).load_state_dict(state)
    tiny_trainer(penalty=penalties.r1(1.0)).load_state_dict(state)
    state = tiny_trainer(penalty=falling).state_dict()
    for end, until in ((0.2, 100), (0.1, 200)):
        other = penalties.r1(schedules.exponential(1.0, end, until=until))
        with pytest.raises(ValueError, match=r"penalty\.0\.weight"):
            tiny_trainer(penalty=other).load_state_dict(state)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: penalties.r1(-1.0), "weight must be in [0, inf), got -1.0; for example 10.0."),
        (
            lambda: penalties.dragan(noise=-1.0),
            "noise must be in [0, inf), got -1.0; for example 0.25.",
        ),
        (
            lambda: penalties.wgan_gp(float("inf")),
            "weight must be in [0, inf), got inf; for example 10.0.",
        ),
        (lambda: penalties.r1("10"), "weight must be in [0, inf), got '10'; for example 10.0."),
        (lambda: penalties.r1(True), "weight must be in [0, inf), got True; for example 10.0."),
        (lambda: penalties.r1(every=0), "every must be at least 1, got 0; use 1 or more."),
        (
            lambda: penalties.r1(float("nan")),
            "weight must be in [0, inf), got nan; for example 10.0.",
        ),
    ],
)
def test_bad_penalties_are_refused(make, sentence):
    """The error names the value and the rule."""
    with pytest.raises(ValueError) as error:
        make()
    assert str(error.value) == sentence


def test_what_makes_a_penalty_is_none():
    """A function in place of what it returns is named."""
    with pytest.raises(
        TypeError, match=r"penalty must be a tinygan\.penalties\.Penalty or several, got "
    ):
        tiny_trainer(penalty=penalties.r1)


def test_batch_norm_beside_a_penalty_is_pointed_out():
    """It is told where the trainer is made; a D without it is as it should be."""
    with pytest.warns(UserWarning, match="batch norm mixes each image's slope .* norm=None"):
        tiny_trainer(penalty=penalties.r1())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tinygan.GANTrainer(*recipes.nets(), penalty=penalties.r1())


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


@pytest.mark.parametrize("shape", [(2,), (1, 32)], ids=["points", "sound"])
@every_kind
def test_slopes_are_those_of_points_and_sound_too(kind, shape):
    """Of a linear D the slope is its weights, whatever an example is."""
    weights = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    real, fake = torch.randn(2, 5, *shape, dtype=torch.float64)
    penalty = KINDS[kind](2.0)

    def d(examples):
        assert examples.shape == real.shape
        return (examples * weights).flatten(1).sum(1)

    found = penalty.cost(d, real, fake, *drawn_for(penalty, real))
    length = weights.norm()
    wanted = length**2 if kind in ("r1", "r2") else 2 * (length - 1) ** 2
    torch.testing.assert_close(found, wanted.expand(5))
