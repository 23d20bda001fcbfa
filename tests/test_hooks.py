"""The built-in hooks: what each writes, and that none changes the run."""

from __future__ import annotations

import base64
import copy
import errno
import importlib.util
import io
import json
import logging
import random
import re
import sys
import tempfile
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tqdm import tqdm

import tinygan
from tinygan import data, hooks, pictures
from tinygan.hooks.logs import TUTORIAL
from tinygan.hooks.run_folder import LogHook

import tutorial
from helpers import assert_identical, fingerprint, tiny_images, tiny_trainer


def readers(folder, every=2, curves=True):
    """Return one of each built-in hook that only watches and draws; curves take long to draw."""
    slow = [hooks.LossPlot(folder), hooks.TensorBoard(folder, every=every, images_every=every)]
    return [
        hooks.ProgressBar(every=every),
        hooks.TutorialLog(folder, every=every),
        hooks.JSONLog(folder, every=every),
        *(slow if curves else []),
        hooks.TrainingGrid(folder),
        hooks.SampleGrid(folder, every=every),
        hooks.Animation(folder),
        hooks.RealBesideFake(folder),
        hooks.SaveGenerator(folder, every=every),
        hooks.every(every, lambda trainer, report: None),
    ]


def mean_distance(real, fake):
    """Return something that is quickly measured."""
    return {"fid": float((real.mean(0) - fake.mean(0)).norm())}


def all_hooks(folder, every=2):
    """Return one of each built-in hook."""
    quality = hooks.Quality(
        folder,
        tiny_images(),
        every=every,
        count=8,
        module=torch.nn.Flatten(),
        measure=mean_distance,
    )
    return [*readers(folder, every), quality, hooks.Checkpoint(folder, every=every)]


def test_every_built_in_hook_is_among_all_hooks(tmp_path):
    """The tests below speak of every exported hook, but those that are there to change a run."""
    listed = all_hooks(tmp_path)
    assert {type(hook).__name__ for hook in listed} == set(hooks.__all__) - {"Schedule", "usual"}
    for hook in listed:
        # What writes does so on rank 0 alone, and says where.
        name = type(hook).__name__
        assert hook.first_rank_only == (name != "every")
        folders = {tmp_path, tmp_path / "checkpoints"}
        assert name in ("every", "ProgressBar") or hook.folder in folders


class Meddler(tinygan.Hook):
    """Reads everything and draws from every global generator, at every event of a step."""

    def on_step_start(self, trainer):
        """Meddle."""
        torch.rand(3), random.random(), np.random.rand(3)
        trainer.state_dict()

    def on_gradients(self, trainer, player):
        """Meddle."""
        torch.manual_seed(0)
        trainer.sample(3)
        trainer.noise(7, 3)
        float(trainer.real.mean())

    def on_update(self, trainer, player):
        """Meddle."""
        trainer.generate(trainer.fixed_noise)
        sum(p.grad.norm() for p in player.module.parameters())


def test_hooks_that_read_change_nothing(tmp_path):
    """With all built-in hooks and one that meddles, the weights end bit-identical to without."""
    watched = tiny_trainer(hooks=[*readers(tmp_path, every=1), Meddler()])
    alone = tiny_trainer()
    for trainer in (watched, alone):
        trainer.fit(data.Loader(tiny_images(), 6), steps=3)

    assert_identical(fingerprint(watched), fingerprint(alone))


def test_a_hook_that_writes_is_seen():
    """The comparison can fail: a hook that moves one weight changes the end."""

    class Nudge(tinygan.Hook):
        def on_update(self, trainer, player):
            with torch.no_grad():
                next(player.module.parameters()).add_(1e-4)

    nudged, alone = tiny_trainer(hooks=[Nudge()]), tiny_trainer()
    for trainer in (nudged, alone):
        trainer.fit([tiny_images()], epochs=1)
    with pytest.raises(AssertionError):
        assert_identical(fingerprint(nudged), fingerprint(alone))


def written(folder):
    """Return the bytes of every file that is the same in two runs of one seed, by name."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "tensorboard" not in path.parts
    }


def test_a_resumed_run_writes_the_same_files(tmp_path):
    """Logs, pictures and plots of a run saved and loaded anew are those of one left alone."""
    loader = data.Loader(tiny_images(96), 16)  # 6 batches, for each epoch costs a plot
    tiny_trainer(hooks=readers(tmp_path / "whole", every=3)).fit(loader, steps=10)
    saved = io.BytesIO()

    class SaveAndFail(tinygan.Hook):
        def on_step_end(self, trainer, report):
            if trainer.step == 4:
                torch.save(trainer.state_dict(), saved)
            if trainer.step == 6:  # the two steps since are lost, and done again
                raise KeyboardInterrupt

    first = tiny_trainer(hooks=[*readers(tmp_path / "parts", every=3), SaveAndFail()])
    with pytest.raises(KeyboardInterrupt):
        first.fit(loader, steps=10)
    second = tiny_trainer(hooks=readers(tmp_path / "parts", every=3))
    second.load_state_dict(torch.load(io.BytesIO(saved.getvalue()), weights_only=True))
    second.fit(data.Loader(tiny_images(96), 16), steps=10)

    whole, parts = written(tmp_path / "whole"), written(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert [name for name in whole if whole[name] != parts[name]] == []


def test_a_new_run_replaces_an_old_ones_files(tmp_path):
    """A run in the folder of an earlier, longer one leaves nothing of it."""
    for steps in (5, 3):
        listed = readers(tmp_path / "old", curves=False)
        tiny_trainer(hooks=listed).fit([tiny_images()], steps=steps)
    tiny_trainer(hooks=readers(tmp_path / "new", curves=False)).fit([tiny_images()], steps=3)
    assert written(tmp_path / "old") == written(tmp_path / "new")


def test_a_refused_run_destroys_nothing(tmp_path):
    """A run that is refused before its first step leaves an earlier one's files as they are."""
    tiny_trainer(hooks=readers(tmp_path, curves=False)).fit([tiny_images()], steps=3)
    before = written(tmp_path)
    with pytest.raises(ValueError, match="images must be in"):
        tiny_trainer(hooks=readers(tmp_path)).fit([tiny_images() * 300], steps=5)
    assert written(tmp_path) == before


