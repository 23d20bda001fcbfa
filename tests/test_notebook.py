"""In a notebook: bars and pictures below the cell, each in one place; interrupts as in a shell."""

from __future__ import annotations

import queue
import re
import signal
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from jupyter_client import BlockingKernelClient, write_connection_file
from PIL import Image

import tinygan
from tinygan import data, hooks, pictures
from tinygan._run import notebook

import processes
from helpers import tiny_images, tiny_trainer

ROOT = Path(tinygan.__file__).parents[2]


class Display:
    """What a notebook shows in one place."""

    def __init__(self, picture):
        self.shown = [picture]

    def update(self, picture):
        """Replace what is shown."""
        self.shown.append(picture)


@pytest.fixture
def displays(monkeypatch):
    """Let this process be a notebook's kernel; return what it shows, place by place."""
    found = []

    def display(picture, *, display_id):
        assert display_id is True
        found.append(Display(picture))
        return found[-1]

    shell = SimpleNamespace(kernel=object())
    for name, members in {
        "IPython": {"get_ipython": lambda: shell, "version_info": (9, 0)},
        "IPython.display": {"display": display, "Image": lambda data, format: (data, format)},
    }.items():
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
        vars(sys.modules[name]).update(members)
    return found


def test_pictures_are_shown_each_in_one_place(displays, tmp_path, monkeypatch):
    """Each hook that draws replaces its picture; another call of fit has places of its own."""
    monkeypatch.setattr(hooks.logs.time, "monotonic", lambda: 0.0)  # or curves are drawn rarely
    trainer = tiny_trainer(
        hooks=[
            hooks.JSONLog(tmp_path),
            hooks.TrainingGrid(tmp_path),
            hooks.SampleGrid(tmp_path, every=1),
            hooks.Animation(tmp_path),
            hooks.LossPlot(tmp_path),
            hooks.RealBesideFake(tmp_path),
        ]
    )
    trainer.fit([tiny_images()], steps=3)
    assert sorted(len(display.shown) for display in displays) == [1, 1, 3, 4, 5]
    assert (((tmp_path / "progress.gif").read_bytes(), "gif")) in [d.shown[0] for d in displays]
    trainer.fit([tiny_images()], steps=4)
    assert len(displays) == 9  # the training images were complete
    for name in ("samples/step_000004", "loss_plot", "real_beside_fake"):
        written = pictures.fitting(tmp_path / f"{name}.png")
        assert any(display.shown[-1] == written for display in displays[5:]), name


def test_wide_pictures_are_shown_smaller(displays, tmp_path):
    """A grid of large images fits the page; the file keeps its size."""
    hook = hooks.SampleGrid(tmp_path)
    hook._save_picture(Image.new("RGB", (4400, 1000)), tmp_path / "wide.png")
    assert displays[0].shown[0].size == (1100, 250)
    with Image.open(tmp_path / "wide.png") as written:
        assert written.size == (4400, 1000)


def test_bars_are_shown_where_lines_are_printed(displays, tmp_path, capsys):
    """Both go to one stream: a bar of another would begin anew below each line."""
    for index in range(3):
        Image.new("RGB", (9, 9)).save(tmp_path / f"{index}.png")
    tiny_trainer(hooks=[hooks.ProgressBar(every=1), hooks.TutorialLog(every=1)]).fit(
        [tiny_images()], steps=2
    )
    data.pack(tmp_path, tmp_path / "quiet.npy", 8, workers=0, progress=False)
    captured = capsys.readouterr()
    assert "2/2" in captured.out
    assert "packing" not in captured.out
    assert "\r[1/2][0/1]\tLoss_D: " in captured.out  # where the bar was
    assert captured.err == ""
    bar = notebook.bar(desc="packing", total=3)
    bar.close()
    assert "packing:   0%" in capsys.readouterr().out


def test_a_terminal_of_ipython_is_no_notebook(displays, tmp_path, capsys):
    """It has a shell without a kernel; a script has none at all."""
    sys.modules["IPython"].get_ipython = SimpleNamespace
    assert not notebook.is_here()
    sys.modules["IPython"].get_ipython = lambda: None
    assert not notebook.is_here()
    trainer = tiny_trainer(hooks=[hooks.ProgressBar(every=1), hooks.SampleGrid(tmp_path)])
    trainer.fit([tiny_images()], steps=1)
    assert displays == []
    assert capsys.readouterr() == ("", "")


def messages(client, code, act=lambda message: None):
    """Run a cell; return its messages, each of which is shown to ``act`` as it comes."""
    identity, found, deadline = client.execute(code), [], time.monotonic() + 200
    while time.monotonic() < deadline:
        try:
            message = client.get_iopub_msg(timeout=5)
        except queue.Empty:
            continue
        if message["parent_header"].get("msg_id") != identity:
            continue
        found.append((message["msg_type"], message["content"]))
        act(message)
        if found[-1] == ("status", {"execution_state": "idle"}):
            return found
    raise AssertionError(f"the cell did not end: {found[-3:]}")


def pictures_in(found, kind):
    """Return the messages of a kind that have a picture."""
    return [c for name, c in found if name == kind and "image/png" in c["data"]]


LONG = """
trainer = tinygan.GANTrainer(
    tinygan.DCGANGenerator(8, base_channels=4),
    tinygan.DCGANDiscriminator(8, base_channels=4),
    hooks=[hooks.SampleGrid("long", every=1), hooks.Checkpoint("long", every=100_000)],
)
trainer.fit([torch.zeros(8, 3, 8, 8)], steps=100_000)
"""


def kernel(connection):
    """Be a kernel; for a child."""
    from ipykernel.kernelapp import IPKernelApp

    IPKernelApp.launch_instance(["-f", connection])


def test_the_first_example_in_a_real_kernel(tmp_path):
    """The README's lines show a bar and one grid; an interrupt finishes the step and saves."""
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    connection, _ = write_connection_file(str(tmp_path / "kernel.json"))
    client = BlockingKernelClient(connection_file=connection)
    client.load_connection_file()
    child = processes.Child(tmp_path, kernel, connection)
    try:
        client.start_channels()
        client.wait_for_ready(timeout=100)
        found = messages(client, code)
        assert [content for name, content in found if name == "error"] == []
        assert len(pictures_in(found, "display_data")) == 1
        assert len(pictures_in(found, "update_display_data")) == 3  # steps 10 and 20, and the end
        text = "".join(content["text"] for name, content in found if name == "stream")
        assert "20/20" in text or any("widget" in str(content) for _, content in found)
        assert "Warning" not in text

        pressed = []

        def press_once(message):
            if message["msg_type"] == "update_display_data" and not pressed:
                pressed.append(child.signal(signal.SIGINT))

        found = messages(client, LONG, press_once)
        errors = [content["ename"] for name, content in found if name == "error"]
        assert errors == ["KeyboardInterrupt"]
        found = messages(client, "print(trainer.between_steps, trainer.step)")
        text = "".join(content["text"] for name, content in found if name == "stream")
        between, step = text.split()
        assert between == "True"
        saved = sorted((tmp_path / "long" / "checkpoints").iterdir())
        assert saved[-1].name == f"step_{int(step):06d}.pt"
    finally:
        client.stop_channels()
        child.process.kill()
