"""A generator in files: what is written, what is read, and what is refused."""

import copy
import functools
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

import tinygan
from tinygan import data, hooks, sampling
from tinygan._run import checkpoint
from tinygan.nets.saved import describe

import recipes
import tutorial


def small(**arguments):
    """Return a small generator with running statistics that are not the first ones."""
    torch.manual_seed(0)
    net = tinygan.DCGANGenerator(**{"image_size": 8, "base_channels": 4, **arguments})
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
    return net.apply(tinygan.weights_init)


def images_of(net, count=3):
    """Return what a net makes of some noise."""
    z = sampling.normal(count, net.latent_dim, torch.Generator().manual_seed(1))
    return sampling.generate(net, z)


def same(one, other):
    """Return whether two nets have equal weights and buffers, by name."""
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@given(
    size=st.tuples(st.integers(8, 40), st.integers(8, 40)),
    channels=st.integers(1, 4),
    latent_dim=st.integers(1, 9),
    base_channels=st.integers(1, 5),
    max_channels=st.none() | st.integers(1, 9),
    num_classes=st.none() | st.integers(1, 4),
    norm=st.sampled_from([nn.BatchNorm2d, None, functools.partial(nn.GroupNorm, 1)]),
    activation=st.sampled_from([nn.ReLU, functools.partial(nn.LeakyReLU, 0.1, inplace=True)]),
    in_one_file=st.booleans(),
)
def test_what_is_saved_is_loaded(tmp_path_factory, size, in_one_file, **given):
    """Any generator comes back from its folder, or its file, with the same images."""
    net = small(image_size=size, **given)
    path = tmp_path_factory.mktemp("saved") / ("g.safetensors" if in_one_file else "g")
    net.to(memory_format=torch.channels_last).save(path, classes=["a", "b"])
    before = torch.get_rng_state()
    loaded = tinygan.load_generator(path)
    assert torch.equal(torch.get_rng_state(), before)
    assert same(net, loaded)
    assert torch.equal(images_of(net), images_of(loaded))
    assert not loaded.training
    assert describe(net) == describe(loaded)
    assert loaded.facts["classes"] == ["a", "b"]


def test_a_folder_says_what_it_is(tmp_path):
    """Its configuration has the class, its arguments, what is known, and the version."""
    small(image_size=(9, 10), num_classes=2).save(tmp_path / "g", trained_on="pets", step=7)
    assert sorted(path.name for path in (tmp_path / "g").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    assert json.loads((tmp_path / "g" / "config.json").read_text()) == {
        "class": "tinygan.DCGANGenerator",
        "image_size": [9, 10],
        "channels": 3,
        "latent_dim": 100,
        "base_channels": 4,
        "max_channels": None,
        "num_classes": 2,
        "prior": "normal",
        "value_range": [-1, 1],
        "tinygan": tinygan.__version__,
        "trained_on": "pets",
        "step": 7,
    }


def test_facts_stay(tmp_path):
    """What is known of a generator is saved again with it; new facts replace old ones."""
    small().save(tmp_path / "a", trained_on="pets", step=7)
    tinygan.load_generator(tmp_path / "a").save(tmp_path / "b", step=8)
    facts = tinygan.load_generator(tmp_path / "b").facts
    assert (facts["trained_on"], facts["step"]) == ("pets", 8)


def test_nets_do_not_share_facts(tmp_path):
    """A net that has none cannot be given one by mistake that all others would have."""
    with pytest.raises(TypeError, match="does not support item assignment"):
        small().facts["step"] = 7
    small().save(tmp_path / "g", step=7)
    loaded = tinygan.load_generator(tmp_path / "g")
    copied = pickle.loads(pickle.dumps(copy.deepcopy(loaded)))
    copied.facts["step"] = 8
    assert (loaded.facts["step"], small().facts) == (7, {})


def test_a_prior_is_kept(tmp_path):
    """A generator whose z is uniform is sampled from uniform z when it is loaded."""
    net = small()
    net.prior = sampling.uniform
    net.save(tmp_path / "g")
    assert tinygan.load_generator(tmp_path / "g").prior is sampling.uniform


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run, with a moving average, in a folder of its own."""
    folder = tmp_path_factory.mktemp("run")
    trainer = tinygan.GANTrainer(
        small(num_classes=4),
        tinygan.DCGANDiscriminator(8, base_channels=4, num_classes=4),
        ema_half_life=100,
        hooks=[
            hooks.SaveGenerator(folder, every=2, classes=["bald", "short", "long", "curly"]),
            hooks.Checkpoint(folder, every=2),
        ],
    )
    faces = data.CartoonFaces(64, image_size=8, label="hair_style")
    trainer.fit(data.Loader(faces, batch_size=16), steps=5)
    return folder, trainer


@pytest.mark.parametrize(
    "inside",
    [
        ".", "generator", "generator/model.safetensors", "checkpoints",
        "checkpoints/step_000005.pt",
    ],
)  # fmt: skip
def test_a_run_is_loaded(run, inside):
    """From its folder, its generator's, or a checkpoint: the moving average, and how far it is."""
    folder, trainer = run
    net = tinygan.load_generator(folder / inside)
    assert same(net, trainer.average.net)
    z = trainer.fixed_noise[:4]
    assert torch.equal(sampling.generate(net, z, labels=1), trainer.generate(z, labels=1))
    assert (net.num_classes, net.facts["step"], net.facts["images"]) == (4, 5, 80)
    assert net.facts["classes"] == ["bald", "short", "long", "curly"]


def test_a_run_without_the_hook_is_loaded(run, tmp_path):
    """From its newest checkpoint; a run that has begun and has none yet is refused."""
    folder, trainer = run
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match="which has none yet; wait for its first checkpoint"):
        tinygan.load_generator(tmp_path)
    for path in (folder / "checkpoints").iterdir():
        (tmp_path / "checkpoints" / path.name).write_bytes(path.read_bytes())
    assert same(tinygan.load_generator(tmp_path), trainer.average.net)