def test_pictures_of_other_names_are_left_alone(tmp_path):
    """What is beside the sample grids but is none of them stays, and is no frame."""
    sample = hooks.SampleGrid(tmp_path)
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "step_000099 copy.png").write_bytes(b"kept")
    tiny_trainer(hooks=[sample]).fit([tiny_images()], steps=1)
    assert [frame.name for frame in sample.frames] == ["step_000000.png", "step_000001.png"]
    assert (tmp_path / "samples" / "step_000099 copy.png").read_bytes() == b"kept"


def test_the_tutorials_line(tmp_path, capsys):
    """The log line is the tutorial's to the character, at its steps, on screen and in the file."""
    reports = []
    trainer = tiny_trainer(
        hooks=[
            hooks.TutorialLog(tmp_path, every=2),
            hooks.every(
                1, lambda _, report: reports.append([float(report[name]) for name in TUTORIAL])
            ),
        ]
    )
    trainer.fit(list(tiny_images().split(8)), epochs=2)

    due = [(epoch, index) for epoch in range(2) for index in (0, 2)]
    expected = ["Starting Training Loop..."] + [
        tutorial.log_line(epoch, 2, index, 3, reports[3 * epoch + index]) for epoch, index in due
    ]
    assert (tmp_path / "log.txt").read_text().splitlines() == expected
    assert capsys.readouterr().out.splitlines() == expected


def test_the_tutorials_line_without_a_length(tmp_path, capsys):
    """Where the number of batches is not known, the line has a question mark for it."""

    class Endless:
        def __iter__(self):
            while True:
                yield tiny_images()

    tiny_trainer(hooks=[hooks.TutorialLog(), hooks.ProgressBar()]).fit(Endless(), steps=1)
    assert "[0/?][0/?]\tLoss_D: " in capsys.readouterr().out


