"""``tinygan info``: what a run or a generator is, how far it is, how good, and how to go on."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tinygan.generators import load_generator

LAST = 100  # lines of the log that are averaged


def run(a: argparse.Namespace) -> None:
    """Print it."""
    generator: Any = load_generator(a.run)
    facts = generator.facts
    height, width = generator.image_size
    weights = sum(parameter.numel() for parameter in generator.parameters())
    classes = facts.get("classes") or range(generator.num_classes or 0)
    print(f"{a.run} holds a generator, {type(generator).__name__}.")
    _print("images", f"{height} x {width} pixels, channels: {generator.channels}")
    _print("noise", f"{generator.latent_dim} numbers")
    _print("weights", f"{weights:,}")
    if classes:
        shown = ", ".join(map(str, classes[:10])) + (", ..." if len(classes) > 10 else "")
        _print("classes", f"{len(classes)}: {shown}")
    for name, title in (
        ("step", "steps"), ("images", "images seen"), ("trained_on", "trained on"),
        ("tinygan", "saved by tinygan"),
    ):  # fmt: skip
        if name in facts:
            _print(title, facts[name])
    for name, value in _logged(a.run / "log.jsonl").items():
        _print(name, f"{value:.4g}, the mean of the last steps that are logged, {LAST} at most")
    if quality := [*_lines(a.run / "quality.jsonl")]:
        last = {name: value for name, value in quality[-1].items() if name != "images"}
        _print("quality", ", ".join(f"{name} {value:.4g}" for name, value in last.items()))
    if (a.run / "checkpoints").is_dir():
        _print("to go on", "repeat the command that started it")
    _print("pictures", f"tinygan sample {a.run}")
    _print("a page", f"tinygan explore {a.run}")


def _print(name: str, text: object) -> None:
    print(f"  {name:20}{text}")


def _logged(path: Path) -> dict[str, float]:
    """Return the mean losses of the last steps in a log, by name."""
    rows = [*_lines(path)][-LAST:]
    names = [name for name in (rows[-1] if rows else {}) if name.startswith("loss_")]
    found = {}
    for name in names:
        values = [row[name] for row in rows if isinstance(row.get(name), float)]
        if values:
            found[name] = sum(values) / len(values)
    return found


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the last rows of a file of JSON lines, if it is there."""
    if not path.is_file():
        return
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 100_000))
        for line in file.read().decode(errors="ignore").splitlines():
            try:
                row = json.loads(line)
            except ValueError:  # the first, of which a part was read, or one that is being written
                continue
            if isinstance(row, dict):
                yield row
