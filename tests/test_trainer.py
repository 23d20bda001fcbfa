"""The trainer: targets, determinism, sampling, stopping, resuming."""

from __future__ import annotations

import copy
import io
import math
import threading
from functools import cache, partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset, SequentialSampler, TensorDataset

import tinygan
from tinygan import data, hooks

import strategies
from helpers import assert_identical, fingerprint, tiny_images, tiny_trainer, with_latent_dim


def batches_of(images, size=6):
    """Return the images as a list of batches."""
    return list(images.split(size))


def test_targets_are_absolute():
    """Fit runs to its target, returns at once if it is reached, and goes on to a larger one."""
    images = tiny_images()
    trainer = tiny_trainer()
    batches = batches_of(images)  # 4 per epoch
    trainer.fit(batches, epochs=2)
    assert (trainer.step, trainer.epoch, trainer.batch, trainer.images) == (8, 2, 0, 48)
    before = fingerprint(trainer)
    trainer.fit(batches, epochs=2)
    trainer.fit(batches, steps=8)
    assert_identical(before, fingerprint(trainer))
    trainer.fit(batches, steps=11)
    assert (trainer.step, trainer.epoch, trainer.batch) == (11, 2, 3)
    trainer.fit(batches, epochs=3)
    assert (trainer.step, trainer.epoch, trainer.batch) == (12, 3, 0)


@cache
def whole_run(size):
    """Return a trainer that has made 12 steps of batches of ``size`` in one call of fit."""
    trainer = tiny_trainer()
    trainer.fit(data.Loader(tiny_images(), size), steps=12)
    return trainer


