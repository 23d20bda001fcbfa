"""When hooks are called: order and counts for every way in which a run can end."""

from __future__ import annotations

import gc
import threading
import weakref
from functools import partial

import pytest
import torch

import tinygan
from tinygan.hook import EVENTS

from helpers import tiny_images, tiny_trainer


class Recorder(tinygan.Hook):
    """Notes every event, and does what it is told to at one of them."""

    def __init__(self, at=None, do=None):
        self.seen = []
        self.at = at
        self.do = do

    def note(self, event, trainer):
        """Note an event; act if it is the one."""
        self.seen.append(event)
        if self.at == (event, trainer.step):
            self.do(trainer)

    def on_fit_start(self, trainer):
        """Note it."""
        self.note("fit_start", trainer)

    def on_epoch_start(self, trainer):
        """Note it."""
        self.note("epoch_start", trainer)

    def on_step_start(self, trainer):
        """Note it."""
        self.note("step_start", trainer)

    def on_gradients(self, trainer, player):
        """Note it with the player's initial."""
        self.note(f"gradients {player.name[0]}", trainer)

    def on_update(self, trainer, player):
        """Note it with the player's initial."""
        self.note(f"update {player.name[0]}", trainer)

    def on_step_end(self, trainer, report):
        """Note it."""
        assert isinstance(report, tinygan.Report)
        self.note("step_end", trainer)

    def on_epoch_end(self, trainer):
        """Note it."""
        self.note("epoch_end", trainer)

    def on_fit_end(self, trainer):
        """Note it."""
        self.note("fit_end", trainer)

    def on_exception(self, trainer, error):
        """Note it with the error's type."""
        self.note(f"exception {type(error).__name__}", trainer)


STEP = ["step_start", "gradients d", "update d", "gradients g", "update g", "step_end"]
EPOCH = ["epoch_start", *STEP, *STEP, "epoch_end"]


def raises(error):
    """Return an action that raises ``error``."""

    def act(trainer):
        raise error

    return act


def run(recorder, *, batches=None, **target):
    """Train the tiny trainer, on two batches unless told, and return the events."""
    trainer = tiny_trainer(hooks=[recorder])
    trainer.fit(batches or list(tiny_images().split(12)), **target)
    return recorder.seen


def test_a_whole_run():
    """Events nest as the timeline says."""
    assert run(Recorder(), epochs=2) == ["fit_start", *EPOCH, *EPOCH, "fit_end"]


def test_a_target_in_the_middle_of_an_epoch():
    """An epoch that is not complete does not end; one whose last step is the last does."""
    assert run(Recorder(), steps=3) == ["fit_start", *EPOCH, "epoch_start", *STEP, "fit_end"]
    assert run(Recorder(), steps=2) == ["fit_start", *EPOCH, "fit_end"]


def test_an_epoch_over_two_fits_starts_once_and_ends_once():
    """Going on in the middle of an epoch does not start it again."""
    recorder = Recorder()
    trainer = tiny_trainer(hooks=[recorder])
    batches = list(tiny_images().split(12))
    trainer.fit(batches, steps=1)
    trainer.fit(batches, epochs=1)
    first, second = ["epoch_start", *STEP], [*STEP, "epoch_end"]
    assert recorder.seen == ["fit_start", *first, "fit_end", "fit_start", *second, "fit_end"]


def test_a_finished_run():
    """A target already reached trains nothing, and says so by its start and end."""
    recorder = Recorder()
    trainer = tiny_trainer(hooks=[recorder])
    for _ in range(2):
        trainer.fit([tiny_images()], steps=1)
    assert recorder.seen == [
        "fit_start", "epoch_start", *STEP, "epoch_end", "fit_end", "fit_start", "fit_end"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("event", "rest"),
    [
        ("fit_start", []),
        ("epoch_start", ["epoch_start", *STEP]),
        ("step_start", ["epoch_start", *STEP]),
        ("gradients d", ["epoch_start", *STEP]),
        ("update g", ["epoch_start", *STEP]),
    ],
)
def test_a_stop(event, rest):
    """A stop at any event ends the run normally, after the step that has begun."""
    recorder = Recorder((event, 0), lambda trainer: trainer.stop("told to"))
    assert run(recorder, epochs=2) == ["fit_start", *rest, "fit_end"]


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt(), SystemExit(3)])
@pytest.mark.parametrize(
    ("event", "rest"),
    [
        ("fit_start", []),
        ("epoch_start", ["epoch_start"]),
        ("gradients g", ["epoch_start", *STEP[:4]]),
        ("epoch_end", EPOCH),
        ("fit_end", [*EPOCH, "fit_end"]),
    ],
)
def test_an_exception_in_a_hook(event, rest, error):
    """Whatever a hook raises reaches every hook once, and then the caller, as it was."""
    step = 2 if "end" in event else 0
    recorder, second = Recorder((event, step), raises(error)), Recorder()
    trainer = tiny_trainer(hooks=[recorder, second])
    with pytest.raises(type(error)) as caught:
        trainer.fit(list(tiny_images().split(12)), epochs=1)
    assert caught.value is error
    ending = f"exception {type(error).__name__}"
    assert recorder.seen == ["fit_start", *rest, ending]
    assert second.seen[-1] == ending
    assert second.seen.count(ending) == 1
    assert "fit_end" not in second.seen


