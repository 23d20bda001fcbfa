"""Exported generators: run by other programs, they make PyTorch's images, for any batch."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import tinygan
from tinygan import exporting, sampling
from tinygan.cli.main import main

FORMS = {".onnx": "onnx", ".pt2": "torch.export", ".pt": "torchscript"}

# PyTorch 2.14 says so of its older format, when the tests themselves load a file.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.*is deprecated")


def small(**arguments):
    """Return a generator of 8x8 pixels, as it may come out of training."""
    torch.manual_seed(0)
    net = tinygan.DCGANGenerator(8, latent_dim=5, base_channels=4, **arguments)
    net(torch.randn(9, 5), *([torch.arange(9) % 3] if net.num_classes else []))  # statistics
    return net.to(memory_format=torch.channels_last)


def name_of(suffix):
    """Return the name that the command gives a file: generator.pt may be weights of one's own."""
    return "generator_traced.pt" if suffix == ".pt" else f"generator{suffix}"


def runner(path):
    """Return a file as its users load it, without tinygan: arrays to images."""
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return lambda *inputs: torch.from_numpy(
            session.run(["images"], dict(zip(("z", "labels"), (x.numpy() for x in inputs))))[0]
        )
    if path.suffix == ".pt2":
        return torch.export.load(path).module()
    return torch.jit.load(path)


def check(path, generator, tolerance=1e-5):
    """Assert that a file makes a generator's images, of batches of several sizes."""
    run = runner(path)
    for count in (1, 2, 7):
        z = torch.randn(count, generator.latent_dim)
        inputs = [z] if generator.num_classes is None else [z, torch.arange(count) % 3]
        images, wanted = run(*inputs), sampling.generate(generator, z)[: len(z)]
        assert images.dtype == torch.float32
        assert not images.requires_grad
        torch.testing.assert_close(images, wanted.float(), rtol=0, atol=tolerance)


@pytest.fixture(scope="module")
def of_classes(tmp_path_factory):
    """Return a generator with classes, its folder with exported files, and what the command said.

    Once for all tests below: writing ONNX takes seconds.
    """
    generator, folder, said = small(num_classes=3), tmp_path_factory.mktemp("run"), {}
    tinygan.save_generator(generator, folder)
    for suffix, form in FORMS.items():
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            main(["export", str(folder), "--to", form])
        said[suffix] = printed.getvalue()
    return generator, folder, said


@pytest.mark.parametrize("suffix", FORMS)
def test_a_file_makes_the_generators_images(suffix, of_classes):
    """Of batches of any size, with labels, in evaluation mode."""
    generator, folder, _ = of_classes
    check(folder / name_of(suffix), generator)


