"""Bad input is named, with its value, the rule and the remedy, before the first step."""

from __future__ import annotations

import copy
import re
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import tinygan
from tinygan import (
    augmentations,
    data,
    distributed,
    gan_trainer,
    losses,
    metrics,
    penalties,
    sampling,
)
from tinygan.run import CHECK_EVERY

import tutorial
from helpers import assert_identical, fingerprint, tiny_images, tiny_trainer, with_latent_dim
from recorder import CPURecorder


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"image_size": 16},
            "generator and discriminator must agree on image_size, got (8, 8) and (16, 16); "
            "build both with the same image_size.",
        ),
        (
            {"image_size": 8, "channels": 1},
            "generator and discriminator must agree on channels, got 3 and 1; "
            "build both with the same channels.",
        ),
    ],
)
def test_nets_that_do_not_fit_each_other(change, sentence):
    """A generator and a discriminator of different images are refused as the trainer is made."""
    with pytest.raises(ValueError) as error:
        tinygan.GANTrainer(tinygan.DCGANGenerator(8), tinygan.DCGANDiscriminator(**change))
    assert str(error.value) == sentence


def test_a_final_sigmoid():
    """A chain of layers, or the tutorial's own class, that ends in a sigmoid is refused."""

    class Tutorials(nn.Module):
        def __init__(self):
            super().__init__()
            self.main = tutorial.make_discriminator(ndf=2)

    for net in (nn.Sequential(tinygan.DCGANDiscriminator(8), nn.Sigmoid()), Tutorials()):
        with pytest.raises(ValueError, match="must return logits, got probabilities from a final "):
            tinygan.GANTrainer(tinygan.DCGANGenerator(8), net)


def test_a_sigmoid_that_is_not_the_end():
    """A net that has a sigmoid for a gate is not taken for one that ends in it."""

    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.score = nn.Linear(192, 1)
            self.gate = nn.Sigmoid()

        def forward(self, images):
            score = self.score(images.flatten(1)).flatten()
            return score * self.gate(score)

    trainer = tinygan.GANTrainer(tinygan.DCGANGenerator(8, base_channels=2), Gated())
    trainer.fit([tiny_images()], epochs=1)
    assert trainer.step == 1


def test_an_int_and_a_square_are_the_same_size():
    """A net of the user's own may give its image_size as an int."""
    generator = tinygan.DCGANGenerator(8, base_channels=2)
    generator.image_size = 8
    trainer = tinygan.GANTrainer(generator, tinygan.DCGANDiscriminator(8, base_channels=2))
    trainer.fit([tiny_images()], epochs=1)
    assert trainer.step == 1


@pytest.mark.parametrize(
    ("generator", "discriminator", "sentence"),
    [
        (
            nn.Linear(9, 192),
            nn.Flatten(),
            "raised by the generator, which must take inputs of shape (24, 7)",
        ),
        (
            nn.Sequential(nn.Linear(7, 192), nn.Unflatten(1, (3, 8, 8)), nn.Tanh()),
            nn.Sequential(nn.Flatten(), nn.Linear(100, 1)),
            "raised by the discriminator, which must take inputs of shape (24, 3, 8, 8)",
        ),
    ],
)
def test_nets_of_ones_own_that_do_not_fit(generator, discriminator, sentence):
    """Nets that say nothing of themselves are tried before the first step, and named."""
    discriminator.register_parameter("unused", nn.Parameter(torch.zeros(1)))
    trainer = tinygan.GANTrainer(with_latent_dim(generator, 7), discriminator)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied") as error:
        trainer.fit([tiny_images()], epochs=1)
    assert error.value.__notes__ == [sentence]


def test_an_unknown_latent_dim():
    """A generator that does not say its latent_dim needs it said."""
    generator = nn.Sequential(nn.Linear(7, 192), nn.Unflatten(1, (3, 8, 8)))
    with pytest.raises(
        ValueError, match="the generator must have an attribute latent_dim, the length"
    ):
        tinygan.GANTrainer(generator, tinygan.DCGANDiscriminator(8))


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ({}, "give either epochs or steps, got epochs=None and steps=None; "),
        ({"epochs": 1, "steps": 2}, "give either epochs or steps, got epochs=1 and steps"),
        ({"epochs": 0}, "epochs must be at least 1, got 0; use 1 or more."),
        ({"steps": -3}, "steps must be at least 1, got -3; use 1 or more."),
        ({"epochs": 1.5}, "epochs must be an int, got 1.5; use 1 or more."),
    ],
)
def test_targets(target, sentence):
    """Both or neither of the targets, and targets that are no counts, are refused."""
    with pytest.raises(ValueError, match=re.escape(sentence)):
        tiny_trainer().fit([tiny_images()], **target)


