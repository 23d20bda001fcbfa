"""Ranks as torchrun starts them: from a flag, after a signal, and again after one was killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import processes
import ranks

SCRIPT = Path(__file__).parents[1] / "examples" / "celeba_faces.py"
SMALL = ["--image-size", "16", "--ngf", "4", "--ndf", "4", "--batch-size", "8", "--num-epochs", "2"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def start(folder, *command):
    """Start a command in a folder."""
    return subprocess.Popen(
        list(map(str, command)), cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def run(folder, *command):
    """Run a command to its end; return its status and what it wrote."""
    process = start(folder, *command)
    stdout, stderr = process.communicate(timeout=180)
    return process.returncode, stdout, stderr


def assert_is_one_run(stdout, folder):
    """Assert that each line was said once, each step logged once, each picture drawn."""
    lines = stdout.splitlines()
    assert [line.split(":")[0] for line in lines].count("Done") == 1
    assert lines[1] == "2 epochs of 5 steps on 2 ranks on cpu, in batches of 8 images of 16 pixels."
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [(row["step"], row["images"]) for row in rows] == [(n, 8 * n) for n in range(1, 11)]
    assert (folder / "real_beside_fake.png").exists()


def test_the_example_is_one_run_on_two_ranks(tmp_path):
    """Rank 0 speaks and writes; the other is silent."""
    flags = [*SMALL, "--num-faces", "40", "--out", str(tmp_path / "out")]
    one, other = ranks.run(tmp_path, 2, processes.script, SCRIPT, flags)
    assert_is_one_run(one.stdout, tmp_path / "out")
    assert (other.stdout, other.stderr) == ("", "")


def test_bad_flags_are_named_once_per_rank(tmp_path):
    """In one line each, which the others begin with their number."""
    flags = ["--image-size", "4", "--out", str(tmp_path / "out")]
    children = ranks.start(tmp_path, 2, processes.script, SCRIPT, flags)
    one, other = (child.wait() for child in children)
    assert (one.returncode, other.returncode) == (2, 2)
    sentence = "error: image_size must be at least 8, got 4; use 8 or more.\n"
    assert one.stderr == f"celeba_faces.py: {sentence}"
    assert other.stderr == f"celeba_faces.py, rank 1: {sentence}"


@pytest.mark.slow
def test_the_examples_flag_starts_two_ranks(tmp_path):
    """By torchrun, as one run."""
    status, stdout, stderr = run(
        tmp_path, sys.executable, SCRIPT, "--ngpu", 2, *SMALL, "--num-faces", 40
    )
    assert status == 0, stderr
    assert_is_one_run(stdout, tmp_path / "runs" / "faces")


@pytest.mark.slow
def test_a_signal_to_torchrun_saves_and_the_same_command_goes_on(tmp_path):
    """Both ranks stop after the same step, and the status is the signal's."""
    command = [sys.executable, SCRIPT, "--ngpu", 2, *SMALL, "--num-faces", 400]
    process = start(tmp_path, *command)
    log = tmp_path / "runs" / "faces" / "log.txt"
    processes.eventually(lambda: log.exists() and "[1/2][0/50]" in log.read_text())
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, stderr
    assert stdout.count("the same command goes on") == 1
    status, stdout, stderr = run(tmp_path, *command)
    assert status == 0, stderr
    assert "Going on from runs/faces/checkpoints/step_0000" in stdout


ELASTIC = """
import os, signal, sys
import torch
import tinygan
from tinygan import data, distributed, hooks

class Kill(tinygan.Hook):
    def on_gradients(self, trainer, player):
        first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
        if sys.argv[1] == "kill" and first and trainer.ranks.rank == 1 and trainer.step == 13:
            os.kill(os.getpid(), signal.SIGKILL)

torch.manual_seed(0)
nets = tinygan.DCGANGenerator(8, base_channels=4), tinygan.DCGANDiscriminator(8, base_channels=4)
trainer = tinygan.GANTrainer(
    *nets, hooks=[Kill(), hooks.JSONLog("run"), hooks.Checkpoint("run", every=5)]
)
start = trainer.resume("run")
trainer.fit(data.Loader(data.CartoonFaces(64, 8), 8), steps=20)
if trainer.ranks.is_first:
    print("from", start)
    torch.save(trainer.generator.state_dict(), "generator.pt")
"""


@pytest.mark.slow
def test_torchrun_restarts_a_run_of_which_a_rank_was_killed(tmp_path):
    """From its newest checkpoint, to the same bits and log as if nothing had happened."""
    found = []
    for how in ("kill", "leave"):
        folder = tmp_path / how
        folder.mkdir()
        (folder / "script.py").write_text(ELASTIC)
        status, stdout, stderr = run(folder, *TORCHRUN, "--max-restarts", 1, "script.py", how)
        assert status == 0, stderr
        assert stdout == f"from {'run/checkpoints/step_000010.pt' if how == 'kill' else None}\n"
        if how == "kill":
            assert "LostRankError: rank 1 (process " in stderr
        found.append((torch.load(folder / "generator.pt"), (folder / "run/log.jsonl").read_text()))
    (killed, its_log), (left, log) = found
    assert all(torch.equal(killed[name], left[name]) for name in left)
    assert its_log == log
