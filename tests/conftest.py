"""Settings that every test shares."""

from __future__ import annotations

import os
import signal
import sys

import torch
from hypothesis import settings

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


def pytest_collection_finish(session):
    """Let children's imports begin, if tests have any, while the first tests run."""
    processes = sys.modules.get("processes")
    modules = [getattr(item, "module", None) for item in session.items]
    if any(processes and getattr(module, "processes", None) is processes for module in modules):
        processes.prepare()
