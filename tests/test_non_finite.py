"""What is not finite leaves no trace, is told, is gone back from, and ends in bounded steps."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import tinygan
from tinygan import data, hooks, losses
from tinygan._execution.finite import NonFiniteError, SkippedSteps, total
from tinygan.nets.buffers import Buffers
from tinygan.run import CHECK_EVERY, MAX_SKIPPED

from helpers import fingerprint, flat, tiny_images, tiny_trainer

NAN, INF = float("nan"), float("inf")


class Poison(tinygan.Hook):
    """Puts a value that is not finite into one place, in the steps for which ``when`` is true.

    It comes with the trainer's loss and prior, which know of no step: they ask the hook.
    """

    def __init__(self, place, when, value=NAN):
        self.place, self.when, self.value = place, when, value
        self.on = False
        self.between = {}

    def on_step_start(self, trainer):
        """Poison an image."""
        self.on = self.when(trainer)
        if self.on and self.place == "image":
            trainer.real[0, 0, 0, 0] = self.value

    def on_gradients(self, trainer, player):
        """Poison the last parameter's gradient."""
        if self.on and self.place == f"{player.name}'s gradients":
            list(player.module.parameters())[-1].grad.fill_(self.value)

    def on_update(self, trainer, player):
        """Remember the state between the two phases."""
        if player.name == "discriminator":
            self.between = fingerprint(trainer)

    def trainer(self, *more, **arguments):
        """Return a trainer that has this hook, and whose loss and prior are poisoned by it."""

        def poisoned(place, function):
            def call(*given):
                value = function(*given)
                return value * self.value if self.on and self.place == place else value

            return call

        plain = losses.non_saturating
        loss = losses.Loss(
            real=poisoned("loss of real images", plain.real),
            fake=poisoned("loss of fake images", plain.fake),
            generator=poisoned("generator's loss", plain.generator),
        )
        prior = poisoned("noise", tinygan.sampling.normal)
        return tiny_trainer(hooks=[self, *more], loss=loss, prior=prior, **arguments)


def batches():
    """Return an epoch that is longer than the time between two readings of the count."""
    return [tiny_images(4)] * (2 * CHECK_EVERY)


D_PHASE = ("image", "noise", "loss of real images", "loss of fake images")
PLACES = (*D_PHASE, "discriminator's gradients", "generator's loss", "generator's gradients")


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("place", PLACES)
def test_a_step_that_is_not_finite_leaves_no_trace(place, value, fused):
    """Weights, moments and buffers stay bit-identical from where it shows; the next step trains.

    What is not finite in D's phase skips both updates. In G's phase D's weights have moved, as they
    do without it, and stay so; G, and the buffers of both, are as before the step.
    """

    def adam(parameters):
        return torch.optim.Adam(parameters, fused=fused)

    poison = Poison(place, lambda trainer: trainer.step == 3, value)
    trainer = poison.trainer(generator_optimizer=adam, discriminator_optimizer=adam)
    images = [tiny_images()]
    trainer.fit(images, steps=3)
    before = fingerprint(trainer)
    trainer.fit(images, steps=4)
    after = fingerprint(trainer)

    in_d = place in D_PHASE or place == "discriminator's gradients"
    moved = () if in_d else ("discriminator",)
    buffers = {f"{p.name}.{name}" for p in trainer.players for name, _ in p.module.named_buffers()}
    for name in after:
        stays = name.split(".")[0] in moved and name not in buffers
        assert torch.equal(after[name], (poison.between if stays else before)[name]), name
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == (set() if in_d else {"discriminator"})
    assert [bool(player.moved) for player in trainer.players] == [not in_d, False]
    assert trainer.skipped.in_row == 1

    trainer.fit(images, steps=5)
    assert all(player.moved for player in trainer.players)
    assert trainer.skipped.in_row == 0
    assert all(tensor.isfinite().all() for tensor in fingerprint(trainer).values())


def test_skipped_steps_are_told(caplog):
    """One warning per reading says how many were skipped, and why the last of them."""
    poison = Poison("generator's loss", lambda trainer: trainer.step in (3, 7))
    with caplog.at_level(logging.WARNING):
        poison.trainer().fit(batches(), steps=CHECK_EVERY)
    (record,) = caplog.records
    assert record.getMessage() == (
        f"2 of the steps up to step {CHECK_EVERY} were skipped because a loss or gradients were "
        "not finite; the last time, the generator's loss was not."
    )


