"""The moving average of G: the recurrence, when it is moved, and that samples come from it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import tinygan
from tinygan import average

import recipes
from helpers import assert_identical


def with_average(half_life=50.0, double=False, **arguments):
    """Return a trainer of 8x8 images that averages G."""
    made = [net.double() if double else net for net in recipes.nets()]
    return tinygan.GANTrainer(*made, ema_half_life=half_life, **arguments)


def images(dtype=torch.float32):
    """Return batches of images alone."""
    return [batch for batch, _ in recipes.batches(dtype=dtype)]


def tensors(net):
    """Return copies of all floating-point tensors of a net."""
    found = (*net.parameters(), *net.buffers())
    return [t.detach().double().clone() for t in found if t.is_floating_point()]


class Recurrence(tinygan.Hook):
    """Averages G's weights and statistics in float64, by the formula."""

    def __init__(self, half_life):
        self.half_life, self.images, self.average = half_life, 0, None

    def on_fit_start(self, trainer):
        """Begin at the initial weights."""
        self.average = tensors(trainer.generator)

    def on_update(self, trainer, player):
        """Take in the new weights."""
        if player.name == "generator" and player.moved:
            size = len(trainer.real)
            seen = self.images + size
            keep = 0.5 ** (size / min(self.half_life, 0.15 * seen))
            live = tensors(player.module)
            self.average = [keep * a + (1 - keep) * p for a, p in zip(self.average, live)]
        if player.name == "generator":
            self.images += len(trainer.real)


@pytest.mark.parametrize("half_life", [1, 20, float("inf")])
def test_it_is_the_recurrence(half_life):
    """After 40 steps it is what float64 gives, for half-lives that ramp up and ones that do not."""
    hook = Recurrence(half_life)
    trainer = with_average(half_life, double=True, hooks=[hook])
    trainer.fit(images(torch.float64), steps=40)
    for ours, wanted in zip(tensors(trainer.average.net), hook.average, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-12, atol=1e-15)
    live = tensors(trainer.generator)
    assert not any(torch.equal(p, a) for p, a in zip(live, hook.average))


@given(half_life=st.floats(0.1, 1e6), size=st.integers(1, 512), batches=st.integers(1, 20))
def test_a_half_life_is_counted_in_images(half_life, size, batches):
    """However the images are batched, they leave the same share of what was before them."""
    long_ago = 10**9
    left = 1.0
    for _ in range(batches):
        left *= 1 - average.ema_weight(half_life, long_ago, size)
    at_once = 1 - average.ema_weight(half_life, long_ago, size * batches)
    assert left == pytest.approx(at_once, rel=1e-9, abs=1e-12)
    assert average.ema_weight(half_life, long_ago, 0) == 0


def test_the_initial_weights_are_soon_forgotten():
    """After 100 batches less than a billionth of them is left, whatever the half-life."""
    left = 1.0
    for batch in range(1, 101):
        left *= 1 - average.ema_weight(float("inf"), 64 * batch, 64)
    assert left < 1e-9


def test_the_average_does_not_follow_the_live_net():
    """Neither its weights nor its buffers are those of G: when G changes they stay."""
    trainer = with_average()
    trainer.fit(images(), steps=3)
    kept = {k: v.clone() for k, v in trainer.average.net.state_dict().items()}
    with torch.no_grad():
        for tensor in (*trainer.generator.parameters(), *trainer.generator.buffers()):
            tensor.fill_(7)
    assert_identical(kept, trainer.average.net.state_dict())


def test_other_buffers_are_copied():
    """Spectral norm's vectors have length 1, which a mean of them has not; counters are whole."""
    net = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3)), nn.BatchNorm1d(3))
    kept = average.Average(net, half_life=1e6)
    net(torch.randn(8, 3, generator=torch.Generator().manual_seed(0)))
    kept.begin(images=10**9, size=8)
    kept.update(torch.tensor(0.0))
    live = dict(net.named_buffers())
    averaged = dict(kept.net.named_buffers())
    same = {name for name, buffer in live.items() if torch.equal(buffer, averaged[name])}
    assert live.keys() == averaged.keys()
    assert live.keys() - same == {"1.running_mean", "1.running_var"}
    assert len(same) == 3  # two vectors and a counter
    for name, buffer in live.items():
        assert buffer.data_ptr() != averaged[name].data_ptr(), name


