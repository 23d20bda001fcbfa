"""Captured steps: what is replayed is what would have run, whatever hooks do in between.

On the CPU a stand-in records operators as a CUDA graph does, see recorder.py. The same tests run on
real graphs with ``pytest -m gpu``.
"""

from __future__ import annotations

import copy
import gc
import logging
import weakref
from functools import partial
from types import SimpleNamespace

import pytest
import torch

import tinygan
from tinygan import penalties
from tinygan._execution import capture, cuda_graphs, recording
from tinygan.average import Average

from helpers import assert_identical, bits, fingerprint, tiny_images, tiny_trainer
from recorder import CountingRecorder, Counts, CPURecorder

# Exactly a float32, as which a rate that changes is recorded: so rates may change in these tests
# without a last bit that differs.
RATE = 2**-12
PIECES = 5
"""Of a step with hooks at its two borders: what comes before each, an update behind it, the end.

A step without is a single one.
"""

ADAM = partial(torch.optim.Adam, lr=RATE, betas=(0.5, 0.999), fused=True)
SGD = partial(torch.optim.SGD, lr=RATE, fused=True)

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


@pytest.mark.parametrize("watched", [False, True], ids=["whole", "in pieces"])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"dtype": torch.bfloat16},
        {"dtype": torch.float16},
        {"penalties": penalties.r1(1.0, every=4)},
        {"generator_optimizer": partial(SGD, momentum=0.5)},
        {"loss": tinygan.losses.smoothed(0.1)},
        {"ema_half_life": 50},
        {"d_steps": 2, "accumulate": 2},
    ],
    ids=[
        "float32", "bfloat16", "float16", "lazy penalty", "SGD", "label smoothing", "average",
        "turns and parts",
    ],
)  # fmt: skip
def test_replayed_steps_equal_eager_ones(recorder, arguments, watched):
    """Weights, moments, buffers and every statistic agree bit for bit; all pieces are replayed."""
    lazy = "penalties" in arguments
    steps = 24 if lazy else 15
    borders = 1 + arguments.get("d_steps", 1)
    pieces = 2 * borders + 1 if watched else 1
    assert_same_run(recorder, steps, lambda: [Watching()] * watched, **arguments)
    # The first three of each kind run eagerly: of whole batches, of short ones, and of whole ones
    # that pay the penalty in every fourth step. Of short ones that pay it there are only two.
    eager = 3 + 3 + (3 + 2 if lazy else 0)
    assert recorder.counts.recorded == pieces * (3 if lazy else 2)
    assert recorder.counts.replayed == pieces * (steps - eager)


class Watching(tinygan.Hook):
    """Looks at the gradients, so that there must be some at the borders."""

    def on_gradients(self, trainer, player):
        """Look."""
        assert all(weight.grad is not None for weight in player.parameters)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_nets_are_captured(recorder, monkeypatch, caplog):
    """Whole batches by the compiled nets and short ones by the plain ones, as in eager steps."""
    torch.compiler.reset()
    # The code that the default compiler makes for a CPU is not seen by the stand-in.
    if recorder.device == "cpu":
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    with caplog.at_level(logging.WARNING):
        assert_same_run(recorder, 15, compile=True, dtype=torch.bfloat16)
    torch.compiler.reset()
    assert recorder.counts.recorded == 2
    assert recorder.counts.replayed == 15 - 3 - 3
    assert [record for record in caplog.records if record.name.startswith("tinygan")] == []


def test_batches_that_become_short_are_recorded_anew(recorder, monkeypatch):
    """By the plain nets, where they were compiled before larger ones came."""
    monkeypatch.setattr(torch, "compile", lambda net, **options: lambda *x: 0.5 * net(*x))
    images, ends = tiny_images(8).to(recorder.device), []
    for captured in (False, True):
        trainer = tiny_trainer(
            device=recorder.device, compile=True, capture=captured,
            generator_optimizer=ADAM, discriminator_optimizer=ADAM,
        )  # fmt: skip
        trainer.fit([images[:4]], steps=6)
        trainer.fit([images, images[:4]], steps=18)
        ends.append(fingerprint(trainer))
    assert_identical(*ends)
    assert recorder.counts.recorded == 3


