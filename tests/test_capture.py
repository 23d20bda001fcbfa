"""Captured steps: what is replayed is what would have run, whatever hooks do in between.

On the CPU a stand-in records operators as a CUDA graph does, see recorder.py. The same tests run on
real graphs with ``pytest -m gpu``.
"""

from __future__ import annotations

import logging
from functools import partial
from types import SimpleNamespace

import pytest
import torch

import tinygan
from tinygan import capture, cuda_graphs, penalties

from helpers import assert_identical, bits, fingerprint, tiny_images, tiny_trainer
from recorder import CountingRecorder, Counts, CPURecorder

# Exactly a float32, as which a rate that changes is recorded: so rates may change in these tests
# without a last bit that differs.
RATE = 2**-12
ADAM = partial(torch.optim.Adam, lr=RATE, betas=(0.5, 0.999), fused=True)

pytestmark = pytest.mark.filterwarnings("ignore:a penalty of a discriminator with batch norm")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def recorder(request, monkeypatch):
    """Return a device and the counts of what trainers record and replay there."""
    counts = Counts()
    if request.param == "cuda":
        monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    make = {"cpu": lambda device: CPURecorder(), "cuda": cuda_graphs.CUDAGraphs}[request.param]
    monkeypatch.setattr(
        capture, "recorder_for", lambda device: CountingRecorder(make(device), counts)
    )
    return SimpleNamespace(device=request.param, counts=counts)


def batches(device: str) -> list[torch.Tensor]:
    """Return an epoch of two whole batches and a short one."""
    images = tiny_images(20).to(device)
    return [images[:8], images[8:16], images[16:]]


def assert_same_run(recorder, steps=24, make_hooks=list, make_batches=batches, **arguments):
    """Train eagerly and captured; assert that both are the same, bit for bit; return both."""
    arguments = {"generator_optimizer": ADAM, "discriminator_optimizer": ADAM, **arguments}
    pair = []
    for captured in (False, True):
        reports = []
        keep = tinygan.hooks.every(1, lambda trainer, report, kept=reports: kept.append(report))
        trainer = tiny_trainer(
            hooks=[*make_hooks(), keep], device=recorder.device, capture=captured, **arguments
        )
        trainer.fit(make_batches(recorder.device), steps=steps)
        pair.append((trainer, reports))
    (eager, wanted), (replayed, got) = pair
    assert_identical(fingerprint(eager), fingerprint(replayed))
    for step, (one, other) in enumerate(zip(wanted, got)):
        assert bits(one.stacked().cpu()) == bits(other.stacked().cpu()), step
    assert torch.equal(eager.skipped.counts, replayed.skipped.counts)
    return eager, replayed


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"dtype": torch.bfloat16},
        {"dtype": torch.float16},
        {"penalty": penalties.r1(1.0, every=4)},
        {"generator_optimizer": partial(torch.optim.SGD, lr=RATE, momentum=0.5, fused=True)},
        {"loss": tinygan.losses.non_saturating(label_smoothing=0.1)},
    ],
    ids=["float32", "bfloat16", "float16", "lazy penalty", "SGD", "label smoothing"],
)
def test_replayed_steps_equal_eager_ones(recorder, arguments):
    """Weights, moments, buffers and every statistic agree bit for bit; all pieces are replayed."""
    assert_same_run(recorder, **arguments)
    # The first three of each kind run eagerly: of whole batches, of short ones, and of whole ones
    # that pay the penalty in every fourth step. Of short ones that pay it there are only two.
    eager = 3 + 3 + (3 + 2 if "penalty" in arguments else 0)
    assert recorder.counts.recorded == 4 * (3 if "penalty" in arguments else 2)
    assert recorder.counts.replayed == 4 * (24 - eager)


class Meddle(tinygan.Hook):
    """Does something in one event of one step or of every step from there on."""

    def __init__(self, act, event, steps):
        self.act, self.event, self.steps = act, event, steps

    def on_gradients(self, trainer, player):
        """Meddle with the gradients."""
        if self.event == "on_gradients" and trainer.step in self.steps:
            self.act(player)

    def on_update(self, trainer, player):
        """Meddle with the weights."""
        if self.event == "on_update" and trainer.step in self.steps:
            self.act(player)

    def on_step_end(self, trainer, report):
        """Meddle with options."""
        if self.event == "on_step_end" and trainer.step in self.steps:
            for player in trainer.players:
                self.act(player)


