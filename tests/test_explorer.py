"""The explorer's page: what is in it, where its directions come from, and its command."""

from __future__ import annotations

import base64
import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import tinygan
from tinygan import latents, sampling
from tinygan.cli.main import main
from tinygan.explorer import POSITIONS, REACH, SIDE, directions, save_explorer

from crashes import watched


class Painter(nn.Module):
    """Makes images of one colour each, that of three numbers; a class darkens them."""

    def __init__(self, side=16, num_classes=None, dark=0.0):
        super().__init__()
        self.latent_dim, self.num_classes, self.side, self.dark = 3, num_classes, side, dark
        self.first = nn.Linear(3, 3, bias=False)
        self.first.weight.data = torch.diag(torch.tensor([0.2, 0.6, 0.4]))

    def forward(self, z, labels=None):
        """Map z (N, 3) to images (N, 3, side, side)."""
        colour = self.first(z).tanh()
        if labels is not None:
            colour = colour - self.dark * labels[:, None]
        return colour[:, :, None, None].expand(-1, -1, self.side, self.side)


def content(path):
    """Return what a page has to show."""
    text = path.read_text("utf-8")
    return json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])


def cells(url, columns):
    """Return a sheet's colours, (rows, columns, 3) in [-1, 1]: those of each image's middle."""
    sheet = Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))
    size = sheet.width // columns
    pixels = np.asarray(sheet.convert("RGB")) / 127.5 - 1
    return torch.tensor(pixels[size // 2 :: size, size // 2 :: size])


def near(seen, images):
    """Return whether colours are those of images, but for what WEBP loses."""
    return (seen - images[..., 0, 0].reshape(seen.shape)).abs().max() < 0.06


def test_the_map_has_four_seeds_in_its_corners(tmp_path):
    """The corners are the images of four seeds, in each map of four others; all is between them."""
    net = Painter()
    save_explorer(net, tmp_path / "page.html", seed=5)
    maps = content(tmp_path / "page.html")["maps"]
    assert len(maps) == 3
    for number, (url,) in enumerate(maps):
        seen = cells(url, SIDE)
        assert seen.shape == (SIDE, SIDE, 3)
        z = latents.by_seed(net, range(5 + 4 * number, 9 + 4 * number))
        assert near(torch.stack([seen[0, 0], seen[0, -1], seen[-1, 0], seen[-1, -1]]), net(z))
        middle = latents.slerp(latents.slerp(z[0], z[2], 0.5), latents.slerp(z[1], z[3], 0.5), 0.5)
        assert near(seen[SIDE // 2, SIDE // 2], net(middle[None]))


def test_sliders_move_a_seed_along_the_directions(tmp_path):
    """A row for each direction: the seed's own image in the middle, and the same way either way."""
    net = Painter()
    save_explorer(net, tmp_path / "page.html")
    ways, _ = directions(net)
    for seed, (url,) in enumerate(content(tmp_path / "page.html")["sliders"]):
        z = latents.by_seed(net, [seed])
        for row, way in zip(cells(url, POSITIONS), ways, strict=True):
            moves = torch.linspace(-REACH, REACH, POSITIONS)[:, None] * way
            assert near(row, net(z + moves))
            assert near(row[POSITIONS // 2], net(z))


def test_classes_have_their_sheets_and_names(tmp_path):
    """The first ten classes have sheets of their own; no name can end the page's script."""
    net = Painter(num_classes=12, dark=0.03)
    net.facts = {"classes": ["</script><b>", *"bcdefghijkl"], "step": 1234}
    save_explorer(net, tmp_path / "page.html")
    found = content(tmp_path / "page.html")
    assert found["kinds"] == [*range(10)]
    assert found["facts"] == net.facts
    assert [len(maps) for maps in found["maps"]] == [10]
    assert [len(sliders) for sliders in found["sliders"]] == [10, 10, 10]
    for kind in (0, 9):
        label = torch.full((1,), kind)
        assert near(
            cells(found["maps"][0][kind], SIDE)[0, 0], net(latents.by_seed(net, [0]), label)
        )


def test_large_images_have_smaller_maps(tmp_path):
    """Beyond 64 pixels a map has 9 x 9 images, so that the file stays small."""
    save_explorer(Painter(side=72), tmp_path / "page.html")
    found = content(tmp_path / "page.html")
    assert found["side"] == 9
    sheet = Image.open(io.BytesIO(base64.b64decode(found["maps"][0][0].split(",")[1])))
    assert sheet.size == (9 * 72, 9 * 72)


def test_the_page_needs_nothing_else(tmp_path):
    """It names no address, and allows none; the same generator and seed make the same file."""
    net = Painter().train()
    save_explorer(net, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text("utf-8")
    assert "://" not in text
    assert "default-src 'none'; img-src data:;" in text
    assert net.training
    save_explorer(net, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text("utf-8") == text


@pytest.mark.parametrize("num_classes", [None, 4])
def test_directions_are_the_main_ones_of_the_first_layer(num_classes):
    """They are orthonormal, and no unit vector is amplified more than the first, and so on."""
    net = tinygan.DCGANGenerator(8, latent_dim=9, base_channels=4, num_classes=num_classes)
    ways, known = directions(net)
    assert known
    assert ways.shape == (6, 9)
    assert torch.allclose(ways @ ways.T, torch.eye(6), atol=1e-5)
    weights = net.main[0].weight.detach()[:9].flatten(1)
    gains = (ways @ weights).norm(dim=1)
    assert torch.allclose(gains, torch.linalg.svdvals(weights)[:6], rtol=1e-4)


def test_directions_have_one_sign():
    """A direction's largest number is positive, whatever the SVD's sign; negated weights too."""
    net = Painter()
    expected = torch.eye(3)[[1, 2, 0]]
    assert torch.allclose(directions(net)[0], expected)
    net.first.weight.data.neg_()
    assert torch.allclose(directions(net)[0], expected)


def test_directions_of_other_nets_are_random():
    """A net whose first layer is not recognised has orthonormal ones, the same each time."""

    class Own(nn.Module):
        latent_dim = 7

    ways, known = directions(Own())
    assert not known
    assert torch.allclose(ways @ ways.T, torch.eye(6), atol=1e-5)
    assert torch.equal(ways, directions(Own())[0])


def test_a_page_is_whole_or_not_there(tmp_path):
    """A disk that is full leaves the older page."""
    path = tmp_path / "page.html"
    path.write_text("older")

    def fails(called, operate, *arguments):
        if called == "sync":
            raise OSError("No space left on device")
        return operate(*arguments)

    with watched(fails), pytest.raises(OSError, match="No space"):
        save_explorer(Painter(), path)
    assert path.read_text() == "older"


def test_bad_input(tmp_path):
    """Images that are not finite are an error; nothing is written."""
    net = Painter()
    net.first.weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"images must be finite"):
        save_explorer(net, tmp_path / "page.html")
    assert [*tmp_path.iterdir()] == []


def test_the_command(tmp_path, capsys):
    """``tinygan explore`` writes the page beside the generator, and says how large it is."""
    net = tinygan.DCGANGenerator(8, latent_dim=5, base_channels=4).eval()
    tinygan.save_generator(net, tmp_path / "run")
    main(["explore", str(tmp_path / "run"), "--seed", "3"])
    path = tmp_path / "run" / "explore.html"
    size = path.stat().st_size / 1e6
    assert capsys.readouterr().out == f"{path}: {size:.1f} MB, to open in a browser\n"
    assert content(path)["seed"] == 3
    url = content(path)["maps"][0][0]
    first = sampling.generate(net, latents.by_seed(net, [3]))[0, :, 4, 4]
    assert (cells(url, SIDE)[0, 0] - first).abs().max() < 0.15
    for out, page in ("new/a.html", "new/a.html"), ("new", "new/explore.html"):
        main(["explore", str(tmp_path / "run"), "--seed", "-3", "--out", str(tmp_path / out)])
        assert content(tmp_path / page)["seed"] == -3
