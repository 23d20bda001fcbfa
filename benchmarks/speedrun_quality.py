"""How good the generators of ``speedrun.py`` are, and who reaches the tutorial's quality."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tinygan import metrics, pictures, sampling, seeds

from speedrun_entries import ENTRIES, Contender, Track

TARGET = "tutorial-loop"

SURE = 0.01
"""The target is reached if chance puts a mean so far below it less often than this."""

KEPT = 0.9
"""The share of the target's precision, recall and spread that no record may fall below."""

GUARDS = ("precision", "recall", "spread")

SHOWN = 16


class Judge:
    """Compares generated faces with held-out ones, by a net's features; keeps all in a folder."""

    def __init__(self, folder: Path, track: Track, faces: Any, features: str, device: str) -> None:
        self.folder, self.track, self.device = folder, track, device
        self.count = min(track.samples, len(faces.held), len(faces))
        self.module = getattr(metrics, features)().to(device)
        self.of = {"features": features, "samples": self.count, "data": faces.sha256}
        cache, known = folder / f"real_{features}.pt", {}
        if cache.exists():
            known = torch.load(cache, weights_only=True)
        if known.get("of") != self.of:
            both = faces.held[: self.count], faces.pixels[: self.count]
            held, others = (metrics.features(images, self.module) for images in both)
            known = {"of": self.of, "held": held, "floor": others, "shown": both[0][:SHOWN].clone()}
            torch.save(known, cache)
        self.held, self.shown = known["held"], known["shown"]
        self.floor = self._compared(known["floor"])

    def measure(self, name: str, seed: int) -> None:
        """Measure a finished run's generators, unless they have been measured."""
        folder = self.folder / name / str(seed)
        for mark in _read(folder / "run.json").get("marks", ()):
            file = folder / f"{mark['mark']}.json"
            if _read(file).get("of") == self.of:
                continue
            net = Contender(name, self.track, seed, self.device).net
            weights = file.with_suffix(".pt")
            net.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
            images = self._images(net)
            values = {"kd": math.inf}
            if images.isfinite().all():
                pixels = pictures.in_bytes(images)
                torch.save(pixels[:SHOWN].cpu().clone(), folder / "samples.pt")
                values = self._compared(metrics.features(pixels, self.module))
            file.write_text(json.dumps(values | {"of": self.of}))
            print(f"{name}, seed {seed}, {file.stem}: {values}", flush=True)

    def _images(self, net: nn.Module) -> torch.Tensor:
        """Return a generator's images of the noise that is the same for all."""
        prior, length = getattr(net, "prior", sampling.normal), getattr(net, "latent_dim", 100)
        noise = prior(self.count, length, seeds.generator(0, "speedrun"))
        # The tutorial's own net takes z as images of one pixel.
        return sampling.generate(
            net, noise if hasattr(net, "latent_dim") else noise[..., None, None]
        )

    def _compared(self, made: torch.Tensor) -> dict[str, float]:
        # Of all images at once: means over subsets vary more.
        distance, _ = metrics.kid(self.held, made, subsets=1, subset_size=self.count)
        precision, recall = metrics.precision_recall(self.held, made)
        spread = _nearest(made) / _nearest(self.held)
        return {"kd": distance, "precision": precision, "recall": recall, "spread": spread}

    def write(self) -> None:
        """Write all results, their table, plot and picture."""
        runs, rows = [], {"held out": self.shown}
        for name in ENTRIES:
            for file in sorted(
                self.folder.glob(f"{name}/*/run.json"), key=lambda f: int(f.parts[-2])
            ):
                run = _read(file)
                run["marks"] = [
                    m | _read(file.with_name(f"{m['mark']}.json")) for m in run["marks"]
                ]
                runs.append(run)
                if (samples := file.with_name("samples.pt")).exists() and name not in rows:
                    rows[name] = torch.load(samples, weights_only=True)
        results = {**self.of, "floor": self.floor, "runs": runs}
        (self.folder / "results.json").write_text(json.dumps(results, indent=1))
        (self.folder / "table.md").write_text(table(results))
        labels = [name for name, images in rows.items() for _ in images]
        pictures.grid(torch.cat(list(rows.values())), labels=labels).save(self.folder / "faces.png")
        _plot(results, self.folder / "curve.png")


def _nearest(features: torch.Tensor) -> float:
    """Return the median distance of an image to the nearest other one, small after a collapse."""
    return float(torch.cdist(features, features).fill_diagonal_(math.inf).amin(1).median())


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text()) if file.exists() else {}


