"""Schedules: what they give, and that they need no state."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tinygan
from tinygan import augmentations, hooks, penalties, schedules
from tinygan._execution import capture
from tinygan._run import checkpoint

import recipes
from helpers import assert_identical, fingerprint, flat, tiny_images, tiny_trainer, with_execution
from recorder import CountingRecorder, Counts, CPURecorder

values = st.floats(-1e6, 1e6)
counts = st.integers(0, 10**9)
lengths = st.integers(1, 10**9)

CURVES = {
    "linear": (values, lambda start, end, t: start + (end - start) * t),
    "cosine": (values, lambda start, end, t: end + (start - end) * (1 + math.cos(math.pi * t)) / 2),
    "exponential": (st.floats(1e-6, 1e6), lambda start, end, t: start * (end / start) ** t),
}


@st.composite
def changes(draw):
    """Draw a schedule from one value to another, its formula, and its four arguments."""
    name = draw(st.sampled_from(sorted(CURVES)))
    of, formula = CURVES[name]
    start, end, begin = draw(of), draw(of), draw(counts)
    until = begin + draw(lengths)
    schedule = getattr(schedules, name)(start, end, until=until, begin=begin)
    return schedule, formula, start, end, begin, until


@given(changes(), counts, st.floats(0, 1))
def test_they_begin_and_end_in_their_values_and_follow_their_formulas(change, more, share):
    """Outside of its course a schedule is exactly at its ends, and in it what the formula says."""
    schedule, formula, start, end, begin, until = change
    assert schedule(max(0, begin - more)) == schedule(begin) == start
    assert schedule(until + more) == schedule(until) == end
    seen = begin + round(share * (until - begin))
    wanted = formula(start, end, (seen - begin) / (until - begin))
    assert schedule(seen) == pytest.approx(wanted, rel=1e-9, abs=1e-9 * max(abs(start), abs(end)))


@given(changes(), st.lists(counts, min_size=2, max_size=9))
def test_they_go_one_way_and_never_beyond(change, seen):
    """Between its ends a schedule lies between its values, and never turns back but by rounding."""
    schedule, _, start, end, begin, until = change
    found = [schedule(n) for n in sorted(begin + n % (until - begin + 1) for n in seen)]
    assert all(min(start, end) <= value <= max(start, end) for value in found)
    up = 1 if end >= start else -1
    rounding = 1e-12 * max(abs(start), abs(end))
    assert all(up * (late - early) >= -rounding for early, late in pairwise(found))


@given(start=values, begin=lengths, factor=st.integers(1, 1000))
def test_an_inverse_root_stays_and_then_falls_without_end(start, begin, factor):
    """It is ``start`` until image ``begin``, and a k-th of it after k squared times as many."""
    falling = schedules.inverse_sqrt(start, begin=begin)
    assert falling(0) == falling(begin - 1) == falling(begin) == start
    assert falling(begin * factor**2) == pytest.approx(start / factor)


@given(change=changes(), images=lengths, seen=counts)
def test_a_warm_up_rises_from_zero_to_its_value(change, images, seen):
    """Its share of the schedule, or of a constant or number, grows in a straight line to all."""
    schedule, _, start, *_ = change
    share = min(1.0, seen / images)
    for of in (schedule, start):
        rising = schedules.warm_up(of, images=images)
        assert rising(0) == 0
        assert rising(seen) == schedules.value_at(of, seen) * share
        assert rising(images + seen) == schedules.value_at(of, images + seen)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: schedules.linear(math.nan, 0, until=1), "start must be in (-inf, inf), got nan"),
        (lambda: schedules.linear("a", 0.0, until=10), "start must be in (-inf, inf), got 'a'"),
        (lambda: schedules.cosine(1.0, 0.0, until=0), "until must be at least 1, got 0"),
        (
            lambda: schedules.linear(1.0, 0.0, until=10, begin=10),
            "until must be at least 11, got 10",
        ),
        (
            lambda: schedules.linear(1.0, 0.0, until=10, begin=-1),
            "begin must be at least 0, got -1",
        ),
        (lambda: schedules.exponential(1.0, 0.0, until=10), "end must be in (0, inf), got 0.0"),
        (lambda: schedules.exponential(-1.0, 1.0, until=10), "start must be in (0, inf), got -1.0"),
        (lambda: schedules.inverse_sqrt("a", begin=1), "start must be in (-inf, inf), got 'a'"),
        (lambda: schedules.inverse_sqrt(1.0, begin=0), "begin must be at least 1, got 0"),
        (lambda: schedules.warm_up(1.0, images=0), "images must be at least 1, got 0"),
        (lambda: schedules.stairs(lambda images: 1.0, every=0), "every must be at least 1, got 0"),
        (
            lambda: penalties.r1(schedules.linear(-1.0, 1.0, until=10)),
            "weight at 0 images must be in [0, inf), got -1.0",
        ),
        (
            lambda: augmentations.diff_augment(p=lambda images: 1.5),
            "p at 0 images must be in [0, 1], got 1.5",
        ),
        (
            lambda: tinygan.average.Average(torch.nn.Linear(1, 1), lambda images: -1.0),
            "ema_half_life at 0 images must be in [0, inf], got -1.0",
        ),
        (lambda: hooks.Schedule(betas=(0.5, 1.0)), "betas[1] must be in [0, 1), got 1.0"),
        (lambda: hooks.Schedule(lr="fast"), "lr must be in [0, inf), got 'fast'"),
    ],
)
def test_bad_arguments_are_refused(make, sentence):
    """The error names the argument, its value and the rule."""
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
def test_a_function_that_makes_a_schedule_is_refused(make):
    """Without its arguments it is no schedule."""
    with pytest.raises(TypeError, match=r"cosine\(\) missing 1 required positional argument"):
        make(schedules.cosine)


def test_a_value_out_of_range_in_mid_run_is_named():
    """The error names what has the value, and the number of images."""
    noise = augmentations.instance_noise(schedules.linear(0.1, -0.1, until=100))
    with pytest.raises(ValueError, match=r"deviation at 75 images must be in \[0, inf\), got -0"):
        noise.draw((2, 3, 8, 8), torch.Generator(), 75)


@given(images=st.integers(0, 10**7), every=st.integers(1, 10**4))
def test_stairs_are_looked_at_seldom(images, every):
    """A step has the value of its first image, and is as long as said."""
    found = schedules.stairs(float, every=every)
    first = images - images % every
    assert found(images) == found(first) == found(first + every - 1) == first


@pytest.mark.parametrize(
    "weight", [0.5, schedules.linear(0.0, 1.0, until=20)], ids=["number", "schedule"]
)
def test_a_penalty_of_ones_own_has_a_weight(weight):
    """The cost's weight may be a number or a schedule."""
    real, _ = recipes.batches()[0]
    batch = tinygan.Batch.of(real)
    batch.draws.images = 10
    ones = penalties.Penalty(lambda d, real, fake: d(real), weight=weight)
    paid = ones.term(lambda images: images.new_ones(8, requires_grad=True), real, real, batch, 0)
    assert paid.tolist() == [0.5] * 8


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


