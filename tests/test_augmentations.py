"""Augmentation: one random function for real images and fakes, through which gradients flow."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import tinygan
from tinygan import augmentations, sampling, schedules
from tinygan.augmentations import Augmentation, diff_augment, instance_noise

import recipes
import strategies

KINDS = {
    "colour": diff_augment(translation=0, cutout=0),
    "translation": diff_augment(colour=False, cutout=0),
    "cutout": diff_augment(colour=False, translation=0),
    "all": diff_augment(),
    "noise": instance_noise(),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def rows(share, count=1):
    """Return what DiffAugment draws for images that it changes, each number the same share."""
    return torch.cat([torch.full((count, 7), share), torch.ones(count, 1)], 1)


def drawn_for(augment, images, seed=0):
    """Return what an augmentation draws for a batch."""
    return augment.draw(images.shape, torch.Generator().manual_seed(seed), 0)


@every_kind
@given(images=strategies.images(), seed=st.integers(0, 1000))
def test_each_image_is_changed_by_itself(kind, images, seed):
    """Shape and type stay; what becomes of an image depends on it and its row alone."""
    augment = KINDS[kind]
    drawn = drawn_for(augment, images, seed)
    changed = augment.apply(images, drawn)
    assert changed.shape == images.shape
    assert changed.dtype == images.dtype
    for i in range(len(images)):
        alone = augment.apply(images[i : i + 1], drawn[i : i + 1])
        torch.testing.assert_close(changed[i : i + 1], alone)


@every_kind
def test_gradients_flow_through(kind):
    """They are the numerical ones, so G learns through what D sees."""
    images = torch.rand(2, 3, 8, 8, dtype=torch.float64) * 2 - 1
    drawn = drawn_for(KINDS[kind], images).double()
    images.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: KINDS[kind].apply(x, drawn), images)


@given(images=strategies.images())
def test_the_middle_of_all_draws_changes_no_colour_and_no_place(images):
    """Brightness 0, saturation and contrast 1, and no move: the image as it is."""
    augment = diff_augment(cutout=0)
    changed = augment.apply(images, rows(0.5, len(images)))
    torch.testing.assert_close(changed, images, rtol=0, atol=1e-6)


def test_colours_change_as_the_paper_says():
    """Brightness is added, saturation scales around grey, contrast around the image's mean."""
    images = torch.rand(1, 3, 8, 8) * 2 - 1
    augment = KINDS["colour"].apply

    def row(**changed):
        at = {"brightness": 0, "saturation": 1, "contrast": 2}
        drawn = rows(0.5)
        for name, value in changed.items():
            drawn[0, at[name]] = value
        return drawn

    torch.testing.assert_close(augment(images, row(brightness=0.9)), images + 0.4)
    grey = augment(images, row(saturation=0.0))
    torch.testing.assert_close(grey, images.mean(1, keepdim=True).expand_as(images))
    mean = images.mean()
    torch.testing.assert_close(augment(images, row(contrast=1.0)), mean + 1.5 * (images - mean))


@given(
    size=st.integers(8, 40),
    down=st.floats(0, 1, exclude_max=True, width=32),
    seed=st.integers(0, 99),
)
def test_translation_moves_by_whole_pixels(size, down, seed):
    """An image is moved by at most an eighth of its side, and grey comes in from outside."""
    image = torch.rand(1, 2, size, size + 3, generator=torch.Generator().manual_seed(seed)) + 1
    drawn = rows(0.5)
    drawn[0, 3] = down
    moved = KINDS["translation"].apply(image, drawn)
    most = int(size / 8 + 0.5)
    shift = int(drawn[0, 3] * (2 * most + 1)) - most
    expected = torch.zeros_like(image)
    if shift >= 0:
        expected[:, :, : size - shift] = image[:, :, shift:]
    else:
        expected[:, :, -shift:] = image[:, :, :shift]
    assert torch.equal(moved, expected)