@pytest.mark.parametrize(
    ("batch", "sentence"),
    [
        (tiny_images() * 3, "images must be in [-1, 1], got [-"),
        ((tiny_images() + 1) * 127.5, "images must be in [-1, 1], got ["),
        (
            ((tiny_images() + 1) * 127.5).to(torch.uint8),
            "images must be floating point in [-1, 1], got torch.uint8; scale bytes with",
        ),
        (tiny_images().clamp(max=0) - 0.5, "images must be in [-1, 1], got [-1."),
        (tiny_images() * 1.05, "images must be in [-1, 1], got [-1.0"),
        (tiny_images().clamp(min=0) * 1.05, "images must be in [-1, 1], got [0, 1.05]; scale"),
        (
            torch.cat([tiny_images(), tiny_images()[:2] * float("nan"), tiny_images()[:1] / 0]),
            "images must be finite, got [nan, nan]; look at the data, and at what",
        ),
        (tiny_images()[:, 0], "shape (N, 3, 8, 8) that the generator makes, got (24, 8, 8); ch"),
        (
            tiny_images().permute(0, 2, 3, 1),
            "a batch must have the shape (N, 3, 8, 8) that the generator makes, got (24, 8, 8, 3); "
            "put the channels first, with images.permute(0, 3, 1, 2).",
        ),
        (tiny_images()[0], "shape (N, 3, 8, 8) that the generator makes, got (3, 8, 8); change"),
        (tiny_images()[:0], "shape (N, 3, 8, 8) that the generator makes, got (0, 3, 8, 8); ch"),
        (torch.zeros(4, 3, 8, 9), "shape (N, 3, 8, 8) that the generator makes, got (4, 3, 8, 9)"),
        (torch.zeros(4, 1, 8, 8), "shape (N, 3, 8, 8) that the generator makes, got (4, 1, 8, 8)"),
    ],
)
def test_first_batches(batch, sentence):
    """A first batch that does not suit is refused, with no weight or counter moved."""
    trainer = tiny_trainer()
    with pytest.raises(ValueError, match=re.escape(sentence)):
        trainer.fit([batch], epochs=1)
    assert trainer.step == trainer.images == 0
    fresh = tiny_trainer()
    for net, other in zip(trainer.players, fresh.players):
        ours, theirs = net.module.state_dict(), other.module.state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_rounding_may_leave_the_range():
    """Images that leave [-1, 1] by rounding alone are welcome."""
    trainer = tiny_trainer()
    trainer.fit([tiny_images() * 1.0005], epochs=1)
    assert trainer.step == 1


def test_images_between_0_and_1_are_pointed_out():
    """A first batch without a value below 0 is in range, but most likely not scaled."""
    with pytest.warns(
        UserWarning, match=r"^images must be in \[-1, 1\], got \[0\.\d+, .* and none b"
    ):
        tiny_trainer().fit([tiny_images().abs()], epochs=1)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            {"loss": losses.smoothed},
            "loss must be a tinygan.losses.Loss or PairedLoss, got <function smoothed",
        ),
        (
            {"loss": "hinge"},
            "got 'hinge'; use losses.hinge, or call the function that makes one, as",
        ),
        (
            {"loss": nn.BCEWithLogitsLoss()},
            "as in losses.smoothed(0.1). The default is binary cross-entropy of logits.",
        ),
        ({"penalties": "r1"}, "got 'r1'; call the function, as in penalties.r1(), or put one of"),
        ({"augment": "flip"}, "or a list of them, got 'flip'; "),
        (
            {"penalties": penalties.r1},
            "penalties must be a tinygan.penalties.Penalty or a list of them, got <function r1",
        ),
        (
            {"augment": [augmentations.diff_augment]},
            "augment must be a tinygan.augmentations.Augmentation or a list of them, got <function",
        ),
        (
            {"generator_optimizer": torch.optim.Adam([torch.zeros(1, requires_grad=True)])},
            "got Adam; use functools.partial",
        ),
    ],
)
def test_ingredients_of_another_kind(arguments, sentence):
    """A function that was not called, and an optimizer for what makes one, are refused at once."""
    with pytest.raises(TypeError, match=re.escape(sentence)):
        tiny_trainer(**arguments)


def test_a_loss_that_is_called():
    """It is easily done, beside penalties that have to be; Python's own sentence is clear."""
    with pytest.raises(TypeError, match="'Loss' object is not callable"):
        losses.hinge()


