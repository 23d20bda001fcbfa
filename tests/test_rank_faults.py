"""What goes wrong on one rank ends, or stops, all of them: at the same step, with its name."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.distributed import TCPStore

import tinygan
from tinygan import data, distributed, hooks
from tinygan._execution.roll_call import RollCall
from tinygan._run import checkpoint
from tinygan.distributed import RankError

import ranks
from helpers import Images, assert_identical, fingerprint, tiny_images, tiny_trainer
from processes import say

SOON = 2
"""Seconds without a sign after which ranks are lost, in these tests."""


class On(tinygan.Hook):
    """Does something at an event of one rank, at a step."""

    def __init__(self, rank, event, step, act):
        def listen(trainer, *arguments):
            if distributed.join().rank == rank and trainer.step == step:
                act(trainer)

        setattr(self, event, listen)


def fail(trainer):
    """Be a hook with a fault."""
    raise ValueError("boom")


def run(folder, *watching, steps=12, batches=None, save_every=4, **arguments):
    """Train in a folder that all ranks know; return the trainer."""
    trainer = tiny_trainer(
        hooks=[*watching, hooks.Checkpoint(folder, every=save_every)], **arguments
    )
    trainer.resume(folder)
    try:
        trainer.fit(batches or data.Loader(tiny_images(), 8), steps=steps)
    finally:
        checkpoint.save(
            {
                "step": trainer.step, "reason": trainer.stop_reason,
                "between": trainer.between_steps, "state": fingerprint(trainer),
            },
            "kept.pt",
        )  # fmt: skip
    return trainer


def kept(folder, count=2):
    """Return what each rank has kept."""
    return [checkpoint.load(folder / str(rank) / "kept.pt") for rank in range(count)]


def saved_in(folder):
    """Return the names of a run's checkpoints."""
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


class Keep(tinygan.Hook):
    """Keeps what the last complete step has left."""

    def __init__(self, kept):
        self.kept = kept

    def on_step_end(self, trainer, report):
        """Keep it."""
        self.kept.update(fingerprint(trainer))


EVENTS = {
    "on_fit_start": 0, "on_epoch_start": 3, "on_step_start": 4, "on_gradients": 4,
    "on_update": 4, "on_step_end": 5, "on_epoch_end": 6, "on_fit_end": 12,
}  # fmt: skip


def run_with_faults(folder, rank):
    """For each event, train with a hook that fails at it on one rank; keep how that ended."""
    found = {}
    for event, step in EVENTS.items():
        complete = {}  # what the last complete step has left
        keep = Keep(complete)
        try:
            run(folder / event, On(rank, event, step, fail), keep)
        except (ValueError, RankError) as error:
            state = checkpoint.load("kept.pt")
            found[event] = [
                type(error).__name__, distributed.describe(error), state["step"], state["between"]
            ]  # fmt: skip
            if distributed.join().rank != rank and event in ("on_epoch_start", "on_step_start"):
                assert_identical(state["state"], complete)  # a step that was begun left no trace
    Path("found.json").write_text(json.dumps(found))


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_of_a_hook_on_one_rank_ends_all_at_the_same_step(tmp_path, rank):
    """At each event: its own error there, one that names it on the other, the same state."""
    ranks.run(tmp_path, 2, run_with_faults, tmp_path, rank)
    found = [json.loads((tmp_path / str(r) / "found.json").read_text()) for r in range(2)]
    for event, step in EVENTS.items():
        (kind, text, at, between), other = found[rank][event], found[1 - rank][event]
        assert (kind, at) == ("ValueError", step)
        assert text == f"ValueError: boom; raised by the hook On, in {event}"
        assert other[:3] == ["RankError", f"RankError: rank {rank} failed: {text}", at], event
        if event not in ("on_step_end", "on_epoch_end"):  # after which the other is done with it
            assert other[3] == between, event
        if step:
            *_, complete = found[0][event]
            name = f"{'step' if complete else 'emergency'}_{step:06d}.pt"
            assert name in saved_in(tmp_path / event), event


