"""Optimizers: options of later versions, and states of their own."""

from __future__ import annotations

import re
from functools import partial
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.optim import LBFGS, SGD, Adam, Optimizer

import tinygan
from tinygan import data, hooks, optimizers
from tinygan._run import checkpoint

from helpers import flat, tiny_images, tiny_trainer

ADAM = partial(Adam, lr=1e-3)


class Wrapper(Optimizer):
    """Lookahead around another optimizer, whose slow weights only its own state_dict knows."""

    def __init__(self, inner, k=2):
        self.optimizer, self.k, self.count = inner, k, 0
        self.param_groups, self.defaults, self.state = inner.param_groups, inner.defaults, {}
        self.slow = [p.detach().clone() for group in self.param_groups for p in group["params"]]

    def step(self):
        """Move, and look."""
        self.optimizer.step()
        self.count += 1
        parameters = [p for group in self.param_groups for p in group["params"]]
        if self.count % self.k == 0:
            for slow, fast in zip(self.slow, parameters, strict=True):
                slow.lerp_(fast.detach(), 0.5)
                fast.data.copy_(slow)

    def zero_grad(self, set_to_none=True):
        """Forward it."""
        self.optimizer.zero_grad(set_to_none)

    def state_dict(self):
        """Return it all."""
        slow = {(0, index): each for index, each in enumerate(self.slow)}
        return {"fast": self.optimizer.state_dict(), "slow": slow, "count": self.count}

    def load_state_dict(self, state):
        """Take it back."""
        self.optimizer.load_state_dict(state["fast"])
        self.param_groups = self.optimizer.param_groups
        self.slow, self.count = list(state["slow"].values()), state["count"]