def test_export_leaves_the_generator_as_it_is(of_classes, tmp_path):
    """Its mode, weights, layout and gradients stay, and no random number is drawn globally."""
    generator, *_ = of_classes
    generator.main[1].eval()
    before = {name: tensor.clone() for name, tensor in generator.state_dict().items()}
    drawn = torch.get_rng_state()
    tinygan.export(generator, tmp_path / "g.pt")

    assert generator.training
    assert [part.training for part in generator.main] == [True, False, *[True] * 3]
    assert all(weight.requires_grad for weight in generator.parameters())
    assert not generator._forward_hooks
    assert generator.main[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert generator.state_dict().keys() == before.keys()
    assert all(torch.equal(now, before[name]) for name, now in generator.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn)


def test_an_onnx_file_is_whole_and_names_its_inputs(of_classes):
    """One file, of an opset that is widely known; the batch is N; it passes ONNX's checker."""
    _, folder, _ = of_classes
    files = {file.name for file in folder.iterdir()} - {"config.json", "model.safetensors"}
    assert files == {name_of(suffix) for suffix in FORMS}
    model = onnx.load(folder / "generator.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [(one.domain, one.version) for one in model.opset_import] == [("", 18)]
    shapes = {
        one.name: [side.dim_param or side.dim_value for side in one.type.tensor_type.shape.dim]
        for one in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {"z": ["N", 5], "labels": ["N"], "images": ["N", 3, 8, 8]}


@pytest.mark.parametrize("suffix", FORMS)
def test_a_file_names_nothing_of_this_computer(suffix, of_classes):
    """No folder, and no line of code, which PyTorch would write into it."""
    content = (of_classes[1] / name_of(suffix)).read_bytes()
    for word in (tinygan.__file__, __file__, "site-packages", "dcgan.py", "z.flatten(1)"):
        if suffix == ".pt" and word == "dcgan.py":
            continue
        assert word.encode() not in content


def test_torchscript_of_classes_runs_on_another_device(of_classes):
    """The numbers of the classes go where the labels are, not where the net was traced."""
    code = torch.jit.load(of_classes[1] / "generator_traced.pt").code
    assert re.search(r"= torch\.type_as\(\w+, labels\)", code)


@pytest.mark.parametrize("suffix", FORMS)
def test_half_computes_in_float16_between_float32(suffix, tmp_path, capfd):
    """The weights have half the bytes; whoever runs it gives and takes float32. All is quiet."""
    torch.manual_seed(0)
    generator = tinygan.DCGANGenerator((61, 47), 1, 5, base_channels=4, norm=None)
    path = tmp_path / "deep" / f"g{suffix}"
    assert 0 < tinygan.export(generator, path, half=True) <= 0.02
    check(path, generator, tolerance=0.02)
    assert capfd.readouterr() == ("", "")
    if suffix == ".onnx":
        kinds = {one.data_type for one in onnx.load(path).graph.initializer if len(one.dims) == 4}
        assert kinds == {onnx.TensorProto.FLOAT16}
    elif suffix == ".pt":
        assert all(p.dtype == torch.float16 for p in torch.jit.load(path).parameters())


class Own(nn.Module):
    """A net of one's own: a linear layer, and what a test does besides."""

    latent_dim, num_classes = 5, None

    def __init__(self, act=lambda images, z: images):
        super().__init__()
        self.layer, self.act = nn.Linear(5, 12), act

    def forward(self, noise):
        """Take z by another name."""
        return self.act(self.layer(noise), noise)


@pytest.mark.parametrize("suffix", FORMS)
def test_nets_of_ones_own_are_exported(suffix, tmp_path):
    """Also in float64, with another name for z, and with a weight that old wrappers compute."""
    net = Own(lambda images, z: images.reshape(z.shape[0], 3, 2, 2)).double()
    with pytest.warns(FutureWarning, match="weight_norm"):
        nn.utils.weight_norm(net.layer)
    tinygan.export(net, tmp_path / f"g{suffix}")
    check(tmp_path / f"g{suffix}", net)


def freezes(images, z):
    """Make as many images as there were when this was traced."""
    return images.reshape(len(z), 3, 2, 2)


def branches(images, z):
    """Look at the values."""
    return images if z.sum() > 0 else -images


def draws(images, z):
    """Make other images each time."""
    return images + torch.randn_like(images)


def is_a_pair(images, z):
    """Return more than images."""
    return images, z


@pytest.mark.parametrize(
    ("suffix", "act", "reason"),
    [
        (".pt2", freezes, r"UserError: Constraints violated \(N\)"),
        (".pt", freezes, "RuntimeError: .*"),
        (".pt2", branches, "GuardOnDataDependentSymNode: .*"),
        (".pt", branches, "ValueError: the file's images differ by .*"),
        (".pt", draws, "ValueError: the file's images differ by .*"),
        (".pt", is_a_pair, "AttributeError: 'tuple' object has no attribute 'float'"),
    ],
)
def test_what_cannot_be_exported_is_one_sentence(suffix, act, reason, tmp_path):
    """The reason and the remedy in a line; an older file stays, and nothing half done."""
    path = tmp_path / f"g{suffix}"
    path.write_bytes(b"older")
    with pytest.raises(ValueError) as caught:
        tinygan.export(Own(act), path)
    caught.match(
        f"^generator must be one that PyTorch writes as {FORMS[suffix]} for any batch, got Own "
        rf"\({reason}\); in forward, use z.shape\[0\] for len\(z\), no `if` on values and nothing "
        r"random\.$"
    )
    assert "\n" not in str(caught.value)
    assert caught.value.__suppress_context__
    assert caught.value.__cause__ is None  # no traceback of PyTorch's own code before it
    assert path.read_bytes() == b"older"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("broken", [1e-3, float("nan"), float("inf")])
def test_a_wrong_file_is_refused(broken, tmp_path, monkeypatch):
    """A file whose images are not the generator's, or not numbers, does not get its name."""
    made = exporting._made

    def wrong(*arguments):
        run = made(*arguments)
        return lambda *inputs: run(*inputs) + broken * (len(inputs[0]) == 1)

    monkeypatch.setattr(exporting, "_made", wrong)
    with pytest.raises(
        ValueError, match=r"ValueError: the file's images differ by (0\.001|nan|inf)"
    ):
        tinygan.export(small(), tmp_path / "g.pt")
    assert not list(tmp_path.iterdir())


def test_half_is_refused_where_it_does_not_suffice(tmp_path):
    """Numbers that float16 does not have are noticed, and the sentence says what to do."""
    net = Own(lambda images, z: (images * 1e4).sin())
    tinygan.export(net, tmp_path / "g.pt")
    with pytest.raises(ValueError, match=r"differ by .*, or leave half out\.$"):
        tinygan.export(net, tmp_path / "half.pt", half=True)


@pytest.mark.parametrize(
    ("path", "to", "sentence"),
    [
        (
            "g.bin",
            None,
            r"path must end in .onnx, .pt2, .pt or .safetensors, as to= says, got 'g.bin', None\.$",
        ),
        ("g.onnx", "tflite", r"got 'g.onnx', 'tflite'\.$"),
        ("g.pt", "onnx", r"got 'g.pt', 'onnx'\.$"),
        ("", None, "path must name a file or folder, got ''"),
    ],
)
def test_a_path_says_its_format(path, to, sentence):
    """An unknown format, an unknown suffix and one that is another format's are errors."""
    with pytest.raises(ValueError, match=sentence):
        tinygan.export(small(), path, to)


def test_any_suffix_will_do_where_to_says_the_format(tmp_path):
    """Other programs have conventions of their own."""
    tinygan.export(small(), tmp_path / "g.ts", "torchscript")
    assert torch.jit.load(tmp_path / "g.ts")(torch.zeros(1, 5)).shape == (1, 3, 8, 8)


def test_bad_generators_and_folders_are_refused(tmp_path, monkeypatch):
    """Each is an error that names it, before anything is written."""
    with pytest.raises(ValueError, match=r"generator\.latent_dim must be an int, got None"):
        tinygan.export(nn.Linear(5, 3), tmp_path / "g.pt")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        tinygan.export(small(), tmp_path / "file" / "g.pt")
    with pytest.raises(OSError):
        tinygan.export(small(), tmp_path, "torchscript")
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxscript" else found(name)
    )
    with pytest.raises(ImportError) as caught:
        tinygan.export(small(), tmp_path / "g.onnx")
    sentence = 'export to ONNX needs onnxscript: pip install "tinygan[onnx]"'
    assert str(caught.value) == sentence
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("suffix", FORMS)
def test_the_command_says_what_runs_the_file(suffix, of_classes):
    """It writes beside the generator, and its last line is code that makes images."""
    generator, folder, said = of_classes
    first, second, *code = said[suffix].splitlines()
    path = folder / name_of(suffix)
    assert first.startswith(f"{path}: {path.stat().st_size:,} bytes, within ")
    assert second == "It takes z (N, 5), labels (N,) and makes images (N, 3, 8, 8), in Python by"
    exec("\n".join(code), known := {})
    z = torch.as_tensor(known["z"])
    wanted = sampling.generate(generator, z, labels=torch.arange(4) % 3)
    np.testing.assert_allclose(np.asarray(known["images"]), wanted, atol=1e-5)


def test_the_command_tells_errors_in_a_line(tmp_path, capsys):
    """A contradiction is an error of the command."""
    tinygan.save_generator(small(), tmp_path / "run")
    out = str(tmp_path / "x.pt")
    with pytest.raises(SystemExit, match="2"):
        main(["export", str(tmp_path / "run"), "--to", "onnx", "--out", out])
    assert capsys.readouterr().err.startswith("tinygan export: error: path must end in .onnx, ")
    assert not Path(out).exists()


@pytest.mark.parametrize("half", [False, True])
def test_weights_alone(tmp_path, half):
    """As safetensors the weights and all that is known of them, in half the bytes if wanted."""
    net = small(num_classes=3)
    net.facts = {"classes": ["a", "b", "c"]}
    tinygan.export(net, tmp_path / "g.safetensors", half=half)
    loaded = tinygan.load_generator(tmp_path / "g.safetensors")
    assert loaded.facts["classes"] == ["a", "b", "c"]
    for name, tensor in net.state_dict().items():
        dtype = torch.float16 if half and tensor.is_floating_point() else tensor.dtype
        assert torch.equal(loaded.state_dict()[name], tensor.to(dtype))
    z = torch.randn(3, 5)
    made, wanted = sampling.generate(loaded, z), sampling.generate(net, z)
    torch.testing.assert_close(made.float(), wanted, rtol=0, atol=0.02 if half else 1e-6)


def test_the_command_says_how_to_use_weights_alone(tmp_path, capsys):
    """Its code takes any z, also where the weights are halves."""
    net = small(num_classes=3)
    tinygan.save_generator(net, tmp_path)
    path = str(tmp_path / "g.safetensors")
    main(["export", str(tmp_path), "--out", path, "--half"])
    exec("\n".join(capsys.readouterr().out.splitlines()[2:]), known := {})
    wanted = sampling.generate(net, known["z"], labels=torch.arange(4) % 3)
    torch.testing.assert_close(known["images"].float(), wanted, rtol=0, atol=0.02)
