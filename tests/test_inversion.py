"""Inversion: a generator's own images are found again, and nothing else changes."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import tinygan
from tinygan import sampling
from tinygan.cli.main import main

from helpers import fingerprint, tiny_trainer


def small_generator(seed=0, **arguments):
    """Return a net whose images differ much, as those of a trained one do: (N, 3, 8, 8)."""
    torch.manual_seed(seed)
    net = tinygan.DCGANGenerator(8, latent_dim=6, base_channels=4, **arguments).eval()
    for weight in net.parameters():
        if weight.dim() == 4:
            nn.init.normal_(weight, 0.0, 0.3)
    return net


def own_images(net, count=4, **arguments):
    """Return z that no seed names, and the images of these."""
    z = sampling.normal(count, net.latent_dim, torch.Generator().manual_seed(1))
    return z, sampling.generate(net, z, **arguments)


class Scale(nn.Module):
    """Multiplies by a number."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, features):
        """Multiply; as all that is compared, in evaluation mode."""
        assert not self.training
        return self.factor * features


def decibels(distances):
    """Return the PSNR of distances."""
    return 20 * torch.log10(2 / distances)


def test_own_images_are_found_again():
    """Images that the generator made are found to over 45 dB, from below 30, and so are their z."""
    net = small_generator()
    z, images = own_images(net)
    first = tinygan.invert(net, images, steps=0, progress=False)
    found = tinygan.invert(net, images, steps=150, progress=False)
    assert decibels(first.distances).max() < 30
    assert decibels(found.distances).min() > 45
    assert (found.z - z).abs().max() < 0.2
    assert torch.equal(found.images, sampling.generate(net, found.z))
    errors = (found.images - images).square().mean((1, 2, 3)).sqrt()
    assert torch.allclose(found.distances, errors)
    assert found.labels is None


def test_more_starts_and_steps_are_no_worse():
    """Each image gets the best of its starts; a start is never lost by another image's."""
    net = small_generator()
    images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(2)) * 2 - 1
    one = tinygan.invert(net, images, steps=40, starts=1, progress=False)
    four = tinygan.invert(net, images, steps=40, starts=4, progress=False)
    assert (four.distances <= one.distances + 1e-6).all()
    assert (four.distances < one.distances - 1e-4).any()
    alone = tinygan.invert(net, images[2:], steps=40, starts=4, progress=False)
    assert torch.allclose(alone.z, four.z[2:], atol=1e-3)


def test_many_images_are_done_in_parts(monkeypatch):
    """What is improved at once is bounded, and changes nothing but rounding."""
    net = small_generator()
    _, images = own_images(net, 5)
    whole = tinygan.invert(net, images, steps=20, starts=3, progress=False)
    monkeypatch.setattr("tinygan.inversion.TOGETHER", 4)
    seen = []
    hook = net.register_forward_hook(
        lambda _net, _inputs, made: seen.append(made.requires_grad * len(made))
    )
    parts = tinygan.invert(net, images, steps=20, starts=3, progress=False)
    hook.remove()
    assert max(seen) == 4
    assert torch.allclose(parts.z, whole.z, atol=1e-3)


def test_z_stays_typical():
    """Of images that it cannot make, too, z has a length that 95 % of drawn z have."""
    net = small_generator()
    found = tinygan.invert(net, torch.ones(4, 3, 8, 8), steps=60, progress=False)
    drawn = torch.randn(100_000, 6, generator=torch.Generator().manual_seed(3)).norm(dim=1)
    low, high = drawn.quantile(torch.tensor([0.015, 0.985]))
    assert ((found.z.norm(dim=1) > low) & (found.z.norm(dim=1) < high)).all()


def test_a_prior_is_kept_to():
    """z of a net with another prior is found where that draws it."""
    net = small_generator()
    net.prior = sampling.uniform
    found = tinygan.invert(net, torch.ones(4, 3, 8, 8), steps=60, progress=False)
    assert (found.z.norm(dim=1) < math.sqrt(6)).all()