def test_the_json_log(tmp_path):
    """There is one line per step, in order, with its counters and the report's values."""
    reports = []
    trainer = tiny_trainer(
        hooks=[
            hooks.JSONLog(tmp_path, every=4),
            hooks.every(1, lambda _, report: reports.append(report.floats())),
        ]
    )
    trainer.fit(list(tiny_images().split(8)), epochs=2)

    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows == [
        {"step": i + 1, "epoch": i // 3, "images": 8 * (i + 1), **report}
        for i, report in enumerate(reports)
    ]


def test_the_json_logs_state_holds_every_step(tmp_path):
    """A state taken between two writings, or a run that fails, loses none of the steps so far."""

    class Save(tinygan.Hook):
        def on_step_end(self, trainer, report):
            if trainer.step == 3:
                self.state = trainer.state_dict()

        def on_step_start(self, trainer):
            if trainer.step == 5:
                raise RuntimeError("at step 5")

    save = Save()
    with pytest.raises(RuntimeError, match="at step 5"):
        tiny_trainer(hooks=[hooks.JSONLog(tmp_path, every=50), save]).fit([tiny_images()], steps=9)
    lines = (tmp_path / "log.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == 5
    state = next(iter(save.state["hooks"].values()))
    assert (state["size"], state["pending"]) == (len(b"".join(lines[:3])), "")


def test_a_run_that_goes_back_forgets_the_steps_since(tmp_path):
    """Statistics that were not read yet, of steps that will be done again, are dropped."""
    hook = hooks.JSONLog(tmp_path)
    state = hook.state_dict()
    hook.on_step_end(tiny_trainer(), tinygan.Report(["loss_generator"], torch.ones(1)))
    hook.load_state_dict(state)
    assert hook.state_dict() == state


def test_sample_grids(tmp_path):
    """Grids are of the fixed noise, before the first step, at every n-th and at the end."""
    trainer = tiny_trainer(hooks=[hooks.SampleGrid(tmp_path, every=2)])
    trainer.fit([tiny_images()], epochs=5)

    names = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert names == [f"step_00000{step}.png" for step in (0, 2, 4, 5)]
    expected = pictures.grid(trainer.generate(trainer.fixed_noise))
    written = Image.open(tmp_path / "samples" / "step_000005.png")
    assert np.array_equal(np.asarray(written), np.asarray(expected))
    trainer.fit([tiny_images()], steps=7)  # the one at the end makes way
    names = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert names == [f"step_00000{step}.png" for step in (0, 2, 4, 6, 7)]


def test_the_animation(tmp_path):
    """The GIF and the page hold the sample grids in order; the page needs nothing from outside."""
    trainer = tiny_trainer(
        hooks=[hooks.SampleGrid(tmp_path, every=1), hooks.Animation(tmp_path)],
        # Large steps, so that each grid differs from the one before.
        generator_optimizer=lambda named: torch.optim.SGD(named, lr=3.0),
    )
    trainer.fit([tiny_images()], epochs=4)

    with Image.open(tmp_path / "progress.gif") as gif:
        assert (gif.n_frames, gif.info["loop"]) == (5, 0)
        durations = []
        for frame in range(gif.n_frames):
            gif.seek(frame)
            durations.append(gif.info["duration"])
    assert durations == [250, 250, 250, 250, 2250]
    page = (tmp_path / "progress.html").read_text()
    assert "250 + (index" in page
    assert re.findall(r'alt="step (\d+)"', page) == ["0", "1", "2", "3", "4"]
    for frame, encoded in zip(
        trainer.hooks[0].frames, re.findall(r"data:image/webp;base64,([^\"]+)", page)
    ):
        with Image.open(frame) as grid, Image.open(io.BytesIO(base64.b64decode(encoded))) as shown:
            error = np.asarray(grid, float) - np.asarray(shown.convert("RGB"), float)
        assert np.abs(error).mean() < 12  # another step's grid is further off than WebP's loss
    assert re.findall(r'(?:src|href)="([^:"]*)', page) == ["data"] * 5
    assert "://" not in page
    assert "$" not in page
    assert 'type="range"' in page


def test_long_animations_are_thinned(tmp_path, monkeypatch):
    """Of too many pictures evenly spaced ones remain, the first and the last too."""
    monkeypatch.setattr(hooks.images, "MAX_FRAMES", 3)
    trainer = tiny_trainer(hooks=[hooks.SampleGrid(tmp_path, every=1), hooks.Animation(tmp_path)])
    trainer.fit([tiny_images()], epochs=4)
    page = (tmp_path / "progress.html").read_text()
    assert re.findall(r'alt="step (\d+)"', page) == ["0", "2", "4"]


@pytest.mark.parametrize(
    ("hook", "other"),
    [
        (hooks.Animation, hooks.SampleGrid),
        (hooks.LossPlot, hooks.JSONLog),
    ],
)
def test_what_draws_from_another_hooks_files_comes_after_it(hook, other, tmp_path):
    """Without a hook of its folder before it that writes them, it fails before the first step."""
    folder = tmp_path / "run"
    for listed in (
        [hook(folder)],
        [other(tmp_path), hook(folder)],
        [hook(folder), other(folder)],
    ):
        trainer = tiny_trainer(hooks=listed)
        with pytest.raises(ValueError) as error:
            trainer.fit([tiny_images()], epochs=1)
        name, its = hook.__name__, other.__name__
        assert str(error.value) == (
            f"{name} must come after a {its} of the same folder, got none for {folder}; "
            f"put {its}({str(folder)!r}) before it in hooks."
        )
        assert trainer.step == 0


def test_a_folder_may_be_spelt_in_two_ways(tmp_path, monkeypatch):
    """As a path from here, and from the root."""
    monkeypatch.chdir(tmp_path)
    listed = [hooks.SampleGrid("run"), hooks.Animation(tmp_path / "run")]
    tiny_trainer(hooks=listed).fit([tiny_images()], epochs=1)
    assert (tmp_path / "run" / "progress.html").exists()


def early(count):
    """Return what the title says of fakes after few images."""
    return f" (after {count:,} images: too early to judge)"


@pytest.mark.parametrize(("limit", "note"), [(25, early(24)), (24, "")])
def test_fakes_that_are_too_young_to_judge_say_so(limit, note, tmp_path, monkeypatch):
    """Before so many images, 10,000 by default, their title tells that; later it does not."""
    assert hooks.images.EARLY == 10_000
    monkeypatch.setattr(hooks.images, "EARLY", limit)
    trainer = tiny_trainer(hooks=[hooks.RealBesideFake(tmp_path)])
    trainer.fit(list(tiny_images().split(8)), epochs=1)
    real, fake = pictures.grid(tiny_images()), pictures.grid(trainer.pictures())
    expected = pictures.titled(("Real Images", real), ("Fake Images" + note, fake))
    with Image.open(tmp_path / "real_beside_fake.png") as picture:
        assert np.array_equal(np.asarray(picture), np.asarray(expected))


def test_training_images_and_real_beside_fake(tmp_path):
    """The first shows the first real images, the second the last; of small batches 64 too."""
    images = tiny_images(72)
    trainer = tiny_trainer(hooks=[hooks.TrainingGrid(tmp_path), hooks.RealBesideFake(tmp_path)])
    trainer.fit(list(images.split(24)), epochs=1)

    last, fake = pictures.grid(images[8:]), pictures.grid(trainer.generate(trainer.fixed_noise))
    for name, expected in {
        "training_images": pictures.grid(images[:64]),
        "real_beside_fake": pictures.titled(
            ("Real Images", last), ("Fake Images" + early(72), fake)
        ),
    }.items():
        written = Image.open(tmp_path / f"{name}.png")
        assert np.array_equal(np.asarray(written), np.asarray(expected)), name


def test_training_images_are_those_of_the_runs_beginning(tmp_path):
    """A resumed run leaves the picture, and makes one if there is none; another run replaces it."""

    def shown(name, images, steps, saved=None):
        listed = [hooks.TrainingGrid(tmp_path / name)]
        trainer = tiny_trainer(hooks=listed)
        if saved is not None:
            trainer.load_state_dict(saved)
        trainer.fit(list(images.split(8)), steps=steps)
        assert listed[0].state_dict() == {}
        with Image.open(tmp_path / name / "training_images.png") as picture:
            return trainer, np.asarray(picture).tobytes()

    def grid(images):
        return np.asarray(pictures.grid(images)).tobytes()

    images, others = tiny_images(24), -tiny_images(24)
    first, found = shown("run", images, steps=2)
    assert found == grid(images[:16])
    first.fit(list(images.split(8)), steps=3)
    state = first.state_dict()
    assert shown("run", images, 5, state)[1] == grid(images)
    assert shown("elsewhere", images, 5, state)[1] == grid(images[:16])
    assert shown("run", others, 1)[1] == grid(others[:8])


def test_real_beside_fake_keeps_its_own_images(tmp_path):
    """A loader may fill one tensor again and again; what are no images is refused at once."""
    images = tiny_images(16).contiguous(memory_format=torch.channels_last)
    buffer = torch.empty_like(images[:8])

    class Refills(list):
        def __iter__(self):
            for part in images.split(8):
                yield buffer.copy_(part)

    hook = hooks.RealBesideFake(tmp_path)
    trainer = tiny_trainer(hooks=[hook])
    trainer.fit(Refills([0, 0]), epochs=1)
    real, fake = pictures.grid(images), pictures.grid(trainer.pictures())
    expected = pictures.titled(("Real Images", real), ("Fake Images" + early(16), fake))
    with Image.open(tmp_path / "real_beside_fake.png") as picture:
        assert np.array_equal(np.asarray(picture), np.asarray(expected))
    with pytest.raises(ValueError, match=r"images must be \(N, C, H, W\), got \(4, 2\); "):
        hook.on_step_start(SimpleNamespace(real=torch.zeros(4, 2)))


def held(thing):
    """Return the bytes of all tensors that a hook holds on to."""
    tensors = [
        each
        for value in vars(thing).values()
        for each in ([value, *value] if isinstance(value, list) else [value])
    ]
    return sum(t.untyped_storage().nbytes() for t in tensors if isinstance(t, torch.Tensor))


@pytest.mark.parametrize("size", [3, 24, 64, 100])
def test_hooks_hold_few_images(tmp_path, size):
    """Fewer than two batches, or 127 of smaller ones; and none once they are shown."""
    beside, training = hooks.RealBesideFake(tmp_path), hooks.TrainingGrid(tmp_path)
    most = []
    watch = hooks.every(1, lambda trainer, report: most.append(held(beside)))
    images = tiny_images(200)
    trainer = tiny_trainer(hooks=[beside, training, watch])
    trainer.fit(list(images.split(size)), epochs=1)
    assert max(most) <= 127 * 4 * 3 * 8 * 8
    assert held(beside) == held(training) == 0
    real, fake = pictures.grid(images[-64:]), pictures.grid(trainer.pictures())
    expected = pictures.titled(("Real Images", real), ("Fake Images" + early(200), fake))
    with Image.open(tmp_path / "real_beside_fake.png") as picture:
        assert np.array_equal(np.asarray(picture), np.asarray(expected))


def test_checkpoints_do_not_grow_with_pictures(tmp_path):
    """At 256 pixels one with all hooks that draw is as large as one without, but for their logs."""
    sizes = []

    class SaveAndEnd(tinygan.Hook):
        def on_step_end(self, trainer, report):
            trainer.save(tmp_path / "run.pt")
            sizes.append((tmp_path / "run.pt").stat().st_size)
            raise KeyboardInterrupt  # pictures of the end take long

    for listed in (readers(tmp_path / "pictures"), []):
        trainer = tinygan.GANTrainer(
            tinygan.DCGANGenerator(256, base_channels=1, latent_dim=4),
            tinygan.DCGANDiscriminator(256, base_channels=1),
            hooks=[*listed, SaveAndEnd()],
        )
        with pytest.raises(KeyboardInterrupt):
            trainer.fit([torch.zeros(2, 3, 256, 256)], steps=1)
    assert sizes[0] - sizes[1] < 3000  # one such image has 196,608 bytes


def nets(last):
    """Return nets of images of 8 pixels, of which G ends in something of one's own."""
    generator = tinygan.DCGANGenerator(8, latent_dim=5, base_channels=4)
    generator.main[-1] = last
    return generator.apply(tinygan.weights_init), tinygan.DCGANDiscriminator(8, base_channels=4)


class Scale(torch.nn.Module):
    """Multiplies by a number, and adds another."""

    def __init__(self, by, plus=0.0):
        super().__init__()
        self.by, self.plus = by, plus

    def forward(self, images):
        """Return the images scaled."""
        return images.tanh() * self.by + self.plus


@pytest.mark.filterwarnings("ignore:.*tanh")
def test_a_generator_that_leaves_the_range_is_shown_as_in_files(tmp_path):
    """Without tanh at its end, what is beyond [-1, 1] is cut."""
    trainer = tinygan.GANTrainer(*nets(Scale(9)), hooks=[hooks.SampleGrid(tmp_path)])
    trainer.generator.main[0].weight.data.mul_(1000)
    trainer.fit([tiny_images()], steps=1)
    made = trainer.pictures()
    assert made.min() < -2
    with Image.open(tmp_path / "samples" / "step_000001.png") as grid:
        assert np.array_equal(np.asarray(grid), np.asarray(pictures.grid(made.clamp(-1, 1))))


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (
            torch.full((4, 3, 8, 8), 200, dtype=torch.int64),
            "images must be in [-1, 1], got [200, 200]; scale bytes",
        ),
        (torch.full((4, 3, 8, 8), np.nan), "images must be finite, got [nan, nan]; "),
        (torch.zeros(4, 8, 8, 3), "images must be (N, C, H, W), got (4, 8, 8, 3); use images.perm"),
    ],
)
@pytest.mark.parametrize("resumed", [False, True])
def test_pictures_of_another_range_are_refused_before_the_first_step(
    made, sentence, resumed, tmp_path
):
    """A run that goes on finds out at once too, not at its next picture."""
    shown = [torch.zeros(4, 3, 8, 8) if resumed else made]
    players = [
        tinygan.Player(name, net)
        for name, net in zip(("generator", "discriminator"), nets(torch.nn.Tanh()))
    ]
    trainer = tinygan.Trainer(
        players[::-1],
        tinygan.algorithms.gan(),
        sample=lambda players: shown[-1],
        hooks=[hooks.SampleGrid(tmp_path)],
    )
    if resumed:
        trainer.fit([tiny_images()], steps=1)
        shown.append(made)
    with pytest.raises(ValueError) as error:
        trainer.fit([tiny_images()], steps=5)
    assert str(error.value).startswith(sentence)
    assert trainer.step == resumed