class MeddleBetween(tinygan.Hook):
    """Does something between some steps, which are recorded whole."""

    def __init__(self, act, event, steps):
        self.act, self.event, self.steps = act, event, steps

    def on_step_end(self, trainer, report):
        """Meddle with each player."""
        if self.event == "on_step_end" and trainer.step in self.steps:
            for player in trainer.players:
                self.act(player)


class Meddle(MeddleBetween):
    """Does something in one event of some steps, which are recorded in pieces."""

    def on_gradients(self, trainer, player):
        """Meddle with the gradients."""
        if self.event == "on_gradients" and trainer.step in self.steps:
            self.act(player)

    def on_update(self, trainer, player):
        """Meddle with the weights."""
        if self.event == "on_update" and trainer.step in self.steps:
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


def _clamp_data_of_gradients(player):
    for parameter in player.parameters:
        parameter.grad.data = parameter.grad.data.clamp(-1e-3, 1e-3)


def _halve_data_of_moments(player):
    for state in player.optimizer.state.values():
        state["exp_avg"].data = state["exp_avg"].data * 0.5


def _drop_all_gradients(player):
    player.optimizer.zero_grad()


def _nan_gradient(player):
    _weights(player)[0].grad.fill_(float("nan"))


def _load_moments(player):
    player.optimizer.load_state_dict(player.optimizer.state_dict())
    for state in player.optimizer.state.values():
        state["exp_avg"] = state["exp_avg"] * 0.5


def _replace_weights(player):
    for parameter in player.parameters:
        parameter.data = parameter.data.clamp(-0.03, 0.03)


def _replace_parameter(player):
    first = player.module.main[0]
    first.weight = torch.nn.Parameter(first.weight.data)  # which no optimizer moves


def _clear_moments(player):
    player.optimizer.state.clear()


def _swap_gradients(player):
    norm = player.module.main[1]
    norm.weight.grad, norm.bias.grad = norm.bias.grad, norm.weight.grad


def _transpose_gradient(player):
    weight = player.module.main[0].weight
    weight.grad.data = weight.grad.data.transpose(2, 3)


def _transpose_weights(player):
    weight = player.module.main[0].weight
    weight.data = weight.data.transpose(2, 3)
    if weight.grad is not None:
        weight.grad = weight.grad.transpose(2, 3)


def _take_out_of_optimizer(player):
    weights = player.optimizer.param_groups[0]["params"]
    if len(weights) > 1:
        weights.pop(0)


def _replace_layer(player):
    player.module.main[2] = torch.nn.Tanh()


def _hook_layer(player):
    player.module.main[2].register_forward_hook(lambda layer, inputs, output: output * 0.5)


def _freeze(player):
    player.parameters[0].requires_grad_(False)


def _evaluate(player):
    player.module.main[1].eval()


def _replace_buffer(player):
    norm = player.module.main[1]
    norm.running_mean = norm.running_mean * 0.5


EVENTS = ["on_gradients", "on_update", "on_step_end"]
ACTS = {
    _clip: None,
    _replace_gradient: None,
    _swap_gradients: None,
    _clamp_data_of_gradients: None,
    _halve_weights: None,
    _drop_gradient: "which of the discriminator's weights have gradients",
    _drop_all_gradients: "which of the discriminator's weights have gradients",
    _move_weights: "the discriminator's weights",
    _replace_weights: "the discriminator's weights",
    _replace_parameter: "the discriminator's weights",
    _transpose_weights: "the discriminator's weights",
    _take_out_of_optimizer: "the discriminator's trained weights",
    _replace_layer: "the discriminator's layers",
    _hook_layer: "the discriminator's PyTorch hooks",
    _freeze: "the discriminator's requires_grad",
    _replace_buffer: "the discriminator's buffers",
    _evaluate: "the discriminator's training mode",
    _load_moments: "the discriminator's moments",
    _clear_moments: "the discriminator's moments",
    _halve_data_of_moments: "the discriminator's moments",
    _decay: "the discriminator's options",
    _halve_rate: "the discriminator's learning rates",
}
"""What hooks do, and what of it captured steps must not see in their middle, in words."""


