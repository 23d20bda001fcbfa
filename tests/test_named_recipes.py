"""The recipes that have names: what each is made of, and that each trains."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch

import tinygan
from tinygan import augmentations, hooks, losses, penalties, recipes, schedules
from tinygan.cli.arguments import argument_parser
from tinygan.nets.r3gan import R3GANDiscriminator, R3GANGenerator

from helpers import assert_identical

NETS = recipes.dcgan_nets(8, width=4, latent_dim=5)


def adam(lr, *betas):
    """Return what makes both players' optimizers."""
    return partial(torch.optim.Adam, lr=lr, betas=betas, fused=True)


LENGTH = {"r3gan": {"burn_in": 1000}}


def falling(start, end):
    """Return a schedule over a run of 1,000 images."""
    return schedules.cosine(start, end, until=1000)


# By hand, what each name stands for.
MADE_OF = {
    "tutorial": {"rates": adam(2e-4, 0.5, 0.999)},
    "hinge": {"rates": adam(2e-4, 0.5, 0.999), "loss": losses.hinge},
    "r1": {"rates": adam(2e-4, 0.5, 0.999), "penalties": penalties.r1(10.0, every=16)},
    "wgan-gp": {
        "rates": adam(1e-4, 0.0, 0.9),
        "loss": losses.wasserstein,
        "penalties": penalties.wgan_gp(10.0),
        "d_steps": 5,
    },
    "relativistic": {
        "rates": adam(5e-4, 0.0, 0.99),
        "loss": losses.relativistic,
        "penalties": [penalties.r1(0.5, every=4), penalties.r2(0.5, every=4)],
        "ema_half_life": 10_000,
    },
    "quick": {
        "rates": adam(1e-3, 0.0, 0.95),
        "loss": losses.relativistic,
        "penalties": [penalties.r1(0.5, every=16), penalties.r2(0.5, every=16)],
        "ema_half_life": math.inf,
        "hooks": [hooks.Schedule(lr=schedules.inverse_sqrt(1e-3, begin=36_000))],
    },
    "r3gan": {
        "rates": adam(2e-4, 0.0, 0.9),
        "loss": losses.relativistic,
        "penalties": [kind(falling(2.0, 0.2), every=1) for kind in (penalties.r1, penalties.r2)],
        "augment": augmentations.diff_augment(p=falling(0.0, 0.3)),
        "ema_half_life": falling(0.0, 25.0),
        "hooks": [
            hooks.Schedule(
                lr=falling(2e-4, 5e-5), betas=(0.0, schedules.stairs(falling(0.9, 0.99), every=100))
            )
        ],
    },
}


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_each_name_is_made_of_what_it_says(name):
    """A checkpoint of the recipe's trainer fits one that was put together by hand."""
    made = dict(MADE_OF[name])
    rates = made.pop("rates")
    of_d = {} if name == "tutorial" else {"norm": None, "bounded": name == "hinge"}
    generator, d = NETS(**of_d, **({"weights": None} if name == "quick" else {}))
    by_hand = tinygan.GANTrainer(
        generator, d, generator_optimizer=rates, discriminator_optimizer=rates, **made
    )
    trainer = recipes.RECIPES[name](NETS, **LENGTH.get(name, {})).trainer()
    assert trainer.state_dict()["configuration"] == by_hand.state_dict()["configuration"]
    assert str(trainer.discriminator) == str(d)
    for mine, other in zip(trainer.players, by_hand.players):
        state = other.module.state_dict()
        assert all(torch.equal(w, state[n]) for n, w in mine.module.state_dict().items())


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_each_recipe_trains_with_diff_augment_too(name):
    """Both nets move, by finite steps."""
    recipe = replace(
        recipes.RECIPES[name](NETS, **LENGTH.get(name, {})), augment=[augmentations.diff_augment()]
    )
    trainer = recipe.trainer(seed=3)
    before = [w.clone() for player in trainer.players for w in player.module.parameters()]
    trainer.fit([torch.randn(20, 3, 8, 8).clamp(-1, 1)], epochs=2)
    after = [w for player in trainer.players for w in player.module.parameters()]
    assert not any(torch.equal(old, new) for old, new in zip(before, after))
    assert all(torch.isfinite(w).all() for w in after)
    assert not trainer.skipped.counts.any()


