"""What nets, batches and losses are asked before the first step; it changes nothing."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

import tinygan
from tinygan import algorithms, augmentations, data, hooks, losses, penalties, sampling
from tinygan._run import batches as batches_of

from helpers import assert_identical, fingerprint, tiny_images, tiny_trainer, with_latent_dim

RESHAPED = nn.Unflatten(1, (3, 8, 8))


def generator(*last):
    """Return a small generator of 8x8 images that ends in these layers."""
    return with_latent_dim(nn.Sequential(nn.Linear(5, 192), RESHAPED, *(last or [nn.Tanh()])), 5)


def with_batch_norm():
    """Return a generator that cannot train on one example: its norm has one value per channel."""
    layers = nn.Linear(5, 192), nn.BatchNorm1d(192), RESHAPED, nn.Tanh()
    return with_latent_dim(nn.Sequential(*layers), 5)


def discriminator(*last):
    """Return a small discriminator of 8x8 images that ends in these layers."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.LeakyReLU(0.2), nn.Conv2d(4, 1, 6), *last)


class By(nn.Module):
    """Applies a net and then a function."""

    def __init__(self, net, then):
        super().__init__()
        self.net, self.then = net, then
        self.latent_dim = 5

    def forward(self, *inputs):
        """Apply both."""
        return self.then(self.net(*inputs))


def trained(*nets, batches=None, steps=2, **arguments):
    """Return a trainer after some steps."""
    trainer = tinygan.GANTrainer(*nets, **arguments)
    trainer.fit([tiny_images()] if batches is None else batches, steps=steps)
    return trainer


# The sizes of an epoch's batches.


