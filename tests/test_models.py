"""The nets: every size, the tutorial's at 64, and their initial weights."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from tinygan import DCGANDiscriminator, DCGANGenerator, weights_init

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
    generator.double()
    discriminator.double()

    images = generator(torch.randn(count, latent_dim, dtype=torch.float64))
    logits = discriminator(images)
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
    """The maps shrink by halves, rounded up, to a smaller side of 4 to 8; G mirrors D."""
    generator, discriminator = (
        net(size, base_channels=1, norm=None) for net in (DCGANGenerator, DCGANDiscriminator)
    )

    def maps(net, given):
        found = []
        for layer in net.main:
            given = layer(given)
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                found.append(tuple(given.shape[2:]))
        return found

    down = [size, *maps(discriminator, torch.zeros(1, 3, *size))]
    up = maps(generator, torch.zeros(1, 100, 1, 1))

    assert down[-1] == (1, 1)
    assert 4 <= min(down[-2]) <= 8
    assert all(b == ((a[0] + 1) // 2, (a[1] + 1) // 2) for a, b in pairwise(down[:-1]))
    assert up == down[-2::-1]


def test_printed_nets_are_the_tutorials():
    """At 64 with the defaults, printing a net shows the tutorial's layers, but for the Sigmoid."""

    def layers(net):
        return str(net).splitlines()

    twin = layers(tutorial.make_discriminator())
    assert twin[-2] == "  (12): Sigmoid()"
    twin[-2:-1] = []
    assert [line.strip() for line in layers(DCGANDiscriminator())[2:-2]] == [
        line.strip() for line in twin[1:-1]
    ]
    assert [line.strip() for line in layers(DCGANGenerator())[2:-2]] == [
        line.strip() for line in layers(tutorial.make_generator())[1:-1]
    ]


def test_initial_weights_are_the_tutorials_bit_for_bit():
    """With one seed, the nets start with the very weights that the tutorial's start with."""
    torch.manual_seed(999)
    twins = (
        tutorial.make_generator().apply(tutorial.weights_init),
        tutorial.make_discriminator().apply(tutorial.weights_init),
    )
    torch.manual_seed(999)
    nets = (
        DCGANGenerator().apply(weights_init),
        DCGANDiscriminator().apply(weights_init),
    )
    for net, twin in zip(nets, twins):
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
    built = list(net(norm=nn.InstanceNorm2d, activation=nn.GELU).main)
    assert sum(isinstance(layer, nn.InstanceNorm2d) for layer in built) == normed
    assert sum(isinstance(layer, nn.GELU) for layer in built) == 4
    assert not any(isinstance(layer, nn.ReLU | nn.LeakyReLU) for layer in built)
    bare = list(net(norm=None).main)
    biased = [layer.bias is not None for layer in bare if hasattr(layer, "bias")]
    assert sum(biased) == normed
    assert sum(layer.bias is not None for layer in built if hasattr(layer, "kernel_size")) == 0


def test_generator_takes_the_tutorials_noise():
    """Noise (N, Z, 1, 1), as the tutorial draws it, gives the same images as (N, Z)."""
    generator = DCGANGenerator(8, base_channels=2).eval()
    z = torch.randn(3, 100)

    assert torch.equal(generator(z), generator(z[:, :, None, None]))


def test_weights_init_asks_the_type_not_the_name():
    """A class whose name has Conv in it but no weight is left alone; so is a norm without scale."""

    class ConvNotes(nn.Module):
        pass

    weights_init(ConvNotes())
    weights_init(nn.BatchNorm2d(3, affine=False))
    linear = nn.Linear(3, 3)
    before = linear.weight.clone()
    weights_init(linear)
    assert torch.equal(linear.weight, before)


def test_weights_init_draws_anew():
    """Applied to trained layers it leaves nothing of their training."""
    norm = nn.BatchNorm2d(1000)
    nn.init.ones_(norm.bias)
    nn.init.zeros_(norm.weight)
    weights_init(norm)
    assert torch.equal(norm.bias, torch.zeros(1000))
    assert norm.weight.mean().item() == pytest.approx(1, abs=0.005)
    assert norm.weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_weights_init_reaches_below_spectral_norm():
    """A convolution under spectral norm is drawn anew, not left as it was."""
    conv = spectral_norm(nn.Conv2d(8, 64, 4))
    weights_init(conv)

    drawn = conv.parametrizations.weight.original
    assert drawn.std().item() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize("net", [DCGANGenerator, DCGANDiscriminator])
@given(side=st.integers(-3, 7), other=strategies.sides)
def test_sizes_under_eight_are_refused(net, side, other):
    """A side under 8 pixels is named with its value, the rule and the remedy."""
    sentence = f"image_size must be at least 8, got {side}; use 8 or more."
    for size in (side, (side, other), (other, side)):
        with pytest.raises(ValueError) as error:
            net(size)
        assert str(error.value) == sentence


@pytest.mark.parametrize(
    ("net", "name"),
    [
        *((DCGANGenerator, n) for n in ("channels", "latent_dim", "base_channels", "max_channels")),
        *((DCGANDiscriminator, n) for n in ("channels", "base_channels", "max_channels")),
    ],
)
@given(count=strategies.too_few, strange=strategies.not_ints.filter(lambda x: x is not None))
def test_counts_under_one_are_refused(net, name, count, strange):
    """A count under 1, or none at all, is named with its value, the rule and the remedy."""
    with pytest.raises(ValueError) as error:
        net(**{name: count})
    assert str(error.value) == f"{name} must be at least 1, got {count}; use 1 or more."
    with pytest.raises(ValueError, match=f"{name} must be an int, got "):
        net(**{name: strange})


@pytest.mark.parametrize("size", ["64", (64,), (64, 64, 64), 64.0, None, (64, 8.5)])
def test_sizes_of_another_kind_are_refused(size):
    """A size that is no int and no pair of ints is named."""
    with pytest.raises(ValueError, match="image_size must be an int"):
        DCGANGenerator(size)


def test_wrong_shapes_are_named():
    """Noise and images of another shape than the net's are refused with both shapes."""
    with pytest.raises(ValueError, match=r"z must be \(N, 100\), got \(2, 50\)"):
        DCGANGenerator(8)(torch.zeros(2, 50))
    with pytest.raises(ValueError, match=r"images must be \(N, 3, 8, 8\), got \(2, 1, 8, 8\)"):
        DCGANDiscriminator(8)(torch.zeros(2, 1, 8, 8))
