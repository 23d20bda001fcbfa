"""Data: the tutorial's pixels from folders and zips, drawn faces, and the loader's order."""

from __future__ import annotations

import math
import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms

from tinygan import data
from tinygan.data.cartoon_faces import SKIN
from tinygan.data.decoding import scale, to_pixels

import strategies


def to_tensor(image, size):
    """Return what becomes of a picture: (C, H, W) in [-1, 1]."""
    return scale(to_pixels(image, size))


def picture(width, height, seed=0, mode="RGB"):
    """Return a picture of random pixels, smooth enough for a resize to matter little."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


@given(
    size=st.integers(8, 70),
    width=st.integers(8, 250),
    height=st.integers(8, 250),
    mode=st.sampled_from(["RGB", "L"]),
)
def test_squares_are_the_tutorials_bit_for_bit(size, width, height, mode):
    """Resizing, cropping and scaling to a square gives the tutorial's transform's very pixels."""
    image = picture(width, height, mode=mode)
    half = (0.5,) * len(mode)
    expected = transforms.Compose(
        [
            transforms.Resize(size),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize(half, half),
        ]
    )(image)
    assert torch.equal(to_tensor(image, (size, size)), expected)


@given(size=strategies.image_sizes, width=st.integers(8, 250), height=st.integers(8, 250))
def test_every_size_is_covered(size, width, height):
    """An oblong is filled to its edges, whatever the picture's own shape."""
    image = Image.new("RGB", (width, height), (255, 0, 255))
    tensor = to_tensor(image, size)
    assert tensor.shape == (3, *size)
    assert torch.equal(tensor, torch.tensor([1.0, -1.0, 1.0])[:, None, None].expand(3, *size))


def test_an_oblong_keeps_the_picture_upright_and_centred():
    """The middle of the picture is the middle of the tensor, and left stays left."""
    image = Image.new("L", (90, 60), 0)
    image.paste(255, (45, 0, 90, 60))  # the right half is white
    tensor = to_tensor(image, (30, 20))[0]
    assert (tensor[:, :9] == -1).all()
    assert (tensor[:, 11:] == 1).all()


@pytest.fixture
def faces(tmp_path):
    """Return a folder of pictures, nested, with things beside them that are none."""
    root = tmp_path / "faces"
    for index, name in enumerate(["b.png", "a.jpg", "in/c.JPEG", "in/deep/d.bmp"]):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(40, 50, seed=index).save(path, "JPEG" if "j" in name.lower() else None)
    (root / "notes.txt").write_text("no picture")
    (root / ".hidden.png").write_bytes(b"no picture")
    (root / "__MACOSX").mkdir()
    (root / "__MACOSX" / "a.jpg").write_bytes(b"no picture")
    (root / ".thumbnails").mkdir()
    (root / ".thumbnails" / "a.jpg").write_bytes(b"no picture")
    return root


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_folders_and_archives_give_the_same_images(faces, kind):
    """Flat and nested files are found, sorted by name; an archive gives the same images."""
    archive = shutil.make_archive(faces, kind, faces)
    folder, zipped = data.image_folder(faces, 16), data.image_folder(archive, 16)

    assert folder.names == zipped.names == ["a.jpg", "b.png", "in/c.JPEG", "in/deep/d.bmp"]
    assert len(folder) == 4
    for index in range(4):
        assert torch.equal(folder[index], zipped[index])
        with Image.open(faces / folder.names[index]) as image:
            assert torch.equal(folder[index], to_tensor(image.convert("RGB"), (16, 16)))


def test_channels(faces):
    """One channel gives grey, three give colour, whatever the file has."""
    picture(20, 20, mode="L").save(faces / "grey.png")
    assert {image.shape for image in data.image_folder(faces, 8, 1)} == {(1, 8, 8)}
    assert {image.shape for image in data.image_folder(faces, 8, 3)} == {(3, 8, 8)}


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_worker_processes_give_the_same_images(faces, kind):
    """Processes that decode in the background change neither images nor order."""
    root = shutil.make_archive(faces, kind, faces)
    images = data.image_folder(root, 8)
    images[0]  # opens the zip in this process first

    for alone, helped in zip(data.Loader(images, 2), data.Loader(images, 2, workers=2)):
        assert torch.equal(alone, helped)
    assert torch.equal(pickle.loads(pickle.dumps(images))[1], images[1])


