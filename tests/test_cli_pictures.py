"""``tinygan sample`` and ``tinygan interpolate``: images by seed, films of walks between."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

import tinygan
from tinygan import latents, pictures, sampling
from tinygan.cli.main import main

NAMES = ["cat", "dog", "owl"]


def saved(made, **facts):
    """Save a generator whose images are not all grey."""
    with torch.no_grad():
        for weights in made.parameters():
            weights.mul_(5)
    made.save("run", **facts)
    return made.eval()


@pytest.fixture
def net(tmp_path, monkeypatch):
    """Save a generator of 8x8 images as the folder "run" of the working folder."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    made = tinygan.DCGANGenerator(8, latent_dim=5, base_channels=4)
    return saved(made)


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    """Save one of three classes, whose names it knows."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    made = tinygan.DCGANGenerator(8, latent_dim=5, base_channels=4, num_classes=3)
    return saved(made, classes=NAMES)


def pixels(folder):
    """Return the images of a folder, by name."""
    found = {}
    for file in folder.iterdir():
        with Image.open(file) as picture:
            found[file.name] = np.asarray(picture)
    return found


def close(one, other):
    """Say whether two pictures are the same but for rounding, and a step in its way."""
    return np.abs(one.astype(int) - other).max() <= 1


def expected(net, seeds, truncation=1.0, labels=None):
    """Return the images that a net makes of seeds, as pictures show them."""
    made = sampling.generate(net, latents.by_seed(net, seeds, truncation), labels=labels)
    return pictures.in_bytes(made).permute(0, 2, 3, 1).numpy()


def command(line):
    """Run a command."""
    main(line.split())


def refusal(capsys, line):
    """Run a command that ends with exit code 2; return its last line."""
    with pytest.raises(SystemExit) as error:
        command(line)
    assert error.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_an_image_is_a_function_of_its_seed(net, tmp_path, capsys):
    """It has the seed in its name, and looks the same whatever is made beside it."""
    command("sample run -n 70 --out all")
    assert capsys.readouterr().out == "70 images: all\n"
    command("sample run --seeds 3,66-67 --out some")
    every, some = pixels(tmp_path / "all"), pixels(tmp_path / "some")
    assert sorted(every) == [f"seed_{seed:04d}.png" for seed in range(70)]
    assert sorted(some) == ["seed_0003.png", "seed_0066.png", "seed_0067.png"]
    wanted = expected(net, range(70))
    for seed in (3, 66, 67):
        name = f"seed_{seed:04d}.png"
        assert close(every[name], wanted[seed])
        assert close(some[name], every[name])
    command("sample run -n 2 --seed 66 --out later")
    assert sorted(pixels(tmp_path / "later")) == ["seed_0066.png", "seed_0067.png"]


def test_samples_in_a_zip(net, tmp_path):
    """A .zip holds what the folder would."""
    command("sample run -n 3 --out new/x.zip --truncation 0.5")
    with zipfile.ZipFile("new/x.zip") as archive:
        assert archive.namelist() == [f"seed_000{seed}.png" for seed in range(3)]
        with archive.open("seed_0002.png") as file:
            assert close(np.asarray(Image.open(file)), expected(net, [2], 0.5)[0])


def test_a_seed_that_is_given_twice_is_one_image(net, tmp_path, capsys):
    """As many files are made as the command says, and equal commands make equal files."""
    command("sample run --seeds 5,3-5,5 --out a")
    assert capsys.readouterr().out == "3 images: a\n"
    assert sorted(pixels(tmp_path / "a")) == [f"seed_000{seed}.png" for seed in (3, 4, 5)]
    for name in "bc":
        command(f"sample run --seeds 5,5 --out {name}.zip")
    assert capsys.readouterr().out == "1 images: b.zip\n1 images: c.zip\n"
    assert Path("b.zip").read_bytes() == Path("c.zip").read_bytes()


def test_samples_in_a_grid(net, tmp_path, capsys):
    """With --grid there is one picture of all, in rows of eight."""
    command("sample run -n 16 --out new/folder --grid")
    assert capsys.readouterr().out == "16 images: new/folder/grid.png\n"
    z = latents.by_seed(net, range(16))
    whole = np.asarray(pictures.grid(sampling.generate(net, z)))
    with Image.open("new/folder/grid.png") as picture:
        assert close(np.asarray(picture), whole)
    assert len([*(tmp_path / "new" / "folder").iterdir()]) == 1
    command("sample run -n 2 --grid --out new/grid_2.png")
    assert Path("new/grid_2.png").is_file()


def test_samples_as_an_array(net, capsys):
    """An .npy holds all of them as bytes, (N, H, W, C), for other programs."""
    command("sample run --seeds 3,66 --out new/x.npy")
    assert capsys.readouterr().out == "2 images: new/x.npy\n"
    made = np.load("new/x.npy")
    assert (made.dtype, made.shape) == (np.uint8, (2, 8, 8, 3))
    assert close(made, expected(net, [3, 66]))


def test_a_walk_as_a_page(net):
    """It has a heading of its own, the time of each frame, and no rest at its end."""
    command("interpolate run --seconds 0.5 --fps 8 --out walk.html")
    page = Path("walk.html").read_text()
    assert re.findall('alt="(.*?)"', page) == ["0.0 s", "0.1 s", "0.2 s", "0.4 s"]
    assert page.count("A walk through the noise") == 2
    assert "restOnLast = 0;" in page
    assert "125 + (index" in page


def test_classes_are_rows_of_a_grid(zoo):
    """With --grid the images of a class are beside its name."""
    command("sample run -n 7 --out x --grid")
    labels = torch.arange(7) % 3
    made = sampling.generate(zoo, latents.by_seed(zoo, range(7)), labels=labels)
    whole = pictures.grid(made, labels=[NAMES[label] for label in labels])
    with Image.open("x/grid.png") as picture:
        assert close(np.asarray(picture), np.asarray(whole))


def test_samples_of_classes(zoo, tmp_path):
    """Each class in turn, by the seed; or those asked for, by name or number."""
    for labels, classes in (([], [0, 1, 2, 0]), (["owl"], [2] * 4), (["1,cat"], [1, 0, 1, 0])):
        asked = ["--labels", *labels] if labels else []
        main(["sample", "run", "-n", "4", "--out", "x", *asked])
        wanted = expected(zoo, range(4), labels=torch.tensor(classes))
        made = pixels(tmp_path / "x")
        files = [f"seed_000{seed}_{NAMES[label]}.png" for seed, label in enumerate(classes)]
        assert all(close(made[file], image) for file, image in zip(files, wanted))


def test_sampling_takes_the_generator_as_it_is(net):
    """Nothing of the run is written."""
    before = {file.name: file.read_bytes() for file in Path("run").iterdir()}
    command("sample run -n 2 --out x")
    assert {file.name: file.read_bytes() for file in Path("run").iterdir()} == before


def test_a_walk_as_a_film(net, tmp_path, capsys):
    """It has so many frames a second, and begins with the first seed."""
    command("interpolate run --seeds 3,14,15 --seconds 2 --fps 15 --out new/walk.mp4")
    assert capsys.readouterr().out == "30 frames: new/walk.mp4\n"
    with av.open("new/walk.mp4") as film:
        assert film.streams.video[0].average_rate == 15
        frames = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
    assert len(frames) == 30
    assert frames[0].shape == (512, 512, 3)
    first = expected(net, [3])[0].repeat(64, 0).repeat(64, 1)
    assert np.abs(frames[0].astype(int) - first).mean() < 6  # H.264 is lossy
    assert np.abs(frames[15].astype(int) - first).mean() > 10


def test_a_walk_as_a_gif(net, tmp_path):
    """Its frames are all 5 hundredths of a second long: faster ones are slowed down by browsers."""
    command("interpolate run --seconds 1 --truncation 0.7 --out walk.gif")
    z = latents.walk(latents.by_seed(net, range(6), 0.7), 20)
    wanted = pictures.in_bytes(sampling.generate(net, z)).permute(0, 2, 3, 1).numpy()
    with Image.open("walk.gif") as gif:
        assert gif.n_frames == 20
        for index in range(20):
            gif.seek(index)
            assert gif.info["duration"] == 50
            small = np.asarray(gif.convert("RGB"))[::64, ::64]
            assert close(small, wanted[index])


def test_a_walk_of_one_class(zoo, tmp_path):
    """With --labels all frames are of that class."""
    command("interpolate run --seeds 1,2 --seconds 0.2 --labels dog --out walk.gif")
    z = latents.walk(latents.by_seed(zoo, [1, 2]), 4)
    wanted = pictures.in_bytes(sampling.generate(zoo, z, labels=1)).permute(0, 2, 3, 1).numpy()
    with Image.open("walk.gif") as gif:
        for index in range(4):
            gif.seek(index)
            assert close(np.asarray(gif.convert("RGB"))[::64, ::64], wanted[index])


@pytest.mark.parametrize("labels", ["--labels dog,owl,cat", ""])
def test_a_walk_fades_from_class_to_class(zoo, labels, tmp_path):
    """Each seed has its class, in the order of --labels, or the one that it has in samples."""
    command(f"interpolate run --seeds 7,7,7 --seconds 0.6 {labels} --out walk.gif")
    classes = torch.tensor([1, 2, 0] if labels else [1, 1, 1])
    z = latents.by_seed(zoo, [7, 7, 7])
    shares = latents.fade(torch.eye(3)[classes], z, 12)
    made = sampling.generate(zoo, latents.walk(z, 12), labels=shares)
    wanted = pictures.in_bytes(made).permute(0, 2, 3, 1).numpy()
    with Image.open("walk.gif") as gif:
        for index in range(12):
            gif.seek(index)
            assert close(np.asarray(gif.convert("RGB"))[::64, ::64], wanted[index])
    for index, label in zip((0, 4, 8), classes):  # there the class is whole
        assert close(wanted[index], expected(zoo, [7], labels=int(label))[0])


def test_a_walk_has_one_class_or_one_for_each_seed(zoo, capsys):
    """Two for three seeds is an error."""
    line = "interpolate run --seeds 1,2,3 --labels cat,dog --out x.gif"
    assert refusal(capsys, line) == (
        "tinygan interpolate: error: labels must be one, or one for each of 3, got 'cat,dog'."
    )


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (
            "sample run --out x.tar",
            "out must be a folder, a .zip or an .npy, got x.tar; choose one.",
        ),
        (
            "sample run --out x --seeds 3-",
            "argument --seeds: must be as 1-64,70, got '3-'; see tinygan sample --help",
        ),
        (
            "sample run --out x --seeds x",
            "argument --seeds: must be as 1-64,70, got 'x'; see tinygan sample --help",
        ),
        (
            "sample run --out x --seeds 5-3",
            "argument --seeds: must be as 1-64,70, got '5-3'; see tinygan sample --help",
        ),
        (
            "sample run --out x -n 0",
            "the number of seeds must be at least 1, got 0; use 1 or more.",
        ),
        (
            "sample run --out x --truncation 2",
            "truncation must be in [0, 1], got 2.0; use a number in it.",
        ),
        (
            "sample run --out x --labels cat",
            "labels must be left out, got 'cat': this net has no classes.",
        ),
        (
            "interpolate run --out x.gif --labels cat,dog",
            "labels must be left out, got 'cat': this net has no classes.",
        ),
        (
            "interpolate run --out x.avi",
            "out must end in .mp4, .gif or .html, got x.avi; choose one.",
        ),
        (
            "interpolate run --out x.gif --seeds 3",
            "the number of seeds must be at least 2, got 1; use 2 or more.",
        ),
        (
            "interpolate run --out x.gif --seconds 0",
            "seconds must be in (0, 3600], got 0.0; use a number in it.",
        ),
        ("interpolate run --out x.gif --fps 0", "fps must be at least 1, got 0; use 1 or more."),
    ],
)
def test_what_cannot_be_is_one_sentence(line, sentence, net, tmp_path, capsys):
    """It ends with exit code 2, and nothing is written."""
    assert refusal(capsys, line) == f"tinygan {line.split()[0]}: error: {sentence}"
    assert [file.name for file in tmp_path.iterdir()] == ["run"]


def test_unknown_classes_are_listed(zoo, capsys):
    """The error says which there are."""
    assert refusal(capsys, "sample run --out x --labels fox") == (
        "tinygan sample: error: labels must be known classes, got 'fox'; these are: cat, dog, owl."
    )
