"""Checkpoints: whole or not at all, refused if they are of another run, gone on from exactly."""

from __future__ import annotations

import errno
import logging
import tempfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import tinygan
from tinygan import checkpoint, checkpoint_folder, disk, hooks

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
    with pytest.raises(checkpoint.CheckpointError, match="of which none is"):
        tiny_trainer().resume(tmp_path)


EVENTS = ["save", "save", "save and remove nothing", "pin", "damage"]
SAVE = ("save", 0)


@given(
    step=st.sampled_from([0, 8, 98, 999_998]),
    keep=st.integers(1, 3),
    events=st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 5)), max_size=15),
)
@example(step=999_998, keep=1, events=[SAVE] * 3)  # names sort as numbers, until they are longer
@example(step=8, keep=2, events=[SAVE, SAVE, ("damage", 1), SAVE, SAVE])
@example(step=8, keep=2, events=[SAVE, SAVE, ("pin", 1), SAVE])
def test_the_newest_good_ones_stay_and_the_pinned_ones_for_ever(step, keep, events):
    """After any saves, pins, damage and failed removals, just what is older than these is gone."""

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
        there, damaged = [], set()  # the steps of files that are not pinned
        for event, number in events:
            if event.startswith("save"):
                step += 1
                there.append(step)
                run = SimpleNamespace(
                    step=step,
                    save=partial(checkpoint.save, {"step": step}),
                    stop_reason=None,
                    skipped=SimpleNamespace(in_row=0),
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
                if event == "pin":
                    there.remove(chosen)
                    kept.add(keeper.pin(chosen).name)
                else:
                    damaged.add(chosen)
                    checkpoint_folder.path_of(folder, chosen).write_bytes(b"damaged")
                    keeper = hooks.Checkpoint(path, every=1, keep=keep)  # of the next process
            names = {f"step_{s:06d}.pt" for s in there}
            assert {file.name for file in folder.iterdir()} == kept | names


def test_another_run_is_refused_by_every_difference(tmp_path):
    """Other nets, seeds and losses are all named, and the trainer stays as it was."""
    trainer = tiny_trainer()
    trainer.fit([tiny_images()], steps=1)
    trainer.save(tmp_path / "run.pt")
    other = tiny_trainer(seed=5, loss=tinygan.losses.non_saturating(label_smoothing=0.1))
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