def _weights(player):
    return player.parameters


def _clip(player):
    torch.nn.utils.clip_grad_norm_(_weights(player), 1e-3)


def _replace_gradient(player):
    _weights(player)[0].grad = torch.ones_like(_weights(player)[0])


def _drop_gradient(player):
    _weights(player)[0].grad = None


@torch.no_grad()
def _halve_weights(player):
    for parameter in _weights(player):
        parameter.mul_(0.5)


def _move_weights(player):
    for parameter in _weights(player):
        parameter.data = parameter.data.clone()


def _halve_rate(player):
    player.optimizer.param_groups[0]["lr"] /= 2


def _decay(player):
    player.optimizer.param_groups[0]["weight_decay"] = 0.1


def _nan_gradient(player):
    _weights(player)[0].grad.fill_(float("nan"))


def _load_moments(player):
    player.optimizer.load_state_dict(player.optimizer.state_dict())
    for state in player.optimizer.state.values():
        state["exp_avg"] = state["exp_avg"] * 0.5


def _replace_weights(player):
    for parameter in player.parameters:
        parameter.data = parameter.data.clamp(-0.03, 0.03)


def _clear_moments(player):
    player.optimizer.state.clear()


def _freeze(player):
    player.parameters[0].requires_grad_(False)


def _evaluate(player):
    player.module.main[1].eval()


def _replace_buffer(player):
    norm = player.module.main[1]
    norm.running_mean = norm.running_mean * 0.5


@pytest.mark.parametrize("event", ["on_gradients", "on_update", "on_step_end"])
@pytest.mark.parametrize(
    "act",
    [
        _clip,
        _replace_gradient,
        _drop_gradient,
        _halve_rate,
        _halve_weights,
        _move_weights,
        _replace_weights,
        _decay,
        _load_moments,
        _clear_moments,
        _freeze,
        _evaluate,
        _replace_buffer,
    ],
)
@pytest.mark.parametrize("once", [True, False], ids=["once", "all"])
def test_what_hooks_change_is_not_lost(recorder, event, act, once):
    """Gradients, weights, buffers, options, moments and modes that it changed are those used."""

    def of_sizes(*sizes):
        return lambda device: [tiny_images(size).to(device) for size in sizes]

    if once:  # whole and short batches are replayed, before it and after
        steps, meddle, make_batches = 18, Meddle(act, event, (9,)), of_sizes(8, 4)
    else:  # all are of one kind, so that there are replays between one recording and the next
        steps, meddle, make_batches = 12, Meddle(act, event, range(1, 12)), of_sizes(8)
    assert_same_run(recorder, steps, lambda: [meddle], make_batches)
    assert recorder.counts.replayed > 0 or (act, once) == (_clear_moments, False)


def test_gradients_that_a_hook_makes_nan_skip_the_update(recorder):
    """They are seen by the replayed update, and the steps after them are replayed."""
    eager, _ = assert_same_run(
        recorder, make_hooks=lambda: [Meddle(_nan_gradient, "on_gradients", range(9, 15))]
    )
    assert eager.skipped.counts.tolist() == [0, 1, 6]


def test_buffers_go_back_when_a_replayed_step_is_updated_eagerly(recorder):
    """Batch norm's statistics are those before the step, not those before an eager one."""

    def spoil(player):
        _nan_gradient(player)
        player.parameters[-1].grad = None  # which a replayed update cannot do

    eager, _ = assert_same_run(
        recorder, make_hooks=lambda: [Meddle(spoil, "on_gradients", (12, 16))]
    )
    assert eager.skipped.counts.tolist() == [0, 1, 2]


def test_a_changing_rate_is_replayed(recorder):
    """A rate that is another in every step is recorded once more, as a tensor, and no oftener."""
    assert_same_run(
        recorder, make_hooks=lambda: [Meddle(_halve_rate, "on_step_end", range(13, 24))]
    )
    assert recorder.counts.recorded == 4 * (2 + 2)