@settings(max_examples=settings().max_examples // 3)
@given(stops=st.lists(st.integers(1, 12), max_size=4), size=st.integers(4, 12))
def test_any_split_of_a_run_is_the_same_run(stops, size):
    """However many calls of fit a run takes, it ends in bit-identical weights and counters."""
    images = tiny_images()
    whole, parts = whole_run(size), tiny_trainer()
    for steps in [*sorted(stops), 12]:
        parts.fit(data.Loader(images, size), steps=steps)

    assert_identical(fingerprint(whole), fingerprint(parts))
    for name in ("step", "epoch", "batch", "images"):
        assert getattr(whole, name) == getattr(parts, name), name


@pytest.mark.parametrize(("workers", "steps"), [(0, 1), (0, 3), (0, 4), (0, 5), (2, 3), (2, 4)])
def test_a_saved_run_goes_on_bit_for_bit(workers, steps):
    """Saved in an epoch or at either side of its edge, and loaded anew, a run ends the same."""
    images = tiny_images()
    whole = tiny_trainer(seed=5)
    whole.fit(data.Loader(images, 6), steps=9)

    first = tiny_trainer(seed=5)
    first.fit(data.Loader(images, 6, workers=workers), steps=steps)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    second = tiny_trainer(seed=5)
    second.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    second.fit(data.Loader(images, 6, workers=workers), steps=9)

    assert_identical(fingerprint(whole), fingerprint(second))


class Interrupt(tinygan.Hook):
    """Raises at one event of one step, once, with the state of the run at that moment kept."""

    def __init__(self, event, step):
        self.event, self.at, self.state = event, step, None

    def act(self, event, trainer):
        """Raise if it is time."""
        if self.state is None and (event, trainer.step) == (self.event, self.at):
            self.state = copy.deepcopy(trainer.state_dict())
            raise KeyboardInterrupt

    def on_step_start(self, trainer):
        """Act."""
        self.act("step_start", trainer)

    def on_step_end(self, trainer, report):
        """Act."""
        self.act("step_end", trainer)

    def on_epoch_end(self, trainer):
        """Act."""
        self.act("epoch_end", trainer)


@pytest.mark.parametrize(
    ("event", "step"), [("step_start", 2), ("step_start", 4), ("step_end", 4), ("epoch_end", 4)]
)
@pytest.mark.parametrize(("workers", "anew"), [(0, False), (0, True), (2, True)])
def test_an_interrupted_run_goes_on_bit_for_bit(event, step, workers, anew):
    """Broken off between steps, and continued in place or loaded anew, a run ends the same."""
    images = tiny_images()
    whole = tiny_trainer()
    whole.fit(data.Loader(images, 6), epochs=2)
    interrupt = Interrupt(event, step)
    broken = tiny_trainer(hooks=[interrupt])
    loader = data.Loader(images, 6, workers=workers)
    with pytest.raises(KeyboardInterrupt):
        broken.fit(loader, epochs=2)
    if anew:
        broken, loader = tiny_trainer(), data.Loader(images, 6, workers=workers)
        broken.load_state_dict(interrupt.state)
    broken.fit(loader, epochs=2)

    assert broken.step == 8
    assert_identical(fingerprint(whole), fingerprint(broken))


def test_looking_at_the_loader_changes_nothing():
    """A hook, another trainer or the user may take batches from the loader at any time."""
    images = tiny_images()
    alone, watched, other = (tiny_trainer() for _ in range(3))
    alone.fit(data.Loader(images, 6), epochs=2)

    class Peek(tinygan.Hook):
        def on_epoch_start(self, trainer):
            next(iter(loader))

        def on_step_start(self, trainer):
            if loader.workers == 0 or trainer.step == 1:  # a worker takes long to start
                next(iter(loader))

        def on_step_end(self, trainer, report):
            self.on_step_start(trainer)

    for workers in (0, 1):
        loader = data.Loader(images, 6, workers=workers)
        watched = tiny_trainer(hooks=[Peek()])
        watched.fit(loader, steps=2)
        next(iter(loader))
        other = tiny_trainer()
        other.fit(loader, steps=3)
        watched.fit(loader, steps=5)
        other.fit(loader, epochs=2)
        watched.fit(loader, epochs=2)
        assert_identical(fingerprint(alone), fingerprint(watched))
        assert_identical(fingerprint(alone), fingerprint(other))


class Stateful:
    """A loader that knows its own place and epoch, and hears of none, as some libraries' do."""

    def __init__(self):
        self.epoch = self.given = 0

    def __len__(self):
        return 4

    def __iter__(self):
        order = torch.randperm(24, generator=torch.Generator().manual_seed(self.epoch))
        for indices in order.split(6)[self.given :]:
            self.given += 1
            yield tiny_images()[indices]
        self.epoch, self.given = self.epoch + 1, 0

    def state_dict(self):
        """Return the place."""
        return {"epoch": self.epoch, "given": self.given}

    def load_state_dict(self, state):
        """Go to the place."""
        self.epoch, self.given = state["epoch"], state["given"]


@pytest.mark.parametrize("steps", [1, 3, 4, 5])
@pytest.mark.parametrize("anew", [False, True])
def test_loaders_with_a_state_of_their_own_resume(steps, anew):
    """A foreign loader with state_dict goes back to its place, an epoch's edge included."""
    whole, parts = tiny_trainer(), tiny_trainer()
    whole.fit(Stateful(), steps=9)
    loader = Stateful()
    parts.fit(loader, steps=steps)
    if anew:
        state = parts.state_dict()
        parts, loader = tiny_trainer(), Stateful()
        parts.load_state_dict(state)
    parts.fit(loader, steps=9)
    assert_identical(fingerprint(whole), fingerprint(parts))


def test_other_data_is_refused_in_the_middle_of_an_epoch():
    """Going on with a loader of another order is refused by what differs; at an edge it is fine."""
    images = tiny_images()
    trainer = tiny_trainer()
    trainer.fit(data.Loader(images, 6, seed=1), steps=2)
    for other, sentence in (
        (data.Loader(images, 6, seed=2), "seed: 1 when saved, 2 now"),
        (data.Loader(images, 8, seed=1), "batch_size: 6 when saved, 8 now"),
        (data.Loader(images[:20], 6, seed=1), "size: 24 when saved, 20 now"),
    ):
        with pytest.raises(ValueError, match=sentence):
            trainer.fit(other, epochs=1)
    trainer.fit(data.Loader(images, 6, seed=1), epochs=1)
    trainer.fit(data.Loader(images, 8, seed=2), epochs=2)
    assert trainer.step == 7


def test_a_loaded_state_is_copied():
    """One state can be loaded again and again: training changes neither it nor its donor."""
    donor = tiny_trainer()
    donor.fit([tiny_images()], steps=3)
    state, before = donor.state_dict(), fingerprint(donor)
    ends = []
    for _ in range(2):
        trainer = tiny_trainer()
        trainer.load_state_dict(state)
        trainer.fit([tiny_images()], steps=6)
        ends.append(fingerprint(trainer))
    assert_identical(ends[0], ends[1])
    assert_identical(before, fingerprint(donor))


def test_the_device_is_where_training_happens():
    """Both nets go to the asked device, or else to the generator's."""
    trainer = tiny_trainer(device="meta")
    for net in (trainer.generator, trainer.discriminator):
        assert {parameter.device.type for parameter in net.parameters()} == {"meta"}
    assert tiny_trainer().device.type == "cpu"


def test_images_take_the_nets_precision():
    """Nets in float64 train on float32 images and sample in float64."""
    torch.manual_seed(0)
    trainer = tinygan.GANTrainer(
        tinygan.DCGANGenerator(8, base_channels=2).double(),
        tinygan.DCGANDiscriminator(8, base_channels=2).double(),
    )
    trainer.fit([tiny_images()], epochs=1)
    assert trainer.real.dtype == torch.float64
    assert trainer.sample(2).dtype == torch.float64
    assert trainer.generate(torch.zeros(2, 100)).dtype == torch.float64


def test_resuming_without_the_optimizers_is_seen():
    """The comparison of resumed runs can fail: it does if the moments are forgotten."""
    images = tiny_images()
    whole, parts = tiny_trainer(), tiny_trainer()
    whole.fit(batches_of(images), steps=6)
    parts.fit(batches_of(images), steps=3)
    state = parts.state_dict()
    forgetful = tiny_trainer()
    for player in forgetful.players:
        state["players"][player.name]["optimizer"]["moments"] = {}
    forgetful.load_state_dict(state)
    forgetful.fit(batches_of(images), steps=6)

    ours, theirs = whole.generator.state_dict(), forgetful.generator.state_dict()
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)