def test_links_are_followed_but_not_in_circles(faces, tmp_path):
    """A folder that is linked is looked into; a link that leads up again is passed over by name."""
    (tmp_path / "elsewhere" / "more").mkdir(parents=True)
    picture(20, 20).save(tmp_path / "elsewhere" / "more" / "e.png")
    os.symlink(tmp_path / "elsewhere", faces / "linked")
    for name, target in (
        ("again", faces),
        ("up", tmp_path),
        ("all", "/"),
        ("in/back", faces / "in"),
    ):
        os.symlink(target, faces / name)
    os.symlink(tmp_path / "elsewhere", tmp_path / "elsewhere" / "more" / "circle")
    images = data.image_folder(faces, 8)
    assert len(images) == 5
    assert images.names[-1] == "linked/more/e.png"
    circles = {"again/", "up/", "all/", "in/back/", "linked/more/circle/"}
    assert circles <= set(images.passed_over)


@given(
    size=strategies.image_sizes,
    channels=st.sampled_from([1, 3]),
    length=st.integers(1, 9),
    more=st.integers(0, 20),
    seed=strategies.seeds,
)
def test_drawn_faces_are_pure_functions_of_seed_and_index(size, channels, length, more, seed):
    """A face is in [-1, 1], of the asked shape, and the same in a set of another length."""
    short = data.CartoonFaces(length, size, channels, seed=seed)
    long = data.CartoonFaces(length + more, size, channels, seed=seed)
    for index in range(length):
        image, attributes = short[index]
        assert image.shape == (channels, *size)
        assert image.abs().max() <= 1
        assert torch.equal(image, long[index][0])
        assert torch.equal(attributes, long[index][1])


def test_every_attribute_value_comes_up_alike():
    """Attributes are drawn evenly and independently from their finite grid."""
    faces = data.CartoonFaces(6000, 8)
    counts = list(faces.ATTRIBUTES.values())
    assert faces.attributes.shape == (6000, len(counts))
    for column, count in enumerate(counts):
        shares = torch.bincount(faces.attributes[:, column], minlength=count) / 6000
        # Four standard errors of a share.
        tolerance = 4 * math.sqrt((1 / count) * (1 - 1 / count) / 6000)
        assert shares.tolist() == pytest.approx([1 / count] * count, abs=tolerance)
    correlation = torch.corrcoef(faces.attributes.T.double()) - torch.eye(len(counts))
    assert correlation.abs().max() < 4 / math.sqrt(6000)


@pytest.mark.parametrize("size", [32, pytest.param(64, marks=pytest.mark.slow)])
def test_attributes_can_be_seen(size):
    """Each attribute can be told from the pixels: the mean images of its values differ."""
    faces = data.CartoonFaces(3000, size)
    images = torch.stack([image for image, _ in faces])
    shuffled = faces.attributes[torch.randperm(3000, generator=torch.Generator().manual_seed(0))]

    def contrasts(values, count):
        means = [images[values == value].mean(0) for value in range(count)]
        return [(a - b).abs().max().item() for i, a in enumerate(means) for b in means[:i]]

    for column, (name, count) in enumerate(faces.ATTRIBUTES.items()):
        chance = max(contrasts(shuffled[:, column], count))
        assert min(contrasts(faces.attributes[:, column], count)) > 1.2 * chance, name


def test_a_face_has_its_skin_and_its_seed():
    """The forehead's colour is the attribute's, grey faces are the coloured ones', seeds differ."""
    faces = data.CartoonFaces(300, 64)
    grey = data.CartoonFaces(300, 64, channels=1)
    tones = torch.tensor(SKIN) / 127.5 - 1
    near = 0
    for index, (image, attributes) in enumerate(faces):
        forehead = image[:, 26:29, 30:34].mean((1, 2))
        near += (tones - forehead).abs().sum(1).argmin() == attributes[0]
        weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
        assert (grey[index][0][0] - (image * weights).sum(0)).abs().max() < 0.02
    assert near > 150  # chance is 50; fringes, tilt and glasses hide some
    assert not torch.equal(faces[0][0], data.CartoonFaces(1, 64, seed=1)[0][0])