SEEDED = [
    lambda seed: tiny_trainer(seed=seed),
    lambda seed: tinygan.Trainer(
        [tinygan.Player("critic", nn.Linear(2, 1))], tinygan.algorithms.gan(), seed=seed
    ),
    lambda seed: data.Loader(tiny_images(), 4, seed=seed),
    lambda seed: tiny_trainer().sample(2, seed=seed),
    lambda seed: data.CartoonFaces(2, 8, seed=seed),
    lambda seed: metrics.AttributeReader(8, seed=seed),
]


@pytest.mark.parametrize("make", SEEDED)
@pytest.mark.parametrize("seed", [None, 1.5, True, "a"])
def test_a_seed_is_an_int(make, seed):
    """By one rule, wherever a seed is taken, and when it is taken."""
    with pytest.raises(ValueError, match=re.escape(f"seed must be an int, got {seed!r}; use any")):
        make(seed)


def test_a_seed_of_torch_fidelity_is_a_count():
    """None would draw other subsets each time."""
    with pytest.raises(ValueError, match="seed must be an int, got None"):
        metrics.kid(torch.rand(9, 2), torch.rand(9, 2), subsets=1, subset_size=5, seed=None)


@pytest.mark.parametrize("seed", [-1, 2**70])
def test_any_int_is_a_seed(seed, tmp_path):
    """Negative and large ones draw and are saved as all others."""
    for make in SEEDED[:-1]:
        make(seed)
    trainer = tiny_trainer(seed=seed)
    trainer.fit(data.Loader(tiny_images(), 12, seed=seed, flip=True), steps=1)
    trainer.save(tmp_path / "run.pt")
    assert tiny_trainer(seed=seed).resume(tmp_path / "run.pt")


@pytest.mark.parametrize("device", ["gpu", "cuda:99", 99, 1.5])
@pytest.mark.parametrize(
    "make",
    [
        lambda device: tiny_trainer(device=device),
        lambda device: tinygan.Trainer(
            [tinygan.Player("critic", nn.Linear(2, 1))], tinygan.algorithms.gan(), device=device
        ),
        lambda device: data.Loader(tiny_images(), 4, device=device),
    ],
)
def test_a_device_that_is_not_there(make, device):
    """It is told when it is asked for, with the driver's reason in short."""
    told = f"device must be one that this machine has, got {device!r} ("
    with pytest.raises(ValueError, match=re.escape(told)) as caught:
        make(device)
    assert re.search(r"; use '(cpu|cuda)', or leave it out\.$", str(caught.value))


def test_a_net_that_is_frozen_after_all():
    """It cannot pay, which is found before the first step."""
    trainer = tiny_trainer()
    trainer.generator.requires_grad_(False)
    with pytest.raises(
        ValueError, match=r"the generator must pay a cost .*, and leave some weights trainable"
    ):
        trainer.fit([tiny_images()], steps=1)


def test_what_makes_the_pictures_is_a_function():
    """What is none is told when it is asked for pictures."""
    players = [tinygan.Player("critic", nn.Linear(2, 1))]
    trainer = tinygan.Trainer(players, tinygan.algorithms.gan(), sample=3)
    with pytest.raises(
        ValueError, match="sample must make the images that hooks show, got 3; make"
    ):
        trainer.pictures()


def test_a_player_is_a_net():
    """A class that was not called, and what is no net at all, are named."""
    for module in (nn.Linear, "net", None):
        with pytest.raises(TypeError, match=r"the critic must be a torch\.nn\.Module, got"):
            tinygan.Player("critic", module)
    with pytest.raises(TypeError, match=r"the discriminator must be a torch\.nn\.Module, got"):
        tinygan.GANTrainer(tinygan.DCGANGenerator(8), tinygan.DCGANDiscriminator)


@pytest.mark.parametrize("net", [nn.Flatten(), nn.BatchNorm1d(8, affine=False)])
def test_a_net_without_weights_can_be_looked_at(net):
    """It cannot be trained, which is told; its samples and features are as good as any."""
    with pytest.raises(ValueError, match="the critic must have trainable weights, got a"):
        tinygan.Player("critic", net)
    assert sampling.generate(net, torch.zeros(2, 8, dtype=torch.float64)).shape == (2, 8)
    assert metrics.features(torch.zeros(2, 2, 2, 2), nn.Flatten()).shape == (2, 8)


