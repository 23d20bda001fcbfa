"""``tinygan train``, run as a user runs it, small."""

from __future__ import annotations

import contextlib
import io
import itertools
import shutil
import signal
import warnings
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

import tinygan
from tinygan import data, hooks, recipes
from tinygan.cli import train
from tinygan.cli.arguments import argument_parser
from tinygan.cli.main import main
from tinygan.hooks import logs

import processes
import ranks
from helpers import assert_identical

SMALL = ["--image-size", "16", "--width", "4", "--batch-size", "8", "--num-epochs", "2"]
FACES = ("-", *SMALL, "--num-faces", 40)
WRITTEN = {
    "checkpoints", "generator", "log.jsonl", "log.txt", "loss_plot.png", "progress.gif",
    "progress.html", "real_beside_fake.png", "samples", "training_images.png",
}  # fmt: skip


def command(*words):
    """Run the command line with Python's warnings as errors; for a child."""
    warnings.simplefilter("error")
    main(["train", *map(str, words)])


def start(*words, folder):
    """Start the command in another process, within ``folder``."""
    folder.mkdir(exist_ok=True)
    return processes.Child(folder, command, *words)


def run(*words):
    """Run the command here; return its exit code."""
    try:
        main(["train", *map(str, words)])
    except SystemExit as end:
        return end.code
    return 0


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def pets(tmp_path):
    """Return a folder of 16 images in two sub-folders."""
    for index in range(16):
        folder = tmp_path / "pets" / ("cat", "dog")[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (18, 22), (9 * index, 0, 0)).save(folder / f"{index}.png")
    return "pets"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return the folder in which a run has ended, and what it said."""
    folder = tmp_path_factory.mktemp("finished")
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()) as said:
        assert run(*FACES, "--ngpu", 0) == 0
    return folder, said.getvalue()


@pytest.fixture
def faces(finished, tmp_path):
    """Return the words of a run that has ended here: a copy of it."""
    shutil.copytree(finished[0] / "runs", tmp_path / "runs")
    return FACES


def test_without_data_it_trains_on_drawn_faces(finished):
    """It writes all pictures and a generator that loads, and says where and what comes next."""
    folder, out = finished
    first, second, *_ = out.splitlines()
    assert first == "40 images, 2 epochs of 5 steps on cpu."
    assert second == "Recipe quick: batches of 8, nets of width 4."
    assert f"Look into {folder / 'runs' / 'faces'}: " in out
    assert "\n  tinygan sample runs/faces\n  tinygan explore runs/faces\n" in out
    assert {path.name for path in (folder / "runs" / "faces").iterdir()} == WRITTEN
    generator = tinygan.load_generator(folder / "runs" / "faces")
    assert (generator.image_size, generator.facts["trained_on"]) == (
        (16, 16),
        "drawn faces",
    )


def test_images_are_packed_beside_the_run_and_the_run_is_the_same_without(pets):
    """The output folder has the data's name; --no-pack changes nothing that is learned."""
    words = (pets, *SMALL, "--num-epochs", 1, "--flip")
    assert run(*words, "--workers", 1) == 0
    (packed,) = Path("runs").glob("pets-*_16x16x3.npy")
    assert len(data.open_packed(packed)) == 16
    assert run(*words, "--workers", 0, "--no-pack", "--out", "other/run") == 0
    assert [path.name for path in Path("other").iterdir()] == ["run"]
    both = [Path(folder, "log.jsonl").read_bytes() for folder in ("runs/pets", "other/run")]
    assert both[0] == both[1]


def test_classes_are_trained(pets):
    """A class per sub-folder, if that is asked for; the generator knows their names."""
    assert run(pets, *SMALL, "--num-epochs", 1, "--labels", "folders", "--workers", 0) == 0
    generator = tinygan.load_generator("runs/pets")
    assert (generator.num_classes, generator.facts["classes"]) == (2, ["cat", "dog"])