def test_samples_come_from_the_average():
    """Those of sample and generate do, unless G itself is asked for."""
    trainer = with_average()
    trainer.fit(images(), steps=5)
    z = trainer.fixed_noise
    with torch.no_grad():
        averaged, live = trainer.average.net(z), trainer.generator.eval()(z)
    assert torch.equal(trainer.generate(z), averaged)
    assert torch.equal(trainer.generate(z, average=False), live)
    assert not torch.equal(averaged, live)
    assert not torch.equal(trainer.sample(3), trainer.sample(3, average=False))


def test_what_a_hook_does_to_the_weights_is_averaged():
    """The average takes them in when all hooks have seen the update, and may have changed it."""

    class Sevens(tinygan.Hook):
        def on_update(self, trainer, player):
            if player.name == "generator":
                with torch.no_grad():
                    player.module.main[0].weight.fill_(7)

    trainer = with_average(1, hooks=[Sevens()])  # so short that it is the last weights
    trainer.fit(images(), steps=1)
    assert trainer.average.net.main[0].weight.sub(7).abs().max() < 0.1


def test_it_changes_nothing_of_the_run():
    """A run with an average ends in the weights of one without."""
    ends = []
    for half_life in (None, 10.0):
        trainer = with_average(half_life)
        trainer.fit(images(), steps=6)
        ends.append(trainer.generator.state_dict())
    assert_identical(*ends)


class Spoil(tinygan.Hook):
    """Makes G's gradients NaN in some steps."""

    def __init__(self, steps):
        self.steps = steps

    def on_gradients(self, trainer, player):
        """Spoil them."""
        if player.name == "generator" and trainer.step in self.steps:
            player.parameters[0].grad.fill_(float("nan"))


def test_a_skipped_step_leaves_no_trace():
    """G has not moved, and so the average does not move towards it once more."""
    averages = []
    keep = tinygan.hooks.every(
        1,
        lambda trainer, _: averages.append(
            {k: v.clone() for k, v in trainer.average.net.state_dict().items()}
        ),
    )
    trainer = with_average(hooks=[Spoil({3}), keep])
    trainer.fit(images(), steps=5)
    assert_identical(averages[2], averages[3])
    assert not torch.equal(averages[3]["main.0.weight"], averages[4]["main.0.weight"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_it_is_in_float32_at_least(dtype):
    """In 16 bits small moves would round to none."""
    net = nn.Linear(3, 2).to(dtype)
    kept = average.Average(net, half_life=1e6)
    wide = torch.promote_types(dtype, torch.float32)
    assert {p.dtype for p in kept.net.parameters()} == {wide}
    assert not any(p.requires_grad for p in kept.net.parameters())
    before = kept.net.weight.clone()
    with torch.no_grad():
        net.weight.add_(1)
    moved = net.weight.to(wide) - before
    kept.begin(images=10**9, size=64)
    kept.update(torch.tensor(0.0))
    torch.testing.assert_close(
        kept.net.weight - before, moved * (1 - 0.5 ** (64 / 1e6)), rtol=0, atol=1e-6
    )
    assert not torch.equal(kept.net.weight, before)


@pytest.mark.parametrize("half_life", [0, 0.999, float("nan"), "9"])
def test_a_half_life_that_is_none_is_refused(half_life):
    """The error names the value and the rule."""
    with pytest.raises(ValueError, match=r"ema_half_life, in images, must be in \[1, inf\], got"):
        with_average(half_life)


@pytest.mark.parametrize("other", [None, 20.0])
def test_another_half_life_is_another_run(other):
    """A run does not go on by another average, or without the one that it had."""
    state = with_average(50.0).state_dict()
    with pytest.raises(ValueError, match=r"ema_half_life: 50\.0 when saved"):
        with_average(other).load_state_dict(state)
    with pytest.raises(ValueError, match="ema_half_life"):
        with_average(50.0).load_state_dict(with_average(other).state_dict())