def test_the_generator_is_written_while_the_run_goes_on(tmp_path):
    """Every so many steps, of those weights; not one that is NaN, which does not end the run."""
    seen = []

    class Look(tinygan.Hook):
        def on_step_end(self, trainer, report):
            if trainer.step == 3:
                seen.append(tinygan.load_generator(tmp_path).facts["step"])
                next(trainer.generator.parameters()).data.fill_(float("nan"))

    saving = hooks.SaveGenerator(tmp_path, every=2)
    trainer = tinygan.GANTrainer(*recipes.nets(), hooks=[saving, Look()])
    trainer.fit([batch for batch, _ in recipes.batches()], steps=5)
    assert seen == [2]
    assert tinygan.load_generator(tmp_path).facts["step"] == 2


def test_an_old_checkpoint_is_loaded(run, tmp_path):
    """One that does not say how nets were made: its weights and its length of z tell."""
    folder, trainer = run
    state = torch.load(folder / "checkpoints" / "step_000005.pt", weights_only=True)
    del state["nets"]
    torch.save(state, tmp_path / "old.pt")
    net = tinygan.load_generator(tmp_path / "old.pt")
    assert same(net, trainer.average.net)
    assert net.num_classes == 4


@pytest.mark.parametrize("prefix", ["main.", "module.main."])
def test_the_tutorials_weights_are_loaded(tmp_path, prefix):
    """Bare weights of the tutorial's generator, saved from nn.DataParallel too."""
    torch.manual_seed(0)
    theirs = tutorial.make_generator(nz=20, ngf=8).apply(tinygan.weights_init).eval()
    weights = {prefix + name: tensor for name, tensor in theirs.state_dict().items()}
    torch.save(weights, tmp_path / "netG.pt")
    ours = tinygan.load_generator(tmp_path / "netG.pt")
    assert (ours.image_size, ours.channels, ours.latent_dim) == ((64, 64), 3, 20)
    z = torch.randn(2, 20)
    torch.testing.assert_close(ours(z), theirs(z[:, :, None, None]), rtol=0, atol=1e-6)


@given(
    size=st.tuples(st.integers(8, 70), st.integers(8, 70)),
    channels=st.integers(1, 4),
    base_channels=st.integers(1, 4),
    max_channels=st.none() | st.integers(1, 9),
    norm=st.sampled_from([nn.BatchNorm2d, None]),
)
def test_bare_weights_tell_their_net(tmp_path_factory, size, **given):
    """All but the activation is seen from the weights of a DCGAN generator of any size."""
    net = small(image_size=size, latent_dim=5, **given)
    path = tmp_path_factory.mktemp("bare") / "g.pt"
    torch.save(net.state_dict(), path)
    loaded = tinygan.load_generator(path)
    assert same(net, loaded)
    assert loaded.image_size == size
    assert torch.equal(images_of(net), images_of(loaded))


class MyNet(nn.Module):
    """A net of a user's own."""

    latent_dim = 5

    def __init__(self, width=4):
        super().__init__()
        self.linear = nn.Linear(5, 3 * 8 * 8, bias=width == 4)

    def forward(self, z):
        """Return images."""
        return self.linear(z).reshape(len(z), 3, 8, 8).tanh()


