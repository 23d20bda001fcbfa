"""The example as several ranks; as torchrun itself starts and ends them, see tests/faults."""

from __future__ import annotations

import json
from pathlib import Path

import processes
import ranks

SCRIPT = Path(__file__).parents[1] / "examples" / "celeba_faces.py"
SMALL = ["--image-size", "16", "--ngf", "4", "--ndf", "4", "--batch-size", "8", "--num-epochs", "2"]


def assert_is_one_run(stdout, folder):
    """Assert that each line was said once, each step logged once, each picture drawn."""
    assert stdout.count("Done: ") == 1
    plan = "2 epochs of 5 steps on cpu."
    assert stdout.count(plan) == 1
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [(row["step"], row["images"]) for row in rows] == [(n, 8 * n) for n in range(1, 11)]
    assert (folder / "real_beside_fake.png").exists()


def test_the_example_is_one_run_on_two_ranks(tmp_path):
    """Rank 0 speaks and writes; the other is silent."""
    flags = [*SMALL, "--num-faces", "40", "--out", str(tmp_path / "out")]
    one, other = ranks.run(tmp_path, 2, processes.script, SCRIPT, flags)
    assert_is_one_run(one.stdout, tmp_path / "out")
    # PyTorch 2.10 prints a line for each group of ranks.
    spoken = [line for line in other.stdout.splitlines() if not line.startswith("[Gloo]")]
    assert (spoken, other.stderr) == ([], "")


def test_bad_flags_are_named_once_per_rank(tmp_path):
    """In one line each, which the others begin with their number."""
    flags = ["--image-size", "4", "--out", str(tmp_path / "out")]
    children = ranks.start(tmp_path, 2, processes.script, SCRIPT, flags)
    one, other = (child.wait() for child in children)
    assert (one.returncode, other.returncode) == (2, 2)
    sentence = "error: image_size must be at least 8, got 4; use 8 or more.\n"
    assert one.stderr == f"celeba_faces.py: {sentence}"
    assert other.stderr == f"celeba_faces.py, rank 1: {sentence}"
