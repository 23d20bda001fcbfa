"""The algorithm beside loops by hand, its turns and parts, and the rules that it must keep."""

from __future__ import annotations

import gc
import json
import weakref
from collections import Counter
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import tinygan
from tinygan import algorithms, data, hooks, losses, penalties
from tinygan._execution import finite
from tinygan.batch import Batch
from tinygan.nets.applied import Applied

import recipes
from helpers import assert_identical, fingerprint, tiny_images, tiny_trainer, with_latent_dim

ADAM = partial(torch.optim.Adam, lr=2e-4, betas=(0.5, 0.999))


def nets(norm=nn.BatchNorm2d):
    """Return G and D of 16 pixels in float64, the same each time."""
    torch.manual_seed(0)
    made = (
        tinygan.DCGANGenerator(16, latent_dim=5, base_channels=4, norm=norm),
        tinygan.DCGANDiscriminator(16, base_channels=4, norm=norm),
    )
    return [net.apply(tinygan.weights_init).double() for net in made]


def batches(sizes=(12, 12, 6)):
    """Return batches of images of 16 pixels in float64."""
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(n, 3, 16, 16, generator=generator).double() * 2 - 1 for n in sizes]


def by_hand(nets, batches, noise, d_steps, steps):
    """Train as algorithm 1 is written, with plain PyTorch."""
    generator, discriminator = nets
    adam_g, adam_d = ADAM(generator.parameters()), ADAM(discriminator.parameters())
    for step in range(steps):
        real = batches[step % len(batches)]
        z = noise(step, len(real))
        for turn in range(d_steps):
            discriminator.zero_grad()
            F.softplus(-discriminator(real[turn::d_steps])).mean().backward()
            fakes = generator(z[turn::d_steps])
            F.softplus(discriminator(fakes.detach())).mean().backward()
            adam_d.step()
        generator.zero_grad()
        F.softplus(-discriminator(fakes)).mean().backward()
        adam_g.step()


@pytest.mark.parametrize("d_steps", [1, 3])
def test_twenty_steps_agree_with_a_loop_by_hand(d_steps):
    """Weights and batch norm's statistics agree to 1e-8, with several turns of D too."""
    ours, theirs = nets(), nets()
    trainer = tinygan.GANTrainer(*ours, d_steps=d_steps)
    trainer.fit(batches(), steps=20)
    by_hand(theirs, batches(), trainer.noise, d_steps, 20)
    for net, twin in zip(ours, theirs):
        for name, value in twin.state_dict().items():
            torch.testing.assert_close(net.state_dict()[name], value, rtol=0, atol=1e-8, msg=name)


PARTS = {
    "plain": {},
    "several turns": {"d_steps": 3},
    "penalties": {
        "penalties": [
            penalties.r1(1.0, every=2),
            penalties.r2(1.0, every=2, step=0.01),
            penalties.wgan_gp(every=3),
        ]
    },
    "pairs": {"loss": losses.relativistic, "ema_half_life": 50},
    "augmented": {"augment": tinygan.augmentations.diff_augment()},
}


@pytest.mark.parametrize("name", PARTS)
def test_parts_are_the_whole(name):
    """Without batch norm a batch in parts ends where the whole batch does, to 1e-10."""
    ends, rows = [], []
    for accumulate in (1, 4):
        seen = []
        keep = hooks.every(1, lambda trainer, report, seen=seen: seen.append(report.floats()))
        trainer = tinygan.GANTrainer(
            *nets(norm=None), accumulate=accumulate, hooks=[keep], **PARTS[name]
        )
        trainer.fit(batches((24, 24, 12)), steps=6)
        ends.append(fingerprint(trainer))
        rows.append(seen)
    for end, row in zip(ends[1:], rows[1:]):
        far = {k: (end[k] - ends[0][k]).abs().max().item() for k in end}
        assert {k: most for k, most in far.items() if most > 1e-10} == {}
        for one, other in zip(row, rows[0], strict=True):
            assert one == pytest.approx(other, rel=1e-9)


