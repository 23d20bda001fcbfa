"""Workers: kept while they are used; whatever becomes of them, a run ends with a reason."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import random
import re
import signal
import threading
import time

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, get_worker_info
from torch.utils.data._utils import worker

from tinygan import data, hooks
from tinygan.data import workers
from tinygan.distributed import Ranks

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


class OddError(Exception):
    """An error that cannot be made of its own arguments."""

    def __init__(self, one, other):
        super().__init__(f"{one}, {other}")


def fail_oddly():
    """Raise an error that cannot be unpickled."""
    raise OddError("a", "b")


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
# A death is seen at once; on a busy machine 2 seconds may pass before the first batch.
PATIENCE = {die: 60, sleep: 2, halt: 2}
stuck = side_by_side(
    {name: (*calls, loader_of(act, PATIENCE[act])) for name, (act, *calls) in STUCK.items()}
)


@pytest.mark.parametrize("name", STUCK)
def test_a_worker_that_is_dead_or_stuck_ends_the_run(name, stuck):
    """After ``timeout`` at the latest an error tells what happened, and all processes end."""
    act, *calls = STUCK[name]
    child = stuck[name]
    ended = child.wait()
    assert ended.returncode == (0 if in_thread in calls else 1), ended
    reason = (
        r"RuntimeError: workers must give a batch within timeout=2 seconds, got none; one is st"
    )
    if act is die:
        reason = r"RuntimeError: workers must not end while they load, got exit code -9 from proces"
    assert re.search(reason, ended.stderr), ended
    note = f"while loading in epoch 0 with workers=2 and timeout={PATIENCE[act]} s; workers=0 shows"
    assert note in ended.stderr, ended
    assert child.is_gone()


def test_a_worker_that_is_just_dying_has_ended():
    """The kernel closes its files, by which that is noticed, a moment before it can be asked."""

    class Dying:
        exitcode = None

        def __init__(self, sentinel):
            self.sentinel = sentinel

        def join(self, seconds):
            self.exitcode = -9

    reading, writing = os.pipe()
    loading = object.__new__(workers.Workers)
    loading._shutdown, loading._workers = True, [Dying(reading)]
    assert loading._ended(0) == []
    os.close(writing)
    assert loading._ended(0) == loading._workers
    os.close(reading)


HELD = []


def hold(loader):
    """Begin an iteration that is still unfinished when the process ends."""
    HELD.append(iter(loader))
    next(HELD[0])


def rest(loader):
    """Complete an epoch with workers that still wait for the next one when the process ends."""
    HELD.append((loader, list(loader)))
    assert loader._workers is not None


UNFINISHED = {
    "resting, call": (call, rest, loader_of()),
    "resting, interpreter": (processes.interpreter, rest, loader_of()),
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


def use_and_die(use):
    """Die in the midst of an iteration, or between two, and PyTorch does not notice.

    It does not if that happens before a worker has asked who its parent is.
    """
    worker.ManagerWatchdog.is_alive = lambda self: True
    use(loader_of())
    die()


@pytest.mark.parametrize("use", [hold, rest])
def test_workers_whose_run_is_killed_end_by_themselves(use, tmp_path):
    """Nobody is left to end them, and they notice."""
    child = processes.Child(tmp_path, use_and_die, use)
    assert child.wait().returncode == -signal.SIGKILL
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


class Seen:
    """Examples that tell which process has loaded them, and what it drew at random."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        assert get_worker_info().dataset is self
        drawn = [torch.rand(()), torch.tensor(random.random()), torch.tensor(np.random.rand())]
        return torch.tensor([os.getpid(), index]), torch.stack([each.float() for each in drawn])


def seen_by(loader):
    """Return which processes load an epoch."""
    return {int(pid) for batch, _ in loader for pid in batch[:, 0]}