def test_an_odd_batch_does_not_end_a_run(tmp_path, caplog):
    """Later images are cut to the range, as a generator's are; NaN is told and not drawn."""
    images = tiny_images(16)
    for odd in (1.5, np.nan):
        folder = tmp_path / str(odd)
        listed = [hooks.TrainingGrid(folder), hooks.RealBesideFake(folder)]
        changed = images.clone()
        changed[-1, 0, 0, 0] = odd
        tiny_trainer(hooks=listed).fit(list(changed.split(8)), epochs=1)
    assert caplog.text.count("NOT WRITTEN, training continues: ") == 2
    with Image.open(tmp_path / "1.5" / "training_images.png") as grid:
        images[-1, 0, 0, 0] = 1
        assert np.array_equal(np.asarray(grid), np.asarray(pictures.grid(images)))
    assert sorted(path.name for path in (tmp_path / "nan").iterdir()) == ["training_images.png"]


@pytest.mark.filterwarnings("ignore:.*tanh")
def test_a_generator_that_drifts_bright_is_shown(tmp_path):
    """All its pixels are white, then; at the end too, and where a run goes on."""
    drift = hooks.every(2, lambda trainer, _: setattr(trainer.generator.main[-1], "plus", 30.0))
    listed = [drift, hooks.SampleGrid(tmp_path, every=2), hooks.RealBesideFake(tmp_path)]
    trainer = tinygan.GANTrainer(*nets(Scale(1)), hooks=listed)
    trainer.fit([tiny_images()], steps=3)
    trainer.fit([tiny_images()], steps=4)
    for step in (2, 4):
        with Image.open(tmp_path / "samples" / f"step_00000{step}.png") as grid:
            assert np.asarray(grid)[5, 5].tolist() == [255, 255, 255]
    new = tinygan.GANTrainer(*nets(Scale(1, 30.0)), hooks=[hooks.SampleGrid(tmp_path / "new")])
    with pytest.raises(ValueError, match=r"^images must be in \[-1, 1\], got \[.*; scale bytes"):
        new.fit([tiny_images()], steps=1)


