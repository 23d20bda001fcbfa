"""The house: which module may know which, what is public, and what importing does."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import tinygan

ROOT = Path(tinygan.__file__).parent

# The rooms, from the cellar up, and between them the pieces that a user composes. Imports point
# down, or sideways within one place; rooms have no neighbours. What is deeper is usable without
# what is above.
HOUSE = [
    {"distributed", "seeds", "version"},
    {"_run"},
    {"schedules"},
    {"nets"},
    {
        "augmentations", "average", "batch", "generators", "latents", "losses", "optimizers",
        "penalties", "pictures", "report", "sampling",
    },
    {"data"},
    {"metrics"},
    {"explorer", "exporting", "inversion"},
    {"algorithms", "player"},
    {"_execution"},
    {"run"},
    {"hook"},
    {"hooks"},
    {"gan_trainer", "trainer"},
    {"hub", "recipes"},
    {"cli"},
    {"__init__", "__main__"},
]  # fmt: skip
LEVELS = {name: level for level, names in enumerate(HOUSE) for name in names}

# What a reader of a GAN library comes for.
READING_PATH = (
    "nets/dcgan.py", "nets/weights.py", "losses.py", "penalties.py", "algorithms.py", "trainer.py",
    "hook.py",
)  # fmt: skip

MODULES = sorted(["tinygan", *(m.name for m in pkgutil.walk_packages([str(ROOT)], "tinygan."))])


def room(module):
    """Return the part of a module's name that has a level: tinygan.data.loader is in data."""
    return module.split(".")[1] if "." in module else "__init__"


def imports(module):
    """Return the tinygan modules that a module imports, for its types alone too."""
    tree = ast.parse(Path(importlib.import_module(module).__file__).read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in full}
    return {name for name in found if name.split(".")[0] == "tinygan"}


def test_every_module_has_a_level():
    """A new module must be given its place in the house."""
    assert {room(module) for module in MODULES} == set(LEVELS)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module):
    """No module imports one of a higher level."""
    level = LEVELS[room(module)]
    assert {name for name in imports(module) if LEVELS[room(name)] > level} == set()


def test_imports_run_in_no_circle():
    """No two modules import each other, by whatever way round, for their types neither."""
    known = {module: imports(module) - {module, "tinygan"} for module in MODULES}
    for module in MODULES:
        reached, to_see = set(), [*known[module]]
        while to_see:
            name = to_see.pop()
            if name not in reached:
                reached.add(name)
                to_see += known.get(name, ())
        assert module not in reached


def test_nothing_below_names_the_trainer():
    """Hooks see a ``Run``; the trainer knows no concrete hook."""
    trainers = {"tinygan.trainer", "tinygan.gan_trainer"}
    below = {module for module in MODULES if LEVELS[room(module)] < LEVELS["trainer"]}
    for module in below:
        assert not imports(module) & trainers
    for module in trainers:
        assert not any(room(name) == "hooks" for name in imports(module))


def lines(paths):
    """Return how many lines some files have, docstrings and blank lines included."""
    return sum(len(path.read_text().splitlines()) for path in paths)


def test_the_house_stays_small():
    """What a reader comes for is read in an hour; all of it has a bound, which may only fall.

    docs/design.md says why it is not lower. Whoever adds a room raises it by as much, on purpose.
    """
    assert lines(ROOT / path for path in READING_PATH) <= 1500
    assert lines(ROOT.rglob("*.py")) <= 12750


@pytest.mark.parametrize("trainer", [tinygan.Trainer, tinygan.GANTrainer])
def test_trainers_have_few_keywords(trainer):
    """Twelve at most; how a run is executed is one of them."""
    parameters = inspect.signature(trainer).parameters.values()
    keywords = [p.name for p in parameters if p.kind == p.KEYWORD_ONLY]
    assert len(keywords) <= 12
    assert "execution" in keywords


@pytest.mark.parametrize("script", ["examples", "benchmarks"])
def test_scripts_use_the_public_surface(script):
    """Examples and benchmarks import tinygan and its public modules, nothing deeper."""
    allowed = {"tinygan", *(f"tinygan.{name}" for name in tinygan.__all__)}
    for path in (ROOT.parents[1] / script).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            ours = {name for name in names if name.split(".")[0] == "tinygan"}
            assert ours <= allowed, path