def test_every_shift_is_as_likely():
    """Of 5 shifts in a row of 16 pixels each comes as often, the outermost ones too."""
    images = torch.arange(1.0, 17).view(1, 1, 1, 16).expand(5_000, 1, 16, 16)
    moved = KINDS["translation"].apply(images, drawn_for(KINDS["translation"], images))
    counts = torch.bincount(moved[:, 0, 8, 8].long() - 9 + 2, minlength=5)
    assert len(counts) == 5
    assert counts.min() > 850  # a thousand each; the standard deviation is 28
    assert counts.max() < 1150


@given(height=st.integers(8, 40), width=st.integers(8, 40), share=st.sampled_from([0.25, 0.5, 1.0]))
def test_cutout_makes_a_rectangle_grey(height, width, share):
    """With its centre in the middle it has the size that it should; at a corner a quarter of it."""
    images = torch.ones(1, 3, height, width)
    augment = diff_augment(colour=False, translation=0, cutout=share)
    high, wide = int(height * share + 0.5), int(width * share + 0.5)
    middle = augment.apply(images, rows(0.5))
    assert (middle == 0).sum() == 3 * high * wide
    corner = augment.apply(images, rows(0.0))
    assert (corner == 0).sum() == 3 * (high - high // 2) * (wide - wide // 2)
    assert corner[0, 0, 0, 0] == 0


@given(side=st.integers(8, 70))
def test_the_largest_draw_moves_and_cuts_the_most_and_no_further(side):
    """The largest share of [0, 1) in float32, whose product with a count stays under it."""
    drawn = rows(1 - 2**-24)
    images = 1 + torch.arange(float(side * side)).view(1, 1, side, side)
    most = int(side / 8 + 0.5)
    moved = KINDS["translation"].apply(images, drawn)
    assert torch.equal(moved[..., : side - most, : side - most], images[..., most:, most:])
    assert not moved[..., side - most :].any()
    half = int(side / 2 + 0.5)
    cut = (KINDS["cutout"].apply(images, drawn) == 0).sum()
    assert cut == (half - half // 2 if half % 2 else half // 2) ** 2


def test_instance_noise_fades_in_a_straight_line():
    """Its deviation falls from its start to 0 at ``until`` images, and stays there."""
    shape, noise = (100, 3, 8, 8), instance_noise(schedules.linear(0.2, 0.0, until=1000))
    found = [
        noise.draw(shape, torch.Generator().manual_seed(0), images).std().item()
        for images in (0, 500, 1000, 5000)
    ]
    assert found == pytest.approx([0.2, 0.1, 0, 0], rel=0.02)
    forever = instance_noise(0.2).draw(shape, torch.Generator().manual_seed(0), 10**9)
    assert forever.std().item() == pytest.approx(0.2, rel=0.02)


def test_real_images_and_fakes_go_through_the_same_function():
    """D sees nothing that was not augmented, in both phases, each pass by draws of its own."""
    seen = []
    mark = Augmentation(
        sampling.one_each, lambda images, drawn: 0 * images + drawn.view(-1, 1, 1, 1)
    )
    trainer = tinygan.GANTrainer(*recipes.nets(), augment=mark, penalties=tinygan.penalties.r1())
    trainer.discriminator.register_forward_pre_hook(
        lambda net, given: None if trainer.between_steps else seen.append(given[0].detach().clone())
    )
    [images, _], *_ = recipes.batches()
    trainer.fit([images], steps=2)
    # Of each step: real, fake, real once more for the penalty in the first, and G's fakes.
    assert len(seen) == 4 + 3
    assert all((given == given[:, :1, :1, :1]).all() for given in seen)
    real, _, penalised, *_ = draws = [given[:, 0, 0, 0] for given in seen]
    assert torch.equal(real, penalised)
    assert len(torch.stack(draws).unique(dim=0)) == 4 + 2


class Noting(nn.Module):
    """A D that notes the first number of each image that it sees."""

    def __init__(self):
        super().__init__()
        self.scale, self.seen = nn.Parameter(torch.ones(())), []

    def forward(self, images):
        """Return logits (N,)."""
        self.seen.append(images.detach()[:, 0, 0, 0].clone())
        return self.scale * images.mean((1, 2, 3))


@pytest.mark.parametrize(("d_steps", "accumulate"), [(1, 1), (2, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize("synced", [True, False])
def test_a_synced_fake_is_changed_like_the_real_image_beside_it(synced, d_steps, accumulate):
    """In D's turns and in G's, in parts and in short batches; and no other image is."""
    d = Noting()
    mark = Augmentation(
        sampling.one_each, lambda images, drawn: 0 * images + drawn.view(-1, 1, 1, 1), synced
    )
    trainer = tinygan.GANTrainer(
        recipes.nets()[0], d, loss=tinygan.losses.relativistic, augment=mark, d_steps=d_steps,
        accumulate=accumulate,
    )  # fmt: skip
    for steps, size in ((1, 8), (2, 4)):
        trainer.fit([torch.zeros(size, 3, 8, 8)], steps=steps)
        # D's turns and G's, part by part, of two passes each: one on real images, one on fakes.
        passes = 2 * (d_steps + 1) * accumulate
        seen = torch.stack(d.seen[-passes:]).view(d_steps + 1, accumulate, 2, -1)
        assert seen.numel() == 2 * size * (d_steps + 1) // d_steps
        assert torch.equal(seen[:, :, 0], seen[:, :, 1]) == synced
        # G's turn judges the real images of D's last one; its fakes are changed anew if not synced.
        new = 0 if synced else size + size // d_steps
        assert len(seen.unique()) == size + new


def test_synced_images_of_one_kind_are_alike():
    """The same image as real and as fake becomes the same image, and otherwise another one."""
    images = recipes.batches()[0][0]
    for synced in (True, False):
        augment = [diff_augment(synced=synced), diff_augment(p=0.5, synced=synced)]
        batch = tinygan.Batch.of(images)
        real, fake = (augmentations.applied(augment, images, batch, w) for w in ("real", "fake"))
        assert not torch.equal(real, images)
        assert torch.equal(real, fake) == synced
        assert len(batch.draws.drawn) == (2 if synced else 4)  # the two by draws of their own


def test_several_are_applied_one_after_the_other():
    """Each by draws of its own; a run with fewer of them is another run."""
    seen = []

    def apply(images, drawn):
        seen.append((images, drawn))
        return images * drawn.view(-1, 1, 1, 1)

    both = [Augmentation(sampling.one_each, apply), Augmentation(sampling.one_each, apply)]
    images = recipes.batches()[0][0]
    changed = augmentations.applied(both, images, tinygan.Batch.of(images), "real")
    (given, first), (between, second) = seen
    assert given is images
    assert torch.equal(between, images * first.view(-1, 1, 1, 1))
    assert torch.equal(changed, between * second.view(-1, 1, 1, 1))
    assert not torch.equal(first, second)
    trainer = tinygan.GANTrainer(*recipes.nets(), augment=both)
    for other in (both[:1], None):
        with pytest.raises(ValueError, match="augment"):
            tinygan.GANTrainer(*recipes.nets(), augment=other).load_state_dict(trainer.state_dict())


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: diff_augment(translation=-0.1), "translation must be in [0, 1], got -0.1"),
        (lambda: diff_augment(cutout=float("nan")), "cutout must be in [0, 1], got nan"),
        (lambda: diff_augment(cutout="a"), "cutout must be in [0, 1], got 'a'"),
        (lambda: instance_noise(-1.0), "deviation must be in [0, inf), got -1.0"),
        (lambda: diff_augment(p=1.5), "p must be in [0, 1], got 1.5"),
    ],
)
def test_bad_arguments_are_refused(make, sentence):
    """The error names the value and the rule."""
    with pytest.raises(ValueError) as error:
        make()
    assert str(error.value).startswith(sentence)


def test_every_augmentation_is_tested():
    """A new augmentation of the module must be among those above."""
    made = {
        name
        for name, thing in vars(augmentations).items()
        if getattr(thing, "__annotations__", {}).get("return") == "Augmentation"
    }
    assert made == {"diff_augment", "instance_noise"}