def test_a_generator_that_diverges_is_told_and_not_drawn(tmp_path, caplog):
    """The run may go back, so NaN in a picture does not end it; a black picture would hide it."""

    class Break(tinygan.Hook):
        def on_step_end(self, trainer, report):
            trainer.generator.main[-1].plus = float("nan") if trainer.step == 2 else 0.0

    trainer = tinygan.GANTrainer(
        *nets(Scale(1)), hooks=[Break(), hooks.SampleGrid(tmp_path, every=1)]
    )
    with caplog.at_level(logging.ERROR):
        trainer.fit([tiny_images()], steps=3)
    assert f"NOT WRITTEN, training continues: {tmp_path / 'samples'}: images must be" in caplog.text
    names = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert names == ["step_000000.png", "step_000001.png", "step_000003.png"]


WRITERS = [
    hooks.Checkpoint, hooks.JSONLog, hooks.TrainingGrid, hooks.SampleGrid, hooks.Animation,
    hooks.LossPlot, hooks.RealBesideFake, hooks.TensorBoard,
    lambda folder: hooks.Quality(folder, tiny_images(), module=torch.nn.Flatten()),
]  # fmt: skip


@pytest.mark.parametrize("make", WRITERS)
@pytest.mark.parametrize("folder", [None, 5, "", b"run"])
def test_folders_are_paths(make, folder):
    """What is none is refused where the hook is made, by the hook's name."""
    with pytest.raises(ValueError) as error:
        make(folder)
    rule = (
        f"'s folder must name a file or folder, got {folder!r}; use 'runs/faces', or '.' for here."
    )
    assert str(error.value).removesuffix(rule).isidentifier()


