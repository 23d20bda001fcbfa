"""Pictures: what a grid shows, for every size and number of channels."""

from __future__ import annotations

import base64
import gc
import importlib.util
import io
import itertools
import math
import re
import tracemalloc
import zipfile
from functools import partial

import av
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
    assert pictures.grid(torch.zeros(9, 3, 64, 64), columns=3).size == (200, 200)


def test_classes_have_rows_of_their_own():
    """Each begins with its name; the class of the first image comes first."""
    shades = torch.linspace(-1, 1, 6)[:, None, None, None].expand(6, 3, 64, 64)
    labels = ["cat", "dog", "cat", "cat", "dog", "cat"]
    page = np.asarray(pictures.grid(shades, columns=3, labels=labels, padding=0))
    left = page.shape[1] - 3 * 64
    assert 40 < left < 80
    rows = page[32::64, left + 32 :: 64, 0].tolist()
    assert np.abs(np.subtract(rows, [[0, 102, 153], [255, 0, 0], [51, 204, 255]])).max() <= 1
    for top, bottom in ((0, 128), (128, 192)):  # a name is in the middle of its rows
        ink = np.nonzero(page[top:bottom, :left].min((1, 2)) < 128)[0]
        assert abs(ink.mean() - (bottom - top) / 2) < 6


def test_each_image_has_a_label():
    """Another number of labels is refused."""
    with pytest.raises(ValueError, match=r"^labels must name 3 classes, got 2\.$"):
        pictures.grid(torch.zeros(3, 3, 8, 8), labels=["cat", "dog"])


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


@pytest.mark.parametrize("width", [530, 394])
def test_a_long_title_stays_above_its_picture(width):
    """It is written smaller where it would not fit; short ones are as they were."""
    plain = Image.new("RGB", (width, 9))
    page = pictures.titled(
        ("Real", plain), ("Fake (after 9,999 images: too early to judge)", plain)
    )
    ink = np.asarray(page)[:40].min((0, 2)) < 128
    assert ink[width + 48 : 2 * width + 48].any()
    assert not ink[width + 24 : width + 48].any()
    assert not ink[2 * width + 48 :].any()
    alone = pictures.titled(("Real", plain))
    assert np.array_equal(np.asarray(page)[:40, : width + 40], np.asarray(alone)[:40, : width + 40])


def test_bytes_are_shown_as_they_are():
    """A grid of bytes is that of the same images in [-1, 1]."""
    pixels = torch.arange(256, dtype=torch.uint8).view(4, 1, 8, 8)
    grid = np.asarray(pictures.grid(pixels, padding=0))[::8, ::8, 0]
    assert np.array_equal(grid, torch.cat([*pixels[:, 0]], dim=1).numpy())
    scaled = np.asarray(pictures.grid(pixels / 127.5 - 1, padding=0))[::8, ::8, 0]
    assert np.array_equal(grid, scaled)


IMAGE = torch.rand(2, 3, 16, 16) * 2 - 1


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        ((IMAGE + 1) * 127.5, "images must be in [-1, 1], got ["),
        (IMAGE * math.nan, "images must be finite, got [nan, nan]; "),
        (IMAGE[0], "images must be (N, C, H, W), got (3, 16, 16); give one image as images[None]"),
        (
            IMAGE.permute(0, 2, 3, 1),
            "images must be (N, C, H, W), got (2, 16, 16, 3); use images.p",
        ),
        (
            IMAGE[:0],
            "images must be (N, C, H, W), got (0, 3, 16, 16); draw other data in the trainer'",
        ),
        (IMAGE.long() + 200, "images must be in [-1, 1], got [200, 200]; scale bytes with"),
        (
            IMAGE.numpy(),
            "images must be a tensor, got ndarray; use torch.as_tensor or torch.stack.",
        ),
        ([*IMAGE], "images must be a tensor, got list; use torch.as_tensor or torch.stack."),
    ],
)
def test_what_is_no_batch_of_images_is_refused(images, sentence):
    """A grid names the shape, the type or the range, and what makes images of it."""
    with pytest.raises((ValueError, TypeError)) as error:
        pictures.grid(images)
    assert str(error.value).startswith(sentence)


def test_frames_are_files_with_captions(tmp_path):
    """No files, captions for others and another duration are refused, and nothing is written."""
    frame, path = tmp_path / "frame.png", tmp_path / "progress"
    Image.new("RGB", (9, 9)).save(frame)
    for save in (pictures.save_gif, partial(pictures.save_html, captions=[])):
        with pytest.raises(ValueError, match="the number of frames must be at least 1, got 0; use"):
            save([], path)
        with pytest.raises(ValueError, match=r"^seconds_per_frame must be in \(0, 60\], got -1; "):
            save([frame], path, seconds_per_frame=-1)
    with pytest.raises(ValueError, match=r"zip\(\) argument 2 is longer"):
        pictures.save_html([frame], path, captions=["one", "two"])
    assert list(tmp_path.iterdir()) == [frame]