def test_classes_are_found_or_given():
    """Without labels the classes are found with the images; given ones are kept to."""
    net = small_generator(num_classes=3)
    kinds = torch.tensor([2, 0, 1, 2])
    _, images = own_images(net, labels=kinds)
    found = tinygan.invert(net, images, steps=100, progress=False)
    assert found.labels.tolist() == kinds.tolist()
    assert decibels(found.distances).min() > 40
    for labels in (torch.tensor([1, 1, 0, 1]), 1):
        kept = tinygan.invert(net, images, steps=5, labels=labels, progress=False)
        assert kept.labels.tolist() == torch.as_tensor(labels).expand(4).tolist()
        assert torch.equal(kept.images, sampling.generate(net, kept.z, labels=kept.labels))


def test_features_are_compared_too():
    """With features, those of the images found are nearer to those wanted."""
    net = small_generator()
    blur = nn.AvgPool2d(4).train()
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(2)) * 2 - 1

    def apart(found):
        return (blur(found.images) - blur(images)).square().mean()

    plain = tinygan.invert(net, images, steps=60, progress=False)
    seen = tinygan.invert(
        net, images, steps=60, features=nn.Sequential(blur, Scale(30)), progress=False
    )
    assert apart(seen) < 0.9 * apart(plain)
    assert blur.training


def test_nothing_else_changes():
    """The generator keeps its mode, weights and gradients; one seed is one z; none is global."""
    trainer = tiny_trainer()
    net = trainer.players.generator.module
    net.main[0].weight.requires_grad_(False)
    net.main[3].weight.grad = torch.ones_like(net.main[3].weight)
    before, state = fingerprint(trainer), torch.get_rng_state()
    images = torch.zeros(2, 3, 8, 8)
    with torch.no_grad():
        one = tinygan.invert(net, images, steps=5, progress=False)
    other = tinygan.invert(net, images.double(), steps=5, progress=False)
    assert torch.equal(one.z, other.z)
    assert not torch.equal(one.z, tinygan.invert(net, images, steps=5, seed=1, progress=False).z)
    assert all(part.training for part in net.modules())
    after = fingerprint(trainer)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(torch.get_rng_state(), state)
    assert [p.requires_grad for p in net.parameters()] == [
        False,
        *[True] * (len([*net.parameters()]) - 1),
    ]
    assert torch.equal(net.main[3].weight.grad, torch.ones_like(net.main[3].weight))
    assert sum(p.grad is not None for p in net.parameters()) == 1
    assert not one.z.requires_grad
    assert not one.images.requires_grad


def test_bad_input():
    """Each error names the value and the remedy."""
    net = small_generator()
    images = torch.zeros(2, 3, 8, 8)
    for bad, sentence in (
        (
            torch.zeros(2, 3, 9, 8),
            r"\(N, 3, 8, 8\) as the generator makes them, got torch.float32 \(2, 3, 9, 8\); ",
        ),
        (
            torch.zeros(2, 1, 8, 8),
            r"got torch.float32 \(2, 1, 8, 8\); data.image_folder resizes and scales\.",
        ),
        (images.byte(), r"images must be floats \(N, 3, 8, 8\) .* got torch.uint8"),
        (images + 2, r"images must be in \[-1, 1\], got \[2, 2\]"),
        (images[0], r"images must be \(N, C, H, W\), got \(3, 8, 8\)"),
        (images[:0], r"images must be \(N, C, H, W\), got \(0, 3, 8, 8\)"),
    ):
        with pytest.raises(ValueError, match=sentence):
            tinygan.invert(net, bad)
    for arguments, sentence in (
        ({"steps": -1}, r"steps must be at least 0, got -1"),
        ({"starts": 0}, r"starts must be at least 1, got 0"),
        ({"starts": 2000}, r"starts must be in \[1, 1024\], got 2000"),
        ({"labels": 1}, r"labels must be None for nets without classes, got 1"),
    ):
        with pytest.raises(ValueError, match=sentence):
            tinygan.invert(net, images, **arguments)
    with pytest.raises(ValueError, match=r"labels must be in \[0, 3\), got \[3, 3\]"):
        tinygan.invert(small_generator(num_classes=3), images, labels=3)