def test_every_flag_is_heeded(pets, tmp_path, monkeypatch):
    """Each reaches what it is for."""
    flags = {
        "workers": 1, "batch-size": 2, "image-size": 21, "nc": 1, "nz": 7, "width": 3,
        "num-epochs": 9, "lr": 0.001, "beta1": 0.4, "ema": 77, "ngpu": 0, "seed": 4,
        "num-faces": 5, "recipe": "r1", "out": tmp_path / "deep" / "out", "dtype": "bfloat16",
    }  # fmt: skip
    given = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    given += ["--flip", "--capture", "--compile", "--cudnn-benchmark", "--diff-augment"]
    a = argument_parser().parse_args(["train", pets, *given])
    train._complete(a)
    trainer = train._trainer(a, 1, None)
    generator = trainer.generator
    assert (generator.image_size, generator.channels, generator.latent_dim) == ((21, 21), 1, 7)
    assert generator.main[-2].in_channels == trainer.discriminator.main[0].out_channels == 3
    for player in trainer.players:
        (group,) = player.optimizer.param_groups
        assert (group["lr"], group["betas"]) == (0.001, (0.4, 0.999))
    assert (trainer.seed, trainer.device.type, trainer.dtype) == (4, "cpu", torch.bfloat16)
    assert trainer.average.half_life == 77
    words = trainer.state_dict()["configuration"]
    assert {"penalties.0.every", "augment.0.draw"} <= words.keys()
    assert type(trainer._step).__name__ == "CapturedStep"
    assert all(player.applied.compiled for player in trainer.players)
    assert trainer._execution.cudnn_benchmark
    images = train._images(a)
    assert (images.path.parent, len(images)) == (tmp_path / "deep", 16)
    assert next(iter(data.Loader(images, 2))).shape == (2, 1, 21, 21)
    a.data = "-"
    assert len(train._images(a)) == 5
    loaders = []
    monkeypatch.setattr(train, "_train", lambda a, loader, images: loaders.append(loader))
    assert run(pets, *given) == 0
    (loader,) = loaders
    assert (loader.batch_size, loader.seed, loader.flip, loader.workers) == (2, 4, True, 1)


def test_sizes_suit_the_data_and_the_machine(monkeypatch):
    """A CPU has smaller sizes than a GPU and the quick recipe, and fewer pixels of drawn faces."""

    def sizes(*words):
        a = argument_parser().parse_args(["train", *words])
        train._complete(a)
        return a.recipe, a.batch_size, a.image_size, a.width, a.images

    cpu = ("--device", "cpu")
    assert sizes("pictures", *cpu) == ("quick", 12, 64, 32, 360_000)
    assert sizes("-", *cpu) == ("quick", 12, 32, 32, 80_000)
    assert sizes("-", *cpu, "--width", "8", "--batch-size", "7") == ("quick", 7, 32, 8, 80_000)
    assert sizes("-", *cpu, "--recipe", "hinge") == ("hinge", 32, 32, 32, 80_000)
    monkeypatch.setattr(train.checks, "device", lambda _: torch.device("cuda"))
    large = 128, 64, 64, 1_000_000
    assert sizes("pictures") == sizes("-") == ("relativistic", *large)
    assert sizes("-", "--recipe", "quick") == ("quick", 12, *large[1:])


@pytest.mark.parametrize(
    ("device", "where", "images", "words", "epochs"),
    [
        ("cuda", "pets", 202_599, [], 5),  # the tutorial's
        ("cuda", "pets", 3_000, [], 333),
        ("cuda", "-", 8_000, [], 125),
        ("cpu", "pets", 900_000, [], 1),
        ("cpu", "pets", 3_000, [], 120),
        ("cpu", "-", 8_000, [], 10),
        ("cpu", "pets", 3_000, ["--num-epochs", "7"], 7),
    ],
)
def test_a_run_sees_as_many_images_whatever_their_number(
    monkeypatch, pets, device, where, images, words, epochs
):
    """Five epochs of a small folder would be over before there is anything to see."""

    class Many(torch.utils.data.Dataset):
        num_classes = None

        def __len__(self):
            return images

        def __getitem__(self, index):
            """Return nothing: nobody asks."""

    found = []
    monkeypatch.setattr(train.checks, "device", lambda _: torch.device(device))
    monkeypatch.setattr(train, "_images", lambda a: Many())
    monkeypatch.setattr(train, "_trainer", lambda *_: None)
    monkeypatch.setattr(data, "Loader", lambda images, *_, **__: SimpleNamespace(dataset=images))
    monkeypatch.setattr(train, "_train", lambda a, *_: found.append(a.num_epochs))
    assert run(where, *words) == 0
    assert found == [epochs]


