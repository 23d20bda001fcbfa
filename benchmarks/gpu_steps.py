"""The steps of ``gpu_check.py``, each in a process of its own: what is measured, and in what words.

Each keeps what it knows in ``result.json`` of its folder as soon as it knows it.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import logging
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

import tinygan
from tinygan import data, hooks

import floor
import gpu_probe
import gpu_tests
import report
from contenders import BF16, Setting, TinyGAN
from gpu_check import read, write
from gpu_probe import COMPILED, EAGER, REPLAYED, WARM_UP
from measuring import Ratio
from report import Table
from workers import Race, Worker, WorkerError, race

MARGIN = 4.0
"""Seconds before its limit at which a step should be over."""


@dataclass
class Task:
    """What a step is given.

    Args:
        device: "cuda", or "cpu" for a trial with tiny nets.
        others: whether Lightning and accelerate take part.
        folder: the step's own.
        until: when it should be over, by ``time.monotonic``.
        above: lines that are kept above all others.
    """

    device: str
    others: bool
    folder: Path
    until: float
    above: list[str] = field(default_factory=list)

    @property
    def trial(self) -> bool:
        """Whether the figures mean nothing."""
        return self.device == "cpu"

    @property
    def left(self) -> float:
        """The seconds that are left."""
        return self.until - time.monotonic()

    def setting(self, batch_size: int = 128) -> Setting:
        """Return what is trained."""
        if self.trial:
            return Setting(16, 8 if batch_size == 128 else 12, 4, "cpu")
        return Setting(64, batch_size, 64, self.device)

    def make(self, name: str) -> str:
        """Return the contender that stands for another one in a trial, which has no graphs."""
        return name.replace(" capture", "").replace(" compile", "") if self.trial else name

    def keep(self, table: Table | Sequence[str], **values: object) -> None:
        """Keep what is known by now: a table, or lines; and values for who computes with them."""
        words = table.lines() if isinstance(table, Table) else list(table)
        write(self.folder / "result.json", {"words": [*self.above, *words], **values})


def versions(task: Task) -> None:
    """Tell the machine and the versions: what takes least time first."""
    lines: list[str] = []
    fields = (
        "name,driver_version,compute_mode,persistence_mode,mig.mode.current,pstate,clocks.sm,"
        "clocks.max.sm,clocks.mem,temperature.gpu,power.draw,power.limit,utilization.gpu,"
        "memory.used,memory.total"
    )
    for question in (f"--query-gpu={fields}", "--query-compute-apps=pid,used_memory"):
        lines += nvidia_smi(question, "--format=csv")
        task.keep(lines)
    nvidia_smi("-q", keep=task.folder / "nvidia_smi.txt")
    lines.append(report.hardware(task.device))
    found = report.versions(task.device)
    for package in ("pytest", "matplotlib", "tensorboard", "torch-fidelity", "triton"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    lines += [f"{name} {version}" for name, version in found.items()]
    lines.append(f"tinygan {tinygan.__version__}")
    if task.device == "cuda":
        lines.append(f"compute capability {torch.cuda.get_device_capability()}")
    task.keep(lines)


def nvidia_smi(*question: str, keep: Path | None = None) -> list[str]:
    """Return what it answers, also in a file if one is given; or why not."""
    if shutil.which("nvidia-smi") is None:
        return ["There is no nvidia-smi."]
    try:
        done = subprocess.run(
            ["nvidia-smi", *question], capture_output=True, text=True, timeout=10, check=False
        )
    except subprocess.TimeoutExpired:
        return ["nvidia-smi gives no answer."]
    text = done.stdout + done.stderr
    if keep is not None:
        keep.write_text(text)
    return text.strip().splitlines()


def run_tests(task: Task, words: str, trial: str) -> None:
    """Run tests by words in their names, on a GPU those that need one."""
    gpu_tests.run(
        "not slow and not gpu" if task.trial else "gpu",
        trial if task.trial else words,
        task.folder,
        lambda lines, tests: task.keep(lines, **tests),
    )


def probe(task: Task) -> None:
    """Look at a step of tinygan in each mode, each in a fresh process."""
    found: dict[str, Any] = read(task.folder / "result.json").get("found", {})
    probes = gpu_probe.IN_A_TRIAL if task.trial else gpu_probe.PROBES
    chosen = [p for p in probes if "ms_on_device" not in found.get(str(p), {})]
    workers = [Worker() for _ in chosen]  # all import now, and touch the device in turn
    try:
        for which, worker in zip(chosen, workers):
            if task.left < 3:
                break
            name, setting = task.make(which.name), task.setting(which.batch_size)
            found[str(which)] = row = asdict(which) | {"images": setting.batch_size}
            try:
                worker.ask(int, patience=task.left)  # until it has imported
                arguments = name, setting, which.benchmark, 3 if task.trial else 30
                limit = min(task.left, 60 if "compile" in name else 20)
                row |= worker.ask(gpu_probe.look, *arguments, patience=limit)
                task.keep(gpu_probe.table(found), found=found)
                row |= worker.ask(gpu_probe.look_inside, patience=min(task.left, 20))
            except (WorkerError, TimeoutError) as error:
                row["remark"] = str(error)
            worker.end()
            task.keep(gpu_probe.table(found), found=found)
    finally:
        for worker in workers:
            worker.end()
    missing = [which for which in probes if "ms_on_device" not in found.get(str(which), {})]
    if missing:  # so that it can be gone on with
        sys.exit(f"{len(missing)} of {len(probes)} ways are missing, {missing[0]} first")


HAND = "hand-tuned bf16 capture"
"""With whom tinygan is compared: the fastest that is written by hand."""

TRAINED = ["tutorial", HAND, REPLAYED, EAGER, "hand-tuned bf16", "tinygan fp32"]

OTHERS = ["Lightning bf16", "accelerate bf16", "Lightning fp32", "accelerate fp32"]

SLOW_TO_BEGIN = [COMPILED, "hand-tuned bf16 compile"]

IN_LARGE_BATCHES = [HAND, REPLAYED, EAGER, "tutorial", "tinygan fp32 capture", COMPILED]


def compete(
    task: Task,
    names: Sequence[str],
    setting: Setting,
    budget: float,
    rates: floor.Rates | None = None,
) -> None:
    """Let contenders train in turn, and keep the table after each block."""
    steps = 2 if task.trial else 30 if setting.batch_size < 1024 else 10
    flops = floor.least_flops(setting) if rates else 0.0
    title = f"Training, {setting.image_size} px, batch {setting.batch_size}"

    def keep(known: Race) -> None:
        table = Table(title)
        ms = {name: 1000 * statistics.median(t) / steps for name, t in known.times.items() if t}
        for name in names:
            if name not in ms:
                table.row(contender=name, remark=known.remarks.get(name, "not measured"))
                continue
            times = known.times[name]
            cells: dict[str, Any] = {"range": f"{1000 * min(times) / steps:.3f} to "}
            cells["range"] += f"{1000 * max(times) / steps:.3f}"
            for other, word in (("tutorial", "tutorial / it"), (task.make(HAND), "by hand / it")):
                if other in ms:
                    r = Ratio.of(known.times[other], times)
                    cells[word] = f"{r.median:.3f} ({r.lowest:.3f} to {r.highest:.3f})"
            if rates:
                least = rates.floor(setting, flops, BF16 if "bf16" in name else None)
                cells["times_floor"] = ms[name] / 1000 / least
            table.row(
                contender=name,
                images_per_s=setting.batch_size / ms[name] * 1000,
                ms_per_step=ms[name],
                peak_mb=known.memory.get(name),
                **cells,
            )
        rounds = max((len(times) for times in known.times.values()), default=0)
        table.note(f"Medians of {rounds} rounds in turn of {steps} steps, each in its own process.")
        task.keep(table, ms_per_step=ms, remarks=known.remarks, times=known.times)

    found = race(
        names,
        setting,
        steps=steps,
        lead=2 if task.trial else 5,
        warm_up=2 if task.trial else WARM_UP,
        budget=budget,
        at_least=1,
        until=task.until,
        keep=keep,
    )
    keep(found)


def training(task: Task) -> None:
    """Train at batch 128 beside the tutorial's loop and those written by hand."""
    names = [*TRAINED[: 3 if task.trial else None], *(OTHERS if task.others else [])]
    names += [] if task.trial else SLOW_TO_BEGIN
    compete(task, [task.make(n) for n in names], task.setting(), 1 if task.trial else 45)