def test_the_tutorials_log_may_have_no_folder():
    """It prints all the same; but a folder without a name is none."""
    assert hooks.TutorialLog().folder is None
    with pytest.raises(ValueError, match=r"^TutorialLog's folder must name a file"):
        hooks.TutorialLog("")


@pytest.mark.parametrize("make", WRITERS[1:4])
def test_two_of_a_class_need_two_folders(make, tmp_path, monkeypatch):
    """They would write over each other; the folder may be spelt in two ways."""
    monkeypatch.chdir(tmp_path)
    trainer = tiny_trainer(hooks=[make("run"), make(tmp_path / "run")])
    name = type(trainer.hooks[0]).__name__
    with pytest.raises(ValueError, match=rf"run must have one {name}, got two; leave one out\."):
        trainer.fit([tiny_images()], steps=1)
    tiny_trainer(hooks=[make("one"), make("two")]).fit([tiny_images()], steps=1)


def test_a_hook_without_a_folder_is_in_none():
    """It is not taken for a second one of the current folder."""
    both = [hooks.TutorialLog(), hooks.TutorialLog(".")]
    assert hooks.TutorialLog.on_fit_start(both[1], tiny_trainer(hooks=both)) is None


@pytest.mark.parametrize(
    "make",
    [
        lambda every: hooks.ProgressBar(every=every),
        lambda every: hooks.TutorialLog(every=every),
        lambda every: hooks.JSONLog("run", every=every),
        lambda every: hooks.SampleGrid("run", every=every),
        lambda every: hooks.TensorBoard("run", every=every),
        lambda every: hooks.Checkpoint("run", every=every),
        lambda every: hooks.every(every, print),
    ],
)
@pytest.mark.parametrize("every", [0, -1, 1.5, None, True])
def test_every_is_a_count(make, every):
    """Steps are counted from one."""
    with pytest.raises(ValueError, match=r"^(every|n) must be (at least 1|an int), got .*; use 1 "):
        make(every)