def test_an_exception_in_the_data():
    """A loader that fails ends the run by on_exception, with the steps before it complete."""

    class Failing(list):
        def __iter__(self):
            yield from super().__iter__()
            raise OSError("disk gone")

    recorder = Recorder()
    with pytest.raises(OSError, match="disk gone"):
        run(recorder, batches=Failing([tiny_images()]), epochs=1)
    assert recorder.seen == ["fit_start", "epoch_start", *STEP, "exception OSError"]


def test_a_failing_on_exception_hides_nothing(caplog):
    """What fails while hooks are told of an error is logged; the others still hear of it."""
    failing = Recorder(("exception OSError", 0), raises(ValueError("second")))
    last = Recorder(("fit_start", 0), raises(OSError("first")))
    with pytest.raises(OSError, match="first"):
        tiny_trainer(hooks=[failing, last]).fit([tiny_images()], epochs=1)
    assert last.seen == ["fit_start", "exception OSError"]
    assert "Recorder.on_exception failed while the run was ending by OSError" in caplog.text
    assert "ValueError: second" in caplog.text


def test_list_order_is_call_order():
    """At every event hooks are called in the order of the list."""
    calls = []

    class Named(tinygan.Hook):
        def __init__(self, name):
            self.name = name

        def on_step_end(self, trainer, report):
            calls.append(self.name)

    tiny_trainer(hooks=[Named("b"), Named("a"), Named("c")]).fit([tiny_images()], epochs=1)
    assert calls == ["b", "a", "c"]


def test_every_calls_a_function_at_each_nth_step():
    """A plain function becomes a hook, called as (trainer, report) after every n-th step."""
    steps = []
    hook = tinygan.hooks.every(3, lambda trainer, report: steps.append(trainer.step))
    tiny_trainer(hooks=[hook]).fit([tiny_images()], epochs=10)
    assert steps == [3, 6, 9]


def test_counters_at_the_events():
    """step counts the steps that are complete, epoch the epochs, as each event is called."""
    seen = []

    class Count(tinygan.Hook):
        def on_epoch_start(self, trainer):
            seen.append(("epoch_start", trainer.epoch, trainer.batch, trainer.step))

        def on_step_start(self, trainer):
            seen.append(("step_start", trainer.epoch, trainer.batch, trainer.step))

        def on_step_end(self, trainer, report):
            seen.append(("step_end", trainer.epoch, trainer.batch, trainer.step))

        def on_epoch_end(self, trainer):
            seen.append(("epoch_end", trainer.epoch, trainer.batch, trainer.step))

    tiny_trainer(hooks=[Count()]).fit([tiny_images()], epochs=2)
    assert seen == [
        ("epoch_start", 0, 0, 0),
        ("step_start", 0, 0, 0),
        ("step_end", 0, 1, 1),
        ("epoch_end", 1, 0, 1),
        ("epoch_start", 1, 0, 1),
        ("step_start", 1, 0, 1),
        ("step_end", 1, 1, 2),
        ("epoch_end", 2, 0, 2),
    ]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("on_step_ends", "did you mean on_step_end?"),
        ("on_stepend", "did you mean on_step_end?"),
        ("step_end", "did you mean on_step_end?"),
        ("onStepEnd", "did you mean on_step_end?"),
        ("on_gradient", "did you mean on_gradients?"),
        ("on_epoch_begin", "did you mean on_epoch_end?"),
        ("on_banana", "events are on_fit_start, on_epoch_start"),
    ],
)
def test_a_misspelt_event_fails_at_the_class_line(name, meant):
    """A method that looks like an event but is none is refused, with what was meant."""
    with pytest.raises(TypeError) as error:
        type("Mine", (tinygan.Hook,), {name: lambda self, trainer: None})
    assert str(error.value).startswith(f"Mine.{name} is not an event; {meant}")


def test_events_of_a_mixin_are_checked_too():
    """A class that is no hook brings its methods into one, and its mistakes."""

    class Mixin:
        def on_stepend(self, trainer, report):
            pass

    with pytest.raises(TypeError, match=r"Mixin\.on_stepend is not an event; did you mean on_step"):
        type("Mine", (Mixin, tinygan.Hook), {})

    class Sound:
        def on_step_end(self, trainer, report):
            pass

        def helper(self):
            pass

    class Mine(Sound, tinygan.Hook):
        pass

    type("More", (Mine,), {})


