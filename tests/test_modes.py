"""The table of modes: its script in short."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tinygan import metrics

import mode_mixtures
import mode_stacked_mnist
import modes


@pytest.mark.parametrize("name", ["ring", "grid"])
def test_a_set_judges_its_own_data_as_perfect(name):
    """Of 2,500 real points all modes are found, and 98.9 % lie within three deviations."""
    mixture = {"ring": modes.ring, "grid": modes.grid}[name]()
    points = mixture.draw(2_500, torch.Generator().manual_seed(0))
    coverage = mixture.coverage(points)
    assert coverage.found == coverage.count == {"ring": 8, "grid": 25}[name]
    assert coverage.high_quality == pytest.approx(0.9889, abs=0.01)
    assert coverage.reverse_kl < 3 * coverage.floor
    assert isinstance(coverage, metrics.ModeCoverage)


class Digits(nn.Module):
    """A classifier for constructed digits: images of one channel, bright in pixel d for digit d."""

    def forward(self, images):
        """Return logits (N, 10)."""
        assert images.shape[1] == 1
        return images.flatten(1)


def test_stacked_digits():
    """Each channel is classified by itself; the first is the hundreds."""
    labels = torch.arange(1000).view(-1, 1) // torch.tensor([100, 10, 1]) % 10
    images = torch.eye(10)[labels].view(1000, 3, 1, 10) * 2 - 1
    assert torch.equal(mode_stacked_mnist.numbers(images, Digits()), torch.arange(1000))


def run(folder, *recipes, name="ring", seeds=1, steps=8, more=()):
    """Run the script, and return the results by recipe and seed, but for the time."""
    arguments = ["--sets", name, "--recipes", *recipes, "--seeds", str(seeds)]
    arguments += ["--steps", str(steps), "--out", str(folder), "--device", "cpu", *more]
    modes.main(arguments)
    results = {}
    for recipe in recipes:
        for seed in range(seeds):
            file = folder / name / str(steps) / recipe / str(seed) / "result.json"
            results[recipe, seed] = json.loads(file.read_text())
            assert results[recipe, seed].pop("seconds") > 0
    return results


@pytest.mark.filterwarnings("ignore:the generator's first images are in")  # R3GAN's has no tanh
def test_the_script_runs_once_and_makes_a_table_and_a_picture(tmp_path, capsys):
    """What is finished is not run again, and what is not is said to be not run."""
    first = run(tmp_path, "plain", "r3gan-ema", seeds=2)
    printed = capsys.readouterr().out
    assert printed.count("ring plain seed") == printed.count("ring r3gan-ema seed") == 2
    assert [result["samples"] for result in first.values()] == [2_500] * 4
    table = (tmp_path / "ring" / "8" / "table.md").read_text()
    assert "`python benchmarks/modes.py --sets ring --recipes plain --seeds 2 --steps 8`" in table
    assert "| wgan-gp | not run |" in table
    assert (tmp_path / "ring" / "8" / "picture.png").stat().st_size > 1000
    assert run(tmp_path, "plain", "r3gan-ema", seeds=2) == first
    assert "seed 0:" not in capsys.readouterr().out
    assert (tmp_path / "ring" / "8" / "table.md").read_text() == table


@pytest.fixture
def undrawn(monkeypatch):
    """Draw nothing: each run draws all runs' points once more."""
    empty = Image.new("RGB", (1, 1))
    monkeypatch.setattr(mode_mixtures.Mixture, "picture", lambda mixture, panels: empty)


def test_every_recipe_runs(tmp_path, undrawn):
    """Each gives a row, and no two are made of the same."""
    results = run(tmp_path, *modes.RECIPES, name="grid", steps=2)
    assert len({json.dumps(result["made_of"]) for result in results.values()}) == len(results)
    assert "not run" not in (tmp_path / "grid" / "2" / "table.md").read_text()