class Alive:
    """Counts the bytes that graphs keep for their backward passes, and the most of them."""

    def __init__(self):
        self.now = self.most = 0

    def pack(self, tensor):
        """Count a tensor in."""
        holder, size = _Holder(tensor), tensor.numel() * tensor.element_size()
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(holder, self._drop, size)
        return holder

    def _drop(self, size):
        self.now -= size


class _Holder:
    def __init__(self, tensor):
        self.tensor = tensor


def test_parts_need_less_memory():
    """Four parts keep a third of what the whole batch keeps for its backward passes, or less."""
    most = []
    for accumulate in (1, 4):
        trainer = tinygan.GANTrainer(*nets(), accumulate=accumulate)
        alive = Alive()
        # From the beginning on: the rehearsal must not need more.
        with torch.autograd.graph.saved_tensors_hooks(alive.pack, lambda holder: holder.tensor):
            trainer.fit(batches((32,)), steps=2)
        gc.collect()
        most.append(alive.most)
    assert most[1] < most[0] / 3


def test_parts_compute_again_only_what_waits_for_a_later_phase():
    """For each part that is G, whose fakes of D's phase are used in its own; and D never is."""
    passes, found = Counter(), []

    class Count(tinygan.Hook):
        def on_step_start(self, trainer):  # after the checks and the rehearsal
            passes.clear()

        def on_step_end(self, trainer, report):
            found.append(dict(passes))

    trainer = tinygan.GANTrainer(*nets(), accumulate=2, hooks=[Count()])
    for player in trainer.players:
        player.module.register_forward_pre_hook(lambda *_, name=player.name: passes.update([name]))
    trainer.fit(batches((12,)), steps=2)
    assert found == [{"discriminator": 2 * 3, "generator": 2 * 2}] * 2


def test_parts_move_buffers_once_for_each():
    """What is computed again for its gradient moves no running statistics a second time."""
    trainer = tinygan.GANTrainer(*nets(), accumulate=2)
    trainer.fit(batches((12,)), steps=3)
    counts = [b for n, b in trainer.generator.named_buffers() if n.endswith("batches_tracked")]
    assert [int(count) for count in counts] == [2 * 3] * len(counts)


@pytest.mark.parametrize("name", ["several turns", "penalties"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_run_is_the_same_run(name, accumulate, tmp_path):
    """With several turns and with parts: stopped in mid-epoch it ends in the same bits."""

    def trainer():
        made = recipes.nets(norm=False)
        return tinygan.GANTrainer(*made, accumulate=accumulate, **PARTS[name])

    images = [batch for batch, _ in recipes.batches()]
    images = [torch.cat([images[0], images[1][:4]]), images[1][:6], images[0][:6]]
    whole, first, second = (trainer() for _ in range(3))
    whole.fit(images, steps=8)
    first.fit(images, steps=4)
    first.save(tmp_path / "run.pt")
    second.resume(tmp_path / "run.pt")
    second.fit(images, steps=8)
    assert_identical(fingerprint(whole), fingerprint(second))


def test_turns_have_examples_and_noise_of_their_own():
    """Of three turns each sees a third of the images, and other z; together they see all."""
    seen = {"real": [], "z": []}
    generator, discriminator = nets()
    generator.register_forward_pre_hook(
        lambda net, given: None if trainer.between_steps else seen["z"].append(given[0].clone())
    )
    discriminator.register_forward_pre_hook(
        lambda net, given: None if trainer.between_steps else seen["real"].append(given[0].clone())
    )
    trainer = tinygan.GANTrainer(generator, discriminator, d_steps=3)
    [images] = batches((12,))
    trainer.fit([images], steps=1)
    turns = seen["real"][0:6:2]
    assert sorted(x[0, 0, 0].item() for turn in turns for x in turn) == sorted(
        images[:, 0, 0, 0].tolist()
    )
    assert torch.cat(seen["z"]).unique(dim=0).shape == (12, 5)
    assert trainer.images == 12


def test_what_does_not_fill_turns_is_left_out():
    """Of a short last batch of 7, two turns see 6; one that fills none is passed over."""
    trainer = tinygan.GANTrainer(*nets(norm=None), d_steps=2)
    sizes = []
    trainer.discriminator.register_forward_pre_hook(
        lambda net, given: None if trainer.between_steps else sizes.append(len(given[0]))
    )
    trainer.fit(batches((12, 7, 1)), epochs=1)
    assert sizes == [6, 6, 6, 6, 6, 3, 3, 3, 3, 3]
    assert (trainer.step, trainer.epoch) == (2, 1)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"d_steps": 5}, "must be a multiple of d_steps * accumulate = 5 * 1, and each part"),
        ({"accumulate": 8}, "each part must hold at least 1, got 12; for each rank use 8."),
        ({"d_steps": 2, "accumulate": 4}, "of d_steps * accumulate = 2 * 4, and each part"),
    ],
)
def test_turns_and_parts_must_divide_the_batch(arguments, sentence):
    """Both are named with the batch's size, before the first step."""
    trainer = tinygan.GANTrainer(*nets(), **arguments)
    with pytest.raises(ValueError) as error:
        trainer.fit(batches(), epochs=1)
    assert sentence in str(error.value)
    assert trainer.step == 0