# Each act between steps and within one; all of them at all events are in tests/faults.
@pytest.mark.parametrize(
    ("event", "act", "once"),
    [("on_step_end", act, i % 2 == 0) for i, act in enumerate(ACTS)]
    + [(EVENTS[i % 2], act, i % 4 < 2) for i, act in enumerate(ACTS)],
)
def test_what_hooks_change_is_not_lost(recorder, event, act, once):
    """What a hook has changed is what is used, or an error says what must not change there."""
    meddle(recorder, event, act, once)


def assert_same_run_with_an_act(
    recorder, act, event, meddling, steps, sizes, *, later=True, **arguments
):
    """Assert that a run in which a hook acts is the eager one, with replays before and after."""
    replayed = []
    meddler, pieces = (MeddleBetween, 1) if event == "on_step_end" else (Meddle, PIECES)

    def noted(player):
        replayed.append(recorder.counts.replayed)
        act(player)

    assert_same_run(
        recorder,
        steps,
        lambda: [meddler(noted, event, meddling)],
        lambda device: [tiny_images(size).to(device) for size in sizes],
        **arguments,
    )
    first = next(count for count in replayed if count > 0)
    if later:  # more than the rest of the step in which it first acts
        assert recorder.counts.replayed >= first + 2 * pieces


def meddle(recorder, event, act, once):
    """Assert that a run in which a hook acts, once or in all steps, is the eager one or refused."""
    if once:  # whole and short batches are replayed, before it and after
        steps, meddling, sizes = 16, (8,), (8, 4)
    else:  # all are of one kind, so that there are replays between one recording and the next
        steps, meddling, sizes = 13, range(5, 13), (8,)
    # Moments of weights that are gone, or lie otherwise, are an error of PyTorch's own.
    plain = act in (_take_out_of_optimizer, _transpose_weights)
    optimizer = SGD if plain else ADAM
    run = partial(
        assert_same_run_with_an_act,
        recorder, act, event, meddling, steps, sizes,
        later=once or act is not _clear_moments,  # but for recordings there must be moments
        generator_optimizer=optimizer, discriminator_optimizer=optimizer,
    )  # fmt: skip
    too_late = act in (_drop_gradient, _drop_all_gradients) and event == "on_update"
    if event == "on_step_end" or ACTS[act] is None or too_late:
        run()
    else:
        with pytest.raises(RuntimeError, match=f"a hook changed {ACTS[act]} in the middle of a "):
            run()


def _evaluate_and_decay(player):
    _evaluate(player)
    _decay(player)


@pytest.mark.parametrize(
    ("act", "event", "what", "remedy"),
    [
        (
            _evaluate_and_decay,
            "on_update",
            "the discriminator's training mode, the discriminator's options",
            "do so in on_step_start or on_step_end, write into the tensors that are there",
        ),
        (  # neither would leave a gradient out
            _drop_gradient,
            "on_gradients",
            "which of the discriminator's weights have gradients",
            "change their requires_grad in on_step_start or on_step_end",
        ),
    ],
)
def test_a_refused_change_says_what_to_do_instead(recorder, act, event, what, remedy):
    """The error names what has changed, where it may, and another way out."""
    with pytest.raises(RuntimeError) as error:
        assert_same_run(recorder, make_hooks=lambda: [Meddle(act, event, (9,))])
    assert str(error.value) == (
        f"a hook changed {what} in the middle of a captured step; {remedy}, or train without "
        "capture."
    )


def test_gradients_of_another_layout_are_refused(recorder):
    """Fused optimizers would read them in the wrong order, or not at all; others are heard."""
    hook = Meddle(_transpose_gradient, "on_gradients", (9,))
    trainer = tiny_trainer(hooks=[hook], device=recorder.device, capture=True)
    refused = "a hook changed the layout of the discriminator's gradients in the middle of a "
    with pytest.raises(RuntimeError, match=refused):
        trainer.fit(batches(recorder.device), steps=12)

    class Discriminator(Meddle):
        def on_gradients(self, trainer, player):
            if player.name == "discriminator":
                super().on_gradients(trainer, player)

    assert_same_run(
        recorder,
        8,
        lambda: [Discriminator(_transpose_gradient, "on_gradients", (3, 6))],
        lambda device: [tiny_images(8).to(device)],
        discriminator_optimizer=partial(torch.optim.RMSprop, lr=RATE),
    )


