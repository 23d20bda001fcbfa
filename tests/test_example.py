"""The faces example, run as a user runs it, small."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import signal
import zlib
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tinygan
from tinygan import data, hooks, recipes

import processes
from helpers import assert_identical

SCRIPT = Path(__file__).parents[1] / "examples" / "celeba_faces.py"
SMALL = ["--image-size", "16", "--ngf", "4", "--ndf", "4", "--batch-size", "8", "--num-epochs", "2"]
WRITTEN = {
    "checkpoints", "generator", "generator.pt", "log.jsonl", "log.txt", "loss_plot.png",
    "progress.gif", "progress.html", "real_beside_fake.png", "samples", "training_images.png",
}  # fmt: skip


def start(*arguments, folder):
    """Start the example in ``folder`` with Python's warnings as errors."""
    folder.mkdir(exist_ok=True)
    return processes.Child(folder, processes.script, SCRIPT, [str(word) for word in arguments])


def run(*arguments, folder):
    """Run the example in ``folder`` to its end."""
    return start(*arguments, folder=folder).wait()


def test_without_data_it_trains_on_drawn_faces(tmp_path):
    """It says that it draws faces and how to get CelebA, writes all pictures, and says where."""
    done = run(*SMALL, "--num-faces", 40, "--ngpu", 0, folder=tmp_path)

    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "built-in drawn faces" in lines[0]
    assert "CelebA" in lines[0]
    assert lines[2] == "2 epochs of 5 steps on cpu."
    assert re.fullmatch(r"\[0/2\]\[0/5\]\tLoss_D: .*", lines[4])
    assert f"Look into {tmp_path / 'runs' / 'faces'}" in done.stdout
    assert {path.name for path in (tmp_path / "runs" / "faces").iterdir()} == WRITTEN
    averaged = tinygan.load_generator(tmp_path / "runs" / "faces" / "generator").state_dict()
    assert_identical(torch.load(tmp_path / "runs" / "faces" / "generator.pt"), averaged)


def test_with_data_it_trains_on_it(tmp_path):
    """A folder is packed beside the output folder, and that is said."""
    root = tmp_path / "celeba" / "img_align_celeba"
    root.mkdir(parents=True)
    for index in range(20):
        pixels = np.full((22, 18, 3), index * 12, np.uint8)
        Image.fromarray(pixels).save(root / f"{index:06}.jpg")
    flags = [*SMALL, "--dataroot", tmp_path / "celeba", "--workers", 1]
    done = run(*flags, "--out", tmp_path / "out", folder=tmp_path)

    assert done.returncode == 0, done.stderr
    root = tmp_path / "celeba"
    packed = tmp_path / f"celeba-{zlib.crc32(os.fsencode(root.resolve())):08x}_16x16x3.npy"
    assert f"Training on the images of {root}, decoded once, into {packed}." in done.stdout
    assert len(data.open_packed(packed)) == 20
    assert {path.name for path in (tmp_path / "out").iterdir()} == WRITTEN
    assert len((tmp_path / "out" / "log.jsonl").read_text().splitlines()) == 6