class Forwarding(Wrapper):
    """The same, which keeps slow weights in the inner optimizer's state, and forwards its own."""

    def step(self):
        """Move, and look."""
        self.optimizer.step()
        for group in self.param_groups:
            group["looks"] = group.get("looks", 0) + 1
            for p in group["params"]:
                slow = self.optimizer.state[p].setdefault("slow", p.detach().clone())
                if group["looks"] % self.k == 0:
                    p.data.copy_(slow.lerp_(p.detach(), 0.5))

    def state_dict(self):
        """Return it all."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state):
        """Take it back."""
        self.optimizer.load_state_dict(state)
        self.param_groups = self.optimizer.param_groups


class InGroup(Adam):
    """Lookahead as a subclass: slow weights in the group, and a count in the state."""

    def step(self, closure=None):
        """Move, and look."""
        super().step(closure)
        looks = self.state.setdefault("looks", {"count": 0})
        looks["count"] += 1
        for group in self.param_groups:
            group.setdefault("slow", [p.detach().clone() for p in group["params"]])
            if looks["count"] % 2 == 0:
                for slow, fast in zip(group["slow"], group["params"], strict=True):
                    fast.data.copy_(slow.lerp_(fast.detach(), 0.5))


def wrapped(kind, parameters):
    """Return a wrapper around Adam, as a partial can tell it."""
    return kind(ADAM(parameters))


LOOKAHEADS = {
    "a state of its own": partial(wrapped, Wrapper),
    "the inner one's state": partial(wrapped, Forwarding),
    "a group": partial(InGroup, lr=1e-3, fused=True),
}


def whole_state(trainer):
    """Return all that a run is made of, by name, and its place in the data."""
    return flat(trainer.state_dict())


@pytest.mark.parametrize("name", LOOKAHEADS)
def test_an_optimizers_own_state_is_saved(name, tmp_path):
    """A run by a Lookahead goes on from any of its steps to the same bits."""
    make = partial(tiny_trainer, generator_optimizer=LOOKAHEADS[name])
    whole = make()
    whole.fit([tiny_images()], steps=5)
    for stop in (1, 2):
        part = make()
        part.fit([tiny_images()], steps=stop)
        part.save(tmp_path / "run.pt")
        again = make()
        again.resume(tmp_path / "run.pt")
        assert whole_state(again) == whole_state(part)
        again.fit([tiny_images()], steps=5)
        assert whole_state(again) == whole_state(whole)


def test_a_step_of_ones_own_is_not_taken_for_a_fused_one():
    """What a subclass of a fused optimizer does besides is skipped with a step that is skipped."""
    trainer = tiny_trainer(generator_optimizer=LOOKAHEADS["a group"])
    trainer.fit([tiny_images()], steps=1)
    before = trainer.players.generator.optimizer.state["looks"]["count"]
    spoil = hooks.every(1, lambda trainer, report: None)
    spoil.on_gradients = lambda trainer, player: player.gradients()[0].fill_(float("nan"))
    other = tiny_trainer(generator_optimizer=LOOKAHEADS["a group"], hooks=[spoil])
    other.load_state_dict(trainer.state_dict())
    other.fit([tiny_images()], steps=2)
    assert other.players.generator.optimizer.state["looks"]["count"] == before == 1


def test_an_allowed_rate_reaches_the_inner_optimizer(tmp_path):
    """What the wrapper has saved of its groups does not bring the old rate back."""
    trainer = tiny_trainer(generator_optimizer=LOOKAHEADS["a state of its own"])
    trainer.fit([tiny_images()], steps=1)
    trainer.save(tmp_path / "run.pt")
    other = tiny_trainer(generator_optimizer=lambda p: Wrapper(Adam(p, lr=0.5)))
    other.resume(tmp_path / "run.pt", allow="generator optimizer.lr")
    assert other.players.generator.optimizer.optimizer.param_groups[0]["lr"] == 0.5


def test_a_checkpoint_from_before_such_states_were_saved(tmp_path):
    """It is refused by name, for going on without would be another run; it may be allowed."""
    make = partial(tiny_trainer, generator_optimizer=LOOKAHEADS["a state of its own"])
    trainer = make()
    trainer.fit([tiny_images()], steps=1)
    state = trainer.state_dict()
    del state["players"]["generator"]["optimizer"]["own"], state["defaults"]
    checkpoint.save(state, tmp_path / "run.pt")
    with pytest.raises(ValueError, match=r"generator optimizer\.own state: missing when saved, fa"):
        make().resume(tmp_path / "run.pt")
    make().resume(tmp_path / "run.pt", allow="generator optimizer.own state")


def backwards(parameters):
    """Return a wrapper in which parameters are in another order."""
    return Wrapper(ADAM(list(parameters)[::-1]))


def test_a_state_that_counts_parameters_needs_their_order(tmp_path):
    """Slow weights are not given to other parameters; allowed, they begin anew."""
    trainer = tiny_trainer(generator_optimizer=LOOKAHEADS["a state of its own"])
    trainer.fit([tiny_images()], steps=2)
    trainer.save(tmp_path / "run.pt")
    other = tiny_trainer(generator_optimizer=backwards)
    with pytest.raises(ValueError, match=r"generator optimizer\.group 0: main\.0\.weight, .* when"):
        other.resume(tmp_path / "run.pt")
    other.resume(tmp_path / "run.pt", allow="generator optimizer.group 0")
    optimizer = other.players.generator.optimizer
    assert optimizer.count == 0
    shapes = [p.shape for group in optimizer.param_groups for p in group["params"]]
    assert [slow.shape for slow in optimizer.slow] == shapes
    other.fit([tiny_images()], steps=4)


class Unplain(SGD):
    """An optimizer with an option that no checkpoint can hold."""

    def __init__(self, parameters):
        super().__init__(parameters, lr=0.1)
        self.param_groups[0]["when"] = {1, 2}


@pytest.mark.parametrize(
    ("factory", "error", "sentence"),
    [
        (
            LBFGS,
            ValueError,
            "an optimizer must step without a closure, got LBFGS; use functools.partial(torch.opt",
        ),
        (
            lambda _: Adam([torch.zeros(1, requires_grad=True)]),
            ValueError,
            "an optimizer must move its own net's weights, got Adam of others; make it of the par",
        ),
        (lambda _: None, TypeError, "what makes an optimizer must return one, got NoneType; use"),
        (1e-4, TypeError, "must be given as what makes it, got float; use functools.partial(tor"),
        ("adam", TypeError, "must be given as what makes it, got str; use functools.partial(tor"),
    ],
)
def test_optimizers_that_do_not_suit(factory, error, sentence):
    """What could not move a player is refused when the trainer is made."""
    with pytest.raises(error, match=re.escape(sentence)):
        tiny_trainer(generator_optimizer=factory)


def test_an_optimizer_that_cannot_be_saved_trains_all_the_same(tmp_path):
    """It is refused where it would be saved: as a fit with a Checkpoint begins."""
    tiny_trainer(generator_optimizer=Unplain).fit([tiny_images()], steps=1)
    trainer = tiny_trainer(generator_optimizer=Unplain, hooks=[hooks.Checkpoint(tmp_path)])
    told = r"\['generator'\]\['optimizer'\].*\['when'\] must be a plain value or a tensor, got a bu"
    with pytest.raises(TypeError, match=told):
        trainer.fit([tiny_images()], steps=1)
    assert trainer.step == 0


def test_what_an_optimizer_keeps_is_loaded_to_where_the_weights_are():
    """Tensors among its options, for a file's are on the CPU; PyTorch itself moves the moments."""
    net = nn.Linear(2, 2)
    optimizer = InGroup(net.parameters())
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    there = nn.Linear(2, 2, device="meta")
    other = InGroup(there.parameters())
    optimizers.load_state(other, there, optimizers.state_of(optimizer, net))
    kept = other.param_groups[0]["slow"] + [each["exp_avg"] for each in moments_of(other)]
    assert {each.device.type for each in kept} == {"meta"}


