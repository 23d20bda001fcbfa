"""Checkpoints: whole or not at all, refused if they are of another run, gone on from exactly."""

from __future__ import annotations

import errno
import logging
import re
import shutil
import tempfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

import tinygan
from tinygan import data, hooks
from tinygan._run import checkpoint, disk
from tinygan._run.checkpoint import CheckpointError

from crashes import watched
from helpers import assert_identical, fingerprint, tiny_images, tiny_trainer


def test_resume_falls_back_by_name_and_never_for_a_given_file(tmp_path, caplog):
    """A damaged newest file is passed over with its name; given by path it is an error."""
    trainer = tiny_trainer(hooks=[hooks.Checkpoint(tmp_path, every=1, keep=3)])
    trainer.fit([tiny_images()], steps=3)
    newest = tmp_path / "checkpoints" / "step_000003.pt"
    newest.write_bytes(newest.read_bytes()[:-500])
    with caplog.at_level(logging.WARNING):
        assert tiny_trainer().resume(tmp_path).name == "step_000002.pt"
    assert "step_000003.pt" in caplog.text
    with pytest.raises(checkpoint.CheckpointError, match=r"step_000003\.pt"):
        tiny_trainer().resume(newest)
    for file in (tmp_path / "checkpoints").iterdir():
        file.write_bytes(b"")
    with pytest.raises(checkpoint.CheckpointError, match=r"all 3 checkpoints in .* are damaged"):
        tiny_trainer().resume(tmp_path)


EVENTS = ["save", "save", "save and remove nothing", "copy", "damage"]
SAVE = ("save", 0)


@given(
    step=st.sampled_from([0, 8, 98, 999_998]),
    keep=st.integers(1, 3),
    events=st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 5)), max_size=15),
)
@example(step=999_998, keep=1, events=[SAVE] * 3)  # names sort as numbers, until they are longer
@example(step=8, keep=2, events=[SAVE, SAVE, ("damage", 1), SAVE, SAVE])
@example(step=8, keep=2, events=[SAVE, SAVE, ("copy", 0), SAVE])
def test_the_newest_good_ones_stay_and_files_of_other_names_too(step, keep, events):
    """After any saves, copies, damage and failed removals, just what is older is gone."""

    def refuse(path):
        if path.exists():
            raise PermissionError(errno.EPERM, "Operation not permitted")

    with tempfile.TemporaryDirectory() as path:
        folder = Path(path) / "checkpoints"
        folder.mkdir()
        kept = {"emergency_000001.pt", "step_1.txt", "notes", "step_000001.pt.bak"}
        for name in kept:
            (folder / name).touch()
        keeper = hooks.Checkpoint(path, every=1, keep=keep)
        there, damaged = [], set()
        for event, number in events:
            if event.startswith("save"):
                step += 1
                there.append(step)
                run = SimpleNamespace(
                    step=step,
                    epoch=0,
                    batch=step,
                    batches_per_epoch=None,
                    save=partial(checkpoint.save, {"step": step, "skipped": [0]}),
                    stop_reason=None,
                    skipped=SimpleNamespace(in_row=0),
                    ranks=SimpleNamespace(count=1),
                    compared_step=0,
                )
                with pytest.MonkeyPatch.context() as patch:
                    if event != "save":
                        patch.setattr(disk, "remove", refuse)
                    keeper.on_step_end(run, None)
                good = [s for s in there if s not in damaged][-keep:]
                if event == "save" and len(good) == keep:
                    there = [s for s in there if s >= good[0]]
            elif there:
                chosen = there[number % len(there)]
                if event == "copy":
                    kept.add(f"step_{chosen:06d}.copy.pt")
                    file = checkpoint.path_of(folder, chosen)
                    shutil.copyfile(file, file.with_suffix(".copy.pt"))
                else:
                    damaged.add(chosen)
                    checkpoint.path_of(folder, chosen).write_bytes(b"damaged")
                    keeper = hooks.Checkpoint(path, every=1, keep=keep)  # of the next process
            names = {f"step_{s:06d}.pt" for s in there}
            assert {file.name for file in folder.iterdir()} == kept | names