@pytest.mark.parametrize("steps", [0, 3])
def test_a_resumed_state_is_the_one_that_is_trained(recorder, steps):
    """Loading a state, of a new run too, equals loading it in an eager run."""
    ends = []
    for captured in (False, True):
        trainer = tiny_trainer(
            device=recorder.device,
            capture=captured,
            generator_optimizer=ADAM,
            discriminator_optimizer=ADAM,
        )
        other = tiny_trainer(
            device=recorder.device, generator_optimizer=ADAM, discriminator_optimizer=ADAM
        )
        if steps:
            other.fit(batches(recorder.device), steps=steps)
        trainer.fit(batches(recorder.device), steps=12)
        trainer.load_state_dict(other.state_dict())
        trainer.fit(batches(recorder.device), steps=24)
        ends.append(fingerprint(trainer))
    assert_identical(*ends)


def test_a_batch_of_nan_is_skipped_when_replayed(recorder):
    """Non-finite images skip the step and are counted, and the steps after it are replayed."""

    def with_nan(device):
        images = tiny_images(24).to(device)
        bad = images[:8].clone()
        bad[0, 0, 0, 0] = float("nan")
        return [*images.split(8)] * 4 + [bad] + [*images.split(8)] * 4

    _, replayed = assert_same_run(recorder, make_batches=with_nan)
    assert replayed.skipped.counts.tolist() == [0, 0, 1]
    assert recorder.counts.replayed == 4 * 21


def test_the_float16_loss_scale_is_replayed(recorder):
    """A step that overflows halves the scale, replayed as well as eagerly."""
    eager, replayed = assert_same_run(
        recorder,
        dtype=torch.float16,
        make_hooks=lambda: [Meddle(_nan_gradient, "on_gradients", (12,))],
    )
    assert torch.equal(eager.loss_scale.state, replayed.loss_scale.state)
    # The first step is one that overflows by itself.
    assert eager.loss_scale.state[0] == 2**14


def test_reports_of_replayed_steps_stay_as_they_were(recorder):
    """A report that is kept is not overwritten by later steps."""
    reports = []
    trainer = tiny_trainer(
        device=recorder.device,
        capture=True,
        hooks=[tinygan.hooks.every(1, lambda trainer, report: reports.append(report))],
    )
    trainer.fit(batches(recorder.device), steps=24)
    assert len({float(report.loss_d) for report in reports}) == 24


def test_samples_do_not_disturb_replays(recorder):
    """Sampling and saving between steps changes no bit of a run that is replayed."""

    class Look(tinygan.Hook):
        def on_step_end(self, trainer, report):
            trainer.sample(4)
            trainer.state_dict()

    assert_same_run(recorder, make_hooks=lambda: [Look()])


def test_what_cannot_be_captured_runs_eagerly_with_one_warning(recorder, caplog):
    """A piece that fails while it is recorded leaves the run as it was; one warning says why."""
    recorder.counts.fail = True
    assert_same_run(recorder)
    assert recorder.counts.replayed == 0
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith("a step cannot be captured, so all run eagerly: ")


def test_a_loss_that_waits_for_the_device_runs_eagerly(recorder, caplog):
    """A value that is read in the loss would be that of the recording for ever: it is refused."""

    def cost(logits):
        return logits.square() * (1 + 0 * logits.sum().item())

    assert_same_run(recorder, loss=tinygan.losses.Loss(cost, cost, cost))
    assert recorder.counts.replayed == 0
    assert [record.getMessage()[:27] for record in caplog.records] == [
        "a step cannot be captured, "
    ]