def _halve_all(*given):
    """Halve tensors, or a last one alone, and leave out what is none."""
    if isinstance(given[-1], torch.Tensor):
        return given[-1] * 0.5
    return tuple(None if each is None else each * 0.5 for each in given[1])


REGISTER = {
    "forward": lambda player: player.module.main[2].register_forward_hook(_halve_all),
    "forward pre": lambda player: player.module.main[2].register_forward_pre_hook(_halve_all),
    "backward": lambda player: player.module.main[0].register_full_backward_hook(_halve_all),
    "backward pre": lambda player: player.module.main[0].register_full_backward_pre_hook(
        _halve_all
    ),
    "weight": lambda player: player.parameters[0].register_hook(_halve_all),
    "gradient": lambda player: player.parameters[0].register_post_accumulate_grad_hook(
        lambda weight: _clip(player)
    ),
    "step pre": lambda player: player.optimizer.register_step_pre_hook(lambda *_: _clip(player)),
    "step post": lambda player: player.optimizer.register_step_post_hook(
        lambda *_: _halve_weights(player)
    ),
}
"""Hooks of PyTorch's own that change a run, by where they act."""


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("register", REGISTER.values(), ids=REGISTER)
def test_pytorch_hooks_that_come_and_go_are_noticed(recorder, register):
    """One that is added or removed between steps leads to a new recording, in which it runs."""

    class Switch(tinygan.Hook):
        def on_step_end(self, trainer, report):
            if trainer.step == 4:
                self.handles = [register(player) for player in trainer.players]
            if trainer.step == 8:
                for handle in self.handles:
                    handle.remove()

    one_kind = lambda device: [tiny_images(8).to(device)]  # noqa: E731
    assert_same_run(recorder, 12, lambda: [Switch()], one_kind)
    assert recorder.counts.recorded == recorder.counts.replayed == 3


def test_a_hook_that_begins_to_listen_is_heard(recorder):
    """Steps that were recorded whole have no borders for it: all is recorded anew, twice."""

    class Now(tinygan.Hook):
        def on_step_end(self, trainer, report):
            if trainer.step == 20:
                self.on_gradients = lambda trainer, player: _clip(player)
            if trainer.step == 40:
                del self.on_gradients

    sizes = [8, 6, 4, 2]
    images = lambda device: [tiny_images(size).to(device) for size in sizes]  # noqa: E731
    assert_same_run(recorder, 60, lambda: [Now()], images)
    assert recorder.counts.recorded == 4 + 4 * PIECES + 4
    assert recorder.counts.replayed == 2 * 4 + 2 * 4 * PIECES + 2 * 4


def _move_average(player):
    for tensor in player.average.net.parameters():
        tensor.data = 0.5 * tensor.data


def _replace_average(player):
    player.average = Average(player.module, 50)


def _replace_averaged_net(player):
    player.average.net = copy.deepcopy(player.average.net)


def _replace_share(player):
    player.average.share = player.average.share.clone()


def _drop_average(player):
    player.average = None


@pytest.mark.parametrize(
    ("half_life", "act"),
    [
        (50, _move_average),
        (50, _replace_average),
        (50, _replace_averaged_net),
        (50, _replace_share),
        (50, _drop_average),
        (None, _replace_average),
    ],
)
def test_an_average_that_is_another_is_the_one_that_moves(recorder, half_life, act):
    """A graph writes to the memory in which the average was: between steps all is recorded anew."""

    def of_generator(player):
        if player.name == "generator":
            act(player)

    one_kind = lambda device: [tiny_images(8).to(device)]  # noqa: E731
    hook = partial(MeddleBetween, of_generator, "on_step_end", (6,))
    assert_same_run(recorder, 12, lambda: [hook()], one_kind, ema_half_life=half_life)
    assert recorder.counts.recorded == 2


def test_an_average_that_is_another_within_a_step_is_refused(recorder):
    """The step's end, which moves it, is recorded."""
    hook = partial(Meddle, _replace_average, "on_update", (9,))
    with pytest.raises(RuntimeError, match=r"a hook changed the \w+'s average in the middle of"):
        assert_same_run(recorder, make_hooks=lambda: [hook()], ema_half_life=50)


