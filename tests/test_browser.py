"""Pages in a real browser: what happens on them, and that they ask nothing of any host."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from test_explorer import Painter

from tinygan import latents, pictures
from tinygan.explorer import POSITIONS, REACH, SIDE, directions, save_explorer

import browser

pytestmark = pytest.mark.browser


def bytes_of(net, z, *labels):
    """Return the colour, in bytes, that the image of z has on the page."""
    shown = pictures.in_bytes(net(z[None], *(torch.tensor([label]) for label in labels)))
    return shown[0, :, 0, 0].tolist()


def alike(seen, expected):
    """Return whether two colours are the same, but for what WEBP loses."""
    return max(abs(a - b) for a, b in zip(seen, expected, strict=True)) <= 6


@pytest.fixture
def opened(tmp_path):
    """Return a function that writes a net's page, and returns what a script tells of it."""

    def told(script, net=None, **arguments):
        path = tmp_path / "explore.html"
        save_explorer(net or Painter(), path)
        value, asked = browser.run(path, script, tmp_path, **arguments)
        assert asked == []
        return value

    return told


def test_the_map_shows_what_is_under_the_finger(opened):
    """A touch shows its place, dragging goes on, beyond an edge too; hovering does nothing."""
    corners = opened("""
        const map = at("map"), place = at("place"), found = [];
        const see = async () => { await wait(50); found.push(colour(place)); };
        touch(map, "pointerdown", 0.01, 0.01); await see();
        touch(map, "pointermove", 0.99, 0.01); await see();
        touch(map, "pointermove", -0.5, 1.5); await see();
        touch(map, "pointermove", 0.99, 0.99); await see();
        touch(map, "pointerup", 0.99, 0.99);
        map.dispatchEvent(new PointerEvent("pointermove", { clientX: 1, clientY: 1, buttons: 0 }));
        await see();
        return found;
    """)
    net = Painter()
    expected = [bytes_of(net, z) for z in latents.by_seed(net, range(4))]
    assert all(alike(*pair) for pair in zip(corners[:4], expected, strict=True))
    assert corners[4] == corners[3]
    assert len({tuple(colour) for colour in corners[:4]}) == 4


def test_the_map_has_arrow_keys(opened):
    """It begins in the middle, moves by one image with each key, and stops at the edges."""
    where = opened("""
        const found = [at("where").textContent];
        const keys = ["ArrowRight", "ArrowDown", "ArrowDown", "ArrowLeft", "ArrowUp", "x"];
        for (const key of keys) press(at("map"), key);
        found.push(at("where").textContent);
        for (let i = 0; i < 30; i++) press(at("map"), "ArrowLeft");
        found.push(at("where").textContent, at("map").tabIndex);
        const key = new KeyboardEvent("keydown", { key: "ArrowUp", cancelable: true });
        at("map").dispatchEvent(key);
        return [...found, key.defaultPrevented];
    """)
    middle = SIDE // 2 + 1
    assert where == [
        f"Column {middle}, row {middle} of {SIDE}",
        f"Column {middle}, row {middle + 1} of {SIDE}",
        f"Column 1, row {middle + 1} of {SIDE}",
        0,
        True,
    ]


def test_other_corners(opened):
    """The button goes round the three maps, and says their seeds."""
    found = opened("""
        const found = [];
        touch(at("map"), "pointerdown", 0.01, 0.01);
        for (let i = 0; i < 3; i++) {
          click(at("other")); await wait(50);
          found.push([at("corners").textContent, colour(at("place"))]);
        }
        return found;
    """)
    net = Painter()
    for (said, seen), first in zip(found, (4, 8, 0), strict=True):
        assert said == "Their seeds: " + ", ".join(str(first + i) for i in range(4))
        assert alike(seen, bytes_of(net, latents.by_seed(net, [first])[0]))


def test_sliders_change_the_chosen_image(opened):
    """A slider shows its direction, and the others return to 0; another image begins at 0."""
    found = opened("""
        const inputs = [...document.querySelectorAll("#sliders input")], found = [];
        const see = async () => {
          await wait(50);
          const values = inputs.map((input) => Number(input.value));
          found.push([colour(at("changed")), at("what").textContent, values]);
        };
        await see();
        slide(inputs[0], 0); await see();
        inputs[2].stepUp(); inputs[2].dispatchEvent(new Event("input")); await see();
        click(at("faces").children[3]); await see();
        const faces = [...at("faces").children];
        return [...found, faces.map((face) => face.getAttribute("aria-pressed"))];
    """)
    net, middle = Painter(), POSITIONS // 2
    z, (ways, _) = latents.by_seed(net, range(6)), directions(Painter())
    step = REACH / middle
    for (seen, said, values), expected, words, position in zip(
        found,
        (z[0], z[0] - REACH * ways[0], z[0] + step * ways[2], z[3]),
        (
            "Seed 0, as it is",
            "Seed 0, direction 1 at \N{MINUS SIGN}4",
            "Seed 0, direction 3 at +1",
            "Seed 3, as it is",
        ),
        ([middle] * 3, [0, middle, middle], [middle, middle, middle + 1], [middle] * 3),
    ):
        assert alike(seen, bytes_of(net, expected))
        assert (said, values) == (words, position)
    assert found[4] == ["false"] * 3 + ["true"] + ["false"] * 2


