"""Lower precision and compiled nets: the same run, within what the type can say."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import tinygan
from tinygan._execution.finite import LossScale

from helpers import assert_identical, fingerprint, flat, tiny_images, tiny_trainer


def weights(trainer):
    """Return all weights of both players as one vector."""
    return torch.cat([p.detach().flatten() for x in trainer.players for p in x.module.parameters()])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
def test_gradients_agree_with_those_of_float32(dtype, tolerance):
    """The first step's gradients differ by a few roundings of the lower type, not by more.

    The tolerance is a rounding; some ten layers, forth and back, add up to a few of them.
    """
    found = {}

    class Keep(tinygan.Hook):
        def on_gradients(self, trainer, player):
            if trainer.step == 0:
                grads = [g.clone().flatten() for g in player.gradients()]
                found.setdefault(player.name, []).append(torch.cat(grads).double())

    for arguments in ({}, {"dtype": dtype}):
        trainer = tiny_trainer(hooks=[Keep()], **arguments)
        if trainer.loss_scale is not None:
            trainer.loss_scale.state[0] = 2.0**8  # the first one overflows these nets
        trainer.fit([tiny_images()], steps=1)
    for name, (full, low) in found.items():
        assert 0 < (low - full).norm() / full.norm() < 8 * tolerance, name


def test_autocast_applies_convolutions_in_the_type_and_keeps_weights_and_reports():
    """Convolutions see bfloat16; weights, gradients, moments, losses and samples float32."""
    seen = set()
    lost = []

    def cost(logits):
        lost.append(logits.dtype)
        return logits.square()

    loss = tinygan.losses.Loss(cost, cost, cost)
    trainer = tiny_trainer(dtype=torch.bfloat16, loss=loss)
    for net in (trainer.generator, trainer.discriminator):
        for layer in net.modules():
            if isinstance(layer, (torch.nn.Conv2d, torch.nn.ConvTranspose2d)):
                layer.register_forward_hook(lambda m, given, made: seen.add(made.dtype))
    reports = []
    trainer.hooks = (tinygan.hooks.every(1, lambda trainer, report: reports.append(report)),)
    trainer.fit([tiny_images()], steps=1)

    assert seen == {torch.bfloat16}
    assert set(lost) == {torch.float32}
    assert trainer.dtype == torch.bfloat16
    assert {t.dtype for t in fingerprint(trainer).values()} == {torch.float32, torch.int64}
    assert all(p.grad.dtype == torch.float32 for p in trainer.generator.parameters())
    assert trainer.real.dtype == trainer.sample(2).dtype == torch.float32
    assert reports[0]["loss_discriminator"].dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_resumed_run_is_the_uninterrupted_one(dtype, tmp_path):
    """In lower precision too, the loss scale included."""
    images = [*tiny_images().split(8)]
    whole = tiny_trainer(dtype=dtype)
    whole.fit(images, epochs=4)
    first = tiny_trainer(dtype=dtype)
    first.fit(images, steps=5)
    first.save(tmp_path / "half.pt")
    second = tiny_trainer(dtype=dtype)
    second.resume(tmp_path / "half.pt")
    second.fit(images, epochs=4)
    assert_identical(fingerprint(whole), fingerprint(second))
    assert flat(whole.state_dict()) == flat(second.state_dict())


def test_the_loss_scale_is_saved_for_float16_alone():
    """Other runs' states hold none, and a float16 run's holds its own."""
    assert "loss_scale" not in tiny_trainer().state_dict()
    trainer = tiny_trainer(dtype=torch.float16)
    trainer.loss_scale.state.copy_(torch.tensor([4.0, 7.0]))
    other = tiny_trainer(dtype=torch.float16)
    other.load_state_dict(trainer.state_dict())
    assert other.loss_scale.state.tolist() == [4.0, 7.0]


def test_nets_that_are_in_float16_themselves_have_no_loss_scale():
    """It belongs to autocast: nothing is skipped to find it, and their states hold none."""
    nets = (tinygan.DCGANGenerator(8).half(), tinygan.DCGANDiscriminator(8).half())
    trainer = tinygan.GANTrainer(*nets)
    assert trainer.dtype == torch.float16
    assert trainer.loss_scale is None
    assert "loss_scale" not in trainer.state_dict()


def test_a_run_of_another_type_is_refused():
    """A state of a bfloat16 run is not gone on from in float32."""
    state = tiny_trainer(dtype=torch.bfloat16).state_dict()
    with pytest.raises(ValueError, match=r"dtype: torch\.bfloat16 when saved, torch\.float32 now"):
        tiny_trainer().load_state_dict(state)


@pytest.mark.parametrize(("weights_in", "dtype"), [("float", "int8"), ("double", "bfloat16")])
def test_types_that_nets_cannot_be_applied_in_are_refused(weights_in, dtype):
    """The error names the value and the rule."""
    nets = (tinygan.DCGANGenerator(8), tinygan.DCGANDiscriminator(8))
    with pytest.raises(ValueError, match=rf"dtype must be torch\.float.* got torch\.{dtype}; "):
        tinygan.GANTrainer(
            *(getattr(net, weights_in)() for net in nets),
            execution=tinygan.Execution(dtype=getattr(torch, dtype)),
        )


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 5))
def test_the_loss_scale_follows_its_rule(steps, patience):
    """It halves with each step that is not finite, and doubles after so many that are."""
    scale = LossScale(torch.device("cpu"))
    scale.PATIENCE = patience
    expected, good = scale.START, 0
    for finite in steps:
        scale.update(torch.tensor(finite))
        good = good + 1 if finite else 0
        expected = expected if finite else expected / 2
        if good == patience:
            expected, good = expected * 2, 0
        assert scale.state.tolist() == [expected, good]


def test_the_loss_scale_does_not_grow_to_infinity():
    """From there it could not come back: half of infinity is infinity."""
    scale = LossScale(torch.device("cpu"))
    scale.state.copy_(torch.tensor([2.0**127, scale.PATIENCE - 1.0]))
    scale.update(torch.tensor(True))
    assert scale.state.tolist() == [2.0**127, 0.0]


def test_steps_that_float16_skips_are_told_for_what_they_are(caplog):
    """The warning says that a loss scale is being found, and what it is."""
    trainer = tiny_trainer(dtype=torch.float16)
    trainer.loss_scale.state[0] = 2.0**40
    trainer.fit([tiny_images()], epochs=1)
    (record,) = caplog.records
    assert record.getMessage().endswith(
        "gradients were not. In float16 that is how the loss scale is found; it is 5.49756e+11 now."
    )


def test_float16_gradients_are_those_of_the_loss_when_hooks_see_them():
    """What lies in .grad is not multiplied by the loss scale, whatever that is."""
    norms = []

    class Keep(tinygan.Hook):
        def on_gradients(self, trainer, player):
            norms.append(float(torch.cat([g.flatten() for g in player.gradients()]).norm()))

    for scale in (2.0**4, 2.0**10):
        trainer = tiny_trainer(hooks=[Keep()], dtype=torch.float16)
        trainer.loss_scale.state[0] = scale
        trainer.fit([tiny_images()], steps=1)
    assert norms[:2] == pytest.approx(norms[2:], rel=0.02)


@pytest.fixture(
    params=[pytest.param(name, marks=pytest.mark.slow) for name in ("aot_eager", "inductor")]
)
def backend(request, monkeypatch):
    """Compile by this backend: seconds for the first, a minute for the one that users get."""
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=request.param))
    yield request.param
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_nets_train_as_eager_ones(backend):
    """Both players move, by the same gradients up to rounding; a short last batch is no trouble."""
    images = tiny_images(20)
    batches = [images[:8], images[8:16], images[16:]]
    eager, compiled = tiny_trainer(), tiny_trainer(compile=True)
    before = {player.name: weights_of(player) for player in compiled.players}
    for trainer in (eager, compiled):
        trainer.fit(batches, steps=6)
    for player in compiled.players:
        assert not torch.equal(before[player.name], weights_of(player))
    torch.testing.assert_close(weights(compiled), weights(eager), rtol=1e-4, atol=1e-5)
    for name, buffer in compiled.discriminator.named_buffers():
        torch.testing.assert_close(buffer, dict(eager.discriminator.named_buffers())[name])


def weights_of(player):
    """Return a player's weights as one vector, copied."""
    return torch.cat([p.detach().flatten() for p in player.module.parameters()])


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("wanted", [False, True])
def test_cudnn_tries_its_algorithms_while_a_run_trains(monkeypatch, before, wanted):
    """If that is asked for; what the whole program has chosen is as it was, after an error too."""
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", before)
    seen = []

    class Look(tinygan.Hook):
        def on_step_end(self, trainer, report):
            seen.append(torch.backends.cudnn.benchmark)
            if trainer.step == 2:
                raise OSError

    trainer = tiny_trainer(hooks=[Look()], cudnn_benchmark=wanted)
    trainer.fit([tiny_images()], steps=1)
    assert torch.backends.cudnn.benchmark == before
    with pytest.raises(OSError):
        trainer.fit([tiny_images()], steps=2)
    assert torch.backends.cudnn.benchmark == before
    assert seen == [before or wanted] * 2


