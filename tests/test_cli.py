"""The command line: help, errors, what is printed of a run, and numbers beside real images."""

import argparse
import json
import os
import re
import subprocess
import sys

import pytest
import torch

import tinygan
from tinygan import data, hooks, metrics
from tinygan.cli.arguments import argument_parser
from tinygan.cli.main import main

import processes

COMMANDS = (
    "train", "sample", "interpolate", "evaluate", "export", "invert", "explore", "info",
)  # fmt: skip


def refused(capsys, *arguments):
    """Return what a command that must end with 2 says."""
    with pytest.raises(SystemExit) as end:
        main([str(each) for each in arguments])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 or "usage" in said
    return said


def test_help_needs_no_pytorch():
    """Help of all commands, the version, and a missing argument: none waits for PyTorch."""
    code = """
import sys
from tinygan.cli.main import main
for arguments in (["--help"], ["--version"], [], *([c, "--help"] for c in sys.argv[1:])):
    try:
        main(arguments)
    except SystemExit:
        pass
print(sorted({"torch", "numpy", "PIL"} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, *COMMANDS], capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("\n[]\n")
    assert f"tinygan {tinygan.__version__}\n" in done.stdout
    assert "the following arguments are required: COMMAND" in done.stderr


def test_every_command_has_its_help():
    """The eight commands, each with a sentence for itself and for each argument."""
    parser = argument_parser()
    (commands,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    assert tuple(sorted(commands.choices)) == tuple(sorted(COMMANDS))
    assert len(commands._choices_actions) == len(COMMANDS)
    for command in commands.choices.values():
        assert all(action.help for action in command._actions), command.prog


@pytest.mark.parametrize("started", [["-m", "tinygan"], ["-c", "import tinygan.__main__"]])
def test_python_m_tinygan_is_the_command(started):
    """`python -m tinygan` runs it; importing the module does not."""
    done = subprocess.run(
        [sys.executable, *started, "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == (f"tinygan {tinygan.__version__}\n" if "-m" in started else "")


def test_errors_are_one_line(tmp_path, capsys):
    """The command, the sentence, exit code 2; for every command on a generator."""
    for command, *more in (
        ["info"],
        ["sample", "--out", tmp_path / "x"],
        ["interpolate", "--out", tmp_path / "x.gif", "--seeds", "1,2"],
        ["evaluate", "--real", "-"],
        ["export", "--to", "onnx"],
        ["invert", tmp_path / "face.png"],
        ["explore"],
    ):
        said = refused(capsys, command, tmp_path / "nothing", *more)
        assert said.startswith(f"tinygan {command}: error: path must hold a generator, got ")
        assert said.endswith("which is not there.\n")
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_is_130(monkeypatch, capsys):
    """Interrupted where nothing is to save, while it is imported too, a command ends so."""

    def interrupted(module):
        raise KeyboardInterrupt

    monkeypatch.setattr("tinygan.cli.main.importlib.import_module", interrupted)
    with pytest.raises(SystemExit) as end:
        main(["info", "x"])
    assert end.value.code == 130
    assert capsys.readouterr().err == "\ntinygan info: stopped\n"


def unread(*words):
    """Run a command whose output nobody reads; for a child."""
    reader, writer = os.pipe()
    os.dup2(writer, 1)
    os.close(reader)
    with pytest.raises(SystemExit, match="141"):
        main(words)


def test_a_reader_that_has_seen_enough(tmp_path):
    """`tinygan info RUN | head -1` ends without a traceback."""
    tinygan.DCGANGenerator(8).save(tmp_path / "g")
    done = processes.run(tmp_path, processes.interpreter, unread, "info", str(tmp_path / "g"))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A small run with logs, a quality file, classes and a generator."""
    folder = tmp_path_factory.mktemp("run") / "pets"
    faces = data.CartoonFaces(64, 8, label="hair_style")
    nets = [
        kind(8, base_channels=4, num_classes=4).apply(tinygan.weights_init)
        for kind in (tinygan.DCGANGenerator, tinygan.DCGANDiscriminator)
    ]
    trainer = tinygan.GANTrainer(
        *nets,
        hooks=[
            hooks.JSONLog(folder),
            hooks.SaveGenerator(
                folder,
                classes=["bald", "short", "long", "curly"],
                trained_on="64 images of pets.zip",
            ),
            hooks.Quality(folder, faces.pixels, every=2, count=20, module=torch.nn.Flatten()),
            hooks.Checkpoint(folder),
        ],
    )
    trainer.fit(data.Loader(faces, 16), steps=6)
    return folder


def test_info_says_what_a_run_is(run, capsys):
    """What it is, how far, how good, how to go on; the numbers are those of its files."""
    main(["info", str(run)])
    said = capsys.readouterr().out
    found = dict(re.findall(r"^  (.{20})(.*)$", said, re.MULTILINE))
    found = {name.strip(): text for name, text in found.items()}
    assert said.startswith(f"{run} holds a generator, DCGANGenerator.\n")
    assert found["images"] == "8 x 8 pixels, channels: 3"
    assert found["classes"] == "4: bald, short, long, curly"
    assert (found["steps"], found["images seen"]) == ("6", "96")
    assert found["saved by tinygan"] == tinygan.__version__
    assert found["trained on"] == "64 images of pets.zip"
    assert found["to go on"] == "repeat the command that started it"
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    mean = sum(row["loss_generator"] for row in rows) / 6
    assert found["loss_generator"].startswith(f"{mean:.4g}, the mean of the last ")
    last = json.loads((run / "quality.jsonl").read_text().splitlines()[-1])
    assert found["quality"].startswith(f"step 6, fid {last['fid']:.4g}, kid ")