@pytest.mark.parametrize("ngpu", ["0", "2"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_each_recipe_trains_with_the_default_sizes(monkeypatch, device, ngpu):
    """A batch can be split among the ranks, and among each one's turns of D."""
    for name in recipes.RECIPES:
        words = ["train", "pictures", "--recipe", name, "--ngpu", ngpu, "--width", "8"]
        with monkeypatch.context() as only_here:
            only_here.setattr(train.checks, "device", lambda _: torch.device(device))
            train._complete(a := argument_parser().parse_args(words))
        a.device = torch.device("cpu")
        turns = train._trainer(a, 1, None).algorithm.settings["d_steps"]
        assert a.batch_size % (turns * max(1, int(ngpu))) == 0
        least = 12 if name == "quick" else {"cpu": 30, "cuda": 120}[device]
        assert a.batch_size >= least


def test_a_finished_run_can_be_made_longer():
    """Nothing has to be allowed for it, and it ends like a run of that length."""
    words = ("-", *SMALL, "--num-faces", 40, "--workers", 0)
    assert run(*words, "--out", "parts") == 0
    for folder in ("parts", "whole"):
        assert run(*words, "--out", folder, "--num-epochs", 3) == 0
    made = (tinygan.load_generator(folder) for folder in ("parts", "whole"))
    assert_identical(*(generator.state_dict() for generator in made))


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_only_r3gan_knows_the_length_of_a_run(name):
    """With any other recipe nothing that a checkpoint holds depends on the number of epochs."""
    made = []
    for epochs in 2, 3:
        words = ["train", "-", *SMALL, "--width", "16", "--recipe", name, "--batch-size", "10"]
        train._complete(a := argument_parser().parse_args([*words, "--num-epochs", str(epochs)]))
        made.append(train._trainer(a, 100, None).state_dict()["configuration"])
    assert (made[0] == made[1]) == (name != "r3gan")


def test_r3gan_has_nets_and_schedules_of_its_own(capsys):
    """Its schedules end with the run; a flag that they would overrule is refused, not ignored."""
    words = ["train", "-", "--recipe", "r3gan", "--width", "32", "--num-epochs", "3", "--ngpu", "0"]
    train._complete(a := argument_parser().parse_args([*words, "--flip"]))
    trainer = train._trainer(a, 100, 2)
    generator = trainer.generator
    assert (generator.widths, generator.latent_dim, generator.num_classes) == ((32,) * 4, 64, 2)
    (rates,) = trainer.hooks
    lr = rates.options["lr"]
    assert (lr(0), lr(300)) == pytest.approx((2e-4 * 24, 5e-5 * 24))  # 32 is a 24th of 768
    assert lr(299) > lr(300)
    assert trainer.state_dict()["configuration"]["augment.0.draw"] != "none"
    a.num_epochs = 6
    with pytest.raises(ValueError, match=r"hooks\.Schedule\.lr: .* when saved"):
        train._trainer(a, 100, 2).load_state_dict(trainer.state_dict())
    assert run(*words[1:], "--beta1", 0.5) == 2
    assert "--beta1 must be left out with --recipe r3gan" in capsys.readouterr().err
    train._complete(a := argument_parser().parse_args([*words, "--lr", "0.001"]))
    (rates,) = train._trainer(a, 100, 2).hooks
    assert rates.options["lr"](0) == 0.001


@pytest.mark.parametrize("where", ["-", "pets"])
def test_a_dry_run_writes_nothing(where, pets, tmp_path, capsys):
    """It says what would happen, and how long; the disk and the next run are as without it."""
    before = sorted(tmp_path.rglob("*"))
    words = [where, *SMALL, "--num-faces", 40, "--workers", 0]
    words += ["--labels", "folders"] * (where != "-")
    assert run(*words, "--dry-run") == 0
    assert sorted(tmp_path.rglob("*")) == before
    said = capsys.readouterr().out.splitlines()
    images, steps, classes = (40, 10, "none") if where == "-" else (16, 4, "cat, dog")
    assert said[1] == f"images   {images}; classes: {classes}"
    nets = recipes.dcgan_nets(16, width=4, num_classes=2 if where == "pets" else None)(norm=None)
    g, d = (sum(weight.numel() for weight in net.parameters()) for net in nets)
    assert said[2] == f"nets     {g:,} weights of G and {d:,} of D, by the recipe quick"
    assert said[3] == f"steps    {steps}: 2 epochs of {steps // 2}, of 8 images"
    assert said[4].startswith("time     about ")
    assert said[5].startswith("memory   ")
    assert said[6].startswith(f"files    runs/{'faces' if where == '-' else 'pets'}, two checkp")
    assert [line.endswith("0.0 MB of images") for line in said[7:]] == [True] * (where != "-")


def test_a_dry_run_of_large_nets_tries_two_steps(monkeypatch, capsys):
    """Where a step takes 10 seconds, twenty would be long."""
    clock = itertools.count(0, 10).__next__
    monkeypatch.setattr(train, "time", SimpleNamespace(perf_counter=clock))
    assert run("-", *SMALL, "--num-faces", 40, "--workers", 0, "--dry-run") == 0
    # 2 steps have taken 30 seconds by this clock, so 10 take 150.
    assert "time     about 2.5 minutes on cpu, estimated by 2 steps\n" in capsys.readouterr().out


def test_without_matplotlib_there_is_no_plot(monkeypatch, caplog):
    """One sentence says so; all else is there."""
    whole = [type(hook).__name__ for hook in hooks.usual("run", every=7, trained_on="me")]

    def missing(module, *, extra, wanted_by):
        raise ImportError(f'{wanted_by} needs {module}: pip install "tinygan[{extra}]"')

    monkeypatch.setattr(logs.checks, "require", missing)
    left = [type(hook).__name__ for hook in hooks.usual("run")]
    assert left == [name for name in whole if name != "LossPlot"]
    assert caplog.messages == [
        'there will be no loss_plot.png: LossPlot needs matplotlib: pip install "tinygan[plots]"'
    ]


# 4 epochs of 4 steps, as in the example's tests: time enough for a signal before the end.
LONGER = ("-", *SMALL, "--num-faces", 64, "--batch-size", 16, "--num-epochs", 4, "--flip")


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
    interrupt(signal.SIGINT, tmp_path, whole)


def interrupt(number, tmp_path, whole):
    """Test a run that is interrupted by a signal."""
    begin = partial(start, *LONGER, "--out", "parts", folder=tmp_path)
    processes.interrupted(begin, tmp_path / "parts", number)
    processes.finished(begin, tmp_path / "parts", whole())
    made = (tinygan.load_generator(folder) for folder in (whole(), tmp_path / "parts"))
    assert_identical(*(generator.state_dict() for generator in made))


def test_what_cannot_go_on_is_named(faces, capsys):
    """Other flags than the run's end it with the differences, in words of the command line."""
    for flags, sentence in (
        (("--num-faces", 48), "size: 40 when saved, 48 now"),
        (("--width", 8), "generator.main.0.weight"),
        (("--width", 8), "  and: the shapes of 10 other tensors\n"),
        (("--seed", 1), "To resume anyway: --allow 'seed'"),
        (("--recipe", "hinge"), "ema_half_life: inf"),
        (("--resume", "runs"), "--resume must be a checkpoint, a .pt file, got runs."),
        (("--resume", "no.pt"), "--resume must be a checkpoint, a .pt file, got no.pt."),
    ):
        capsys.readouterr()
        assert run(*faces, *flags) == 2, flags
        assert sentence in capsys.readouterr().err
    rates = ("hooks.Schedule.lr", "generator optimizer.lr", "discriminator optimizer.lr")
    assert run(*faces, "--num-epochs", 3, "--lr", 0.1, "--allow", *rates) == 0
    assert "Resuming from runs/faces/checkpoints/step_000010.pt" in capsys.readouterr().out


def test_a_checkpoint_is_gone_on_from_by_its_name(faces, capsys):
    """A run in another folder begins where the named one stood."""
    file = "runs/faces/checkpoints/step_000009.pt"
    assert run(*faces, "--resume", file, "--out", "second") == 0
    assert f"Resuming from {file};" in capsys.readouterr().out
    both = (tinygan.load_generator(folder).state_dict() for folder in ("runs/faces", "second"))
    assert_identical(*both)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["-", "--image-size", "4"], "--image-size must be at least 8, got 4; use 8 or more."),
        (["pets", "--lr", "nan", "--workers", "0"], "lr must be in [0, inf), got nan; use a"),
        (
            ["pets", "--recipe", "r1", "--lr", "nan", "--workers", "0"],
            "Invalid learning rate: nan",
        ),
        (["-", "--nc", "5"], "channels must be 1 or 3, got 5; use 3 for colour."),
        (["-", "--workers", "-1"], "--workers must be at least 0, got -1; use 0 or more."),
        (["-", "--num-faces", "0"], "length must be at least 1, got 0; use 1 or more."),
        (["-", "--num-epochs", "0"], "--num-epochs must be at least 1, got 0; use 1 or more."),
        (["-", "--labels", "folders"], "--labels must be left out for drawn faces, got folders"),
        (["-", "--ema", "0"], "ema_half_life, in images, must be in [1, inf], got 0.0; use a num"),
        (["-", "--out", "/dev/null/run"], "folder must be writable, got /dev/nu"),
        (["/dev", "--batch-size", "0"], "--batch-size must be at least 1, got 0; use 1 or more."),
        (["nowhere"], "nowhere does not exist; give a folder, zip or tar of images, or -."),
        (["pets", "--labels", "none.csv", "--workers", "0"], "none.csv"),
        (
            ["-", "--num-faces", "40", "--batch-size", "41"],
            "batch_size must be at most the number of images, 40, got 41",
        ),
    ],
)
def test_bad_flags_are_named(words, sentence, pets, tmp_path, capsys):
    """A bad value ends the command with one line, before it decodes or writes anything."""
    before = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert run(*words) == 2
    said = capsys.readouterr()
    assert said.err.startswith("tinygan train: error: ")
    assert sentence in said.err
    assert said.out == ""
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == before