@pytest.fixture
def sizes(monkeypatch):
    """Return the sizes of all that compiled nets are given."""
    found = []

    def compiled(net, **options):
        return lambda *given: found.append(len(given[0])) or net(*given)

    monkeypatch.setattr(torch, "compile", compiled)
    return found


def test_an_epochs_short_last_batch_is_not_compiled(sizes):
    """Neither is it when a run that goes on begins with it."""
    images = tiny_images(20)
    batches = [images[:8], images[8:16], images[16:]]
    trainer = tiny_trainer(compile=True)
    trainer.fit(batches, steps=2)
    assert sizes == [8] * 2 * 4  # in each step once by G and three times by D
    trainer.fit(batches, steps=4)
    assert sizes == [8] * 3 * 4
    del sizes[:]
    gone_on_with(batches)
    assert sizes == []


def gone_on_with(batches):
    """Return a run of compiled nets that begins with the third batch, and ends with it."""
    stopped, later = tiny_trainer(), tiny_trainer(compile=True)
    stopped.fit(batches, steps=2)
    later.load_state_dict(stopped.state_dict())
    later.fit(batches, steps=3)
    return later


class Own(Sequence):
    """Batches that do not say their sizes."""

    def __init__(self, batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]


def test_all_sizes_are_compiled_if_it_is_not_known_which_is_short(sizes):
    """So a resumed run compiles for the same batches as one that was not interrupted."""
    images = tiny_images(20)
    batches = Own([images[:8], images[8:16], images[16:]])
    tiny_trainer(compile=True).fit(batches, steps=3)
    assert sizes == [8] * 8 + [4] * 4
    del sizes[:]
    gone_on_with(batches)
    assert sizes == [4] * 4
    del sizes[:]
    # An epoch whose only batch is smaller than the batch size has no smaller one.
    tiny_trainer(compile=True).fit(DataLoader(images[:5], batch_size=8), steps=2)
    assert sizes == [5] * 8


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_generator_phases_leave_the_discriminators_gradients(backend):
    """D's .grad is, after G's phase, that of its own, and every weight of D still wants one."""
    kept = {}

    class Keep(tinygan.Hook):
        def on_gradients(self, trainer, player):
            if player.name == "discriminator":
                kept.update((n, p.grad.clone()) for n, p in player.module.named_parameters())

    trainer = tiny_trainer(hooks=[Keep()], compile=True)
    trainer.fit([tiny_images()], steps=3)
    for name, parameter in trainer.discriminator.named_parameters():
        assert torch.equal(parameter.grad, kept[name]), name
        assert parameter.requires_grad, name


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_run_goes_on_as_an_eager_one(backend):
    """How nets are applied is the choice of the machine: the state has the nets' own names."""
    compiled = tiny_trainer(compile=True)
    compiled.fit([tiny_images()], steps=2)
    eager = tiny_trainer()
    eager.load_state_dict(compiled.state_dict())
    eager.fit([tiny_images()], steps=4)
    assert eager.step == 4