def test_info_of_a_file(run, capsys, tmp_path):
    """A checkpoint and bare weights are told as well, as far as they say."""
    main(["info", str(run / "checkpoints" / "step_000006.pt")])
    assert re.search("steps +6\n  images seen +96\n", capsys.readouterr().out)
    torch.save(tinygan.DCGANGenerator(16, 1, 7).state_dict(), tmp_path / "netG.pt")
    main(["info", str(tmp_path / "netG.pt")])
    said = capsys.readouterr().out
    assert "16 x 16 pixels, channels: 1" in said
    assert "7 numbers" in said
    assert "steps" not in said
    assert "to go on" not in said


def test_evaluate_compares_with_real_images(run, capsys):
    """N, both rows, and errors; real images beside real ones score better."""
    main(["evaluate", str(run), "--real", "-", "-n", "200", "--features", "random"])
    said = capsys.readouterr().out
    assert said.startswith("200 images of each kind, by random features of 512 numbers; ±")
    rows = dict(re.findall(r"^(generated|real) +(.*)$", said, re.MULTILINE))
    made, real = (
        [float(x) for x in re.findall(r"(\S+) ± ", rows[k])] for k in ("generated", "real")
    )
    assert made[0] > 3 * real[0]
    assert made[1] > real[1]
    assert made[3] < 0.2 < real[3]
    assert re.search(" FD-random +KD-random +precision +recall\n", said)
    assert "FD-random of 200 images means nothing" in said
    assert "not the published FID" in said


def test_evaluate_takes_few_real_images(run, capsys, tmp_path):
    """Fewer than a batch of 100: half of them are compared with the other half."""
    for number, face in enumerate(data.CartoonFaces(21, 8).pixels):
        tinygan.pictures.grid(face[None]).save(tmp_path / f"{number}.png")
    main(["evaluate", str(run), "--real", str(tmp_path), "--features", "random"])
    assert capsys.readouterr().out.startswith("10 images of each kind, ")


def test_info_prints_whatever_facts_are(capsys, tmp_path):
    """A step without a count of images, in words, and no steps at all."""
    tinygan.DCGANGenerator(8).save(tmp_path / "g", step="many")
    main(["info", str(tmp_path / "g")])
    assert re.search("steps +many\n", capsys.readouterr().out)


def test_evaluate_names_bad_input(run, capsys, tmp_path):
    """Too few real images, no folder, no weights."""
    said = refused(capsys, "evaluate", run, "--real", tmp_path, "--features", "random")
    assert str(tmp_path) in said
    for name in range(4):
        pixels = data.CartoonFaces(1, 8).pixels
        tinygan.pictures.grid(pixels).save(tmp_path / f"{name}.png")
    said = refused(capsys, "evaluate", run, "--real", tmp_path, "--features", "random")
    assert "--real must hold 20 images or more, got 4" in said
    said = refused(capsys, "evaluate", run, "--real", "-", "-n", 9)
    assert "-n must be at least 10, got 9" in said
    packed = data.pack(tmp_path, tmp_path / "packed.npy", 9, workers=0).path
    said = refused(capsys, "evaluate", run, "--real", packed, "--features", "random")
    assert "--real must have images (3, 8, 8) for this generator, got (3, 9, 9) in " in said
    said = refused(capsys, "evaluate", run, "--real", "-", "--weights", tmp_path / "none.pth")
    assert "weights must be those of torch-fidelity's Inception net, got " in said


def test_random_features_tell_blur_and_few_kinds():
    """By these features blurred images, and a tenth of the images, are farther than others."""
    pixels = data.CartoonFaces(240, 32).pixels
    net = metrics.random_net()
    blurred = torch.nn.functional.avg_pool2d(pixels[120:].float(), 3, 1, 1).byte()
    real = metrics.features(pixels[:120], net)
    mean, deviation = real.mean(0), real.std(0).clamp(min=1e-6)

    def distance(images):
        made = (metrics.features(images, net) - mean) / deviation
        return metrics.kid((real - mean) / deviation, made, subsets=1, subset_size=120)[0]

    other = distance(pixels[120:])
    assert distance(blurred) > other + 0.05
    assert distance(pixels[120:132].repeat(10, 1, 1, 1)) > other + 0.05
    assert torch.equal(net(torch.ones(1, 3, 9, 8)), metrics.random_net()(torch.ones(1, 3, 9, 8)))
    assert not torch.equal(net.layers[0], metrics.random_net(seed=1).layers[0])


def test_the_jackknife_is_that_of_the_mean():
    """For a mean of equal parts the jackknife's error is the parts' standard error of the mean."""
    real = torch.zeros(50, 1, dtype=torch.float64)
    fake = torch.randn(50, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    measured = metrics.with_errors(real, fake, lambda r, f: {"mean": float(f.mean())}, parts=5)
    of_parts = fake.reshape(5, 10).mean(1)
    assert measured["mean"][0] == pytest.approx(float(fake.mean()))
    assert measured["mean"][1] == pytest.approx(float(of_parts.std() / 5**0.5))
    with pytest.raises(ValueError, match="parts must be at least 2, got 1"):
        metrics.with_errors(real, fake, parts=1)
