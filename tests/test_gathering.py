"""Images in memory: the loader gathers them by itself, and gives what the ordinary path gives."""

from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tinygan import data
from tinygan.data import gathering
from tinygan.data.decoding import scale

import strategies
from processes import eventually

CPU = torch.device("cpu")


def random_bytes(*shape, seed=0):
    """Return random bytes."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


class InMemory:
    """Images in memory, and labels if they are wanted, which are not to be fetched by index."""

    def __init__(self, count=20, labelled=False, size=(3, 4)):
        self.pixels = random_bytes(count, 2, *size)
        self.labels = torch.arange(count) * 10 if labelled else None

    def __len__(self):
        return len(self.pixels)


class Ordinary:
    """The same images, by index alone."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image = scale(self.images.pixels[index])
        return image if self.images.labels is None else (image, self.images.labels[index])


def assert_same(batches, others):
    """Assert that batches are of the same kind and bits as others, which are not used up."""
    batches = list(batches)
    assert len(batches) == len(others)
    for batch, other in zip(batches, others):
        assert type(batch) is type(other)
        for one, two in zip([batch], [other]) if torch.is_tensor(batch) else zip(batch, other):
            assert (one.dtype, one.shape) == (two.dtype, two.shape)
            assert torch.equal(one, two)


def test_every_byte_is_scaled_as_the_tutorial_does():
    """Scaling gives the bits of ToTensor and Normalize for each of the 256 values."""
    every = torch.arange(256, dtype=torch.uint8)
    expected = every.float().div(255).sub(0.5).div(0.5)
    assert torch.equal(scale(every), expected)
    assert torch.equal(scale(every), every.float().div_(255).mul_(2).sub_(1))
    assert every[255] == 255  # and leaves what it is given alone


@given(
    count=st.integers(1, 40),
    size=st.integers(1, 40),
    seed=strategies.seeds,
    shuffle=st.booleans(),
    flip=st.booleans(),
    drop_last=st.booleans(),
    labelled=st.booleans(),
    device=st.sampled_from([None, "cpu"]),
)
def test_gathered_batches_are_the_ordinary_ones(
    count, size, seed, shuffle, flip, drop_last, labelled, device
):
    """Order, flips, labels and every bit are those of a DataLoader, in each epoch."""
    images = InMemory(count, labelled)
    arguments = {"seed": seed, "shuffle": shuffle, "flip": flip, "drop_last": drop_last}
    gathered = data.Loader(images, min(size, count), device=device, **arguments)
    ordinary = data.Loader(Ordinary(images), min(size, count), **arguments)
    for epoch in (0, 1, 7):
        gathered.set_epoch(epoch)
        ordinary.set_epoch(epoch)
        assert_same(gathered, list(ordinary))
        assert gathered.state_dict() == ordinary.state_dict()


@pytest.mark.parametrize("place", range(5))
def test_gathering_goes_on_in_the_middle(place):
    """State that was saved on one path is gone on from on the other, in whichever direction."""
    images = InMemory(20, labelled=True)
    whole = list(data.Loader(Ordinary(images), 6, flip=True))
    for one, other in ((images, Ordinary(images)), (Ordinary(images), images)):
        first, second = (data.Loader(dataset, 6, flip=True) for dataset in (one, other))
        batches = iter(first)
        assert_same([next(batches) for _ in range(place)], whole[:place])
        batches.close()
        second.load_state_dict(first.state_dict())
        assert_same(second, whole[place:])
        assert second.state_dict()["epoch"] == 1


def test_two_gatherings_at_once_do_not_disturb_each_other():
    """A batch that was given is not changed by what follows."""
    loader = data.Loader(InMemory(), 6, flip=True)
    expected = [batch.clone() for batch in data.Loader(InMemory(), 6, flip=True)]
    loader.set_epoch(0)
    one, other = iter(loader), iter(loader)
    pairs = list(zip(one, other))
    assert_same([batch for batch, _ in pairs], expected)
    assert_same([batch for _, batch in pairs], expected)


def test_a_given_batch_may_be_written_to():
    """What is done to a batch reaches neither the images nor the labels."""
    images = InMemory(labelled=True)
    before = images.pixels.clone(), images.labels.clone()
    for batch, labels in data.Loader(images, 20, shuffle=False):
        batch.zero_()
        labels.zero_()
    assert torch.equal(images.pixels, before[0])
    assert torch.equal(images.labels, before[1])


@pytest.mark.parametrize(
    ("pixels", "labels"),
    [
        (torch.zeros(4, 3, 8, 8), None),
        (torch.zeros(4, 8, 8, dtype=torch.uint8), None),
        ([1, 2, 3, 4], None),
        (torch.zeros(4, 3, 8, 8, dtype=torch.uint8), ["a", "b", "c", "d"]),
    ],
)
def test_other_pixels_are_loaded_in_the_ordinary_way(pixels, labels):
    """Only bytes (N, C, H, W), with a tensor of labels or none, are gathered."""
    images = Ordinary(InMemory(4))
    images.pixels, images.labels = pixels, labels
    assert_same(data.Loader(images, 4), list(data.Loader(Ordinary(InMemory(4)), 4)))


def test_drawn_faces_are_gathered(monkeypatch):
    """The built-in faces need no DataLoader, and their attributes are their labels."""
    faces = data.CartoonFaces(10, 8)
    assert faces.labels is faces.attributes
    monkeypatch.setattr("tinygan.data.loader.load", None)
    images, attributes = next(iter(data.Loader(faces, 4, shuffle=False, workers=2)))
    assert torch.equal(images, scale(faces.pixels[:4]))
    assert torch.equal(attributes, faces.attributes[:4])


