"""What goes wrong on one rank ends, or stops, all of them at the same step, and is named.

What takes long, kills or hangs is in tests/faults.
"""

from __future__ import annotations

import os
import signal
import time
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

import tinygan
from tinygan import data, distributed, hooks
from tinygan._run import signals

import ranks
from helpers import Images, tiny_images, tiny_trainer
from processes import say
from ranks import On, fail, in_words, train


def refuse_on_rank_1():
    """Be a data set of which one rank cannot read an image."""
    if distributed.join().rank == 1:
        raise OSError("no such disk")


def poison(steps):
    """Return a hook that makes the real images of rank 1 NaN, in some steps of the first try."""

    class Poison(tinygan.Hook):
        def on_step_start(self, trainer):
            if trainer.ranks.rank == 1 and trainer.step in steps and trainer.rollbacks == 0:
                trainer.real.fill_(float("nan"))

    return Poison()


def poisoned_once(folder):
    """Train through one step that is not finite on rank 1; return whether it has left a trace."""
    trainer = tiny_trainer(hooks=[poison([2])])
    weights = []
    keep = hooks.every(1, lambda trainer, _: weights.append(trainer.generator.main[0].weight + 0))
    trainer.hooks = (*trainer.hooks, keep)
    trainer.fit(data.Loader(tiny_images(), 8), steps=4)
    moved = [not torch.equal(*pair) for pair in pairwise(weights)]
    return {"moved": moved, "skipped": trainer.skipped.counts.tolist()}


def corrupt(trainer):
    """Change one moment, at a step so late that no weight has felt it yet."""
    optimizer = trainer.players[0].optimizer
    optimizer.state[trainer.discriminator.main[0].weight]["exp_avg"][0, 0, 0, 0] += 1


def logs_on_one_rank(players, batch):
    """Be an algorithm that logs something on rank 1 alone."""
    for player in players:
        player.pay(sum(weight.sum() for weight in player.module.parameters()))
        if distributed.join().rank == 1:
            player.pay(player.parameters[0].sum(), f"extra_{player.name}")
        yield player


