"""Exact resume: interrupted anywhere and continued in a new process, a run ends the same."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import tinygan
from tinygan import data, hooks
from tinygan._run import checkpoint

import processes
from helpers import saved_in, tiny_trainer

IMAGES, BATCH, EPOCHS = 194, 64, 3
PER_EPOCH = 4  # the last of them has 2 images
STEPS = PER_EPOCH * EPOCHS


class Average(tinygan.Hook):
    """Averages the generator's weights, as an EMA does, and counts the events it hears."""

    def __init__(self):
        self.average = None
        self.epochs = torch.zeros(2, dtype=torch.int64)

    def on_epoch_start(self, trainer):
        """Count."""
        self.epochs[0] += 1

    def on_epoch_end(self, trainer):
        """Count."""
        self.epochs[1] += 1

    def on_update(self, trainer, player):
        """Move the average a little."""
        if player.name == "generator":
            live = torch.cat([p.detach().flatten() for p in player.module.parameters()])
            self.average = live if self.average is None else self.average.lerp(live, 0.1)

    def state_dict(self):
        """Return both."""
        return {"average": self.average, "epochs": self.epochs}

    def load_state_dict(self, state):
        """Take both back."""
        self.average, self.epochs = state["average"], state["epochs"]


class LossPlot(hooks.LossPlot):
    """Draws at the end of a run alone: to draw is what took most of a run's time."""

    def on_epoch_end(self, trainer):
        """Draw nothing."""


def train(folder, workers, stop_at=None, forget=None):
    """Train to the end, or up to a step, from where the folder stands; in a new process."""
    images = data.image_folder("images", image_size=8)
    batches = data.Loader(images, BATCH, flip=True, workers=workers)
    stop = hooks.every(1, lambda trainer, _: trainer.step == stop_at and trainer.stop("here"))
    trainer = tiny_trainer(
        hooks=[
            stop,
            Average(),
            hooks.JSONLog(folder, every=5),
            hooks.TutorialLog(folder, every=2),
            hooks.TrainingGrid(folder),
            hooks.SampleGrid(folder, every=3),
            LossPlot(folder),
            hooks.Checkpoint(folder, every=3, keep=3),
        ]
    )
    resumed = trainer.resume(folder)
    if forget is not None and resumed is not None:
        state = trainer.state_dict()
        forget(state)
        trainer.load_state_dict(state)
    trainer.fit(batches, epochs=EPOCHS)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Return a folder of images, with a run in ``whole`` that was never interrupted."""
    folder = tmp_path_factory.mktemp("resume")
    (folder / "images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, 9, 11, 3), np.uint8)
    for index in range(IMAGES):
        Image.fromarray(pixels[index]).save(folder / "images" / f"{index:03}.png")
    assert processes.run(folder, train, "whole", 0).returncode == 0
    return folder


def files(folder):
    """Return all that a run has written, of its checkpoints only the last one."""
    last = max((folder / "checkpoints").iterdir())
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*.*")
        if "checkpoints" not in path.parts
    } | saved_in(last)


@pytest.mark.parametrize(("stops", "workers"), [((PER_EPOCH,), 0), ((1, 3, 8, 9), 2)], ids=str)
def test_an_interrupted_run_ends_in_the_same_bits(root, workers, stops, request):
    """After the first step, within an epoch, at its edge, and past it."""
    interrupt(root, request.node.name, workers, stops)


def interrupt(root, parts, workers, stops):
    """Stop a run at some steps, go on each time, and compare its end with that of another.

    Weights, moments, buffers, the hooks' states, counters and the place in the data are compared
    as they are in the last checkpoint, logs and pictures as bytes.
    """
    for stop_at in (*stops, None):
        ended = processes.run(root, train, parts, workers, stop_at)
        assert ended.returncode == 0, ended.stderr
    whole, ours = files(root / "whole"), files(root / parts)
    assert whole.keys() == ours.keys()
    assert len(whole) > 100
    assert [name for name in whole if whole[name] != ours[name]] == []


def moments(state):
    """Forget the first player's moments."""
    state["players"]["discriminator"]["optimizer"]["moments"] = {}


