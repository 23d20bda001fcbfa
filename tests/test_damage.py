"""Damage: a checkpoint that is not what was saved is an error, never other weights, never run."""

from __future__ import annotations

import os
import shutil
import zipfile
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import tinygan
from tinygan import hooks
from tinygan._run import checkpoint
from tinygan._run.checkpoint import CheckpointError

from helpers import flat, tiny_images, tiny_trainer, with_latent_dim


@pytest.fixture
def saved(tmp_path):
    """A small run's checkpoint: its path and its state."""
    # One matrix per net, and no moments: fewer headers, of which every byte is tried.
    sgd = partial(torch.optim.SGD, lr=0.1)
    trainer = tinygan.GANTrainer(
        with_latent_dim(
            nn.Sequential(nn.Linear(5, 192, bias=False), nn.Tanh(), nn.Unflatten(1, (3, 8, 8))), 5
        ),
        nn.Sequential(nn.Flatten(), nn.Linear(192, 1, bias=False), nn.Flatten(0)),
        generator_optimizer=sgd,
        discriminator_optimizer=sgd,
    )
    trainer.fit([tiny_images(6)], steps=1)
    trainer.save(tmp_path / "run.pt")
    return tmp_path / "run.pt", flat(checkpoint.load(tmp_path / "run.pt"))


@pytest.mark.parametrize("all_bits", [False, True])
def test_a_flipped_byte_is_an_error_or_changes_nothing(all_bits, saved):
    """Wherever a bit or a byte is flipped, a checkpoint is refused, or its values are as saved."""
    flip(*saved, all_bits, every=23)


def flip(path, state, all_bits, every=1):
    """Flip every so many of the bytes that matter, one after the other."""
    good = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        headers = [
            (record.header_offset, 30 + len(record.filename)) for record in archive.infolist()
        ]
        spots = {*range(1024), *range(archive.start_dir - 512, len(good)), *range(0, len(good), 61)}
    spots.update(*(range(start, start + size) for start, size in headers))
    refused = 0
    spots = sorted(spots)[::every]
    for spot in spots:
        flipped = good[spot] ^ (0xFF if all_bits else 1 << spot % 8)
        path.write_bytes(good[:spot] + bytes([flipped]) + good[spot + 1 :])
        try:
            assert flat(checkpoint.load(path)) == state, spot
        except CheckpointError:
            refused += 1
    assert refused > len(spots) / 2  # the rest are dates, padding, attributes


def test_a_record_marked_as_a_directory_is_an_error(saved):
    """Of a directory torch reads nothing, and gives what was in memory before for its values."""
    path, _ = saved
    with zipfile.ZipFile(path) as archive:
        records = {record: archive.read(record) for record in archive.infolist()}
    weights = [record for record in records if "/data/" in record.filename]
    max(weights, key=lambda record: record.file_size).external_attr |= 0x10
    with zipfile.ZipFile(path, "w") as archive:
        for record, content in records.items():
            archive.writestr(record, content)
    with pytest.raises(CheckpointError, match=path.name):
        checkpoint.load(path)


def test_a_file_that_is_cut_is_an_error(saved):
    """No beginning of a checkpoint passes for one."""
    path, _ = saved
    good = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        starts = [archive.start_dir, *(record.header_offset for record in archive.infolist())]
    for size in {*range(0, len(good), 1024), *starts, 1, 4, 30, len(good) - 22, len(good) - 1}:
        path.write_bytes(good[:size])
        with pytest.raises(CheckpointError, match=path.name):
            checkpoint.load(path)


def deflated(path):
    """Compress each record of a checkpoint."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in records.items():
            archive.writestr(name, content)


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("step 9, all is well\n"),
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: torch.save({"schema": 1}, path, _use_new_zipfile_serialization=False),
        lambda path: torch.save([1], path),
        deflated,
    ],
    ids=["empty", "text", "folder", "legacy", "list", "deflated"],
)
def test_what_is_no_checkpoint_is_an_error_and_passed_over(make, tmp_path, caplog):
    """A thing of another kind by a checkpoint's name is named, and an older file is taken."""
    tiny_trainer(hooks=[hooks.Checkpoint(tmp_path)]).fit([tiny_images(6)], steps=1)
    odd = tmp_path / "checkpoints" / "step_000009.pt"
    shutil.copy(odd.with_name("step_000001.pt"), odd)
    make(odd)
    with pytest.raises(CheckpointError, match=odd.name):
        tiny_trainer().resume(odd)
    assert tiny_trainer().resume(tmp_path).name == "step_000001.pt"
    assert odd.name in caplog.text


@pytest.mark.parametrize(
    "content", [lambda net: net.state_dict(), lambda net: {"epoch": 3, "G": net.state_dict()}]
)
def test_weights_are_no_run(content, tmp_path):
    """A file of weights, this library's or another's, is told as one, with what loads it."""
    trainer = tiny_trainer()
    torch.save(content(trainer.generator), tmp_path / "weights.pth")
    with pytest.raises(ValueError) as caught:
        trainer.resume(tmp_path / "weights.pth")
    assert str(caught.value) == (
        f"{tmp_path / 'weights.pth'}: a checkpoint must have schema 2, got None; weights go "
        "into net.load_state_dict, before the trainer is made."
    )


def test_a_pickled_net_is_no_run(tmp_path):
    """It could execute anything, and is not loaded; the weights alone may be."""
    torch.save(tiny_trainer().generator, tmp_path / "net.pt")
    with pytest.raises(
        CheckpointError, match=r"net\.pt holds pickled objects, which are not loaded; save net\.sta"
    ):
        tiny_trainer().resume(tmp_path / "net.pt")


class Calls:
    """Calls a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.filterwarnings("ignore")  # torch warns when its switch takes effect: no protection
@pytest.mark.parametrize("forced", ["0", "1"])
def test_loading_executes_nothing(forced, tmp_path, monkeypatch):
    """A checkpoint that calls a function is refused uncalled, whatever torch's switch says."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", forced)
    sentinel, path = tmp_path / "executed", tmp_path / "step_000001.pt"
    state = tiny_trainer().state_dict()
    for call in (
        Calls(os.system, f"touch {sentinel}"),
        Calls(exec, f"open({str(sentinel)!r}, 'w').close()"),
        Calls(os.mkdir, str(sentinel)),
    ):
        torch.save({**state, "hooks": {"Hook": call}}, path)
        with pytest.raises(CheckpointError, match="holds pickled objects, which are not loaded"):
            tiny_trainer().resume(path)
        assert not sentinel.exists()


class Remembers(tinygan.Hook):
    """A hook with a state of any kind."""

    def __init__(self, value):
        self.value = value

    def load_state_dict(self, state):
        """Take it back."""

    def state_dict(self):
        """Return it, well inside."""
        return {"inner": [0.5, {"mean": self.value}]}


@pytest.mark.parametrize(
    "value", [np.float64(0.5), {1, 2}, object(), b"0", torch.device("cpu"), {b"0": 1}]
)
def test_what_could_not_be_loaded_is_refused_by_name(value, tmp_path, monkeypatch):
    """A hook's state that is not plain is named before anything on the disk is touched."""
    trainer = tiny_trainer(hooks=[Remembers(value)])
    monkeypatch.setattr(checkpoint, "disk", None)  # to touch it would be another error
    with pytest.raises(TypeError, match=r"\['hooks'\]\['Remembers'\]\['inner'\]\[1\]\['mean'\]"):
        trainer.save(tmp_path / "state.pt")