def test_a_layer_that_is_replaced_between_two_fits_is_trained(recorder):
    """No hook need do it; the second call of fit begins with a look."""
    ends = []
    for captured in (False, True):
        trainer = tiny_trainer(
            device=recorder.device,
            capture=captured,
            generator_optimizer=ADAM,
            discriminator_optimizer=ADAM,
        )
        for steps in (6, 12):
            trainer.fit([tiny_images(8).to(recorder.device)], steps=steps)
            _replace_layer(trainer.players.generator)
        ends.append(fingerprint(trainer))
    assert_identical(*ends)
    assert recorder.counts.recorded == 2


@pytest.mark.parametrize("optimizer", [ADAM, partial(SGD, momentum=0.5)], ids=["Adam", "SGD"])
def test_moments_that_are_cleared_before_a_recording_put_it_off(recorder, optimizer, caplog):
    """It would begin with the making of moments, and so would each replay."""
    assert_same_run(
        recorder,
        8,
        lambda: [Meddle(_clear_moments, "on_step_end", (3,))],
        lambda device: [tiny_images(8).to(device)],
        generator_optimizer=optimizer,
        discriminator_optimizer=optimizer,
    )
    assert recorder.counts.replayed == 2 * PIECES
    assert caplog.records == []


def test_a_refused_change_is_not_lost_afterwards(recorder):
    """A run that goes on after the error records anew, with the weights that the hook has put."""
    hook = Meddle(_move_weights, "on_update", (9,))
    trainer = tiny_trainer(hooks=[hook], device=recorder.device, capture=True)
    with pytest.raises(RuntimeError, match="in the middle of a captured step"):
        trainer.fit([tiny_images(8).to(recorder.device)], steps=12)
    hook.steps = ()
    (weight,) = trainer.discriminator.main[0].parameters()
    before = weight.detach().clone()
    trainer.fit([tiny_images(8).to(recorder.device)], steps=13)
    assert recorder.counts.recorded == 2 * PIECES
    assert not torch.equal(weight, before)


def test_gradients_that_a_hook_makes_nan_skip_the_update(recorder):
    """They are seen by the replayed update, and the steps after them are replayed."""
    eager, _ = assert_same_run(
        recorder, make_hooks=lambda: [Meddle(_nan_gradient, "on_gradients", range(9, 15))]
    )
    assert eager.skipped.counts.tolist() == [0, 1, 6]


@pytest.mark.parametrize("optimizer", [ADAM, partial(torch.optim.RMSprop, lr=RATE)])
def test_hooks_learn_whether_a_player_has_moved(recorder, optimizer):
    """From the update of their own step, though steps of several kinds are replayed by turns."""
    seen = []

    class Look(Meddle):
        def on_update(self, trainer, player):
            seen.append(bool(player.moved))

    assert_same_run(
        recorder,
        make_hooks=lambda: [Look(_nan_gradient, "on_gradients", (18, 20))],
        discriminator_optimizer=optimizer,
    )
    moved = [step not in (18, 20) for step in range(24) for _ in range(2)]
    assert seen == 2 * moved


def test_a_buffer_that_a_hook_changes_at_the_last_border_goes_back(recorder):
    """If its step was not finite, though only the end of the step looks at it."""

    class Spoil(tinygan.Hook):
        def on_gradients(self, trainer, player):
            if trainer.step == 12 and player.name == "discriminator":
                _nan_gradient(player)

        def on_update(self, trainer, player):
            if trainer.step == 12 and player.name == "generator":
                trainer.discriminator.main[1].running_mean += 1

    assert_same_run(recorder, make_hooks=lambda: [Spoil()])


def test_a_changing_rate_is_replayed(recorder):
    """A rate that is another in every step is recorded once more, as a tensor, and no oftener."""
    assert_same_run(
        recorder, make_hooks=lambda: [Meddle(_halve_rate, "on_step_end", range(13, 24))]
    )
    assert recorder.counts.recorded == PIECES * (2 + 2)


def test_a_rate_that_has_changed_before_may_change_in_a_step(recorder):
    """It is a tensor then, which every update reads."""

    def make_hooks():
        return [
            Meddle(_halve_rate, "on_step_end", (12,)),
            Meddle(_halve_rate, "on_gradients", range(18, 21)),
            Meddle(_halve_rate, "on_update", range(20, 24)),
        ]

    assert_same_run(recorder, make_hooks=make_hooks)
    assert recorder.counts.recorded == PIECES * (2 + 2)