@pytest.mark.parametrize(
    ("place", "named", "saved"),
    [
        ("image", "discriminator's loss", True),
        ("noise", "discriminator's loss", False),
        ("discriminator's gradients", "discriminator's gradients", False),
        ("generator's loss", "generator's loss", False),
        ("generator's gradients", "generator's gradients", True),
    ],
)
def test_a_permanent_one_ends_with_a_diagnosis(place, named, saved, tmp_path):
    """From step 6 on nothing is finite: the player and the step are named, in bounded steps."""
    poison = Poison(place, lambda trainer: trainer.step >= 5)
    more = [hooks.Checkpoint(tmp_path, every=4)] if saved else []
    trainer = poison.trainer(*more)
    with pytest.raises(
        NonFiniteError, match=rf"the {named} (was|were) not finite at step 6,"
    ) as end:
        trainer.fit(data.Loader(tiny_images(), 4), steps=1000)
    assert trainer.rollbacks == (3 if saved else 0)
    assert getattr(end.value, "__notes__", []) == (
        ["the run has gone back 3 times already"] if saved else []
    )
    assert trainer.step <= CHECK_EVERY


def test_one_before_the_first_checkpoint_ends_the_run(tmp_path):
    """With nothing to go back to the run ends, and says that too."""
    poison = Poison("generator's loss", lambda trainer: trainer.step >= 1)
    trainer = poison.trainer(hooks.Checkpoint(tmp_path, every=500))
    with pytest.raises(NonFiniteError, match="at step 2,") as end:
        trainer.fit([tiny_images()], steps=1000)
    assert end.value.__notes__ == [f"{tmp_path / 'checkpoints'} holds no checkpoint to go back to"]
    assert trainer.step <= CHECK_EVERY


def test_a_run_goes_back_before_the_trouble_and_on_with_other_noise(tmp_path, caplog):
    """It takes up the checkpoint before the first bad step, and logs and pictures go back too."""
    bad = range(13, 60)  # the first time; saves at 15, 20, ... would lie amid them
    heard = []

    class Noise(tinygan.Hook):
        def on_step_start(self, trainer):
            heard.append((trainer.step, trainer.noise(trainer.step, 2)))

    poison = Poison("image", lambda trainer: trainer.rollbacks == 0 and trainer.step in bad)
    trainer = poison.trainer(
        Noise(),
        hooks.ProgressBar(),
        hooks.JSONLog(tmp_path),
        hooks.TutorialLog(tmp_path, every=1),
        hooks.SampleGrid(tmp_path, every=5),
        hooks.LossPlot(tmp_path),
        hooks.Checkpoint(tmp_path, every=5, keep=2),
    )
    with caplog.at_level(logging.WARNING):
        trainer.fit(batches(), steps=62)
    assert "went back to step 10 (rollback 1): the discriminator's loss was not" in caplog.text
    assert (trainer.step, trainer.rollbacks) == (62, 1)
    assert [step for step, _ in heard] == [*range(CHECK_EVERY), *range(10, 62)]
    first, second = (z for step, z in heard if step == 11)
    assert not torch.equal(first, second)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 63))
    assert all(row["loss_generator"] is not None for row in rows)
    assert len((tmp_path / "log.txt").read_text().splitlines()) == 1 + 62


def test_a_run_that_was_stopped_amid_the_trouble_goes_back_before_it(tmp_path, caplog):
    """What a stop or the end has saved there is no file to go back to, and replaces none."""

    def run_to(steps, stop_at=None):
        poison = Poison("image", lambda trainer: trainer.rollbacks == 0 and trainer.step >= 12)
        stop = hooks.every(1, lambda trainer, _: trainer.step == stop_at and trainer.stop("enough"))
        look = hooks.every(1, lambda trainer, _: trainer.step == 11 and seen.append(names()))
        trainer = poison.trainer(stop, look, hooks.Checkpoint(tmp_path, every=5, keep=1))
        trainer.resume(tmp_path)
        trainer.fit(batches(), steps=steps)
        return trainer

    def names():
        return sorted(path.name for path in (tmp_path / "checkpoints").iterdir())

    seen = []
    assert run_to(62, stop_at=40).rollbacks == 0
    assert names() == ["step_000010.pt", "step_000040.pt"]
    with caplog.at_level(logging.WARNING):
        assert run_to(62).rollbacks == 1
    assert "went back to step 10 (rollback 1)" in caplog.text
    assert seen == [["step_000010.pt"]] * 2  # a kill after going back resumes there as well
    assert names() == ["step_000062.pt"]


def test_a_run_that_ends_in_the_trouble_keeps_the_file_before_it(tmp_path):
    """Its last state is for looking into, and the good file stays."""
    poison = Poison("image", lambda trainer: trainer.step >= 12)
    keeper = hooks.Checkpoint(tmp_path, every=5, keep=1, max_rollbacks=0)
    with pytest.raises(NonFiniteError):
        poison.trainer(keeper).fit([tiny_images(4)] * 45, steps=1000)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["emergency_000045.pt", "step_000010.pt"]