@pytest.mark.parametrize("ema", [None, 20.0])
def test_a_run_with_a_last_batch_of_one_goes_on_after_any_step(ema, tmp_path):
    """Wherever it is interrupted, it ends with the same bits."""
    images = torch.rand(17, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def run(step=None, epochs=2):
        torch.manual_seed(0)
        nets = tinygan.DCGANGenerator(16, 3, 8, 4), tinygan.DCGANDiscriminator(16, 3, 4)
        save = hooks.every(1, lambda trainer, _: trainer.save(tmp_path / f"{trainer.step}.pt"))
        own = [save] if step is None else []
        trainer = tinygan.GANTrainer(*nets, ema_half_life=ema, hooks=own)
        if step is not None:
            trainer.resume(tmp_path / f"{step}.pt", allow="hooks")
            if step == 10:  # the same samples, before a fit too
                assert torch.equal(trainer.sample(2), whole.sample(2))
        trainer.fit(data.Loader(images, 4), epochs=epochs)
        return trainer

    whole = run()
    assert whole.step == 10
    for step in range(1, 11):
        resumed = run(step)
        assert (resumed.step, resumed.epoch) == (10, 2)
        assert_identical(fingerprint(whole), fingerprint(resumed))
        assert torch.equal(whole.sample(2), resumed.sample(2))


@pytest.mark.parametrize("size", [16, 8])
def test_a_batch_of_one_is_trained_on_by_nets_that_can(size):
    """Batch norm of images has more than one value per channel in each of them."""
    nets = tinygan.DCGANGenerator(size, 3, 5, 2), tinygan.DCGANDiscriminator(size, 3, 2)
    assert trained(*nets, batches=torch.zeros(2, 3, size, size).split(1)).step == 2


@pytest.mark.parametrize(
    "make",
    [
        lambda images, **more: data.Loader(images, 8, **more),
        lambda images, **more: DataLoader(images, 8, **more),
        lambda images, **more: DataLoader(
            images, batch_sampler=BatchSampler(SequentialSampler(images), 8, bool(more))
        ),
        lambda images, **more: list(images.split(8))[: 2 if more else 3],
        lambda images, **more: [(batch,) for batch in images.split(8)][: 2 if more else 3],
    ],
)
@pytest.mark.filterwarnings("ignore:epoch 0 starts over")
def test_a_last_batch_that_is_too_small_is_told_before_the_first_step(make):
    """Whatever gives the batches; with drop_last, or where a fit does not come to it, all train."""
    sentence = (
        "the last or smallest batch must have a size that the nets can train on, got "
        "1, which fails with 'Expected more than 1 value per channel when training, got input size "
        "torch.Size([1, 192])'; use another batch size, drop_last=True, or nets without batch norm."
    )
    trainer = tinygan.GANTrainer(with_batch_norm(), discriminator())
    for step in (0, 2):
        with pytest.raises(ValueError) as error:
            trainer.fit(make(tiny_images(17)), epochs=1)
        assert str(error.value) == sentence
        assert trainer.step == step
        trainer.fit(make(tiny_images(17)), steps=2)
    trainer = tinygan.GANTrainer(with_batch_norm(), discriminator())
    trainer.fit(make(tiny_images(17), drop_last=True), epochs=2)
    assert trainer.step == 4


@pytest.mark.parametrize("arguments", [{"accumulate": 4}, {"d_steps": 4}])
def test_a_part_that_is_too_small_is_told_before_the_first_step(arguments):
    """A part of an accumulated batch, or a turn, has one example of four."""
    sentence = "batches must have a size that the nets can train on, got 4, which fails with 'Exp"
    with pytest.raises(ValueError, match=re.escape(sentence)):
        trained(with_batch_norm(), discriminator(), batches=[tiny_images(4)], **arguments)
    # A last batch of 8 has parts of two, and one of 3 is left out.
    for count in (16 + 8, 16 + 3):
        batches = data.Loader(tiny_images(count), 16)
        trained(with_batch_norm(), discriminator(), batches=batches, **arguments)


def test_a_last_batch_is_tried_by_any_algorithm():
    """``Trainer`` tells it too, of any player."""
    names = {"discriminator": discriminator(), "generator": with_batch_norm()}
    players = [tinygan.Player(name, net) for name, net in names.items()]
    trainer = tinygan.Trainer(players, algorithms.gan())
    with pytest.raises(ValueError, match="the last or smallest batch must have a si"):
        trainer.fit(tiny_images(17).split(8), epochs=1)
    assert trainer.step == 0


def test_batches_that_do_not_say_how_many_they_give():
    """They are taken to be all alike, until another one comes."""

    class Own:
        def __iter__(self):
            return iter(tiny_images().split(8))

    for unknown in (Own(), DataLoader(tiny_images(17), batch_size=None)):
        assert batches_of.sizes(unknown, 8) == (8, 0)

    class Counting(list):
        def __iter__(self):
            raise AssertionError("iterating may change what a list of one's own does")

    assert batches_of.sizes(Counting(tiny_images(17).split(8)), 8) == (8, 0)
    begun_with_the_last = 1
    assert batches_of.sizes(data.Loader(tiny_images(17), 8), begun_with_the_last) == (1, 8)
    assert batches_of.sizes(DataLoader(tiny_images(17), 8), 8) == (1, 8)
    assert batches_of.sizes(data.Loader(tiny_images(16), 8), 8) == (8, 8)
    assert batches_of.sizes(DataLoader(tiny_images(5), 8), 5) == (5, 5)


class Remembering(nn.Module):
    """Has all that a pass in training mode may change: statistics, slow vectors, dropout."""

    def __init__(self):
        super().__init__()
        self.conv = nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 3))
        self.more = nn.Sequential(nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Conv2d(4, 1, 6))

    def forward(self, images):
        """Judge."""
        return self.more(self.conv(images)).flatten()


@pytest.mark.filterwarnings("ignore:the discriminator has dropout")
def test_the_trial_changes_nothing():
    """Neither weights, buffers, gradients and modes nor the global generator."""
    trainer = tinygan.GANTrainer(with_batch_norm(), Remembering())
    trainer.discriminator.more[0].eval()
    own, modes = (
        list(tiny_images(8).split(8)),
        [m.training for m in trainer.discriminator.modules()],
    )
    before, state = fingerprint(trainer), torch.get_rng_state()
    trainer._try(own, 8, 5)
    assert trainer._rehearsed == {8, 5}
    assert_identical(before, fingerprint(trainer))
    assert torch.equal(state, torch.get_rng_state())
    assert modes == [m.training for m in trainer.discriminator.modules()]
    assert all(p.grad is None for player in trainer.players for p in player.parameters)


