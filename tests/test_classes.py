"""Class-conditional nets: labels go from the batches to both nets, and from the caller to G."""

from __future__ import annotations

import re
import warnings
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader

import tinygan
from tinygan import data

import recipes
import strategies

CLASSES = recipes.CLASSES
classes = st.integers(1, 12)


def conditional(**arguments):
    """Return a trainer of 8x8 images of three classes."""
    return tinygan.GANTrainer(*recipes.nets(num_classes=CLASSES), **arguments)


@given(
    size=strategies.image_sizes,
    channels=strategies.channels,
    latent_dim=strategies.latent_dims,
    count=strategies.batch_sizes,
    num_classes=classes,
)
def test_nets_of_any_shape_take_labels(size, channels, latent_dim, count, num_classes):
    """Images have their size, and each gets one logit, whatever the number of classes."""
    generator = tinygan.DCGANGenerator(size, channels, latent_dim, 2, num_classes=num_classes)
    discriminator = tinygan.DCGANDiscriminator(size, channels, 2, num_classes=num_classes)
    labels = torch.arange(count) % num_classes
    fake = generator(torch.randn(count, latent_dim), labels)
    assert fake.shape == (count, channels, *size)
    assert discriminator(fake, labels).shape == (count,)


@given(
    size=strategies.image_sizes,
    channels=strategies.channels,
    groups=st.integers(2, 4),
    join=st.integers(1, 4),
)
def test_joined_images_of_any_shape_get_a_logit(size, channels, groups, join):
    """Their channels are in order, and D gives them one logit."""
    images = torch.randn(groups * join, channels, *size)
    joined = tinygan.join_images(images, join)
    assert joined.shape == (groups, join * channels, *size)
    for i, image in enumerate(images):
        inside = i % join * channels
        assert torch.equal(joined[i // join, inside : inside + channels], image)
    discriminator = tinygan.DCGANDiscriminator(size, channels, 2, join=join)
    assert discriminator(images).shape == (groups,)


def test_a_logit_is_the_papers_projection():
    """psi(phi(x)) + <e_y, phi(x)>, phi(x) the whole last map."""
    _, net = recipes.nets(num_classes=CLASSES)
    images, labels = recipes.batches()[0]
    with torch.no_grad():
        phi = net.main[:-1](images)
        alone = net.main[-1](phi).flatten()
        wanted = torch.stack(
            [
                psi + net.embedding.weight[y] @ features.flatten()
                for psi, y, features in zip(alone, labels, phi)
            ]
        )
        torch.testing.assert_close(net(images, labels), wanted)
    assert not torch.equal(net(images, labels), net(images, (labels + 1) % CLASSES))


def test_an_image_depends_on_its_label():
    """The same z makes another image for each class, and none depends on the others beside it."""
    trainer = conditional()
    z = trainer.fixed_noise[:1].repeat(CLASSES, 1)
    made = trainer.generate(z, labels=torch.arange(CLASSES))
    for label in range(CLASSES):
        torch.testing.assert_close(trainer.generate(z[:1], labels=label)[0], made[label])
        assert not torch.equal(made[label], made[(label + 1) % CLASSES])


def test_samples_are_of_each_class_in_turn():
    """Without labels the classes take turns, so that a grid shows all of them."""
    trainer = conditional()
    turns = torch.arange(7) % CLASSES
    assert torch.equal(trainer.sample(7, seed=3), trainer.sample(7, seed=3, labels=turns))
    assert not torch.equal(trainer.sample(7, seed=3), trainer.sample(7, seed=3, labels=1))


def test_both_nets_get_the_images_own_labels():
    """Fakes are made and judged by the labels of the batch, real images by their own."""
    trainer = conditional(penalties=tinygan.penalties.r1())
    calls = []
    for player in trainer.players:
        player.module.register_forward_pre_hook(
            lambda net, given, name=player.name: (
                None if trainer.between_steps else calls.append((name, given[1].tolist()))
            )
        )
    batches = recipes.batches()
    trainer.fit(batches, steps=3)
    expected = []
    for step, (_, labels) in enumerate(batches):
        names = ["discriminator", "generator", "discriminator", "discriminator"]
        names += ["discriminator"] if step == 0 else []  # the penalty's
        expected += [(name, labels.tolist()) for name in names]
    assert calls == expected


def test_classes_are_learnt_and_are_not_one_image():
    """Images of the dark class get darker than those of the bright one, and vary with z."""
    torch.manual_seed(0)
    generator = tinygan.DCGANGenerator(8, 1, 16, 8, num_classes=2)
    discriminator = tinygan.DCGANDiscriminator(8, 1, 8, norm=None, num_classes=2)
    nets = [net.apply(tinygan.weights_init) for net in (generator, discriminator)]
    labels = torch.arange(64) % 2
    images = torch.rand(64, 1, 8, 8) + 0.6 * labels.view(-1, 1, 1, 1) - 0.8
    fast = partial(torch.optim.Adam, lr=1e-3, betas=(0.5, 0.999), fused=True)
    trainer = tinygan.GANTrainer(*nets, generator_optimizer=fast, discriminator_optimizer=fast)
    trainer.fit([[images, labels]], steps=100)
    dark, bright = (trainer.sample(64, labels=label) for label in (0, 1))
    assert bright.mean() - dark.mean() > 0.3
    assert all(made.std(0).mean() > 0.4 * made.std() for made in (dark, bright))


def test_a_loader_gives_the_labels_of_a_data_set():
    """Of images in memory with ``labels``, and of pairs, whole and by the batch."""

    class Digits:
        pixels = torch.zeros(20, 3, 8, 8, dtype=torch.uint8)
        labels = torch.arange(20) % CLASSES

        def __len__(self):
            return 20

    seen = []
    keep = tinygan.hooks.every(1, lambda trainer, _: seen.append(trainer.labels))
    conditional(hooks=[keep]).fit(data.Loader(Digits(), 8), epochs=1)
    assert sorted(torch.cat(seen).tolist()) == sorted(Digits.labels.tolist())


def test_one_attribute_of_drawn_faces_is_their_class():
    """``label`` names the attribute that batches give as the label of a face."""
    faces = data.CartoonFaces(10, image_size=8, label="hair_style")
    assert faces.num_classes == 4
    assert torch.equal(faces.labels, faces.attributes[:, 2])
    assert faces[3][1] == faces.attributes[3, 2]
    with pytest.raises(ValueError, match="label must be one of skin, hair, hair_style, eyes"):
        data.CartoonFaces(10, image_size=8, label="hat")


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (
            torch.tensor([0, 1]),
            "labels must be (N,) of integers, got (2,) of torch.int64 for N=8; giv",
        ),
        (
            torch.zeros(8),
            "labels must be (N,) of integers, got (8,) of torch.float32 for N=8; giv",
        ),
        (
            torch.arange(8),
            "labels must be in [0, 3), got [0, 7]; count classes from 0, and build the nets",
        ),
        (torch.arange(8) - 1, "labels must be in [0, 3), got [-1, 6]"),
    ],
)
def test_bad_labels_are_refused_before_the_first_step(labels, sentence):
    """The error names their shape, type or range, and the rule."""
    trainer = conditional()
    images, _ = recipes.batches()[0]
    with pytest.raises(ValueError) as error:
        trainer.fit([[images, labels]], steps=1)
    assert str(error.value).startswith(sentence)
    assert trainer.step == 0


