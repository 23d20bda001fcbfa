"""PyTorch's global settings, such as its default type and device, do not reach inside."""

from __future__ import annotations

import ast
import contextlib
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

import tinygan
from tinygan import augmentations, data, hooks, metrics, penalties, sampling, schedules

from helpers import fingerprint, flat, saved_in, tiny_images, tiny_trainer

SOURCE = Path(tinygan.__file__).parent
CPU = torch.device("cpu")

FACTORIES = {
    "arange", "as_tensor", "asarray", "empty", "eye", "full", "linspace", "logspace", "ones",
    "rand", "randint", "randn", "randperm", "scalar_tensor", "tensor", "zeros",
}  # fmt: skip

# The first two give integers if they are given integers, the third what it is given.
TYPED = {"arange", "randperm", "as_tensor"}


@contextlib.contextmanager
def default_dtype(dtype):
    """Make a type PyTorch's default within the block."""
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def default_device(device):
    """Make a device PyTorch's default within the block."""
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


# "meta" stands for a GPU: what lies there by mistake has no values, and meets nothing on the CPU.
DEFAULTS = {
    "float64": lambda: default_dtype(torch.float64),
    "float16": lambda: default_dtype(torch.float16),
    "set_default_device": lambda: default_device("meta"),
    "with device": lambda: torch.device("meta"),
}


def test_every_tensor_that_is_made_names_its_type_and_device():
    """No call in the library leaves to PyTorch's defaults what it makes, or where."""
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            module, name = node.func.value, node.func.attr
            if isinstance(module, ast.Name) and module.id == "torch" and name in FACTORIES:
                needed = {"device"} if name in TYPED else {"device", "dtype"}
                given = {keyword.arg for keyword in node.keywords}
                assert needed <= given, f"{path.name}:{node.lineno}: torch.{name}"


IMAGES = tiny_images(10)
SMALL = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Numbered:
    """The tiny images, with numbers that become labels only when they are put together."""

    def __init__(self):
        self.images = IMAGES

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return self.images[index], index % 3, index / 2


def drawn_faces(tmp_path):
    """Faces, in colour and grey, and their labels."""
    faces = data.CartoonFaces(7, (11, 9), label="hair")
    return [faces.pixels, faces.attributes, faces[3], data.CartoonFaces(5, 9, 1).pixels]


def loaded(tmp_path):
    """Batches by every way of loading: order, flips, labels."""
    ways = [IMAGES, data.CartoonFaces(9, 8), Numbered()]
    every = [list(data.Loader(way, 4, flip=True, device="cpu")) for way in ways]
    return [*every, list(data.Loader(Numbered(), 4, shuffle=False, workers=1))]


def decoded(tmp_path):
    """Images of folders, decoded and packed."""
    for index in range(4):
        kind = tmp_path / "photos" / "ab"[index % 2]
        kind.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 9), (60 * index, 200, 10)).save(kind / f"{index}.png")
    files = data.image_folder(tmp_path / "photos", image_size=8, labels="folders")
    packed = data.pack(tmp_path / "photos", tmp_path / "photos.npy", image_size=8, labels="folders")
    batches = [list(data.Loader(each, 3)) for each in (files, packed)]
    return [packed.pixels, packed.labels, files.labels, *batches]


def trained(tmp_path):
    """A run with everything that draws, counts or averages, its pictures and its second half."""
    arguments = {
        "ema_half_life": 50.0,
        "augment": [augmentations.diff_augment(p=0.7), augmentations.instance_noise()],
        "penalties": [
            penalties.r1(schedules.linear(1.0, 0.0, until=99), every=2),
            penalties.wgan_gp(),
            penalties.dragan(),
        ],
        "accumulate": 2,
    }
    with CPU, default_dtype(torch.float32), pytest.warns(match="batch norm"):  # a user's nets
        one, other = tiny_trainer(**arguments), tiny_trainer(**arguments)
    one = type(one)(one.generator, one.discriminator, hooks=_hooks(tmp_path), **arguments)
    one.fit(data.Loader(IMAGES, 4, flip=True, drop_last=True), epochs=2)
    other.resume(tmp_path / "checkpoints/step_000002.pt", allow="hooks")
    other.fit(data.Loader(IMAGES, 4, flip=True, drop_last=True), epochs=2)
    pictures = [path.read_bytes() for path in sorted(tmp_path.rglob("*.png"))]
    assert len(pictures) == 5
    return [fingerprint(one), fingerprint(other), pictures, one.sample(3), one.fixed_noise]