@pytest.mark.parametrize(("width", "lr"), [(8, 5e-3), (64, 2.4e-3), (768, 2e-4), (1536, 2e-4)])
def test_narrow_r3gan_nets_have_higher_rates(width, lr):
    """In both players' optimizers and at the start of the schedule, which falls to a quarter."""
    with torch.device("meta"):
        nets = tuple(make(8, widths=width) for make in (R3GANGenerator, R3GANDiscriminator))
    recipe = recipes.r3gan(lambda: nets, burn_in=100)
    (rates,) = recipe.hooks
    assert recipe.optimizer.keywords["lr"] == rates.options["lr"](0) == pytest.approx(lr)
    assert rates.options["lr"](100) == pytest.approx(lr / 4)


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ({"augment": 2.0}, r"augment must be in \[0, 1\], got 2.0; use a number in it"),
        ({"lr": float("nan")}, r"lr must be in \[0, inf\), got nan; use a number in it"),
        ({"burn_in": 0}, "burn_in must be at least 1, got 0"),
    ],
)
def test_r3gan_names_what_would_end_the_run_later(option, sentence):
    """Before the nets move: a probability above 1 would be found after half the burn-in."""
    with pytest.raises(ValueError, match=sentence):
        recipes.r3gan(NETS, **option)


def test_nets_have_the_weights_that_a_seed_names():
    """Those of torch.manual_seed, as a script draws them; the global state does not move."""
    state = torch.get_rng_state()
    made = recipes.dcgan_nets((12, 9), 1, width=4, latent_dim=5, num_classes=3, seed=4)(norm=None)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(4)
    wanted = (
        tinygan.DCGANGenerator((12, 9), 1, 5, 4, num_classes=3).apply(tinygan.weights_init),
        tinygan.DCGANDiscriminator((12, 9), 1, 4, norm=None, num_classes=3).apply(
            tinygan.weights_init
        ),
    )
    for net, by_hand in zip(made, wanted):
        assert str(net) == str(by_hand)
        state = by_hand.state_dict()
        assert all(torch.equal(w, state[name]) for name, w in net.state_dict().items())


def test_a_discriminator_can_keep_pytorchs_initial_weights():
    """As PyTorch draws them after G's; G's are DCGAN's all the same."""
    g, d = recipes.dcgan_nets(8, width=4, latent_dim=5, seed=4)(norm=None, weights=None)
    torch.manual_seed(4)
    wanted = tinygan.DCGANGenerator(8, 3, 5, 4).apply(tinygan.weights_init)
    assert_identical(g.state_dict(), wanted.state_dict())
    plain = tinygan.DCGANDiscriminator(8, 3, 4, norm=None)
    assert_identical(d.state_dict(), plain.state_dict())


def test_nets_with_spectral_norm_are_the_same_each_time():
    """Its vectors are drawn by the seed as well, and not by what was drawn before."""
    states = []
    for number in range(2):
        torch.manual_seed(number)
        states.append(NETS(norm=None, bounded=True)[1].state_dict())
    assert all(torch.equal(w, states[1][name]) for name, w in states[0].items())


def test_a_recipe_takes_schedules_and_brings_hooks_of_its_own():
    """Its hooks come first; a falling weight and half-life are the trainer's."""
    falling = schedules.exponential(1.0, 0.1, until=100)
    recipe = recipes.relativistic(
        NETS, gamma=falling, ema_half_life=schedules.cosine(1, 9, until=9)
    )
    rates = hooks.Schedule(lr=schedules.cosine(1e-3, 1e-4, until=32))
    seen = []
    watch = hooks.every(1, lambda trainer, _: seen.append(_rate(trainer)))
    trainer = replace(recipe, hooks=[rates]).trainer(hooks=[watch], accumulate=2)
    assert trainer.hooks == (rates, watch)
    trainer.fit([torch.zeros(16, 3, 8, 8)], epochs=3)
    assert seen == pytest.approx([1e-3, 5.5e-4, 1e-4])
    words = trainer.state_dict()["configuration"]
    assert "exponential" in " ".join(words.values())


def _rate(trainer):
    return trainer.players.generator.optimizer.param_groups[0]["lr"]


def test_the_quick_recipes_rate_falls_with_the_root_of_the_images():
    """It starts at ``lr``, and is half of it after 4 times 36,000 images."""
    recipe = recipes.quick(NETS, lr=2e-3)
    trainer = recipe.trainer()
    assert _rate(trainer) == 2e-3
    trainer.images = 144_000
    trainer.fit([torch.zeros(2, 3, 8, 8)], steps=1)
    assert _rate(trainer) == pytest.approx(1e-3)
    with pytest.raises(ValueError, match=r"lr must be in \[0, inf\), got -1.0"):
        recipes.quick(NETS, lr=-1.0)


def test_the_command_line_knows_every_name():
    """``--recipe`` takes the names of RECIPES; it cannot import them for its help."""
    for name in recipes.RECIPES:
        assert argument_parser().parse_args(["train", "-", "--recipe", name]).recipe == name
    with pytest.raises(SystemExit):
        argument_parser().parse_args(["train", "-", "--recipe", "plain"])
