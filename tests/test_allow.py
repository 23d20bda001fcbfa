"""What may differ when a run goes on, if it is allowed by name; and which hook is which."""

from __future__ import annotations

import json
import logging
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam

import tinygan
from tinygan import data, hooks
from tinygan._run import batches

from helpers import assert_identical, fingerprint, tiny_images, tiny_trainer, with_latent_dim

SLOW, FAST = (partial(Adam, lr=lr, betas=(0.5, 0.999)) for lr in (1e-4, 5e-4))


@pytest.fixture
def saved(tmp_path):
    """The checkpoint of three steps with a slow generator."""
    trainer = tiny_trainer(generator_optimizer=SLOW)
    trainer.fit([tiny_images()], steps=3)
    trainer.save(tmp_path / "run.pt")
    return tmp_path / "run.pt"


def rates(trainer):
    """Return the learning rate of each player."""
    return [player.optimizer.param_groups[0]["lr"] for player in trainer.players]


def test_the_error_says_what_to_allow(saved):
    """Every difference is named, with the words to pass; with those the run goes on."""
    other = partial(tiny_trainer, generator_optimizer=FAST, seed=5)
    with pytest.raises(ValueError) as caught:
        other().resume(saved)
    first, *lines, remedy = str(caught.value).splitlines()
    assert first == f"{saved}: this checkpoint belongs to a different run:"
    assert lines == [
        "  seed: 999 when saved, 5 now",
        "  generator optimizer.lr: 0.0001 when saved, 0.0005 now",
    ]
    assert remedy.endswith("trainer.resume(..., allow=['seed', 'generator optimizer.lr'])")
    with pytest.raises(ValueError, match="different run:\n  seed: 999 when saved, 5 now\nUse"):
        other().resume(saved, allow="generator optimizer.lr")
    assert other().resume(saved, allow=["seed", "generator optimizer.lr"]) == saved


@pytest.mark.parametrize(
    ("allow", "lines"),
    [
        (
            "gen optimizer.lr",
            ["  allow='gen optimizer.lr' is none of these; did you mean 'generator optimizer.lr'?"],
        ),
        (["discriminator.lr", "batches.seed"], []),
        ("hooks", []),
    ],
)
def test_a_misspelt_word_is_told(allow, lines, saved):
    """What was meant is told, for a word that allows nothing; others may be for other runs."""
    with pytest.raises(ValueError, match="different run") as caught:
        tiny_trainer(generator_optimizer=FAST).resume(saved, allow=allow)
    assert str(caught.value).splitlines()[2:-1] == lines


def test_words_that_are_none_are_refused(saved):
    """What may differ is told by names."""
    with pytest.raises(
        TypeError, match="allow must be a str or a list of them, got 5; use names from"
    ):
        tiny_trainer().resume(saved, allow=5)
    assert tiny_trainer(seed=5, generator_optimizer=SLOW).resume(saved, allow={"seed"}) == saved
    assert tiny_trainer(generator_optimizer=SLOW).resume(saved, allow=None) == saved


@pytest.mark.parametrize("allow", ["generator optimizer.lr", "generator optimizer", "generator"])
def test_an_allowed_learning_rate_is_the_new_one(allow, saved, tmp_path, caplog):
    """It is used and saved; weights and moments go on; a rate that is not allowed is as saved."""
    before = tiny_trainer(generator_optimizer=SLOW)
    before.resume(saved)
    trainer = tiny_trainer(generator_optimizer=FAST)
    trainer.resume(saved, allow=allow)
    assert rates(trainer) == [2e-4, 5e-4]
    assert_identical(fingerprint(before), fingerprint(trainer))
    assert "'generator optimizer.lr': '0.0001 when saved, 0.0005 now'" in caplog.text
    trainer.fit([tiny_images()], steps=4)
    trainer.save(tmp_path / "next.pt")
    again = tiny_trainer(generator_optimizer=FAST)
    again.resume(tmp_path / "next.pt")
    assert rates(again) == [2e-4, 5e-4]


