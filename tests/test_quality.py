"""The hook that measures quality: what it writes and keeps, and that it does not change the run."""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import shutil
import urllib.error

import pytest
import torch
from torch import nn

import tinygan
from tinygan import data, hooks, metrics, seeds
from tinygan._run import checkpoint
from tinygan.distributed import Ranks

import recipes
from helpers import assert_identical, fingerprint, saved_in, tiny_images, tiny_trainer

BATCHES = list(tiny_images().split(8))


def watch(folder, *, every=2, count=8, **arguments):
    """Return a hook that compares what a small net makes of images."""
    net = nn.Sequential(nn.AvgPool2d(4), nn.Flatten())
    return hooks.Quality(folder, tiny_images(), every=every, count=count, module=net, **arguments)


class Script:
    """Measures what it is told to, in order; the first twice, for a hook tries once at first."""

    def __init__(self, *values):
        self.values = [*values[:1], *values]

    def __call__(self, real, fake):
        """Return the next value, under a name of its own."""
        return {"distance": self.values.pop(0)}


def lines(folder):
    """Return what was measured."""
    return [json.loads(line) for line in (folder / "quality.jsonl").read_text().splitlines()]


def saved_best(folder):
    """Return the best value that the best checkpoint knows."""
    (state,) = checkpoint.load(folder / "best.pt")["hooks"].values()
    return state["best"]["value"]


def test_it_changes_nothing(tmp_path):
    """A run that is measured and saved at every step ends in the bits of one that is not."""
    watched, alone = tiny_trainer(hooks=[watch(tmp_path, every=1)]), tiny_trainer()
    state = torch.get_rng_state()
    for trainer in (watched, alone):
        torch.set_rng_state(state)
        trainer.fit(data.Loader(tiny_images(), 8), epochs=2)
        assert torch.equal(torch.get_rng_state(), state)
    assert_identical(fingerprint(watched), fingerprint(alone))
    assert (tmp_path / "best.pt").exists()


def test_what_is_written(tmp_path):
    """Each line has the step and the four values of the features of images of the same noise."""
    hook = watch(tmp_path, count=1001)  # more than are made at a time
    trainer = tiny_trainer(hooks=[hook])
    trainer.fit(BATCHES, steps=4)
    assert [row["step"] for row in lines(tmp_path)] == [2, 4]
    assert [row["images"] for row in lines(tmp_path)] == [16, 32]

    parts = [
        trainer.sample(size, seed=seeds.mix(0, "quality", part))
        for part, size in enumerate((1000, 1))
    ]
    features = [metrics.features(images, hook.module) for images in (tiny_images(), parts)]
    expected = {"step": 4, "images": 32, **metrics.quality(*features)}
    assert lines(tmp_path)[-1] == expected


def test_the_average_is_measured_by_each_class_in_turn(tmp_path):
    """With an average and classes, what is measured is what ``sample`` gives by default."""
    measured = []

    def keep(real, fake):
        measured.append(fake)
        return {"distance": 1.0}

    hook = watch(tmp_path, every=3, count=7, measure=keep, best="distance")
    trainer = tinygan.GANTrainer(
        *recipes.nets(num_classes=recipes.CLASSES), ema_half_life=50, hooks=[hook]
    )
    trainer.fit(recipes.batches(), steps=3)
    z = seeds.mix(0, "quality", 0)
    turns = torch.arange(7) % recipes.CLASSES
    for average in (True, False):
        images = trainer.sample(7, seed=z, labels=turns, average=average)
        assert torch.equal(measured[-1], metrics.features(images, hook.module)) == average
    best = tinygan.GANTrainer(
        *recipes.nets(num_classes=recipes.CLASSES),
        ema_half_life=50,
        hooks=[watch(tmp_path, every=3, count=7, measure=keep, best="distance")],
    )
    best.resume(tmp_path / "best.pt")
    assert torch.equal(best.sample(7), trainer.sample(7))


