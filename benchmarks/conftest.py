"""What the benchmarks share: the device, and a table at the end."""

from __future__ import annotations

import platform
from collections.abc import Callable

import pytest
import torch

ROWS = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the user choose the GPU."""
    parser.addoption("--gpu", action="store_true", help="measure on CUDA rather than on the CPU")


def pytest_configure(config: pytest.Config) -> None:
    """End at once, with one line, if a GPU is asked for and there is none."""
    config.stash[ROWS] = []
    if config.getoption("--gpu") and not torch.cuda.is_available():
        pytest.exit("--gpu needs a CUDA device, and PyTorch sees none here.", returncode=2)


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    """Return the device to measure on."""
    return torch.device("cuda" if request.config.getoption("--gpu") else "cpu")


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Return a function that adds a line to the table."""
    return request.config.stash[ROWS].append


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print the table, below what it was measured with."""
    rows = config.stash[ROWS]
    if rows:
        gpu = config.getoption("--gpu")
        machine = torch.cuda.get_device_name() if gpu else f"{torch.get_num_threads()} CPU threads"
        terminalreporter.section("images per second")
        terminalreporter.write_line(
            f"{machine}, PyTorch {torch.__version__}, Python {platform.python_version()}"
        )
        for row in rows:
            terminalreporter.write_line(row)