def test_a_rate_that_does_not_differ_is_the_saved_one(saved, tmp_path):
    """What a hook has made of a rate is not lost because a difference would have been allowed."""
    trainer = tiny_trainer(generator_optimizer=SLOW)
    trainer.resume(saved)
    trainer.players.generator.optimizer.param_groups[0]["lr"] = 0.125
    trainer.save(tmp_path / "next.pt")
    again = tiny_trainer(generator_optimizer=SLOW)
    again.resume(tmp_path / "next.pt", allow="generator optimizer.lr")
    assert rates(again) == [2e-4, 0.125]


def test_another_optimizer_begins_anew(saved):
    """Its options are its own, and the moments of another class mean nothing to it."""
    trainer = tiny_trainer(generator_optimizer=partial(SGD, lr=0.5, momentum=0.9))
    trainer.resume(saved, allow="generator optimizer")
    assert rates(trainer) == [2e-4, 0.5]
    assert not trainer.players.generator.optimizer.state
    trainer.fit([tiny_images()], steps=4)


def in_two_groups(parameters):
    """Return an optimizer in which the first parameter has a rate of its own."""
    first, *rest = parameters
    return Adam([{"params": [first], "lr": 0.5}, {"params": rest}], lr=1e-4, betas=(0.5, 0.999))


def test_other_groups_keep_the_moments(saved):
    """Moments go by the names of parameters; options are the new groups'."""
    before = tiny_trainer(generator_optimizer=SLOW)
    before.resume(saved)
    trainer = tiny_trainer(generator_optimizer=in_two_groups)
    with pytest.raises(ValueError, match=r"generator optimizer\.group 1: missing when saved"):
        trainer.resume(saved)
    trainer.resume(saved, allow="generator optimizer")
    groups = trainer.players.generator.optimizer.param_groups
    assert [group["lr"] for group in groups] == [0.5, 1e-4]
    assert_identical(fingerprint(before), fingerprint(trainer))


def test_a_moving_average_may_begin_late(saved):
    """It begins at the weights that were saved."""
    trainer = tiny_trainer(generator_optimizer=SLOW, ema_half_life=50)
    trainer.resume(saved, allow="generator.ema_half_life")
    average = trainer.players.generator.average.net
    weights = zip(average.parameters(), trainer.generator.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in weights)


def test_nets_of_other_shapes_are_never_allowed(saved):
    """Whatever is allowed, the weights have to fit; nothing is changed."""
    torch.manual_seed(0)
    generator = tinygan.DCGANGenerator(8, latent_dim=5, base_channels=8)
    trainer = tinygan.GANTrainer(generator, tiny_trainer().discriminator)
    before = fingerprint(trainer)
    with pytest.raises(ValueError, match="No other nets can go on from it") as caught:
        trainer.resume(saved, allow=["generator", "generator optimizer"])
    assert "generator.main.0.weight: (5, " in str(caught.value)
    assert "allow=" not in str(caught.value)
    assert_identical(before, fingerprint(trainer))


def with_generator(name, module):
    """Return a trainer with a generator of one's own class."""

    class Net(nn.Sequential):
        pass

    Net.__module__, Net.__qualname__ = module, name
    torch.manual_seed(0)
    generator = Net(nn.Linear(5, 192), nn.Tanh(), nn.Unflatten(1, (3, 8, 8)))
    discriminator = nn.Sequential(nn.Flatten(), nn.Linear(192, 1), nn.Flatten(0))
    return tinygan.GANTrainer(with_latent_dim(generator, 5), discriminator)


def test_a_net_may_move_to_another_module(tmp_path):
    """A script's net, imported by a notebook, is the same one; another class must be allowed."""
    trainer = with_generator("Net", "__main__")
    trainer.fit([tiny_images()], steps=1)
    trainer.save(tmp_path / "run.pt")
    assert with_generator("Net", "my.nets").resume(tmp_path / "run.pt")
    other = with_generator("Other", "my.nets")
    with pytest.raises(ValueError, match="generator: Net when saved, Other now"):
        other.resume(tmp_path / "run.pt")
    assert other.resume(tmp_path / "run.pt", allow="generator")


def loaded(batch_size, steps, folder, allow=()):
    """Train on 20 images from where a folder stands; return the trainer and what it saw."""
    seen = []
    look = tinygan.Hook()
    look.on_step_start = lambda trainer: seen.extend(trainer.real[:, 0, 0, 0].tolist())
    trainer = tiny_trainer(hooks=[look, hooks.Checkpoint(folder)])
    trainer.resume(folder, allow=allow)
    trainer.fit(data.Loader(tiny_images(20), batch_size), steps=steps)
    return trainer, seen