# Where nets end.


@pytest.mark.parametrize(
    "net",
    [
        discriminator(nn.Sigmoid(), nn.Flatten(0)),
        By(discriminator(), torch.sigmoid),
        By(discriminator(), lambda x: x.sigmoid().view(-1, 1).squeeze(1)),
        By(discriminator(), lambda x: nn.functional.hardsigmoid(x)[:, 0, 0]),
        By(discriminator(), lambda x: torch.sigmoid(x).mean((1, 2, 3)).clamp(0.01, 0.99)),
        By(nn.Conv2d(3, 2, 8), lambda x: x.flatten(1).softmax(1)[:, 0]),
    ],
)
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("loss", [losses.non_saturating, losses.wasserstein])
def test_a_sigmoid_at_the_end_of_a_forward_is_pointed_out(net, dtype, loss):
    """It is seen by how the logits were made, with every loss and in every type."""
    sentence = "discriminator ends in a sigmoid or the like, .* losses take logits; remove that lay"
    execution = tinygan.Execution(dtype=dtype)
    with pytest.warns(UserWarning, match=sentence):
        trained(tiny_trainer().generator, net, loss=loss, execution=execution)


@pytest.mark.parametrize(
    "then",
    [
        lambda x: 0.001 * x + 0.5,  # all within [0, 1], but not for good
        lambda x: x.abs(),
        nn.functional.logsigmoid,
        lambda x: x * x.sigmoid(),
        lambda x: x.sigmoid().logit(),
    ],
)
def test_logits_that_happen_to_be_in_0_and_1_are_none(then):
    """No warning (tests make them errors) for logits that no sigmoid made."""
    trained(generator(), By(discriminator(), then))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: generator(nn.Identity(), nn.BatchNorm2d(3)),
            r"are in \[-\d.*, \d.*\], beyond the",
        ),
        (lambda: generator(nn.Sigmoid()), r"are in \[0\.\d+, 0\.\d+\], and none can be below 0; l"),
        (lambda: generator(nn.ReLU()), r"are in \[0, .*; let it end in nn.Tanh\(\), for \[-1, 1"),
    ],
)
def test_a_generator_of_another_range_is_pointed_out(make, sentence):
    """For images, whose range is known; not for points."""
    with pytest.warns(UserWarning, match=f"the generator's first images {sentence}"):
        trained(make(), discriminator())
    flat = with_latent_dim(nn.Sequential(make(), nn.Flatten()), 5)
    trained(flat, nn.Linear(192, 1), batches=[tiny_images().flatten(1)])


def test_a_generator_is_told_its_range_once():
    """Not again when a run goes on; and one whose tanh is bright is not told (warnings fail)."""
    bright = By(nn.Identity(), lambda x: x.abs() + 1)
    assert trained(generator(bright, nn.Tanh()), discriminator()).sample(4).min() > 0.7
    trainer = tinygan.GANTrainer(generator(nn.Identity(), nn.BatchNorm2d(3)), discriminator())
    with pytest.warns(UserWarning, match="beyond the range of the real ones") as told:
        trainer.fit([tiny_images()], steps=1)
    assert len(told) == 1
    trainer.fit([tiny_images()], steps=2)


# Layouts.


class Viewing(nn.Module):
    """A discriminator that flattens what a convolution makes by ``view``; which needs its order."""

    def __init__(self):
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 4, 3), nn.Linear(144, 1)

    def forward(self, images):
        """Judge."""
        return self.last(self.conv(images).view(len(images), -1))


