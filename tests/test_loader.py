"""The loader's flips, which seed, epoch and image decide; and whose place in the data it takes."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

import tinygan
from tinygan import data, hooks

from helpers import tiny_images, tiny_trainer

IMAGES = torch.rand(200, 1, 2, 3, generator=torch.Generator().manual_seed(0))


def mirrored(epoch=0, batch_size=50, flip=True, **arguments):
    """Return which of the images an epoch mirrors, by number; assert that it does no more."""
    numbered = TensorDataset(IMAGES, torch.arange(200))
    loader = data.Loader(numbered, batch_size, flip=flip, **arguments)
    loader.set_epoch(epoch)
    found = torch.zeros(200, dtype=torch.bool)
    for images, numbers in loader:
        found[numbers] = (images == IMAGES[numbers].flip(-1)).flatten(1).all(1)
        straight = (images == IMAGES[numbers]).flatten(1).all(1)
        assert torch.equal(straight, ~found[numbers])
    return found


def test_each_epoch_and_seed_mirrors_another_half():
    """About half of the images are mirrored, others in each epoch and for each seed."""
    choices = [mirrored(epoch, seed=seed) for epoch in range(3) for seed in range(2)]
    for index, choice in enumerate(choices):
        assert 65 < choice.sum() < 135  # five standard deviations
        for other in choices[:index]:
            assert 65 < (choice ^ other).sum() < 135
    assert not mirrored(flip=False).any()


@pytest.mark.parametrize(
    "arguments", [{"workers": 1}, {"workers": 2}, {"batch_size": 7}, {"shuffle": False}]
)
def test_flips_depend_on_nothing_else(arguments):
    """Neither workers, nor batches, nor order, nor the global generator change what is mirrored."""
    expected = mirrored(3)
    torch.rand(7)
    assert torch.equal(mirrored(3, **arguments), expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_images_without_labels_are_mirrored_alike(workers):
    """A batch that is a tensor is mirrored as one that is a tuple."""
    loader = data.Loader(IMAGES, 50, shuffle=False, flip=True, workers=workers)
    mask = mirrored()[:, None, None, None]
    assert torch.equal(torch.cat(list(loader)), torch.where(mask, IMAGES.flip(-1), IMAGES))


def folder(root, names):
    """Return the images of a folder in which there are some of these names."""
    root.mkdir()
    for name in names:
        Image.new("RGB", (8, 8)).save(root / name)
    return data.image_folder(root, 8)


def test_another_loader_is_refused_with_every_difference(tmp_path):
    """All that makes other batches is named in one message, and the loader's place stays."""
    saved = data.Loader(folder(tmp_path / "a", ["1.png", "2.png"]), 1, flip=True)
    other = data.Loader(folder(tmp_path / "b", ["1.png", "3.png", "4.png"]), 2, seed=1)
    next(iter(other))
    before = other.state_dict()
    with pytest.raises(ValueError, match="checkpoint belongs to a different run:") as caught:
        other.load_state_dict(saved.state_dict())
    lines = str(caught.value).splitlines()[1:-1]
    assert [line.split(":")[0].strip() for line in lines] == [
        "batches.seed", "batches.size", "batches.batch_size", "batches.flip",
        "batches.dataset.images", "batches.dataset.names",
    ]  # fmt: skip
    assert "  batches.batch_size: 1 when saved, 2 now" in lines
    assert other.state_dict() == before


def test_names_alone_tell_folders_apart(tmp_path):
    """As many images of other names are other images; the same names elsewhere are the same."""
    one, same, other = (
        data.Loader(folder(tmp_path / root, names), 1)
        for root, names in (("a", ["1.png"]), ("b", ["1.png"]), ("c", ["2.png"]))
    )
    same.load_state_dict(one.state_dict())
    with pytest.raises(ValueError, match=r"dataset\.names"):
        other.load_state_dict(one.state_dict())


def test_drawn_faces_of_another_seed_are_refused():
    """Faces are known by their seed."""
    one, other = (data.Loader(data.CartoonFaces(4, 8, seed=seed), 2) for seed in (0, 1))
    with pytest.raises(ValueError, match=r"dataset\.seed: 0 when saved, 1 now"):
        other.load_state_dict(one.state_dict())


class Listens(tinygan.Hook):
    """Notes that a run has begun."""

    begun = False

    def on_fit_start(self, trainer):
        """Note it."""
        self.begun = True


def test_a_resumed_run_refuses_other_data_before_anything_is_written(tmp_path):
    """Also exactly between two epochs, where the order of the next one is yet to be drawn."""

    def trainer():
        return tiny_trainer(
            hooks=[Listens(), hooks.JSONLog(tmp_path), hooks.Checkpoint(tmp_path, every=3)]
        )

    def written():
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}

    trainer().fit(data.Loader(tiny_images(), 6), epochs=1)
    before, resumed = written(), trainer()
    resumed.resume(tmp_path)
    assert (resumed.epoch, resumed.batch) == (1, 0)
    for _ in range(2):  # the second time too
        with pytest.raises(ValueError, match="seed: 999 when saved, 1 now"):
            resumed.fit(data.Loader(tiny_images(), 6, seed=1), epochs=2)
        assert not resumed.hooks[0].begun
        assert written() == before
    resumed.fit(data.Loader(tiny_images(), 6), epochs=2)
    assert resumed.step == 8


def test_one_process_may_go_on_with_other_data_after_an_epoch():
    """Two fits, two loaders: what was not resumed is no promise of the same data."""
    trainer = tiny_trainer()
    trainer.fit(data.Loader(tiny_images(), 6), epochs=1)
    trainer.fit(data.Loader(tiny_images(12), 4, seed=1), epochs=2)
    assert trainer.step == 4 + 3
