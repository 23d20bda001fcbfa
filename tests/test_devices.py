"""What other devices than the CPU and CUDA need, as far as it can be asked without one.

Apple's MPS has no float64. Nothing here has run on it: stand-ins refuse what it would refuse.
"""

from __future__ import annotations

import traceback
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import tinygan
from tinygan import augmentations, data, hooks, metrics, optimizers, penalties, schedules, trainer
from tinygan.data import loader
from tinygan.nets import traits

from helpers import tiny_images, tiny_trainer

MPS, CUDA = torch.device("mps"), torch.device("cuda")


class NoFloat64(TorchDispatchMode):
    """Notes where the library makes a tensor of float64, on whatever device."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for each in pytree.tree_leaves(made):
            if isinstance(each, torch.Tensor) and each.dtype is torch.float64:
                own = [f for f in traceback.extract_stack() if "/tinygan/" in f.filename]
                self.found.add(f"{own[-1].filename}:{own[-1].lineno}" if own else str(function))
        return made


@pytest.mark.parametrize(
    "arguments",
    [
        {"ema_half_life": schedules.linear(5.0, 50.0, until=100)},
        {"penalties": [penalties.r1(every=2), penalties.r2(), penalties.dragan()]},
        {"penalties": penalties.wgan_gp(schedules.cosine(9.0, 1.0, until=99)), "d_steps": 2},
        {"augment": [augmentations.diff_augment(p=0.5), augmentations.instance_noise()]},
        {"loss": tinygan.losses.relativistic, "accumulate": 2},
        {"dtype": torch.bfloat16},
        {"dtype": torch.float16},
    ],
    ids=["average", "penalties", "turns", "augmented", "parts", "bfloat16", "float16"],
)
@pytest.mark.filterwarnings("ignore:a penalty of a discriminator with batch norm")
def test_a_run_makes_no_float64(arguments, tmp_path):
    """Training, its hooks, its checkpoints and its samples stay in float32 and below."""
    watching = [
        hooks.TutorialLog(tmp_path), hooks.JSONLog(tmp_path), hooks.TrainingGrid(tmp_path),
        hooks.SampleGrid(tmp_path), hooks.RealBesideFake(tmp_path),
        hooks.Schedule("generator", lr=schedules.linear(2e-4, 0.0, until=99)),
    ] if "ema_half_life" in arguments else []  # fmt: skip
    watching.append(hooks.Checkpoint(tmp_path, every=2))
    batches = data.Loader(data.CartoonFaces(12, 8), 4, flip=True)
    with NoFloat64() as watch:
        tiny_trainer(hooks=watching, **arguments).fit(batches, epochs=1)
        resumed = tiny_trainer(**arguments)
        resumed.resume(tmp_path, allow="hooks")
        resumed.fit(batches, epochs=2)
        resumed.sample(3)
    assert watch.found == set()


class OnMPS(torch.Tensor):
    """A tensor that is said to be on a device without float64; what is computed of it is, too."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        wanted = [*args[1:], *kwargs.values()]
        to_cpu = function is torch.Tensor.cpu or (function is torch.Tensor.to and "cpu" in wanted)
        if function is torch.Tensor.double or torch.float64 in wanted:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        made = super().__torch_function__(function, types, args, kwargs)
        return made.as_subclass(torch.Tensor) if to_cpu else made


def test_metrics_go_to_the_cpu_before_they_go_to_float64():
    """Features, labels, weights and points may all lie on a device without it."""
    images = tiny_images(8).as_subclass(OnMPS)
    with pytest.raises(TypeError, match="float64"):
        images.double()
    features = metrics.features(images, nn.Flatten())
    assert type(features) is torch.Tensor
    assert features.dtype == torch.float64
    device = features.float().as_subclass(OnMPS)
    values = metrics.quality(features[:, :3], device[:, :3])
    assert values == metrics.quality(features[:, :3], features[:, :3])
    modes, good = metrics.nearest_mode(device[:, :2], device[:3, :2], 0.1)
    weights = torch.tensor([1.0, 2.0, 3.0]).as_subclass(OnMPS)
    metrics.mode_coverage(
        modes.as_subclass(OnMPS), 3, high_quality=good.as_subclass(OnMPS), reference=weights
    )


class Fused(SimpleNamespace):
    """What is asked of a fused optimizer, with weights that say where they are."""

    step = torch.optim.Adam.step


def test_on_mps_the_host_decides_whether_a_player_moves():
    """There kernels of older versions take the flag, and move the weights all the same."""
    for device, decides in ((MPS, False), (torch.device("cpu"), True)):
        weight = SimpleNamespace(device=device)
        optimizer = Fused(
            param_groups=[{"params": [weight]}], state={}, _step_supports_amp_scaling=True
        )
        assert optimizers.decides_on_device(optimizer) is decides


class Asked(torch.Tensor):
    """A tensor that is moved nowhere, and notes how it was to be moved."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is torch.Tensor.to:
            args[0].asked = kwargs
            return args[0]
        if function is torch.Tensor.pin_memory:  # needs a GPU
            return args[0]
        return super().__torch_function__(function, types, args, kwargs)


@pytest.mark.parametrize(("device", "aside"), [(CUDA, True), (MPS, False)])
def test_only_cuda_copies_without_waiting(device, aside):
    """MPS may read a batch after it is freed."""
    batch = torch.zeros(2, 3, 8, 8).as_subclass(Asked)
    loader._moved([batch], device)
    assert batch.asked == {"non_blocking": aside}
    run = SimpleNamespace(device=device, weights_dtype=torch.float32, _layout=torch.channels_last)
    trainer.Trainer._moved(run, batch)
    assert batch.asked["non_blocking"] is aside


def test_images_are_contiguous_on_mps_and_channels_last_elsewhere(monkeypatch):
    """There older PyTorch has wrong gradients of batch norm in channels last."""
    assert traits.layout(MPS) == torch.contiguous_format
    assert traits.layout(CUDA) == torch.channels_last
    seen = set()

    class Watch(tinygan.Hook):
        def on_gradients(self, trainer, player):
            tensors = [trainer.real, *player.parameters]
            seen.update(t.is_contiguous() for t in tensors if t.dim() == 4 and t.shape[1] > 1)

    for name in ("trainer", "augmentations"):
        monkeypatch.setattr(f"tinygan.{name}.layout", lambda device: traits.layout(MPS))
    tiny_trainer(hooks=[Watch()], augment=augmentations.diff_augment()).fit(
        [tiny_images()], epochs=2
    )
    assert seen == {True}
