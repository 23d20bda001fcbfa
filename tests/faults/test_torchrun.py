"""Ranks as torchrun starts and ends them: from a flag, after a signal, after one was killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time

import torch

from tests.test_torchrun import SCRIPT, SMALL, assert_is_one_run

import processes

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


def test_the_examples_flag_starts_two_ranks(tmp_path):
    """By torchrun, as one run."""
    status, stdout, stderr = run(
        tmp_path, sys.executable, SCRIPT, "--ngpu", 2, *SMALL, "--num-faces", 40
    )
    assert status == 0, stderr
    assert_is_one_run(stdout, tmp_path / "runs" / "faces")


def test_a_signal_to_torchrun_saves_and_the_same_command_goes_on(tmp_path):
    """Both ranks stop after the same step; what ends is torchrun, with a status of its own."""
    command = [sys.executable, SCRIPT, "--ngpu", 2, *SMALL, "--num-faces", 400]
    process = start(tmp_path, *command)
    log = tmp_path / "runs" / "faces" / "log.txt"
    processes.eventually(lambda: log.exists() and "[1/2][0/50]" in log.read_text())
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 1, stderr
    assert "got signal: 15" in stderr
    assert stderr.count("run the same command to go on") == 1
    status, stdout, stderr = run(tmp_path, *command)
    assert status == 0, stderr
    assert "Resuming from runs/faces/checkpoints/step_0000" in stdout


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


def test_torchrun_restarts_a_run_of_which_a_rank_was_killed(tmp_path):
    """From its newest checkpoint, to the same bits and log as if nothing had happened."""
    found = []
    for how in ("kill", "leave"):
        folder = tmp_path / how
        folder.mkdir()
        (folder / "script.py").write_text(ELASTIC)
        status, stdout, stderr = run(folder, *TORCHRUN, "--max-restarts", 1, "script.py", how)
        assert status == 0, stderr
        start = "run/checkpoints/step_000010.pt" if how == "kill" else None
        assert f"from {start}\n" in stdout
        assert stdout.count("from ") == 1  # besides, PyTorch 2.10 prints lines of its own
        if how == "kill":
            assert "failed (exitcode: -9) local_rank: 1 " in stderr
        found.append((torch.load(folder / "generator.pt"), (folder / "run/log.jsonl").read_text()))
    (killed, its_log), (left, log) = found
    assert all(torch.equal(killed[name], left[name]) for name in left)
    assert its_log == log


def test_torchrun_names_the_rank_that_was_killed(tmp_path):
    """All end, not well, within seconds; what was saved before is whole."""
    (tmp_path / "script.py").write_text(ELASTIC)
    begin = time.monotonic()
    status, stdout, stderr = run(tmp_path, *TORCHRUN, "script.py", "kill")
    assert status != 0
    assert "from " not in stdout
    assert re.search(r"rank +: 1 .*\n +exitcode +: -9 ", stderr), stderr
    # torchrun may end rank 0 before its traceback: the message is logged first.
    assert "rank 0 lost the connection to another rank, which has ended; " in stderr
    assert time.monotonic() - begin < 60
    torch.load(tmp_path / "run" / "checkpoints" / "step_000010.pt", weights_only=True)