@pytest.mark.parametrize(
    ("name", "every", "step"),
    [
        ("every1", 1, None), ("every8", 8, None), ("every16", 16, None), ("finite", 1, 0.01),
        ("finite-small", 1, 0.001),
    ],
)  # fmt: skip
def test_recipes_that_differ_in_their_penalties_differ_in_nothing_else(name, every, step):
    """Those of r3gan have the same weights, names and rates, and are applied as they say."""
    ring = modes.ring()
    r3gan, other = (
        modes.trainer_of(ring, modes.RECIPES[recipe], 0, 8, [], "cpu")
        for recipe in ("r3gan", f"r3gan-{name}")
    )
    one, two = (trainer.state_dict()["configuration"] for trainer in (r3gan, other))
    changed = {key for key in one | two if one.get(key) != two.get(key)}
    assert {key.split(".")[-1] for key in changed} <= {"every", "cost", "draw"}
    for number in "01":
        assert two[f"penalties.{number}.every"] == str(every) != one[f"penalties.{number}.every"]
        wanted = "None" if step is None else f"tinygan.sampling.noise(deviation={step})"
        assert two[f"penalties.{number}.draw"] == wanted


@pytest.mark.filterwarnings("ignore:the generator's first images are in")
def test_a_stopped_run_goes_on_where_it_was(tmp_path, monkeypatch, undrawn):
    """Its result is that of a run that was left alone, rates and falling penalties included."""
    whole = run(tmp_path / "whole", "r3gan-sharp")
    count = modes.Clock.on_step_end

    def stop_once(clock, trainer, report):
        count(clock, trainer, report)
        if trainer.step == 5:
            monkeypatch.setattr(modes.Clock, "on_step_end", count)
            raise KeyboardInterrupt

    monkeypatch.setattr(modes.Clock, "on_step_end", stop_once)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", "r3gan-sharp")
    assert not list(tmp_path.glob("stopped/**/result.json"))
    assert run(tmp_path / "stopped", "r3gan-sharp") == whole


def test_a_finished_run_of_another_recipe_is_refused(tmp_path, monkeypatch, undrawn):
    """A table does not take old results for those of a recipe or rates that were changed."""
    plain = modes.RECIPES["plain"]
    run(tmp_path, "plain", steps=2)
    with monkeypatch.context() as patch:
        patch.setitem(mode_mixtures.RATES, "generator", 1.0)
        with pytest.raises(SystemExit, match=r"result\.json is of another rates; use another -"):
            run(tmp_path, "r1", steps=2)
    for change, told in (
        (lambda made: replace(made, ema_half_life=9.0), r"generator\.ema_half_life"),
        (lambda made: replace(made, discriminator=nn.Linear(2, 1)), ".*nets.*"),
    ):
        changed = lambda *given, change=change: change(plain(*given))  # noqa: E731 - in a loop
        monkeypatch.setitem(modes.RECIPES, "plain", changed)
        with pytest.raises(SystemExit, match=rf"result\.json is of another {told}; use another"):
            run(tmp_path, "r1", steps=2)


def test_stacked_mnist(tmp_path, monkeypatch):
    """From a file of digits to a table, by a classifier that must read well enough."""
    random = np.random.default_rng(0)
    parts = {"train": 128, "test": 50}
    images = {
        f"{p}_images": random.integers(0, 256, (n, 28, 28), np.uint8) for p, n in parts.items()
    }
    labels = {f"{p}_labels": random.integers(0, 10, n) for p, n in parts.items()}
    np.savez(tmp_path / "digits.npz", **images, **labels)
    data = ["--data", str(tmp_path / "digits.npz")]
    monkeypatch.setattr(modes.Stacked, "samples", 70)
    with pytest.raises(RuntimeError, match=r"classifier must read 99\.2% of the digits for tests"):
        run(tmp_path, "plain", name="stacked", steps=1, more=data)
    assert not (tmp_path / "classifier.pt").exists()  # noise cannot be read
    monkeypatch.setattr(mode_stacked_mnist, "LEAST_ACCURACY", 0.0)
    monkeypatch.setattr(mode_stacked_mnist, "_train", lambda net, digits, device: None)
    result = run(tmp_path, "r3gan-ema", name="stacked", steps=1, more=data)["r3gan-ema", 0]
    assert (result["count"], result["samples"], result["high_quality"]) == (1000, 70, None)
    assert 1 <= result["found"] <= 70
    table = (tmp_path / "stacked" / "1" / "table.md").read_text()
    assert "--steps 1 --data digits.npz" in table
    assert (tmp_path / "stacked" / "1" / "picture.png").stat().st_size > 1000