class Strict(Viewing):
    """One that says itself what it takes."""

    def forward(self, images):
        """Judge."""
        assert images.is_contiguous()
        return super().forward(images)


def own_generator():
    """Return a generator that ends in a view, after its convolutions."""
    net = tinygan.DCGANGenerator(8, latent_dim=5, base_channels=4)
    return By(net, lambda images: images.view(-1, 192).view(-1, 3, 8, 8))


def is_contiguous(net, layout=torch.contiguous_format):
    """Return whether all of a net's kernels have a layout."""
    kernels = [p for p in net.parameters() if p.dim() == 4 and p.shape[1] > 1 < p.shape[2]]
    return all(kernel.is_contiguous(memory_format=layout) for kernel in kernels)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"ema_half_life": 100},
        {"accumulate": 2, "d_steps": 2},
        {"penalties": [penalties.r1(every=1), penalties.wgan_gp()]},
        {"augment": tinygan.augmentations.diff_augment()},
        {"execution": tinygan.Execution(dtype=torch.bfloat16)},
        {"execution": tinygan.Execution(capture=True)},
    ],
)
@pytest.mark.parametrize("net", [Viewing, Strict])
def test_nets_that_need_the_usual_layout_have_it(net, arguments):
    """A view after a convolution trains; the other net stays channels last."""
    trainer = trained(tiny_trainer().generator, net(), **arguments)
    assert is_contiguous(trainer.discriminator)
    assert is_contiguous(trainer.generator, torch.channels_last)
    assert trainer.real.is_contiguous(memory_format=torch.channels_last)
    trainer = trained(own_generator(), net(), **arguments)
    for player in trainer.players:
        assert is_contiguous(player.module)
        assert player.average is None or is_contiguous(player.average.net)
        moments = [m["exp_avg"] for m in player.optimizer.state.values()]
        assert [m.stride() for m in moments] == [p.stride() for p in player.parameters]


def test_samples_before_any_fit():
    """A net is as it was given until the first batch shows in which layout it trains."""
    trainer = tinygan.GANTrainer(own_generator(), discriminator(), ema_half_life=100)
    trainer.sample(3)
    tinygan.sampling.generate(trainer.generator, torch.zeros(3, 5))
    trainer.players.generator.sample(torch.zeros(3, 5))
    trainer.generator(torch.zeros(3, 5))
    trainer.fit([tiny_images()], steps=1)
    for net in (trainer.generator, trainer.average.net):
        assert is_contiguous(net)
    trainer.sample(3)


def test_a_layout_is_the_same_after_a_resume(tmp_path):
    """A run goes on with the same bits, moments included."""

    def make():
        torch.manual_seed(0)
        return tinygan.GANTrainer(own_generator(), Viewing(), ema_half_life=100)

    whole = make()
    whole.fit(tiny_images().split(8), steps=4)
    first = make()
    first.fit(tiny_images().split(8), steps=2)
    first.save(tmp_path / "2.pt")
    resumed = make()
    resumed.resume(tmp_path / "2.pt")
    assert torch.equal(resumed.sample(4), first.sample(4))
    resumed.fit(tiny_images().split(8), steps=4)
    assert_identical(fingerprint(whole), fingerprint(resumed))
    assert torch.equal(resumed.sample(4), whole.sample(4))


def test_an_algorithm_that_needs_the_usual_layout_has_it():
    """Its own view of the images is tried as well."""

    def algorithm(players, batch):
        [images] = batch
        players.a.pay(players.a(images).square().mean() + images.view(-1).sum())
        yield players.a

    trainer = tinygan.Trainer([tinygan.Player("a", discriminator())], algorithm)
    trainer.fit([tiny_images()], steps=2)
    assert trainer.step == 2
    assert trainer.real.is_contiguous()


def test_nets_of_volumes_and_sound_have_no_layout():
    """Convolutions in three dimensions, or in one, train as they are."""
    for conv, sides in ((nn.Conv3d, (4, 4, 4)), (nn.Conv1d, (4,))):
        shape = (3, *sides)
        size = torch.Size(shape).numel()
        net = with_latent_dim(nn.Sequential(nn.Linear(5, size), nn.Unflatten(1, shape)), 5)
        trained(net, conv(3, 1, 4), batches=[torch.zeros(4, *shape)])