@pytest.mark.parametrize(
    ("ingredient", "sentence"),
    [
        (
            {"loss": losses.Loss(lambda x: x[:, None] - x, lambda x: x, lambda x: x)},
            "loss.real must return one cost per logit, (8,), got (8, 8); return a tensor of that",
        ),
        (
            {"loss": losses.PairedLoss(lambda r, f: r - f, lambda r, f: f.mean())},
            "loss.generator must return one cost per logit, (8,), got ();",
        ),
        (
            {"penalties": penalties.Penalty(lambda d, real, fake: d(real).mean())},
            "the penalty 'penalty' must return one cost per example, (8,), got (); return",
        ),
        (
            {"penalties": penalties.Penalty(lambda d, real, fake: d(real).mean()[None])},
            "the penalty 'penalty' must return one cost per example, (8,), got (1,);",
        ),
        (
            {"penalties": penalties.Penalty(lambda d, real, fake: None, name="mine")},
            "the penalty 'mine' must return one cost per example, (8,), got NoneType;",
        ),
        (
            {
                "augment": augmentations.Augmentation(
                    sampling.one_each, lambda images, drawn: images.detach()
                )
            },
            "the generator must have gradients when it is yielded, got none; let it pay",
        ),
        (
            {"prior": lambda count, latent_dim, generator: torch.zeros(2, latent_dim)},
            "noise must draw one row for each example of the whole batch, 8, got (2, ",
        ),
        (
            {
                "augment": augmentations.Augmentation(
                    lambda shape, generator, images: torch.tensor(0.5),
                    lambda images, drawn: images * drawn,
                )
            },
            "augment.0.real must draw one row for each example of the whole batch, 8, got ();",
        ),
        (
            {
                "augment": augmentations.Augmentation(
                    sampling.one_each, lambda images, drawn: images[:2]
                )
            },
            "augment[0] must return the shape that it is given, (8, 3, 8, 8), got (2, 3, 8, 8)",
        ),
        (
            {
                "augment": augmentations.Augmentation(
                    lambda shape, generator, images: torch.zeros(2 * shape[0]),
                    lambda images, drawn: images,
                )
            },
            "augment.0.real must draw one row for each example of the whole batch, 8, got (16,);",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:a penalty of a discriminator with batch norm")
def test_ingredients_of_ones_own_give_one_for_each(ingredient, sentence):
    """What mixes images by mistake, as by broadcasting, would train all the same."""
    with pytest.raises(ValueError) as error:
        tiny_trainer(**ingredient).fit(tiny_images().split(8), steps=1)
    assert str(error.value).startswith(sentence)


def test_every_fit_checks_its_first_batch():
    """A later fit's batches are checked as the first's are."""
    trainer = tiny_trainer()
    trainer.fit([tiny_images()], epochs=1)
    with pytest.raises(ValueError, match=r"images must be in \[-1, 1\]"):
        trainer.fit([tiny_images() * 3], epochs=2)
    assert trainer.step == 1


@pytest.mark.parametrize(
    ("batch", "sentence"),
    [
        (tiny_images().mul(127).to(torch.uint8), "images must be floating point in [-1, 1], got t"),
        (tiny_images().long(), "images must be floating point in [-1, 1], got torch.int64; scale"),
        (tiny_images()[:, 0], "shape (N, 3, 8, 8) that the generator makes, got (24, 8, 8); ch"),
        (tiny_images()[:, :, :4], "shape (N, 3, 8, 8) that the generator makes, got (24, 3, 4, 8)"),
    ],
)
def test_later_batches_of_another_kind(batch, sentence):
    """The type and shape of a later batch are asked for, and refused in the first one's words."""
    trainer = tiny_trainer()
    with pytest.raises(ValueError, match=re.escape(sentence)):
        trainer.fit([tiny_images(), tiny_images(), batch], epochs=1)
    assert trainer.step == 2


def test_labels_of_a_later_batch():
    """Labels of another type are refused wherever they are; those on the CPU by their range too."""
    images, labels = tiny_images(4), torch.arange(4)
    makers = (tinygan.DCGANGenerator, tinygan.DCGANDiscriminator)
    trainer = tinygan.GANTrainer(*(net(8, base_channels=4, num_classes=4) for net in makers))
    for wrong, sentence in [
        (labels.float(), r"labels must be \(N,\) of integers, got \(4,\) of torch.float32"),
        (labels + 1, r"labels must be in \[0, 4\), got \[1, 4\]"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            trainer.fit([(images, labels), (images, wrong)], epochs=1)


@pytest.mark.parametrize("capture", [False, True])
@pytest.mark.parametrize(
    ("odd", "seen"),
    [
        (lambda x: torch.full_like(x, 3.0), "in [-1, 1], got [3, 3]"),
        (lambda x: x * torch.nan, "finite, got [nan, nan]"),
    ],
)
def test_the_range_of_later_batches_is_looked_at_now_and_then(
    odd, seen, capture, monkeypatch, caplog
):
    """It is read with the skipped steps; a long run is not lost for it, and no bit changes."""
    monkeypatch.setattr("tinygan._execution.capture.recorder_for", lambda device: CPURecorder())
    ends = []
    for every in (3, 10**9):
        monkeypatch.setattr(gan_trainer, "LOOK_EVERY", every)
        trainer = tiny_trainer(capture=capture)
        trainer.fit([tiny_images(4), odd(tiny_images(4))] * 4, epochs=1)
        ends.append(fingerprint(trainer))
    assert_identical(*ends)
    told = [line for line in caplog.messages if line.startswith("training continues, but in")]
    assert [line.partition(";")[0].rpartition(" step ")[2] for line in told] == [
        f"{step} images must be {seen}"
        for step in (2, 8, 2)  # twice and once
    ]


def test_each_batch_of_an_epoch_has_its_turn():
    """The number of steps between two looks is a prime, which divides hardly an epoch's length."""
    assert all(gan_trainer.LOOK_EVERY % number for number in range(2, gan_trainer.LOOK_EVERY))
    assert gan_trainer.LOOK_EVERY < CHECK_EVERY


def test_logits_of_another_shape():
    """A discriminator whose logits are not (N, ...) is refused, with how to mend it."""
    trainer = tinygan.GANTrainer(
        tinygan.DCGANGenerator(8, base_channels=2),
        nn.Sequential(nn.Conv2d(3, 3, 8), nn.Flatten(0)),
    )
    with pytest.raises(ValueError, match=re.escape("return logits (N, ...), got (72,) for N=24;")):
        trainer.fit([tiny_images()], epochs=1)


@pytest.mark.parametrize(
    "batches",
    [
        [],
        DataLoader(TensorDataset(tiny_images()), 100, drop_last=True),
    ],
)
def test_loaders_that_yield_nothing(batches):
    """Batches that give nothing are refused rather than trained on for many empty epochs."""
    trainer = tiny_trainer()
    with pytest.raises(ValueError, match="batches must not be empty, got none in epo"):
        trainer.fit(batches, epochs=100)
    assert trainer.epoch == 0


def test_one_shot_iterators():
    """A generator, which gives its batches only once, is refused at once."""
    with pytest.raises(TypeError, match="must be iterable once per epoch, got a generator"):
        tiny_trainer().fit((batch for batch in [tiny_images()]), epochs=2)


def test_batches_that_cannot_be_iterated():
    """A number for batches is refused before anything is started."""
    with pytest.raises(TypeError, match="batches must be iterable once per epoch, got a int; gi"):
        tiny_trainer().fit(5, epochs=1)


@pytest.mark.parametrize("batch", [{"image": tiny_images()}, "images", [], ([1, 2], [3, 4]), None])
def test_batches_that_are_no_images(batch):
    """A batch that neither is nor begins with a tensor is refused by its type."""
    with pytest.raises(TypeError, match=r"must be tensors \(N, ...\) or tuples of tensors, got "):
        tiny_trainer().fit([batch], epochs=1)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0; use 1 or more."),
        (
            {"batch_size": 25},
            "batch_size must be at most the number of images, 24, got 25; use smaller batches "
            "or more images.",
        ),
        (
            {"batch_size": 4, "workers": -1},
            "workers must be at least 0, got -1; use 0 or more.",
        ),
        ({"batch_size": "4"}, "batch_size must be an int, got '4'; use 1 or more."),
        (
            {"batch_size": 4, "timeout": None},
            "timeout must be in (0, inf), got None; use a number in it.",
        ),
    ],
)
def test_loaders(arguments, sentence):
    """Fewer images than one batch, and counts that are none, are refused."""
    with pytest.raises(ValueError) as error:
        data.Loader(tiny_images(), **arguments)
    assert str(error.value) == sentence


class Stream(IterableDataset):
    """Examples one after the other, and how many there are said to be."""

    def __init__(self, count=5):
        self.count = count

    def __iter__(self):
        return iter(tiny_images(5))

    def __len__(self):
        return self.count


@pytest.mark.parametrize(
    ("dataset", "sentence"),
    [
        ("images", "got a str; use data.image_folder('images'), or data.pack."),
        (Path("images"), "got a PosixPath; use data.image_folder('images'), or data.pack."),
        ({"train": [1], "test": [2]}, "got a dict; give one of its values, 'train', 'test'."),
        (
            DataLoader(tiny_images(4)),
            "got a DataLoader; it gives batches already: give it to fit, or its data set here.",
        ),
        (Stream(), "got a Stream; give fit a DataLoader of it."),
        (None, "got a NoneType; give it len() and [index]."),
        (torch.zeros(()), "got a Tensor; give it len() and [index]."),
    ],
)
def test_what_is_no_data_set(dataset, sentence):
    """A path, a dict, a stream: each has its own remedy."""
    with pytest.raises(TypeError) as error:
        data.Loader(dataset, 1)
    assert str(error.value) == f"dataset must give an example for each index, {sentence}"


def test_data_sets_without_examples_and_of_another_length():
    """None at all is an error at once, another number of them in the next epoch."""
    with pytest.raises(
        ValueError, match="the number of examples in dataset must be at least 1, go"
    ):
        data.Loader([], 1)
    images = list(tiny_images(8))
    loader = data.Loader(images, 4)
    images.pop()
    with pytest.raises(ValueError, match="dataset must keep its length, got 7, and 8 when this L"):
        next(iter(loader))


@pytest.mark.parametrize(
    "dataset",
    [
        data.CartoonFaces(8, 8),
        TensorDataset(tiny_images()),
        tiny_images(),
        torch.utils.data.Subset(list(tiny_images()), [1, 2]),
    ],
)
def test_a_data_set_given_to_fit(dataset):
    """It gives single examples, and is to be wrapped in a loader."""
    with pytest.raises(TypeError) as error:
        tiny_trainer().fit(dataset, epochs=1)
    assert str(error.value) == (
        f"batches must be whole batches, got a {type(dataset).__name__}, which gives single "
        "examples; wrap it in data.Loader(dataset, batch_size=64)."
    )


def test_batches_that_are_dicts():
    """As of Hugging Face's data sets: which keys they have, and what to do."""
    examples = [{"image": image, "label": 1} for image in tiny_images(8)]
    for batches in (examples, data.Loader(examples, 4)):
        with pytest.raises(TypeError) as error:
            tiny_trainer().fit(batches, epochs=1)
        assert str(error.value) == (
            "batches must be tensors (N, ...) or tuples of tensors, got a dict with the keys "
            "'image', 'label'; take batch['image']: let the data set give that, or tuples that "
            "begin with it."
        )


@pytest.mark.parametrize(
    ("example", "got"),
    [
        ({"image": torch.zeros(3, 8, 8)}, "['dict']"),
        (torch.zeros(8, 8), "[(4, 8, 8)]"),
    ],
)
def test_flips_of_what_is_no_image(example, got):
    """A dict, or images without channels, cannot be mirrored."""
    loader = data.Loader([example] * 8, 4, flip=True)
    with pytest.raises(ValueError) as error:
        next(iter(loader))
    assert str(error.value) == (
        f"flip must be of batches that begin with images (N, C, H, W), got {got}; leave it out."
    )


REMEDY = (
    "; let the data set's transform end in images of one size, as tensors in [-1, 1], or use "
    "data.image_folder or data.pack, which decode and resize."
)
GOOD = torch.zeros(3, 8, 8)
PICTURE = Image.new("RGB", (8, 8))
UNKNOWN = (
    "default_collate: batch must contain tensors, numpy arrays, numbers, dicts or lists; found"
)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("examples", "got"),
    [
        ([PICTURE] * 4, f"PIL.Image.Image from [0] and {UNKNOWN} <class 'PIL.Image.Image'>"),
        ([(PICTURE, 1)] * 4, f"PIL.Image.Image from [0] and {UNKNOWN} <class 'PIL.Image.Image'>"),
        (
            [GOOD, GOOD, GOOD[:, 1:], GOOD],
            "torch.Tensor of shape (3, 8, 8) from [0] and torch.Tensor of shape (3, 7, 8) from [2]",
        ),
        (
            [np.zeros((8, 8, 3), np.uint8), np.zeros((9, 8, 3), np.uint8)] * 2,
            "numpy.ndarray of shape (8, 8, 3) from [0] and numpy.ndarray of shape (9, 8, 3) from [1"
            "]",
        ),
        (
            [GOOD, None, GOOD, GOOD],
            "torch.Tensor of shape (3, 8, 8) from [0] and NoneType from [1]",
        ),
        ([None] * 4, f"NoneType from [0] and {UNKNOWN} <class 'NoneType'>"),
        ([GOOD, "1.png", GOOD, GOOD], "torch.Tensor of shape (3, 8, 8) from [0] and str from [1]"),
    ],
)
def test_examples_that_cannot_be_stacked(examples, got, workers):
    """Which they are, and of what kind; the collating function's own error is the cause."""
    with pytest.raises(TypeError) as error:
        next(iter(data.Loader(examples, 4, shuffle=False, workers=workers)))
    assert str(error.value) == (
        "dataset must give tensors of one shape, or tuples that begin with one, got " + got + REMEDY
    )
    assert workers or error.value.__cause__


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("odd", [PICTURE, GOOD[:, 1:], None])
def test_examples_that_a_plain_loader_cannot_stack(odd, workers):
    """PyTorch's own error is the cause of ours."""
    batches = DataLoader([GOOD, odd], 2, num_workers=workers)
    with pytest.raises(
        TypeError, match="batches must be made of tensors of one shape, or"
    ) as error:
        tiny_trainer().fit(batches, epochs=1)
    assert str(error.value).endswith(REMEDY)
    assert error.value.__cause__
    # Or the garbage collector ends PyTorch's worker, in some later test, which takes it 5 seconds.
    for each in (error.value, error.value.__cause__):
        traceback.clear_frames(each.__traceback__)


class Fails:
    """Examples, of which the fourth is an error."""

    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 8

    def __getitem__(self, index):
        if index == 3:
            raise self.error
        return GOOD


@pytest.mark.parametrize("workers", [0, 2])
def test_an_example_that_ends_the_epoch_is_an_error(workers):
    """StopIteration and GeneratorExit, raised by a data set, would make epochs short in silence."""
    for error in (StopIteration(), GeneratorExit()):
        trainer = tiny_trainer()
        loader = data.Loader(Fails(error), 2, shuffle=False, workers=workers)
        with pytest.raises(RuntimeError) as caught:
            trainer.fit(loader, epochs=3)
        assert str(caught.value) == (
            f"dataset must give an example for each index, got {type(error).__name__} from "
            "dataset[3]; correct its __getitem__ or its length."
        )
        assert trainer.epoch == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_an_example_that_fails_is_named(workers):
    """By its index, beside the data set's own error."""
    for error in (IndexError("none"), KeyError("image"), OSError("unreadable")):
        with pytest.raises(type(error)) as caught:
            list(data.Loader(Fails(error), 2, shuffle=False, workers=workers))
        assert caught.value.args == error.args
        assert "raised by dataset[3]" in caught.value.__notes__


@pytest.mark.parametrize(
    "batches", [DataLoader(Fails(StopIteration()), 2), DataLoader(Stream(8), 2, drop_last=True)]
)
def test_an_epoch_shorter_than_its_length_is_told(batches):
    """Of other loaders than ours the reason is not known, and may be meant."""
    with pytest.warns(
        UserWarning, match=r"epoch 0 ended after \d of 4 batches; look for a data set"
    ):
        tiny_trainer().fit(batches, epochs=1)


@pytest.mark.parametrize("path", [None, 5, b"images"])
def test_paths_that_are_none(path, tmp_path):
    """They are named before the disk is asked."""
    with pytest.raises(ValueError, match=r"root must name a file or folder, got "):
        data.image_folder(path)
    with pytest.raises(ValueError, match=r"path must name a file or folder, got "):
        data.pack(tmp_path, path)
    with pytest.raises(ValueError, match=r"path must name a file or folder, got "):
        data.open_packed(path)
    PICTURE.save(tmp_path / "1.png")
    with pytest.raises(ValueError, match='labels must be None, "folders", a mapping, or '):
        data.image_folder(tmp_path, labels=[1])


def test_folders(tmp_path):
    """A root that is missing, empty or of another kind is named."""
    with pytest.raises(ValueError, match=r"must be a folder, a zip or a tar .*missing: no file"):
        data.image_folder(tmp_path / "missing")
    with pytest.raises(ValueError, match=r"must hold images \(.jpg, .*\), got .* with none; check"):
        data.image_folder(tmp_path)
    (tmp_path / "notes.txt").write_text("no zip")
    with pytest.raises(ValueError, match=r"must be a folder, a zip or a tar .*notes.txt"):
        data.image_folder(tmp_path / "notes.txt")


@pytest.mark.parametrize("make", [data.CartoonFaces, lambda **a: data.image_folder(".", **a)])
def test_image_arguments(make):
    """Data sets refuse sizes and channels as the nets do."""
    with pytest.raises(ValueError, match="image_size must be at least 8, got 7; use 8 or more"):
        make(image_size=7)
    with pytest.raises(ValueError, match="channels must be 1 or 3, got 2; use 3 for colour"):
        make(channels=2)


class Plain(nn.Module):
    """A generator without weights, of noise as long as an image."""

    latent_dim = 192

    def forward(self, z):
        """Return z as images."""
        return z.view(-1, 3, 8, 8)


@pytest.mark.parametrize(
    ("z", "got"),
    [
        (4, "got 4; for 4 images of noise use trainer.sample(4), or z = sampling.normal(4, 5, "),
        (2.5, "got 2.5; "),
        ("noise", "got 'noise'; "),
        (None, "got None; "),
        ([0.0] * 5, "got [0.0, 0.0, 0.0, 0.0, 0.0]; "),
        (torch.zeros(2, 5).numpy(), "got array([[0., 0., 0., 0., 0.],"),
        (torch.tensor(4), "got tensor(4); "),
        (torch.zeros(5), "got (5,); "),
        (torch.zeros(0, 5), "got (0, 5); "),
        (torch.zeros(2, 6), "got (2, 6); "),
        (torch.zeros(2, 5, 5), "got (2, 5, 5); "),
    ],
)
def test_noise(z, got):
    """What is no (N, Z) is refused, with what makes a number of images."""
    kind = ValueError if isinstance(z, torch.Tensor) else TypeError
    with pytest.raises(kind) as error:
        tiny_trainer().generate(z)
    assert str(error.value).startswith(f"z must be a tensor (N, 5), {got}")


def test_noise_of_the_tutorials_shape():
    """(N, Z, 1, 1) is as good, and so are whole numbers."""
    trainer, z = tiny_trainer(), torch.ones(2, 5, dtype=torch.int64)
    images = trainer.generate(z.float())
    assert torch.equal(trainer.generate(z), images)
    assert torch.equal(trainer.generate(z[:, :, None, None]), images)


def test_a_generator_without_weights():
    """It is asked for images like any other, and so is a net for metrics."""
    z = torch.rand(4, 192)
    assert torch.equal(sampling.generate(Plain(), z), z.view(4, 3, 8, 8))
    assert sampling.generate(Plain(), z.double()).dtype == torch.float32
    assert metrics.features(tiny_images(4), nn.Flatten()).shape == (4, 192)


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        ("cat", "new(): invalid data type 'str'"),
        (["cat", "dog"], "too many dimensions 'str'"),
        ({1: 2}, "Could not infer dtype of dict"),
        (1.5, "labels must be (N,) of int"),
        ([0, 1], "labels must be (N,) of int"),
        (7, "labels must be in [0, 3), got [7, 7]; count classes"),
        (-1, "labels must be in [0, 3), got [-1, -1]; count classes"),
    ],
)
def test_labels_of_samples(labels, sentence):
    """What names no class of the net is refused."""
    trainer = tinygan.GANTrainer(
        tinygan.DCGANGenerator(8, base_channels=4, num_classes=3),
        tinygan.DCGANDiscriminator(8, base_channels=4, num_classes=3),
    )
    with pytest.raises((ValueError, TypeError, RuntimeError)) as error:
        trainer.sample(3, labels=labels)
    assert str(error.value).startswith(sentence)
    assert torch.equal(trainer.sample(3, labels=[0, 1, 2]), trainer.sample(3))


