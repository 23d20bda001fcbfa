"""Checkpoints: whole or not at all, refused if they are of another run, gone on from exactly."""

from __future__ import annotations

import logging
import os
import signal

import pytest
import torch

import tinygan
from tinygan import checkpoint, data, disk, hooks, signals

from helpers import assert_identical, fingerprint, tiny_images, tiny_trainer


class SimulatedCrash(BaseException):
    """The process dies here: no handler for errors may run."""


OPERATIONS = ("create", "write", "sync", "read", "replace", "sync_folder")


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_crash_leaves_the_old_file_or_the_new(operation, share, tmp_path, monkeypatch):
    """Dying at any file operation of a save, with any part written, loses neither file."""
    path = tmp_path / "state.pt"
    checkpoint.save({"step": 1, "weight": torch.ones(50)}, path)

    def dies(*arguments):
        if operation == "write":
            file, content = arguments
            file.write(content[: int(share * len(content))])
            file.flush()
        raise SimulatedCrash

    with monkeypatch.context() as patch:
        patch.setattr(disk, operation, dies)
        with pytest.raises(SimulatedCrash):
            checkpoint.save({"step": 2, "weight": torch.ones(50)}, path)
    assert checkpoint.load(path)["step"] == (2 if operation == "sync_folder" else 1)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_full_disk_keeps_the_old_file_and_no_temporary_one(operation, tmp_path, monkeypatch):
    """An error of the disk at any operation is raised, and leaves a whole file alone."""
    path = tmp_path / "state.pt"
    checkpoint.save({"step": 1}, path)

    def fails(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(disk, operation, fails)
        with pytest.raises(OSError, match="No space left"):
            checkpoint.save({"step": 2}, path)
    assert [file.name for file in tmp_path.iterdir()] == ["state.pt"]
    assert checkpoint.load(path)["step"] in (1, 2)


def test_damage_is_an_error_or_harmless(tmp_path):
    """A flipped byte anywhere, or a file cut anywhere, is refused or changes no value."""
    path = tmp_path / "state.pt"
    saved = {"step": 7, "weight": torch.arange(300.0), "name": "state"}
    checkpoint.save(saved, path)
    good = path.read_bytes()
    refused = 0
    for position in [*range(0, len(good), 7), *range(len(good) - 100, len(good))]:
        path.write_bytes(good[:position] + bytes([good[position] ^ 0x41]) + good[position + 1 :])
        try:
            found = checkpoint.load(path)
        except checkpoint.CheckpointError:
            refused += 1
        else:
            assert found.keys() == saved.keys()
            assert (found["step"], found["name"]) == (7, "state")
            assert torch.equal(found["weight"], saved["weight"])
    assert refused > 100
    for size in range(0, len(good), 64):
        path.write_bytes(good[:size])
        with pytest.raises(checkpoint.CheckpointError):
            checkpoint.load(path)


@pytest.mark.parametrize("steps", [1, 3, 4, 5, 9])
def test_a_run_resumed_from_its_folder_ends_the_same(steps, tmp_path):
    """Stopped at any step and made anew from its newest checkpoint, a run ends bit-identically."""
    images = tiny_images()
    whole = tiny_trainer(hooks=[hooks.JSONLog(tmp_path / "whole")])
    whole.fit(data.Loader(images, 6), steps=9)
    for target in (steps, 9):
        log, keep = hooks.JSONLog(tmp_path / "parts"), hooks.Checkpoint(tmp_path / "parts", every=2)
        parts = tiny_trainer(hooks=[log, keep])
        parts.resume(tmp_path / "parts")
        parts.fit(data.Loader(images, 6), steps=target)
    assert_identical(fingerprint(whole), fingerprint(parts))
    logs = [(tmp_path / name / "log.jsonl").read_bytes() for name in ("whole", "parts")]
    assert logs[0] == logs[1]


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


def test_the_newest_stay_and_pinned_ones_for_ever(tmp_path):
    """Retention counts in numbers, not letters, and leaves what is pinned or named otherwise."""
    keeper = hooks.Checkpoint(tmp_path, every=1, keep=2)
    trainer = tiny_trainer(hooks=[keeper])
    trainer.fit([tiny_images()], steps=5)
    keeper.pin(4)
    trainer.fit([tiny_images()], steps=11)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step_000004.pinned.pt", "step_000010.pt", "step_000011.pt"]


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


def test_a_signal_stops_after_the_step_and_leaves_as_it_should(tmp_path):
    """SIGTERM finishes the step, saves and exits with 143; handlers are as before."""

    def handlers():
        return [signal.getsignal(number) for number in signals.SIGNALS]

    before = handlers()
    send = hooks.every(3, lambda trainer, report: os.kill(os.getpid(), signal.SIGTERM))
    trainer = tiny_trainer(hooks=[send, hooks.Checkpoint(tmp_path)])
    with pytest.raises(SystemExit) as caught:
        trainer.fit([tiny_images()], steps=10)
    assert caught.value.code == 143
    assert trainer.step == 3
    assert trainer.stop_reason == "SIGTERM"
    assert tiny_trainer().resume(tmp_path).name == "step_000003.pt"
    assert handlers() == before


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


def test_a_failed_save_is_loud_and_only_the_last_one_ends_the_run(tmp_path, monkeypatch, caplog):
    """Without space the run goes on to its end, and the save there raises."""

    def fails(*arguments):
        raise OSError(28, "No space left on device")

    trainer = tiny_trainer(hooks=[hooks.Checkpoint(tmp_path, every=2)])
    trainer.fit([tiny_images()], steps=2)
    monkeypatch.setattr(disk, "write", fails)
    with pytest.raises(OSError, match="No space left"), caplog.at_level(logging.ERROR):
        trainer.fit([tiny_images()], steps=6)
    assert trainer.step == 6
    assert "NOT SAVED at step 4" in caplog.text
    assert tiny_trainer().resume(tmp_path).name == "step_000002.pt"


def test_a_new_run_does_not_mix_with_an_old_one(tmp_path):
    """A folder that holds later steps is refused, with the remedy, and nothing in it is touched."""
    tiny_trainer(hooks=[hooks.Checkpoint(tmp_path)]).fit([tiny_images()], steps=2)
    anew = tiny_trainer(hooks=[hooks.Checkpoint(tmp_path)])
    with pytest.raises(ValueError, match=r"go on with trainer\.resume"):
        anew.fit([tiny_images()], steps=5)
    assert anew.step == 0