def unreadable(rank):
    """Return images of which one cannot be read, on one rank."""

    def refuse():
        if distributed.join().rank == rank:
            raise OSError("no such disk")

    return Images(13, refuse)


def run_unreadable(folder):
    """Train on such images."""
    run(folder, batches=data.Loader(unreadable(1), 8, shuffle=False))


def test_an_error_while_loading_on_one_rank_ends_all_before_the_step(tmp_path):
    """The step that wants the image is not begun, on no rank, and the run is saved there."""
    ended = [child.wait() for child in ranks.start(tmp_path, 2, run_unreadable, tmp_path / "run")]
    assert "RankError: rank 1 failed: OSError: no such disk" in ended[0].stderr
    assert "OSError: no such disk" in ended[1].stderr
    assert [(k["step"], k["between"]) for k in kept(tmp_path)] == [(1, True)] * 2
    assert saved_in(tmp_path / "run") == ["step_000001.pt"]


def run_slowly(folder):
    """Train for long, saying each step."""
    slow = hooks.every(1, lambda trainer, _: (say("step", trainer.step), time.sleep(0.01)))
    run(folder, slow, steps=5000, save_every=1000)
    say("not reached")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_rank_stops_all_after_the_same_step(tmp_path, number):
    """Both end with the signal's status, one checkpoint is saved, of that step."""
    children = ranks.start(tmp_path, 2, run_slowly, tmp_path / "run")
    children[0].until("step 5\n")
    children[1].signal(number)
    ended = [child.wait() for child in children]
    assert [end.returncode for end in ended] == [128 + number] * 2, ended
    one, other = kept(tmp_path)
    assert one["step"] == other["step"] >= 5
    assert saved_in(tmp_path / "run") == [f"step_{one['step']:06d}.pt"]
    assert (one["reason"], other["reason"]) == (f"{number.name} (rank 1)", number.name)
    assert_identical(one["state"], other["state"])


def be_terminated(trainer):
    """Receive SIGTERM."""
    signal.raise_signal(signal.SIGTERM)


def run_to_a_late_signal(folder):
    """Train with a signal to one rank when all steps are done."""
    run(folder, On(1, "on_fit_end", 12, be_terminated))


def test_a_signal_at_the_very_end_reaches_all_too(tmp_path):
    """The run is complete and saved, and both say that they were terminated."""
    children = ranks.start(tmp_path, 2, run_to_a_late_signal, tmp_path / "run")
    assert [child.wait().returncode for child in children] == [128 + signal.SIGTERM] * 2
    assert "step_000012.pt" in saved_in(tmp_path / "run")


def run_and_stop(folder):
    """Train with hooks of which one rank's asks to stop."""
    run(folder / "1", On(1, "on_step_end", 3, lambda trainer: trainer.stop("enough")))
    trainer = run(folder / "0", On(0, "on_gradients", 4, lambda trainer: trainer.stop("enough")))
    trainer.fit(data.Loader(tiny_images(), 8), steps=8)
    say("then on to", trainer.step, trainer.stop_reason)


def test_a_request_to_stop_on_one_rank_stops_all_after_the_same_step(tmp_path):
    """As in one process: at the end of a step after that step, in the midst of one after it."""
    (tmp_path / "run").mkdir()
    for end in ranks.run(tmp_path, 2, run_and_stop, tmp_path / "run"):
        assert end.stdout == "then on to 8 None\n"
    assert [(k["step"], k["reason"]) for k in kept(tmp_path)] == [
        (5, "enough"), (5, "enough (rank 0)")
    ]  # fmt: skip
    assert saved_in(tmp_path / "run" / "1") == ["step_000003.pt"]


def die(trainer):
    """End at once, as by kill -9."""
    os.kill(os.getpid(), signal.SIGKILL)


def freeze(trainer):
    """Give no more signs."""
    time.sleep(1000)


def run_until_it_is_lost(folder, rank, act):
    """Train with one rank that is lost in the midst of a step."""
    run(folder, On(rank, "on_gradients", 5, act))