def test_features_of_real_images_are_made_once(tmp_path):
    """They are made before the first step, and serve all calls of fit; or they are given."""
    asked = []

    class Real:
        def __iter__(self):
            asked.append(trainer.step)
            return iter([(tiny_images(), None)])

    arguments = {"every": 2, "count": 8, "module": nn.Flatten()}
    trainer = tiny_trainer(hooks=[hooks.Quality(tmp_path / "images", Real(), **arguments)])
    trainer.fit(BATCHES, steps=2)
    trainer.fit(BATCHES, steps=4)
    assert asked == [0]

    features = metrics.features(tiny_images(), nn.Flatten())
    given = tiny_trainer(hooks=[hooks.Quality(tmp_path / "features", features, **arguments)])
    given.fit(BATCHES, steps=4)
    assert lines(tmp_path / "images") == lines(tmp_path / "features")


def test_the_best_checkpoint_is_kept(tmp_path):
    """The file is of the step with the least value; a run goes on from it, and knows the value."""
    measure = Script(5.0, 3.0, 4.0, 3.0, float("nan"))
    hook = watch(tmp_path, measure=measure, best="distance")
    trainer = tiny_trainer(hooks=[hook])
    trainer.fit(BATCHES, steps=4)
    at_4 = fingerprint(trainer)
    trainer.fit(BATCHES, steps=10)
    assert [row["distance"] for row in lines(tmp_path)] == [5, 3, 4, 3, None]
    assert (hook.best_step, hook.best_value) == (4, 3.0)
    assert checkpoint.load(tmp_path / "best.pt")["step"] == 4

    again = watch(tmp_path, measure=Script(3.5, 2.5), best="distance")
    second = tiny_trainer(hooks=[again])
    second.resume(tmp_path / "best.pt")
    assert (second.step, again.best_step, again.best_value) == (4, 4, 3.0)
    assert_identical(fingerprint(second), at_4)
    second.fit(BATCHES, steps=6)
    assert checkpoint.load(tmp_path / "best.pt")["step"] == 4
    second.fit(BATCHES, steps=8)
    assert checkpoint.load(tmp_path / "best.pt")["step"] == 8
    assert [row["distance"] for row in lines(tmp_path)] == [5, 3, 3.5, 2.5]


def test_none_is_kept_if_none_is_wanted(tmp_path):
    """Without a name of the best value there is a log and no checkpoint."""
    tiny_trainer(hooks=[watch(tmp_path, best=None)]).fit(BATCHES, steps=2)
    assert [path.name for path in tmp_path.iterdir()] == ["quality.jsonl"]


def test_a_resumed_run_writes_the_same(tmp_path):
    """An interrupted run has the log and the best checkpoint of one that was left alone."""

    def run(folder, fail_at=None):
        class Fail(tinygan.Hook):
            def on_step_start(self, trainer):
                if trainer.step == fail_at:
                    raise KeyboardInterrupt

        listed = [Fail(), watch(folder), hooks.Checkpoint(folder, every=5)]
        trainer = tiny_trainer(hooks=listed)
        trainer.resume(folder)
        trainer.fit(BATCHES, steps=12)

    run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", fail_at=8)  # steps 6 to 8 are lost, of which two were measured
    assert lines(tmp_path / "parts")[-1]["step"] == 8
    run(tmp_path / "parts")

    whole, parts = (tmp_path / name for name in ("whole", "parts"))
    assert len(lines(whole)) == 6
    assert (whole / "quality.jsonl").read_bytes() == (parts / "quality.jsonl").read_bytes()
    best = [saved_in(folder / "best.pt") for folder in (whole, parts)]
    assert best[0] == best[1]