def p_value(ours: Sequence[float], target: Sequence[float]) -> float:
    """Return how often chance puts a mean so far below the target's: Welch's one-sided t-test.

    A test against the target's mean alone would take what few runs found for the truth.
    """
    samples = ours, target
    errors = [statistics.variance(sample) / len(sample) for sample in samples]
    squares = [error**2 / (len(sample) - 1) for error, sample in zip(errors, samples)]
    freedom = sum(errors) ** 2 / sum(squares)
    t = (statistics.mean(ours) - statistics.mean(target)) / math.sqrt(sum(errors))

    def area(end: float) -> float:
        # With t = sqrt(freedom) tan(angle), Student's density is cos(angle)^(freedom - 1).
        width = (end + math.pi / 2) / 100_000
        angles = (torch.arange(100_000, dtype=torch.float64) + 0.5) * width - math.pi / 2
        return width * float((angles.cos() ** (freedom - 1)).sum())

    return area(math.atan(t / math.sqrt(freedom))) / area(math.pi / 2)


def verdict(ours: list[dict[str, float]], target: list[dict[str, float]]) -> tuple[str, str]:
    """Return the p-value and whether runs reach the target, by what was measured at their ends."""
    kds, limits = ([run["kd"] for run in runs] for runs in (ours, target))
    if ours == target or min(len(ours), len(target)) < 3:
        return "", "the target" if ours == target else "fewer than 3 seeds"
    if not all(map(math.isfinite, kds + limits)):
        return "", "no: diverged"
    p = p_value(kds, limits)
    lost = [guard for guard in GUARDS if _mean(ours, guard) < KEPT * _mean(target, guard)]
    return f"{p:.2g}", "no" if p >= SURE else f"no: {', '.join(lost)}" if lost else "reached"


def _mean(runs: list[dict[str, float]], key: str) -> float:
    return statistics.mean(run.get(key, math.nan) for run in runs)


def table(results: dict[str, Any]) -> str:
    """Return all entries with all their seeds, and the best that can be had, as Markdown."""
    head = ["entry", "minutes", "at the median rate", "images", "KD", "sd", "each seed"]
    head += [*GUARDS, "p", "reached", "speed-up", "warm-up, s"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    ends: dict[str, list[dict[str, Any]]] = {}
    for run in results["runs"]:
        last = run["marks"][-1] if run["marks"] and not run["diverged"] else {"kd": math.inf}
        ends.setdefault(run["entry"], []).append(run | last)
    for name, runs in ends.items():
        measured = [run for run in runs if "kd" in run]
        if not measured:
            lines.append(f"| {name} | not measured |" + " |" * (len(head) - 2))
            continue
        p, reached = verdict(measured, ends.get(TARGET, []))
        kds = [run["kd"] for run in measured]
        cells = [name, f"{_mean(measured, 'minutes'):.2f}"]
        cells += [f"{_mean(measured, 'at_median_rate'):.2f}", f"{_mean(measured, 'images'):,.0f}"]
        cells += [f"{statistics.mean(kds):.5f}", f"{statistics.stdev(kds):.5f}" if kds[1:] else ""]
        cells += [", ".join(f"{kd:.5f}" for kd in kds)]
        cells += [f"{_mean(measured, guard):.3f}" for guard in GUARDS]
        faster = f"{_mean(ends[TARGET], 'minutes') / _mean(measured, 'minutes'):.2f}"
        cells += [p, reached, faster if reached == "reached" else ""]
        lines.append("| " + " | ".join([*cells, f"{_mean(measured, 'warm_up'):.0f}"]) + " |")
    floor = ", ".join(f"{key} {value:.5f}" for key, value in results["floor"].items())
    machines = "; ".join(sorted({run["machine"] for run in results["runs"]}))
    lines += [
        "",
        f"Real faces in place of generated: {floor}. {results['samples']:,} of each kind, ",
    ]
    lines[-1] += f"by {results['features']}, of the data {results['data'][:16]}. {machines}."
    return "\n".join(lines) + "\n"


def _plot(results: dict[str, Any], path: Path) -> None:
    """Draw each entry's KD over the minutes on the clock: all runs, and a line through the means."""
    from matplotlib.figure import Figure

    figure = Figure((7, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.axhline(results["floor"]["kd"], color="grey", linewidth=1, label="real faces")
    points = [
        (run["entry"], mark["mark"], mark["minutes"], mark["kd"])
        for run in results["runs"]
        for mark in run["marks"]
        if math.isfinite(mark.get("kd", math.inf))
    ]
    for name in dict.fromkeys(point[0] for point in points):
        own = [point[1:] for point in points if point[0] == name]
        marks = dict.fromkeys(mark for mark, _, _ in own)
        means = [
            [statistics.mean(point[axis] for point in own if point[0] == mark) for mark in marks]
            for axis in (1, 2)
        ]
        (line,) = axes.plot(*means, label=name)
        axes.scatter(*zip(*[point[1:] for point in own]), color=line.get_color(), s=12)
    axes.set(xlabel="minutes", ylabel="KD to held-out faces")
    axes.legend()
    figure.savefig(path, dpi=150)