@pytest.fixture
def saved(tmp_path):
    """A generator's folder, and a picture that it made."""
    net = small_generator(num_classes=2)
    tinygan.save_generator(net, tmp_path / "run")
    pixels = sampling.generate(net, sampling.normal(1, 6, torch.Generator().manual_seed(1)))[0]
    array = ((pixels + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(array).save(tmp_path / "own.png")
    Image.new("RGB", (30, 20)).save(tmp_path / "other.jpg")
    return tmp_path


def test_the_command(saved, capsys):
    """It writes a picture of both and z, says what it has resized, and how near it came."""
    own, other, run = (str(saved / name) for name in ("own.png", "other.jpg", "run"))
    main(["invert", run, own, other, "--steps", "60", "--starts", "2", "--labels", "0,1"])
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"{other}: 30 x 20 pixels, resized to 8 x 8"
    assert [line.rpartition(" of ")[0] for line in said[1:3]] == [
        f"{path}: found to a PSNR" for path in (own, other)
    ]
    near, far = (float(re.search(r"([0-9.]+) dB, as [01]$", line)[1]) for line in said[1:3])
    assert near > 35 > far
    assert said[3:] == [f"Both are in {run}/inverted.png, z is in {run}/inverted.npy."]
    assert np.load(saved / "run" / "inverted.npy").shape == (2, 6)
    with Image.open(saved / "run" / "inverted.png") as picture:
        assert picture.size == (2 * 134 + 3 * 24, 68 + 64)
    for out, made in ("new/a.png", "new/a"), ("b", "b/inverted"), ("c.npy", "c.npy/inverted"):
        main(["invert", run, own, "--steps", "0", "--out", str(saved / out)])
        assert (saved / f"{made}.png").is_file()
        assert np.load(saved / f"{made}.npy").shape == (1, 6)


def test_the_command_refuses_bad_input(saved, capsys):
    """No image there, a damaged one, an unknown class, another number of classes."""
    (saved / "bad.png").write_bytes(b"no picture")
    own = str(saved / "own.png")
    for arguments, sentence in (
        ([str(saved / "none.png")], "none.png (No such file or directory)."),
        ([own, str(saved / "bad.png")], "bad.png (no JPEG, PNG, "),
        ([own, "--labels", "cat"], "labels must be known classes, got 'cat'; these are: 0, 1."),
        (
            [own, own, own, "--labels", "1,0"],
            "labels must be one, or one for each of 3, got '1,0'.",
        ),
    ):
        with pytest.raises(SystemExit) as end:
            main(["invert", str(saved / "run"), *arguments])
        assert end.value.code == 2
        said = capsys.readouterr().err
        assert said.startswith("tinygan invert: error: ")
        assert sentence in said
    assert not [*(saved / "run").glob("inverted*")]


def test_given_classes_decide_where_to_start():
    """The start is the nearest random image of that class; if these are few, z of others serve."""
    net = small_generator(num_classes=3)
    _, images = own_images(net, labels=2)
    kept = tinygan.invert(net, images, steps=0, labels=1, progress=False)
    z = tinygan.latents.by_seed(net, range(1, 1024, 3))
    of_class = sampling.generate(net, z, labels=1)
    nearest = torch.cdist(images.flatten(1), of_class.flatten(1)).argmin(1)
    assert torch.equal(kept.z, z[nearest])
    many = small_generator(num_classes=600)
    assert (
        tinygan.invert(many, images, steps=0, labels=5, progress=False).labels.tolist() == [5] * 4
    )


def test_the_command_passes_on_what_it_is_given(saved, monkeypatch):
    """Steps, starts, the seed and a class for all are those of the search."""
    given = {}

    def search(*arguments, **options):
        given.update(options)
        return tinygan.invert(*arguments, **options)

    monkeypatch.setattr("tinygan.cli.invert.invert", search)
    line = f"invert {saved / 'run'} {saved / 'own.png'} --steps 2 --starts 3 --seed 5 --labels 1"
    main(line.split())
    assert given.pop("labels").tolist() == [1]
    assert given == {"steps": 2, "starts": 3, "seed": 5}
