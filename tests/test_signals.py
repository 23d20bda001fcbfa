"""Signals: the first is a request, which a run fulfils exactly; the second is an order."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import random
import signal
import time
from functools import partial
from pathlib import Path
from signal import SIGINT, SIGTERM

import pytest
import torch
from torch.utils.data import DataLoader

import tinygan
from tinygan import data, hooks
from tinygan._run import disk, signals

import processes
from helpers import Images, assert_identical, fingerprint, tiny_images, tiny_trainer
from processes import say

both_signals = pytest.mark.parametrize("number", signals.SIGNALS, ids=["SIGINT", "SIGTERM"])


def run_in(folder, *watch):
    """Return a trainer that logs each step and saves every third."""
    return tiny_trainer(
        hooks=[*watch, hooks.JSONLog(folder, every=1), hooks.Checkpoint(folder, every=3)]
    )


def train(steps=1_000_000, images=None, workers=0, *, watch=(), own=False):
    """Train from where the run stands, and say each step; for a child process."""
    for number in signals.SIGNALS if own else ():
        signal.signal(number, lambda number, frame: say("asked"))
    count = hooks.every(1, lambda trainer, report: say(f"step {trainer.step}."))
    trainer = run_in("run", *watch, count)
    trainer.resume("run")
    try:
        trainer.fit(data.Loader(images or Images(), 6, workers=workers), steps=steps)
    finally:
        say("ended at", trainer.step)


def train_and_act(act, name, call):
    """Train, and do something at the end of the given call of an event or of a file operation."""
    watch = tinygan.Hook()
    owner = watch if name.startswith("on_") else disk
    function, calls = getattr(owner, name), itertools.count(1)

    def acts(*arguments):
        function(*arguments)
        if next(calls) == call:
            act()

    setattr(owner, name, acts)
    train(10, watch=[watch], own=True)


def assert_obeyed(child, number, folder):
    """Assert that a run ended as it was asked to, saved where it says and whole; return where."""
    ended = child.wait()
    assert ended.returncode == 128 + number, ended
    assert child.is_gone()
    step = int(ended.stdout.split("ended at ")[1])
    assert run_in(folder / "run").resume(folder / "run").name == f"step_{step:06d}.pt"
    return step


def assert_goes_on(folder, step):
    """Assert that the rest ends as if there had been no signal, to the last bit of net and log."""
    folders = [folder / "run", folder / "whole"]
    trainers = [run_in(folder) for folder in folders]
    trainers[0].resume(folders[0])
    for trainer in trainers:
        trainer.fit(data.Loader(tiny_images(), 6), steps=step + 5)
    assert_identical(*map(fingerprint, trainers))
    assert len({(folder / "log.jsonl").read_bytes() for folder in folders}) == 1


@pytest.mark.parametrize(("kill", "workers"), [(os.kill, 0), (os.killpg, 2)])
def test_a_run_interrupted_at_any_time_ends_the_same(kill, workers, tmp_path):
    """Signals at random times, to a run alone or with its workers, leave each bit as it was."""
    chance = random.Random(workers)
    for number in signals.SIGNALS:
        child = processes.Child(tmp_path, train, 1_000_000, None, workers)
        child.until("step ")
        time.sleep(chance.uniform(0, 0.4))
        kill(child.process.pid, number)
        step = assert_obeyed(child, number, tmp_path)
    assert_goes_on(tmp_path, step)


MOMENTS = [
    ("on_fit_start", 1, 0), ("on_epoch_start", 2, 5), ("on_step_start", 5, 5),
    ("on_gradients", 9, 5), ("on_update", 10, 5),  # of D and of G in step 5
    ("on_step_end", 5, 5), ("on_epoch_end", 1, 4), ("on_fit_end", 1, 10),
    ("write", 2, 6), ("replace", 2, 6),  # in the second save
]  # fmt: skip


@pytest.mark.parametrize(
    ("number", "moment"), [(SIGINT, MOMENTS[1]), (SIGTERM, MOMENTS[3]), (SIGTERM, MOMENTS[8])]
)
def test_a_step_is_finished_and_no_other_begun(number, moment, tmp_path):
    """Wherever the first signal comes, in an event or a save, the step in progress is the last."""
    ask(number, *moment, tmp_path)


def ask(number, name, call, expected, tmp_path):
    """Send a signal within an event or a save, and see after which step the run ends."""
    send = partial(signal.raise_signal, number)
    child = processes.Child(tmp_path, train_and_act, send, name, call)
    assert assert_obeyed(child, number, tmp_path) == expected
    assert_goes_on(tmp_path, expected)


def wait():
    """Wait until there is a file ``go``."""
    processes.eventually(Path("go").exists)


@both_signals
@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_that_was_waited_for_is_left_to_the_next_run(number, workers, tmp_path):
    """Asked to stop while it waits for data, a run takes no further step."""
    third_batch = list(data.Loader(torch.arange(24), 6))[2]
    child = processes.Child(tmp_path, train, 10, Images(third_batch[0], wait), workers)
    child.until("step 2.")
    time.sleep(0.2)  # it waits now; or else the signal comes within the step, which is as good
    os.killpg(child.process.pid, number)
    (tmp_path / "go").touch()
    assert assert_obeyed(child, number, tmp_path) == 2
    assert_goes_on(tmp_path, 2)


def train_and_signal_as_a_worker_starts(number):
    """Train with workers, one of which signals the group before its own setup is complete."""
    limit = torch.set_num_threads

    def starts(count):
        limit(count)
        with contextlib.suppress(FileExistsError):
            Path("sent").touch(exist_ok=False)
            os.killpg(0, number)

    torch.set_num_threads = starts  # which PyTorch calls early in each worker
    train(10, workers=2)


@both_signals
def test_workers_are_deaf_from_the_beginning(number, tmp_path):
    """A signal to the group while workers start does not end the run as their death would."""
    child = processes.Child(tmp_path, train_and_signal_as_a_worker_starts, number)
    assert_goes_on(tmp_path, assert_obeyed(child, number, tmp_path))


def train_plainly(images, act=int, **options):
    """Train on batches of PyTorch's own loader, and do something within the third step."""
    watch = tinygan.Hook()
    updates = itertools.count(1)
    watch.on_gradients = lambda *_: act() if next(updates) == 5 else None
    say_step = hooks.every(1, lambda trainer, report: say(f"step {trainer.step}."))
    trainer = run_in("run", watch, say_step)
    try:
        trainer.fit(DataLoader(images, 6, num_workers=2, **options), steps=10)
    finally:
        say("ended at", trainer.step)