@pytest.mark.parametrize(("act", "count"), [(die, 4), (freeze, 3)])
def test_a_rank_that_is_killed_or_stuck_ends_all_with_its_name(tmp_path, act, count):
    """Soon: the others end with an error that names it, and what was saved before is whole."""
    start = time.monotonic()
    children = ranks.start(
        tmp_path,
        count,
        run_until_it_is_lost,
        tmp_path / "run",
        1,
        act,
        timeout=SOON if act is freeze else 30,
    )
    others = [child.wait() for rank, child in enumerate(children) if rank != 1]
    if act is freeze:
        children[1].signal(signal.SIGKILL)
    assert children[1].wait().returncode == -signal.SIGKILL
    assert time.monotonic() - start < 20
    pid = children[1].process.pid
    for end in others:
        assert end.returncode == 1
        last = end.stderr.rstrip().splitlines()[-1]
        assert last.startswith(f"tinygan.distributed.LostRankError: rank 1 (process {pid} on ")
        assert ("gave no sign for 2 s" if act is freeze else "ended without a word") in last
        assert "run the same command to go on" in last
    assert saved_in(tmp_path / "run") == ["step_000004.pt"]
    checkpoint.load(tmp_path / "run" / "checkpoints" / "step_000004.pt")


def poison(steps):
    """Return a hook that makes the real images of rank 1 NaN, in some steps of the first try."""

    class Poison(tinygan.Hook):
        def on_step_start(self, trainer):
            if trainer.ranks.rank == 1 and trainer.step in steps and trainer.rollbacks == 0:
                trainer.real.fill_(float("nan"))

    return Poison()


def run_poisoned(folder):
    """Train through one step that is not finite, and through too many of them."""
    trainer = tiny_trainer(hooks=[poison([2])])
    before = []
    trainer.hooks = (
        *trainer.hooks,
        hooks.every(1, lambda trainer, _: before.append(fingerprint(trainer))),
    )
    trainer.fit(data.Loader(tiny_images(), 8), steps=5)
    assert_identical(before[1], before[2])
    assert not torch.equal(*(state["generator.main.0.weight"] for state in before[2:4]))
    assert trainer.skipped.counts.tolist() == [0, 0, 1]

    trainer = run(folder, poison(range(10, 40)), steps=60, save_every=5)
    assert (trainer.step, trainer.rollbacks) == (60, 1)


def test_what_is_not_finite_on_one_rank_is_skipped_on_all(tmp_path):
    """Once: it leaves no trace. For long: all go back to rank 0's checkpoint, and on alike."""
    ended = ranks.run(tmp_path, 2, run_poisoned, tmp_path / "run")
    assert_identical(*(k["state"] for k in kept(tmp_path)))
    assert "went back to step 10 (rollback 1)" in ended[0].stderr
    assert ended[1].stderr == ""  # it is told once
    assert saved_in(tmp_path / "run") == ["step_000055.pt", "step_000060.pt"]  # all compared


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

    def on_gradients(self, trainer, player):
        """Fail by an error that looks like the trainer's."""
        if self.broken == "not finite" and trainer.step == 20:
            raise tinygan._execution.finite.NonFiniteError("boom")


BROKEN = {"state": 0, "load": 1, "rescue": 1, "not finite": 0}


def run_broken():
    """Train with hooks that fail where ranks exchange more than gradients."""
    for how, rank in BROKEN.items():
        watching = [Broken(rank, how)]
        if how in ("rescue", "not finite"):
            watching.append(poison(range(100)))
        with pytest.raises(Exception) as caught:
            tiny_trainer(hooks=watching).fit(data.Loader(tiny_images(), 8), steps=60)
        say(how, distributed.describe(caught.value).replace("\n", " "))


def test_errors_in_exchanges_reach_all(tmp_path):
    """In a hook's state, in taking it back, in a rescue, in an error like the trainer's own."""
    outputs = [end.stdout.splitlines() for end in ranks.run(tmp_path, 2, run_broken)]
    for (how, rank), *lines in zip(BROKEN.items(), *outputs):
        own, others = lines[rank], lines[1 - rank]
        text = own.removeprefix(f"{how} ")
        assert "boom" in text or "must be a plain value or a tensor" in text
        assert others == f"{how} RankError: rank {rank} failed: {text}"