def test_a_wrong_label_of_a_later_batch_is_refused():
    """Its step does not begin: on a GPU it would end the process without a word of labels."""
    trainer = conditional()
    (images, labels), *_ = recipes.batches()
    with pytest.raises(ValueError, match=r"labels must be in \[0, 3\), got \[0, 3\]"):
        trainer.fit([[images, labels], [images, labels.masked_fill(labels == 2, 3)]], epochs=1)
    assert (trainer.step, trainer.between_steps) == (1, True)


def test_missing_labels_are_refused():
    """Batches without labels, nets that do not agree, labels for nets without classes."""
    images, labels = recipes.batches()[0]
    plain, with_classes = recipes.nets(), recipes.nets(num_classes=CLASSES)
    expected = "batches must give (images, labels) to nets with num_classes"
    with pytest.raises(TypeError, match=re.escape(expected)):
        conditional().fit([images], steps=1)
    for call, sentence in {
        partial(tinygan.GANTrainer, plain[0], with_classes[1]): (
            "must agree on num_classes, got None and 3; build both with the same num_classes."
        ),
        partial(tinygan.GANTrainer(*plain).sample, 2, labels=1): (
            "labels must be None for nets without classes, got 1"
        ),
        partial(conditional().sample, 2, labels=3): "labels must be in [0, 3), got [3, 3]",
        partial(conditional().sample, 2, labels=0.5): (
            "(N,) of integers or shares (N, 3) of floats, got (2,) of torch.float32"
        ),
        partial(conditional().sample, 8, labels=labels[:3]): (
            "(N,) of integers or shares (N, 3) of floats, got (3,) of torch.int"
        ),
        partial(with_classes[0], torch.randn(2, 5)): "labels must be given to a net with num_cl",
        partial(plain[1], images, labels): "labels must be given to a net with num_classes, and",
        partial(tinygan.DCGANDiscriminator, 8, join=2, num_classes=3): (
            "join must be 1 with num_classes, got 2"
        ),
    }.items():
        with pytest.raises(ValueError, match=re.escape(sentence)):
            call()


class Shrinking:
    """Of which the first epoch has a whole batch, and later ones begin with one image."""

    def __iter__(self):
        yield recipes.batches()[0][0][: self.count]
        self.count = 1

    count = 8


