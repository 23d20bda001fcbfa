"""Workers: whatever becomes of them, a run ends with a reason, and none outlives its iteration."""

from __future__ import annotations

import os
import re
import signal
import threading
import time

import pytest

from tinygan import data, hooks

import processes
from helpers import Images, tiny_trainer


def die():
    """End this process as the kernel does when memory is short."""
    os.kill(os.getpid(), signal.SIGKILL)


def halt():
    """Stop this process as a debugger does."""
    os.kill(os.getpid(), signal.SIGSTOP)


def fail():
    """Raise an error."""
    raise ValueError("this image is bad")


def sleep():
    """Sleep for an hour."""
    time.sleep(3600)


def loader_of(act=int, timeout=300):
    """Return a loader of which a worker does something while it loads the third batch of four.

    Who halts does so in the first: a batch of its own that still waits to be taken could not be.
    """
    index = 0 if act is halt else 12
    return data.Loader(Images(index, act), 6, shuffle=False, workers=2, timeout=timeout)


def fit(loader):
    """Train on all batches."""
    tiny_trainer().fit(loader, epochs=1)


def in_thread(function, *arguments):
    """Call a function in another thread than the main one."""
    thread = threading.Thread(target=function, args=arguments)
    thread.start()
    thread.join()


def call(function, *arguments):
    """Call a function; a child that does so ends as one of multiprocessing's processes."""
    function(*arguments)


def side_by_side(calls):
    """Return a fixture that starts a child for each call, all at once: what they do is to wait."""

    @pytest.fixture(scope="module")
    def children(tmp_path_factory):
        folder = tmp_path_factory.mktemp
        return {name: processes.Child(folder("child"), *call) for name, call in calls.items()}

    return children


STUCK = {
    "died, interpreter": (die, processes.interpreter, list),
    "died in fit": (die, call, fit),
    "asleep in fit, interpreter": (sleep, processes.interpreter, fit),
    "asleep in a thread": (sleep, call, in_thread, list),
    "halted": (halt, call, list),
}
stuck = side_by_side(
    {name: (*calls, loader_of(act, timeout=2)) for name, (act, *calls) in STUCK.items()}
)


@pytest.mark.parametrize("name", STUCK)
def test_a_worker_that_is_dead_or_stuck_ends_the_run(name, stuck):
    """After ``timeout`` at the latest an error tells what happened, and all processes end."""
    act, *calls = STUCK[name]
    child = stuck[name]
    ended = child.wait()
    assert ended.returncode == (0 if in_thread in calls else 1), ended
    reason = "RuntimeError: DataLoader timed out after 2 seconds"
    if act is die:  # PyTorch may see its socket close before it sees the process end
        reason = r"RuntimeError: DataLoader worker \(pid.*\) (exited|is killed)|Connection\w*Error"
    assert re.search(reason, ended.stderr), ended
    note = "while loading in epoch 0 with workers=2 and timeout=2 s; workers=0 shows where it fails"
    assert note in ended.stderr, ended
    assert child.is_gone()


HELD = []


def hold(loader):
    """Begin an iteration that is still unfinished when the process ends."""
    HELD.append(iter(loader))
    next(HELD[0])


UNFINISHED = {
    "call": (call, hold, loader_of()),
    "interpreter": (processes.interpreter, hold, loader_of()),
    "asleep, call": (call, in_thread, hold, loader_of(sleep)),
    "asleep, interpreter": (processes.interpreter, in_thread, hold, loader_of(sleep)),
}
unfinished = side_by_side(UNFINISHED)


@pytest.mark.parametrize("name", UNFINISHED)
def test_an_unfinished_iteration_does_not_keep_the_process(name, unfinished):
    """A process ends, and its workers with it, though somebody still holds an iterator."""
    child = unfinished[name]
    ended = child.wait()
    assert (ended.returncode, ended.stderr) == (0, "")
    assert child.is_gone()


def hold_and_die():
    """Die in the midst of an iteration."""
    hold(loader_of())
    die()


@pytest.mark.slow
def test_workers_whose_run_is_killed_end_by_themselves(tmp_path):
    """Nobody is left to end them, and they notice."""
    child = processes.Child(tmp_path, hold_and_die)
    assert child.wait().returncode == -signal.SIGKILL
    assert not child.is_gone()
    processes.eventually(child.is_gone)


def assert_leaves_nothing(use, *arguments):
    """Assert that the use of a loader leaves no child, file or handler, at once; for a child."""
    for _ in loader_of():
        before = signal.getsignal(signal.SIGCHLD)  # PyTorch's, which it sets once and for good
    files = set(os.listdir("/dev/shm"))
    use(*arguments)
    with pytest.raises(ChildProcessError):  # there is none, living or dead
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    assert signal.getsignal(signal.SIGCHLD) is before
    processes.eventually(lambda: set(os.listdir("/dev/shm")) <= files)  # others have some as well


def break_off(loader):
    """Take one batch."""
    for _ in loader:
        break


def stop(loader):
    """Train on one batch."""
    trainer = tiny_trainer(hooks=[hooks.every(1, lambda trainer, _: trainer.stop("enough"))])
    trainer.fit(loader, epochs=1)
    assert trainer.step == 1


def fit_until_a_hook_fails(loader):
    """Train, and raise an error after a step."""
    tiny_trainer(hooks=[hooks.every(1, lambda trainer, _: fail())]).fit(loader, epochs=1)


def catch(use, loader):
    """Take batches until there is an error, and keep it."""
    with pytest.raises(ValueError, match="this image is bad") as caught:
        use(loader)
    HELD.append(caught)


ENDS = {
    "broken off": [break_off, loader_of()],
    "stopped": [stop, loader_of()],
    "broken off, asleep": [break_off, loader_of(sleep)],
    "stopped, asleep": [stop, loader_of(sleep)],
    "error in a worker": [catch, list, loader_of(fail)],
    "error in a worker of fit": [catch, fit, loader_of(fail)],
    "error in a hook": [catch, fit_until_a_hook_fails, loader_of()],
}
ends = side_by_side({name: (assert_leaves_nothing, *use) for name, use in ENDS.items()})


@pytest.mark.parametrize("name", ENDS)
def test_an_end_before_the_epochs_leaves_nothing(name, ends):
    """Broken off, stopped, or ended by an error, an iteration takes its workers with it at once."""
    ended = ends[name].wait()
    assert ended.returncode == 0, ended.stderr


def start_one_of_two():
    """Iterate with two workers, of which the second cannot be forked."""
    fork, made = os.fork, []

    def one():
        if made:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        made.append(1)
        return fork()

    os.fork = one
    with pytest.raises(BlockingIOError):
        next(iter(loader_of()))


def test_a_worker_that_cannot_be_started_leaves_no_other(tmp_path):
    """The process ends by itself; it would else wait for one that ignores signals."""
    child = processes.Child(tmp_path, processes.interpreter, start_one_of_two)
    assert child.wait().returncode == 0
    processes.eventually(child.is_gone)
