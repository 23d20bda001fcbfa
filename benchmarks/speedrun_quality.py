"""How good the generators of ``speedrun.py`` are, and who reaches the tutorial's quality."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tinygan import metrics, pictures, sampling, seeds

from gpu_check import read, write
from speedrun_entries import ENTRIES, Contender, Track

TARGET = "tutorial-loop"

SURE = 0.01  # the target is reached if chance puts a mean so far below it less often than this

GUARDS = ("precision", "recall", "spread")
KEPT = 0.9  # the share of the target's, or of real faces' if that is lower, that records must have

SHOWN = 16


def save(content: Any, path: Path) -> None:
    """Write what torch.load reads, whole or not at all."""
    new = path.with_suffix(".new")
    torch.save(content, new)
    new.replace(path)


class Judge:
    """Compares generated faces with held-out ones, by a net's features; keeps all in a folder."""

    def __init__(self, folder: Path, track: Track, faces: Any, features: str, device: str) -> None:
        self.folder, self.track, self.faces, self.device = folder, track, faces, device
        self.count = min(track.samples, len(faces.held), len(faces))
        self.module = getattr(metrics, features)().to(device)
        self.of = {"features": features, "samples": self.count, "data": faces.known_by}
        cache = folder / f"{features}.pt"
        known = torch.load(cache, weights_only=True) if cache.exists() else {}
        if known.get("of") != self.of:
            both = {"held": faces.held, "others": faces.pixels}
            known = {k: metrics.features(v[: self.count], self.module) for k, v in both.items()}
            save(known | {"of": self.of}, cache)
        self.held = known["held"]
        self.floor = self._compared(known["others"])

    def measure(self, name: str, seed: int) -> None:
        """Measure a finished run's generators that have not been measured."""
        folder = self.folder / name / str(seed)
        run = read(folder / "run.json")
        for mark in run.get("marks", ()):
            if mark.get("of") == self.of:
                continue
            net = Contender(name, self.track, seed, self.device).net
            net.load_state_dict(torch.load(folder / f"{mark['mark']}.pt", "cpu", weights_only=True))
            prior = getattr(net, "prior", sampling.normal)
            z = prior(self.count, net.latent_dim, seeds.generator(0, "speedrun"))  # as for all
            pixels = pictures.in_bytes(sampling.generate(net, z)).cpu()
            save(pixels[:SHOWN].clone(), folder / "samples.pt")  # at last, of the end
            found = self._compared(metrics.features(pixels, self.module))
            print(f"{name}, seed {seed}, {mark['mark']}: {found}", flush=True)
            mark.update(found, of=self.of)
            write(folder / "run.json", run)
            self.write()

    def _compared(self, made: torch.Tensor) -> dict[str, float]:
        # Of all images at once: means over subsets vary more.
        distance, _ = metrics.kid(self.held, made, subsets=1, subset_size=self.count)
        precision, recall = metrics.precision_recall(self.held, made)
        spread = _nearest(made) / _nearest(self.held)
        return {"kd": distance, "precision": precision, "recall": recall, "spread": spread}

    def write(self) -> None:
        """Write all results, their table, the plot, and faces of the first seeds."""
        files = [file for name in ENTRIES for file in self.folder.glob(f"{name}/*/run.json")]
        files.sort(key=lambda file: int(file.parts[-2]))
        runs, shown = [], {"held out": self.faces.held[:SHOWN]}
        for file in files:
            run = read(file)
            made_of = run["made_of"]["track"], run["made_of"]["data"]
            if made_of != (str(self.track), self.faces.known_by):
                continue  # left by a trial, or of other faces
            for mark in run["marks"]:
                if mark.get("of") != self.of:  # by other features, say
                    for key in ("kd", *GUARDS):
                        mark.pop(key, None)
            runs.append(run)
            if (samples := file.with_name("samples.pt")).exists():
                shown.setdefault(file.parts[-3], torch.load(samples, weights_only=True))
        results = {**self.of, "floor": self.floor, "trial": self.track.trial, "runs": runs}
        write(self.folder / "results.json", results)
        (self.folder / "table.md").write_text(table(results))
        labels = [name for name, images in shown.items() for _ in images]
        faces = pictures.grid(torch.cat(list(shown.values())), labels=labels)
        faces.save(self.folder / "faces.png")
        _plot(results, self.folder / "curve.png")


def _nearest(features: torch.Tensor) -> float:
    """Return the median distance of an image to the nearest other one: small after a collapse."""
    return float(torch.cdist(features, features).fill_diagonal_(math.inf).amin(1).median())