def test_a_refused_run_destroys_nothing(tmp_path):
    """A run that is refused before its first step leaves an earlier one's files as they are."""
    tiny_trainer(hooks=[watch(tmp_path)]).fit(BATCHES, steps=2)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="images must be in"):
        tiny_trainer(hooks=[watch(tmp_path)]).fit([tiny_images() * 300], steps=2)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_skipped_steps_are_never_the_best(tmp_path):
    """A step that was skipped is measured, and is not saved whatever its value."""

    class Poison(tinygan.Hook):
        def on_gradients(self, trainer, player):
            if trainer.step >= 2:
                next(player.module.parameters()).grad.fill_(float("nan"))

    hook = watch(tmp_path, measure=Script(5.0, 1.0), best="distance")
    tiny_trainer(hooks=[Poison(), hook]).fit(BATCHES, steps=4)
    assert (hook.best_step, hook.best_value) == (2, 5.0)
    assert checkpoint.load(tmp_path / "best.pt")["step"] == 2


def test_a_save_that_fails_is_told(tmp_path, monkeypatch, caplog):
    """The run goes on, and the best is still the one that is on the disk."""
    save = checkpoint.save

    def full(content, path):
        if content["step"] == 4:
            raise OSError(28, "No space left on device")
        save(content, path)

    monkeypatch.setattr(checkpoint, "save", full)
    hook = watch(tmp_path, measure=Script(5.0, 1.0, 3.0), best="distance")
    with caplog.at_level(logging.ERROR):
        tiny_trainer(hooks=[hook]).fit(BATCHES, steps=6)
    assert caplog.messages == [
        "NOT SAVED as the best at step 4, training continues: [Errno 28] No space left on device"
    ]
    assert (hook.best_step, hook.best_value) == (6, 3.0)
    assert saved_best(tmp_path) == 3.0


def test_a_run_that_goes_back_forgets_what_it_measured_since(tmp_path):
    """The state that is loaded has its own best, and its own lines."""
    hook = watch(tmp_path, measure=Script(5.0, 1.0, 4.0), best="distance")
    trainer = tiny_trainer(hooks=[hook])
    trainer.fit(BATCHES, steps=2)
    saved = io.BytesIO()
    torch.save(trainer.state_dict(), saved)
    trainer.fit(BATCHES, steps=4)
    assert hook.best_step == 4
    trainer.load_state_dict(torch.load(io.BytesIO(saved.getvalue()), weights_only=True))
    assert (hook.best_step, hook.best_value) == (2, 5.0)
    trainer.fit(BATCHES, steps=4)
    assert [row["distance"] for row in lines(tmp_path)] == [5, 4]
    assert saved_best(tmp_path) == 4.0


def refused(hook, *after):
    """Return what fit says of a hook, before the first step."""
    trainer = tiny_trainer(hooks=[hook, *after])
    with pytest.raises(ValueError) as error:
        trainer.fit(BATCHES, steps=2)
    assert trainer.step == 0
    return str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        {"best": "other"},
        {"count": 9},
        {"module": nn.Flatten()},
    ],
)
def test_the_best_of_another_value_does_not_count(tmp_path, change, caplog):
    """A run that goes on with another comparison searches its best anew, and says so."""

    def both(real, fake):
        return {"distance": 3.0, "other": 2.0}

    def hook(**arguments):
        given = {"real": tiny_images(), "module": nn.AvgPool2d(8), "best": "distance", "count": 8}
        return hooks.Quality(tmp_path, **given | arguments, measure=both, every=2)

    tiny_trainer(hooks=[hook()]).fit(BATCHES, steps=2)
    shutil.copy(tmp_path / "best.pt", tmp_path / "before.pt")
    again = {}
    for name, arguments in (("same", {}), ("changed", change)):
        again[name] = hook(**arguments)
        trainer = tiny_trainer(hooks=[again[name]])
        trainer.resume(tmp_path / "best.pt")
        with caplog.at_level(logging.WARNING):
            trainer.fit(BATCHES, steps=4)
        assert ("the search for the best starts again: [" in caplog.text) == bool(arguments)
    assert again["same"].best_step == 2
    assert again["changed"].best_step == 4
    trainer.load_state_dict(checkpoint.load(tmp_path / "before.pt"))  # as a run does that goes back
    trainer.fit(BATCHES, steps=4)
    assert again["changed"].best_step == 4


