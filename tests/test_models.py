"""The nets: every size, the tutorial's at 64, and their initial weights."""

from __future__ import annotations

import re
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from tinygan import DCGANDiscriminator, DCGANGenerator, weights_init
from tinygan.nets import traits

import strategies
import tutorial


@given(
    size=strategies.image_sizes,
    channels=strategies.channels,
    width=strategies.widths,
    latent_dim=strategies.latent_dims,
    count=strategies.batch_sizes,
    cap=st.none() | st.integers(1, 8),
    norm=st.sampled_from([nn.BatchNorm2d, partial(nn.GroupNorm, 1), None]),
)
def test_every_size_channel_and_width(size, channels, width, latent_dim, count, cap, norm):
    """G makes images of just the asked shape in [-1, 1], D judges each, and all weights learn."""
    # Smooth and in float64: a ReLU may rightly be dead, and then nothing behind it learns.
    same = {"max_channels": cap, "norm": norm, "activation": nn.SiLU}
    generator = DCGANGenerator(size, channels, latent_dim, width, **same).apply(weights_init)
    discriminator = DCGANDiscriminator(size, channels, width, **same).apply(weights_init)
    images = generator.double()(torch.randn(count, latent_dim, dtype=torch.float64))
    logits = discriminator.double()(images)
    (logits + logits.square()).sum().backward()

    assert images.shape == (count, channels, *size)
    assert images.abs().max() <= 1
    assert logits.shape == (count,)
    for net in (generator, discriminator):
        for name, parameter in net.named_parameters():
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().max() > 0, name


