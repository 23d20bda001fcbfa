"""What the benchmarks share: options, the device, the pictures, and the report at the end."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import floor
import jpegs
from measuring import first_line
from report import Report

REPORT = pytest.StashKey[Report]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the user choose the GPU, a file for the results, and a trial."""
    parser.addoption("--gpu", action="store_true", help="measure on CUDA rather than on the CPU")
    parser.addoption("--save", action="store_true", help="keep the figures in benchmarks/results")
    parser.addoption(
        "--quick", action="store_true", help="see in a minute or two that all works; no figures"
    )


def pytest_configure(config: pytest.Config) -> None:
    """End at once, with one line, if a GPU is asked for and there is none."""
    gpu, quick = config.getoption("--gpu"), config.getoption("--quick")
    if gpu and not torch.cuda.is_available():
        pytest.exit("--gpu needs a CUDA device, and PyTorch sees none here.", returncode=2)
    if quick and config.getoption("--save"):
        pytest.exit("--quick measures nothing worth saving; leave out --save.", returncode=2)
    # Frameworks and compilers warn of much that a benchmark should not fail for.
    config.addinivalue_line("filterwarnings", "ignore")
    folder = Path(__file__).parent / "results" if config.getoption("--save") else None
    command = shlex.join(["pytest", *config.invocation_params.args])
    config.stash[REPORT] = Report("cuda" if gpu else "cpu", command, quick, folder)


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    """Return the device to measure on."""
    return torch.device("cuda" if request.config.getoption("--gpu") else "cpu")


@pytest.fixture(scope="session")
def quick(request: pytest.FixtureRequest) -> bool:
    """Return whether this is a trial, with tiny nets and few blocks."""
    return bool(request.config.getoption("--quick"))


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Iterator[Report]:
    """Return the report; it is saved after each benchmark, so that what breaks off is not lost."""
    report = request.config.stash[REPORT]
    yield report
    report.save()


@pytest.fixture(scope="session")
def rates(device: torch.device, quick: bool) -> floor.Rates:
    """Return how fast the machine multiplies and copies."""
    return floor.Rates.measure(device, quick)


@pytest.fixture(scope="session")
def pictures(
    tmp_path_factory: pytest.TempPathFactory, device: torch.device, quick: bool
) -> list[Path]:
    """Return distinct JPEGs of CelebA's size, to be linked into folders on the same disk."""
    count = 40 if quick else 2000 if device.type == "cuda" else 500
    return jpegs.draw(tmp_path_factory.mktemp("drawn") / "faces", count)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Keep in the report what went wrong with a whole benchmark."""
    if call.excinfo is not None:
        report = item.config.stash[REPORT]
        report.failures.append(f"{item.name}: {first_line(call.excinfo.value)}")
        report.save()
    return (yield)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print the report."""
    report = config.stash[REPORT]
    if report.tables:
        terminalreporter.section("benchmarks")
        for line in [*report.header(), "", *report.lines()]:
            terminalreporter.write_line(line)
