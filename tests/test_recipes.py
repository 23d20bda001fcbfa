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


def all_of(trainer):
    """Return copies of all tensors that training moves, the average among them."""
    found = fingerprint(trainer)
    if trainer.average is not None:
        found |= {f"average.{k}": v.clone() for k, v in trainer.average.net.state_dict().items()}
    return found


@every_recipe
@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["float32", "bfloat16"])
def test_it_trains(name, dtype):
    """Every weight of both nets moves, and no step is skipped."""
    trainer = recipes.trainer(name, dtype=dtype)
    before = all_of(trainer)
    trainer.fit(recipes.batches(), steps=6)
    after = all_of(trainer)
    weights = [n for n, _ in trainer.generator.named_parameters(prefix="generator")]
    weights += [n for n, _ in trainer.discriminator.named_parameters(prefix="discriminator")]
    assert [n for n in weights if torch.equal(before[n], after[n])] == []
    assert trainer.skipped.counts.tolist() == [0, 0, 0]


@every_recipe
def test_a_resumed_run_is_the_same_run(name, tmp_path):
    """Stopped in the middle of an epoch and resumed by new objects it ends in the same bits."""
    whole = recipes.trainer(name)
    whole.fit(recipes.batches(), steps=11)
    first = recipes.trainer(name)
    first.fit(recipes.batches(), steps=5)
    first.save(tmp_path / "step.pt")
    second = recipes.trainer(name)
    assert second.resume(tmp_path / "step.pt") is not None
    assert_identical(all_of(first), all_of(second))
    second.fit(recipes.batches(), steps=11)
    assert_identical(all_of(whole), all_of(second))
    assert torch.equal(whole.sample(5), second.sample(5))


@every_recipe
def test_looking_changes_nothing(name):
    """Samples taken in every step, of G and of its average, do not change a bit of the run."""
    ends = []
    for look in (False, True):
        hook = tinygan.hooks.every(
            1, lambda trainer, _: (trainer.sample(3), trainer.sample(3, average=False))
        )
        trainer = recipes.trainer(name, hooks=[hook] if look else [])
        trainer.fit(recipes.batches(), steps=5)
        ends.append(all_of(trainer))
    assert_identical(*ends)


@every_recipe
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("dtype", [None, torch.float16], ids=["float32", "float16"])
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
            optimizers = {"generator_optimizer": ADAM, "discriminator_optimizer": ADAM}
            trainer = recipes.trainer(
                name, device=device, capture=captured, dtype=dtype, **optimizers
            )
            trainer.fit(recipes.batches(device), steps=24)
            ends.append(all_of(trainer))
    assert_identical(*ends)
    assert counts.replayed > 0
    # Two penalties, each due in steps of its own, on batches of two sizes, are more kinds.
    most = ["batches of more than 4 kinds: those after them run eagerly."]
    assert [record.getMessage() for record in caplog.records] == (most if name == "R3GAN" else [])


def trained_in_float64(name):
    """Return all tensors of a run without batch norm."""
    trainer = recipes.trainer(name, norm=False, double=True)
    # Parts of unequal size, but for packing: there each rank's part must be whole packs, and of a
    # last batch that fills none nothing is seen.
    last = {"packing, R1 that falls": 1, "several turns of D": 4}.get(name, 5)
    trainer.fit(recipes.batches(dtype=torch.float64, last=last), steps=7)
    return all_of(trainer)


def train_and_keep(names):
    """Train by each recipe and keep what comes of it."""
    for name in names:
        checkpoint.save(trained_in_float64(name), f"{name}.pt")


def test_two_ranks_are_one_run(tmp_path):
    """Without batch norm two ranks end where one process does, what is drawn at random included.

    Spectral norm's vectors follow from the weights alone; all else is a mean over images.
    """
    ranks.run(tmp_path, 2, train_and_keep, list(recipes.RECIPES))
    for name in recipes.RECIPES:
        alone = trained_in_float64(name)
        kept = [checkpoint.load(tmp_path / str(rank) / f"{name}.pt") for rank in range(2)]
        assert_identical(*kept)
        far = {k: (kept[0][k] - v).abs().max().item() for k, v in alone.items()}
        assert {k: most for k, most in far.items() if most > 1e-9} == {}, name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["R3GAN", "DiffAugment", "classes", "hinge, spectral norm"])
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
    state = recipes.trainer(name).state_dict()
    make, ingredients = recipes.RECIPES[name]
    with pytest.raises(ValueError) as error:
        tinygan.GANTrainer(*make()).load_state_dict(state)
    names = [line.strip().split(":")[0] for line in str(error.value).splitlines()[1:-1]]
    told = {name.removeprefix("generator.").split(".")[0] for name in names}
    assert told == set(ingredients)
    recipes.trainer(name).load_state_dict(state)


@every_recipe
def test_a_recipe_is_told_alike_in_every_process(name):
    """What a checkpoint says of it has no addresses in memory: another process goes on with it."""
    trainer = recipes.trainer(name)
    told = trainer.state_dict()["configuration"]
    assert [line for line in told.values() if " at 0x" in line] == []


def test_a_paired_loss_sees_real_beside_fake():
    """D's cost is of its logits on the batch and on fakes; G's of those by the updated D."""
    seen = []

    def note(real, fake):
        seen.append((real.detach().clone(), fake.detach().clone()))
        assert fake.requires_grad
        return fake - real

    made = recipes.nets(norm=False)
    generator, discriminator = made
    images, _ = recipes.batches()[0]
    expected = []

    class Expect(tinygan.Hook):
        def on_step_start(self, trainer):
            self._judge(trainer)

        def on_update(self, trainer, player):
            if player.name == "discriminator":
                self._judge(trainer)

        @torch.no_grad()
        def _judge(self, trainer):
            fake = generator(trainer.noise(trainer.step, len(images)))
            expected.append((discriminator(images), discriminator(fake)))

    loss = losses.PairedLoss(note, note)
    tinygan.GANTrainer(*made, loss=loss, hooks=[Expect()]).fit([images], steps=1)
    assert len(seen) == 2 + len(expected) == 4  # the rehearsal's before them
    for (real, fake), (wanted_real, wanted_fake) in zip(seen[2:], expected):
        torch.testing.assert_close(real, wanted_real)
        torch.testing.assert_close(fake, wanted_fake)


def test_a_loss_that_is_none_is_refused():
    """What makes a loss, or an augmentation, in its place is named."""
    made = recipes.nets()
    with pytest.raises(TypeError, match=r"loss must be a tinygan\.losses\.Loss or PairedLoss, got"):
        tinygan.GANTrainer(*made, loss=losses.smoothed)
    with pytest.raises(TypeError, match=r"augment must be a tinygan\.augmentations\.Augmentation"):
        tinygan.GANTrainer(*made, augment=tinygan.augmentations.diff_augment)