def test_errors_say_what_to_do(tmp_path):
    """Each wrong argument is told by name, value, rule and remedy."""
    assert refused(watch(tmp_path, count=3)).startswith("fake must have at least 4 rows, all fin")
    assert refused(watch(tmp_path), hooks.JSONLog(tmp_path)) == (
        "only Checkpoint may come after Quality, got JSONLog after it, whose state would be "
        "a step behind in best.pt; move Quality behind."
    )
    big = hooks.Quality(tmp_path, tiny_images() * 127, count=8, module=nn.Flatten())
    assert refused(big).startswith("images must be in [-1, 1], got [-127, 127]; scale bytes")
    for best in ("kdi", "recall"):
        with pytest.raises(ValueError, match=f"best must be fid, kid or None, .* got '{best}'"):
            watch(tmp_path, best=best)
    assert refused(watch(tmp_path, measure=Script(1.0))) == (
        "best must be one of the measured values, distance, got 'fid'."
    )
    parts = data.Loader(tiny_images(), 8, ranks=Ranks(0, 2))
    assert refused(hooks.Quality(tmp_path, parts, module=nn.Flatten())) == (
        "real must be all images, got a loader that gives each rank its part; make it with "
        "ranks=tinygan.distributed.ALONE."
    )
    for name in ("every", "count"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            watch(tmp_path, **{name: 0})


def test_missing_weights_end_the_run_before_its_first_step(tmp_path, monkeypatch):
    """Without a net of one's own, Inception's weights are asked for when fit begins."""

    def offline(*args, **kwargs):
        raise urllib.error.URLError("no such host")

    module = "torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url"
    monkeypatch.setattr(module, offline)
    trainer = tiny_trainer(hooks=[hooks.Quality(tmp_path, tiny_images())])
    with pytest.raises(ValueError, match="weights must be those of torch-fidelity's Inception net"):
        trainer.fit(BATCHES, steps=2)
    assert trainer.step == 0


def test_a_missing_extra_names_the_pip_command(tmp_path, monkeypatch):
    """Without torch-fidelity the hook fails where it is made, if it needs it."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    sentence = 'Quality needs torch_fidelity: pip install "tinygan[metrics]"'
    for make in (lambda: watch(tmp_path), lambda: hooks.Quality(tmp_path, tiny_images())):
        with pytest.raises(ImportError) as error:
            make()
        assert str(error.value) == sentence
    watch(tmp_path, measure=Script())


def own(real, fake):
    """Return a distance of features that need not be of one length."""
    return {"fid": float(real.mean() - fake.mean())}


@pytest.mark.parametrize(
    ("real", "module", "sentence"),
    [
        (
            tiny_images(),
            nn.Conv2d(1, 2, 3),
            "module must make a tensor (N, ...) of images (24, 3, 8, 8), but Conv2d r",
        ),
        (
            torch.zeros(24, 108),
            nn.Sequential(nn.Conv2d(3, 3, 9), nn.Flatten()),
            "module must make a tensor (N, ...) of images (8, 3, 8, 8), but Sequentia",
        ),
        (
            (tiny_images() + 1) / 2,
            nn.Flatten(),
            "images must be in [-1, 1], got [8.637e-05, 0.9999] and none below 0",
        ),
        (tiny_images() * float("nan"), nn.Flatten(), "images must be finite, got [nan, nan]; "),
        (
            tiny_images().permute(0, 2, 3, 1),
            nn.Flatten(),
            "images must be (N, C, H, W), got (24, 8, 8, 3); use images.permute(0, 3, 1, 2).",
        ),
        (tiny_images()[0], nn.Flatten(), "images must be (N, C, H, W), got (3, 8, 8); give one im"),
        (torch.zeros(24), nn.Flatten(), "images must be (N, C, H, W), got (24,); draw other"),
    ],
)
@pytest.mark.parametrize("measure", [metrics.quality, own])
def test_what_does_not_fit_is_found_before_the_first_step(
    tmp_path, real, module, sentence, measure
):
    """Images, features and nets that do not fit each other are named, whatever measures them."""
    hook = hooks.Quality(tmp_path, real, count=8, module=module, measure=measure)
    assert refused(hook).startswith(sentence)


def test_features_may_be_of_another_number(tmp_path):
    """As many images as are at hand are compared with as many as are asked for."""
    features = metrics.features(tiny_images(9), nn.Flatten())
    hook = hooks.Quality(tmp_path, features, every=1, count=8, module=nn.Flatten())
    tiny_trainer(hooks=[hook]).fit(BATCHES, steps=1)
    assert len(lines(tmp_path)) == 1


@pytest.mark.parametrize("real", [torch.zeros(24, 3, 16, 16), torch.zeros(24, 7)])
def test_images_of_another_size_are_found_before_the_first_step(real, tmp_path):
    """The measure itself tells it, on trial."""
    hook = hooks.Quality(tmp_path, real, count=8, module=nn.Flatten())
    assert refused(hook).startswith("real and fake must be features (N, D) and (M, D), got (24, ")


class Ends(nn.Module):
    """The end of a generator without tanh."""

    def forward(self, images):
        """Return images far beyond the range."""
        return images.tanh() * 3 if self.whole else images.tanh() * 100 + 150


@pytest.mark.filterwarnings("ignore:.*tanh")
def test_a_generator_that_leaves_the_range(tmp_path):
    """Its images are measured as files would have them; those of [0, 255] are refused at once."""
    measured = []

    def keep(real, fake):
        measured.append(fake)
        return {"fid": 1.0}

    trainer = tiny_trainer(hooks=[watch(tmp_path, every=1, measure=keep)])
    trainer.generator.main[-1] = Ends()
    Ends.whole = False
    with pytest.raises(ValueError, match=r"^images must be in \[-1, 1\], got \[.*; scale bytes"):
        trainer.fit(BATCHES, steps=1)
    assert trainer.step == 0

    Ends.whole = True
    trainer.fit(BATCHES, steps=1)
    made = trainer.sample(8, seed=seeds.mix(0, "quality", 0))
    expected = metrics.features(made.clamp(-1, 1), trainer.hooks[0].module)
    assert torch.equal(measured[-1], expected)
    Ends.whole = False  # later it is measured as well, and again by a run that goes on
    trainer.fit(BATCHES, steps=2)
    fresh = hooks.Quality(tmp_path, BATCHES[0], every=1, count=8, module=nn.Flatten(), measure=keep)
    again = tinygan.GANTrainer(*reversed([p.module for p in trainer.players]), hooks=[fresh])
    again.load_state_dict(trainer.state_dict() | {"hooks": []})
    again.fit(BATCHES, steps=3)
    assert [made.unique().tolist() for made in measured[1:]] == [[1.0]] * 3


def test_a_generator_that_diverges_is_told_and_not_measured(tmp_path, caplog):
    """The run may go back, so NaN in an image does not end it."""

    class Break(tinygan.Hook):
        def on_step_end(self, trainer, report):
            trainer.generator.main[-1].by = float("nan") if trainer.step == 1 else 1.0

    trainer = tiny_trainer(hooks=[Break(), watch(tmp_path, every=1)])
    trainer.generator.main[-1] = Times()
    trainer.fit(BATCHES, steps=2)
    assert "NOT MEASURED at step 1, training continues: images must be finite" in caplog.text
    assert [line["step"] for line in lines(tmp_path)] == [2]


class Times(nn.Module):
    """The end of a generator, times a number."""

    by = 1.0

    def forward(self, images):
        """Return the images in a range."""
        return images.tanh() * self.by


def test_a_measure_is_a_function(tmp_path):
    """Not the name of one."""
    with pytest.raises(TypeError, match=r"measure must be a function of \(real, fake\), got 'fid'"):
        hooks.Quality(tmp_path, tiny_images(), measure="fid", module=nn.Flatten())
