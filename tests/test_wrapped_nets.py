"""Nets whose weights PyTorch computes, shares, compiles or scripts train as any others."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import tinygan

from helpers import assert_identical, fingerprint, tiny_images, with_latent_dim
from recorder import CPURecorder


class Tied(nn.Module):
    """A net with two more layers, which share one weight."""

    def __init__(self, net):
        super().__init__()
        self.net, self.makes = net, isinstance(net, tinygan.DCGANGenerator)
        self.one, self.other = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(2))
        self.other.weight = self.one.weight

    def forward(self, x):
        """Map noise to images, or images to logits."""
        return self.more(self.net(x)) if self.makes else self.net(self.more(x))

    def more(self, images):
        """Apply the layers that share a weight."""
        return self.other(self.one(images)).tanh()


class Scripted(nn.Module):
    """A net whose layers are a ScriptModule."""

    def __init__(self, net):
        super().__init__()
        self.main, self.makes = torch.jit.script(net.main), isinstance(net, tinygan.DCGANGenerator)

    def forward(self, x):
        """Map noise to images, or images to logits."""
        return self.main(x[:, :, None, None]) if self.makes else self.main(x).flatten()


def traced(net):
    """Return a net that is a ScriptModule itself."""
    example = (2, 5) if isinstance(net, tinygan.DCGANGenerator) else (2, 3, 8, 8)
    return torch.jit.trace(Scripted(net), torch.zeros(example), check_trace=False)


def on_layers(wrap):
    """Return a function that wraps each convolution of a net."""

    def wrapped(net):
        for layer in list(net.modules()):
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                wrap(layer)
        return net

    return wrapped


half = partial(prune.random_unstructured, name="weight", amount=0.5)

WRAPPED = {
    "weight norm": on_layers(parametrizations.weight_norm),
    "spectral norm": on_layers(parametrizations.spectral_norm),
    "orthogonal": on_layers(parametrizations.orthogonal),
    "old weight norm": on_layers(nn.utils.weight_norm),
    "old spectral norm": on_layers(nn.utils.spectral_norm),
    "pruned": on_layers(half),
    "tied": Tied,
    "scripted layers": Scripted,
    "scripted": traced,
    "compiled": partial(torch.compile, backend="eager"),
    "data parallel": nn.DataParallel,
}

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*weight_norm",
    "ignore:.*torch.jit",
    "ignore::FutureWarning",
    "ignore:The .grad attribute",  # of fakes, which the compiler looks at
)


def trainer_of(wrap, **arguments):
    """Return a trainer of wrapped nets, with new weights and an average."""
    torch.manual_seed(0)
    plain = (
        tinygan.DCGANGenerator(8, latent_dim=5, base_channels=4),
        tinygan.DCGANDiscriminator(8, base_channels=4),
    )
    nets = [wrap(net).apply(tinygan.weights_init) for net in plain]
    return tinygan.GANTrainer(with_latent_dim(nets[0], 5), nets[1], ema_half_life=50.0, **arguments)


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_wrapped_nets_are_averaged_saved_resumed_and_captured(wrap, monkeypatch, tmp_path):
    """A resumed run ends in the same bits, and so does a captured one; samples have the average."""
    monkeypatch.setattr("tinygan._execution.capture.recorder_for", lambda device: CPURecorder())
    images, ends = tiny_images().split(8), []
    for capture in (False, True):
        torch.compiler.reset()  # or the compiler counts the nets of all these runs together
        whole, begun, resumed = (
            trainer_of(wrap, execution=tinygan.Execution(capture=capture)) for _ in range(3)
        )
        whole.fit(images, steps=7)
        begun.fit(images, steps=2)
        begun.save(tmp_path / "run.pt")
        resumed.resume(tmp_path / "run.pt")
        resumed.fit(images, steps=7)
        ends += [fingerprint(whole), fingerprint(resumed)]
        assert torch.equal(whole.sample(3), resumed.sample(3))
        assert not torch.equal(whole.sample(3), whole.sample(3, average=False))
        assert not whole.skipped.counts.any()
    for end in ends[1:]:
        assert_identical(ends[0], end)


@pytest.mark.parametrize("wrap", [parametrizations.weight_norm, nn.utils.weight_norm, half])
@pytest.mark.parametrize("dim", [0, 1])
def test_a_computed_weight_is_drawn_as_a_plain_one(wrap, dim):
    """The weight that a pass uses is from N(0, 0.02), of which pruning keeps what it keeps."""
    wrap = wrap if wrap is half else partial(wrap, dim=dim)
    layer = wrap(nn.Conv2d(8, 64, 4))
    layer(torch.zeros(1, 8, 4, 4))
    layer.apply(tinygan.weights_init)
    layer(torch.zeros(1, 8, 4, 4))  # which computes it
    kept = layer.weight[layer.weight != 0]
    assert len(kept) == layer.weight.numel() / (2 if wrap is half else 1)
    assert kept.mean().item() == pytest.approx(0, abs=0.002)
    assert kept.std().item() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("wrap", [parametrizations.spectral_norm, nn.utils.spectral_norm])
def test_below_spectral_norm_the_original_is_drawn_and_the_vectors_follow(wrap):
    """The first pass divides by the largest singular value of what was drawn."""
    layer = wrap(nn.Conv2d(8, 16, 4))
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    layer.apply(tinygan.weights_init)
    after = layer.state_dict()
    assert all(not torch.equal(before[name], after[name]) for name in after if name != "bias")
    layer(torch.zeros(1, 8, 4, 4))
    largest = torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)
    assert largest.item() == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize("arguments", [{}, {"orthogonal_map": "householder"}])
def test_an_orthogonal_weight_is_drawn_anew_and_orthogonal(arguments):
    """What is drawn is made orthogonal, by the map that the layer has."""
    layer = parametrizations.orthogonal(
        nn.Conv2d(4, 8, 2), use_trivialization=not arguments, **arguments
    )
    before = layer.weight.detach()
    layer.apply(tinygan.weights_init)
    after = layer.weight.detach()  # whose last two axes are orthogonal matrices
    assert not torch.allclose(before, after)
    assert torch.allclose(after @ after.mT, torch.eye(2).expand(8, 4, 2, 2), atol=1e-5)


def test_lazy_layers_see_a_batch_first():
    """Until then their weights have no shape, and PyTorch says so wherever it is needed."""
    net = nn.Sequential(nn.LazyConv2d(1, 8), nn.Flatten(0))
    for use in (
        lambda: net.apply(tinygan.weights_init),
        lambda: tinygan.spectral_norm(net),
        lambda: tinygan.GANTrainer(tinygan.DCGANGenerator(8), net).fit(
            [torch.zeros(4, 3, 8, 8)], steps=1
        ),
    ):
        with pytest.raises(
            (ValueError, RuntimeError), match=r"uninitialized parameter.* Call `for"
        ):
            use()
    net(torch.zeros(1, 3, 8, 8))
    tinygan.Player("critic", tinygan.spectral_norm(net.apply(tinygan.weights_init)))


@pytest.mark.parametrize("wrap", [nn.utils.weight_norm, nn.utils.spectral_norm, half])
def test_spectral_norm_of_computed_weights_is_refused(wrap):
    """Older wrappers compute the weight as well: dividing it twice makes no sense."""
    with pytest.raises(ValueError, match="got some that are already parametrized; call spectral_n"):
        tinygan.spectral_norm(nn.Sequential(nn.Conv2d(3, 4, 3), wrap(nn.Conv2d(4, 4, 3))))


def test_an_average_shares_no_memory_with_the_net():
    """Nor with a tensor that a layer keeps beside its parameters, with a graph or without."""
    net = nn.utils.weight_norm(nn.Linear(2, 2))
    net.kept = torch.zeros(2)
    average = tinygan.average.Average(net, 50.0).net
    places = {t.data_ptr() for t in (net.kept, net.weight, *net.parameters())}
    assert not places & {
        t.data_ptr() for t in (average.kept, average.weight, *average.parameters())
    }
    assert not any(weight.requires_grad for weight in average.parameters())