def corrupt_weight(trainer):
    """Change one weight by its last bit."""
    weight = trainer.generator.main[3].weight.data
    weight[0, 0, 0, 0] = torch.nextafter(weight[0, 0, 0, 0], torch.tensor(1.0))


def corrupt_moment(trainer):
    """Change one moment, at a step so late that no weight has felt it yet."""
    optimizer = trainer.players[0].optimizer
    optimizer.state[trainer.discriminator.main[0].weight]["exp_avg"][0, 0, 0, 0] += 1


@pytest.mark.parametrize(
    ("corrupt", "at", "last", "name", "found"),
    [
        (corrupt_weight, 60, 200, "generator.main.3.weight", 100),
        (corrupt_weight, 7, 12, "generator.main.3.weight", 12),
        (corrupt_moment, 12, 12, "discriminator optimizer.main.0.weight.exp_avg", 12),
    ],
)
def test_a_weight_that_differs_is_named(tmp_path, corrupt, at, last, name, found):
    """By its tensor and rank, every 50 steps and at the end; what was saved since is set aside."""
    children = ranks.start(tmp_path, 2, run_corrupted, tmp_path / "run", at, corrupt, last)
    for child in children:
        end = child.wait()
        assert end.returncode == 1
        assert (
            f"DifferentRanksError: ranks must hold the same bits, got {name} that differs on rank "
            f"1 from rank 0's at step {found};"
        ) in end.stderr
        assert "rank 0 failed" not in end.stderr
    there = saved_in(tmp_path / "run")
    good = [name for name in there if name.startswith("step")]
    assert good == (["step_000040.pt", "step_000050.pt"] if found == 100 else [])
    assert len(there) > len(good)
    if last < 100:  # the same command goes on, from before it
        ranks.run(tmp_path, 2, run_corrupted, tmp_path / "run", 0, corrupt, last)


def run_corrupted(folder, at, corrupt, steps):
    """Train with something of one rank that is not the others'."""
    run(folder, On(1, "on_step_end", at, corrupt), steps=steps, save_every=10 if steps > 20 else 4)


def run_unlike(folder):
    """Train with what is the same on each rank, and with what is not: batches, seeds."""
    rank = distributed.join().rank
    tiny_trainer().fit([tiny_images(8), tiny_images(8).bfloat16()], epochs=2)
    tiny_trainer().fit([tiny_images(8).bfloat16()], epochs=1)
    first = [tiny_images(8) * (1 - rank / 2), tiny_images(8)]
    fewer = [tiny_images(8)] * (3 - rank)
    shuffled = torch.utils.data.DataLoader(tiny_images(), 8, shuffle=True)
    draw = On(1, "on_step_end", 2, lambda trainer: torch.rand(1))
    alike = data.Loader(tiny_images(), 8)
    for name, batches, steps, arguments in (
        ("first", first, 10, {}),
        ("fewer", fewer, 10, {}),
        ("later", shuffled, 10, {"hooks": [draw]}),
        ("seed", alike, 10, {"seed": rank}),
        ("order", data.Loader(tiny_images(), 8, seed=rank), 10, {}),
        ("target", alike, 10 + rank, {}),
        ("resumed", data.Loader(tiny_images(), 8, seed=999 + rank), 10, {}),
    ):
        torch.manual_seed(0)
        trainer = tiny_trainer(**arguments)
        if name == "resumed":
            trainer.fit(alike, steps=1)
            trainer.load_state_dict(trainer.state_dict())
        with pytest.raises((RankError, ValueError)) as caught:
            trainer.fit(batches, steps=steps)
        say(name, distributed.describe(caught.value).replace("\n", " "))