def test_a_rate_stays_a_constant_until_it_changes(recorder):
    """One that float32 does not hold has all its bits still after something else has changed."""
    adam = partial(ADAM, lr=1e-3)
    assert_same_run(
        recorder,
        make_hooks=lambda: [Meddle(_decay, "on_step_end", (12,))],
        generator_optimizer=adam,
        discriminator_optimizer=adam,
    )
    assert recorder.counts.recorded == PIECES * (2 + 2)


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

    _, replayed = assert_same_run(recorder, make_batches=with_nan, ema_half_life=50)
    assert replayed.skipped.counts.tolist() == [0, 0, 1]
    assert recorder.counts.replayed == 21


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
    assert len({float(report["loss_discriminator"]) for report in reports}) == 24


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
    assert recorder.counts.recorded == 2 * PIECES
    (record,) = caplog.records
    assert record.getMessage() == (
        "the update of the discriminator cannot be captured and runs eagerly: its optimizer is a "
        f"{optimizer.func.__name__}; Adam, AdamW and SGD can, with fused=True."
    )


@pytest.mark.parametrize(
    ("event", "act"),
    [("on_gradients", act) for act in (_halve_rate, _decay, _clear_moments)]
    + [("on_step_end", _clear_moments)],
)
def test_an_optimizer_that_cannot_be_captured_may_change_at_any_time(recorder, event, act):
    """Graphs hold nothing of it: a hook may change it in the middle of a step."""

    def act_on_discriminator(player):
        if player.name == "discriminator":
            act(player)

    assert_same_run(
        recorder,
        make_hooks=lambda: [Meddle(act_on_discriminator, event, range(24))],
        discriminator_optimizer=partial(torch.optim.RMSprop, lr=RATE),
    )
    assert recorder.counts.recorded == 2 * PIECES


def test_batches_of_ever_other_sizes_are_recorded_only_up_to_a_limit(recorder, caplog):
    """Four kinds of batches are recorded; those after them run eagerly, with one warning."""
    images = tiny_images(24)
    sizes = [[images[:n].to(recorder.device) for n in range(2, 9)]]
    assert_same_run(recorder, steps=42, make_batches=lambda device: sizes[0])
    assert recorder.counts.recorded == capture.MOST
    assert [record.getMessage() for record in caplog.records] == [
        "there are more than 4 kinds of steps: further kinds run eagerly."
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
            net.generator,
            Averaging(net.discriminator),
            device=recorder.device,
            execution=tinygan.Execution(capture=captured),
        )
        trainer.fit(batches(recorder.device), steps=12)
        ends.append(fingerprint(trainer))
    assert_identical(*ends)
    (record,) = caplog.records
    assert record.getMessage() == (
        "a step cannot be captured, so all run eagerly: it replaces the discriminator's buffers, "
        "instead of writing to them"
    )


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


def _turn(player):
    group = player.optimizer.param_groups[0]
    group["betas"] = (0.5, group["betas"][1] - 1e-6)


@pytest.mark.parametrize("act", [_turn, _clear_moments])
def test_what_never_rests_is_not_recorded_for_ever(recorder, act, caplog):
    """After so many recordings in vain steps run eagerly, with one warning."""
    batches = [tiny_images(4).to(recorder.device)]  # of one kind, which is recorded every 4 steps

    assert_same_run(
        recorder,
        steps=70,
        make_hooks=lambda: [Meddle(act, "on_step_end", range(70))],
        make_batches=lambda device: batches,
    )
    (record,) = caplog.records
    assert record.getMessage() == (
        "what is recorded of steps has changed 17 times: they run eagerly from here on."
    )


def test_without_a_gpu_capture_is_told_to_do_nothing(caplog):
    """On the CPU there is one warning, and the run is the eager one."""
    trainers = [tiny_trainer(capture=captured) for captured in (False, True)]
    for trainer in trainers:
        trainer.fit(batches("cpu"), steps=6)
    assert_identical(*map(fingerprint, trainers))
    assert [record.getMessage() for record in caplog.records] == [
        "capture needs a CUDA device, got cpu: steps run eagerly."
    ]