def test_classes(opened):
    """A choice shows the class in both parts of the page; a name is text, whatever is in it."""
    net = Painter(num_classes=3, dark=0.2)
    net.facts = {"classes": ["</script><b>x", "cat", "dog"], "step": 1234, "trained_on": "<i>y"}
    names, about, seen, bold = opened(
        """
        touch(at("map"), "pointerdown", 0.01, 0.01);
        at("kind").value = "dog";
        at("kind").dispatchEvent(new Event("change"));
        await wait(50);
        return [
          [...at("kind").options].map((option) => option.text), at("about").textContent,
          [colour(at("place")), colour(at("changed"))], document.querySelectorAll("b, i").length,
        ];
        """,
        net,
    )
    assert names == net.facts["classes"]
    assert about == "16 × 16 pixels, trained on <i>y, 1,234 steps"  # noqa: RUF001
    assert bold == 0
    expected = bytes_of(net, latents.by_seed(net, [0])[0], 2)
    assert all(alike(each, expected) for each in seen)


@pytest.mark.parametrize(("width", "above"), [(1000, False), (500, True)])
def test_it_fits_the_screen(opened, width, above):
    """Nothing is wider than the screen; on a phone the large image is above the map."""
    wide, tops = opened(
        """
        await wait(50);
        const tops = ["place", "map"].map((id) => at(id).getBoundingClientRect().top);
        return [document.documentElement.scrollWidth - innerWidth, tops];
        """,
        width=width,
    )
    assert wide <= 0
    assert (tops[0] < tops[1] - 50) == above


def test_the_progress_page(tmp_path):
    """The slider shows a frame and stops; the button plays, round and round, and stops."""
    frames = [tmp_path / f"{number}.png" for number in range(3)]
    for number, frame in enumerate(frames):
        Image.new("RGB", (9, 9), (100 * number, 0, 0)).save(frame)
    path = tmp_path / "progress.html"
    pictures.save_html(frames, path, captions=["one", "two", "three"], seconds_per_frame=0.25)
    found, asked = browser.run(
        path,
        """
        const found = [];
        const see = () => found.push([
          at("caption").textContent, at("toggle").textContent, Number(at("slider").value),
          [...document.querySelectorAll("img")].map((frame) => getComputedStyle(frame).display),
        ]);
        slide(at("slider"), 1); see();
        await wait(5000); see();
        click(at("toggle")); see();
        await wait(2100); see();
        await wait(400); see();
        click(at("toggle")); await wait(5000); see();
        click(at("toggle")); slide(at("slider"), 0); await wait(5000); see();
        return found;
        """,
        tmp_path,
    )
    assert asked == []
    assert [state[:3] for state in found] == [
        ["two", "Play", 1],
        ["two", "Play", 1],
        ["three", "Pause", 2],
        ["three", "Pause", 2],
        ["one", "Pause", 0],
        ["one", "Play", 0],
        ["one", "Play", 0],
    ]
    for _, _, number, shown in found:
        assert shown == ["block" if index == number else "none" for index in range(3)]


def test_requests_would_be_seen(tmp_path):
    """The check itself: a page that asks for a picture or a font elsewhere is told by it."""
    page = tmp_path / "page.html"
    page.write_text(
        "<html><head><style>@font-face { font-family: f; src: url(http://127.0.0.1:9/f.woff) } "
        "p { font-family: f }</style></head>"
        '<body><p>x</p><img src="http://127.0.0.1:9/a.png"></body></html>'
    )
    _, asked = browser.run(
        page, "await wait(100); fetch('http://127.0.0.1:9/b').catch(() => 0);", tmp_path
    )
    assert {"http://127.0.0.1:9/a.png", "http://127.0.0.1:9/f.woff"} <= set(asked)


def test_a_missing_browser_is_an_error(monkeypatch, tmp_path):
    """Without Chromium these tests fail and say what to do; they are not skipped."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        AssertionError, match="these tests need a browser: apt-get install chromium"
    ):
        browser.chromium()
