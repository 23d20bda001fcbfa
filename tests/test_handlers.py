"""Signals seen from within: who handles them while a run lasts, and what it does first."""

from __future__ import annotations

import contextlib
import signal
import threading

import pytest

import tinygan
from tinygan import hooks
from tinygan._run import signals

from helpers import tiny_images, tiny_trainer


def handlers():
    """Return what is set for both signals."""
    return [signal.getsignal(number) for number in signals.SIGNALS]


@pytest.fixture
def own():
    """Set handlers of the user's own, and return the list in which they note what they got."""
    got, before = [], handlers()
    for number in signals.SIGNALS:
        signal.signal(number, lambda number, frame: got.append(number))
    yield got
    for number, handler in zip(signals.SIGNALS, before):
        signal.signal(number, handler)


def acting(*acts):
    """Return a trainer that does something after each step."""
    return tiny_trainer(hooks=[hooks.every(1, lambda trainer, _, act=act: act()) for act in acts])


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_handlers_of_the_users_own_are_called_as_well(number, own):
    """The run stops, the user's handler hears of it, and it is back after the run."""
    before, trainer = handlers(), acting(lambda: signal.raise_signal(number))
    with pytest.raises((KeyboardInterrupt, SystemExit)) as caught:
        trainer.fit([tiny_images()], steps=5)
    assert caught.type is (KeyboardInterrupt if number == signal.SIGINT else SystemExit)
    assert (trainer.step, trainer.stop_reason) == (1, signal.Signals(number).name)
    assert own == [number]
    assert handlers() == before


def trains():
    """Train another net."""
    tiny_trainer().fit([tiny_images()], steps=1)


def fails():
    """Raise an error."""
    raise RuntimeError("bang")


@pytest.mark.parametrize("act", [int, trains, fails])
def test_handlers_are_set_within_fit_alone(act, own):
    """After a run, one within it, one after it, or an error, the handlers are those before."""
    before, seen, after_act = handlers(), [], []
    trainer = acting(lambda: seen.append(handlers()), act, lambda: after_act.append(handlers()))
    for steps in (1, 1, 2):
        with contextlib.suppress(RuntimeError):
            trainer.fit([tiny_images()], steps=steps)
        assert handlers() == before
    assert len(seen) == 2
    assert not any(handler in before for within in seen for handler in within)
    assert after_act == ([] if act is fails else seen)


def test_an_ignored_signal_stays_ignored(own):
    """A run whose process is to ignore SIGTERM is not stopped by it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    seen = []
    trainer = acting(lambda: signal.raise_signal(signal.SIGTERM), lambda: seen.append(handlers()))
    trainer.fit([tiny_images()], steps=2)
    assert trainer.step == 2
    assert {handler for _, handler in (*seen, handlers())} == {signal.SIG_IGN}


def test_in_another_thread_a_run_sets_no_handlers(own):
    """Only the main thread may set handlers; elsewhere a run goes to its end without."""
    before, seen = handlers(), []
    trainer = acting(lambda: seen.append(handlers()))
    thread = threading.Thread(target=trainer.fit, args=([tiny_images()],), kwargs={"steps": 2})
    thread.start()
    thread.join()
    assert trainer.step == 2
    assert seen == [before] * 2
    assert handlers() == before


def test_a_run_that_is_to_stop_saves_first(own, tmp_path, caplog):
    """The checkpoint is there before other hooks write at the end, for time may be short."""
    found = []
    draws = tinygan.Hook()
    draws.on_fit_end = lambda trainer: found.extend(tmp_path.rglob("step_*.pt"))
    stops = hooks.every(2, lambda trainer, _: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SystemExit):
        tiny_trainer(hooks=[stops, draws, hooks.Checkpoint(tmp_path)]).fit([tiny_images()], steps=5)
    assert [path.name for path in found] == ["step_000002.pt"]
    assert "stopped by SIGTERM after step 2, saved in" in caplog.text


def test_a_system_without_news_of_children(monkeypatch):
    """Windows has no SIGCHLD, and a request to stop does not need it."""
    monkeypatch.delattr(signal, "SIGCHLD")
    asked = []
    with pytest.raises(KeyboardInterrupt), signals.as_requests(asked.append):
        signal.raise_signal(signal.SIGINT)
    assert asked == ["SIGINT"]


def test_news_of_children_are_heard_again_after_a_run():
    """After a request to stop a handler's RuntimeError is no error of the run, and it is back."""

    def raises(number, frame):
        raise RuntimeError("a worker died")

    def ends():
        with signals.as_requests(lambda _: None):
            with pytest.raises(RuntimeError, match="a worker died"):
                signal.raise_signal(signal.SIGCHLD)
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGCHLD)

    before = signal.signal(signal.SIGCHLD, raises)
    try:
        with pytest.raises(KeyboardInterrupt):
            ends()
        assert signal.getsignal(signal.SIGCHLD) is raises
    finally:
        signal.signal(signal.SIGCHLD, before)
