"""Latents: a seed names one z, and walks between them have no jumps."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import tinygan
from tinygan import latents, sampling

import strategies


def tiny_net(num_classes=None, names=None):
    """Return an 8x8 generator, trained on classes of some names or not."""
    torch.manual_seed(0)
    net = tinygan.DCGANGenerator(8, latent_dim=5, base_channels=4, num_classes=num_classes)
    object.__setattr__(net, "facts", {} if names is None else {"classes": names})
    return net.eval()


@given(numbers=st.lists(strategies.seeds, min_size=1, max_size=5))
def test_a_row_depends_on_its_own_seed_alone(numbers):
    """Whatever is asked for beside it, a seed's z is the same, and on the CPU."""
    net = tiny_net()
    together = latents.by_seed(net, numbers)
    alone = [latents.by_seed(net, [number])[0] for number in numbers]
    assert together.shape == (len(numbers), 5)
    assert torch.equal(together, torch.stack(alone))
    assert together.device.type == "cpu"


def test_seeds_are_drawn_from_the_generators_prior():
    """One with a prior of its own has z of that, any other of N(0, I); different seeds differ."""
    net = tiny_net()
    z = latents.by_seed(net, range(2000))
    assert abs(float(z.mean())) < 0.05
    assert abs(float(z.std()) - 1) < 0.05
    assert len(z.unique(dim=0)) == 2000
    net.prior = sampling.uniform
    z = latents.by_seed(net, range(2000))
    assert 0.99 < float(z.abs().max()) <= 1


def test_truncation_scales_z():
    """At 0.5 z is half as long, at 0 all are one."""
    net = tiny_net()
    whole = latents.by_seed(net, [3, 14])
    assert torch.equal(latents.by_seed(net, [3, 14], 0.5), whole / 2)
    assert torch.equal(latents.by_seed(net, [3, 14], 0), whole * 0)


@pytest.mark.parametrize(
    ("numbers", "truncation", "sentence"),
    [
        ([1], 1.5, r"truncation must be in \[0, 1\], got 1.5; use a number in it"),
        ([1], -0.1, r"truncation must be in \[0, 1\], got -0.1"),
        ([], 1.0, "the number of seeds must be at least 1, got 0"),
        ([1.5], 1.0, "seed must be an int, got 1.5"),
    ],
)
def test_other_seeds_and_truncations_are_refused(numbers, truncation, sentence):
    """Errors say the value and the rule."""
    with pytest.raises(ValueError, match=f"^{sentence}"):
        latents.by_seed(tiny_net(), numbers, truncation)


def test_a_generator_without_a_length_of_its_noise_is_refused():
    """It is said what it lacks."""
    with pytest.raises(ValueError, match=r"^latent_dim must be an int, got None"):
        latents.by_seed(torch.nn.Linear(2, 2), [1])


def vectors(length):
    """Draw vectors whose parts are of a usual size."""
    parts = st.floats(-10, 10, width=32)
    return st.lists(parts, min_size=length, max_size=length).map(torch.tensor)


pairs = st.integers(2, 6).flatmap(lambda length: st.tuples(vectors(length), vectors(length)))


@given(pair=pairs)
def test_slerp_is_exact_at_its_ends(pair):
    """At 0 it is the first, at 1 the second, to the bit, whatever they are."""
    a, b = pair
    assert torch.equal(latents.slerp(a, b, 0), a)
    assert torch.equal(latents.slerp(a, b, 1), b)