@pytest.mark.parametrize(("count", "stay"), [(1, [7, 8]), (2, [3, 7, 8])])
def test_of_several_ranks_one_from_before_they_were_compared_stays(count, stay, tmp_path):
    """If they turn out to differ, it is what there is to go on from."""
    keeper = hooks.Checkpoint(tmp_path, every=1, keep=2)
    keeper.folder.mkdir()
    for step in range(1, 9):
        run = SimpleNamespace(
            step=step,
            epoch=0,
            batch=step,
            batches_per_epoch=None,
            save=partial(checkpoint.save, {"step": step}),
            stop_reason=None,
            skipped=SimpleNamespace(in_row=0),
            ranks=SimpleNamespace(count=count),
            compared_step=min(step, 3),
        )
        keeper.on_step_end(run, None)
    assert [checkpoint.step_of(path) for path in checkpoint.files(keeper.folder)] == stay


def test_another_run_is_refused_by_every_difference(tmp_path):
    """Other nets, seeds and losses are all named, and the trainer stays as it was."""
    trainer = tiny_trainer()
    trainer.fit([tiny_images()], steps=1)
    trainer.save(tmp_path / "run.pt")
    other = tiny_trainer(seed=5, loss=tinygan.losses.smoothed(0.1))
    before = fingerprint(other)
    with pytest.raises(ValueError, match=r"(?s)seed: 999 when saved, 5 now.*loss\.real"):
        other.resume(tmp_path / "run.pt")
    assert_identical(before, fingerprint(other))


def test_an_error_in_a_hook_saves_what_there_is_and_names_the_hook(tmp_path):
    """The half-done step goes into a file that is only loaded by name."""

    class Fails(tinygan.Hook):
        def on_update(self, trainer, player):
            if trainer.step == 2:
                raise RuntimeError("bang")

    trainer = tiny_trainer(hooks=[Fails(), hooks.Checkpoint(tmp_path, every=1)])
    with pytest.raises(RuntimeError, match="bang") as caught:
        trainer.fit([tiny_images()], steps=5)
    assert caught.value.__notes__ == ["raised by the hook Fails, in on_update"]
    assert (tmp_path / "checkpoints" / "emergency_000002.pt").exists()
    assert tiny_trainer().resume(tmp_path).name == "step_000002.pt"


def test_a_new_run_does_not_mix_with_an_old_one(tmp_path):
    """A folder that holds later steps is refused, with the remedy, and nothing in it is touched."""
    tiny_trainer(hooks=[hooks.Checkpoint(tmp_path)]).fit([tiny_images()], steps=2)
    anew = tiny_trainer(hooks=[hooks.Checkpoint(tmp_path)])
    with pytest.raises(ValueError, match=r"go on with trainer\.resume"):
        anew.fit([tiny_images()], steps=5)
    assert anew.step == 0


class Fails(tinygan.Hook):
    """Raises an error in one event, at one step."""

    def __init__(self, event, step):
        def fail(trainer, *rest):
            if trainer.step == step:
                raise RuntimeError("bang")

        setattr(self, event, fail)


def names(folder):
    """Return what is in a run's folder of checkpoints."""
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_a_folder_that_was_refused_is_left_alone(tmp_path):
    """A run that stands at a step of its own, or fails before it begins, saves nothing there."""
    tiny_trainer(hooks=[hooks.Checkpoint(tmp_path, every=2)]).fit([tiny_images()], steps=6)
    before = {path: path.read_bytes() for path in (tmp_path / "checkpoints").iterdir()}
    for step, watch in ((5, []), (6, [Fails("on_fit_start", 6)])):
        other = tiny_trainer(seed=5)
        other.fit([tiny_images()], steps=step)
        other.hooks = (*watch, hooks.Checkpoint(tmp_path))
        with pytest.raises((ValueError, RuntimeError)):
            other.fit([tiny_images()], steps=9)
        assert {path: path.read_bytes() for path in (tmp_path / "checkpoints").iterdir()} == before