def test_workers_are_kept_from_epoch_to_epoch():
    """Not by one that is broken off, runs beside another, is of other data, or of a copy."""
    loader = data.Loader(Seen(), 2, workers=2)
    first = seen_by(loader)
    assert len(first) == 2
    assert os.getpid() not in first
    assert seen_by(loader) == first
    one = iter(loader)
    next(one)
    second = seen_by(loader)
    assert not second & first
    assert seen_by(one) == first  # and these are kept now
    next(iter(loader))
    third = seen_by(loader)
    assert not third & (first | second)
    assert not seen_by(pickle.loads(pickle.dumps(loader))) & third
    loader.dataset = Seen()
    assert not seen_by(loader) & third
    loader.workers = 1
    assert len(seen_by(loader)) == 1


def load_in_a_fork(loader, known):
    """Load an epoch in a forked process, which must neither use nor end the other's workers."""
    child = os.fork()
    if child == 0:
        seen = seen_by(loader)
        del loader
        gc.collect()
        os._exit(bool(seen & known))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def use_in_a_fork():
    """Load an epoch here, in a fork, and here again."""
    loader = data.Loader(Seen(), 2, workers=2)
    known = seen_by(loader)
    assert load_in_a_fork(loader, known) == 0
    assert seen_by(loader) == known


def test_a_forked_process_has_workers_of_its_own(tmp_path):
    """Those that are kept belong to the process that started them."""
    child = processes.Child(tmp_path, use_in_a_fork)
    assert child.wait() == processes.Ended(0, "", "")


def drawn_by(loader):
    """Return the indices and random numbers of each batch that is left."""
    return [torch.cat([seen[:, 1:], drawn], 1) for seen, drawn in loader]


def test_what_workers_draw_depends_on_the_seed_the_epoch_and_the_batch():
    """Not on how many they are, whether they are kept, or where in the epoch a run resumes."""
    loader = data.Loader(Seen(), 2, workers=2)
    first, second = drawn_by(loader), drawn_by(loader)
    every = torch.cat(first + second)[:, 1:].flatten()
    assert len(set(every.tolist())) == len(every)
    for count in (1, 2):
        other = data.Loader(Seen(), 2, workers=count)
        other.load_state_dict(loader.state_dict() | {"epoch": 1, "given": 3})
        assert torch.equal(drawn_by(other)[0], second[3])
        other.set_epoch(1)
        assert all(map(torch.equal, drawn_by(other), second))
    ranks = (data.Loader(Seen(), 4, workers=1, ranks=Ranks(rank, 2)) for rank in range(2))
    one, two = (drawn_by(each)[0][:, 1:] for each in ranks)
    assert not torch.equal(one, two)
    state = torch.get_rng_state()
    list(data.Loader(Images(), 6, workers=1))
    assert torch.equal(torch.get_rng_state(), state)


def test_workers_end_with_their_loader():
    """No process is left; and where one has died meanwhile, the next epoch has new ones."""
    gc.collect()
    others = set(multiprocessing.active_children())
    loader = data.Loader(Seen(), 2, workers=2)
    first = seen_by(loader)
    os.kill(min(first), signal.SIGKILL)
    processes.eventually(lambda kept=loader._workers: kept._ended(0))
    assert not seen_by(loader) & first
    children = set(multiprocessing.active_children()) - others
    assert len(children) == 2
    del loader
    gc.collect()
    assert not any(child.is_alive() for child in children)


def test_a_batch_that_cannot_be_sent_is_an_error():
    """So is an error that cannot; both come with the worker's traceback."""
    with pytest.raises(RuntimeError, match="OddError: a, b") as caught:
        list(data.Loader(Images(3, fail_oddly), 6, shuffle=False, workers=1, timeout=30))
    assert "in fail_oddly" in "".join(caught.value.__notes__)
    unsent = [{"image": torch.zeros(1), "name": lambda: 1}]
    with pytest.raises(TypeError, match="dataset must give tensors of one shape"):
        list(data.Loader(unsent * 4, 2, workers=1, timeout=30))


def test_a_worker_of_a_plain_loader_that_dies_is_an_error(tmp_path):
    """Without a signal to the run, it is no request to stop."""
    images = Images(12, die)
    ended = processes.run(tmp_path, fit, DataLoader(images, 6, num_workers=2))
    assert ended.returncode == 1
    # PyTorch may see its pipe close before it sees the process end.
    assert re.search(r"DataLoader worker|EOFError|Connection\w*Error", ended.stderr), ended