def test_faces_of_one_grid_cell_differ():
    """No two faces are alike, those of the same attributes included."""
    faces = data.CartoonFaces(2000, 16)
    flat = torch.stack([image for image, _ in faces]).flatten(1)
    assert len(torch.unique(flat, dim=0)) == 2000


def test_faces_are_fetched_alike_one_by_one_and_together():
    """What a loader fetches as a batch is what indexing gives."""
    faces = data.CartoonFaces(10, 8)
    images, attributes = next(iter(data.Loader(faces, 4, shuffle=False)))
    assert torch.equal(images, torch.stack([faces[i][0] for i in range(4)]))
    assert torch.equal(attributes, faces.attributes[:4])


def ids(loader):
    """Return the numbers of the images that a loader gives, batch by batch."""
    return [batch[:, 0].tolist() for batch in loader]


def numbered(count):
    """Return a data set whose images are their numbers."""
    return torch.arange(count)[:, None]


@given(
    count=st.integers(1, 50),
    size=st.integers(1, 50),
    seed=strategies.seeds,
    epoch=st.integers(0, 1000),
    drop_last=st.booleans(),
)
def test_order_is_a_function_of_seed_and_epoch(count, size, seed, epoch, drop_last):
    """Each epoch gives every image once, in an order that (seed, epoch) alone decides."""
    size = min(size, count)

    def loader():
        return data.Loader(numbered(count), size, seed=seed, drop_last=drop_last)

    fresh, used = loader(), loader()
    ids(used)
    torch.rand(7)
    for one in (fresh, used):
        one.set_epoch(epoch)
    order = ids(fresh)

    assert order == ids(used)
    assert len(order) == len(fresh)
    flat = sorted(i for batch in order for i in batch)
    assert len(set(flat)) == len(flat)
    if not drop_last:
        assert flat == list(range(count))
    assert {len(batch) for batch in order[:-1]} <= {size}


def test_epochs_and_seeds_have_orders_of_their_own():
    """The next iteration takes the next epoch; other epochs and seeds have other orders."""
    loader = data.Loader(numbered(50), 50, seed=1)
    first, second = ids(loader), ids(loader)
    loader.set_epoch(0)
    assert ids(loader) == first != second
    assert ids(data.Loader(numbered(50), 50, seed=2)) != first
    assert ids(data.Loader(numbered(50), 50, shuffle=False)) == [list(range(50))]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_goes_back_to_its_place(workers):
    """Loaded state goes on with the batch after the last one given, then with the next epoch."""
    whole = data.Loader(numbered(20), 6)
    expected = ids(whole) + ids(whole)
    for place in range(5):
        loader = data.Loader(numbered(20), 6, workers=workers)
        batches = iter(loader)
        given = [next(batches)[:, 0].tolist() for _ in range(place)]
        resumed = data.Loader(numbered(20), 6, workers=workers)
        resumed.load_state_dict(loader.state_dict())
        assert resumed.state_dict() == loader.state_dict()
        assert given + ids(resumed) + ids(resumed) == expected


def test_an_abandoned_iteration_leaves_no_trace():
    """A look at the first batch does not take it from the next iteration."""
    loader = data.Loader(numbered(20), 6, workers=0)
    peek = next(iter(loader))
    assert ids(loader)[0] == peek[:, 0].tolist()


@pytest.mark.parametrize("workers", [0, 1])
def test_two_iterations_at_once_do_not_disturb_each_other(workers):
    """A look into a loader that is being iterated takes nothing from either."""
    loader = data.Loader(numbered(20), 6, workers=workers)
    expected = ids(data.Loader(numbered(20), 6))
    found = []
    for batch in loader:
        found.append(batch[:, 0].tolist())
        assert next(iter(loader))[:, 0].tolist() == expected[0]
    assert found == expected


def test_loading_draws_nothing_from_the_global_generator():
    """The loader leaves PyTorch's global random state alone."""
    before = torch.get_rng_state()
    ids(data.Loader(numbered(20), 6))
    ids(data.Loader(numbered(20), 6, workers=1))
    assert torch.equal(before, torch.get_rng_state())