def test_own_nets_load_into_themselves(tmp_path):
    """A net of one's own needs an instance; without one, or with another, the error names it."""
    net = MyNet()
    tinygan.save_generator(net, tmp_path / "mine", trained_on="pets")
    loaded = tinygan.load_generator(tmp_path / "mine", into=MyNet())
    assert same(net, loaded)
    assert loaded.facts["trained_on"] == "pets"
    with pytest.raises(ValueError, match=r"class must be one of tinygan's, got .*MyNet in .*into="):
        tinygan.load_generator(tmp_path / "mine")
    with pytest.raises(ValueError, match=r"got those of a .*MyNet in .* for a DCGANGenerator"):
        tinygan.load_generator(tmp_path / "mine", into=small())
    with pytest.raises(TypeError, match=r"into must be a net, got <class .*; make one: into=MyNe"):
        tinygan.load_generator(tmp_path / "mine", into=MyNet)
    with pytest.raises(ValueError, match="build it with the same arguments"):
        tinygan.load_generator(tmp_path / "mine", into=MyNet(5))


def test_layers_of_ones_own_need_the_net(tmp_path):
    """A layer that torch.nn does not have is named, and not looked up."""

    def cosine():
        return nn.Tanhshrink()

    net = small(activation=cosine)
    net.save(tmp_path / "g")
    with pytest.raises(ValueError, match=r"layers must be those of torch.nn, got .*cosine.*into="):
        tinygan.load_generator(tmp_path / "g")
    assert same(tinygan.load_generator(tmp_path / "g", into=small(activation=cosine)), net)


class Wide(tinygan.DCGANGenerator):
    """One of tinygan's with another constructor, whose arguments it does not keep."""

    def __init__(self, width, *args, **rest):
        super().__init__(8, *args, base_channels=width, **rest)


ODD = {
    "sizes of a tensor": lambda: own(image_size=torch.empty(8, 8).shape),
    "NumPy's numbers": lambda: small(base_channels=np.int64(4), max_channels=np.int32(9)),
    "a type of numbers": lambda: small(norm=functools.partial(nn.BatchNorm2d, dtype=torch.float)),
    "a function": lambda: small(norm=lambda width: nn.GroupNorm(1, width)),
    "another constructor": lambda: Wide(4),
    "a tensor": lambda: own(prior=nn.Parameter(torch.zeros(5)), channels=torch.zeros(2)),
    "layers": lambda: own(channels=nn.ModuleList([nn.ReLU()])),
}


def own(**attributes):
    """Return a net of one's own with attributes that mean something else than tinygan's."""
    net = MyNet()
    for name, value in attributes.items():
        setattr(net, name, value)
    return net


@pytest.mark.parametrize("make", ODD.values(), ids=ODD)
def test_odd_nets_can_be_kept(tmp_path, make):
    """Whatever a net says of itself, it is saved in words that are the same each time."""
    net = make()
    described = describe(net)
    checkpoint.check_plain(described, "config")
    assert " at 0x" not in json.dumps(described)
    tinygan.save_generator(net, tmp_path / "g")
    assert same(tinygan.load_generator(tmp_path / "g", into=make()), net)


def test_a_run_of_an_odd_net_is_kept(tmp_path):
    """Its checkpoint is written, and gone on from."""
    d = tinygan.DCGANDiscriminator(8, base_channels=4)
    tinygan.GANTrainer(Wide(4), d).save(tmp_path / "a.pt")
    tinygan.GANTrainer(Wide(4), d).resume(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "change",
    [
        {"image_size": [10**12, 10**12]}, {"latent_dim": 10**18}, {"base_channels": 10**30},
        {"class": ["x"]}, {"norm": {"layer": "Transformer"}}, {"prior": "cauchy"},
        {"activation": {"layer": "ReLU", "args": 3}}, {"class": ..., "latent_dim": "many"},
    ],
)  # fmt: skip
def test_a_foolish_configuration_is_one_sentence(tmp_path, change):
    """Numbers that no machine has room for, lists where a name should be: each a ValueError."""
    net = small(num_classes=2)
    config = {k: v for k, v in (describe(net) | change).items() if v is not ...}
    (tmp_path / "config.json").write_text(json.dumps(config))
    # As other tools do, so that it is config.json that counts.
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"the net and give it: load_generator|must be an int"):
        tinygan.load_generator(tmp_path)