def test_an_error_that_no_layout_mends_is_the_first_one():
    """It is raised as it is, with the net that raised it, and the layout is the user's."""
    trainer = tinygan.GANTrainer(generator(), By(discriminator(), lambda x: x.view(7, 11)))
    with pytest.raises(RuntimeError, match=r"shape '\[7, 11\]' is invalid") as error:
        trainer.fit([tiny_images()], steps=1)
    note = "raised by the discriminator, which must take inputs of shape (24, 3, 8, 8)"
    assert error.value.__notes__ == [note]
    assert is_contiguous(trainer.discriminator)


@pytest.mark.parametrize(
    ("error", "images", "most"),
    [
        (RuntimeError, tiny_images(), 4),
        (torch.OutOfMemoryError, tiny_images(), 1),
        (RuntimeError, tiny_images().flatten(1), 1),
    ],
)
def test_a_net_that_fails_is_tried_once_in_each_layout(error, images, most):
    """Not again where memory ran out, nor where no images are that could lie in another way."""
    tried = []

    def fails(logits):
        tried.append(len(logits))
        raise error("not this time")

    nets = with_latent_dim(nn.Linear(5, 192), 5), nn.Linear(192, 1)
    if images.dim() == 4:
        nets = generator(), discriminator()
    with pytest.raises(error, match="not this time"):
        trained(nets[0], By(nets[1], fails), batches=[images])
    assert len(tried) == most


def test_a_game_of_one_has_two_layouts():
    """Its net's and its images' are one."""
    tried = []

    def algorithm(players, batch):
        tried.append(batch)
        raise AssertionError("not this time")
        yield

    trainer = tinygan.Trainer([tinygan.Player("a", discriminator())], algorithm)
    with pytest.raises(AssertionError, match="not this time"):
        trainer.fit([tiny_images()], steps=1)
    assert len(tried) == 2


def test_batches_of_inference_mode_train():
    """They are copied, or autograd could not keep them: points too, which have no layout."""
    nets = with_latent_dim(nn.Linear(5, 192), 5), nn.Linear(192, 1)
    with torch.inference_mode():
        batch = tiny_images().flatten(1)
    assert trained(*nets, batches=[batch]).step == 2


# What nets say of themselves.


class ByFours(nn.Module):
    """Compares examples in groups of four, as a D with a minibatch's deviation does."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(193, 1)

    def forward(self, images):
        """Judge."""
        flat = images.flatten(1)
        groups = flat.reshape(4, len(flat) // 4, -1)
        spread = groups.std(0).mean(1).repeat(4)[:, None]
        return self.last(torch.cat([flat, spread], 1))


def test_nets_that_take_certain_numbers_of_images():
    """They are tried with as many as will come, and refused if these do not fit."""
    assert trained(generator(), ByFours(), batches=[tiny_images(8)]).step == 2
    assert trained(generator(), ByFours(), batches=[tiny_images(8)], d_steps=2).step == 2
    with pytest.raises(RuntimeError, match="shape '"):
        trained(generator(), ByFours(), batches=[tiny_images(8)], accumulate=4)
    trainer = tinygan.GANTrainer(generator(), ByFours())
    with pytest.raises(ValueError, match=r"smallest batch .* got 1, which fails with \"shape"):
        trainer.fit(data.Loader(tiny_images(17), 8), epochs=1)
    assert trainer.step == 0


def test_names_that_mean_something_else(tmp_path):
    """In nets of one's own ``channels`` may be a width, or anything."""

    def make(channels):
        made = generator(), discriminator()
        for number, net in enumerate(made):
            net.channels, net.image_size, net.num_filters = channels[number], number, 3
        return tinygan.GANTrainer(*made)

    for channels in ((3, 64), (nn.Conv2d, lambda: 0)):
        trainer = make(channels)
        trainer.fit([tiny_images()], steps=1)
        trainer.save(tmp_path / "1.pt")
        other = make((channels[0], channels[1] if channels[1] == 64 else lambda: 0))
        other.resume(tmp_path / "1.pt")
        assert other.step == 1
    timms = discriminator()
    timms.num_classes = 1
    assert trained(generator(), timms).step == 2
    timms = generator()
    timms.num_classes = "ten"
    with pytest.raises(ValueError, match="num_classes must be an int, got 'ten'; use 1 or more"):
        tinygan.GANTrainer(timms, discriminator())