PARTS = [
    {"d_steps": 2},
    {"accumulate": 2},
    {"d_steps": 2, "accumulate": 2, "penalties": penalties.r1(1.0, every=4)},
    {"d_steps": 2, "dtype": torch.float16},
    {"accumulate": 2, "dtype": torch.bfloat16},
]
MEDDLING = [
    ("on_gradients", _replace_gradient),
    ("on_step_end", _replace_buffer),
    ("on_update", _halve_weights),
    ("on_step_end", _clear_moments),
    ("on_gradients", _clamp_data_of_gradients),
]


# In pairs; all of them with each other are in tests/faults.
@pytest.mark.parametrize(
    ("arguments", "event", "act"), [(own, *how) for own, how in zip(PARTS, MEDDLING)]
)
def test_turns_and_parts_are_replayed_whatever_hooks_do(recorder, arguments, event, act):
    """Several turns of D and parts of a batch, with a hook that meddles once: equal to eager."""
    assert_same_run_with_an_act(recorder, act, event, (6,), 12, (8,), **arguments)


class Poisoning(CPURecorder):
    """Fills, before each replay, what later recordings have made with NaN: their pool is shared."""

    def __init__(self):
        self.made = []

    def record(self, piece):
        """Record a piece, and remember the memory of what it makes."""
        operators = super().record(piece).__self__
        number = len(self.made)
        given = {t.untyped_storage().data_ptr() for t in _tensors_before(operators)}
        self.made.append(
            [
                output
                for *_, outputs in operators.calls
                for output in outputs
                if output.is_floating_point() and output.untyped_storage().data_ptr() not in given
            ]
        )

        def replay():
            with torch.no_grad():
                for tensors in self.made[number + 1 :]:
                    for tensor in tensors:
                        tensor.detach().fill_(float("nan"))
            operators.replay()

        return replay


def _tensors_before(operators):
    return [tensor for tensor, _ in operators.before.values()]


def test_gradients_outlast_the_step(monkeypatch):
    """At D's borders a hook reads G's gradients of the step before, though graphs share memory."""
    monkeypatch.setattr(capture, "recorder_for", lambda device: Poisoning())
    seen = {}
    for captured in (False, True):
        kept = seen[captured] = []

        class Look(tinygan.Hook):
            def on_gradients(self, trainer, player, kept=kept):
                others = [other for other in trainer.players if other is not player]
                kept += [g.clone() for other in others for g in other.gradients()]

        trainer = tiny_trainer(
            hooks=[Look()], capture=captured, generator_optimizer=ADAM, discriminator_optimizer=ADAM
        )
        trainer.fit([tiny_images(8)], steps=10)
    assert len(seen[True]) == len(seen[False]) > 0
    assert all(torch.equal(one, other) for one, other in zip(seen[False], seen[True]))


def test_a_penalty_that_waits_now_and_then_is_never_recorded(recorder, caplog):
    """Its kind of step waits for the device; that steps of another kind do not says nothing."""

    def cost(d, real, fake):
        return d(real).square() * (1 + 0 * real.sum().item())

    arguments = {"penalties": penalties.Penalty(cost, every=3)}
    assert_same_run(recorder, 14, make_batches=lambda d: [tiny_images(8).to(d)], **arguments)
    # The other kind was recorded first: from the first kind that cannot be, all run eagerly.
    assert recorder.counts.recorded == 1
    assert recorder.counts.replayed == 3
    assert [record.getMessage()[:27] for record in caplog.records] == [
        "a step cannot be captured, "
    ]