def test_an_error_between_steps_saves_the_step(tmp_path):
    """Batches that cannot be had end the run with the state of the last step saved."""

    class Batches(list):
        def __iter__(self):
            yield from super().__iter__()
            raise RuntimeError("the disk is gone")

    trainer = tiny_trainer(hooks=[hooks.Checkpoint(tmp_path)])
    with pytest.raises(RuntimeError, match="the disk is gone"):
        trainer.fit(Batches([tiny_images()] * 3), steps=9)
    assert names(tmp_path) == ["step_000003.pt"]


def test_an_unfinished_step_never_becomes_a_checkpoint(tmp_path, caplog):
    """After an error in a step D has moved and G has not: it is warned of, and saved by no name."""
    trainer = tiny_trainer(hooks=[Fails("on_update", 2), hooks.Checkpoint(tmp_path, every=2)])
    with pytest.raises(RuntimeError, match="bang"):
        trainer.fit([tiny_images()], steps=5)
    good = (tmp_path / "checkpoints" / "step_000002.pt").read_bytes()
    assert names(tmp_path) == ["emergency_000002.pt", "step_000002.pt"]
    trainer.hooks = (hooks.Checkpoint(tmp_path, every=3),)
    (tmp_path / "checkpoints" / "step_000002.pt").unlink()
    with caplog.at_level(logging.WARNING):
        trainer.fit([tiny_images()], steps=2)
    assert "an error left step 3 unfinished" in caplog.text
    assert names(tmp_path) == ["emergency_000002.pt"]
    (tmp_path / "checkpoints" / "step_000002.pt").write_bytes(good)
    assert trainer.resume(tmp_path).name == "step_000002.pt"
    caplog.clear()
    trainer.fit([tiny_images()], steps=3)
    assert caplog.text == ""


def test_after_falling_back_the_run_goes_on(tmp_path):
    """A damaged newer file does not keep the run from training, and is replaced in time."""
    tiny_trainer(hooks=[hooks.Checkpoint(tmp_path, every=2)]).fit([tiny_images()], steps=4)
    (tmp_path / "checkpoints" / "step_000004.pt").write_bytes(b"damaged")
    trainer = tiny_trainer(hooks=[hooks.Checkpoint(tmp_path, every=2)])
    assert trainer.resume(tmp_path / "checkpoints").name == "step_000002.pt"
    trainer.fit([tiny_images()], steps=5)
    assert names(tmp_path) == ["step_000004.pt", "step_000005.pt"]
    assert tiny_trainer().resume(tmp_path).name == "step_000005.pt"


def test_a_learning_rate_goes_on_where_it_was(tmp_path):
    """What a schedule has made of an optimizer's options is part of the run."""
    trainer = tiny_trainer()
    trainer.fit([tiny_images()], steps=1)
    trainer.players[0].optimizer.param_groups[0]["lr"] = 0.125
    trainer.save(tmp_path / "run.pt")
    again = tiny_trainer()
    again.resume(tmp_path / "run.pt")
    assert [p.optimizer.param_groups[0]["lr"] for p in again.players] == [0.125, 2e-4]


def test_an_epoch_begins_when_its_first_batch_is_there(tmp_path):
    """A run that is stopped while it waits for that batch hears of the epoch once, not twice."""
    heard = []

    class Epochs(tinygan.Hook):
        def on_epoch_start(self, trainer):
            heard.append(trainer.epoch)

    class Batches(list):
        def __iter__(self):
            if heard == [0]:
                trainer.stop("while it waits")
            yield from super().__iter__()

    batches = Batches([tiny_images()] * 2)
    for _ in range(2):
        trainer = tiny_trainer(hooks=[Epochs(), hooks.Checkpoint(tmp_path)])
        trainer.resume(tmp_path)
        trainer.fit(batches, epochs=3)
        heard.append("end")
    assert heard == [0, "end", 1, 2, "end"]


