"""Settings that every test shares."""

from __future__ import annotations

import os

# Before NumPy is imported: its threads spin while they wait, which takes the cores from the tests
# beside them, and makes an FID ten times slower. Children inherit it.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import signal
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

FAULTS = Path(__file__).parent / "faults"

# Background jobs of a script and `nohup` begin with SIGINT ignored, which children would inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Of tiny nets, two threads wait for each other more than they work.
torch.set_num_threads(1)

# torch's first call of an operation is slow, so there is no deadline per example.
settings.register_profile("dev", max_examples=25, deadline=None)
settings.register_profile("ci", max_examples=25, deadline=None, derandomize=True)
settings.register_profile("thorough", max_examples=1000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if "CI" in os.environ else "dev"))


def named(config):
    """Return the files and folders that pytest was asked to run."""
    return [config.invocation_params.dir / str(arg).split("::")[0] for arg in config.args]


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist's own
def pytest_cmdline_main(config):
    """Run folders on all cores, unless ``-n`` or ``-m`` is given; files in this process."""
    folders = all(path.is_dir() for path in named(config))
    usual = "not gpu" in config.option.markexpr
    free = getattr(config.option, "numprocesses", 0) is None  # pytest-xdist is there, without -n
    if folders and usual and free and not hasattr(config, "workerinput"):
        config.option.numprocesses = "auto"
        config.option.dist = "worksteal"


def pytest_ignore_collect(collection_path, config):
    """Leave out the long tests of faults, unless they are named."""
    if collection_path == FAULTS:
        return not any(path.is_relative_to(FAULTS) for path in named(config)) or None
    return None


def pytest_collection_finish(session):
    """Let children's imports begin, if tests have any, while the first tests run."""
    processes = sys.modules.get("processes")
    modules = [getattr(item, "module", None) for item in session.items]
    if any(processes and getattr(module, "processes", None) is processes for module in modules):
        processes.prepare()