def test_a_configuration_that_is_no_json_is_named(tmp_path):
    """Deeper than Python can read, or a folder."""
    save_file(small().state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"generator must be whole, got .*recursion"):
        tinygan.load_generator(tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").mkdir()
    with pytest.raises(ValueError, match=r"generator must be whole, got .*directory"):
        tinygan.load_generator(tmp_path)


@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@example(position=0.00390625, bit=0)  # "tinygan" becomes "tinyfan": a bare file of weights
def test_a_flipped_bit_is_found(tmp_path_factory, position, bit):
    """Any flipped bit of the file is an error, or changes nothing that is loaded."""
    path = tmp_path_factory.mktemp("flipped") / "g.safetensors"
    net = small(base_channels=1)
    net.save(path)
    content = bytearray(path.read_bytes())
    content[int(position * len(content))] ^= 1 << bit
    path.write_bytes(content)
    try:
        loaded = tinygan.load_generator(path)
    except ValueError as error:
        assert str(path) in str(error)  # noqa: PT017 - not every flip is an error
    else:
        assert same(loaded, net)
        # Without its description it is a file of bare weights, whose shapes tell no unused limit.
        hidden = {} if b'{"tinygan":' in content else {"max_channels": 1}
        assert describe(loaded) == describe(net) | hidden


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.999])
def test_a_cut_file_is_refused(tmp_path, share):
    """Half a file is named, with what to do."""
    path = tmp_path / "g.safetensors"
    small().save(path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"generator must be whole, got .*g\.safetensors: .*again"):
        tinygan.load_generator(path)


class Attack:
    """What a pickle would execute."""

    def __reduce__(self):
        return Path.touch, (Path("executed"),)


def test_nothing_is_executed(tmp_path, monkeypatch):
    """A file of pickled objects is refused, in PyTorch's format and in any other."""
    monkeypatch.chdir(tmp_path)
    torch.save({"w": Attack()}, "evil.pt")
    with pytest.raises(ValueError, match="holds pickled objects, which are not loaded"):
        tinygan.load_generator("evil.pt")
    Path("plain.pt").write_bytes(pickle.dumps(Attack()))
    Path("g.safetensors").write_bytes(pickle.dumps(Attack()))
    with zipfile.ZipFile("zipped.pt", "w") as archive:
        archive.writestr("data.pkl", pickle.dumps(Attack()))
    for name in ("plain.pt", "g.safetensors", "zipped.pt"):
        with pytest.raises(ValueError, match="must be whole"):
            tinygan.load_generator(name)
    for layer in ("functional.relu", "Module.apply", "__import__", "init", 3):
        with pytest.raises(ValueError, match=r"layers must be those of torch\.nn"):
            tinygan.nets.saved.layer_of({"layer": layer})
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: None, "which is not there"),
        (lambda path: path.mkdir(), "which is no run; give a folder that holds model.safetensors"),
        (lambda path: torch.save({"a": 1}, path), "a generator's weights, got a dictionary of a"),
        (lambda path: torch.save({}, path), "got a dictionary of nothing; save net.state_dict()"),
        (
            lambda path: torch.save(nn.Linear(2, 2).state_dict(), path),
            "weights of a DCGAN generator, got weight, bias ...; build the net",
        ),
        (
            lambda path: torch.save(tinygan.DCGANDiscriminator(8).state_dict(), path),
            "weights of a DCGAN generator, got main.0.weight",
        ),
    ],
)
def test_what_holds_no_generator_is_named(tmp_path, make, sentence):
    """With the path, what was found, and what to do."""
    path = tmp_path / "g.pt"
    make(path)
    with pytest.raises(ValueError, match=sentence) as error:
        tinygan.load_generator(path)
    assert str(path) in str(error.value)


def test_what_cannot_be_saved_is_named(tmp_path):
    """Weights that are NaN, facts that are no plain values; and nothing is written."""
    net = small()
    with pytest.raises(ValueError, match=r"facts must be plain values, got .*; use text, numbers"):
        net.save(tmp_path / "g", trained_on=Path("pets"))
    saving = hooks.SaveGenerator(tmp_path / "run", trained_on=Path("pets"))
    with pytest.raises(ValueError, match="facts must be plain values"):  # now, not after hours
        tinygan.GANTrainer(*recipes.nets(), hooks=[saving]).fit([], steps=1)
    for name in ("channels", "norm", "prior", "tinygan", "value_range"):
        with pytest.raises(ValueError, match=rf"have names of their own, got \['{name}'\]; rename"):
            net.save(tmp_path / "g", **{name: "x"})
    net.main[0].weight.data[0] = float("nan")
    with pytest.raises(
        ValueError, match=r"weights must not be NaN, got weights\['main.0.weight'\]"
    ):
        net.save(tmp_path / "g")
    assert not (tmp_path / "g").exists()


def test_saving_again_is_whole_or_not_at_all(tmp_path, monkeypatch):
    """A disk that is full leaves the older generator."""
    small().save(tmp_path / "g", step=1)

    def full(file, content):
        raise OSError("no space left on device")

    monkeypatch.setattr(tinygan.nets.saved.disk, "write", full)
    with pytest.raises(OSError, match="no space"):
        small(image_size=9).save(tmp_path / "g", step=2)
    net = tinygan.load_generator(tmp_path / "g")
    assert (net.image_size, net.facts["step"]) == ((8, 8), 1)
    assert len(list((tmp_path / "g").iterdir())) == 2