@pytest.mark.parametrize("base", [dict, torch.nn.Module, threading.Thread])
def test_a_mixin_may_be_anything(base):
    """Its other methods may have any names and arguments, such as update and state_dict."""
    type("Mine", (tinygan.Hook, base), {})


async def waits(self, trainer, report):
    """Be never awaited."""


def yields(self, trainer, report):
    """Be never run."""
    yield


async def both(self, trainer, report):
    """Be neither."""
    yield


@pytest.mark.parametrize("event", [waits, yields, both])
def test_an_event_that_would_not_run_fails_at_the_class_line(event):
    """Nothing awaits a coroutine or iterates a generator; nor for a function of every."""
    told = "must run when it is called; write it without async and yield."
    with pytest.raises(TypeError) as error:
        type("Mine", (tinygan.Hook,), {"on_step_end": event})
    assert str(error.value) == f"Mine.on_step_end {told}"
    with pytest.raises(TypeError, match=told):
        tinygan.hooks.every(1, partial(event, None))


@pytest.mark.parametrize("event", EVENTS)
def test_a_wrong_signature_fails_at_the_class_line(event):
    """An event that does not accept its arguments is refused, with those it must accept."""
    with pytest.raises(TypeError, match=rf"Mine\.{event} must be a function of \(self, trainer"):
        type("Mine", (tinygan.Hook,), {event: lambda: None})


def test_helpers_of_ones_own_are_welcome():
    """Methods that do not resemble an event, and private ones, may have any name."""

    class Mine(tinygan.Hook):
        def write(self, a, b, c):
            """Stand in for a helper."""

        def start(self):
            """Stand in for a helper."""

        def _on_step_ends(self):
            """Stand in for a helper."""

        def on_step_end(self, trainer, report, extra=None):
            """Take more than is given."""

    assert isinstance(Mine(), tinygan.Hook)


def test_wrong_hooks_are_refused():
    """What is no hook, and a function that does not take its arguments, are named."""
    with pytest.raises(
        TypeError, match=r"hooks must be a tinygan\.hook\.Hook or a list of them, got <built-in"
    ):
        tiny_trainer(hooks=[print])
    for hooks in (tinygan.Hook, [tinygan.Hook]):
        with pytest.raises(
            TypeError, match=r"got <class.*Hook'>; call the class: Hook\(\.\.\.\)\."
        ):
            tiny_trainer(hooks=hooks)
    for hooks in ("log", 5, ["log"]):
        with pytest.raises(TypeError, match=r"got ('log'|5); subclass tinygan\.Hook, or wrap a fu"):
            tiny_trainer(hooks=hooks)
    assert tiny_trainer(hooks=None).hooks == ()
    with pytest.raises(TypeError, match=r"a list of them, got \{<.*\}; subclass"):
        tiny_trainer(hooks={tinygan.Hook(), tinygan.Hook()})  # in which order?
    told = r"what every calls must be a function of \(trainer, report\), got "
    for function, got in (
        (7, "7; use lambda"),
        (lambda trainer: None, r"<lambda>\(trainer\); use"),
    ):
        with pytest.raises(TypeError, match=told + got):
            tinygan.hooks.every(3, function)
    tinygan.hooks.every(3, dict)  # of which Python knows no signature
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        tinygan.hooks.every(0, lambda trainer, report: None)


def test_hooks_remember_across_a_resume():
    """A hook's state travels with the run's, two hooks of one class apart; a lost one is named."""

    class Count(tinygan.Hook):
        def __init__(self, start=0):
            self.start = start

        def on_fit_start(self, trainer):
            self.count = getattr(self, "count", self.start)  # a state may begin with the run

        def on_step_end(self, trainer, report):
            self.count += 1

        def state_dict(self):
            return {"count": torch.tensor(self.count)}

        def load_state_dict(self, state):
            self.count = int(state["count"])

    first = tiny_trainer(hooks=[Count(), Count(10)])
    first.fit([tiny_images()], epochs=3)
    second = tiny_trainer(hooks=[Count(), Count()])
    second.load_state_dict(first.state_dict())
    second.fit([tiny_images()], epochs=5)
    assert [hook.count for hook in second.hooks] == [5, 15]
    with pytest.raises(ValueError, match=r"hooks\.Count-2: there when saved, missing now"):
        tiny_trainer(hooks=[Count()]).load_state_dict(first.state_dict())


def test_a_hook_does_not_keep_its_trainer_alive():
    """What both know of each other is freed with the run."""
    trainer = tiny_trainer(hooks=[tinygan.Hook()])
    trainer.fit([tiny_images()], steps=1)
    seen = weakref.ref(trainer)
    del trainer
    gc.collect()
    assert seen() is None


def test_a_state_that_would_be_lost_fails_at_the_class_line():
    """A hook that says what to remember, but does not take it back, is a mistake."""
    with pytest.raises(TypeError, match="Forgets has state_dict without load_state_dict"):

        class Forgets(tinygan.Hook):
            def state_dict(self):
                return {}