class Pixels(Dataset[torch.Tensor]):
    """Images in memory, as bytes."""

    labels = None

    def __init__(self, count: int, size: int) -> None:
        # Repeated, for to draw them all would take longer than to train.
        few = torch.randint(0, 256, (min(count, 4096), 3, size, size), dtype=torch.uint8)
        self.pixels = few.repeat(-(-count // len(few)), 1, 1, 1)[:count]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.pixels)


class Epochs(tinygan.Hook):
    """Keeps when each epoch was over, the device's work included."""

    def __init__(self, keep: Callable[[list[float]], object]) -> None:
        self.keep = keep
        self.ends = [time.perf_counter()]

    def on_epoch_end(self, trainer: tinygan.GANTrainer) -> None:
        """Keep the time."""
        if trainer.device.type == "cuda":
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())
        self.keep(self.ends)


def watching(folder: Path) -> list[tinygan.Hook]:
    """Return all hooks that need nothing which may be absent, or cannot be had here."""
    makers: list[Callable[[], tinygan.Hook]] = [
        partial(make, folder)
        for make in (
            hooks.TutorialLog, hooks.JSONLog, hooks.SampleGrid, hooks.Animation, hooks.LossPlot,
            hooks.TrainingGrid, hooks.RealBesideFake, hooks.TensorBoard, hooks.Checkpoint,
        )
    ]  # fmt: skip
    made: list[tinygan.Hook] = [hooks.ProgressBar()]
    for make in makers:
        try:
            made.append(make())
        except ImportError as error:
            print(f"left out: {error}")
    return made


def epochs(task: Task) -> None:
    """Train for five epochs from images in memory, with logs, pictures and checkpoints."""
    count = 100 if task.trial else 202_599
    setting = task.setting()
    warnings = task.folder / "warnings.txt"
    handler = logging.FileHandler(warnings, mode="w", delay=True)
    handler.setLevel(logging.WARNING)
    logging.getLogger("tinygan").addHandler(handler)
    pixels = Pixels(count, setting.image_size)
    names: list[str] = []

    def keep(ends: list[float]) -> None:
        taken = [after - before for before, after in itertools.pairwise(ends)]
        lines = [f"{count:,} images, batch {setting.batch_size}, hooks: {', '.join(names)}."]
        if taken:
            lines.append(f"The first epoch took {taken[0]:.2f} s, from making the nets.")
        if taken[1:]:
            later = ", ".join(f"{seconds:.2f}" for seconds in taken[1:])
            rate = count / statistics.median(taken[1:])
            lines.append(f"Those after it: {later} s, which is {rate:,.0f} images/s.")
        if whole:
            lines.append(f"In all {whole[0]:.2f} s, to the last picture.")
        if warnings.exists():
            lines += [f"warned: {line}" for line in warnings.read_text().splitlines()]
        task.keep(lines, epochs=taken, whole=whole)

    whole: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        clock = Epochs(keep)
        watch = [clock, *watching(Path(folder))]
        names += [type(hook).__name__ for hook in watch[1:]]
        capture = not task.trial
        trainer = TinyGAN(setting, dtype=BF16, capture=capture, hooks=watch).trainer
        loader = data.Loader(pixels, setting.batch_size, device=task.device)
        trainer.fit(loader, epochs=5)
        whole.append(time.perf_counter() - clock.ends[0])
        keep(clock.ends)


def the_floor(task: Task) -> None:
    """Measure what the machine can do at best, and batch 1024 beside it."""
    rates = floor.Rates.measure(torch.device(task.device), quick=task.trial)
    small = task.setting()
    flops = floor.least_flops(small)
    ms = read(task.folder.parent / "training" / "result.json").get("ms_per_step", {})
    ours = {name: value for name, value in ms.items() if name.startswith("tinygan bf16")}
    task.above = [
        f"The machine: {rates.flops[torch.float32] / 1e12:.4g} TFLOP/s in fp32 (TF32), "
        f"{rates.flops[BF16] / 1e12:.4g} in bf16, {rates.bytes / 1e9:,.4g} GB/s."
    ]
    least = rates.floor(small, flops, BF16) * 1000
    sentence = f"Batch {small.batch_size}: the floor is {least:.3f} ms"
    if ours:
        best = min(ours, key=ours.__getitem__)
        sentence += f"; {best} takes {ours[best]:.3f} ms, which is {ours[best] / least:.2f} times"
    clocks = nvidia_smi("--query-gpu=clocks.sm,clocks.mem", "--format=csv")
    task.above += [sentence + ".", *clocks, ""]
    task.keep([])
    names = [task.make(name) for name in IN_LARGE_BATCHES[: 2 if task.trial else None]]
    compete(task, names, task.setting(1024), 1 if task.trial else 20, rates)


def the_kernels(task: Task) -> None:
    """Show the kernels of a step: replayed, eager, and as captured by hand."""
    lines: list[str] = []
    workers = {name: Worker() for name in (REPLAYED, EAGER, HAND)}
    try:
        for name, worker in workers.items():
            arguments = task.make(name), task.setting(), task.folder
            try:
                shown = worker.ask(gpu_probe.look_closely, *arguments, patience=task.left)
            except (WorkerError, TimeoutError) as error:
                shown = [str(error)]
            worker.end()
            lines += [name, *shown, ""]
            task.keep(lines)
    finally:
        for worker in workers.values():
            worker.end()


STEPS: dict[str, Callable[[Task], None]] = {
    "versions": versions,
    "replayed": partial(run_tests, words="replayed", trial="cpu and replayed and SGD"),
    "tests": partial(
        run_tests, words="not replayed and not compiled", trial="cpu and changing_rate"
    ),
    "probe": probe,
    "training": training,
    "epochs": epochs,
    "floor": the_floor,
    "compiled": partial(run_tests, words="compiled", trial="cpu and compiled_nets_are_captured"),
    "kernels": the_kernels,
}


def main() -> None:
    """Run one step."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("--device", choices=["cuda", "cpu"], required=True)
    parser.add_argument("--others", action="store_true")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--until", type=float, required=True)
    options = parser.parse_args()
    start = time.monotonic()
    # If the process that would end this one has been ended itself.
    signal.alarm(max(1, int(options.until - start) + 10))
    until = options.until - MARGIN
    if options.device == "cpu":
        # Of tiny nets, two threads wait for each other more than they work; in workers, too.
        torch.set_num_threads(1)
        os.environ["OMP_NUM_THREADS"] = "1"
    absent = options.device == "cuda" and not torch.cuda.is_available()
    if absent and options.step != "versions":  # which may tell why
        sys.exit("PyTorch sees no CUDA device here.")
    STEPS[options.step](Task(options.device, options.others, options.folder, until))
    print(f"{options.step} took {time.monotonic() - start:.1f} s")


if __name__ == "__main__":
    main()