@pytest.mark.parametrize("module", [tinygan.data, tinygan.hooks, tinygan.metrics])
def test_the_public_surface(module):
    """__all__ is sorted, and is just what the module offers."""
    assert module.__all__ == sorted(module.__all__, key=lambda name: (name.islower(), name))
    submodules = {name for _, name, _ in pkgutil.iter_modules(module.__path__)}
    offered = {
        name
        for name in vars(module)
        if not name.startswith("_") and name not in submodules | {"annotations"}
    }
    assert offered == {name for name in module.__all__ if name not in submodules}


def test_the_public_surface_of_tinygan():
    """__all__ is sorted; what type checkers see, and what is imported when first used, is it."""
    assert tinygan.__all__ == sorted(tinygan.__all__, key=lambda name: (name.islower(), name))
    modules = {name for name in tinygan.__all__ if inspect.ismodule(getattr(tinygan, name))}
    assert set(tinygan._HOMES) == set(tinygan.__all__) - modules
    seen = {}  # by type checkers, by the place it is imported from
    for node in ast.walk(ast.parse(Path(tinygan.__file__).read_text())):
        if isinstance(node, ast.ImportFrom) and node.module not in ("typing", "tinygan.version"):
            seen |= {alias.name: node.module for alias in node.names}
    homes = {name: f"tinygan.{home}" for name, home in tinygan._HOMES.items()}
    assert seen == homes | dict.fromkeys(modules, "tinygan")
    assert modules == {
        "algorithms", "augmentations", "data", "distributed", "hooks", "latents", "losses",
        "metrics", "penalties", "pictures", "recipes", "sampling", "schedules", "seeds",
    }  # fmt: skip
    assert set(tinygan.__all__) <= set(dir(tinygan))
    with pytest.raises(AttributeError, match="'tinygan' has no attribute 'GanTrainer'"):
        _ = tinygan.GanTrainer


def public_objects():
    """Yield every public class and function with its name."""
    for module in (tinygan, *(getattr(tinygan, name) for name in tinygan.__all__)):
        if not inspect.ismodule(module):
            continue
        for name in getattr(module, "__all__", vars(module)):
            thing = getattr(module, name)
            ours = getattr(thing, "__module__", "").startswith("tinygan")
            if (
                not name.startswith("_")
                and ours
                and inspect.isroutine(thing) | inspect.isclass(thing)
            ):
                yield name, thing


@pytest.mark.parametrize(("name", "thing"), dict(public_objects()).items())
def test_public_docstrings(name, thing):
    """Everything public says what it is; every class and function shows a line that runs."""
    text = inspect.getdoc(thing)
    assert text
    if name in (
        "ImageFiles", "PackedImages", "Player", "Players", "Report", "save_gif", "save_html",
        "save_images", "save_mp4",
        "RankError", "LostRankError", "DifferentRanksError",
    ):  # fmt: skip
        return  # not for users to make, or shown by the hook that calls them
    assert ">>> " in text, name


@pytest.mark.parametrize("module", MODULES)
def test_examples_in_docstrings_run(module, tmp_path, monkeypatch):
    """Every example of every docstring runs and prints what it says."""
    monkeypatch.chdir(tmp_path)
    outcome = doctest.testmod(importlib.import_module(module))
    assert outcome.failed == 0


def test_importing_does_nothing():
    """Importing tinygan starts no CUDA, draws no number, sets no signal, needs no extra."""
    code = """
import random, signal, sys, threading, warnings
warnings.simplefilter("error")
import numpy, torch
def state():
    return (
        torch.get_rng_state().tolist(), random.getstate(), numpy.random.get_state()[1].tolist(),
        torch.is_grad_enabled(), torch.get_default_dtype(), threading.active_count(),
        [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)],
    )
before = state()
import tinygan
assert state() == before
assert not torch.cuda.is_initialized()
heavy = {"IPython", "av", "matplotlib", "tensorboard", "torch_fidelity", "torchvision"}
assert not heavy & set(sys.modules)
print("quiet")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("quiet\n", "")