def animate(frames, path):
    """Make an animation of a kind."""
    if path.suffix == ".gif":
        pictures.save_gif([str(frame) for frame in frames], str(path))
    else:
        pictures.save_html(frames, path, captions=[frame.stem for frame in frames])


def shown(path):
    """Return the frames of an animation of either kind."""
    if path.suffix == ".gif":
        with Image.open(path) as gif:
            for index in range(gif.n_frames):
                gif.seek(index)
                yield gif.convert("RGB")
    else:
        for encoded in re.findall(r"data:image/webp;base64,([^\"]+)", path.read_text()):
            with Image.open(io.BytesIO(base64.b64decode(encoded))) as frame:
                yield frame.convert("RGB")


def films(path):
    """Return the frames of an .mp4, with its codec, colours and frames a second."""
    with av.open(path) as film:
        stream = film.streams.video[0]
        frames = [frame.to_image() for frame in film.decode(stream)]
        return frames, (stream.codec.name, stream.pix_fmt, stream.average_rate)


COLOURS = [(200, 30, 40), (10, 120, 250), (0, 0, 0)]


def save_any(frames, path):
    """Make an animation of frames of any kind, of any of the three kinds."""
    if path.suffix == ".mp4":
        pictures.save_mp4(frames, path, fps=10)
    elif path.suffix == ".gif":
        pictures.save_gif(frames, path)
    else:
        pictures.save_html(frames, path, captions=map(str, itertools.count()))