class Mixed:
    """Images with all that a DataLoader may put together."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return torch.zeros(1, 2, 2), str(index), (torch.ones(2), 1.5)


def test_ordinary_batches_are_moved():
    """With a device the tensors of an ordinary batch are moved there."""
    images, names, (ones, number) = next(iter(data.Loader(Mixed(), 2, device="meta")))
    assert {tensor.device.type for tensor in (images, ones, number)} == {"meta"}
    assert {type(name) for name in names} == {str}
    assert next(iter(data.Loader(torch.zeros(2, 3), 2))).device == CPU


def test_images_in_memory_come_on_the_device_that_is_asked_for():
    """Images and labels are gathered there, and are moved there once, not for every batch."""
    moved = []

    class Watched(torch.Tensor):
        def to(self, *arguments, **options):
            moved.append(arguments)
            return super().to(*arguments, **options)

    images = InMemory(20, labelled=True)
    images.pixels = images.pixels.as_subclass(Watched)
    loader = data.Loader(images, 6, flip=True, device="meta")
    for _ in range(2):
        for batch, labels in loader:
            assert {batch.device.type, labels.device.type} == {"meta"}
            assert batch.dtype == torch.float32
    assert len(moved) == 1


@given(count=st.integers(1, 30), size=st.integers(1, 8), seed=st.integers(0, 100))
def test_batches_that_are_gathered_ahead_are_the_same(count, size, seed):
    """Gathered by a thread, batches have the very same bytes and order."""
    pixels = random_bytes(count, 1, 2, 3, seed=seed)
    plan = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).split(size)
    found = list(gathering.ahead(pixels, plan, CPU))
    assert_same(found, [pixels[indices] for indices in plan])


def test_a_gatherer_of_images_that_do_not_fit_gives_the_same(monkeypatch):
    """Flips, labels and scale are those of images that are on the device."""
    images = InMemory(20, labelled=True)
    plan = list(torch.randperm(20).split(6))
    flips = torch.arange(20) % 3 == 0
    resident = gathering.Gatherer(images.pixels, images.labels, CPU)
    monkeypatch.setattr(gathering, "fits", lambda size, device: False)
    streaming = gathering.Gatherer(images.pixels, images.labels, CPU)
    assert (resident.resident, streaming.resident) == (True, False)
    assert_same(streaming.batches(plan, flips), list(resident.batches(plan, flips)))


def test_the_next_batch_is_gathered_while_one_is_used(monkeypatch):
    """By another thread, and no more than one."""
    begun, select = [], torch.index_select

    def watched(pixels, axis, indices, out):
        begun.append(threading.current_thread().name)
        return select(pixels, axis, indices, out=out)

    monkeypatch.setattr(torch, "index_select", watched)
    batches = gathering.ahead(random_bytes(4, 1, 2, 2), torch.arange(4).split(1), CPU)
    for number in (2, 3, 4, 4):
        next(batches)
        eventually(lambda number=number: len(begun) == number)
    assert {name.partition("_")[0] for name in begun} == {"gathering"}


@pytest.mark.parametrize(("free", "fit"), [(400, True), (399, False)])
def test_images_move_to_a_gpu_if_they_take_a_quarter_of_what_is_free(monkeypatch, free, fit):
    """A quarter at most, by the device's own word; else they stay."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 1000))
    assert gathering.fits(100, torch.device("cuda")) is fit
    assert gathering.fits(100, CPU)


def test_a_broken_gathering_is_an_error_and_leaves_no_thread():
    """What the thread cannot do is raised where batches are taken; it ends with the iteration."""
    pixels = random_bytes(4, 1, 2, 2)
    with pytest.raises((IndexError, RuntimeError), match="index out of range"):
        list(gathering.ahead(pixels, [torch.tensor([0]), torch.tensor([9])], CPU))
    batches = gathering.ahead(pixels, torch.arange(4).split(1), CPU)
    next(batches)
    assert any(thread.name.startswith("gathering") for thread in threading.enumerate())
    batches.close()
    assert not any(thread.name.startswith("gathering") for thread in threading.enumerate())


BYTES = torch.zeros(10, 3, 8, 8, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("pixels", "labels", "sentence"),
    [
        (BYTES[:9], None, r"pixels must be .*, with N = 10, got torch.Size\(\[9, 3, 8, 8\]\); or"),
        (BYTES.float(), None, r"pixels must be .* of torch.uint8, .*"),
        (BYTES[:, 0], None, r"pixels must be .* got torch.Size\(\[10, 8, 8\]\); or"),
        (BYTES.tolist(), None, "pixels must be .* got <class 'list'>; or"),
        (BYTES, torch.zeros(3), r"got .* and torch.Size\(\[3\]\); or"),
        (BYTES, [0] * 10, "got .* and <class 'list'>; or"),
    ],
)
def test_pixels_and_labels_that_cannot_be_gathered_are_refused(pixels, labels, sentence):
    """Their kind and number are looked at when the loader is made."""

    class Mine:
        def __init__(self):
            self.pixels, self.labels = pixels, labels

        def __len__(self):
            return 10

    with pytest.raises(ValueError, match=sentence):
        data.Loader(Mine(), 2)


def test_a_data_set_with_an_index_of_its_own_is_asked_by_it():
    """What it does there, augmentation perhaps, is not passed over because it has pixels."""

    class Darker(data.CartoonFaces):
        def __getitem__(self, index):
            image, attributes = super().__getitem__(index)
            return image - 1, attributes

        def __getitems__(self, indices):
            return [self[index] for index in indices]

    images, _ = next(iter(data.Loader(Darker(4, 16), 4)))
    assert images.min() < -1
