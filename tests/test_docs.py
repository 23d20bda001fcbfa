"""The documentation: every block of Python in it runs, and every link leads somewhere."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

from tinygan import algorithms

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WITHOUT_PYTHON = [ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md"]


def blocks(page, language):
    """Return the fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    """The Python of a page runs from top to bottom, as a reader would run it."""
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for number, block in enumerate(blocks(page, "python")):
        exec(compile(block, f"{page.name}, block {number + 1}", "exec"), namespace)


def test_every_promise_is_held_by_a_test():
    """The page of promises names tests that exist, and each of its promises names one."""
    page = (ROOT / "docs" / "promises.md").read_text()
    held, _ = page.split("## What is not promised")
    promises = re.findall(r"^- \*\*.*?(?=^- |^#|\Z)", held, re.MULTILINE | re.DOTALL)
    assert len(promises) > 20
    for promise in promises:
        named = re.findall(r"`(?:faults/)?(test_\w+\.py)::(test_\w+)`", promise)
        assert named, promise
        for file, test in named:
            paths = (ROOT / "tests").rglob(file)  # in tests/faults too
            assert any(f"\ndef {test}(" in path.read_text() for path in paths), (file, test)


def test_there_are_blocks_to_run():
    """The test above has something to fail on."""
    assert sum(len(blocks(page, "python")) for page in PAGES) > 20


def test_links_lead_to_files():
    """Every relative link of a page is to a file that is there."""
    for page in PAGES + WITHOUT_PYTHON:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_readme_has_its_two_commands():
    """Each of the README's first two shell blocks is one command that installs and runs."""
    example, test = (block.strip() for block in blocks(ROOT / "README.md", "bash")[:2])
    for command, runs in ((example, "examples/celeba_faces.py"), (test, ".venv/bin/pytest")):
        assert "\n" not in command
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install -e ")
        assert command.endswith(runs)


def test_the_readme_shows_the_algorithm_as_it_is():
    """The excerpt of ``algorithms.gan`` is its inner function, line by line."""
    (shown,) = blocks(ROOT / "README.md", "py")
    source = textwrap.dedent(Path(algorithms.__file__).read_text().partition("def gan(")[2])
    assert textwrap.indent(shown, "    ").rstrip() in source
    assert shown.startswith("def algorithm(")
    assert shown.endswith("yield G\n")