@given(pair=pairs, t=st.floats(0, 1))
def test_slerp_turns_evenly_and_keeps_lengths(pair, t):
    """The angle to the first is t times the whole one, and the length is between the two evenly."""
    a, b = (each.double() for each in pair)
    assume(min(a.norm(), b.norm()) > 0.1)
    cosine = float(torch.nn.functional.cosine_similarity(a, b, dim=0))
    assume(abs(cosine) < 0.999)
    found = latents.slerp(a, b, t)
    assert math.isclose(found.norm(), (1 - t) * a.norm() + t * b.norm(), rel_tol=1e-9)
    turned = a @ found / a.norm() / found.norm()
    assert math.isclose(turned, math.cos(t * math.acos(cosine)), rel_tol=1e-6, abs_tol=1e-9)
    assert torch.allclose(latents.slerp(b, a, 1 - t), found)


@given(a=vectors(4), factor=st.sampled_from([-3, -1, 1e-3, 1, 2]), t=st.floats(0, 1))
def test_slerp_goes_straight_between_parallel_vectors(a, factor, t):
    """Same and opposite directions, and no length at all, give no NaN but the straight line."""
    assume(a.norm() > 1e-3 or not a.any())
    found = latents.slerp(a.double(), factor * a.double(), t)
    assert torch.allclose(found, a.double() * (1 - t + t * factor))
    assert latents.slerp(a, torch.zeros(4), t).isfinite().all()


def test_slerp_takes_rows_and_their_places():
    """Each row of (N, Z) has a place of its own, and one pair may have many."""
    a, b = torch.eye(3)[:2], torch.eye(3)[1:]
    rows = latents.slerp(a, b, torch.tensor([0.2, 0.7]))
    assert torch.equal(rows[1], latents.slerp(a[1], b[1], 0.7))
    many = latents.slerp(a[0], b[0], torch.tensor([0.2, 0.7]))
    assert torch.equal(many[1], latents.slerp(a[0], b[0], 0.7))


points = st.integers(1, 5).flatmap(
    lambda count: st.lists(st.integers(0, 3), min_size=count, max_size=count)
)


@given(numbers=points, count=st.integers(1, 60))
def test_a_walk_begins_with_the_first_point_and_has_no_jumps(numbers, count):
    """Each step, and the one from the last back to the first, turns by the same angle at most."""
    z = latents.by_seed(tiny_net(), numbers)
    steps = latents.walk(z, count)
    assert steps.shape == (count, 5)
    assert torch.equal(steps[0], z[0])
    angle = latents._angle(z.double(), z.roll(-1, 0).double())
    still = angle < 1e-4
    whole = float(angle.where(~still, angle[~still].mean() if (~still).any() else 0).sum())
    turns = latents._angle(steps, steps.roll(-1, 0))
    assert float(turns.max()) <= whole / count + 1e-3


def test_a_walk_passes_all_points_at_one_speed():
    """Three points a right angle apart are a third of the walk each; no step is doubled."""
    steps = latents.walk(torch.eye(3), 300)
    for part in range(3):
        assert torch.allclose(steps[100 * part], torch.eye(3)[part], atol=1e-6)
    turns = latents._angle(steps, steps.roll(-1, 0))
    assert torch.allclose(turns, torch.full((300,), math.pi / 200), atol=1e-5)
    assert len(steps.unique(dim=0)) == 300


def test_distant_points_take_longer():
    """Of 45, 90 and 135 degrees the first takes a sixth of the steps."""
    steps = latents.walk(torch.tensor([[1.0, 0.0], [1.0, 1.0], [-1.0, 1.0]]), 60)
    assert torch.allclose(steps[10], torch.tensor([1.0, 1.0]), atol=1e-6)
    assert torch.allclose(steps[30], torch.tensor([-1.0, 1.0]), atol=1e-6)


def test_a_repeated_point_is_a_pause():
    """Two of the same in a row take as long as a mean part; all the same stand still."""
    a, b = torch.eye(2)
    steps = latents.walk(torch.stack([a, a, b]), 30)
    assert all(torch.allclose(step, a) for step in steps[:11])
    assert not torch.allclose(steps[12], a)
    assert torch.equal(latents.walk(torch.stack([a, a]), 4), a.expand(4, 2))
    assert torch.equal(latents.walk(a[None], 4), a.expand(4, 2))