@pytest.mark.parametrize("name", ["a.gif", "a.html", "a.mp4"])
@pytest.mark.parametrize("size", [(64, 64), (47, 61), (1101, 301)])
def test_frames_may_be_pictures_from_an_iterator(name, size, tmp_path):
    """They are taken one by one, small ones by a whole factor; sides are even in H.264."""

    def frames():
        for index, colour in enumerate(COLOURS):
            picture = Image.new("RGB", size, colour)
            picture.putpixel((0, 0), (255, 255, 255))
            yield picture
            assert picture.size == size  # it is the caller's
            taken.append(index)

    taken, path = [], tmp_path / name
    if name == "a.html":
        pictures.save_html(frames(), path, captions=["one", "two", "three"])
    else:
        save_any(frames(), path)
    made = films(path)[0] if name == "a.mp4" else [*shown(path)]
    assert taken == [0, 1, 2]
    factor = 1 if size[0] > 1100 else 512 // min(size)
    wide = (min(1100, size[0] * factor), size[1] * factor)
    if name == "a.mp4":
        wide = tuple(side + side % 2 for side in wide)
    assert [frame.size for frame in made] == [wide] * 3
    for frame, colour in zip(made, COLOURS):
        assert np.abs(np.array(frame.getpixel((wide[0] // 2, wide[1] // 2))) - colour).max() <= 4
    if factor > 1:  # the one white pixel is a sharp square
        corner = np.asarray(made[2]).astype(int).max(2)
        assert corner[1 : factor - 2, 1 : factor - 2].min() > 200
        assert corner[factor + 2 :, factor + 2 :].max() < 40


def test_a_film_is_what_browsers_show(tmp_path):
    """It is H.264 in yuv420p, at the speed that was asked for, and is whole or not there."""
    path = tmp_path / "film.mp4"
    save_any([Image.new("RGB", (64, 64), colour) for colour in COLOURS], path)
    assert films(path)[1] == ("h264", "yuv420p", 10)
    before = path.read_bytes()

    def frames():
        yield Image.new("RGB", (64, 64))
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        pictures.save_mp4(frames(), path)
    with pytest.raises(ValueError, match="the number of frames must be at least 1, got 0"):
        pictures.save_mp4([], path)
    assert [*tmp_path.iterdir()] == [path]
    assert path.read_bytes() == before


def test_without_pyav_there_is_a_way_out(tmp_path, monkeypatch):
    """The error names the pip command, and the kinds that need nothing."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError) as error:
        pictures.save_mp4([], tmp_path / "film.mp4")
    assert str(error.value) == (
        'an .mp4, other than a .gif or an .html, needs av: pip install "tinygan[video]"'
    )


def test_a_gif_may_go_on_without_a_rest(tmp_path):
    """A walk that closes shows its last frame no longer than others."""
    frames = [Image.new("RGB", (64, 64), colour) for colour in COLOURS]
    pictures.save_gif(frames, tmp_path / "a.gif", seconds_per_frame=0.05, rest=0)
    with Image.open(tmp_path / "a.gif") as gif:
        for frame in range(3):
            gif.seek(frame)
            assert gif.info["duration"] == 50
    pictures.save_gif(frames, tmp_path / "b.gif", seconds_per_frame=0.05)
    with Image.open(tmp_path / "b.gif") as gif:
        gif.seek(2)
        assert gif.info["duration"] == 2050


def test_the_page_opens_on_the_last_picture(tmp_path):
    """It stands still there, and Play begins with the first."""
    pictures.save_html([Image.new("RGB", (9, 9))] * 3, tmp_path / "a.html", captions="abc")
    page = (tmp_path / "a.html").read_text()
    assert page.count("show(frames.length - 1);") == 1
    assert "schedule(0)" not in page
    assert '<button id="toggle">Play</button>' in page
    assert "(Number(slider.value) + 1) % frames.length" in page


@pytest.mark.parametrize("name", ["images", "images.zip"])
@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_images_are_saved_by_name(name, channels, tmp_path):
    """Each is a PNG of its own size, in the colours that a grid has of any channels."""
    images = torch.rand(3, channels, 8, 9) * 2 - 1
    (tmp_path / "new").mkdir()
    pictures.save_images(iter(images), ["a", "b", "c"], tmp_path / "new" / name)
    path = tmp_path / "new" / name
    if path.is_dir():
        files = {file.name: file.read_bytes() for file in path.iterdir()}
    else:
        with zipfile.ZipFile(path) as archive:
            files = {file: archive.read(file) for file in archive.namelist()}
    assert sorted(files) == ["a.png", "b.png", "c.png"]
    for image, file in zip(images, "abc"):
        with Image.open(io.BytesIO(files[f"{file}.png"])) as picture:
            assert picture.mode == ("L" if channels < 3 else "RGB")
            pixels = np.asarray(picture.convert("RGB"))
        grid = np.asarray(pictures.grid(image[None], padding=0))[::8, ::8]
        assert np.array_equal(pixels, grid)
    assert [*(tmp_path / "new").iterdir()] == [path]


@pytest.mark.parametrize("name", ["images", "images.zip"])
def test_images_that_fail_leave_nothing(name, tmp_path):
    """An error in the middle leaves what was there before, and nothing half done."""

    def images():
        yield torch.zeros(3, 8, 8)
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        pictures.save_images(images(), ["a", "b"], tmp_path / name)
    assert [*tmp_path.iterdir()] == []
    pictures.save_images([torch.zeros(3, 8, 8)], ["a"], tmp_path / name)
    pictures.save_images([torch.zeros(3, 8, 8)], ["b"], tmp_path / name)
    assert [file.name for file in tmp_path.iterdir()] == [name]
    if name == "images":  # a folder keeps what it has
        assert sorted(file.name for file in (tmp_path / name).iterdir()) == ["a.png", "b.png"]


def test_images_go_into_a_folder_or_a_zip(tmp_path):
    """Other endings and other files are refused at once; a number after a dot is no ending."""
    pictures.save_images([torch.zeros(3, 8, 8)], ["a"], tmp_path / "scaled_0.7")
    assert (tmp_path / "scaled_0.7" / "a.png").is_file()
    for path in ("x.tar", tmp_path / "scaled_0.7" / "a.png", "/dev/null"):
        with pytest.raises(ValueError) as error:
            pictures.save_images(iter([]), [], path)
        assert (
            str(error.value) == f"out must be a folder, a .zip or an .npy, got {path}; choose one."
        )


def living():
    """Return which of Pillow's pictures are in memory."""
    return {id(each) for each in gc.get_objects() if issubclass(type(each), Image.Image)}


@pytest.mark.parametrize("name", ["progress.gif", "progress.html"])
def test_frames_are_read_one_by_one(name, tmp_path, monkeypatch):
    """When one is opened, those before it are in the file, and no longer in memory."""
    frames, path = [tmp_path / f"{index}.png" for index in range(6)], tmp_path / name
    for index, frame in enumerate(frames):
        noise = np.random.default_rng(index).integers(0, 256, (200, 200, 3), np.uint8)
        Image.fromarray(noise).save(frame)
    gc.collect()
    before = living()
    sizes, alive, traced, opened = [], [], [], Image.open

    def spy(*arguments, **options):
        sizes.append(sum(file.stat().st_size for file in tmp_path.glob("*.partial")))
        alive.append(len(living() - before))
        traced.append(tracemalloc.get_traced_memory()[0])
        return opened(*arguments, **options)

    monkeypatch.setattr(Image, "open", spy)
    gc.disable()  # it comes seldom
    tracemalloc.start()
    try:
        animate(frames, path)
    finally:
        tracemalloc.stop()
        gc.enable()
    assert len(sizes) == 6
    assert all(later - earlier > 5000 for earlier, later in itertools.pairwise(sizes))
    assert max(alive) <= 2
    assert traced[5] - traced[1] < sizes[5] / 2  # nor the bytes that were written


@pytest.mark.parametrize("name", ["progress.gif", "progress.html"])
def test_an_animation_has_the_frames_colours_and_fits_a_page(name, tmp_path):
    """Frames wider than 1,100 pixels are made smaller, and all keep their colours."""
    colours = [(200, 30, 40), (10, 120, 250), (0, 0, 0)]
    for size, expected in {(1100, 60): (1100, 60), (2200, 150): (1100, 75)}.items():
        frames = [tmp_path / f"{index}.png" for index in range(3)]
        for frame, colour in zip(frames, colours):
            Image.new("RGB", size, colour).save(frame)
        animate(frames, tmp_path / name)
        found = [*shown(tmp_path / name)]
        assert [frame.size for frame in found] == [expected] * 3
        middle = [frame.getpixel((500, 30)) for frame in found]
        assert np.abs(np.array(middle) - colours).max() <= 3