def test_ranks_that_are_not_alike_are_refused(tmp_path):
    """Other images, fewer batches, another seed, order or target: named, and no rank waits."""
    one, other = ranks.run(tmp_path, 2, run_unlike, tmp_path)
    same = "RankError: ranks must be given the same batches, of which each takes its part, got"
    fewer = "RankError: ranks must have batches of as many images, got, in the order of ranks, 8, "
    for output in (one.stdout, other.stdout):
        for name in ("first", "later"):
            assert f"{name} {same} others than rank 0's on rank 1; use data.Loader" in output
        assert f"fewer {fewer}the end of the epoch;" in output
    assert "seed: 999 when saved, 1000 now" in other.stdout
    assert "resumed RankError: rank 1 failed: ValueError: batches must be as when" in one.stdout
    unlike = "ValueError: ranks must be alike, got differences: "
    for name, difference in {
        "seed": "seed: 0 on rank 0, 1 on rank 1",
        "order": "batches.seed: 0 on rank 0, 1 on rank 1",
        "target": "target.steps: 10 on rank 0, 11 on rank 1",
    }.items():
        assert f"{name} {unlike}  {difference}" in other.stdout
        assert f"{name} RankError: rank 1 failed: {unlike}" in one.stdout


def pack(root, fault=None):
    """Pack a folder of images, of which rank 0 alone decodes."""
    decode = data.ImageFiles.in_bytes

    def watched(self, index):
        say("decodes")
        if fault is not None:
            fault(None)
        return decode(self, index)

    data.ImageFiles.in_bytes = watched
    images = data.pack(root, root.parent / "images.npy", image_size=8, workers=0)
    say(len(images), int(images.pixels.sum()))
    batch = next(iter(data.Loader(images, 6)))
    say("part", len(batch))


@pytest.fixture
def root(tmp_path):
    """Return a folder of images."""
    pixels = np.random.default_rng(0).integers(0, 256, (7, 9, 9, 3), np.uint8)
    (tmp_path / "images").mkdir()
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "images" / f"{index}.png")
    return tmp_path / "images"


def test_images_are_packed_by_one_rank(root, tmp_path):
    """The other waits, decodes none, and has the same images."""
    one, other = ranks.run(tmp_path, 2, pack, root)
    assert one.stdout.count("decodes") == 7
    assert other.stdout.count("decodes") == 0
    assert one.stdout.splitlines()[-2:] == other.stdout.splitlines()
    assert other.stdout.startswith("7 ")
    assert other.stdout.endswith("part 3\n")


@pytest.mark.parametrize("fault", [fail, freeze])
def test_who_waits_for_packing_in_vain_is_told(root, tmp_path, fault):
    """If rank 0 fails, or gives no sign for the timeout."""
    first, other = ranks.start(tmp_path, 2, pack, root, fault, timeout=1)
    stderr = other.wait().stderr
    if fault is fail:
        assert "RankError: rank 0 failed, packing " in stderr
        assert "ValueError: boom" in stderr
    else:
        first.signal(signal.SIGKILL)
        assert "LostRankError: rank 1 has waited for rank 0, process " in stderr
        assert "images.npy, without a sign of it for 1 s" in stderr
    assert first.wait().returncode != 0


def wait_for_long_work():
    """Let rank 1 wait for work of rank 0 that takes longer than the timeout."""
    own = distributed.join()

    def work():
        for _ in range(12):
            time.sleep(0.125)
            own.sign()
        return {"done": True}

    say(own.first(work, "working"))


def test_work_that_shows_signs_may_take_longer_than_the_timeout(tmp_path):
    """A second and a half of it, with a timeout of one; its result reaches all."""
    children = ranks.start(tmp_path, 2, wait_for_long_work, timeout=1)
    assert [child.wait().stdout for child in children] == ["{'done': True}\n"] * 2


def test_no_rank_names_one_that_is_there():
    """A rank that comes late reads what was found before, without itself and others that came."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    names = [f"process {number} on elsewhere" for number in range(4)]
    early, late = (RollCall(store, rank, names, timeout=0.1) for rank in (0, 2))
    everybody = "rank 1 (process 1 on elsewhere) and rank 2 (process 2 on elsewhere) and rank 3 ("
    assert early.who_is_lost(waited=True).startswith(everybody)
    store.set("alive/3", "")
    only = "rank 1 (process 1 on elsewhere) gave no sign for 0.1 s, as rank 0 found"
    assert late.who_is_lost(waited=False) == only
