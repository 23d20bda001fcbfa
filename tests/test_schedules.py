"""Schedules: what they give, that they need no state, and PyTorch's own, whose state is kept."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from functools import partial
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler

import tinygan
from tinygan import augmentations, hooks, penalties, schedules
from tinygan._execution import capture
from tinygan._run import checkpoint

import ranks
import recipes
from helpers import assert_identical, fingerprint, flat, tiny_images, tiny_trainer, with_execution
from recorder import CountingRecorder, Counts, CPURecorder

values = st.floats(-1e6, 1e6)
positive = st.floats(1e-6, 1e6)
counts = st.integers(0, 10**9)
lengths = st.integers(1, 10**9)

CURVES = {
    "linear": (schedules.linear, values),
    "cosine": (schedules.cosine, values),
    "exponential": (schedules.exponential, positive),
}


@st.composite
def changes(draw):
    """Draw a schedule from one value to another, and its four arguments."""
    curve, of = CURVES[draw(st.sampled_from(sorted(CURVES)))]
    start, end, begin = draw(of), draw(of), draw(counts)
    until = begin + draw(lengths)
    return curve(start, end, until=until, begin=begin), start, end, begin, until


@given(changes(), counts)
def test_they_begin_and_end_in_their_values(change, more):
    """Up to where it begins a schedule is at its start, exactly, and from its end on at its end."""
    schedule, start, end, begin, until = change
    assert schedule(max(0, begin - more)) == schedule(begin) == start
    assert schedule(until + more) == schedule(until) == end


@given(changes(), st.lists(counts, min_size=2, max_size=9))
def test_they_go_one_way_and_never_beyond(change, seen):
    """Between its ends a schedule lies between its values, and never turns back but by rounding."""
    schedule, start, end, begin, until = change
    seen = sorted(begin + n % (until - begin + 1) for n in seen)
    found = [schedule(n) for n in seen]
    assert all(min(start, end) <= value <= max(start, end) for value in found)
    up = 1 if end >= start else -1
    rounding = 1e-12 * max(abs(start), abs(end))
    assert all(up * (late - early) >= -rounding for early, late in pairwise(found))


@given(changes(), st.floats(0, 1))
def test_they_follow_their_formulas(change, share):
    """In its course a schedule is what the literature's formula says."""
    schedule, start, end, begin, until = change
    seen = begin + round(share * (until - begin))
    t = (seen - begin) / (until - begin)
    wanted = {
        "_linear": lambda: start + (end - start) * t,
        "_cosine": lambda: end + (start - end) * (1 + math.cos(math.pi * t)) / 2,
        "_exponential": lambda: start * (end / start) ** t,
    }[schedule.func.__name__]()
    assert schedule(seen) == pytest.approx(wanted, rel=1e-9, abs=1e-9 * max(abs(start), abs(end)))


@given(values, counts)
def test_a_constant_is_constant(value, seen):
    """It is its value, whatever was seen."""
    assert schedules.constant(value)(seen) == value


@given(change=changes(), images=lengths, seen=counts)
def test_a_warm_up_rises_from_zero_to_what_it_is_of(change, images, seen):
    """Its share of the schedule, or of the number, grows in a straight line to the whole."""
    schedule, start, *_ = change
    share = min(1.0, seen / images)
    for of in (schedule, start):
        rising = schedules.warm_up(of, images=images)
        assert rising(0) == 0
        assert rising(seen) == schedules.value_at(of, seen) * share
        assert rising(images + seen) == schedules.value_at(of, images + seen)


@given(changes(), counts)
def test_the_same_images_give_the_same_number(change, seen):
    """A schedule is pure: asked in between for others, and copied, it says the same."""
    schedule, *_ = change
    before = schedule(seen)
    schedule(seen // 2)
    assert schedule(seen) == copy.deepcopy(schedule)(seen) == before


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: schedules.constant(float("nan")),
            "value must be in (-inf, inf), got nan; for example 0.1.",
        ),
        (
            lambda: schedules.linear("a", 0.0, until=10),
            "start must be in (-inf, inf), got 'a'; for example 0.1.",
        ),
        (
            lambda: schedules.cosine(1.0, math.inf, until=10),
            "end must be in (-inf, inf), got inf; for example 0.1.",
        ),
        (
            lambda: schedules.cosine(1.0, 0.0, until=0),
            "until must be at least 1, got 0; use 1 or more.",
        ),
        (
            lambda: schedules.linear(1.0, 0.0, until=10, begin=10),
            "until must be at least 11, got 10; use 11 or more.",
        ),
        (
            lambda: schedules.linear(1.0, 0.0, until=10, begin=-1),
            "begin must be at least 0, got -1; use 0 or more.",
        ),
        (
            lambda: schedules.exponential(1.0, 0.0, until=10),
            "end must be in (0, inf), got 0.0; for example 0.1.",
        ),
        (
            lambda: schedules.exponential(-1.0, 1.0, until=10),
            "start must be in (0, inf), got -1.0; for example 10.0.",
        ),
        (
            lambda: schedules.warm_up(1.0, images=0),
            "images must be at least 1, got 0; use 1 or more.",
        ),
        (
            lambda: penalties.r1(schedules.linear(-1.0, 1.0, until=10)),
            "weight at 0 images must be in [0, inf), got -1.0; for example 10.0.",
        ),
        (
            lambda: penalties.Penalty(penalties.r1().cost, weight=-1.0),
            "weight must be in [0, inf), got -1.0; for example 10.0.",
        ),
        (
            lambda: augmentations.diff_augment(p=schedules.constant(1.5)),
            "p at 0 images must be in [0, 1], got 1.5; for example 0.8.",
        ),
        (
            lambda: hooks.Schedule(betas=(0.5, 1.0)),
            "betas[1] must be in [0, 1), got 1.0; for example 0.5.",
        ),
        (
            lambda: hooks.Schedule(lr=schedules.constant),
            "lr at 0 images must be in [0, inf), got functools.partial(",
        ),
        (
            lambda: hooks.Schedule(lr="fast"),
            "lr must be in [0, inf), got 'fast'; for example 0.0001.",
        ),
        (
            hooks.Schedule,
            "Schedule must be given what to set, got no options; use "
            "lr=schedules.cosine(2e-4, 5e-5, until=1_000_000), say.",
        ),
        (
            lambda: hooks.TorchScheduler(lr_scheduler.ExponentialLR, per="image"),
            "per must be 'step' or 'epoch', got 'image'; use one of these.",
        ),
    ],
)
def test_bad_arguments_are_refused(make, sentence):
    """The error names the argument, its value, the rule and a remedy."""
    with pytest.raises(ValueError) as error:
        make()
    assert str(error.value).startswith(sentence)