def test_another_batch_size_goes_on_at_the_same_image(tmp_path, caplog):
    """No image of the epoch is seen twice or left out; the next checkpoint has the new size."""
    _, seen = loaded(6, 2, tmp_path)
    with pytest.raises(ValueError, match=r"batches\.batch_size: 6 when saved, 4 now"):
        loaded(4, 4, tmp_path)
    trainer, more = loaded(4, 4, tmp_path, allow="batches.batch_size")
    assert "the epoch goes on at batch 3" in caplog.text
    assert (trainer.epoch, trainer.batch) == (1, 0)
    assert sorted(seen + more) == sorted(tiny_images(20)[:, 0, 0, 0].tolist())
    loaded(4, 5, tmp_path)


def loader(**changed):
    """Return batches of 4 of 20 images, but for what is changed."""
    return data.Loader(tiny_images(20), **{"batch_size": 4, **changed})


@pytest.mark.parametrize(
    ("done", "before", "after", "given"),
    [
        (3, {}, {"batch_size": 6}, 2),
        (3, {}, {"batch_size": 5}, 0),  # no batch of 5 begins after 12 images
        (0, {}, {"batch_size": 5}, 0),
        (5, {}, {"batch_size": 6}, 4),  # only the epoch's end is still to come
        (2, {"batch_size": 8, "drop_last": True}, {"batch_size": 6}, 4),  # likewise
        (3, {}, {"flip": True}, 3),
        (3, {}, {"seed": 1}, 0),  # another order
        (3, {}, {"shuffle": False}, 0),
    ],
)
def test_where_an_epoch_goes_on_with_other_batches(done, before, after, given, caplog):
    """At the same image if a batch begins there, or else it starts over, and it says so."""
    state = loader(**before).state_dict() | {"given": done}
    place, found = batches.fitting(loader(**after), state, done, ["batches"])
    assert (found, place["given"]) == (given, given)
    loader(**after).load_state_dict(place)
    assert f"the epoch goes on at batch {given}" in caplog.text


def test_other_batches_in_the_middle_of_an_epoch_are_refused_at_once():
    """In one process too; before any hook is called. Between epochs others may follow."""
    heard = []
    listens = tinygan.Hook()
    listens.on_fit_start = lambda trainer: heard.append(trainer.step)
    trainer = tiny_trainer(hooks=[listens])
    trainer.fit(loader(), steps=3)
    with pytest.raises(ValueError, match=r"batches\.batch_size: 4 when saved, 5 now"):
        trainer.fit(loader(batch_size=5), steps=4)
    assert heard == [0]
    trainer.fit(loader(), epochs=1)
    trainer.fit(loader(batch_size=5), epochs=2)
    assert (heard, trainer.step) == ([0, 3, 5], 9)


class Count(tinygan.Hook):
    """Counts steps."""

    def __init__(self, size=1, folder=None):
        self.steps, self.settings, self.folder = 0, {"size": size}, folder

    def on_step_end(self, trainer, report):
        """Count."""
        self.steps += 1

    def state_dict(self):
        """Return the count."""
        return {"steps": self.steps}

    def load_state_dict(self, state):
        """Take it back."""
        self.steps = state["steps"]


def test_other_hooks_may_be_allowed(tmp_path):
    """A hook that is gone, new or set otherwise is named, and one word allows it."""
    trainer = tiny_trainer(hooks=[Count()])
    trainer.fit([tiny_images()], steps=3)
    trainer.save(tmp_path / "run.pt")
    for listed, sentence in (
        ([], "hooks.Count: there when saved, missing now"),
        ([Count(2)], "hooks.Count.size: 1 when saved, 2 now"),
        ([Count(), Count(3)], "hooks.Count-2: missing when saved, there now"),
    ):
        with pytest.raises(ValueError, match=sentence):
            tiny_trainer(hooks=listed).resume(tmp_path / "run.pt")
        tiny_trainer(hooks=listed).resume(tmp_path / "run.pt", allow="hooks")
        assert [hook.steps for hook in listed] == [3, 0][: len(listed)]