def moments_of(optimizer):
    """Return what an optimizer keeps for each of its parameters."""
    return [optimizer.state[p] for group in optimizer.param_groups for p in group["params"]]


def test_moments_are_laid_out_as_their_weights():
    """Fused kernels pair them as they lie in memory; a run saved in another layout goes on."""
    whole = tiny_trainer()
    whole.fit([tiny_images()], steps=2)
    part = tiny_trainer()
    part.load_state_dict(whole.state_dict())
    for player in part.players:
        for moments in moments_of(player.optimizer):
            moments |= {name: each.contiguous() for name, each in moments.items()}
    for trainer in (whole, part):
        trainer.fit([tiny_images()], steps=4)
    assert whole_state(part) == whole_state(whole)


class Later(Adam):
    """A later version's Adam: it has options more."""

    def __init__(self, parameters, lr=1e-3, clip=None, warmth=1.5):
        super().__init__(parameters, lr=lr)
        for name, value in (("clip", clip), ("warmth", warmth)):
            self.defaults[name] = value
            for group in self.param_groups:
                group.setdefault(name, value)


class Earlier(Adam):
    """The earlier one."""

    def __init__(self, parameters, lr=1e-3):
        super().__init__(parameters, lr=lr)


Earlier.__qualname__ = Later.__qualname__  # to a checkpoint they are one


def saved_by(optimizer, path):
    """Save a run of one step by an optimizer."""
    trainer = tiny_trainer(generator_optimizer=optimizer)
    trainer.fit([tiny_images()], steps=1)
    trainer.save(path)


def test_an_option_that_is_new_is_no_difference_at_its_default(tmp_path):
    """Older checkpoints are gone on from, and the option stays; at another value it is told."""
    path = tmp_path / "run.pt"
    saved_by(Earlier, path)
    trainer = tiny_trainer(generator_optimizer=Later)
    trainer.resume(path)
    group = trainer.players.generator.optimizer.param_groups[0]
    assert (group["warmth"], group["clip"], group["lr"]) == (1.5, None, 1e-3)
    trainer.fit([tiny_images()], steps=2)
    warm = partial(tiny_trainer, generator_optimizer=partial(Later, warmth=2.0))
    with pytest.raises(ValueError, match=r"run:\n  generator optimizer\.warmth: missing when sav"):
        warm().resume(path)
    other = warm()
    other.resume(path, allow="generator optimizer.warmth")
    assert other.players.generator.optimizer.param_groups[0]["warmth"] == 2.0


def test_an_option_that_is_gone_is_no_difference_at_its_default(tmp_path):
    """A run may go on where the library is older, if it did not use what is missing there."""
    path = tmp_path / "run.pt"
    saved_by(Later, path)
    trainer = tiny_trainer(generator_optimizer=Earlier)
    trainer.resume(path)
    trainer.fit([tiny_images()], steps=2)
    saved_by(partial(Later, warmth=2.0), path)
    with pytest.raises(
        ValueError, match=r"run:\n  generator optimizer\.warmth: 2\.0 when saved, m"
    ):
        tiny_trainer(generator_optimizer=Earlier).resume(path)


def test_a_setting_of_a_later_version_is_no_difference_while_it_is_off(tmp_path):
    """So it is for what a loader or a hook says of itself: False and None count as nothing."""

    class Loader(data.Loader):
        more: ClassVar = {}

        @property
        def configuration(self):
            return super().configuration | self.more

    class Setting(tinygan.Hook):
        settings: ClassVar = {"old": 1}

    def resumed(settings, more, **allowed):
        hook, loader = Setting(), Loader(tiny_images(), 6)
        hook.settings, loader.more = settings, more
        trainer = tiny_trainer(hooks=[hook])
        trainer.resume(tmp_path / "run.pt", **allowed)
        trainer.fit(loader, steps=3)

    first = tiny_trainer(hooks=[Setting()])
    first.fit(Loader(tiny_images(), 6), steps=2)
    first.save(tmp_path / "run.pt")
    resumed({"old": 1, "new": None}, {"crop": False})
    with pytest.raises(ValueError, match=r"run:\n  hooks\.Setting\.new: missing when saved, 2 now"):
        resumed({"old": 1, "new": 2}, {})
    with pytest.raises(ValueError, match=r"run:\n  batches\.crop: missing when saved, True now"):
        resumed({"old": 1}, {"crop": True})
    with pytest.raises(ValueError, match=r"run:\n  batches\.crop: missing when saved, 0 now"):
        resumed({"old": 1}, {"crop": 0})  # which is a number, although 0 == False