@pytest.mark.parametrize(
    "make",
    [
        penalties.r2,
        augmentations.instance_noise,
        lambda f: hooks.Schedule(lr=f),
        lambda f: schedules.warm_up(f, images=10),
    ],
)
def test_what_makes_a_schedule_is_none(make):
    """A function in the place of what it returns is named, with what to do."""
    with pytest.raises(TypeError, match=r"must be a number or a function of .* call what makes"):
        make(schedules.cosine)


def test_a_value_out_of_range_in_mid_run_is_named():
    """It is told with the count of images, and what called for it."""
    noise = augmentations.instance_noise(schedules.linear(0.1, -0.1, until=100))
    with pytest.raises(ValueError, match=r"deviation at 75 images must be in \[0, inf\), got -0"):
        noise.draw((2, 3, 8, 8), torch.Generator(), 75)


KINDS = {
    "r1": penalties.r1,
    "r2": penalties.r2,
    "wgan_gp": penalties.wgan_gp,
    "dragan": penalties.dragan,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pack", [1, 2])
def test_a_penalty_has_the_weight_of_its_images(kind, pack):
    """D pays what it would for the number that the schedule has come to, of packs as of images."""
    make = KINDS[kind]
    _, d = recipes.nets(pack=pack)
    judge = tinygan.Player("discriminator", d).twice_differentiable()
    real, fake = (recipes.batches()[index][0] for index in (0, 1))
    weight = schedules.exponential(10.0, 0.1, until=100)
    for seen in (0, 40, 100, 1000):
        batch = tinygan.Batch.of(real)
        batch.draws.images = seen
        falling = make(weight).term(judge, real, fake, batch, 0)
        still = make(weight(seen)).term(judge, real, fake, batch, 0)
        torch.testing.assert_close(falling, still, rtol=1e-6, atol=0)
        assert len(still) == len(real) // pack


@pytest.mark.parametrize("weight", [0.5, schedules.linear(0.0, 1.0, until=20)], ids=str)
def test_a_penalty_of_ones_own_has_a_weight(weight):
    """What the cost counts may be a number or a schedule."""
    real, _ = recipes.batches()[0]
    batch = tinygan.Batch.of(real)
    batch.draws.images = 10
    ones = penalties.Penalty(lambda d, real, fake: d(real), weight=weight)
    paid = ones.term(lambda images: images.new_ones(8, requires_grad=True), real, real, batch, 0)
    assert paid.tolist() == [0.5] * 8


def test_augmenting_all_images_draws_what_it_always_drew():
    """With p of 1 numbers and results are those without it, and others' first seven are the same"""
    shape = (16, 3, 8, 8)
    always, default = augmentations.diff_augment(p=1.0), augmentations.diff_augment()
    for augment in (always, default):
        assert augment.draw.__name__ == "_seven_each"
    half = augmentations.diff_augment(p=0.5)
    seven, eight = (
        augment.draw(shape, torch.Generator().manual_seed(0), 0) for augment in (default, half)
    )
    assert eight.shape == (16, 8)
    assert torch.equal(eight[:, :7], seven)


@given(p=st.floats(0, 0.999), seed=st.integers(0, 2**31))
def test_a_share_of_images_is_augmented(p, seed):
    """An image is either augmented as it would be, or left as it is; as many as p says."""
    count = 512
    images = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    augment = augmentations.diff_augment(p=p)
    drawn = augment.draw(images.shape, torch.Generator().manual_seed(seed), 0)
    got, changed = augment.apply(images, drawn), augmentations.diff_augment().apply(images, drawn)
    augmented = (got == changed).flatten(1).all(1)
    left = (got == images).flatten(1).all(1)
    assert (augmented | left).all()
    far = 5 * (p * (1 - p) / count) ** 0.5 + 2 / count
    assert abs((~left).float().mean().item() - p) <= far


def test_a_scheduled_probability_is_that_of_the_images_seen():
    """No image is augmented at first, and all at last."""
    augment = augmentations.diff_augment(p=schedules.linear(0.0, 1.0, until=100))
    images = torch.rand(64, 3, 8, 8)
    for seen, wanted in ((0, 0), (50, 0.5), (100, 1)):
        drawn = augment.draw(images.shape, torch.Generator().manual_seed(0), seen)
        assert drawn[:, 7].mean().item() == pytest.approx(
            wanted, abs=0.2 * wanted * (2 - 2 * wanted)
        )


def test_the_half_life_is_that_of_the_images_seen():
    """The average moves as by the number that the schedule has come to before the step."""
    moved = []
    half_life = schedules.linear(10.0, 2000.0, until=100_000)
    for kind in (half_life, half_life(50_000 - 64), 10.0):
        net = torch.nn.Linear(3, 2)
        average = tinygan.average.Average(net, kind)
        with torch.no_grad():
            net.weight.copy_(torch.ones(2, 3))
            for parameter in average.net.parameters():
                parameter.zero_()
        average.update(images=50_000, size=64, skipped=torch.tensor(0.0))
        moved.append(average.net.weight)
    assert torch.equal(moved[0], moved[1])
    assert not torch.equal(moved[0], moved[2])


def test_a_half_life_may_begin_at_nothing():
    """What is under one image counts as one, and no decay passes for a number of images."""
    net = torch.nn.Linear(3, 2)
    average = tinygan.average.Average(net, schedules.warm_up(1000.0, images=10_000))
    average.update(images=64, size=64, skipped=torch.tensor(0.0))
    assert torch.equal(average.net.weight, net.weight)
    with pytest.raises(
        ValueError, match=r"ema_half_life at 0 images must be in \[0, inf\], got -1"
    ):
        tinygan.average.Average(net, schedules.constant(-1.0))


def falling_by_halves(images):
    """Return a rate that is a float32, exactly, as which a recorded step reads it."""
    return 2.0 ** -(9 + images // 30)


def betas_in_steps(images):
    """Return a first beta that changes twice."""
    return min(images // 60, 2) / 4


def betas_late(images):
    """Return a first beta that changes once, when steps are replayed."""
    return 0.25 if images >= 200 else 0.0


def all_scheduled(*more, rate=None, slow=1, **arguments):
    """Return a trainer of which everything that may be a schedule is one, if wanted a slow one."""
    given = {
        "hooks": [
            hooks.Schedule(
                lr=rate or schedules.cosine(2e-3, 1e-4, until=50 * slow),
                betas=(betas_in_steps, schedules.linear(0.9, 0.99, until=60 * slow)),
            ),
            hooks.Schedule("generator", weight_decay=schedules.linear(0.0, 0.1, until=40 * slow)),
            *more,
        ],
        "penalty": [
            penalties.r1(schedules.exponential(5.0, 0.1, until=50 * slow), every=2),
            penalties.wgan_gp(schedules.warm_up(1.0, images=30 * slow), every=3),
        ],
        "augment": [
            augmentations.diff_augment(p=schedules.linear(0.0, 0.8, until=40 * slow)),
            augmentations.instance_noise(schedules.cosine(0.2, 0.0, until=45 * slow)),
        ],
        "ema_half_life": schedules.linear(1.0, 100.0, until=60 * slow),
        "generator_optimizer": ADAM,
        "discriminator_optimizer": ADAM,
    }
    return tinygan.GANTrainer(*recipes.nets(), **with_execution(given | arguments))


ADAM = partial(torch.optim.AdamW, lr=2**-9, betas=(0.0, 0.9), weight_decay=0.0, fused=True)


class Keep(tinygan.Hook):
    """Saves the run before its first step, and after every one."""

    def __init__(self, folder):
        self.folder = folder

    def on_fit_start(self, trainer):
        """Save."""
        if trainer.step == 0:
            self.on_step_end(trainer, None)

    def on_step_end(self, trainer, report):
        """Save."""
        trainer.save(self.folder / f"{trainer.step}.pt")


class Rates(tinygan.Hook):
    """Notes the first player's rate in each step."""

    def __init__(self):
        self.found = []

    def on_gradients(self, trainer, player):
        """Note it."""
        if player is trainer.players[0]:
            self.found.append(player.optimizer.param_groups[0]["lr"])


def images():
    """Return an epoch of two whole batches and a short one."""
    return [batch for batch, _ in recipes.batches()]


STEPS = 10
STOPS = (0, 1, 3, 4, 8)
"""Before the first step, in the middle of an epoch, after its last step, in the next one."""


def differs_from(folder, make, stop, act=lambda state: None):
    """Resume by new objects what was kept at a step; return what does not end like the run."""
    resumed = make()
    state = checkpoint.load(folder / f"{stop}.pt")
    act(state)
    checkpoint.save(state, folder / "resumed.pt")
    resumed.resume(folder / "resumed.pt")
    resumed.fit(images(), steps=STEPS)
    return compared(checkpoint.load(folder / f"{STEPS}.pt"), resumed.state_dict())


def compared(whole, other):
    """Return the names of what is not the same bit for bit."""
    left, right = flat(whole), flat(other)
    assert len(left) > 100
    names = left.keys() | right.keys()
    return sorted(name for name in names if left.get(name, names) != right.get(name, names))


def test_a_resumed_run_has_the_right_numbers_without_a_state(tmp_path):
    """Rates, betas, weights, strengths and half-life, all at once: the same bits at the end."""
    whole = all_scheduled(Keep(tmp_path))
    whole.fit(images(), steps=STEPS)
    (group,) = whole.players.generator.optimizer.param_groups
    last = whole.images - 8
    assert group["lr"] == pytest.approx(schedules.cosine(2e-3, 1e-4, until=50)(last), rel=1e-7)
    assert group["betas"] == (betas_in_steps(last), schedules.linear(0.9, 0.99, until=60)(last))
    assert group["weight_decay"] == 0.1
    assert whole.players.discriminator.optimizer.param_groups[0]["weight_decay"] == 0
    for stop in STOPS:
        state = checkpoint.load(tmp_path / f"{stop}.pt")
        assert state["hooks"]["Schedule"] == {}
        assert differs_from(tmp_path, all_scheduled, stop) == []


def test_two_calls_of_fit_are_one(tmp_path):
    """A run that is trained in two calls ends as in one."""
    ends = []
    for calls in ((STEPS,), (1, 4, STEPS)):
        trainer = all_scheduled(hooks.TorchScheduler(one_cycle, player="discriminator"))
        for steps in calls:
            trainer.fit(images(), steps=steps)
        ends.append(trainer.state_dict())
    assert compared(*ends) == []


def test_other_batches_see_the_same_rates():
    """After as many images the rate is the same, in however many steps."""
    seen = []
    for sizes in ((8, 8), (4, 4, 4, 4)):
        rates = Rates()
        all_scheduled(rates).fit(list(torch.cat(images())[:16].split(sizes)), epochs=4)
        seen.append(rates.found)
    assert seen[0] == seen[1][::2]
    assert len(set(seen[0])) == 8


def late(images, *, early, value):
    """Return another value after the first epoch."""
    return early if images < 21 else value


@pytest.mark.parametrize(
    ("make", "values"),
    [
        (lambda value: {"penalty": penalties.r1(value, every=1)}, (0.0, 1.0)),
        (lambda value: {"penalty": penalties.dragan(value)}, (0.0, 1.0)),
        (lambda value: {"augment": augmentations.diff_augment(p=value)}, (0.0, 0.9)),
        (lambda value: {"augment": augmentations.instance_noise(value)}, (0.0, 0.1)),
        (lambda value: {"ema_half_life": value}, (1.0, 100.0)),
        (lambda value: {"hooks": [hooks.Schedule("generator", betas=(value, 0.9))]}, (0.0, 0.5)),
    ],
    ids=["r1", "dragan", "p", "deviation", "half-life", "betas"],
)
def test_a_number_changes_in_the_step_that_it_should(make, values):
    """A run is that of the first number up to the step before which enough images were seen."""
    plain = {"penalty": None, "augment": None, "ema_half_life": None, "hooks": []}
    early, value = values
    still, changing = (
        all_scheduled(**plain | make(schedule))
        for schedule in (schedules.constant(early), partial(late, early=early, value=value))
    )
    for steps, alike in ((3, True), (4, False)):
        for trainer in (still, changing):
            trainer.fit(images(), steps=steps)
        found = [flat(trainer.state_dict()["players"]) for trainer in (still, changing)]
        assert (found[0] == found[1]) == alike, steps


def test_another_schedule_is_another_run():
    """A run does not go on by other schedules, or without one; each is named."""
    state = all_scheduled().state_dict()
    all_scheduled().load_state_dict(state)
    changed = {
        "Schedule.lr: tinygan._cosine(start=0.002, end=0.0001, until=50, begin=0) when "
        "saved, tinygan._cosine(start=0.002, end=0.0001, until=51, begin=0) now": {
            "rate": schedules.cosine(2e-3, 1e-4, until=51)
        },
        "generator.ema_half_life: tinygan._linear(start=1.0, end=100.0, until=60, "
        "begin=0) when saved, 50.0 now": {"ema_half_life": 50},
        "penalty.0.weight: tinygan._exponential(start=5.0, end=0.1, until=50, begin=0) "
        "when saved, 1.0 now": {"penalty": penalties.r1(5.0, every=2)},
        "hooks.Schedule-2: there when saved, missing now": {"hooks": []},
    }
    for line, arguments in changed.items():
        with pytest.raises(ValueError) as error:
            all_scheduled(**arguments).load_state_dict(state)
        assert line in str(error.value)


def told():
    """Print what a checkpoint says of a run with schedules."""
    found = all_scheduled(hooks.TorchScheduler(one_cycle)).state_dict()["configuration"]
    print(sorted(found.items()))  # noqa: T201


def test_schedules_are_told_alike_in_every_process(tmp_path):
    """What a checkpoint says of them has no addresses in memory."""
    code = f"import sys; sys.path[:0] = {sys.path!r}; import test_schedules as t; t.told()"
    printed = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    assert printed[0].stdout == printed[1].stdout
    assert "tinygan.schedules._cosine(" in printed[0].stdout
    assert "test_schedules.one_cycle" in printed[0].stdout
    assert " at 0x" not in printed[0].stdout


@pytest.fixture
def recorded(monkeypatch):
    """Let captured steps be recorded on the CPU; return the counts."""
    found = Counts()
    monkeypatch.setattr(
        capture, "recorder_for", lambda device: CountingRecorder(CPURecorder(), found)
    )
    return found


def assert_captured_equals_eager(make, steps):
    """Train eagerly and captured; assert that both end in the same bits."""
    ends = []
    for captured in (False, True):
        trainer = make(capture=captured)
        trainer.fit(images()[:2], steps=steps)
        ends.append(trainer.state_dict())
    assert compared(*ends) == []


def test_captured_steps_see_what_changes(recorded):
    """Rates, betas in steps, weights, strengths and half-life are those of eager steps."""
    betas = hooks.Schedule(betas=(betas_late, 0.9))
    rates = hooks.Schedule(lr=falling_by_halves)
    assert_captured_equals_eager(
        lambda **more: all_scheduled(hooks=[copy.copy(betas), copy.copy(rates)], slow=8, **more), 60
    )
    assert recorded.replayed > 40


def test_a_torch_scheduler_steps_captured_steps(recorded):
    """What it sets is what a replayed step is moved by."""

    def halves(optimizer):
        return lr_scheduler.LambdaLR(optimizer, lambda step: 2.0 ** -(step // 4))

    assert_captured_equals_eager(
        lambda **more: all_scheduled(hooks=[hooks.TorchScheduler(halves)], **more), 30
    )
    assert recorded.replayed > 30


def test_betas_that_change_in_every_step_run_eagerly(recorded, caplog):
    """They are what they should be, and one warning says that nothing is won by recording."""
    betas = hooks.Schedule(betas=(schedules.linear(0.0, 0.9, until=10_000), 0.9))
    make = partial(all_scheduled, penalty=None, augment=None)
    assert_captured_equals_eager(lambda **more: make(hooks=[copy.copy(betas)], **more), 80)
    (record,) = caplog.records
    assert "steps were recorded 17 times and something had changed each time" in (
        record.getMessage()
    )


def test_rates_of_tensors_are_written_and_defaults_stay(tmp_path):
    """An optimizer whose rate is a tensor keeps it, and is known by what it was made with."""

    def make(parameters):
        return torch.optim.AdamW(parameters, lr=torch.tensor(0.25), fused=True)

    for hook in (
        lambda: hooks.Schedule(lr=schedules.linear(0.5, 0.125, until=40)),
        lambda: hooks.TorchScheduler(partial(lr_scheduler.ExponentialLR, gamma=0.5)),
    ):
        runs = []
        for stop in (None, 4):
            build = partial(all_scheduled, generator_optimizer=make, discriminator_optimizer=make)
            trainer = build(hooks=[hook()])
            if stop is not None:
                trainer.fit(images(), steps=stop)
                trainer.save(tmp_path / "run.pt")
                trainer = build(hooks=[hook()])
                trainer.resume(tmp_path / "run.pt")
            trainer.fit(images(), steps=STEPS)
            optimizer = trainer.players[0].optimizer
            assert optimizer.defaults["lr"] == 0.25
            assert optimizer.param_groups[0]["lr"] != 0.25
            runs.append(trainer.state_dict())
        assert compared(*runs) == []


def test_options_and_players_that_are_not_there_are_named():
    """The errors come before the first step, with what there is."""
    cases = {
        hooks.Schedule(momentum=0.9): (
            "options must be ones that the discriminator's optimizer has, lr, betas, eps, "
            "weight_decay, got momentum; set another, or give the player an optimizer that has it."
        ),
        hooks.Schedule("critic", lr=0.1): (
            "player must be one of discriminator, generator, got 'critic'; use one of these, or "
            "None for all."
        ),
        hooks.TorchScheduler(one_cycle, player="critic"): (
            "player must be one of discriminator, generator, got 'critic'; use one of these, or "
            "None for all."
        ),
        hooks.Schedule("generator", betas=0.5): (
            "betas of the generator's optimizer must be 2 values, got one; give as many as it was "
            "made with."
        ),
        hooks.Schedule(betas=(0.5, 0.9, 0.9)): (
            "betas of the discriminator's optimizer must be 2 values, got 3; give as many as it "
            "was made with."
        ),
        hooks.Schedule(lr=(0.5, 0.9)): (
            "lr of the discriminator's optimizer must be one value, got 2; give as many as it was "
            "made with."
        ),
    }
    for hook, sentence in cases.items():
        trainer = all_scheduled(hooks=[hook])
        with pytest.raises(ValueError) as error:
            trainer.fit(images(), steps=1)
        assert str(error.value) == sentence
        assert trainer.step == 0


# PyTorch's own


def one_cycle(optimizer):
    """Cycle the rate and the first beta."""
    return lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=14)


def sequential(optimizer):
    """Warm up, then fall."""
    parts = [
        lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=3),
        lr_scheduler.CosineAnnealingLR(optimizer, T_max=6),
    ]
    return lr_scheduler.SequentialLR(optimizer, parts, milestones=[3])


def sequential_of_steps(optimizer):
    """Warm up, then fall in steps, which a scheduler counts in a Counter."""
    parts = [
        lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=5),
        lr_scheduler.MultiStepLR(optimizer, milestones=[2, 2, 4]),
    ]
    return lr_scheduler.SequentialLR(optimizer, parts, milestones=[5])


def chained(optimizer):
    """Multiply two."""
    parts = [
        lr_scheduler.ConstantLR(optimizer, factor=0.5, total_iters=4),
        lr_scheduler.ExponentialLR(optimizer, gamma=0.9),
    ]
    return lr_scheduler.ChainedScheduler(parts, optimizer)


def ten_times(optimizer):
    """Ask the optimizer for its rate, which is another when the run is resumed."""
    rate = optimizer.param_groups[0]["lr"]
    return lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step * (1 + 100 * rate))


SCHEDULERS = {
    "LambdaLR": partial(lr_scheduler.LambdaLR, lr_lambda=lambda step: 0.8**step),
    "LambdaLR of the rate": ten_times,
    "OneCycleLR": one_cycle,
    "CosineAnnealingLR": partial(lr_scheduler.CosineAnnealingLR, T_max=7, eta_min=1e-5),
    "LinearLR": partial(lr_scheduler.LinearLR, start_factor=0.1, total_iters=6),
    "SequentialLR": sequential,
    "SequentialLR of steps": sequential_of_steps,
    "ExponentialLR": partial(lr_scheduler.ExponentialLR, gamma=0.7),
    "MultiplicativeLR": partial(
        lr_scheduler.MultiplicativeLR, lr_lambda=lambda step: 1.1 if step % 3 else 0.5
    ),
    "StepLR": partial(lr_scheduler.StepLR, step_size=3),
    "MultiStepLR": partial(lr_scheduler.MultiStepLR, milestones=[2, 2, 5]),
    "ConstantLR": partial(lr_scheduler.ConstantLR, factor=0.5, total_iters=2),
    "PolynomialLR": partial(lr_scheduler.PolynomialLR, total_iters=12, power=2.0),
    "CyclicLR": partial(lr_scheduler.CyclicLR, base_lr=1e-4, max_lr=1e-2, step_size_up=3),
    "CosineAnnealingWarmRestarts": partial(lr_scheduler.CosineAnnealingWarmRestarts, T_0=3),
    "ChainedScheduler": chained,
}


USUAL = ("LambdaLR", "OneCycleLR", "CosineAnnealingLR", "LinearLR", "SequentialLR")
"""Those that are tested each time; the others are slow tests."""


def usual_first(names):
    """Return names, of which those that are not usual are slow tests."""
    return [n if n in USUAL else pytest.param(n, marks=pytest.mark.slow) for n in names]


def scheduled(make, *more, per="step", **arguments):
    """Return a trainer with a scheduler."""
    given = {"generator_optimizer": ADAM, "discriminator_optimizer": ADAM, **arguments}
    torch_scheduler = hooks.TorchScheduler(make, per=per)
    return tinygan.GANTrainer(*recipes.nets(), hooks=[torch_scheduler, *more], **given)


@pytest.mark.parametrize("per", ["step", pytest.param("epoch", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", usual_first(SCHEDULERS))
def test_a_torch_scheduler_resumes_exactly(name, per, tmp_path):
    """Resumed by new objects a run ends in the bits of one that was never stopped.

    Weights, moments, rates, betas and all that a scheduler knows are compared. It is stopped before
    its first step, in the middle of an epoch, after an epoch's last step and in the next epoch.
    """
    make, rates = partial(scheduled, SCHEDULERS[name], per=per), Rates()
    make(Keep(tmp_path), rates).fit(images(), steps=STEPS)
    assert len(set(rates.found)) > 1
    for stop in STOPS:
        assert differs_from(tmp_path, make, stop) == []


@pytest.mark.parametrize("name", ["LinearLR", "OneCycleLR", "MultiStepLR"])
def test_a_scheduler_is_what_it_is_without_the_hook(name):
    """The rates of the steps are those of PyTorch's own loop, rounded to float32."""
    weight = torch.nn.Parameter(torch.ones(()))
    optimizer = ADAM([("weight", weight)])
    scheduler = SCHEDULERS[name](optimizer)
    wanted = []
    for _ in range(STEPS):
        wanted.append([optimizer.param_groups[0][option] for option in ("lr", "betas")])
        weight.grad = torch.ones(())
        optimizer.step()
        scheduler.step()

    class Look(tinygan.Hook):
        def on_gradients(self, trainer, player):
            found[player.name].append(
                [player.optimizer.param_groups[0][o] for o in ("lr", "betas")]
            )

    found = {"discriminator": [], "generator": []}
    scheduled(SCHEDULERS[name], Look()).fit(images(), steps=STEPS)
    for rows in found.values():
        for (rate, betas), (wanted_rate, wanted_betas) in zip(rows, wanted, strict=True):
            assert rate == pytest.approx(wanted_rate, rel=1e-6)
            assert betas == wanted_betas


# By the same factor in each step: that one needs no state.
@pytest.mark.parametrize("name", usual_first(sorted(SCHEDULERS.keys() - {"ExponentialLR"})))
def test_without_its_state_a_scheduler_resumes_wrongly(name, tmp_path):
    """The comparison can fail: a scheduler that is made anew gives other rates and weights."""

    def forget(state):
        del state["hooks"]["TorchScheduler"]

    make = partial(scheduled, SCHEDULERS[name])
    make(Keep(tmp_path)).fit(images(), steps=STEPS)
    found = differs_from(tmp_path, make, 4, forget)
    assert ".players.generator.module.main.0.weight" in found


def test_a_run_saved_before_fit_resumes(tmp_path):
    """No scheduler is there yet, and none has a state: it is made as in a new run."""
    make = partial(scheduled, one_cycle)
    whole, new = make(), make()
    whole.fit(images(), steps=STEPS)
    new.save(tmp_path / "new.pt")
    for again in (make(), new):
        again.resume(tmp_path / "new.pt")
        again.fit(images(), steps=STEPS)
        assert compared(whole.state_dict(), again.state_dict()) == []


def test_a_state_that_was_loaded_is_saved_again(tmp_path):
    """Resumed, and saved before it goes on, a run has lost nothing of it."""
    make = partial(scheduled, sequential)
    first = make()
    first.fit(images(), steps=5)
    second, third = make(), make()
    second.load_state_dict(first.state_dict())
    second.save(tmp_path / "again.pt")
    third.resume(tmp_path / "again.pt")
    for trainer in (first, second, third):
        trainer.fit(images(), steps=STEPS)
    assert compared(first.state_dict(), third.state_dict()) == []
    assert compared(first.state_dict(), second.state_dict()) == []


def test_a_trainer_goes_back_in_its_own_run():
    """A state that is loaded where schedulers are at work already is taken back too."""
    trainer = scheduled(one_cycle)
    trainer.fit(images(), steps=3)
    early = copy.deepcopy(trainer.state_dict())
    trainer.fit(images(), steps=STEPS)
    end = copy.deepcopy(trainer.state_dict())
    trainer.load_state_dict(early)
    assert compared(early, trainer.state_dict()) == []
    trainer.fit(images(), steps=STEPS)
    assert compared(end, trainer.state_dict()) == []


@pytest.mark.parametrize("name", ["LinearLR", "SequentialLR", "OneCycleLR"])
def test_after_a_rollback_rates_are_those_of_the_steps(name, tmp_path):
    """Steps that are done once more, with other noise, have the rates that they had."""
    rates = {}

    class Spoil(tinygan.Hook):
        def on_gradients(self, trainer, player):
            (group,) = player.optimizer.param_groups
            rates.setdefault((player.name, trainer.step), set()).add((group["lr"], group["betas"]))
            if trainer.rollbacks == 0 and trainer.step >= 12:
                player.parameters[0].grad.fill_(math.nan)

    make = {
        "LinearLR": partial(lr_scheduler.LinearLR, start_factor=0.1, total_iters=60),
        "SequentialLR": sequential,
        "OneCycleLR": partial(lr_scheduler.OneCycleLR, max_lr=0.01, total_steps=100),
    }[name]
    trainer = scheduled(make, Spoil(), hooks.Checkpoint(tmp_path, every=5))
    trainer.fit(images(), steps=60)
    assert trainer.rollbacks == 1
    assert len(rates) == 2 * 60
    assert {step: found for step, found in rates.items() if len(found) > 1} == {}


def test_a_run_may_go_back_to_where_no_scheduler_was():
    """From a state of before ``fit`` the run goes on as it began: with a scheduler made anew."""

    class Back(Rates):
        def on_gradients(self, trainer, player):
            super().on_gradients(trainer, player)
            if trainer.rollbacks == 0 and trainer.step >= 12:
                player.parameters[0].grad.fill_(math.nan)

        def on_non_finite(self, trainer, error):
            trainer.load_state_dict(beginning)

    rates = Back()
    trainer = scheduled(SCHEDULERS["LinearLR"], rates)
    beginning = copy.deepcopy(trainer.state_dict())
    assert beginning["hooks"]["TorchScheduler"] == {}
    trainer.fit(images(), steps=60)
    assert trainer.rollbacks == 1
    again = len(rates.found) - 60
    assert rates.found[:again] == rates.found[again : 2 * again]
    assert rates.found[0] == 0.1 * 2**-9


def test_each_group_has_its_rate(tmp_path):
    """Groups of parameters keep rates of their own, and one player may have a scheduler alone."""

    def two_groups(parameters):
        first, *others = parameters
        groups = [{"params": [first], "lr": 0.01}, {"params": others}]
        return torch.optim.SGD(groups, lr=0.001, momentum=0.5, fused=True)

    def make(*more):
        return tinygan.GANTrainer(
            *recipes.nets(),
            hooks=[
                hooks.TorchScheduler(one_cycle_of_two, player="generator"),
                hooks.TorchScheduler(SCHEDULERS["ExponentialLR"], player="discriminator"),
                *more,
            ],
            generator_optimizer=two_groups,
            discriminator_optimizer=two_groups,
        )

    def one_cycle_of_two(optimizer):
        return lr_scheduler.OneCycleLR(optimizer, max_lr=[0.1, 0.2], total_steps=14)

    trainer = make(Keep(tmp_path))
    trainer.fit(images(), steps=STEPS)
    of_d = [group["lr"] for group in trainer.players.discriminator.optimizer.param_groups]
    assert of_d == pytest.approx([0.01 * 0.7**STEPS, 0.001 * 0.7**STEPS])
    for stop in STOPS:
        assert differs_from(tmp_path, make, stop) == []


def test_the_way_of_executing_is_the_new_runs(tmp_path):
    """Making a scheduler once more brings back no flags of how an optimizer computes."""

    def adam(**flags):
        make = partial(torch.optim.Adam, lr=1e-3, **flags)
        return {"generator_optimizer": make, "discriminator_optimizer": make}

    saved = scheduled(sequential, **adam(foreach=True))
    saved.fit(images(), steps=4)
    saved.save(tmp_path / "run.pt")
    resumed = scheduled(sequential, **adam(fused=True))
    resumed.resume(tmp_path / "run.pt")
    resumed.fit(images(), steps=5)
    (group,) = resumed.players[0].optimizer.param_groups
    assert (group["fused"], group["foreach"]) == (True, None)
    (first,) = resumed.state_dict()["hooks"]["TorchScheduler"]["generator"]["first"]
    assert first.keys() & {"lr", "fused", "foreach", "capturable"} == {"lr"}


def test_a_first_step_that_is_skipped_warns_of_nothing():
    """PyTorch has not seen the optimizer step, and need not know why."""

    class Spoil(tinygan.Hook):
        def on_gradients(self, trainer, player):
            if trainer.step == 0:
                player.parameters[0].grad.fill_(math.nan)

    plain = partial(torch.optim.Adam, lr=1e-3)  # skipped on the host
    trainer = scheduled(
        one_cycle, Spoil(), generator_optimizer=plain, discriminator_optimizer=plain
    )
    trainer.fit(images(), steps=2)  # a warning would be an error
    assert trainer.skipped.counts[2] == 1


class Strange(lr_scheduler.ExponentialLR):
    """Keeps what no checkpoint takes."""

    def __init__(self, optimizer):
        self.thing = object()
        super().__init__(optimizer, 0.9)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lr_scheduler.ReduceLROnPlateau, "make must return a scheduler that is stepped without"),
        (
            lambda optimizer: 3,
            "make must return a scheduler of torch.optim.lr_scheduler, got a int",
        ),
        (
            lambda optimizer: lr_scheduler.ExponentialLR(ADAM([torch.ones(())]), 0.9),
            "make must return a scheduler of the optimizer that it is given, got a ExponentialLR",
        ),
        (
            Strange,
            "the state of the discriminator's Strange['thing'] must be a plain value or a tensor",
        ),
    ],
)
def test_schedulers_that_cannot_be_kept_are_named(make, sentence):
    """The error comes before the first step."""
    trainer = scheduled(make)
    with pytest.raises(TypeError) as error:
        trainer.fit(images(), steps=1)
    assert str(error.value).startswith(sentence)
    assert trainer.step == 0


def test_a_scheduler_in_the_place_of_what_makes_it_is_named():
    """It would be another optimizer's."""
    scheduler = lr_scheduler.ExponentialLR(ADAM([torch.ones(())]), 0.9)
    with pytest.raises(TypeError, match="make must be a function of an optimizer, got <torch"):
        hooks.TorchScheduler(scheduler)


def test_another_scheduler_is_another_run():
    """A run does not go on by another scheduler, or without it."""
    trainer = scheduled(SCHEDULERS["ExponentialLR"])
    trainer.fit(images(), steps=1)
    state = trainer.state_dict()
    others = {
        r"TorchScheduler\.make: .*ExponentialLR'>, gamma=0\.7\) when saved, .*gamma=0\.8": [
            hooks.TorchScheduler(partial(lr_scheduler.ExponentialLR, gamma=0.8))
        ],
        r"TorchScheduler\.per: 'step' when saved, 'epoch' now": [
            hooks.TorchScheduler(SCHEDULERS["ExponentialLR"], per="epoch")
        ],
        r"hooks\.TorchScheduler: there when saved, missing now": [],
    }
    for line, listed in others.items():
        other = tinygan.GANTrainer(
            *recipes.nets(),
            hooks=listed,
            generator_optimizer=ADAM,
            discriminator_optimizer=ADAM,
        )
        with pytest.raises(ValueError, match=line):
            other.load_state_dict(state)


def train_on_ranks(stops):
    """Train in several calls, and keep the state."""
    trainer = all_scheduled(hooks.TorchScheduler(one_cycle, player="discriminator"))
    for steps in stops:
        trainer.fit(images()[:2], steps=steps)
    state = trainer.state_dict()
    checkpoint.save({"players": state["players"], "hooks": state["hooks"]}, "end.pt")


def test_all_ranks_have_the_same_schedules(tmp_path):
    """In a run of two processes, begun in two calls, both have the rates of one process."""
    ranks.run(tmp_path, 2, train_on_ranks, (3, 8))
    alone = all_scheduled(hooks.TorchScheduler(one_cycle, player="discriminator"))
    alone.fit(images()[:2], steps=8)
    for player in alone.players:
        for rank in range(2):
            state = checkpoint.load(tmp_path / str(rank) / "end.pt")
            (ours,) = state["players"][player.name]["optimizer"]["groups"]
            (group,) = player.optimizer.param_groups
            assert ours["options"] == {name: group[name] for name in ours["options"]}
            assert flat(state["hooks"]) == flat(alone.state_dict()["hooks"])


def test_a_captured_run_with_any_rate_resumes_exactly(monkeypatch, tmp_path):
    """Eager steps, of which a resumed run has some more, take the rates that replayed ones do."""
    monkeypatch.setattr(capture, "recorder_for", lambda device: CPURecorder())
    rate = schedules.cosine(3.1e-4, 1.7e-5, until=500)

    def made(captured=True):
        return tiny_trainer(
            hooks=[hooks.Schedule(lr=rate)], capture=captured,
        )  # fmt: skip

    images = [tiny_images(8)]
    whole, first, second, eager = made(), made(), made(), made(captured=False)
    whole.fit(images, steps=24)
    eager.fit(images, steps=24)
    first.fit(images, steps=13)
    first.save(tmp_path / "run.pt")
    second.resume(tmp_path / "run.pt")
    second.fit(images, steps=24)
    assert_identical(fingerprint(whole), fingerprint(second))
    assert_identical(fingerprint(whole), fingerprint(eager))
