"""The table of modes: its script in short, for the sets that need no data."""

from __future__ import annotations

import json

import pytest
import torch

from tinygan import metrics

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


def test_the_script_runs_once_and_makes_a_table_and_a_picture(tmp_path, capsys):
    """What is finished is not run again, and what is not is said to be not run."""
    arguments = ["--sets", "ring", "--recipes", "plain", "r3gan-ema", "--seeds", "2"]
    arguments += ["--steps", "8", "--out", str(tmp_path), "--device", "cpu"]
    modes.main(arguments)
    first = capsys.readouterr().out
    assert first.count("ring plain seed") == first.count("ring r3gan-ema seed") == 2
    result = json.loads((tmp_path / "ring" / "8" / "plain" / "1" / "result.json").read_text())
    assert result["samples"] == 2_500
    table = (tmp_path / "ring.md").read_text()
    assert "`python benchmarks/modes.py --sets ring --recipes plain --seeds 2 --steps 8`" in table
    assert "| wgan-gp | not run |" in table
    assert (tmp_path / "ring.png").stat().st_size > 1000
    modes.main(arguments)
    assert "seed 0:" not in capsys.readouterr().out
    assert (tmp_path / "ring.md").read_text() == table