def test_spectral_norm_is_found_in_the_weights_own_type(monkeypatch):
    """Its power iteration runs outside autocast, which on GPUs would give it three digits."""
    seen = []
    mv = torch.mv

    def noted(*given, **named):
        seen.append(torch.is_autocast_enabled("cpu"))
        return mv(*given, **named)

    monkeypatch.setattr(torch, "mv", noted)
    torch.manual_seed(0)
    discriminator = tinygan.DCGANDiscriminator(8, base_channels=4, norm=None)
    trainer = tinygan.GANTrainer(
        tinygan.DCGANGenerator(8, base_channels=4),
        tinygan.spectral_norm(discriminator.apply(tinygan.weights_init)),
        execution=tinygan.Execution(dtype=torch.bfloat16),
    )
    seen.clear()
    trainer.fit([tiny_images()], steps=2)
    assert set(seen) == {False}


@pytest.mark.filterwarnings("ignore:a penalty of a discriminator with batch norm")
def test_penalties_compute_no_gradients_for_images():
    """Of a penalty's cost only the gradients of D's weights are taken, not those of its images."""
    inputs = []

    def cost(d, real, fake):
        images = real.detach().requires_grad_()
        images.register_hook(inputs.append)
        return d(images).square()

    tiny_trainer(penalties=tinygan.penalties.Penalty(cost)).fit([tiny_images()], steps=1)
    assert inputs == []