@pytest.mark.parametrize("name", ["d_steps", "accumulate"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_counts(name, value):
    """What is no count is refused when the trainer is made."""
    with pytest.raises(ValueError, match=f"{name} must be"):
        tinygan.GANTrainer(*nets(), **{name: value})


def test_every_statistic_is_reported_by_name(tmp_path):
    """In each row: both losses, D's probabilities, and each penalty in the steps that pay it."""
    trainer = tinygan.GANTrainer(
        *recipes.nets(norm=False),
        penalties=[penalties.r1(3.0, every=2), penalties.r2(1.0, every=1)],
        hooks=[hooks.JSONLog(tmp_path)],
    )
    trainer.fit([batch for batch, _ in recipes.batches()], steps=4)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    counters = {"step", "epoch", "images"}
    always = {"loss_discriminator", "loss_generator", "d_real", "d_fake", "d_fake_after", "r2"}
    assert [set(row) - counters for row in rows] == [always | {"r1"}, always] * 2


def test_a_penalty_is_reported_as_it_is():
    """Its mean, without the factor of a lazy one, and apart from D's loss."""
    cost = penalties.Penalty(lambda d, real, fake: 0 * d(real) + 5.0, every=2, name="five")
    rows = []
    keep = hooks.every(1, lambda trainer, report: rows.append(report.floats()))
    tiny = recipes.nets(norm=False)
    tinygan.GANTrainer(*tiny, penalties=cost, hooks=[keep]).fit([recipes.batches()[0][0]], steps=1)
    assert rows[0]["five"] == 5.0
    assert rows[0]["loss_discriminator"] == pytest.approx(1.386, abs=0.01)


# Games of two linear nets, to break a rule with.


def game(algorithm, *, sizes=(2, 2), **arguments):
    """Return a trainer of two linear nets ``a`` and ``b``, and a batch for it."""
    torch.manual_seed(0)
    players = [tinygan.Player(name, nn.Linear(2, size), ADAM) for name, size in zip("ab", sizes)]
    return tinygan.Trainer(players, algorithm, **arguments)


def fine(players, batch):
    """Let both learn to give 0."""
    (x,) = batch
    players.a.pay(players.a(x).square())
    yield players.a
    players.b.pay(players.b(x).square())
    players.b.log(size=players.b(x).abs())
    yield players.b


def nothing(players, batch):
    """Yield nothing."""
    yield from ()


def no_player(players, batch):
    """Yield a net."""
    (x,) = batch
    players.a.pay(players.a(x).square())
    yield players.a.module


def no_generator(players, batch):
    """Return instead of yielding."""
    return [players.a]


def never_b(players, batch):
    """Leave a player out."""
    (x,) = batch
    players.a.pay(players.a(x).square())
    yield players.a


def pays_late(players, batch):
    """Pay behind the last yield."""
    yield from fine(players, batch)
    (x,) = batch
    players.a.pay(players.a(x).square())


def pays_nothing(players, batch):
    """Yield a player that has paid nothing."""
    yield players.a


def pays_a_number(players, batch):
    """Pay what is no tensor."""
    players.a.pay(1.0)
    yield players.a


def pays_without_gradient(players, batch):
    """Pay what was detached."""
    (x,) = batch
    players.a.pay(players.a(x).detach().square())
    yield players.a


def pays_for_another(players, batch):
    """Pay a cost in which the player has no part."""
    (x,) = batch
    players.a.pay(players.b(x).square())
    yield players.a


def pays_twice_for_one_pass(players, batch):
    """Pay two costs of one graph."""
    (x,) = batch
    y = players.a(x)
    players.a.pay(y.square())
    players.a.pay(y.square().exp(), "again")
    yield players.a


def logs_twice(players, batch):
    """Use a name twice in one phase."""
    (x,) = batch
    players.a.log(size=x)
    players.a.log(size=x)
    players.a.pay(players.a(x).square())
    yield players.a


def both_log(players, batch):
    """Use a name for two players."""
    (x,) = batch
    players.a.log(size=x)
    yield from fine(players, batch)


@pytest.mark.parametrize(
    ("algorithm", "kind", "sentence"),
    [
        (nothing, ValueError, "an algorithm must yield each of its players, got one that never y"),
        (no_player, TypeError, "an algorithm must yield its players, got Linear("),
        (no_generator, TypeError, "algorithm must be a generator function of (players, batch), go"),
        (never_b, ValueError, "got one that never yields the b; add `yield players.b` where its"),
        (pays_late, ValueError, "the a must be yielded after it pays, got a payment after its l"),
        (pays_nothing, ValueError, "the a must have gradients when it is yielded, got none; let i"),
        (pays_a_number, TypeError, "the a must pay a tensor, got float; give one cost per example"),
        (pays_without_gradient, ValueError, "the a must pay a cost that its weights can learn fr"),
        (pays_for_another, ValueError, "the a must have gradients when it is yielded, got none"),
        (pays_twice_for_one_pass, ValueError, "the a must pay once for each pass through a net,"),
        (logs_twice, ValueError, "a statistic's name must be used once, got size twice from the "),
        (both_log, ValueError, "a statistic's name must be used once, got size from the a and t"),
    ],
)
def test_an_algorithm_that_breaks_a_rule_is_told_before_the_first_step(algorithm, kind, sentence):
    """The error names what it did; nothing has moved, and no gradient is left."""
    trainer = game(algorithm)
    before = fingerprint(trainer)
    with pytest.raises(kind) as error:
        trainer.fit([torch.ones(4, 2)], steps=1)
    assert sentence in str(error.value)
    assert trainer.step == 0
    assert_identical(before, fingerprint(trainer))


def test_who_is_yielded_is_the_same_in_every_step():
    """An algorithm that leaves a player out in some steps is named when it does, on any rank."""

    def lazy(players, batch):
        (x,) = batch
        players.a.pay(players.a(x).square())
        yield players.a
        if batch.every(2):
            players.b.pay(players.b(x).square())
            yield players.b

    trainer = game(lazy)
    with pytest.raises(ValueError, match="same players in every step, a, b, got its end as number"):
        trainer.fit([torch.ones(4, 2)], steps=4)
    assert trainer.step == 1


def test_a_yield_in_a_block_without_gradients_is_refused():
    """Hooks and updates would run in it."""

    def hidden(players, batch):
        (x,) = batch
        players.a.pay(players.a(x).square())
        with torch.no_grad():
            yield players.a
        players.b.pay(players.b(x).square())
        yield players.b

    with pytest.raises(ValueError, match=r"must yield outside torch\.no_grad\(\) and the like"):
        game(hidden).fit([torch.ones(4, 2)], steps=1)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("name", ["step", "epoch", "images"])
def test_counters_are_no_statistics(name):
    """A statistic of a counter's name would stand in its place in logs."""

    def counting(players, batch):
        players.a.log(**{name: batch.tensors[0]})
        yield from fine(players, batch)

    with pytest.raises(ValueError, match="a statistic must not be called step, epoch, images"):
        game(counting).fit([torch.ones(4, 2)], steps=1)


def test_what_is_logged_is_a_copy():
    """A scalar that is a weight is reported as it was, not as the update has left it."""

    def watched(players, batch):
        players.a.log(bias=players.a.module.bias, positive=batch.tensors[0] > 0)
        yield from fine(players, batch)

    seen = []
    keep = hooks.every(1, lambda trainer, report: seen.append(report.floats()))
    trainer = game(watched, sizes=(1, 1), hooks=[keep])
    trainer.players.a.module.bias = nn.Parameter(torch.tensor(1.0))
    players = [tinygan.Player(p.name, p.module, ADAM) for p in trainer.players]
    tinygan.Trainer(players, watched, hooks=[keep]).fit([torch.ones(4, 2)], steps=1)
    assert seen[0]["bias"] == 1.0
    assert players[0].module.bias != 1.0
    assert seen[0]["positive"] == 1.0


def test_parts_must_divide_each_turn():
    """Turns of unequal parts would count examples wrongly."""

    def turning(players, batch):
        for turn in batch.split(5):
            (x,) = turn
            players.a.pay(players.a(x).square())
            yield players.a
        players.b.pay(players.b(x).square())
        yield players.b

    with pytest.raises(ValueError, match="accumulate must divide each turn, got 2 parts of 3 exam"):
        game(turning, accumulate=2).fit([torch.ones(12, 2)], steps=1)


def test_the_last_of_many_causes_stands_for_the_rest():
    """With more turns than messages tell apart, trouble in the last is not laid to the first."""

    def many(players, batch):
        for turn in batch.split(20):
            (x,) = turn
            players.a.pay(players.a(x).square())
            yield players.a
        bad = hooks_see.step > 0
        players.b.pay(players.b(x).square() * (float("nan") if bad else 1.0))
        yield players.b

    hooks_see = game(many)
    hooks_see.fit([torch.ones(20, 2)] * 10, steps=3)
    assert hooks_see.skipped.counts.tolist()[1] == finite.MOST_CAUSES - 1


def test_other_arguments_that_break_a_rule():
    """No algorithm, no players, players of one name, that share weights, or that cannot learn."""
    net = nn.Linear(2, 2)
    with pytest.raises(TypeError, match="algorithm must be a generator function"):
        tinygan.Trainer([tinygan.Player("a", net)], "gan")
    with pytest.raises(
        TypeError, match=r"or call a function that returns one, such as tinygan\.algorithms\.gan"
    ):
        tinygan.Trainer([tinygan.Player("a", net)], algorithms.gan)
    with pytest.raises(
        TypeError, match=r"execution must be a tinygan\.Execution, got torch\.bfloat"
    ):
        game(fine, execution=torch.bfloat16)
    with pytest.raises(ValueError, match="players must not be empty"):
        tinygan.Trainer([], fine)
    with pytest.raises(
        TypeError, match=r"players must be a tinygan\.player\.Player or a list of them"
    ):
        tinygan.Trainer([net], fine)
    with pytest.raises(ValueError, match="must have different names, got a, a"):
        tinygan.Trainer([tinygan.Player("a", nn.Linear(2, 2)), tinygan.Player("a", net)], fine)
    with pytest.raises(ValueError, match="got weight, which the a and the b share; freeze it"):
        tinygan.Trainer([tinygan.Player("a", net), tinygan.Player("b", net)], fine)
    with pytest.raises(ValueError, match="the a must have trainable weights, got a Flatten"):
        tinygan.Player("a", nn.Flatten())
    with pytest.raises(
        ValueError, match="a player's name must be a Python name such as 'generator', got 'G-AB'"
    ):
        tinygan.Player("G-AB", net)
    with pytest.raises(AttributeError, match="no player is called c; the players are a, b"):
        game(fine).players.c  # noqa: B018 - it is the look that counts


def test_weights_that_no_optimizer_holds_are_named():
    """A layer that was replaced or unfrozen behind the trainer's back would never learn."""
    trainer = game(fine)
    trainer.players.a.module.weight = nn.Parameter(torch.zeros(2, 2))
    with pytest.raises(
        ValueError, match="the a's optimizer must hold every trainable weight, but it"
    ):
        trainer.fit([torch.ones(4, 2)], steps=1)
    generator, discriminator = recipes.nets()
    generator.main[0].weight.requires_grad_(False)
    trainer = tinygan.GANTrainer(generator, discriminator)
    generator.main[0].weight.requires_grad_(True)
    with pytest.raises(ValueError, match=r"but it lacks main\.0\.weight"):
        trainer.fit([recipes.batches()[0][0]], steps=1)


def test_hooks_belong_to_one_trainer():
    """One or an iterator of them is taken; the same one twice, or another run's, is refused."""
    kept = [hooks.ProgressBar(), hooks.every(1, lambda trainer, report: None)]
    assert tiny_trainer(hooks=kept[0]).hooks == (kept[0],)
    assert tiny_trainer(hooks=(hook for hook in kept)).hooks == tuple(kept)
    with pytest.raises(ValueError, match="got the same ProgressBar twice; leave one out"):
        tiny_trainer(hooks=[kept[0], kept[0]])
    first, second = tiny_trainer(hooks=kept), tiny_trainer(hooks=kept)
    first.fit([tiny_images()], steps=1)
    first.fit([tiny_images()], steps=2)
    with pytest.raises(
        ValueError, match="must watch one trainer's run, got a ProgressBar that already"
    ):
        second.fit([tiny_images()], steps=1)


def test_the_rehearsal_changes_nothing():
    """It moves no weight, buffer or gradient, and draws nothing from the global generators."""
    ends = []
    for again in (False, True):
        trainer = tinygan.GANTrainer(*recipes.nets())
        if again:
            before, state = fingerprint(trainer), torch.get_rng_state()
            images = recipes.batches()[0][0]
            trainer._eager.rehearse(Batch.of(images))
            assert_identical(before, fingerprint(trainer))
            assert torch.equal(state, torch.get_rng_state())
            assert all(p.grad is None for player in trainer.players for p in player.parameters)
        trainer.fit([batch for batch, _ in recipes.batches()], steps=4)
        ends.append(fingerprint(trainer))
    assert_identical(*ends)


class Counting(nn.Module):
    """Counts its passes, in every mode, and multiplies by the count."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        """Multiply."""
        self.count += 1
        return x * self.scale * self.count.clone()


def test_the_rehearsal_puts_back_buffers_that_a_net_writes_in_every_mode():
    """The first step finds them as they were."""
    players = [tinygan.Player(name, Counting()) for name in "ab"]
    trainer = tinygan.Trainer(players, fine)
    trainer._eager.rehearse(Batch.of(torch.ones(2, 2)))
    assert [float(player.module.count) for player in players] == [0, 0]


def test_a_pass_that_is_computed_again_has_the_buffers_that_it_had():
    """Its gradient is that of the first time, and the buffers stay those of the newest pass."""
    gradients = []
    for recompute in (False, True):
        net = Counting()
        applied = Applied(net)
        applied.recompute = recompute
        made = applied(torch.ones(2))
        applied(torch.ones(2))
        made.sum().backward()
        gradients.append(float(net.scale.grad))
        assert float(net.count) == 2
    assert gradients == [2, 2]


def points():
    """Return G and D of points in the plane."""
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), nn.Linear(2, 1)


def sound():
    """Return G and D of sound, (N, 1, 32), whose D judges several places of it."""
    return (
        nn.Sequential(nn.Linear(3, 32), nn.Unflatten(1, (1, 32))),
        nn.Sequential(nn.Conv1d(1, 4, 5, 2), nn.ReLU(), nn.Conv1d(4, 1, 5)),
    )


@pytest.mark.parametrize(("shape", "make"), [((2,), points), ((1, 32), sound)])
def test_examples_need_not_be_images(shape, make, tmp_path):
    """Points and sound train, with logits of several places, and are resumed exactly."""

    def trainer():
        torch.manual_seed(0)
        generator, discriminator = make()
        return tinygan.GANTrainer(with_latent_dim(generator, 3), discriminator, d_steps=2)

    examples = torch.randn(40, *shape, generator=torch.Generator().manual_seed(0)) * 3
    whole, first, second = trainer(), trainer(), trainer()
    whole.fit(data.Loader(examples, 8), epochs=2)
    first.fit(data.Loader(examples, 8), steps=7)
    first.save(tmp_path / "run.pt")
    second.resume(tmp_path / "run.pt")
    second.fit(data.Loader(examples, 8), epochs=2)
    assert_identical(fingerprint(whole), fingerprint(second))
    assert whole.step == 10


def test_games_without_pictures_say_so(tmp_path):
    """A hook that shows images needs ``sample``; with it, it shows what that gives."""
    with pytest.raises(ValueError, match="sample must make the images that hooks show, got None"):
        game(fine, hooks=[hooks.SampleGrid(tmp_path)]).fit([torch.ones(4, 2)], steps=1)
    shown = torch.zeros(4, 3, 8, 8)
    trainer = game(fine, sample=lambda players: shown, hooks=[hooks.SampleGrid(tmp_path)])
    trainer.fit([torch.ones(4, 2)], steps=1)
    assert trainer.pictures() is shown
    assert len(trainer.hooks[0].frames) == 2


@pytest.mark.parametrize(
    ("batch", "kind", "sentence"),
    [
        ({"x": torch.ones(4, 2)}, TypeError, "batches must be tensors (N, ...) or tuples of tens"),
        ([torch.ones(4, 2), torch.ones(3)], ValueError, "must have one first dimension, got [4, 3"),
        ([torch.ones(4, 2), "label"], TypeError, "or tuples of tensors, got Tensor, str; give"),
    ],
)
def test_batches_that_are_none(batch, kind, sentence):
    """What is no table of tensors is named."""
    with pytest.raises(kind) as error:
        game(fine).fit([batch], steps=1)
    assert sentence in str(error.value)


def test_gan_by_the_general_trainer_is_the_gan_trainer():
    """The same nets, players and algorithm give the same bits."""
    one = tinygan.GANTrainer(*nets(), loss=losses.hinge, d_steps=2)
    generator, discriminator = nets()
    players = [
        tinygan.Player("discriminator", discriminator),
        tinygan.Player("generator", generator),
    ]
    other = tinygan.Trainer(players, algorithms.gan(losses.hinge, d_steps=2))
    one.fit(batches(), steps=5)
    other.fit(batches(), steps=5)
    assert_identical(fingerprint(one), fingerprint(other))


class Operators(TorchDispatchMode):
    """Counts what is asked of the device."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        returns = function._schema.returns
        view = bool(returns) and all(
            r.alias_info is not None and not r.alias_info.is_write for r in returns
        )
        self.counts[str(function)] += not view
        return function(*args, **(kwargs or {}))


def test_a_steps_bookkeeping_is_thirty_operators():
    """Beyond a loop by hand with the same losses a step asks for 30 operators or fewer.

    They keep and restore buffers, look for what is not finite, count and report.
    """

    def operators_of(train):
        with Operators() as few:
            train(2)
        with Operators() as many:
            train(6)
        return (sum(many.counts.values()) - sum(few.counts.values())) / 4

    torch.manual_seed(0)
    generator = tinygan.DCGANGenerator(16, base_channels=4).apply(tinygan.weights_init)
    discriminator = tinygan.DCGANDiscriminator(16, base_channels=4).apply(tinygan.weights_init)
    images = torch.rand(4, 3, 16, 16) * 2 - 1
    real = images.contiguous(memory_format=torch.channels_last)
    adams = [ADAM(net.parameters(), fused=True) for net in (generator, discriminator)]
    cost = losses.non_saturating

    def by_hand(steps):
        for _ in range(steps):
            adams[1].zero_grad()
            real_logits = discriminator(real)
            loss_real = cost.real(real_logits).mean()
            loss_real.backward()
            fakes = generator(torch.randn(4, 100))
            fake_logits = discriminator(fakes.detach())
            loss_fake = cost.fake(fake_logits).mean()
            loss_fake.backward()
            total = loss_real.detach() + loss_fake.detach()
            adams[1].step()
            adams[0].zero_grad()
            logits = discriminator(fakes)
            loss = cost.generator(logits).mean()
            loss.backward(inputs=list(generator.parameters()))
            adams[0].step()
            values = [x.detach().sigmoid().mean() for x in (real_logits, fake_logits, logits)]
            torch.stack([total, loss.detach(), *values])

    by_hand(1)
    trainer = tinygan.GANTrainer(generator, discriminator)
    trainer.fit([images] * 20, steps=1)  # an epoch's end would read the count of skipped steps
    more = operators_of(lambda steps: trainer.fit([images] * 20, steps=trainer.step + steps))
    assert more - operators_of(by_hand) <= 30
