"""A long run takes no more memory, files and threads than a short one."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
import torch

from tinygan import data, hooks

import processes
from helpers import tiny_images, tiny_trainer


def used():
    """Return this process's memory in MiB, its open files and its threads."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    memory = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    return memory, len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))


def train(steps):
    """Train with all that writes, and compare what the two halves of the run use at least."""
    seen = []

    def look(trainer, report):
        # type(), because isinstance() makes lazy objects of other libraries wake up.
        tensors = [t for t in gc.get_objects() if issubclass(type(t), torch.Tensor)]
        assert not any(tensor.grad_fn for tensor in tensors)
        # Each has megabytes, and Python's collector comes seldom: they must not wait for it.
        assert sum(type(thing).__name__ == "Figure" for thing in gc.get_objects()) <= 1
        gc.collect()
        seen.append(used())

    trainer = tiny_trainer(
        hooks=[
            hooks.JSONLog("run"),
            hooks.TutorialLog("run"),
            hooks.SampleGrid("run", every=100),
            hooks.LossPlot("run"),
            hooks.every(steps // 20, look),
            hooks.Checkpoint("run", every=100),
        ]
    )
    trainer.fit(data.Loader(tiny_images(640), 8), steps=steps)
    assert len(seen) == 20
    (memory, files, threads), (memory_after, files_after, threads_after) = (
        map(min, zip(*half)) for half in (seen[2:10], seen[10:])
    )
    assert memory_after - memory < 10, seen  # MiB; a figure or a graph that stays is far more
    assert (files_after, threads_after) == (files, threads), seen


@pytest.mark.slow
def test_five_thousand_steps_are_flat(tmp_path):
    """With saving and sampling on, memory, file handles and threads do not grow, nor any graph."""
    ended = processes.run(tmp_path, train, 5000)
    assert ended.returncode == 0, ended.stderr
