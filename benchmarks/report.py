"""What was measured, on what, and which targets it meets: on the screen, and in a file."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import operator
import os
import platform
import re
from dataclasses import dataclass, field
from pathlib import Path

import torch

Cell = float | int | str | None

FORMATS = {
    "images/s": ",.0f",
    "ms/step": ",.2f",
    "peak MB": ",.0f",
    "seconds": ",.2f",
    "ratio": ".3f",
    "from": ".3f",
    "to": ".3f",
    "x floor": ".2f",
    "by itself": ".3f",
    "fastest": ".3f",
    "percent": ".1f",
    "bound": "g",
    "measured": ".3g",
    "ms": ",.2f",
    "MB": ".1f",
    "compute ms": ",.2f",
    "predicted ms": ",.2f",
}
"""How the numbers of a column are written."""


@dataclass(frozen=True)
class Target:
    """What we want to reach."""

    name: str
    relation: str
    bound: float

    def verdict(self, value: float | None) -> str:
        """Say whether a measured value, or None, meets it."""
        if value is None:
            return "not measured"
        met = {">=": operator.ge, "<=": operator.le, "<": operator.lt}[self.relation]
        return "met" if met(value, self.bound) else "missed"


BF16 = "tinygan bf16 / tutorial, images/s"
FP32 = "tinygan fp32 / tutorial, images/s"
HOOKS = "6 no-op hooks / bare hand-tuned loop of the same precision, width 64, images/s"
PACKED = "packed loader / ImageFolder with 2 workers, images/s"
MEMORY = "tinygan / tutorial, peak memory"
BEST = "batch 128, 64 px: tinygan's best / tutorial, images/s"
BY_HAND = "batch 128, 64 px: tinygan's best / best hand-tuned without graphs, images/s"
FLOOR = "batch 1024, 64 px: tinygan's best / floor, time"
FIVE_EPOCHS = "five epochs of 202,599 images, seconds"

TARGETS = {
    "cpu": [
        Target(BF16, ">=", 2.1),
        Target(FP32, ">=", 1.2),
        Target(HOOKS, ">=", 0.98),
        Target(PACKED, ">=", 15),
        Target(MEMORY, "<=", 1),
    ],
    "cuda": [
        Target(BEST, ">=", 6),
        Target(BY_HAND, ">=", 1.5),
        Target(FLOOR, "<=", 2),
        Target(FIVE_EPOCHS, "<", 20),
        Target(MEMORY, "<=", 1),
    ],
}
"""By device. A missed target is reported and never fails the run."""


@dataclass
class Table:
    """Rows of one benchmark; a row has a cell for each column that it knows of."""

    title: str
    rows: list[dict[str, Cell]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def row(self, **cells: Cell) -> None:
        """Add a row; ``images_per_s`` and the like are spelt as in FORMATS."""
        self.rows.append({SPELT.get(name, name): value for name, value in cells.items()})

    def note(self, sentence: str) -> None:
        """Add a sentence below the rows, once."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    def lines(self) -> list[str]:
        """Return the aligned table, its title above and its notes below."""
        # A column's place is where it first appears; remarks of any length come last.
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        columns.sort(key=lambda name: name == "remark")
        cells = [columns] + [[_text(name, row.get(name)) for name in columns] for row in self.rows]
        widths = [max(map(len, column)) for column in zip(*cells)]
        left = [any(isinstance(row.get(name), str) for row in self.rows) for name in columns]
        aligned = [
            "  ".join(
                cell.ljust(width) if is_left else cell.rjust(width)
                for cell, width, is_left in zip(line, widths, left)
            ).rstrip()
            for line in cells
        ]
        return [self.title, "", *aligned, *([""] if self.notes else []), *self.notes]


SPELT = {
    "images_per_s": "images/s",
    "ms_per_step": "ms/step",
    "peak_mb": "peak MB",
    "times_floor": "x floor",
    "by_itself": "by itself",
    "lowest": "from",
    "highest": "to",
    "mb": "MB",
    "compute_ms": "compute ms",
    "predicted_ms": "predicted ms",
}


def _text(column: str, value: Cell) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else format(value, FORMATS.get(column, ""))