def test_a_complete_epoch_is_not_trained_again(tmp_path):
    """Batches that cannot go back need not, if all of them are done."""
    images = TensorDataset(tiny_images())
    for _ in range(2):
        trainer = tiny_trainer(hooks=[hooks.Checkpoint(tmp_path, every=2)])
        trainer.resume(tmp_path)
        trainer.fit(DataLoader(images, 6), epochs=1)
        assert (trainer.step, trainer.epoch) == (4, 1)


def test_what_cannot_be_saved_is_told_before_the_first_step(tmp_path):
    """A hook's state that is not plain, or a net's that is not finite, ends the run at once."""

    class Remembers(tinygan.Hook):
        def state_dict(self):
            return {"best": np.float64(1)}

        def load_state_dict(self, state):
            pass

    trainer = tiny_trainer(hooks=[Remembers(), hooks.Checkpoint(tmp_path)])
    with pytest.raises(
        TypeError, match=r"state\['hooks'\]\['Remembers'\]\['best'\] must be a plain"
    ):
        trainer.fit([tiny_images()], steps=1)
    trainer = tiny_trainer(hooks=[hooks.Checkpoint(tmp_path)])
    trainer.generator.register_buffer("mask", torch.tensor(float("nan")))
    with pytest.raises(ValueError, match=r"\['generator'\]\['module'\]\['mask'\]"):
        trainer.fit([tiny_images()], steps=1)
    assert trainer.step == 0


def test_folders_above_a_saved_file_are_made(tmp_path):
    """So hours of training are not lost to a folder that is missing."""
    synchronised = []

    def notes(name, operate, *arguments):
        synchronised.extend(arguments if name == "sync_folder" else ())
        return operate(*arguments)

    with watched(notes):
        tiny_trainer().save(tmp_path / "new" / "er" / "run.pt")
    assert {tmp_path, tmp_path / "new", tmp_path / "new" / "er"} == set(synchronised)
    assert tiny_trainer().resume(tmp_path / "new" / "er" / "run.pt").name == "run.pt"


@pytest.mark.parametrize("path", [None, "", 5, b"run.pt"])
def test_what_is_no_path_is_told(path):
    """A path that was not given does not begin a new run in the folder that one is in."""
    told = re.escape(
        f" must name a file or folder, got {path!r}; use 'runs/faces', or '.' for here."
    )
    for call in (tiny_trainer().resume, tiny_trainer().save, hooks.Checkpoint):
        with pytest.raises(ValueError, match=f"(path|folder){told}"):
            call(path)


def test_a_folder_is_not_saved_onto(tmp_path):
    """The file that it might hold is named, and nothing is left behind."""
    told = f"path must be a file, got the folder {tmp_path}; use {tmp_path / 'run.pt'}."
    with pytest.raises(ValueError, match=re.escape(told)):
        tiny_trainer().save(tmp_path)
    assert not list(tmp_path.parent.glob("*.partial"))


@pytest.mark.parametrize("name", ["run.pt", "run.pth", "run.ckpt"])
def test_a_file_that_is_missing_is_no_new_run(name, tmp_path):
    """But a folder's name may have a dot."""
    with pytest.raises(CheckpointError, match=r"there is no checkpoint .*; check the path"):
        tiny_trainer().resume(tmp_path / name)
    for folder in ("v1.5", "v.pt2", "adam.opt", "a.ckpts", "x.p", "a.pth1", "runs"):
        assert tiny_trainer().resume(tmp_path / folder) is None


def test_seeds_of_numpy_are_saved_as_numbers(tmp_path):
    """A seed from an array is as good as any."""
    trainer = tiny_trainer(seed=np.int64(3), hooks=[hooks.Checkpoint(tmp_path)])
    trainer.fit(data.Loader(tiny_images(), 6, seed=np.int64(3)), steps=2)
    assert tiny_trainer(seed=3).resume(tmp_path).name == "step_000002.pt"