def test_every_flag_is_heeded(tmp_path, monkeypatch):
    """Each of the tutorial's inputs reaches what it is for."""
    for name in ("one", "two"):
        Image.new("RGB", (30, 30)).save(tmp_path / f"{name}.png")
    example = runpy.run_path(str(SCRIPT))
    flags = {
        "dataroot": tmp_path, "workers": 1, "batch-size": 2, "image-size": 21, "nc": 1, "nz": 7,
        "ngf": 3, "ndf": 5, "num-epochs": 9, "lr": 0.001, "beta1": 0.4, "ngpu": 0, "seed": 4,
        "num-faces": 3, "out": tmp_path / "runs" / "out",
    }  # fmt: skip
    given = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    arguments = example["complete"](example["argument_parser"]().parse_args(given))
    packing, pack = {}, data.pack
    monkeypatch.setattr(
        data, "pack", lambda *a, **given: packing.update(given) or pack(*a, **given)
    )
    loader = example["load"](arguments)
    trainer = example["make_trainer"](arguments, hooks.usual(arguments.out))

    assert (loader.seed, loader.batch_size, loader.size) == (4, 2, 2)
    assert packing == {"workers": 1}
    assert loader.dataset.path.parent == tmp_path / "runs"
    assert next(iter(loader)).shape == (2, 1, 21, 21)
    generator, discriminator = trainer.generator, trainer.discriminator
    assert (generator.image_size, generator.channels, generator.latent_dim) == ((21, 21), 1, 7)
    assert (discriminator.image_size, discriminator.channels) == ((21, 21), 1)
    assert generator.main[-2].in_channels == 3
    assert discriminator.main[0].out_channels == 5
    for player in trainer.players:
        (group,) = player.optimizer.param_groups
        assert (group["lr"], group["betas"]) == (0.001, (0.4, 0.999))
    assert (trainer.seed, trainer.device.type) == (4, "cpu")
    assert arguments.num_epochs == 9
    arguments.dataroot = None
    assert example["load"](arguments).size == 3
    torch.manual_seed(4)
    expected = tinygan.DCGANGenerator(21, 1, 7, 3).apply(tinygan.weights_init)
    assert torch.equal(generator.main[0].weight, expected.main[0].weight)


def test_sizes_suit_the_data_and_the_machine(tmp_path):
    """The tutorial's sizes are the default for the user's images, smaller ones for drawn faces."""
    example = runpy.run_path(str(SCRIPT))

    def sizes(*given):
        arguments = example["complete"](example["argument_parser"]().parse_args(list(given)))
        return [getattr(arguments, name) for name in ("batch_size", "image_size", "ngf", "lr")]

    assert sizes("--dataroot", str(tmp_path), "--ngpu", "0") == [128, 64, 64, 2e-4]
    assert sizes("--ngpu", "0") == [24, 32, 32, 2e-3]
    assert sizes("--ngpu", "0", "--ngf", "8") == [24, 32, 8, 2e-3]


def test_other_images_have_another_folder(tmp_path):
    """So that the second command of a user does not meet the run of the first."""
    example = runpy.run_path(str(SCRIPT))

    def out(*given):
        return example["complete"](example["argument_parser"]().parse_args(list(given))).out

    assert out() == Path("runs/faces")
    assert out("--dataroot", str(tmp_path / "pets.zip")) == Path("runs/pets")
    assert out("--dataroot", str(tmp_path), "--out", "here") == Path("here")


def test_drawn_faces_on_a_cpu_have_the_quick_recipe(tmp_path):
    """R3GAN's game, a falling rate, the average of G; the user's images have the tutorial's."""
    example = runpy.run_path(str(SCRIPT))

    def configuration(*given):
        arguments = example["argument_parser"]().parse_args([*given, "--ngpu", "0"])
        made = example["make_trainer"](example["complete"](arguments), [])
        return made.state_dict()["configuration"], made.discriminator

    def nets(weights, **of_d):
        assert weights is None
        torch.manual_seed(999)
        generator = tinygan.DCGANGenerator(32, base_channels=32).apply(tinygan.weights_init)
        return generator, tinygan.DCGANDiscriminator(32, base_channels=32, **of_d)

    for flags, lr, beta1 in ([], 2e-3, 0.0), (["--lr", "1e-4", "--beta1", "0.3"], 1e-4, 0.3):
        recipe = recipes.quick(nets, lr=lr)
        recipe = replace(recipe, optimizer=partial(recipe.optimizer, betas=(beta1, 0.95)))
        quick = recipe.trainer(seed=999)
        found, discriminator = configuration(*flags)
        assert found == quick.state_dict()["configuration"]
        assert_identical(discriminator.state_dict(), quick.discriminator.state_dict())
    tutorial = recipes.tutorial(recipes.dcgan_nets(64, width=64)).trainer(seed=999)
    found, _ = configuration("--dataroot", str(tmp_path))
    assert found == tutorial.state_dict()["configuration"]