@settings(max_examples=settings().max_examples // 3)
@given(seed=strategies.seeds, other=strategies.seeds)
def test_one_seed_one_run(seed, other):
    """Two runs of one seed are bit-identical, whatever the global generators do; others differ."""
    images = tiny_images(8)
    ends = []
    for run_seed, global_seed in ((seed, 1), (seed, 2), (other, 1)):
        trainer = tiny_trainer(seed=run_seed)
        torch.manual_seed(global_seed)
        trainer.fit([images], steps=2)
        ends.append(fingerprint(trainer))

    assert_identical(ends[0], ends[1])
    name = "generator.main.0.weight"
    assert torch.equal(ends[0][name], ends[2][name]) == (seed == other)


def test_training_leaves_the_global_generator():
    """A run draws nothing from PyTorch's global generator."""
    images = tiny_images()
    trainer = tiny_trainer(hooks=[])
    loader = data.Loader(images, 6)
    before = torch.get_rng_state()
    trainer.fit(loader, epochs=2)
    trainer.sample(4)
    assert torch.equal(before, torch.get_rng_state())


def test_sample_leaves_the_run_untouched():
    """Sampling in the midst of a run changes no weight, buffer, moment, mode or draw."""
    images = tiny_images()
    watched, alone = tiny_trainer(), tiny_trainer()
    watched.hooks = (hooks.every(1, lambda trainer, _: trainer.sample(3, seed=trainer.step)),)
    for trainer in (watched, alone):
        trainer.fit(batches_of(images), epochs=2)

    assert_identical(fingerprint(watched), fingerprint(alone))
    assert all(module.training for module in watched.generator.modules())
    assert all(p.grad is not None for p in watched.generator.parameters())


@given(count=st.integers(1, 600), seed=strategies.seeds)
def test_samples(count, seed):
    """Samples are finite images in [-1, 1], the same for the same seed, without a graph."""
    trainer = tiny_trainer()
    images = trainer.sample(count, seed=seed)

    assert images.shape == (count, 3, 8, 8)
    assert images.abs().max() <= 1
    assert images.grad_fn is None
    assert torch.equal(images, trainer.sample(count, seed=seed))
    assert not torch.equal(images, trainer.sample(count, seed=seed + 1))


def test_an_image_does_not_depend_on_those_beside_it():
    """One z gives one image, whichever batch it is generated in."""
    images = tiny_images()
    trainer = tiny_trainer()
    trainer.fit(batches_of(images), epochs=1)
    z = torch.randn(5, 5)

    torch.testing.assert_close(trainer.generate(z)[2:3], trainer.generate(z[2:3]))


def test_sampling_respects_parts_left_in_evaluation_mode():
    """After sampling each part of G is in the mode it was in before."""
    trainer = tiny_trainer()
    trainer.generator.main[1].eval()
    trainer.sample(2)
    assert trainer.generator.training
    assert not trainer.generator.main[1].training


def test_noise_is_a_function_of_seed_and_step():
    """The noise of a step can be drawn again at any time; another step or seed has another."""
    one, two = tiny_trainer(seed=1), tiny_trainer(seed=2)
    one.sample(10)
    assert torch.equal(one.noise(3, 4), tiny_trainer(seed=1).noise(3, 4))
    assert not torch.equal(one.noise(3, 4), one.noise(4, 4))
    assert not torch.equal(one.noise(3, 4), two.noise(3, 4))
    assert not torch.equal(one.noise(1, 4), two.noise(0, 4))  # seeds next to each other
    assert one.fixed_noise.shape == (64, 5)
    assert torch.equal(one.fixed_noise, tiny_trainer(seed=1).fixed_noise)
    assert not torch.equal(one.fixed_noise, two.fixed_noise)


def test_priors():
    """Normal noise has mean 0 and deviation 1; uniform noise fills [-1, 1]; both are arguments."""
    many = tiny_trainer(seed=1).noise(0, 20_000)
    assert many.mean().item() == pytest.approx(0, abs=0.02)
    assert many.std().item() == pytest.approx(1, abs=0.02)
    trainer = tiny_trainer(prior=tinygan.sampling.uniform)
    many = trainer.noise(0, 20_000)
    assert many.abs().max() <= 1
    assert many.std().item() == pytest.approx(math.sqrt(1 / 3), abs=0.02)
    assert trainer.fixed_noise.abs().max() <= 1


def test_samples_are_of_the_prior():
    """What is sampled is what the generator makes of the trainer's prior."""
    trainer = tiny_trainer(prior=lambda count, latent_dim, generator: torch.ones(count, latent_dim))
    assert torch.equal(trainer.sample(3), trainer.generate(torch.ones(3, 5)))


def test_each_player_has_its_own_optimizer():
    """The factories make the optimizer of the net they are named for, of named parameters."""

    def still(named):
        return torch.optim.SGD(named, lr=0.0)

    for frozen, moving, argument in (
        ("generator", "discriminator", "generator_optimizer"),
        ("discriminator", "generator", "discriminator_optimizer"),
    ):
        trainer, fresh = tiny_trainer(**{argument: still}), tiny_trainer()
        trainer.fit([tiny_images()], epochs=1)
        name = "main.0.weight"
        for net, moved in ((frozen, False), (moving, True)):
            ours = getattr(trainer, net).get_parameter(name)
            assert torch.equal(ours, getattr(fresh, net).get_parameter(name)) != moved


def test_defaults_are_the_tutorials():
    """Without arguments the optimizers are the tutorial's, made of parameters with names."""
    for player in tiny_trainer().players:
        (group,) = player.optimizer.state_dict()["param_groups"]
        assert isinstance(player.optimizer, torch.optim.Adam)
        assert (group["lr"], group["betas"], group["weight_decay"]) == (2e-4, (0.5, 0.999), 0)
        assert group["param_names"] == [name for name, _ in player.module.named_parameters()]


def test_layout_is_channels_last():
    """Nets and batches are in the layout in which convolutions run fastest."""
    trainer = tiny_trainer()
    trainer.fit([tiny_images()], epochs=1)
    kernels = [m.weight for m in trainer.generator.modules() if hasattr(m, "kernel_size")]
    kernels += [m.weight for m in trainer.discriminator.modules() if hasattr(m, "kernel_size")]
    for tensor in (*kernels, trainer.real):
        assert tensor.is_contiguous(memory_format=torch.channels_last)


def test_stop_ends_after_the_step():
    """A stop lets the step finish, ends fit normally and is forgotten by the next fit."""
    images = tiny_images()
    trainer = tiny_trainer(
        hooks=[hooks.every(3, lambda trainer, _: trainer.stop(f"at {trainer.step}"))]
    )
    trainer.fit(batches_of(images), epochs=5)
    assert (trainer.step, trainer.stop_reason) == (3, "at 3")
    trainer.fit(batches_of(images), steps=5)
    assert (trainer.step, trainer.stop_reason) == (5, None)


def test_totals():
    """While fit runs, it tells how far it will go in steps and in epochs."""
    images = tiny_images()
    trainer = tiny_trainer()
    trainer.fit(batches_of(images), epochs=2)
    assert (trainer.total_steps, trainer.total_epochs) == (8, 2)
    trainer.fit(batches_of(images), steps=9)
    assert (trainer.total_steps, trainer.total_epochs) == (9, 3)

    class Stream(IterableDataset):
        def __iter__(self):
            return iter(images)

    trainer = tiny_trainer()
    trainer.fit(DataLoader(Stream(), 6), epochs=2)
    assert (trainer.step, trainer.epoch) == (8, 2)
    assert (trainer.total_steps, trainer.total_epochs, trainer.batches_per_epoch) == (None, 2, None)


def test_pytorch_loaders_give_images_and_labels():
    """A DataLoader of (image, label) pairs trains as its images do."""
    images = tiny_images()
    labelled = DataLoader(TensorDataset(images, torch.arange(len(images))), 6)
    ours, theirs = tiny_trainer(), tiny_trainer()
    ours.fit(labelled, epochs=2)
    theirs.fit(batches_of(images), epochs=2)

    assert_identical(fingerprint(ours), fingerprint(theirs))


def test_batches_without_a_place_start_their_epoch_over():
    """A loader that cannot go back to its place begins the epoch again, with a warning."""
    images = tiny_images()
    trainer = tiny_trainer()
    loader = DataLoader(TensorDataset(images), 6)
    trainer.fit(loader, steps=2)
    with pytest.warns(UserWarning, match="epoch 0 starts over: 2 of its batches are done"):
        trainer.fit(loader, epochs=1)
    assert (trainer.step, trainer.epoch) == (6, 1)


def test_a_sampler_hears_of_the_epoch():
    """A loader's sampler with set_epoch, such as a DistributedSampler, is told each epoch."""
    images = tiny_images()

    heard = []

    class Sampler(SequentialSampler):
        def set_epoch(self, epoch):
            heard.append(epoch)

    dataset = TensorDataset(images)
    trainer = tiny_trainer()
    trainer.fit(DataLoader(dataset, 6, sampler=Sampler(dataset)), epochs=3)
    assert heard == [0, 1, 2]


def test_evaluation_mode_does_not_outlast_into_training():
    """Nets left in evaluation mode train as nets do."""
    images = tiny_images()
    ours, theirs = tiny_trainer(), tiny_trainer()
    ours.generator.eval()
    ours.discriminator.eval()
    for trainer in (ours, theirs):
        trainer.fit(batches_of(images), epochs=1)
    assert_identical(fingerprint(ours), fingerprint(theirs))


@pytest.mark.parametrize("capture", [False, True])
@pytest.mark.filterwarnings("ignore:capture needs a GPU")
def test_parts_left_in_evaluation_mode_stay_in_it(capture, tmp_path):
    """A frozen batch norm is in no fit trained, whatever looks at the net or resumes the run."""

    def frozen():
        look = hooks.every(1, lambda trainer, report: trainer.sample(2))
        trainer = tiny_trainer(hooks=[look], capture=capture)
        trainer.discriminator.main[1].eval()
        return trainer

    def mean(trainer):
        norm = trainer.discriminator.main[1]
        assert not norm.training
        assert trainer.discriminator.training
        return norm.running_mean

    trainer = frozen()
    before = mean(trainer).clone()
    trainer.fit([tiny_images()], steps=1)
    trainer.save(tmp_path / "run.pt")
    trainer.fit([tiny_images()], steps=2)
    again = frozen()
    again.resume(tmp_path / "run.pt")
    again.fit([tiny_images()], steps=2)
    assert torch.equal(mean(trainer), before)
    assert torch.equal(mean(again), before)
    assert_identical(fingerprint(trainer), fingerprint(again))
    trainer.discriminator.eval()  # as a whole, as after looking at it: all of it trains again
    trainer.fit([tiny_images()], steps=3)
    assert not torch.equal(trainer.discriminator.main[1].running_mean, before)


def test_a_net_that_is_partly_frozen_trains_the_rest(tmp_path):
    """What takes no gradient keeps its bits, in the average too, and the run resumes."""

    def partly():
        trainer = tiny_trainer()
        trainer.generator.main[0].requires_grad_(False)
        return tinygan.GANTrainer(trainer.generator, trainer.discriminator, ema_half_life=50)

    trainer = partly()
    before = trainer.generator.main[0].weight.clone()
    trainer.fit([tiny_images()], steps=2)
    trainer.save(tmp_path / "run.pt")
    trainer.fit([tiny_images()], steps=3)
    again = partly()
    again.resume(tmp_path / "run.pt")
    again.fit([tiny_images()], steps=3)
    assert_identical(fingerprint(trainer), fingerprint(again))
    for net in (trainer.generator, trainer.average.net):
        assert torch.equal(net.main[0].weight, before)


def refused_in_fit(call):
    """Return the error that a call raises while the trainer is in fit, in a hook and a thread."""
    errors = []

    def calls(trainer):
        try:
            call(trainer)
        except ValueError as error:
            errors.append(str(error))

    def in_both(trainer, report):
        calls(trainer)
        thread = threading.Thread(target=calls, args=(trainer,))
        thread.start()
        thread.join()

    trainer = tiny_trainer(hooks=[hooks.every(1, in_both)])
    trainer.fit([tiny_images()], steps=1)
    assert (trainer.step, trainer.target_steps, len(errors)) == (1, 1, 2)
    trainer.hooks = ()
    call(trainer)  # afterwards it may be
    assert errors[0] == errors[1]
    return errors[0]


def test_a_trainer_in_fit_takes_no_second_one(tmp_path):
    """A hook or another thread cannot train on, or go elsewhere, beneath a fit."""
    told = "must not be called while the same trainer is in fit, for example by a hook or another "
    fit = refused_in_fit(lambda trainer: trainer.fit([tiny_images()], steps=3))
    assert fit == f"fit {told}thread; call it before or after."
    assert refused_in_fit(lambda trainer: trainer.resume(tmp_path)).startswith(f"resume {told}")


def test_a_fit_that_failed_can_be_called_again():
    """The trainer is not taken to be in fit for ever."""
    trainer = tiny_trainer()
    for batches in ([tiny_images() * 3], 5):
        with pytest.raises((ValueError, TypeError)):
            trainer.fit(batches, steps=1)
    trainer.fit([tiny_images()], steps=1)
    assert trainer.step == 1


def test_gradients_that_are_disabled_are_told():
    """Before the first step, with the remedy; the images may come from where they are."""
    trainer, images = tiny_trainer(), [tiny_images()]
    with torch.no_grad(), pytest.raises(ValueError, match=r"fit needs gradients, .*set_grad_enab"):
        trainer.fit(images, steps=1)
    with torch.inference_mode(), torch.enable_grad():
        with pytest.raises(ValueError, match=r"fit needs gradients, .* and inference_mode\(\)"):
            trainer.fit(images, steps=1)
        inferred = [image.to(memory_format=torch.channels_last) for image in images]
    assert trainer.step == 0
    trainer.fit(inferred, steps=1)
    assert trainer.step == 1


def test_own_nets_train():
    """Nets of the user's own need a latent_dim, images that match, and logits (N,)."""
    images = tiny_images()
    generator = torch.nn.Sequential(
        torch.nn.Linear(7, 3 * 64), torch.nn.Tanh(), torch.nn.Unflatten(1, (3, 8, 8))
    )
    discriminator = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(3 * 64, 1), torch.nn.Flatten(0)
    )
    trainer = tinygan.GANTrainer(with_latent_dim(generator, 7), discriminator)
    trainer.fit(batches_of(images), epochs=3)
    assert trainer.step == 12
    assert trainer.sample(5).shape == (5, 3, 8, 8)