class Report:
    """All that a run has measured.

    Args:
        device: "cpu" or "cuda".
        command: how the run was started.
        quick: whether the figures mean nothing.
        folder: where to save after each benchmark; None for nowhere.
    """

    def __init__(self, device: str, command: str, quick: bool, folder: Path | None) -> None:
        self.device = device
        self.command = command
        self.quick = quick
        self.tables: list[Table] = []
        self.failures: list[str] = []
        self._measured: dict[str, float] = {}
        self._date = datetime.date.today().isoformat()
        self._path = None if folder is None else _new(folder, f"{self._date}_{_machine(device)}")

    def table(self, title: str) -> Table:
        """Return the table of this title, a new one if there is none yet."""
        for table in self.tables:
            if table.title == title:
                return table
        self.tables.append(Table(title))
        return self.tables[-1]

    def measured(self, target: str, value: float) -> None:
        """Keep what a target is compared with; of several values the worse one."""
        for candidate in TARGETS[self.device]:
            if candidate.name == target:
                worse = min if candidate.relation == ">=" else max
                self._measured[target] = worse(value, self._measured.get(target, value))

    def verdicts(self) -> Table:
        """Return each target beside its measured value."""
        table = Table("Targets")
        for target in TARGETS[self.device]:
            value = self._measured.get(target.name)
            table.row(
                target=target.name,
                relation=target.relation,
                bound=target.bound,
                measured=value,
                verdict="not judged" if self.quick else target.verdict(value),
            )
        return table

    def lines(self) -> list[str]:
        """Return everything, for the screen and the file alike."""
        lines = ["QUICK: these figures mean nothing.", ""] if self.quick else []
        for table in [*self.tables, self.verdicts()]:
            lines += [*table.lines(), ""]
        return lines + [f"Failed: {failure}" for failure in self.failures]

    def header(self) -> list[str]:
        """Return the date, the machine, the versions and the command."""
        return [
            f"Date: {self._date}",
            f"Hardware: {hardware(self.device)}",
            "Versions: " + ", ".join(f"{name} {v}" for name, v in versions(self.device).items()),
            f"Command: {self.command}",
        ]

    def save(self) -> None:
        """Write the Markdown and the JSON file, if the run is to be saved."""
        if self._path is None:
            return
        kind = "a GPU" if self.device == "cuda" else "the CPU"
        text = [f"# Benchmarks on {kind}", "", *(f"- {line}" for line in self.header()), ""]
        text += ["```text", *self.lines(), "```", ""]
        self._path.with_suffix(".md").write_text("\n".join(text))
        everything = {
            "date": self._date,
            "hardware": hardware(self.device),
            "versions": versions(self.device),
            "command": self.command,
            "targets": self.verdicts().rows,
            "tables": [
                {"title": table.title, "rows": table.rows, "notes": table.notes}
                for table in self.tables
            ],
            "failures": self.failures,
        }
        self._path.with_suffix(".json").write_text(json.dumps(everything, indent=1) + "\n")


def cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def hardware(device: str) -> str:
    """Return the machine in a line."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        # Virtual machines often hide the model's name, but not its numbers.
        found = dict(re.findall(r"(model name|cpu family|model)\s*: (.*)", info.read_text()))
        if len(found) == 3:
            model = f"{found['model name']} (family {found['cpu family']}, model {found['model']})"
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    line = f"{cores()} cores of {model} ({torch.get_num_threads()} threads), {ram:.0f} GiB"
    if device == "cuda":
        gpu = torch.cuda.get_device_properties(0)
        line += f"; {gpu.name}, {gpu.total_memory / 2**30:.0f} GiB"
    return line


def versions(device: str) -> dict[str, str]:
    """Return the versions of all that takes part."""
    found = {"Python": platform.python_version(), "torch": torch.__version__}
    for package in ("torchvision", "pillow", "lightning", "accelerate"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    if device == "cuda":
        found |= {
            "CUDA": str(torch.version.cuda),
            "cuDNN": str(torch.backends.cudnn.version()),
        }
    return found


def _machine(device: str) -> str:
    name = torch.cuda.get_device_name() if device == "cuda" else f"cpu_{cores()}_cores"
    return re.sub(r"\W+", "_", name.lower()).strip("_")


def _new(folder: Path, name: str) -> Path:
    """Return a path in the folder whose files are not there yet: no result is overwritten."""
    path, number = folder / name, 1
    while path.with_suffix(".md").exists() or path.with_suffix(".json").exists():
        number += 1
        path = folder / f"{name}_{number}"
    return path