def test_two_ranks_are_one_run(tmp_path):
    """Rank 0 speaks and writes; the other is silent."""
    flags = ["-", *SMALL, "--num-faces", "40", "--num-epochs", "1", "--out", str(tmp_path / "out")]
    one, other = ranks.run(tmp_path, 2, command, *flags)
    assert one.stdout.count("40 images, 1 epoch of 5 steps on cpu, 2 ranks.") == 1
    assert one.stdout.count("Done: 5 steps.") == 1
    # PyTorch 2.10 prints a line for each group of ranks.
    assert [line for line in other.stdout.splitlines() if not line.startswith("[Gloo]")] == []
    assert len((tmp_path / "out" / "log.jsonl").read_text().splitlines()) == 5


def test_a_dry_run_knows_the_run_that_was_begun(pets, tmp_path, capsys):
    """It counts what is done, and refuses what the run itself would refuse."""
    words = ["-", *SMALL, "--num-faces", 40, "--out", "runs/begun"]
    assert run(*words) == 0
    capsys.readouterr()
    assert run(*words, "--dry-run") == 0
    said = capsys.readouterr().out
    assert "of 8 images, of which 10 are done" in said
    assert "time     about 0.0 seconds" in said
    assert run(*words, "--dry-run", "--recipe", "hinge") == 2
    assert "this checkpoint belongs to a different run" in capsys.readouterr().err


def test_what_cannot_begin_leaves_nothing(pets, tmp_path, capsys):
    """No folder for a run that is refused: no data, or classes that are only one."""
    Path("one/only").mkdir(parents=True)
    for number in range(9):
        Image.new("RGB", (9, 9)).save(f"one/only/{number}.png")
    for words, sentence in (
        (["nowhere"], "nowhere does not exist; give a folder, zip or tar of images, or -."),
        (["one", "--labels", "folders"], "--labels must find two classes or more, got only"),
    ):
        assert run(*words, *SMALL, "--out", "runs/refused") == 2
        assert sentence in capsys.readouterr().err
    assert not Path("runs/refused").exists()