def test_the_half_life_is_that_of_the_images_seen():
    """The average moves as by the number that the schedule has come to; under 1 counts as 1."""
    moved = []
    for kind in (schedules.warm_up(1000.0, images=100_000), 500.0, 10.0):
        net = torch.nn.Linear(3, 2)
        average = tinygan.average.Average(net, kind)
        average.begin(images=0, size=64)
        average.update(torch.tensor(0.0))
        with torch.no_grad():
            net.weight.copy_(torch.ones(2, 3))
            average.net.weight.zero_()
        average.begin(images=50_000, size=64)
        average.update(torch.tensor(0.0))
        moved.append(average.net.weight)
    assert torch.equal(moved[0], moved[1])
    assert not torch.equal(moved[0], moved[2])


def falling_by_halves(images):
    """Return a rate that is a float32, exactly, as which a recorded step reads it."""
    return 2.0 ** -(9 + images // 30)


def betas_in_steps(images):
    """Return a first beta that changes twice."""
    return min(images // 60, 2) / 4


def betas_late(images):
    """Return a first beta that changes once, when steps are replayed."""
    return 0.25 if images >= 200 else 0.0


ADAM = partial(torch.optim.AdamW, lr=2**-9, betas=(0.0, 0.9), weight_decay=0.0, fused=True)


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
        "penalties": [
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
    """Notes the first player's rate and betas in each step."""

    def __init__(self):
        self.found = []

    def on_gradients(self, trainer, player):
        """Note them."""
        if player is trainer.players[0]:
            group = player.optimizer.param_groups[0]
            self.found.append((group["lr"], group["betas"]))


def images():
    """Return an epoch of two whole batches and a short one."""
    return [batch for batch, _ in recipes.batches()]


STEPS = 8
STOPS = (0, 1, 3, 4)
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
        assert all(remembered == {} for remembered in state["hooks"].values())
        assert differs_from(tmp_path, all_scheduled, stop) == []


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
        (lambda value: {"penalties": penalties.r1(value, every=1)}, (0.0, 1.0)),
        (lambda value: {"penalties": penalties.dragan(value)}, (0.0, 1.0)),
        (lambda value: {"augment": augmentations.diff_augment(p=value)}, (0.0, 0.9)),
        (lambda value: {"augment": augmentations.instance_noise(value)}, (0.0, 0.1)),
        (lambda value: {"ema_half_life": value}, (1.0, 100.0)),
        (lambda value: {"hooks": [hooks.Schedule("generator", betas=(value, 0.9))]}, (0.0, 0.5)),
    ],
    ids=["r1", "dragan", "p", "deviation", "half-life", "betas"],
)
def test_a_number_changes_in_the_step_that_it_should(make, values):
    """A run is that of the first number up to the step before which enough images were seen."""
    plain = {"penalties": None, "augment": None, "ema_half_life": None, "hooks": []}
    early, value = values
    still, changing = (
        all_scheduled(**plain | make(schedule))
        for schedule in (early, partial(late, early=early, value=value))
    )
    for steps, alike in ((3, True), (4, False)):
        for trainer in (still, changing):
            trainer.fit(images(), steps=steps)
        found = [flat(trainer.state_dict()["players"]) for trainer in (still, changing)]
        assert (found[0] == found[1]) == alike, steps


def test_another_schedule_is_another_run():
    """A run is not resumed with other schedules, or without one; each is named."""
    state = all_scheduled().state_dict()
    # Two processes must agree on a schedule's name.
    assert " at 0x" not in str(state["configuration"])
    all_scheduled().load_state_dict(state)
    changed = {
        "until=50, begin=0) when saved": {"rate": schedules.cosine(2e-3, 1e-4, until=51)},
        "until=60, begin=0) when saved, 50.0 now": {"ema_half_life": 50},
        "until=50, begin=0) when saved, 5.0 now": {"penalties": penalties.r1(5.0, every=2)},
        "hooks.Schedule-2: there when saved, missing now": {"hooks": []},
    }
    for line, arguments in changed.items():
        with pytest.raises(ValueError) as error:
            all_scheduled(**arguments).load_state_dict(state)
        assert line in str(error.value)


@pytest.fixture
def recorded(monkeypatch):
    """Let captured steps be recorded on the CPU; return the counts."""
    found = Counts()
    monkeypatch.setattr(
        capture, "recorder_for", lambda device: CountingRecorder(CPURecorder(), found)
    )
    return found


def test_captured_steps_see_what_changes(recorded):
    """Rates, betas in steps, weights, strengths and half-life are those of eager steps."""
    ends = []
    for captured in (False, True):
        listed = [
            hooks.Schedule(betas=(betas_late, 0.9)),
            hooks.Schedule(lr=falling_by_halves),
        ]
        trainer = all_scheduled(hooks=listed, slow=8, capture=captured)
        trainer.fit(images()[:2], steps=36)
        ends.append(trainer.state_dict())
    assert compared(*ends) == []
    assert recorded.replayed == 6


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


def test_a_rate_that_is_a_tensor_is_replaced_and_defaults_stay(tmp_path):
    """The optimizer is known by what it was made with, which nothing is written into."""

    def adam(parameters):
        return torch.optim.AdamW(parameters, lr=torch.tensor(0.25), fused=True)

    def make(*more):
        rate = hooks.Schedule(lr=schedules.linear(0.5, 0.125, until=40))
        return all_scheduled(
            hooks=[rate, *more], generator_optimizer=adam, discriminator_optimizer=adam
        )

    trainer = make(Keep(tmp_path))
    trainer.fit(images(), steps=STEPS)
    optimizer = trainer.players[0].optimizer
    assert optimizer.defaults["lr"] == 0.25
    assert optimizer.param_groups[0]["lr"] != 0.25
    assert differs_from(tmp_path, make, 4) == []


def test_all_groups_of_parameters_get_the_same():
    """Whatever rates they began with."""

    def two_groups(parameters):
        first, *others = parameters
        groups = [{"params": [first], "lr": 0.01}, {"params": others}]
        return torch.optim.SGD(groups, lr=0.001, fused=True)

    trainer = all_scheduled(
        hooks=[hooks.Schedule("generator", lr=0.25)],
        generator_optimizer=two_groups,
        discriminator_optimizer=two_groups,
    )
    trainer.fit(images(), steps=1)
    rates = [[group["lr"] for group in each.optimizer.param_groups] for each in trainer.players]
    assert rates == [[0.01, 0.001], [0.25, 0.25]]


@pytest.mark.parametrize(
    ("hook", "sentence"),
    [
        (
            lambda: hooks.Schedule("critic", lr=0.1),
            "no player is called critic; the players are discriminator, generator",
        ),
        *(
            (
                partial(hooks.Schedule, **{name: value}),
                "options must be among those of the discriminator's optimizer, with as many "
                "values: lr=0.001953125, betas=(0.0, 0.9), eps=1e-08, weight_decay=0.0, got "
                f"{name}={value}.",
            )
            for name, value in {
                "momentum": 0.9, "betas": 0.5, "fused": 1.0, "params": 0.5, "lr": (0.5, 0.9)
            }.items()
        ),
    ],
)  # fmt: skip
def test_options_and_players_that_are_not_there_are_named(hook, sentence):
    """The errors come before the first step, with what there is."""
    trainer = all_scheduled(hooks=[hook()])
    with pytest.raises((ValueError, AttributeError)) as error:
        trainer.fit(images(), steps=1)
    assert str(error.value).startswith(sentence)
    assert trainer.step == 0


def test_rates_are_set_on_every_rank():
    """All ranks must move alike: the hook hears events on each."""
    assert not hooks.Schedule.first_rank_only


def test_after_a_rollback_rates_are_those_of_the_steps(tmp_path):
    """Steps that are done once more, with other noise, have the rates that they had."""
    rates = {}

    class Spoil(tinygan.Hook):
        def on_gradients(self, trainer, player):
            (group,) = player.optimizer.param_groups
            rates.setdefault((player.name, trainer.step), set()).add((group["lr"], group["betas"]))
            if trainer.rollbacks == 0 and trainer.step >= 12:
                player.parameters[0].grad.fill_(math.nan)

    rising = hooks.Schedule(
        lr=schedules.linear(1e-4, 1e-2, until=400),
        betas=(schedules.linear(0.0, 0.5, until=400), 0.9),
    )
    trainer = all_scheduled(hooks=[rising, Spoil(), hooks.Checkpoint(tmp_path, every=5)])
    trainer.fit(images(), steps=60)
    assert trainer.rollbacks == 1
    assert len(rates) == 2 * 60
    assert {step: found for step, found in rates.items() if len(found) > 1} == {}
    assert len({rate for found in rates.values() for rate in found}) == 59