@pytest.mark.parametrize(
    ("number", "options"),
    [(SIGINT, {}), (SIGTERM, {}), (SIGINT, {"persistent_workers": True, "pin_memory": True})],
)
def test_a_plain_loaders_workers_that_a_signal_ends_are_the_stop(number, options, tmp_path):
    """PyTorch's workers die by the signal; the run ends as with any, saved at the step it had."""
    images = Images(12, sleep)
    child = processes.Child(tmp_path, partial(train_plainly, images, timeout=1, **options))
    child.until("step 2.")
    child.until("asleep")
    time.sleep(0.2)  # it waits for the third batch now
    os.killpg(child.process.pid, number)
    assert assert_obeyed(child, number, tmp_path) == 2


def exit_badly(_worker):
    """Let this worker end with an error when it is interrupted."""
    signal.signal(SIGINT, lambda *_: os._exit(1))


def interrupt_and_wait():
    """Interrupt the process group, and give its workers the time to die."""
    os.killpg(0, SIGINT)
    time.sleep(0.5)


def test_workers_that_die_within_a_step_do_not_break_it(tmp_path):
    """PyTorch tells of their death wherever the run is; after a signal the step is finished."""
    images = Images()
    child = processes.Child(
        tmp_path,
        partial(train_plainly, images, interrupt_and_wait, worker_init_fn=exit_badly),
    )
    assert assert_obeyed(child, SIGINT, tmp_path) == 3


def sleep():
    """Sleep for an hour, and say when it begins.

    In short slices: a signal that comes just before the call would not end one long one.
    """
    say("asleep")
    for _ in range(36_000):
        time.sleep(0.1)


SECOND = [(SIGINT, 130), (SIGTERM, -SIGTERM)]
LONG = [("on_step_end", 4, 3), ("write", 2, 3), ("replace", 2, 6)]


@pytest.mark.parametrize(
    ("long", "first", "second"), [(LONG[0], SIGTERM, SECOND[0]), (LONG[1], SIGINT, SECOND[1])]
)
def test_a_second_signal_ends_at_once(long, first, second, tmp_path):
    """Asleep in a hook or a save, a run dies by the second signal, and what it saved stays."""
    insist(*long, first, *second, tmp_path)


def insist(name, call, saved, first, second, code, tmp_path):
    """Send two signals while a run sleeps in an event or a save, and see what is left."""
    child = processes.Child(tmp_path, train_and_act, sleep, name, call)
    child.until("asleep")
    before = {path: path.read_bytes() for path in tmp_path.rglob("step_*.pt")}
    child.signal(first)
    child.until("asked")
    child.signal(second)
    assert child.wait().returncode == code
    assert {path: path.read_bytes() for path in tmp_path.rglob("step_*.pt")} == before
    trainer = run_in(tmp_path / "run")
    trainer.resume(tmp_path / "run")
    assert trainer.step == saved
    trainer.fit(data.Loader(tiny_images(), 6), steps=saved + 1)
    assert not list(tmp_path.rglob("*.partial"))


def fork(*_):
    """Start a process that sleeps, ask it to end, and say how it did."""
    process = multiprocessing.Process(target=sleep)
    process.start()
    processes.eventually(lambda: "asleep" in Path(".stdout").read_text())
    process.terminate()
    process.join(10)
    say("exit code", process.exitcode)
    process.kill()


def test_a_process_that_a_hook_forks_is_ended_by_a_signal(tmp_path):
    """The request to stop is the run's: SIGTERM ends another process of a hook's as ever."""
    ended = processes.run(tmp_path, partial(train, 1, watch=[hooks.every(1, fork)]))
    assert "exit code -15" in ended.stdout