def test_before_the_first_step_there_are_no_training_images(tmp_path):
    """A run that is stopped there leaves out both pictures, or leaves those of another run."""

    class Stop(tinygan.Hook):
        def on_fit_start(self, trainer):
            trainer.stop("told to")

    def stopped():
        listed = [hooks.TrainingGrid(tmp_path), hooks.RealBesideFake(tmp_path), Stop()]
        tiny_trainer(hooks=listed).fit([tiny_images()], steps=1)
        return {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    assert stopped() == {}
    another = {"training_images.png": b"1", "real_beside_fake.png": b"2"}
    for name, content in another.items():
        (tmp_path / name).write_bytes(content)
    assert stopped() == another


def test_the_loss_plot(tmp_path, monkeypatch):
    """The plot has both losses of every step, needs no display, and comes at each epoch's end."""
    from matplotlib.figure import Figure

    drawn = []
    save = Figure.savefig

    def spy(figure, file, **options):
        lines = figure.axes[0].get_lines()
        drawn.append({line.get_label(): list(line.get_ydata()) for line in lines})
        names = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        assert names == ["generator", "discriminator"]
        save(figure, file, **options)

    monkeypatch.setattr(Figure, "savefig", spy)
    monkeypatch.setattr(hooks.logs.time, "monotonic", lambda: 0.0)
    reports = []
    keep = hooks.every(1, lambda _, report: reports.append(report.floats()))
    trainer = tiny_trainer(hooks=[hooks.JSONLog(tmp_path), hooks.LossPlot(tmp_path), keep])
    trainer.fit(list(tiny_images().split(12)), epochs=2)

    assert [len(lines["generator"]) for lines in drawn] == [2, 4, 4]
    assert drawn[-1] == {
        "generator": [report["loss_generator"] for report in reports],
        "discriminator": [report["loss_discriminator"] for report in reports],
    }
    with Image.open(tmp_path / "loss_plot.png") as picture:
        assert picture.size == (1000, 800)


def test_a_loss_plot_is_whole_or_not_there(tmp_path, monkeypatch, caplog):
    """A disk that is full leaves the older plot, and nothing half done."""
    trainer = tiny_trainer(hooks=[hooks.JSONLog(tmp_path), hooks.LossPlot(tmp_path)])
    trainer.fit([tiny_images()], steps=1)
    before = (tmp_path / "loss_plot.png").read_bytes()

    def fills_up(image, file, name, *options):
        file.write(b"half a picture")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setitem(Image.SAVE, "PNG", fills_up)
    with pytest.raises(OSError, match="No space left"):
        trainer.hooks[1].on_fit_end(trainer)
    assert (tmp_path / "loss_plot.png").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.jsonl", "loss_plot.png"]


def test_a_plot_that_takes_long_is_drawn_more_rarely(tmp_path, monkeypatch):
    """It takes at most a twentieth of a run; the run's end is always drawn."""
    clock, drawn = [0.0], []

    def draws(plot):
        clock[0] += 1  # second
        drawn.append(trainer.epoch)

    def passes(trainer, report):
        clock[0] += 5

    monkeypatch.setattr(hooks.LossPlot, "_draw", draws)
    monkeypatch.setattr(hooks.logs.time, "monotonic", lambda: clock[0])
    listed = [hooks.JSONLog(tmp_path), hooks.LossPlot(tmp_path), hooks.every(1, passes)]
    trainer = tiny_trainer(hooks=listed)
    trainer.fit([tiny_images()], epochs=10)
    assert drawn == [1, 5, 9, 10]
    trainer.fit([tiny_images()], epochs=11)
    assert drawn == [1, 5, 9, 10, 11, 11]


def test_the_curves_of_a_log(tmp_path, monkeypatch):
    """What is not finite is a gap; long curves are means of neighbours; what is no row is none."""
    plot = hooks.LossPlot(tmp_path)
    plot.on_fit_end(tiny_trainer())
    assert list(tmp_path.iterdir()) == []  # stopped before the first step

    monkeypatch.setattr(hooks.logs, "MAX_POINTS", 3)
    rows = [{"step": i + 1, "epoch": 0, "images": i, "loss_critic": i * i} for i in range(7)]
    rows[1]["r1"], rows[4]["r1"] = 0.5, None
    broken = ["", "[1]", '{"loss_critic": 1}', '{"step": 8, "loss_critic": "x"}', '{"step": 8, "lo']
    (tmp_path / "log.jsonl").write_text("\n".join([*map(json.dumps, rows), *broken]))
    plot.on_fit_end(tiny_trainer())
    above, below = plot._figure.axes
    (critic,), (r1,) = above.get_lines(), below.get_lines()
    assert [line.get_label() for line in (critic, r1)] == ["critic", "r1"]
    assert critic.get_xydata().tolist() == [[2, 5 / 3], [4.5, 12.5], [6.5, 30.5]]
    assert repr(r1.get_xydata().tolist()) == "[[2.0, 0.5], [5.0, nan]]"
    for row in rows:  # of neighbours, those that are finite count
        row["loss_critic"] = None if row["step"] in (1, 4, 5) else row["loss_critic"]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, rows)))
    plot.on_fit_end(tiny_trainer())
    above, below = plot._figure.axes
    (critic,) = above.get_lines()
    assert repr(critic.get_xydata().tolist()) == "[[2.5, 2.5], [4.5, nan], [6.5, 30.5]]"
    for axes in (above, below):
        assert axes.get_legend().get_window_extent().x0 >= axes.get_window_extent().x1
    (tmp_path / "log.jsonl").write_text(json.dumps(rows[0]) + "\n")  # of which none is below
    plot.on_fit_end(tiny_trainer())
    assert len(plot._figure.axes) == 1


def test_tensorboard(tmp_path):
    """TensorBoard finds every n-th step's statistics, and the sample grids."""
    reports = []
    trainer = tiny_trainer(
        hooks=[
            hooks.TensorBoard(tmp_path, every=2, images_every=4),
            hooks.every(2, lambda _, report: reports.append(float(report["loss_discriminator"]))),
        ]
    )
    trainer.fit([tiny_images()], epochs=5)

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert sorted(events.Tags()["scalars"]) == [
        "d_fake", "d_fake_after", "d_real", "loss_discriminator", "loss_generator"
    ]  # fmt: skip
    assert [event.step for event in events.Scalars("loss_discriminator")] == [2, 4]
    assert [event.value for event in events.Scalars("loss_discriminator")] == pytest.approx(reports)
    images = events.Images("samples")
    assert [event.step for event in images] == [4, 5]
    with Image.open(io.BytesIO(images[-1].encoded_image_string)) as shown:
        expected = pictures.grid(trainer.generate(trainer.fixed_noise))
        assert np.array_equal(np.asarray(shown), np.asarray(expected))


