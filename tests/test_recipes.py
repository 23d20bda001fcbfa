"""Every ingredient beyond the tutorial's recipe keeps what the library promises of a run."""

from __future__ import annotations

import logging
from functools import partial

import pytest
import torch

import tinygan
from tinygan import losses
from tinygan._execution import capture, cuda_graphs
from tinygan._run import checkpoint

import ranks
import recipes
from helpers import assert_identical, fingerprint
from recorder import CountingRecorder, Counts, CPURecorder

ADAM = partial(torch.optim.Adam, lr=2e-4, betas=(0.5, 0.999), fused=True)

every_recipe = pytest.mark.parametrize("name", recipes.RECIPES)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, (torch.bfloat16, None)[i % 2]) for i, name in enumerate(recipes.RECIPES)],
)
def test_a_resumed_run_that_is_watched_is_the_same_run(name, dtype, tmp_path):
    """Every weight moves; samples in each step and a resume within an epoch change no bit."""
    whole = recipes.trainer(name, dtype=dtype)
    before = fingerprint(whole)
    whole.fit(recipes.batches(), steps=8)
    weights = [f"{p.name}.{n}" for p in whole.players for n, _ in p.module.named_parameters()]
    assert [n for n in weights if torch.equal(before[n], fingerprint(whole)[n])] == []
    assert not whole.skipped.counts.any()
    for steps in (4, 8):
        look = tinygan.hooks.every(
            1, lambda trainer, _: (trainer.sample(3), trainer.sample(3, average=False))
        )
        part = recipes.trainer(name, dtype=dtype, hooks=[look])
        if steps == 8:
            assert part.resume(tmp_path / "step.pt") is not None
        part.fit(recipes.batches(), steps=steps)
        part.save(tmp_path / "step.pt")
    assert_identical(fingerprint(whole), fingerprint(part))
    assert torch.equal(whole.sample(5), part.sample(5))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize(
    ("name", "dtype"),
    # float16 besides scales its losses; a recipe in both types tests little more than in one.
    [(name, (None, torch.float16)[i % 2]) for i, name in enumerate(recipes.RECIPES)],
)
def test_replayed_steps_equal_eager_ones(name, device, dtype, monkeypatch, caplog):
    """Captured steps agree with eager ones bit for bit, and none of them falls back."""
    counts = Counts()
    make = {"cpu": lambda device: CPURecorder(), "cuda": cuda_graphs.CUDAGraphs}[device]
    monkeypatch.setattr(
        capture, "recorder_for", lambda device: CountingRecorder(make(device), counts)
    )
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", device == "cuda")
    ends = []
    with caplog.at_level(logging.WARNING):
        for captured in (False, True):
            trainer = recipes.trainer(
                name,
                device=device,
                capture=captured,
                dtype=dtype,
                generator_optimizer=ADAM,
                discriminator_optimizer=ADAM,
            )
            trainer.fit(recipes.batches(device), steps=24 if name == "R3GAN" else 16)
            ends.append(fingerprint(trainer))
    assert_identical(*ends)
    assert counts.replayed > 0
    # Two penalties, each due in steps of its own, on batches of two sizes, are more kinds.
    most = ["there are more than 4 kinds of steps: further kinds run eagerly."]
    assert [record.getMessage() for record in caplog.records] == (most if name == "R3GAN" else [])


RANDOM = [name for name in recipes.RECIPES if name not in ("minimax", "least squares")]


def train_and_keep(folder="."):
    """Train in float64 without batch norm by each recipe that draws, and keep what comes of it."""
    for name in RANDOM:
        trainer = recipes.trainer(name, norm=False, double=True)
        # Parts of unequal size, unless each rank's part must be whole turns or joined images.
        last = {"joined images, R1 that falls": 1, "several turns of D": 4}.get(name, 5)
        trainer.fit(recipes.batches(dtype=torch.float64, last=last), steps=4)
        checkpoint.save(fingerprint(trainer), f"{folder}/{name}.pt")


def test_two_ranks_are_one_run(tmp_path):
    """Without batch norm two ranks end where one process does, what is drawn at random included.

    Spectral norm's vectors follow from the weights alone; all else is a mean over images.
    """
    ranks.run(tmp_path, 2, train_and_keep)
    train_and_keep(tmp_path)
    for name in RANDOM:
        alone, *kept = (checkpoint.load(tmp_path / f / f"{name}.pt") for f in (".", "0", "1"))
        assert_identical(*kept)
        far = {k: (kept[0][k] - v).abs().max().item() for k, v in alone.items()}
        assert {k: most for k, most in far.items() if most > 1e-9} == {}, name


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["R3GAN", "DiffAugment", "classes", "hinge, spectral norm", "finite differences"]
)
def test_compiled_nets_train_alike(name):
    """``compile=True`` gives the same losses, but for rounding."""
    reports = []
    for compiled in (False, True):
        kept = []
        keep = tinygan.hooks.every(1, lambda trainer, report, kept=kept: kept.append(report))
        recipes.trainer(name, compile=compiled, hooks=[keep]).fit(recipes.batches(), steps=4)
        reports.append(torch.cat([report.stacked() for report in kept]))
    torch.testing.assert_close(*reports, rtol=1e-3, atol=1e-3)


@every_recipe
def test_another_recipe_is_refused(name):
    """A run does not go on by the same nets and another ingredient, and each is named."""
    trainer = recipes.trainer(name)
    state = trainer.state_dict()
    make, ingredients = recipes.RECIPES[name]
    with pytest.raises(ValueError) as error:
        tinygan.GANTrainer(*make()).load_state_dict(state)
    names = [line.strip().split(":")[0] for line in str(error.value).splitlines()[1:-1]]
    assert {name.removeprefix("generator.").split(".")[0] for name in names} == set(ingredients)
    recipes.trainer(name).load_state_dict(state)
    # Another process goes on with it: nothing is known by its address in memory.
    assert [line for line in state["configuration"].values() if " at 0x" in line] == []


def test_a_paired_loss_sees_real_beside_fake():
    """D's cost is of its logits on the batch and on fakes; G's of those by the updated D."""
    seen, expected = [], []

    def note(real, fake):
        seen.append((real.detach().clone(), fake.detach().clone()))
        assert fake.requires_grad
        return fake - real

    generator, discriminator = made = recipes.nets(norm=False)
    images, _ = recipes.batches()[0]

    class Expect(tinygan.Hook):
        def on_step_start(self, trainer):
            with torch.no_grad():
                fake = generator(trainer.noise(trainer.step, len(images)))
                expected.append((discriminator(images), discriminator(fake)))

        def on_update(self, trainer, player):
            if player.name == "discriminator":
                self.on_step_start(trainer)

    loss = losses.PairedLoss(note, note)
    tinygan.GANTrainer(*made, loss=loss, hooks=[Expect()]).fit([images], steps=1)
    assert len(seen) == 2 + len(expected) == 4  # the rehearsal's before them
    torch.testing.assert_close(seen[2:], expected)