def test_a_loss_of_ones_own_is_minimised():
    """A loss is three functions: one that rewards low logits for real images gets them."""
    images = tiny_images()
    upside_down = tinygan.losses.Loss(
        real=lambda logits: logits.exp(),
        fake=lambda logits: (-logits).exp(),
        generator=lambda logits: logits,
    )
    fast = partial(torch.optim.Adam, lr=2e-3, betas=(0.5, 0.999))
    trainer = tiny_trainer(loss=upside_down, discriminator_optimizer=fast)
    trainer.fit(batches_of(images), epochs=10)
    judged = trainer.discriminator(images).mean(), trainer.discriminator(trainer.sample(24)).mean()
    assert judged[0] < judged[1]


def test_real_is_the_current_batch():
    """Hooks see the step's real images as trainer.real, as they are in the batches."""
    images = tiny_images()
    seen = []

    class Look(tinygan.Hook):
        def on_step_start(self, trainer):
            seen.append(trainer.real.clone())

    tiny_trainer(hooks=[Look()]).fit(batches_of(images), epochs=1)
    assert torch.equal(torch.cat(seen), images)


def test_an_epoch_is_finished_with_the_batches_it_began_with():
    """Others are refused in its middle; nothing was saved, so the note speaks of the epoch."""
    trainer = tiny_trainer()
    trainer.fit(data.Loader(tiny_images(24), 8), steps=1)
    with pytest.raises(ValueError, match=r"batches\.batch_size: 8") as error:
        trainer.fit(data.Loader(tiny_images(24), 12), steps=2)
    assert error.value.__notes__ == ["epoch 0 began with other batches; finish it with them"]
    trainer.fit(data.Loader(tiny_images(24), 8), epochs=1)
    trainer.fit(data.Loader(tiny_images(24), 12), epochs=2)
    assert trainer.step == 5