def unlike(folder):
    """Train with what is not the same on each rank: batches, seeds, targets; return the errors."""
    rank = distributed.join().rank
    tiny_trainer().fit([tiny_images(8), tiny_images(8).bfloat16()], epochs=1)  # alike: no error
    shuffled = torch.utils.data.DataLoader(tiny_images(), 8, shuffle=True)
    draw = On(1, "on_step_end", 2, lambda trainer: torch.rand(1))
    alike = data.Loader(tiny_images(), 8)
    found = {}
    for name, batches, steps, arguments in (
        ("first", [tiny_images(8) * (1 - rank / 2), tiny_images(8)], 10, {}),
        ("fewer", [tiny_images(8)] * (3 - rank), 10, {}),
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
        with pytest.raises((distributed.RankError, ValueError)) as caught:
            trainer.fit(batches, steps=steps)
        found[name] = in_words(caught.value)
    players = tiny_trainer().players
    with pytest.raises(distributed.RankError) as caught:
        tinygan.Trainer(list(players), logs_on_one_rank).fit([tiny_images(8)], steps=1)
    return found | {"statistics": in_words(caught.value)}


def packed(folder):
    """Pack images, first with a fault on rank 0; return what this rank decoded, and its part."""
    decode, decoded = data.ImageFiles.in_bytes, []

    def failing(self, index):
        raise ValueError("boom")

    def watched(self, index):
        decoded.append(index)
        return decode(self, index)

    data.ImageFiles.in_bytes = failing
    with pytest.raises((ValueError, distributed.RankError)) as caught:
        data.pack(folder, folder / "images.npy", image_size=8, workers=0)
    data.ImageFiles.in_bytes = watched
    images = data.pack(folder, folder / "images.npy", image_size=8, workers=0)
    part = next(iter(data.Loader(images, 6)))
    return [in_words(caught.value), len(images), int(images.pixels.sum()), len(part), len(decoded)]


def at_event(event, step, rank=1, act=fail):
    """Return what trains with something that happens at an event of one rank."""
    return lambda folder: train(folder, On(rank, event, step, act))


def enough(trainer):
    """Ask to stop."""
    trainer.stop("enough")


class FailsLast(tinygan.Hook):
    """Fails on rank 1 after the last average of a step."""

    def on_update(self, trainer, player):
        """Fail once the generator has moved."""
        if trainer.ranks.rank == 1 and trainer.step == 4 and player.name == "generator":
            fail()


SCENARIOS = {
    "on_step_start": at_event("on_step_start", 4),
    "on_gradients": at_event("on_gradients", 4),
    "on_update": at_event("on_update", 4, rank=0),
    "last on_update": lambda folder: train(folder, FailsLast(), every=100),
    "on_step_end": at_event("on_step_end", 5),
    "unreadable": lambda folder: train(
        folder, batches=data.Loader(Images(13, refuse_on_rank_1), 8, shuffle=False)
    ),
    "stop at the end of a step": at_event("on_step_end", 3, act=enough),
    "stop in a step": at_event("on_gradients", 4, rank=0, act=enough),
    "poisoned once": poisoned_once,
    "poisoned for long": lambda folder: train(folder, poison(range(10, 40)), steps=32, every=5),
    "corrupt": lambda folder: train(folder, On(1, "on_step_end", 12, corrupt), every=5),
    "unlike": unlike,
    "images": packed,
}


def all_scenarios(folder):
    """Do one after the other, each in a folder of its own; return what they return."""
    return {name: scenario(folder / name) for name, scenario in SCENARIOS.items()}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Return what each of two ranks has found in all scenarios."""
    folder = tmp_path_factory.mktemp("faults")
    (folder / "images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (7, 9, 9, 3), np.uint8)
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(folder / "images" / f"{index}.png")
    ranks.run(folder, 2, ranks.keep, all_scenarios, folder)
    return ranks.kept(folder)


@pytest.mark.parametrize(
    ("event", "rank", "step"),
    [("on_step_start", 1, 4), ("on_gradients", 1, 4), ("on_update", 0, 4), ("on_step_end", 1, 5)],
)
def test_an_error_of_a_hook_on_one_rank_ends_all_at_the_same_step(found, event, rank, step):
    """Its own error there, one that quotes it on the other; the state is saved, once."""
    own, other = found[rank][event], found[1 - rank][event]
    assert own["error"] == f"ValueError: boom; raised by the hook On, in {event}"
    assert other["error"] == f"RankError: rank {rank} failed: {own['error']}"
    assert own["step"] == other["step"] == step
    complete = event == "on_step_end"
    assert f"{'step' if complete else 'emergency'}_{step:06d}.pt" in own["saved"] + other["saved"]
    if not complete:
        assert own["between"] == other["between"] is False


def test_an_error_after_the_last_average_leaves_the_others_a_whole_step(found):
    """They complete it, save it, and end before the next."""
    other, own = (rank["last on_update"] for rank in found)
    assert (own["step"], own["between"], other["step"], other["between"]) == (4, False, 5, True)
    assert other["error"] == f"RankError: rank 1 failed: {own['error']}"
    assert other["saved"] == ["step_000005.pt"]


def test_an_error_while_loading_on_one_rank_ends_all_before_the_step(found):
    """The step that wants the image is not begun, on no rank, and the run is saved there."""
    one, other = (rank["unreadable"] for rank in found)
    assert one["error"] == f"RankError: rank 1 failed: {other['error']}"
    assert other["error"].startswith("OSError: no such disk")
    assert [(each["step"], each["between"]) for each in (one, other)] == [(1, True)] * 2
    assert one["saved"] == ["step_000001.pt"]


def test_a_request_to_stop_on_one_rank_stops_all_after_the_same_step(found):
    """As in one process: at the end of a step after that step, in the midst of one after it."""
    for name, rank, step in ("stop at the end of a step", 1, 3), ("stop in a step", 0, 5):
        own, other = found[rank][name], found[1 - rank][name]
        assert (own["step"], own["reason"], own["error"]) == (step, "enough", None)
        assert (other["step"], other["reason"]) == (step, f"enough (rank {rank})")
        assert own["saved"][-1] == f"step_{step:06d}.pt"
        assert own["state"] == other["state"]


def test_what_is_not_finite_on_one_rank_is_skipped_on_all(found):
    """Once: it leaves no trace. For long: all go back to rank 0's checkpoint, and on alike."""
    for rank in found:
        assert rank["poisoned once"] == {"moved": [True, False, True], "skipped": [0, 0, 1]}
        assert (rank["poisoned for long"]["step"], rank["poisoned for long"]["rollbacks"]) == (
            32,
            1,
        )
    assert len({rank["poisoned for long"]["state"] for rank in found}) == 1


def test_a_weight_that_differs_is_named(found):
    """By its tensor and rank, at the end; what was saved since the beginning is set aside."""
    for rank in found:
        assert rank["corrupt"]["error"].startswith(
            "DifferentRanksError: ranks must hold the same bits, got discriminator "
            "optimizer.main.0.weight.exp_avg that differs on rank 1 from rank 0's at step 12; let "
            "hooks change weights and gradients on every rank alike, and run the same command to "
            "go on from step 0, at which they last did, or before."
        )
    assert not [name for name in found[0]["corrupt"]["saved"] if name.startswith("step")]


def test_ranks_that_are_not_alike_are_refused(found):
    """Other images, fewer batches, another seed, order or target: named, and no rank waits."""
    one, other = (rank["unlike"] for rank in found)
    same = "RankError: all ranks must be given the same batches; rank 1 differs from rank 0 "
    for name, sizes in ("first", "8, 8"), ("later", "8, 8"), ("fewer", "8, 0"):
        sentence = f"{same}(sizes by rank: [{sizes}]); use data.Loader"
        assert one[name] == other[name]
        assert one[name].startswith(sentence)
    assert one["statistics"] == other["statistics"]
    assert one["statistics"].startswith("RankError: ranks must log the same statistics")
    assert "seed: 999 when saved, 1000 now" in other["resumed"]
    for name, difference in {
        "seed": "seed: 0 on rank 0, 1 on rank 1",
        "order": "batches.seed: 0 on rank 0, 1 on rank 1",
        "target": "target.steps: 10 on rank 0, 11 on rank 1",
    }.items():
        assert difference in other[name]
    for name in ("resumed", "seed", "order", "target"):
        assert one[name] == f"RankError: rank 1 failed: {other[name]}"


def test_images_are_packed_by_one_rank(found):
    """The other waits, decodes none, and has the same images; if packing fails, it hears why."""
    (failed, *one), (told, *other) = (rank["images"] for rank in found)
    assert one == [7, other[1], 3, 7]
    assert other == [7, one[1], 3, 0]
    assert "boom" in failed
    assert told == f"RankError: rank 0 failed: {failed}"
    assert "while packing " in failed


def run_slowly(folder):
    """Train for long, saying each step."""
    slow = hooks.every(1, lambda trainer, _: (say("step", trainer.step), time.sleep(0.01)))
    return train(folder, slow, steps=5000, every=1000)


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_a_signal_to_one_rank_stops_all_after_the_same_step(number, tmp_path):
    """Both end with the signal's status, one checkpoint is saved, of that step."""
    children = ranks.start(tmp_path, 2, ranks.keep, run_slowly, tmp_path / "run")
    children[0].until("step 5\n")
    children[1].signal(number)
    assert [child.wait().returncode for child in children] == [0, 0]
    one, other = ranks.kept(tmp_path)
    assert (one["status"], other["status"]) == (128 + number,) * 2
    assert one["step"] == other["step"] >= 5
    assert one["saved"] == [f"step_{one['step']:06d}.pt"]
    assert (one["reason"], other["reason"]) == (f"{number.name} (rank 1)", number.name)
    assert one["state"] == other["state"]


def die(trainer):
    """End at once, as by kill -9."""
    os.kill(os.getpid(), signal.SIGKILL)


def run_until_one_is_killed(folder):
    """Train with one rank that is killed in the midst of a step."""
    return train(folder, On(1, "on_gradients", 5, die))


def test_a_rank_that_is_killed_ends_all(tmp_path):
    """At once, with an error; what was saved before is whole."""
    one, other = ranks.start(tmp_path, 2, ranks.keep, run_until_one_is_killed, tmp_path / "run")
    assert other.wait().returncode == -signal.SIGKILL
    assert one.wait().returncode == 0
    found = ranks.kept_by(tmp_path, 0)
    assert found["error"].startswith(
        "LostRankError: rank 0 lost the connection to another rank, which has ended; "
    )
    assert found["error"].endswith("Run the same command to go on.")
    assert found["saved"] == ["step_000004.pt"]


@pytest.mark.parametrize(("found_too", "missing"), [({}, "RANK, "), ({"RANK": "0"}, "")])
def test_a_stray_world_size_is_named(monkeypatch, found_too, missing):
    """As a cluster's job script may leave it: no run that is silently one of many."""
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"WORLD_SIZE": "8", **found_too}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(
        ValueError, match=f"^WORLD_SIZE is 8, but {missing}MASTER_ADDR, MASTER_PORT must"
    ):
        tiny_trainer()