@pytest.mark.parametrize(
    "optimizer",
    [
        partial(torch.optim.RMSprop, lr=RATE),
        partial(torch.optim.Adam, lr=RATE),
        # Fused, but PyTorch does not say that it can be captured.
        pytest.param(partial(torch.optim.Adagrad, lr=RATE, fused=True), id="Adagrad"),
    ],
)
def test_an_optimizer_that_cannot_be_captured_is_named(recorder, optimizer, caplog):
    """Its updates run eagerly between the replays of the other pieces, with one warning."""
    if recorder.device == "cuda" and optimizer.func is torch.optim.Adagrad:
        optimizer = partial(torch.optim.Adagrad, lr=RATE)  # which PyTorch fuses on the CPU alone
    assert_same_run(recorder, discriminator_optimizer=optimizer)
    assert recorder.counts.recorded == 2 * 3
    (record,) = caplog.records
    assert record.getMessage() == (
        "the update of the discriminator cannot be captured and runs eagerly: its optimizer is a "
        f"{optimizer.func.__name__}; Adam, AdamW and SGD can, with fused=True."
    )


def test_batches_of_ever_other_sizes_are_recorded_only_up_to_a_limit(recorder, caplog):
    """Four kinds of batches are recorded; those after them run eagerly, with one warning."""
    images = tiny_images(24)
    sizes = [[images[:n].to(recorder.device) for n in range(2, 9)]]
    assert_same_run(recorder, steps=42, make_batches=lambda device: sizes[0])
    assert recorder.counts.recorded == 4 * capture.MOST
    assert [record.getMessage() for record in caplog.records] == [
        "batches of more than 4 kinds: those after them run eagerly."
    ]


class Averaging(torch.nn.Module):
    """Replaces its buffer in each pass, instead of writing to it."""

    def __init__(self, net):
        super().__init__()
        self.net, self.main = net, net.main
        self.register_buffer("average", torch.zeros(()))

    def forward(self, images):
        """Judge, and average the images."""
        self.average = 0.9 * self.average + 0.1 * images.detach().mean()
        return self.net(images)


def test_a_net_that_replaces_its_buffers_runs_eagerly(recorder, caplog):
    """Its recording would read the same old buffer for ever: it is refused, and leaves no trace."""
    ends = []
    for captured in (False, True):
        net = tiny_trainer()
        trainer = tinygan.GANTrainer(
            net.generator, Averaging(net.discriminator), device=recorder.device, capture=captured
        )
        trainer.fit(batches(recorder.device), steps=12)
        ends.append(fingerprint(trainer))
    assert_identical(*ends)
    (record,) = caplog.records
    assert "a net replaces its buffers" in record.getMessage()


def test_gradients_of_the_step_before_are_there_while_recording(recorder):
    """At D's gradients a hook finds G's of the step before, in a step that is recorded too."""
    seen = {False: [], True: []}

    class Look(tinygan.Hook):
        def __init__(self, captured):
            self.captured = captured

        def on_gradients(self, trainer, player):
            gradients = trainer.players[1].gradients()
            if player.name == "discriminator" and gradients:
                seen[self.captured].append(torch.cat([g.flatten() for g in gradients]).clone())

    for captured in seen:
        trainer = tiny_trainer(hooks=[Look(captured)], device=recorder.device, capture=captured)
        trainer.fit(batches(recorder.device), steps=9)
    assert len(seen[True]) == 8
    assert all(torch.equal(*pair) for pair in zip(*seen.values()))


def test_options_that_never_rest_are_not_recorded_for_ever(recorder, caplog):
    """After so many recordings in vain steps run eagerly, with one warning."""
    batches = [tiny_images(4).to(recorder.device)]  # of one kind, which is recorded every 4 steps

    def turn(player):
        group = player.optimizer.param_groups[0]
        group["betas"] = (0.5, group["betas"][1] - 1e-6)

    assert_same_run(
        recorder,
        steps=72,
        make_hooks=lambda: [Meddle(turn, "on_step_end", range(72))],
        make_batches=lambda device: batches,
    )
    (record,) = caplog.records
    assert record.getMessage().startswith("steps were recorded 17 times and something had changed")


def test_without_a_gpu_capture_is_told_to_do_nothing(caplog):
    """On the CPU there is one warning, and the run is the eager one."""
    trainers = [tiny_trainer(capture=captured) for captured in (False, True)]
    for trainer in trainers:
        trainer.fit(batches("cpu"), steps=6)
    assert_identical(*map(fingerprint, trainers))
    assert [record.getMessage() for record in caplog.records] == [
        "capture needs a CUDA device, got cpu: steps run eagerly."
    ]