def average(state):
    """Forget what a hook remembers."""
    state["hooks"]["Average"]["average"] *= 1.0000002


def place(state):
    """Shift the data by one batch."""
    state["batches"]["given"] += 1


@pytest.fixture(scope="module")
def half(root):
    """Return the folder of a run that was stopped after six steps."""
    assert processes.run(root, train, "half", 0, 6).returncode == 0
    return root / "half"


@pytest.mark.parametrize("forget", [moments, average, place])
def test_the_comparison_can_fail(root, half, forget, request):
    """A run that forgets its moments or a hook's state, or shifts its data, ends otherwise."""
    parts = request.node.name
    shutil.copytree(half, root / parts)
    assert processes.run(root, train, parts, 0, None, forget).returncode == 0
    assert files(root / parts) != files(root / "whole")


def test_execution_is_the_new_runs(tmp_path):
    """Flags of how an optimizer computes, and the device, come from the trainer that resumes."""

    def adam(**flags):
        def make(parameters):
            return torch.optim.Adam(parameters, lr=1e-3, **flags)

        return {"generator_optimizer": make, "discriminator_optimizer": make}

    saved = tiny_trainer(**adam(foreach=True))
    saved.fit([torch.zeros(4, 3, 8, 8)], steps=2)
    saved.save(tmp_path / "run.pt")
    state = checkpoint.load(tmp_path / "run.pt")
    for player in state["players"].values():
        (group,) = player["optimizer"]["groups"]
        assert not {"fused", "foreach", "capturable", "differentiable"} & group["options"].keys()
    resumed = tiny_trainer(**adam(fused=True))
    resumed.resume(tmp_path / "run.pt")
    for player in resumed.players:
        (group,) = player.optimizer.param_groups
        assert (group["fused"], group["foreach"]) == (True, None)
    resumed.fit([torch.zeros(4, 3, 8, 8)], steps=3)


def test_moments_are_matched_by_name(tmp_path):
    """A net whose parameters are registered in another order gets each parameter's own moments."""

    class Net(torch.nn.Module):
        def __init__(self, names):
            super().__init__()
            for name in names:
                self.register_parameter(name, torch.nn.Parameter(torch.full((192,), 0.1)))

        def forward(self, x):
            return (x.flatten(1) * self.one).sum(1) + (x.flatten(1) * self.two).sum(1).square()

    def trainer(names):
        generator = tinygan.DCGANGenerator(8, latent_dim=5, base_channels=4)
        return tinygan.GANTrainer(generator, Net(names))

    first = trainer(["one", "two"])
    first.fit([torch.rand(4, 3, 8, 8) / 2], steps=2)
    first.save(tmp_path / "run.pt")
    other = trainer(["two", "one"])
    other.resume(tmp_path / "run.pt")
    for name in ("one", "two"):
        ours, theirs = (
            t.players[0].optimizer.state[t.discriminator.get_parameter(name)]["exp_avg"]
            for t in (first, other)
        )
        assert torch.equal(ours, theirs)
    assert not torch.equal(*(s["exp_avg"] for s in other.players[0].optimizer.state.values()))


def test_samples_before_a_fit_have_the_same_bits(tmp_path):
    """Weights are laid out as they were saved: in another layout convolutions round otherwise."""

    def made():
        nets = tinygan.DCGANGenerator(32), tinygan.DCGANDiscriminator(32, base_channels=4)
        return tinygan.GANTrainer(*nets, seed=1)

    trainer, again = made(), made()
    trainer.fit([torch.rand(8, 3, 32, 32) * 2 - 1], steps=1)
    trainer.save(tmp_path / "run.pt")
    again.resume(tmp_path / "run.pt")
    assert torch.equal(again.sample(8), trainer.sample(8))
