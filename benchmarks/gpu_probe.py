"""One step of a contender, looked at from all sides in a fresh process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import kernels
from contenders import Setting
from report import Table
from workers import held, prepare

WARM_UP = 8
"""Steps: graphs are captured in the fourth."""


@dataclass(frozen=True)
class Probe:
    """One way of running a step.

    Args:
        name: of the contender.
        batch_size: images per step.
        benchmark: whether cuDNN chooses its algorithms by trying them.
    """

    name: str
    batch_size: int
    benchmark: bool

    def __str__(self) -> str:
        """Return a key."""
        return f"{self.name}, {self.batch_size}, {'by trying' if self.benchmark else 'by rule'}"


EAGER, REPLAYED, COMPILED = "tinygan bf16", "tinygan bf16 capture", "tinygan bf16 compile capture"

PROBES = [
    Probe(name, batch_size, tries)
    for name, batch_size in (
        (REPLAYED, 128), (EAGER, 128), (REPLAYED, 1024), (COMPILED, 128), (EAGER, 1024),
        (COMPILED, 1024),
    )
    for tries in (False, True)
]  # fmt: skip
"""The most important first."""

IN_A_TRIAL = [Probe(REPLAYED, 128, False), Probe(EAGER, 1024, True)]


def look(name: str, setting: Setting, benchmark: bool, steps: int) -> dict[str, float | None]:
    """Measure the time and the memory of a step; in a worker."""
    torch.backends.cudnn.benchmark = benchmark
    megabytes = prepare(name, setting, WARM_UP)
    found = kernels.milliseconds(held[0].contender, held[0].batch, steps, blocks=5)
    return {**found, "peak_mb": megabytes}


def look_inside() -> dict[str, Any]:
    """Profile the same contender: afterwards, for under a profiler all is slower."""
    parts = kernels.profiled(held[0].contender, held[0].batch)
    return {
        "kernels": sum(kernel.runs for kernel in parts),
        "families": kernels.by_family(parts, gpu=held[0].batch.device.type == "cuda"),
    }


def look_closely(name: str, setting: Setting, folder: Path) -> list[str]:
    """Profile a contender, and keep its table and its trace; in a worker."""
    prepare(name, setting, WARM_UP)
    contender, batch = held[0].contender, held[0].batch
    return kernels.table(kernels.profiled(contender, batch, folder, name.replace(" ", "_")))


def table(found: dict[str, dict[str, Any]]) -> Table:
    """Return a row for each way, and below them which kernels take its time."""
    table = Table("tinygan's step, each way in a fresh process")
    for key, row in found.items():
        cells: dict[str, Any] = {
            "contender": row["name"],
            "batch": row["batch_size"],
            "cudnn.benchmark": "on" if row["benchmark"] else "off",
        }
        if "ms_in_all" in row:
            cells |= {
                "images_per_s": row["images"] / row["ms_in_all"] * 1000,
                "ms_per_step": row["ms_in_all"],
                "ms by events": f"{row['ms_on_device']:.3f}",
                "ms to ask": f"{row['ms_on_host']:.3f}",
                "peak_mb": row["peak_mb"],
            }
        if "kernels" in row:
            cells["kernels"] = f"{row['kernels']:.1f}"
            cells["kernels' ms"] = f"{sum(row['families'].values()) / 1000:.3f}"
            parts = [f"{name} {us:,.0f}" for name, us in row["families"].items()]
            table.note(f"{key}; microseconds: {', '.join(parts)}.")
        if "remark" in row:
            cells["remark"] = row["remark"]
        table.row(**cells)
    return table
