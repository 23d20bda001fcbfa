"""Generators in the layout of the Hugging Face Hub, tried on local folders alone."""

import functools
import json

import pytest
import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin
from torch import nn

import tinygan
from tinygan import hub

LAYERS = {"activation": functools.partial(nn.LeakyReLU, 0.1), "norm": nn.InstanceNorm2d}


def saved(folder, **arguments):
    """Save a generator and return it."""
    net = tinygan.DCGANGenerator(8, base_channels=4, **arguments).apply(tinygan.weights_init)
    net.save(folder, trained_on="pets", classes=["cat", "dog"])
    return net.eval()


@pytest.mark.parametrize("arguments", [{}, {"norm": None, "num_classes": 2, "channels": 1}, LAYERS])
def test_a_generator_goes_to_the_hub_and_back(tmp_path, arguments):
    """By the mixin's own methods: the same weights, and all that is known of the generator."""
    net = saved(tmp_path / "run", **arguments)
    there = hub.DCGANGenerator.from_pretrained(tmp_path / "run")
    there.save_pretrained(tmp_path / "hub")
    back = tinygan.load_generator(tmp_path / "hub")
    assert not there.training
    z = torch.randn(2, 100)
    labels = None if net.num_classes is None else torch.tensor([0, 1])
    assert torch.equal(there(z, labels), net(z, labels))
    for name, tensor in net.state_dict().items():
        assert torch.equal(there.state_dict()[name], tensor)
        assert torch.equal(back.state_dict()[name], tensor)
    assert back.facts["classes"] == ["cat", "dog"]
    first, second = (json.loads((tmp_path / f / "config.json").read_text()) for f in ("run", "hub"))
    assert first == second
    card = ModelCard.load(tmp_path / "hub" / "README.md")
    assert card.data.library_name == "tinygan"
    assert card.data.pipeline_tag == "unconditional-image-generation"


def test_the_layout_is_the_mixins(tmp_path):
    """A class that knows nothing of tinygan's files reads them, by the mixin alone."""

    class Theirs(tinygan.DCGANGenerator, PyTorchModelHubMixin):
        pass

    net = saved(tmp_path)
    theirs = Theirs.from_pretrained(tmp_path)
    z = torch.randn(2, 100)
    assert torch.equal(theirs(z), net(z))


def test_what_another_tool_wrote_is_loaded(tmp_path):
    """Weights and config.json by the mixin itself, which writes no checksum."""

    class Theirs(tinygan.DCGANGenerator, PyTorchModelHubMixin):
        pass

    net = Theirs(image_size=(8, 9), base_channels=4, num_classes=3)
    net.save_pretrained(tmp_path)
    loaded = tinygan.load_generator(tmp_path)
    assert (loaded.image_size, loaded.num_classes) == ((8, 9), 3)
    for name, tensor in net.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