def test_a_finished_run_with_left_out_images_stays_finished(tmp_path):
    """Its last checkpoint knows that the epoch is over, also of batches that cannot go back."""
    images = torch.cat([images for images, _ in recipes.batches()])[:17]
    for _ in range(3):
        trainer = tinygan.GANTrainer(
            *recipes.nets(join=2), hooks=[tinygan.hooks.Checkpoint(tmp_path, every=2)]
        )
        trainer.resume(tmp_path)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            trainer.fit(DataLoader(images, 8, shuffle=True), epochs=2)
        assert (trainer.step, trainer.epoch, trainer.batch) == (4, 2, 0)


def test_a_penalty_knows_joined_images_of_classes():
    """A D of one's own may have both: a function of images that knows how many it joins."""
    player = tinygan.Player("discriminator", recipes.nets(join=2)[1])
    assert player.twice_differentiable(torch.zeros(8)).join == 2
    assert player.twice_differentiable().join == 2


def test_images_that_are_too_few_to_join_are_left_out():
    """Of a batch of 5 a D that joins two sees 4; fewer than two are an error."""
    made = recipes.nets(join=2)
    sizes = []
    made[1].register_forward_pre_hook(
        lambda net, given: None if trainer.between_steps else sizes.append(len(given[0]))
    )
    images = [batch for batch, _ in recipes.batches()]
    trainer = tinygan.GANTrainer(*made)
    trainer.fit(images, epochs=1)
    assert sizes == [8] * 6 + [4] * 3
    assert trainer.images == 21
    one_left = [*images[:2], images[2][:1]]
    del sizes[:]
    trainer.fit(one_left, epochs=3)
    assert sizes == [8] * 12
    assert (trainer.epoch, trainer.batch, trainer.step) == (3, 0, 7)
    trainer = tinygan.GANTrainer(*recipes.nets(norm=False, join=2))
    with pytest.raises(
        ValueError, match="each part must hold at least 2, got 1; for each rank use 2"
    ):
        trainer.fit(Shrinking(), epochs=2)
    assert (trainer.step, trainer.between_steps) == (1, True)
    with pytest.raises(
        ValueError, match="each part must hold at least 2, got 1; for each rank use 2"
    ):
        tinygan.GANTrainer(*recipes.nets(norm=False, join=2)).fit([images[0][:1]], steps=1)
    with pytest.raises(ValueError, match="images to join must be a multiple of 2, got 3"):
        tinygan.join_images(images[0][:3], 2)


def largest_singular_values(net):
    """Return those of the matrices of weights that spectral norm divides."""
    layers = [layer for layer in net.modules() if hasattr(layer, "parametrizations")]
    return [torch.linalg.matrix_norm(x.weight.detach().flatten(1), 2).item() for x in layers]


def test_spectral_norm_bounds_every_layer():
    """After some passes in training the largest singular value of each weight is 1."""
    _, net = recipes.nets(norm=False, num_classes=CLASSES)
    assert tinygan.spectral_norm(net) is net
    images, labels = recipes.batches()[0]
    for _ in range(60):
        net(images, labels)
    assert largest_singular_values(net) == pytest.approx([1] * 3, abs=1e-3)


def test_weights_drawn_after_spectral_norm_are_bounded_from_the_first():
    """Drawing anew takes the vectors along, by which the singular value is found."""
    net = tinygan.spectral_norm(tinygan.DCGANDiscriminator(32, base_channels=8, norm=None)).eval()
    net.apply(tinygan.weights_init)
    assert not any(module.training for module in net.modules())
    assert largest_singular_values(net) == pytest.approx([1] * 4, rel=0.1)


@pytest.mark.parametrize(("size", "stride"), [(4, 2), (3, 2), (4, 1)])
@pytest.mark.parametrize("ones", [False, True])
def test_a_bounded_convolutions_slope_is_the_outputs_that_see_a_pixel(size, stride, ones):
    """It may be larger than that of the matrix of its weights, which is 1."""
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 3, size, stride, 1, bias=False)
    if ones:
        nn.init.ones_(conv.weight)
    tinygan.spectral_norm(nn.Sequential(conv))
    for _ in range(50):
        weight = conv.weight.detach()
    inputs = torch.eye(2 * 81).view(-1, 2, 9, 9)
    slope = nn.functional.conv2d(inputs, weight, stride=stride, padding=1).flatten(1)
    assert torch.linalg.matrix_norm(slope, 2) <= -(-size // stride) * 1.01


def test_spectral_norm_is_refused_where_it_makes_no_sense():
    """Twice, or of a net without weights to divide."""
    with pytest.raises(ValueError, match="net must have layers with plain weights, got no weights"):
        tinygan.spectral_norm(nn.Flatten())
    with pytest.raises(ValueError, match="got a layer whose weights are all 0, as R3GAN's nets"):
        tinygan.spectral_norm(tinygan.R3GANDiscriminator(8, widths=8))
    net = tinygan.spectral_norm(nn.Linear(2, 1))
    with pytest.raises(ValueError, match="got some that are already parametrized; call spectral_n"):
        tinygan.spectral_norm(net)