def test_a_resumed_run_knows_how_many_steps_were_skipped(tmp_path, caplog):
    """A row of skipped steps that an interruption cuts in two is one row."""
    first = Poison("image", lambda trainer: trainer.step >= 35).trainer()
    first.fit(batches(), steps=45)
    first.save(tmp_path / "run.pt")
    again = Poison("image", lambda trainer: True).trainer()
    again.resume(tmp_path / "run.pt")
    assert again.skipped.in_row == 10
    with caplog.at_level(logging.WARNING):
        again.fit(batches(), steps=46)
    assert caplog.messages[-1].startswith("1 of the steps up to step 46 were skipped")


@pytest.mark.parametrize("fused", [True, False])
def test_momentum_survives_a_first_step_that_is_skipped(fused):
    """SGD's momentum is that of the finite steps alone, though the first of all was none."""

    def sgd(parameters):
        return torch.optim.SGD(parameters, lr=1e-3, momentum=0.9, fused=fused)

    trainer = Poison("image", lambda trainer: trainer.step == 0).trainer(
        generator_optimizer=sgd, discriminator_optimizer=sgd
    )
    trainer.fit(batches(), steps=2)
    for player in trainer.players:
        for parameter in player.module.parameters():
            momentum = player.optimizer.state[parameter]["momentum_buffer"]
            assert torch.equal(momentum, parameter.grad)


def test_a_checkpoint_holds_nothing_that_is_not_finite(tmp_path):
    """Weights that a hook has made infinite are refused by name, and the old file stays."""
    trainer = tiny_trainer()
    trainer.fit([tiny_images()], steps=1)
    trainer.save(tmp_path / "run.pt")
    before = (tmp_path / "run.pt").read_bytes()
    trainer.generator.main[0].weight.data[0, 0, 0, 0] = INF
    with pytest.raises(ValueError, match=r"got players.*\['main\.0\.weight'\] with"):
        trainer.save(tmp_path / "run.pt")
    assert (tmp_path / "run.pt").read_bytes() == before


def masked(**arguments):
    """Return a trainer of nets with infinite masks: buffers, and weights if there is no average."""
    trainer = tiny_trainer()
    for net in (trainer.generator, trainer.discriminator):
        net.register_buffer("mask", torch.full((3, 3), -INF).triu(1))
        if not arguments:
            net.weight = torch.nn.Parameter(torch.tensor([0.0, INF]), requires_grad=False)
    return tinygan.GANTrainer(trainer.generator, trainer.discriminator, **arguments)


def test_what_is_meant_to_be_infinite_stays_and_is_saved(tmp_path):
    """A run with a mask is saved and resumed exactly, and goes back to its checkpoint by itself."""
    spoil = hooks.every(1, lambda trainer, report: None)
    spoil.on_gradients = lambda trainer, player: (
        trainer.rollbacks == 0 and trainer.step >= 2 and player.gradients()[0].fill_(NAN)
    )
    trainer = masked(ema_half_life=50, hooks=[spoil, hooks.Checkpoint(tmp_path, every=2)])
    trainer.fit(batches(), steps=CHECK_EVERY)
    assert trainer.rollbacks == 1
    average = trainer.average.net
    assert torch.equal(average.mask, trainer.generator.mask)
    assert trainer.sample(2).isfinite().all()
    again = masked(ema_half_life=50)
    again.resume(tmp_path)
    again.fit(batches(), steps=CHECK_EVERY + 1)
    trainer.fit(batches(), steps=CHECK_EVERY + 1)
    assert flat(again.state_dict()["players"]) == flat(trainer.state_dict()["players"])


@pytest.mark.parametrize(("value", "name"), [(NAN, "mask"), (INF, "main.0.weight")])
def test_only_what_was_infinite_may_be_so(value, name, tmp_path):
    """A mask that becomes NaN, and weights beside a mask that become infinite, are refused."""
    trainer = masked()
    trainer.fit([tiny_images()], steps=1)
    trainer.generator.state_dict()[name][0, 0] = value
    with pytest.raises(ValueError, match=r"what is saved must be finite, got players.*with values"):
        trainer.save(tmp_path / "run.pt")


def test_no_step_waits_for_the_device():
    """Between two readings of the count, no value is taken from the device to Python."""
    waits = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten._local_scalar_dense.default:
                waits.append(trainer.step)
            return function(*args, **(kwargs or {}))

    trainer = tiny_trainer()
    trainer.fit([tiny_images()], steps=1)  # the first batch is looked at
    watched = hooks.every(1, lambda trainer, _: None)
    trainer.hooks = (watched,)
    with Watch():
        trainer.fit(batches(), steps=CHECK_EVERY - 1)
    assert set(waits) <= {1, CHECK_EVERY - 1}