def test_the_same_command_twice_writes_the_same(tmp_path):
    """Two runs of one seed write the same bytes; another seed writes others."""
    flags = (*SMALL, "--num-faces", 16, "--out", "out", "--seed")
    # Side by side, because each has a folder of its own.
    runs = {
        tmp_path / name: start(*flags, seed, folder=tmp_path / name)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    }
    logs = []
    for folder, started in runs.items():
        done = started.wait()
        assert done.returncode == 0, done.stderr
        logs.append((folder / "out" / "log.jsonl").read_bytes())
    assert logs[0] == logs[1] != logs[2]


# 4 epochs of 4 steps. Each step makes a picture and a checkpoint, each epoch a plot: after the
# first epoch there is time enough for a signal to come before the end, and 64 images were seen.
LONGER = (*SMALL, "--num-faces", 64, "--batch-size", 16, "--num-epochs", 4)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Start a run that is never interrupted; return a function that returns its folder."""
    folder = tmp_path_factory.mktemp("whole")
    child = start(*LONGER, "--out", "whole", folder=folder)

    @cache
    def wait():
        assert child.wait().returncode == 0
        return folder / "whole"

    return wait


def test_the_same_command_finishes_an_interrupted_run(tmp_path, whole):
    """Interrupted at some step and started again, it ends with the very same files.

    By the other signals too, as tests/faults tries.
    """
    interrupt(signal.SIGTERM, tmp_path, whole)


def interrupt(number, tmp_path, whole):
    """Test a run that is interrupted by a signal."""
    begin = partial(start, *LONGER, "--out", "parts", folder=tmp_path)
    processes.interrupted(begin, tmp_path / "parts", number)
    assert not (tmp_path / "parts" / "generator.pt").exists()
    processes.finished(begin, tmp_path / "parts", whole())
    assert_identical(*(torch.load(f / "generator.pt") for f in (whole(), tmp_path / "parts")))


def test_what_cannot_go_on_is_named(tmp_path, whole):
    """Other flags than the run's end the script with the differences, but for a longer run."""
    shutil.copytree(whole(), tmp_path / "runs" / "faces")
    for flags, sentence in (
        (("--num-faces", 80), "size: 64 when saved, 80 now"),
        (("--ngf", 8), "generator.main.0.weight"),
        (("--seed", 1), "seed: 999 when saved, 1 now"),
    ):
        done = run(*LONGER, *flags, folder=tmp_path)
        assert done.returncode == 2
        assert sentence in done.stderr
        assert "Traceback" not in done.stderr
    done = run(*LONGER, "--num-epochs", 5, folder=tmp_path)
    assert "Done: 20 steps." in done.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--image-size", "4"], "image_size must be at least 8, got 4; use 8 or more."),
        (["--lr", "nan"], "lr must be at least 0, got nan; use 0 or more."),
        (["--nc", "5"], "channels must be 1 or 3, got 5; use 3 for colour."),
        (["--workers", "-1"], "workers must be at least 0, got -1; use 0 or more."),
        (["--num-faces", "0"], "num_faces must be at least 1, got 0; use 1 or more."),
        (["--dataroot", "/dev", "--batch-size", "0"], "batch_size must be at least 1, got 0; us"),
        (
            ["--dataroot", "nowhere"],
            "root must be a folder, a zip or a tar that is not compressed, got now",
        ),
        (
            ["--num-faces", "40", "--batch-size", "41"],
            "batch_size must be at most the number of images, 40, got",
        ),
        (["--num-epochs", "0"], "num_epochs must be at least 1, got 0; use 1 or more."),
        (["--out", "/dev/null/run"], "folder must be writable, got /dev/nu"),
    ],
)
def test_bad_flags_are_named(tmp_path, arguments, sentence):
    """A bad value ends the script with one line, before it draws, decodes or writes anything."""
    done = run(*arguments, folder=tmp_path)
    assert done.returncode == 2
    assert sentence in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not [p for p in tmp_path.rglob("[!.]*") if p.is_file()]