def test_a_failed_recording_keeps_no_graph(recorder, caplog):
    """Neither that, nor an error in the midst of a step, leaves the fakes and their graph alive."""
    alive = []

    class Watching(torch.nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net, self.main, self.latent_dim = net, net.main, net.latent_dim

        def forward(self, z):
            images = self.net(z)
            alive.append(weakref.ref(images))
            return images

    tiny = tiny_trainer()
    recorder.counts.fail = True
    trainer = tinygan.GANTrainer(
        Watching(tiny.generator),
        tiny.discriminator,
        device=recorder.device,
        execution=tinygan.Execution(capture=True),
    )
    trainer.fit([tiny_images(8).to(recorder.device)], steps=4)
    gc.collect()
    assert len(alive) > 5
    assert [reference() for reference in alive] == [None] * len(alive)

    class Fail(tinygan.Hook):
        def on_update(self, trainer, player):
            raise OSError

    trainer.hooks = (Fail(),)
    with pytest.raises(OSError):
        trainer.fit([tiny_images(8).to(recorder.device)], steps=5)
    assert [reference() for reference in alive] == [None] * len(alive)


def test_only_what_waits_is_taken_for_waiting():
    """A warning that merely speaks of synchronising is a warning."""
    assert cuda_graphs.WAITS in "called a synchronizing CUDA operation (Triggered internally at ..)"
    assert cuda_graphs.WAITS not in "this optimizer does no synchronization of its state"


def test_no_garbage_is_collected_while_a_step_is_recorded(recorder, monkeypatch):
    """A graph that dies in the midst of a recording would spoil it; afterwards it is as before."""
    seen = []
    record = CountingRecorder.record

    def look(self, piece):
        seen.append(gc.isenabled())
        return record(self, piece)

    monkeypatch.setattr(CountingRecorder, "record", look)
    assert_same_run(recorder, 6)
    assert set(seen) == {False}
    assert gc.isenabled()


def test_what_may_have_changed_is_looked_for_once_a_step(recorder, monkeypatch):
    """Without hooks between the pieces a replayed step compares what it holds once."""
    looks = []
    look = recording.Held.changed
    monkeypatch.setattr(recording.Held, "changed", lambda self: looks.append(1) or look(self))
    # Before each update, before the second phase, and before the end.
    for hooks, within in (([], 0), ([Meddle(_clip, "on_gradients", ())], 4)):
        looks.clear()
        trainer = tiny_trainer(hooks=hooks, capture=True, device=recorder.device)
        trainer.fit([tiny_images(8).to(recorder.device)], steps=13)
        # Ten steps are replayed; before the first of them, the recording itself is looked at.
        assert len(looks) == 10 + 10 * within


def simultaneous(players, batch):
    """Let both pay before either moves, and the second once more after the first has moved."""
    (x,) = batch
    players.a.pay(players.a(x).square())
    players.b.pay(players.b(x).square(), "before")
    yield players.a
    players.b.pay(players.b(players.a(x).detach()).square(), "after")
    yield players.b


def played(recorder, captured, *listed):
    """Return the end of a game in which both pay before either moves."""
    torch.manual_seed(0)
    trainer = tinygan.Trainer(
        [tinygan.Player(name, torch.nn.Linear(3, 3), ADAM) for name in "ab"],
        simultaneous,
        hooks=listed,
        device=recorder.device,
        execution=tinygan.Execution(capture=captured),
    )
    examples = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    trainer.fit([examples.to(recorder.device)], steps=12)
    return fingerprint(trainer)


def test_payments_for_a_later_border_are_not_lost(recorder):
    """They add to the player's gradients across a border at which no hook listens."""
    assert_identical(played(recorder, False), played(recorder, True))
    assert recorder.counts.replayed == 9


@pytest.mark.parametrize("event", ["on_gradients", "on_update"])
@pytest.mark.parametrize("act", [_replace_gradient, _clamp_data_of_gradients])
def test_payments_for_a_later_border_run_eagerly(recorder, event, act, caplog):
    """A hook may change, at a border, what another player has paid before: no graph would see."""

    class All(Meddle):
        def on_gradients(self, trainer, player):
            for each in trainer.players:
                super().on_gradients(trainer, each)

        def on_update(self, trainer, player):
            for each in trainer.players:
                super().on_update(trainer, each)

    ends = [played(recorder, captured, All(act, event, (7,))) for captured in (False, True)]
    assert_identical(*ends)
    assert recorder.counts.recorded == 0
    assert [record.getMessage() for record in caplog.records] == [
        "a step cannot be captured, so all run eagerly: the b pays before the a is yielded, where "
        "a hook may change the gradients of both; let it pay after that"
    ]


def test_few_draws_are_kept(recorder):
    """Of ever other sizes of batches no draw stays in memory."""
    trainer = tiny_trainer(capture=True, device=recorder.device)
    trainer.fit([tiny_images(n).to(recorder.device) for n in range(2, 9)], steps=14)
    kept = [draw for _, draws in trainer._step._last.values() for draw in draws.values()]
    assert kept
    assert not any(isinstance(draw, torch.Tensor) for draw in kept)
