"""Kills: a run that is killed again and again, and started again each time, is the same run."""

from __future__ import annotations

import random
import signal
import time

from tinygan import data, hooks
from tinygan._run import checkpoint

import processes
from helpers import flat, tiny_images, tiny_trainer


class Says(hooks.Checkpoint):
    """Appends a line to a file when a step is saved: what is said must never be lost."""

    def on_step_end(self, trainer, report):
        """Save, and say so."""
        super().on_step_end(trainer, report)
        say(trainer.step)


def say(step):
    """Append a line, in one write."""
    with open("said", "ab", buffering=0) as file:
        file.write(f"{step}\n".encode())


def trains(steps):
    """Train from where the folder stands; for a child."""
    say(0)
    trainer = tiny_trainer(hooks=[Says(".", every=1)])
    trainer.resume(".")
    trainer.fit(data.Loader(tiny_images(12), 4), steps=steps)


def test_a_run_that_is_killed_again_and_again_ends_the_same(tmp_path):
    """SIGKILL at any moment loses no step that was saved, and changes no bit of the run."""
    kill(4, tmp_path)


def kill(kills, tmp_path):
    """Kill a run so often, go on each time, and compare its end with that of another."""
    parts, whole = tmp_path / "parts", tmp_path / "whole"
    parts.mkdir()
    whole.mkdir()

    def said():
        return (parts / "said").read_text().split() if (parts / "said").exists() else []

    chance, newest = random.Random(kills), 0
    for _ in range(kills):
        lines = len(said()) + chance.randint(1, 4)
        child = processes.Child(parts, trains, 10**6)
        processes.eventually(lambda: len(said()) >= lines)  # noqa: B023 - called at once
        time.sleep(chance.uniform(0, 0.03))
        child.signal(signal.SIGKILL)
        assert child.wait().returncode == -signal.SIGKILL
        there = checkpoint.files(parts / "checkpoints")
        steps = [checkpoint.load(path)["step"] for path in there]
        assert max(steps, default=0) >= max(newest, *map(int, said()))
        newest = max(steps, default=0)
    for folder in (parts, whole):
        assert processes.run(folder, trains, newest + 3).returncode == 0
    ends = [checkpoint.load(checkpoint.find(run)[0]) for run in (parts, whole)]
    assert ends[0]["step"] == newest + 3
    assert flat(ends[0]) == flat(ends[1])