def test_tensorboard_after_a_resume(tmp_path):
    """Steps that a failed run did after its last save are purged, and done again once."""

    class Fail(tinygan.Hook):
        def on_step_end(self, trainer, report):
            if trainer.step == 2:
                self.state = copy.deepcopy(trainer.state_dict())
            if trainer.step == 4:
                raise RuntimeError("at step 4")

    fail = Fail()
    first = tiny_trainer(hooks=[hooks.TensorBoard(tmp_path, every=1), fail])
    with pytest.raises(RuntimeError, match="at step 4"):
        first.fit([tiny_images()], steps=6)
    time.sleep(1)  # TensorBoard reads its files in the order of the second that they are named by
    second = tiny_trainer(hooks=[hooks.TensorBoard(tmp_path, every=1)])
    second.load_state_dict(fail.state)
    second.fit([tiny_images()], steps=6)

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss_discriminator")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("hook", "module", "extra"),
    [
        (hooks.LossPlot, "matplotlib", "plots"),
        (hooks.TensorBoard, "tensorboard", "tensorboard"),
    ],
)
def test_a_missing_extra_names_the_pip_command(hook, module, extra, monkeypatch, tmp_path):
    """Without its library a hook fails where it is made, in one line, with what to install."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == module else find_spec(name)
    )
    with pytest.raises(ImportError) as error:
        hook(tmp_path)
    assert str(error.value) == f'{hook.__name__} needs {module}: pip install "tinygan[{extra}]"'


def test_the_progress_bar_is_quiet_without_a_terminal(capsys):
    """Nothing is printed where there is no terminal."""
    tiny_trainer(hooks=[hooks.ProgressBar(every=1)]).fit([tiny_images()], epochs=3)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_the_progress_bar_in_a_terminal(monkeypatch):
    """In a terminal the bar counts to the run's last step and shows both losses."""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    trainer = tiny_trainer(hooks=[hooks.ProgressBar(every=1)])
    trainer.fit([tiny_images()], steps=2)
    trainer.fit([tiny_images()], epochs=4)

    first, last = (bar.rpartition("\r")[2] for bar in terminal.getvalue().rstrip("\n").split("\n"))
    assert "2/2" in first
    assert "4/4" in last
    assert last.index("loss_generator=") < last.index("d_real=")


def test_the_progress_bar_closes_after_an_exception():
    """A failed run leaves no bar open behind it, not even one that fails before its start."""

    class Fail(tinygan.Hook):
        def on_fit_start(self, trainer):
            raise RuntimeError("at the start")

    for listed in ([Fail(), hooks.ProgressBar()], [hooks.ProgressBar(), Fail()]):
        with pytest.raises(RuntimeError, match="at the start"):
            tiny_trainer(hooks=listed).fit([tiny_images()], epochs=1)
    assert not getattr(tqdm, "_instances", [])


def test_a_full_or_read_only_disk_fails_before_the_first_step(tmp_path, monkeypatch):
    """A folder that is there but takes no file is found out before anything is trained."""

    def refuse(dir):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    trainer = tiny_trainer(hooks=[hooks.SampleGrid(tmp_path)])
    with pytest.raises(ValueError, match=r"folder must be writable, got .*Read-only file system"):
        trainer.fit([tiny_images()], epochs=1)
    assert trainer.step == 0


def test_a_folder_that_cannot_be_written_fails_before_the_first_step(tmp_path):
    """A folder below a file cannot be made: it is named before anything is trained."""
    (tmp_path / "file").write_text("in the way")
    trainer = tiny_trainer()
    writers = [hook for hook in all_hooks(tmp_path / "file" / "run") if hasattr(hook, "folder")]
    for hook in writers:
        if not isinstance(hook, (hooks.Checkpoint, hooks.Quality)):
            with pytest.raises(ValueError, match=r"folder must be writable, got .*choose another"):
                hook.on_fit_start(trainer)


def test_a_disk_that_is_full_for_a_while_spoils_no_picture(tmp_path, monkeypatch, caplog):
    """Pictures are whole or not there, lines are written later, and the run ends as ever."""
    write = PngImagePlugin._save

    def fills_up(image, file, name):
        if trainer.step in (2, 3):
            file.write(b"half a picture")
            raise OSError(errno.ENOSPC, "No space left on device")
        write(image, file, name)

    trainer = tiny_trainer(
        hooks=[
            hooks.SampleGrid(tmp_path, every=1),
            hooks.Animation(tmp_path),
            hooks.TrainingGrid(tmp_path),
            hooks.RealBesideFake(tmp_path),
        ]
    )
    monkeypatch.setitem(Image.SAVE, "PNG", fills_up)
    with caplog.at_level(logging.ERROR):
        trainer.fit([tiny_images()], steps=5)
    assert f"NOT WRITTEN, training continues: {tmp_path / 'samples'}" in caplog.text
    names = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert names == [f"step_00000{step}.png" for step in (0, 1, 4, 5)]
    assert (tmp_path / "progress.gif").exists()


def test_lines_that_the_disk_did_not_take_are_written_later(tmp_path, monkeypatch, caplog):
    """A log is the same after a while without space; if that lasts to the end, it is an error."""
    flush, full = LogHook._flush, {2, 3, 8}

    def fills_up(hook):
        if trainer.step in full:
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(hook)

    monkeypatch.setattr(LogHook, "_flush", fills_up)
    trainer = tiny_trainer(hooks=[hooks.JSONLog(tmp_path, every=1)])
    with caplog.at_level(logging.ERROR):
        trainer.fit([tiny_images()], steps=5)
    assert f"NOT WRITTEN, training continues: {tmp_path / 'log.jsonl'}" in caplog.text
    steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5]
    with pytest.raises(OSError, match="No space left"):
        trainer.fit([tiny_images()], steps=8)
