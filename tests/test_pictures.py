"""Pictures: what a grid shows, for every size and number of channels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from PIL import Image

from tinygan import pictures

import strategies
from crashes import watched


@given(images=strategies.images())
def test_a_grid_shows_every_image(images):
    """Each image stands whole in the grid, magnified by a whole factor if it is small."""
    count, channels, height, width = images.shape
    grid = np.asarray(pictures.grid(images))
    factor = max(1, round(64 / min(height, width)))
    assert grid.shape == (height * factor + 4, (width * factor + 2) * count + 2, 3)

    shown = images[:, : 3 if channels >= 3 else 1].expand(-1, 3, -1, -1)
    for index in range(count):
        left = 2 + index * (width * factor + 2)
        cell = grid[2:-2, left : left + width * factor][::factor, ::factor]
        expected = ((shown[index] + 1) * 127.5).permute(1, 2, 0).numpy()
        assert np.abs(cell - expected).max() <= 1


def test_grids_have_rows_of_eight():
    """Sixty-four images make the tutorial's square grid."""
    assert pictures.grid(torch.zeros(64, 3, 64, 64)).size == (530, 530)
    assert pictures.grid(torch.zeros(9, 3, 64, 64)).size == (530, 134)


def test_colours_do_not_depend_on_the_batch():
    """Grey 0 is mid-grey whatever is beside it: grids of one run can be compared."""
    images = torch.zeros(2, 3, 64, 64)
    images[1] = 0.5
    cell = np.asarray(pictures.grid(images))[32, 32]
    assert cell.tolist() == [127, 127, 127] or cell.tolist() == [128, 128, 128]


@pytest.mark.parametrize("name", ["progress.gif", "progress.html"])
def test_an_animation_is_whole_or_not_there(name, tmp_path):
    """A disk that is full leaves the older one, and nothing half done."""
    frame, path = tmp_path / "frame.png", tmp_path / name
    Image.new("RGB", (9, 9)).save(frame)

    def save():
        if path.suffix == ".gif":
            pictures.save_gif([frame, frame], path)
        else:
            pictures.save_html([frame, frame], path, captions=["one", "two"])

    def fails(called, operate, *arguments):
        if called == "sync":
            raise OSError("No space left on device")
        return operate(*arguments)

    save()
    before = path.read_bytes()
    assert before.startswith(b"GIF8" if path.suffix == ".gif" else b"<!")
    Image.new("RGB", (9, 9), "white").save(frame)
    with watched(fails), pytest.raises(OSError, match="No space"):
        save()
    assert path.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["frame.png", name]
    save()
    assert path.read_bytes() != before
