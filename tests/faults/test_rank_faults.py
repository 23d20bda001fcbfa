"""Every way in which a rank can fail, be lost, or differ: all ranks end, and the cause is named."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torch.multiprocessing import ProcessExitedException, start_processes

import tinygan
from tinygan import data, distributed
from tinygan._execution.finite import NonFiniteError
from tinygan._run import checkpoint

import ranks
from helpers import tiny_images, tiny_trainer
from ranks import On, fail, in_words, train

EVENTS = {
    "on_fit_start": 0, "on_epoch_start": 3, "on_step_start": 4, "on_gradients": 4,
    "on_update": 4, "on_step_end": 5, "on_epoch_end": 6, "on_fit_end": 12,
}  # fmt: skip


def run_with_faults(folder, rank):
    """For each event, train with a hook that fails at it on one rank; return how that ended."""
    return {
        event: train(folder / event, On(rank, event, step, fail)) for event, step in EVENTS.items()
    }


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_of_a_hook_on_one_rank_ends_all_at_the_same_step(tmp_path, rank):
    """At each event: its own error there, one that names it on the other, the same step saved."""
    ranks.run(tmp_path, 2, ranks.keep, run_with_faults, tmp_path, rank)
    found = ranks.kept(tmp_path)
    for event, step in EVENTS.items():
        own, other = found[rank][event], found[1 - rank][event]
        assert own["error"] == f"ValueError: boom; raised by the hook On, in {event}"
        assert other["error"] == f"RankError: rank {rank} failed: {own['error']}"
        assert own["step"] == other["step"] == step, event
        if event not in ("on_step_end", "on_epoch_end"):  # after which the other is done with it
            assert other["between"] == own["between"], event
        if step:
            name = f"{'step' if found[0][event]['between'] else 'emergency'}_{step:06d}.pt"
            assert name in ranks.saved_in(tmp_path / event), event


def run_to_a_late_signal(folder):
    """Train with a signal to one rank when all steps are done."""
    terminate = On(1, "on_fit_end", 12, lambda trainer: signal.raise_signal(signal.SIGTERM))
    return train(folder, terminate)


def test_a_signal_at_the_very_end_reaches_all_too(tmp_path):
    """The run is complete and saved, and both say that they were terminated."""
    ranks.run(tmp_path, 2, ranks.keep, run_to_a_late_signal, tmp_path / "run")
    for found in ranks.kept(tmp_path):
        assert found["status"] == 128 + signal.SIGTERM
        assert "step_000012.pt" in found["saved"]


def die(trainer):
    """End at once, as by kill -9."""
    os.kill(os.getpid(), signal.SIGKILL)


def freeze(*arguments):
    """Give no more signs."""
    time.sleep(1000)


def run_until_one_is_lost(folder, lost, act):
    """Train with one rank that is lost in the midst of a step."""
    return train(folder, On(lost, "on_gradients", 5, act))


@pytest.mark.parametrize(("act", "count", "lost"), [(die, 4, 1), (freeze, 3, 1), (freeze, 3, 0)])
def test_a_rank_that_is_killed_or_stuck_ends_all(tmp_path, act, count, lost):
    """Soon: the others end with an error, and what was saved before is whole."""
    start = time.monotonic()
    arguments = (ranks.keep, run_until_one_is_lost, tmp_path / "run", lost, act)
    children = ranks.start(tmp_path, count, *arguments, timeout=2 if act is freeze else 30)
    others = [rank for rank in range(count) if rank != lost]
    assert [children[rank].wait().returncode for rank in others] == [0] * len(others)
    if act is freeze:
        children[lost].signal(signal.SIGKILL)
    assert children[lost].wait().returncode == -signal.SIGKILL
    assert time.monotonic() - start < 30
    for rank in others:
        error = ranks.kept_by(tmp_path, rank)["error"]
        if act is die:
            assert error.startswith(f"LostRankError: rank {rank} lost the connection to another")
        else:  # found out by rank 0, to which the others point
            assert error.startswith(f"LostRankError: rank {rank} got no answer for 2 s: ")
            assert (f"Ranks {lost} failed" if rank == 0 else "from rank 0") in error
    assert ranks.saved_in(tmp_path / "run") == ["step_000004.pt"]
    checkpoint.load(tmp_path / "run" / "checkpoints" / "step_000004.pt")


def work(rank, folder):
    """Be a process that PyTorch has started, of which one is killed."""
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    try:
        tiny_trainer(hooks=[On(1, "on_gradients", 5, die)]).fit([tiny_images(8)], steps=9)
    except distributed.LostRankError:
        time.sleep(2)  # so that the cause is seen first


def test_of_spawned_processes_the_killed_one_is_named(tmp_path):
    """By PyTorch, and the other has ended."""
    with pytest.raises(ProcessExitedException, match="process 1 terminated with signal SIGKILL"):
        start_processes(work, (tmp_path,), nprocs=2, start_method="forkserver")


class Broken(tinygan.Hook):
    """Fails in its state, in taking it back, or in a rescue, on one rank."""

    def __init__(self, rank, how):
        self.broken = how if distributed.join().rank == rank else None

    def state_dict(self):
        """Return what cannot be sent."""
        return {"it": object() if self.broken == "state" else 1}

    def load_state_dict(self, state):
        """Refuse."""
        if self.broken == "load":
            raise ValueError("boom")

    def on_non_finite(self, trainer, error):
        """Fail to rescue."""
        if self.broken == "rescue":
            raise ValueError("boom")

    def on_step_start(self, trainer):
        """Let no step be finite, where it is to be rescued."""
        trainer.real.fill_(float("nan"))

    def on_gradients(self, trainer, player):
        """Fail by an error that looks like the trainer's."""
        if self.broken == "not finite" and trainer.step == 10:
            raise NonFiniteError("boom")