def p_value(ours: Sequence[float], target: Sequence[float]) -> float:
    """Return how often chance puts a mean so far below the target's: Welch's one-sided t-test.

    A test against the target's mean alone would take what few runs found for the truth.
    """
    samples = ours, target
    errors = [statistics.variance(sample) / len(sample) for sample in samples]
    squares = [error**2 / (len(sample) - 1) for error, sample in zip(errors, samples)]
    above = statistics.mean(ours) - statistics.mean(target)
    if not sum(squares):  # chance has no part in it
        return float(above >= 0)
    freedom, t = sum(errors) ** 2 / sum(squares), above / math.sqrt(sum(errors))

    def area(end: float) -> float:
        # With t = sqrt(freedom) tan(angle), Student's density is cos(angle)^(freedom - 1).
        angles = torch.linspace(-math.pi / 2, end, 100_001, dtype=torch.float64)
        return float(torch.trapezoid(angles.cos() ** (freedom - 1), angles))

    return area(math.atan(t / math.sqrt(freedom))) / area(math.pi / 2)


def _mean(runs: list[dict[str, Any]], key: str) -> float:
    return statistics.mean(run.get(key, math.nan) for run in runs)


def verdict(ours: list[dict], target: list[dict], floor: dict[str, float]) -> list[str]:
    """Return p, whether runs reach the target, and how many times as fast, by their ends.

    Times of different machines are not compared.
    """
    kds, limits = ([run["kd"] for run in runs] for runs in (ours, target))
    if ours is target or min(len(kds), len(limits)) < 3:
        return ["", "the target" if ours is target else "fewer than 3 seeds", ""]
    if not all(map(math.isfinite, kds + limits)):
        return ["", "no: diverged", ""]
    p = p_value(kds, limits)
    bars = {guard: KEPT * min(_mean(target, guard), floor[guard]) for guard in GUARDS}
    lost = [guard for guard, bar in bars.items() if _mean(ours, guard) < bar]
    if p >= SURE or lost:
        return [f"{p:.2g}", f"no: {', '.join(lost)}" if lost else "no", ""]
    speed_up = f"{_mean(target, 'minutes') / _mean(ours, 'minutes'):.2f}"
    machines = {run["machine"] for run in ours + target}
    return [f"{p:.2g}", "reached", speed_up if len(machines) == 1 else ""]


def table(results: dict[str, Any]) -> str:
    """Return what was measured, with all seeds, and the best that can be had, as Markdown."""
    ends: dict[str, list[dict[str, Any]]] = {TARGET: []}
    for run in results["runs"]:
        last = {"kd": math.inf} if run["diverged"] else run["marks"][-1]
        if "kd" in last:
            ends.setdefault(run["entry"], []).append(run | last)
    forms = {"minutes": ".2f", "at_median_rate": ".2f", "images": ",.0f", "warm_up": ".0f"}
    forms |= {"kd": ".5f", **dict.fromkeys(GUARDS, ".3f")}
    kd = f"KD-{results['features']}"
    names = [kd if key == "kd" else key for key in forms]
    rows = [["entry", *names, f"{kd} of each seed", "sd", "p", "target", "speed-up"]]
    rows.append(["---"] * len(rows[0]))
    for name, runs in ends.items():
        if runs:
            kds = [run["kd"] for run in runs]
            row = [name, *(f"{_mean(runs, key):{form}}" for key, form in forms.items())]
            row += [", ".join(f"{kd:.5f}" for kd in kds)]
            row += [f"{statistics.stdev(kds):.5f}" if kds[1:] and max(kds) < math.inf else ""]
            rows.append([*row, *verdict(runs, ends[TARGET], results["floor"])])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    floor = ", ".join(f"{key} {value:.5f}" for key, value in results["floor"].items())
    machines = "; ".join(sorted({run["machine"] for run in results["runs"]}))
    lines += ["", f"Real faces in place of generated: {floor}. {results['samples']:,} of each "]
    lines[-1] += f"kind, by {results['features']}; {results['data']}; {machines}."
    if results["trial"]:
        lines[-1] += f" A trial of {results['trial']:,} images, no record."
    return "\n".join(lines) + "\n"


def _plot(results: dict[str, Any], path: Path) -> None:
    """Draw the KD of each run over the minutes on its clock."""
    from matplotlib.figure import Figure

    figure = Figure((7, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.axhline(results["floor"]["kd"], color="grey", label="real faces")
    labels = {name: name for name in ENTRIES}  # each is given once
    for run in results["runs"]:
        points = [(mark["minutes"], mark["kd"]) for mark in run["marks"] if "kd" in mark]
        if points:
            color = f"C{list(ENTRIES).index(run['entry'])}"
            label = labels.pop(run["entry"], None)
            axes.plot(*zip(*points), ".-", color=color, label=label)
    axes.set(xlabel="minutes", ylabel="KD to held-out faces")
    axes.legend()
    figure.savefig(path, dpi=150)