@given(numbers=points, count=st.integers(1, 60))
def test_classes_fade_as_the_walk_goes(numbers, count):
    """Shares are all of one at each step, and those of a point where the walk is at it."""
    z = latents.by_seed(tiny_net(), numbers)
    shares = torch.eye(5)[: len(numbers)]
    faded = latents.fade(shares, z, count)
    assert faded.shape == (count, 5)
    assert torch.equal(faded[0], shares[0])
    assert torch.allclose(faded.sum(1), torch.ones(count))
    assert float(faded.min()) >= 0


def test_a_class_fades_into_the_next_one():
    """Half way to a point it is half of that point's class, also from the last to the first."""
    faded = latents.fade(torch.eye(3), torch.eye(3), 6)
    expected = torch.eye(3).repeat_interleave(2, 0)
    expected[1::2] = (expected[1::2] + torch.eye(3).roll(-1, 0)) / 2
    assert torch.allclose(faded, expected, atol=1e-6)


def test_shares_of_whole_classes_are_these_classes():
    """A net makes the same bits of labels and of their one-hot shares, and others of a mixture."""
    net = tiny_net(num_classes=3)
    z, labels = latents.by_seed(net, range(3)), torch.tensor([2, 0, 1])
    shares = torch.nn.functional.one_hot(labels, 3)
    whole = sampling.generate(net, z, labels=labels)
    assert torch.equal(sampling.generate(net, z, labels=shares.double()), whole)
    mixed = sampling.generate(net, z, labels=torch.full((3, 3), 1 / 3))
    assert not torch.allclose(mixed, whole)
    assert not torch.allclose(mixed, sampling.generate(net, z, labels=torch.ones(3, 3)))


@pytest.mark.parametrize("shares", [torch.ones(3, 2), torch.ones(2, 3), torch.ones(3)])
def test_shares_of_another_shape_are_refused(shares):
    """The error says both kinds of labels that there are."""
    net = tiny_net(num_classes=3)
    with pytest.raises(ValueError) as error:
        sampling.generate(net, latents.by_seed(net, range(3)), labels=shares)
    assert str(error.value).startswith(
        f"labels must be (N,) of integers or shares (N, 3) of floats, got {tuple(shares.shape)} of "
        "torch.float32 for N=3; give each"
    )


def test_images_are_made_one_by_one():
    """They are those that `generate` makes, in order, with their labels, over several parts."""
    net = tiny_net(num_classes=3)
    z = latents.by_seed(net, range(70))
    labels = torch.arange(70) % 3
    made = torch.stack([*latents.images(net, z, labels)])
    assert torch.allclose(made, sampling.generate(net, z, labels=labels), atol=1e-6)


def test_classes_are_found_by_name_or_number():
    """A name goes before a number; none is all."""
    assert latents.classes(tiny_net(3, ["cat", "dog", "0"]), "dog, 1,0") == [1, 1, 2]
    assert latents.classes(tiny_net(3, ["cat", "dog", "0"]), None) == [0, 1, 2]
    assert latents.classes(tiny_net(3), "2,1") == [2, 1]
    assert latents.classes(tiny_net(), None) == []
    assert latents.classes(tiny_net(names=["cat", "dog"]), None) == []


@pytest.mark.parametrize(
    ("net", "sentence"),
    [
        (tiny_net(2, ["cat", "dog"]), "known classes, got 'bird'; these are: cat, dog."),
        (tiny_net(30), f"known classes, got 'bird'; these are: {', '.join(map(str, range(20)))}."),
        (tiny_net(), "left out, got 'bird': this net has no classes."),
    ],
)
def test_unknown_classes_are_refused(net, sentence):
    """The error lists the first twenty of those that are known."""
    with pytest.raises(ValueError) as error:
        latents.classes(net, "bird")
    assert str(error.value) == f"labels must be {sentence}"