def test_the_limits_leave_room():
    """A reading comes soon after enough steps in a row were skipped, whatever their beginning."""
    assert MAX_SKIPPED < CHECK_EVERY


def test_the_cause_of_a_row_is_its_first():
    """What was not finite first is what is told, whatever follows from it."""
    skipped = SkippedSteps(torch.device("cpu"))

    def count(*finite):
        skipped.count([torch.tensor(1.0 if f else NAN) for f in finite], torch.tensor(0 in finite))

    for finite in ([1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0]):
        count(*finite)
    assert skipped.counts.tolist() == [3, 1, 3]
    count(1, 1, 1, 1)
    assert skipped.counts.tolist() == [0, 1, 3]
    count(1, 1, 0, 0)
    assert skipped.counts.tolist() == [1, 2, 4]


def all_finite(tensors):
    """Return whether the library takes tensors for finite."""
    return bool(total([torch.zeros(())], tensors).isfinite())


def test_a_buffer_that_a_net_replaces_goes_back_too():
    """The value before the skipped step is there after it, in whatever tensor the net now has."""

    class Averaging(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net
            self.register_buffer("average", torch.ones(()))

        def forward(self, images):
            self.average = 0.9 * self.average + 0.1 * images.detach().mean()
            return self.net(images)

    tiny = tiny_trainer()
    trainer = tinygan.GANTrainer(tiny.generator, Averaging(tiny.discriminator))
    images = tiny_images()
    bad = images.clone()
    bad[0] = NAN
    trainer.fit([images], steps=1)
    before = trainer.discriminator.average.clone()
    trainer.fit([images[:8], bad], steps=3)  # the first batch is checked, the second is not
    assert trainer.skipped.counts.tolist()[2] == 1
    assert trainer.discriminator.average.isfinite()
    assert not torch.equal(trainer.discriminator.average, before)


def test_a_buffer_with_other_memory_goes_back_too():
    """What is kept is found again after a hook has given the buffer another ``.data``."""
    norm = nn.BatchNorm1d(1)
    buffers = Buffers([norm])
    buffers.keep()
    norm.running_mean.data = norm.running_mean.data.clone()
    buffers.keep()
    norm.running_mean.fill_(9)
    buffers.restore_if(torch.tensor(True))
    assert norm.running_mean == 0


@pytest.mark.parametrize("bad", [0.0, NAN])
def test_a_player_whose_gradients_a_hook_drops_stays(bad):
    """Its update is left out, and so is all else of the step if its loss was not finite."""

    class Drop(tinygan.Hook):
        def on_gradients(self, trainer, player):
            player.optimizer.zero_grad()

    trainer = tiny_trainer(hooks=[Drop()])
    before = [p.clone() for player in trainer.players for p in player.parameters]
    images = tiny_images()
    spoilt = images.clone()
    spoilt[0] += bad
    trainer.fit([images, spoilt], steps=2)
    after = [p for player in trainer.players for p in player.parameters]
    assert all(map(torch.equal, before, after))
    assert trainer.skipped.counts.tolist()[2] == (bad != 0)


def test_parameters_that_are_added_to_an_optimizer_are_trained():
    """A net may grow while it is trained: gradients are taken of what the optimizer has."""

    class Grow(tinygan.Hook):
        def on_step_end(self, trainer, report):
            if trainer.step == 1:
                for player in trainer.players:
                    extra = nn.Parameter(torch.ones(()))
                    layer = player.module.main[0]
                    layer.register_parameter("extra", extra)
                    layer.register_forward_hook(lambda net, given, made: made * net.extra)
                    player.optimizer.add_param_group({"params": [("extra", extra)]})

    trainer = tiny_trainer(hooks=[Grow()])
    trainer.fit([tiny_images()], steps=4)
    for player in trainer.players:
        assert player.module.main[0].extra != 1, player.name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_one_value_that_is_not_finite_is_found(dtype, bad):
    """In any type, at any place; many large values are none."""
    values = torch.full((3, 50, 7), 60000.0, dtype=dtype)
    assert all_finite([torch.ones(2, dtype=dtype), values])
    values[1, 20, 3] = bad
    assert not all_finite([torch.ones(2, dtype=dtype), values])


def test_values_whose_squares_overflow_count_as_infinite():
    """Gradients of that size have nothing to say either."""
    assert all_finite([torch.full((10,), 1e18)])
    assert not all_finite([torch.full((10,), 1e30)])
