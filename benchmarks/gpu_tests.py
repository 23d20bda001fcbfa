"""The tests that need a GPU, run so that each outcome is kept when it is known."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gpu_check import ROOT

Keep = Callable[[list[str], dict[str, list[str]]], object]
"""Takes the outcomes in words, and the tests of each outcome."""


class Outcomes:
    """A plugin of pytest that keeps the outcomes, even if a test takes all down with it.

    Args:
        keep: called after each test.
    """

    def __init__(self, keep: Keep) -> None:
        self._keep = keep
        self._tests: dict[str, list[str]] = {"passed": [], "failed": [], "skipped": []}
        self._chosen = 0
        self._runs = ""

    def _tell(self) -> None:
        counts = ", ".join(f"{len(names)} {what}" for what, names in self._tests.items())
        lines = [f"{counts}, of {self._chosen} tests."]
        lines += [f"failed: {name}" for name in self._tests["failed"]]
        if self._runs:
            lines.append(f"It runs, or was ended in, {self._runs}.")
        self._keep(lines, self._tests)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Count a module that cannot be imported as failed."""
        if report.failed:
            self._tests["failed"].append(f"{report.nodeid} (cannot be imported)")

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Count the tests."""
        self._chosen = len(session.items)
        self._tell()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Know which one runs."""
        self._runs = nodeid
        self._tell()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take in how a test went, or what is set up before it and torn down after it."""
        names = self._tests[report.outcome]
        if (report.when == "call" or not report.passed) and report.nodeid not in names:
            names.append(report.nodeid)

    def pytest_runtest_logfinish(self) -> None:
        """Know that it is over."""
        self._runs = ""
        self._tell()


def run(marker: str, words: str, folder: Path, keep: Keep) -> None:
    """Run the tests with a marker, and with these words in their names."""
    # The other modules need not be imported: they may want what is not installed.
    modules = sorted(p for p in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in p.read_text())
    code = pytest.main(
        [
            *map(str, modules), "-v", "-m", marker, "-k", words, "--durations=25",
            # One warning must not hide what else a test has to tell.
            "-W", "default", "--continue-on-collection-errors", "-p", "no:cacheprovider",
            f"--rootdir={ROOT}", f"-c{ROOT / 'pyproject.toml'}",
            f"--junitxml={folder / 'junit.xml'}",
        ],
        plugins=[Outcomes(keep)],
    )  # fmt: skip
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        sys.exit(f"pytest ended with {code!r}")