BROKEN = {"state": 0, "load": 1, "rescue": 1, "not finite": 0}


def run_broken():
    """Train with hooks that fail where ranks exchange more than gradients."""
    found = {}
    for how, rank in BROKEN.items():
        with pytest.raises(Exception) as caught:
            tiny_trainer(hooks=[Broken(rank, how)]).fit(data.Loader(tiny_images(), 8), steps=60)
        found[how] = in_words(caught.value)
    return found


def test_errors_in_exchanges_reach_all(tmp_path):
    """In a hook's state, in taking it back, in a rescue, in an error like the trainer's own."""
    ranks.run(tmp_path, 2, ranks.keep, run_broken)
    found = ranks.kept(tmp_path)
    for how, rank in BROKEN.items():
        own, other = found[rank][how], found[1 - rank][how]
        assert "boom" in own or "must be a plain value or a tensor" in own
        assert other.startswith(f"RankError: rank {rank} failed: ")
        assert own.partition(": ")[2] in other


def corrupt_weight(trainer):
    """Change one weight by its last bit."""
    weight = trainer.generator.main[3].weight.data
    weight[0, 0, 0, 0] = torch.nextafter(weight[0, 0, 0, 0], torch.tensor(1.0))


@pytest.mark.parametrize(
    ("at", "last", "found", "sure", "saved"),
    [(60, 120, 100, 50, ["step_000050"]), (7, 12, 12, 0, [])],
)
def test_a_weight_that_differs_is_named(tmp_path, at, last, found, sure, saved):
    """By its tensor and rank, every 50 steps and at the end; what was saved since is set aside."""
    arguments = (ranks.keep, run_corrupted, tmp_path / "run", last)
    ranks.run(tmp_path, 2, *arguments, at)
    for rank in ranks.kept(tmp_path):
        assert rank["error"].startswith(
            "DifferentRanksError: ranks must hold the same bits, got generator.main.3.weight that "
            f"differs on rank 1 from rank 0's at step {found};"
        )
        assert rank["error"].endswith(
            f"to go on from step {sure}, at which they last did, or before."
        )
    there = ranks.saved_in(tmp_path / "run")
    assert [name for name in there if name.startswith("step")] == [f"{name}.pt" for name in saved]
    assert any(name.startswith("emergency") for name in there)
    ranks.run(tmp_path, 2, *arguments, -1)  # the same command goes on, from before it
    assert [rank["step"] for rank in ranks.kept(tmp_path)] == [last] * 2


def run_corrupted(folder, steps, at):
    """Train with a weight of one rank that is not the others'."""
    corrupt = On(1, "on_step_end", at, corrupt_weight)
    return train(folder, corrupt, steps=steps, every=50 if steps > 20 else 5)


def pack_and_freeze(root):
    """Pack a folder of images, in the midst of which rank 0 gives no more signs."""
    data.ImageFiles.in_bytes = freeze
    data.pack(root, root / "images.npy", image_size=8, workers=0)


def test_who_waits_for_packing_in_vain_is_told(tmp_path):
    """If rank 0 gives no sign for the timeout."""
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "image.png")
    first, other = ranks.start(tmp_path, 2, pack_and_freeze, tmp_path, timeout=1)
    assert "LostRankError: rank 1 got no answer for 1 s: " in other.wait().stderr
    first.signal(signal.SIGKILL)
    assert first.wait().returncode != 0


def wait_for_long_work():
    """Let rank 1 wait for work of rank 0 that takes longer than the timeout."""
    own = distributed.join()

    def work():
        for _ in range(24):
            time.sleep(0.125)
            own.sign()
        return {"done": True}

    return own.first(work, "working")


def test_work_that_shows_signs_may_take_longer_than_the_timeout(tmp_path):
    """Three seconds of it, with a timeout of two; its result reaches all."""
    ranks.run(tmp_path, 2, ranks.keep, wait_for_long_work, timeout=2)
    assert ranks.kept(tmp_path) == [{"done": True}] * 2