def test_hooks_of_one_class_are_matched_by_their_settings():
    """Their order does not matter."""
    trainer = tiny_trainer(hooks=[Count(1), Count(2)])
    trainer.hooks[1].steps = 7
    other = tiny_trainer(hooks=[Count(2), Count(1)])
    other.load_state_dict(trainer.state_dict())
    assert [hook.steps for hook in other.hooks] == [7, 0]


def test_hooks_of_one_class_are_matched_by_their_folders(tmp_path):
    """With other settings too, if these are allowed."""
    trainer = tiny_trainer(hooks=[Count(1, tmp_path / "a"), Count(2, tmp_path / "b")])
    trainer.hooks[1].steps = 7
    trainer.save(tmp_path / "run.pt")
    other = tiny_trainer(hooks=[Count(3, tmp_path / "b"), Count(4, tmp_path / "a")])
    other.resume(tmp_path / "run.pt", allow="hooks")
    assert [hook.steps for hook in other.hooks] == [7, 0]


@pytest.mark.parametrize("moved", [False, True])
def test_a_second_log_before_the_first_leaves_it_intact(moved, tmp_path):
    """Hooks are told apart by where they write, relative to the checkpoint."""
    run, extra = tmp_path / "run", tmp_path / "extra"

    def train(run, steps, *before):
        trainer = tiny_trainer(hooks=[*before, hooks.JSONLog(run, every=1), hooks.Checkpoint(run)])
        trainer.resume(run)
        trainer.fit([tiny_images()], steps=steps)

    train(run, 3)
    first = (run / "log.jsonl").read_text()
    if moved:
        run = run.rename(tmp_path / "elsewhere")
    train(run, 5, hooks.JSONLog(extra, every=1))
    lines = (run / "log.jsonl").read_text()
    assert lines.startswith(first)
    assert [json.loads(line)["step"] for line in lines.splitlines()] == [1, 2, 3, 4, 5]
    more = (extra / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in more] == [4, 5]
    with pytest.raises(ValueError, match=r"hooks\.JSONLog: there when saved, missing now"):
        train(run, 6)  # without it again


def test_what_was_allowed_stays_allowed_when_the_run_goes_back(tmp_path):
    """The file to go back to may be that of the run before."""
    tiny_trainer(hooks=[hooks.Checkpoint(tmp_path)], generator_optimizer=SLOW).fit(
        data.Loader(tiny_images(20), 4), steps=2
    )
    break_at = {2}

    class Breaks(tinygan.Hook):
        def on_gradients(self, trainer, player):
            if 2 <= trainer.step < 60 and break_at:
                player.gradients()[0].fill_(float("nan"))

        def on_non_finite(self, trainer, error):
            break_at.clear()

    trainer = tiny_trainer(hooks=[Breaks(), hooks.Checkpoint(tmp_path)], generator_optimizer=FAST)
    trainer.resume(tmp_path, allow=["generator optimizer.lr", "batches"])
    trainer.fit(data.Loader(tiny_images(20), 2), steps=60)
    assert (trainer.rollbacks, trainer.step) == (1, 60)
    assert rates(trainer) == [2e-4, 5e-4]


def test_a_new_run_says_that_it_begins(tmp_path, caplog):
    """A folder that is not there may be a typo."""
    with caplog.at_level(logging.WARNING):
        assert tiny_trainer().resume(tmp_path / "typo") is None
    (record,) = caplog.records
    assert record.getMessage() == f"{tmp_path / 'typo'} holds no checkpoint: starting a new run"
    assert record.levelno == logging.WARNING  # or it would not be seen where logging is not set up


def test_the_size_of_a_log_is_no_other_logs(tmp_path):
    """A run that goes on where another run's log is replaces that, as a new run does."""

    def train(folder, steps, *before, seed=999):
        trainer = tiny_trainer(hooks=[hooks.JSONLog(tmp_path / folder, every=1)], seed=seed)
        for file in before:
            trainer.resume(file)
        trainer.fit([tiny_images()], steps=steps)
        return trainer

    train("a", 3).save(tmp_path / "run.pt")
    train("b", 5, seed=5)
    train("b", 4, tmp_path / "run.pt")
    lines = (tmp_path / "b" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [4]