@pytest.mark.parametrize("count", [0, -1, 2.5, "4", None, True])
def test_numbers_of_samples(count):
    """They are counts."""
    with pytest.raises(
        ValueError, match=r"^count must be (at least 1|an int), got .*; use 1 or mo"
    ):
        tiny_trainer().sample(count)


def test_a_trainer_is_saved_by_itself(tmp_path):
    """Not by PyTorch's pickles, nor by a copy."""
    trainer = tiny_trainer()
    for attempt in (lambda: torch.save(trainer, tmp_path / "run.pt"), lambda: copy.copy(trainer)):
        with pytest.raises(TypeError, match=r"a trainer must be saved by trainer\.save\(path\)"):
            attempt()


def test_a_shape_may_be_a_tuple():
    """As torch.randn takes it."""
    batch = tinygan.Batch.of(torch.zeros(4, 2))
    assert batch.normal("z", (3, 5)).shape == (4, 3, 5)
    assert torch.equal(
        batch.uniform("u", (3,)), tinygan.Batch.of(torch.zeros(4, 2)).uniform("u", 3)
    )


def test_launching_no_process_is_refused():
    """Before this program is replaced."""
    with pytest.raises(ValueError, match="count must be at least 1, got 0; use the number of"):
        distributed.launch(0)


def test_nets_that_take_labels_as_vectors_are_told_what_labels_are():
    """One-hot labels are the net's own business, and the note says of what it makes them."""

    class OneHot(nn.Module):
        latent_dim, num_classes = 8, 3

        def __init__(self):
            super().__init__()
            self.net = nn.Linear(8 + 3, 3 * 8 * 8)

        def forward(self, z, labels):
            return self.net(torch.cat([z, labels], 1)).tanh().view(-1, 3, 8, 8)

    discriminator = tinygan.DCGANDiscriminator(8, base_channels=4, num_classes=3)
    trainer = tinygan.GANTrainer(OneHot(), discriminator)
    with pytest.raises(RuntimeError) as error:
        trainer.fit([(tiny_images(4), torch.arange(4) % 3)], steps=1)
    assert any("F.one_hot makes vectors of them" in note for note in error.value.__notes__)