@given(size=strategies.image_sizes)
def test_each_stage_halves_rounding_up(size):
    """The maps shrink by halves, rounded up, to a shorter side of 4 to 8; G mirrors D."""

    def maps(net, given):
        found = []
        for layer in net.main:
            given = layer(given)
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                found.append(tuple(given.shape[2:]))
        return found

    discriminator = DCGANDiscriminator(size, base_channels=1, norm=None)
    down = [size, *maps(discriminator, torch.zeros(1, 3, *size))]
    up = maps(DCGANGenerator(size, base_channels=1, norm=None), torch.zeros(1, 100, 1, 1))

    assert down[-1] == (1, 1)
    assert 4 <= min(down[-2]) <= 8
    assert all(b == ((a[0] + 1) // 2, (a[1] + 1) // 2) for a, b in pairwise(down[:-1]))
    assert up == down[-2::-1]


def test_at_64_they_are_the_tutorials_nets_bit_for_bit():
    """They print its layers, but for the Sigmoid, and start with its weights from the same seed."""
    torch.manual_seed(999)
    twins = tutorial.make_generator(), tutorial.make_discriminator()
    for twin in twins:
        twin.apply(tutorial.weights_init)
    torch.manual_seed(999)
    nets = DCGANGenerator(), DCGANDiscriminator()
    for net, twin in zip(nets, twins):
        net.apply(weights_init)
        layers = [str(layer) for layer in twin if not isinstance(layer, nn.Sigmoid)]
        assert [str(layer) for layer in net.main] == layers
        ours, theirs = net.main.state_dict(), twin.state_dict()
        assert ours.keys() == theirs.keys()
        assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_tutorial_state_dicts_load():
    """Weights saved by the tutorial's classes load, and D's logits are its probabilities'."""
    twin = tutorial.make_discriminator(ndf=8).apply(tutorial.weights_init)
    net = DCGANDiscriminator(base_channels=8)
    net.load_state_dict({f"main.{name}": value for name, value in twin.state_dict().items()})
    images = torch.rand(4, 3, 64, 64) * 2 - 1
    torch.testing.assert_close(net(images).sigmoid(), twin(images).view(-1))


def test_widths_double_up_to_the_cap():
    """From the image inwards widths double per stage, and max_channels caps them in both nets."""
    for cap, widths in ((None, [4, 8, 16, 32]), (10, [4, 8, 10, 10]), (3, [3, 3, 3, 3])):
        generator = DCGANGenerator(base_channels=4, max_channels=cap)
        discriminator = DCGANDiscriminator(base_channels=4, max_channels=cap)
        up = [m.out_channels for m in generator.main if isinstance(m, nn.ConvTranspose2d)]
        down = [m.out_channels for m in discriminator.main if isinstance(m, nn.Conv2d)]
        assert up == [*reversed(widths), 3]
        assert down == [*widths, 1]


@pytest.mark.parametrize(("net", "normed"), [(DCGANGenerator, 4), (DCGANDiscriminator, 3)])
def test_norm_and_activation_are_factories(net, normed):
    """Each hidden layer has the asked norm and activation; without norm it has a bias instead."""
    build = partial(net, base_channels=2)
    built = list(build(norm=nn.InstanceNorm2d, activation=nn.GELU).main)
    assert sum(isinstance(layer, nn.InstanceNorm2d) for layer in built) == normed
    assert sum(isinstance(layer, nn.GELU) for layer in built) == 4
    assert not any(isinstance(layer, nn.ReLU | nn.LeakyReLU) for layer in built)
    assert sum(layer.bias is not None for layer in built if hasattr(layer, "kernel_size")) == 0
    bare = [layer for layer in build(norm=None).main if hasattr(layer, "bias")]
    assert sum(layer.bias is not None for layer in bare) == normed


def test_generator_takes_the_tutorials_noise():
    """Noise (N, Z, 1, 1), as the tutorial draws it, gives the same images as (N, Z)."""
    generator = DCGANGenerator(8, base_channels=2).eval()
    z = torch.randn(3, 100)
    assert torch.equal(generator(z), generator(z[:, :, None, None]))


def test_weights_init_asks_the_type_not_the_name():
    """A class whose name has Conv in it but no weight is left alone; so is a norm without scale."""
    weights_init(type("ConvNotes", (nn.Module,), {})())
    weights_init(nn.BatchNorm2d(3, affine=False))
    linear = nn.Linear(3, 3)
    before = linear.weight.clone()
    weights_init(linear)
    assert torch.equal(linear.weight, before)


def test_weights_init_draws_anew():
    """It leaves nothing of earlier training, below spectral norm neither."""
    norm = nn.BatchNorm2d(1000)
    nn.init.ones_(norm.bias)
    nn.init.zeros_(norm.weight)
    weights_init(norm)
    assert torch.equal(norm.bias, torch.zeros(1000))
    assert norm.weight.mean().item() == pytest.approx(1, abs=0.005)
    assert norm.weight.std().item() == pytest.approx(0.02, rel=0.1)
    conv = spectral_norm(nn.Conv2d(8, 64, 4))
    weights_init(conv)
    assert conv.parametrizations.weight.original.std().item() == pytest.approx(0.02, rel=0.1)


COUNTS = ["channels", "base_channels", "max_channels"]


@pytest.mark.parametrize(
    ("net", "arguments", "sentence"),
    [
        *(
            (net, {"image_size": size}, f"image_size must be at least 8, got {side}")
            for net in (DCGANGenerator, DCGANDiscriminator)
            for size, side in ((7, 7), ((7, 64), 7), ((64, -3), -3))
        ),
        *(
            (DCGANGenerator, {"image_size": size}, "image_size must be an int")
            for size in ("64", (64,), (64, 64, 64), 64.0, None)
        ),
        *(
            (net, {name: value}, f"{name} must be {rule}, got {value}")
            for net, names in (
                (DCGANGenerator, [*COUNTS, "latent_dim", "num_classes"]),
                (DCGANDiscriminator, [*COUNTS, "join", "num_classes"]),
            )
            for name in names
            for value, rule in ((0, "at least 1"), (1.5, "an int"), (True, "an int"))
        ),
    ],
)
def test_sizes_and_counts_out_of_range_are_refused(net, arguments, sentence):
    """The error names the argument, the rule and the value."""
    with pytest.raises(ValueError, match=re.escape(sentence)):
        net(**arguments)


def test_wrong_shapes_are_named():
    """Noise and images of another shape than the net's are refused with both shapes."""
    with pytest.raises(ValueError, match=r"z must be \(N, 100\), got \(2, 50\)"):
        DCGANGenerator(8)(torch.zeros(2, 50))
    with pytest.raises(ValueError, match=r"images must be \(N, 3, 8, 8\), got \(2, 1, 8, 8\)"):
        DCGANDiscriminator(8)(torch.zeros(2, 1, 8, 8))


def test_traits_are_found_in_any_net():
    """Batch norm, its statistics and dropout; evaluation ends with each part as it was before."""
    net = nn.Sequential(nn.BatchNorm1d(1), nn.Dropout(0.5).eval())
    assert traits.has_batch_norm(net)
    assert traits.has_dropout(net)
    assert not traits.has_batch_norm(net[1])
    assert not traits.has_dropout(nn.Sequential(net[0], nn.Dropout(0.0)))
    assert traits.has_dropout(nn.MultiheadAttention(2, 1, dropout=0.1))
    assert traits.running_statistics(net) == {
        "0.running_mean": torch.zeros(1),
        "0.running_var": torch.ones(1),
    }
    with traits.evaluating(net):
        assert not any(part.training for part in net.modules())
    assert [part.training for part in net.modules()] == [True, True, False]


@pytest.mark.parametrize("net", [DCGANGenerator, DCGANDiscriminator])
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"norm": "batch"}, "norm must make a layer of a width, as nn.InstanceNorm2d does, got '"),
        ({"norm": nn.BatchNorm2d(4)}, "norm must make a layer of a width, as nn.InstanceNorm2d d"),
        ({"norm": nn.GroupNorm}, "norm must make a layer of a width, as nn.InstanceNorm2d does, g"),
        ({"activation": nn.ReLU()}, "activation must make a layer, as nn.SiLU does, got ReLU();"),
        ({"activation": torch.relu}, "activation must make a layer, as nn.SiLU does, got <built"),
    ],
)
def test_what_makes_no_layer_is_named(net, arguments, sentence):
    """A name, a layer that is already made, or a function instead of what makes layers."""
    with pytest.raises(TypeError, match=re.escape(sentence)):
        net(16, base_channels=4, **arguments)


def test_numbers_of_numpy_and_lists_of_two_are_sizes():
    """As they come from an array or a configuration file."""
    generator = DCGANGenerator([16, 16], np.int64(1), np.int64(5), 4, num_classes=np.int64(3))
    assert (generator.image_size, type(generator.num_classes)) == ((16, 16), int)
    discriminator = DCGANDiscriminator([16, 16], 1, 4, num_classes=np.int64(3))
    made = generator(torch.zeros(2, 5), torch.tensor([0, 2]))
    assert discriminator(made, torch.tensor([0, 2])).shape == (2,)