def _hooks(folder):
    return [
        hooks.TrainingGrid(folder), hooks.SampleGrid(folder, every=2), hooks.RealBesideFake(folder),
        hooks.Quality(folder, IMAGES, module=SMALL, count=8, every=2),
        hooks.Checkpoint(folder, every=2, keep=9),
    ]  # fmt: skip


def in_16_bits(tmp_path):
    """A run in float16 of nets with classes, whose loss scale is a part of its state."""
    labels = torch.arange(10, device="cpu") % 3
    with CPU, default_dtype(torch.float32):
        torch.manual_seed(0)
        nets = (
            tinygan.DCGANGenerator(8, latent_dim=5, base_channels=4, num_classes=3),
            tinygan.DCGANDiscriminator(8, base_channels=4, num_classes=3),
        )
    trainer = tinygan.GANTrainer(*nets, execution=tinygan.Execution(dtype=torch.float16))
    trainer.fit([(IMAGES, labels)], epochs=2)
    trainer.save(tmp_path / "run.pt")
    saved = saved_in(tmp_path / "run.pt")
    return [saved, trainer.sample(4), trainer.sample(2, labels=1)]


def measured(tmp_path):
    """Metrics."""
    one, other = (metrics.features(images, SMALL) for images in (IMAGES, IMAGES / 2))
    coverage = metrics.mode_coverage(torch.tensor([0, 1, 1], device="cpu"), 3)
    nearest = metrics.nearest_mode(IMAGES[:, 0, 0], IMAGES[:2, 0, 0], 0.1)
    return [metrics.quality(one, other), vars(coverage), nearest]


def drawn(tmp_path):
    """What is drawn for a batch, and from priors."""
    floats = tinygan.Batch.of(IMAGES)
    integers = tinygan.Batch.of(torch.zeros(4, 2, dtype=torch.int64, device="cpu"))
    z = [
        prior(3, 5, tinygan.seeds.generator(0, "z"))
        for prior in (sampling.normal, sampling.uniform)
    ]
    return [*z, floats.normal("z", 4), floats.uniform("u"), integers.normal("z", 2)]


def _folder(where, name):
    (where / name).mkdir()
    return where / name


@pytest.mark.parametrize(
    "made", [drawn_faces, loaded, decoded, trained, in_16_bits, measured, drawn]
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_defaults_do_not_reach_inside(made, tmp_path):
    """Under any default type and device the same bits are made, on the CPU."""
    expected = flat(made(_folder(tmp_path, "plain")))
    for name, default in DEFAULTS.items():
        with default():
            found = flat(made(_folder(tmp_path, name)))
        assert {key for key in expected if expected[key] != found[key]} == set(), name
        assert expected.keys() == found.keys()


def test_a_reader_of_faces_is_the_same_net_under_any_default():
    """It is made and trained on the CPU in float32."""
    expected = metrics.AttributeReader(8, faces=64)
    with default_dtype(torch.float64), default_device("meta"):
        found = metrics.AttributeReader(8, faces=64)
    assert found.accuracy == expected.accuracy
    assert flat(found._net.state_dict()) == flat(expected._net.state_dict())


def test_the_users_own_nets_have_his_default():
    """What a user builds is his choice: nets in float64 train in float64."""
    with default_dtype(torch.float64):
        trainer = tiny_trainer()
        trainer.fit([tiny_images()], epochs=1)
    assert trainer.dtype == trainer.sample(2).dtype == torch.float64


SWITCHES = {
    "deterministic": (torch.use_deterministic_algorithms, True, False),
    "matmul": (torch.set_float32_matmul_precision, "medium", "highest"),
    "anomaly": (torch.autograd.set_detect_anomaly, True, False),
    "threads": (torch.set_num_threads, 1, torch.get_num_threads()),
}


@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_runs_work_under_each_global_switch(switch):
    """A run with penalties, augmentations and an average goes through, with finite weights."""
    turn, on, off = SWITCHES[switch]
    turn(on)
    try:
        trainer = tiny_trainer(
            augment=[augmentations.diff_augment()], ema_half_life=50.0, accumulate=2
        )
        trainer.fit(data.Loader(IMAGES, 4, flip=True, drop_last=True), epochs=2)
        assert not trainer.skipped.counts.any()
        assert all(value.isfinite().all() for value in fingerprint(trainer).values())
    finally:
        turn(off)