def test_nets_in_the_wrong_order():
    """They are told so as the trainer is made."""
    ours = tinygan.DCGANDiscriminator(8), tinygan.DCGANGenerator(8)
    sentence = r"generator must come first, got a \w+ and then a \w+, which has a latent_dim; exc"
    for nets in (ours, (discriminator(), generator())):
        with pytest.raises(ValueError, match=sentence):
            tinygan.GANTrainer(*nets)


@pytest.mark.parametrize(
    ("nets", "sentence"),
    [
        (
            (generator(), By(discriminator(), lambda x: (x, x))),
            "the discriminator must return logits alone, a tensor (N, ...), got a tuple; return ",
        ),
        (
            (generator(), By(discriminator(), lambda x: {"logits": x})),
            "the discriminator must return logits alone, a tensor (N, ...), got a dict; return the",
        ),
        (
            (By(generator(), lambda x: [x]), discriminator()),
            "the generator must return examples alone, a tensor (N, ...), got a tuple; return the",
        ),
    ],
)
def test_nets_that_return_several_things(nets, sentence):
    """What they should return is said before the first step."""
    trainer = tinygan.GANTrainer(*nets)
    with pytest.raises(TypeError) as error:
        trainer.fit([tiny_images()], steps=1)
    assert str(error.value).startswith(sentence)
    assert trainer.step == 0


class WithLabels(nn.Module):
    """A net of one's own that takes labels."""

    def __init__(self, net):
        super().__init__()
        self.net, self.latent_dim = net, 5

    def forward(self, inputs, labels):
        """Leave them out."""
        return self.net(inputs)


def test_nets_that_take_labels_without_saying_so():
    """The remedy is an attribute of the generator, and both nets take labels or none does."""
    plain = generator(), discriminator()
    remedy = "if it takes labels, set generator.num_classes to the number of classes."
    sentence = f"the generator must be a function of (noise), got forward(inputs, labels); {remedy}"
    with pytest.raises(TypeError, match=re.escape(sentence)):
        trained(WithLabels(plain[0]), plain[1])
    sentence = (
        f"the discriminator must be a function of (examples), got forward(inputs, labels); {remedy}"
    )
    with pytest.raises(TypeError, match=re.escape(sentence)):
        trained(plain[0], WithLabels(plain[1]))
    conditional = WithLabels(generator())
    conditional.num_classes = 3
    batches = [(tiny_images(), torch.zeros(24, dtype=torch.long))]
    sentence = (
        "the discriminator must be a function of (examples, labels), got forward(input); build "
        "both nets with num_classes, or neither."
    )
    with pytest.raises(TypeError, match=re.escape(sentence)):
        trained(conditional, plain[1], batches=batches)
    assert trained(conditional, WithLabels(plain[1]), batches=batches).step == 2


def test_a_type_error_inside_a_net_stays_as_it_is():
    """It is not taken for wrong inputs."""
    with pytest.raises(TypeError, match="unsupported operand") as error:
        trained(generator(), By(discriminator(), lambda x: x + None))
    assert "raised by the discriminator" in error.value.__notes__[0]


# Labels.


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32, torch.bool])
def test_labels_of_any_integers_are_taken(dtype):
    """They train, and make samples, as int64 does."""
    ends = []
    for labels in (torch.arange(24) % 2, (torch.arange(24) % 2).to(dtype)):
        torch.manual_seed(0)
        sizes = {"base_channels": 2, "num_classes": 2}
        nets = (
            tinygan.DCGANGenerator(8, latent_dim=5, **sizes),
            tinygan.DCGANDiscriminator(8, **sizes),
        )
        trainer = trained(*nets, batches=data.Loader(list(zip(tiny_images(), labels)), 8))
        assert trainer.labels.dtype == torch.int64
        ends.append(fingerprint(trainer) | {"made": trainer.sample(24, labels=labels)})
    assert_identical(*ends)


@pytest.mark.parametrize(
    "labels", [torch.zeros(24), torch.zeros(24, 1, dtype=torch.long), torch.eye(3).repeat(8, 1)]
)
def test_labels_of_other_kinds(labels):
    """Floats, columns and one-hot rows have their remedies."""
    nets = tinygan.DCGANGenerator(8, num_classes=3), tinygan.DCGANDiscriminator(8, num_classes=3)
    with pytest.raises(ValueError) as error:
        trained(*nets, batches=[(tiny_images(), labels)])
    assert str(error.value) == (
        f"labels must be (N,) of integers, got {tuple(labels.shape)} of {labels.dtype} for N=24; "
        "give each example the number of its class, by labels.long(), or for (N, 1) by "
        "labels[:, 0], for one-hot labels by labels.argmax(1)."
    )


# Functions of one's own.


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: losses.Loss(lambda a, b: a, torch.neg, torch.neg),
            "loss.real must be a function of (logits), got <lambda>(a, b); use",
        ),
        (
            lambda: losses.Loss(torch.neg, nn.BCEWithLogitsLoss(), torch.neg),
            "loss.fake must be a function of (logits), got forward(input: torch.Tensor, targ",
        ),
        (
            lambda: losses.Loss(torch.neg, torch.neg, "hinge"),
            "loss.generator must be a function of (logits), got 'hinge'; use a Loss",
        ),
        (
            lambda: losses.PairedLoss(lambda real: real, lambda real, fake: fake),
            "loss.discriminator must be a function of (real, fake), got <lambda>(real); use",
        ),
    ],
)
def test_losses_of_other_arguments(make, sentence):
    """They are refused as the trainer is made."""
    with pytest.raises(TypeError, match=re.escape(sentence)):
        tiny_trainer(loss=make())


@pytest.mark.parametrize(
    "arguments",
    [
        {"penalties": penalties.Penalty(lambda real, fake: real)},
        {"augment": augmentations.Augmentation(sampling.one_each, lambda x: x)},
        {"augment": augmentations.Augmentation(lambda count: torch.rand(count, 2), torch.mul)},
    ],
)
def test_other_functions_of_other_arguments(arguments):
    """Penalties, augmentations and priors that cannot be called end the run before its start."""
    trainer = tinygan.GANTrainer(generator(), discriminator(), **arguments)
    with pytest.raises(TypeError, match=r"<lambda>\(\) takes \d positional arguments? but \d w"):
        trainer.fit([tiny_images()], steps=1)
    assert trainer.step == 0
    with pytest.raises(TypeError, match=r"<lambda>\(\) takes 1 positional argument but 3 were gi"):
        tiny_trainer(prior=lambda count: torch.zeros(count, 5)).fit([tiny_images()], steps=1)


def test_a_generator_of_the_tutorials_noise_is_told_the_shape():
    """Its first layer takes (N, Z, 1, 1); noise is (N, Z), and the note says what to write."""

    class Tutorials(nn.Sequential):
        latent_dim = 8

    generator = Tutorials(nn.ConvTranspose2d(8, 3, 8), nn.Tanh())
    trainer = tinygan.GANTrainer(generator, tinygan.DCGANDiscriminator(8, base_channels=4))
    with pytest.raises(RuntimeError) as error:
        trainer.fit([tiny_images()], steps=1)
    assert "noise is (N, Z); begin with z = z[:, :, None, None]" in error.value.__notes__
