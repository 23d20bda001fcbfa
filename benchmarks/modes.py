"""Which recipe finds all modes: ring, grid and Stacked MNIST, each recipe by several seeds.

    python benchmarks/modes.py --sets ring grid --seeds 10 --out runs/modes
    python benchmarks/modes.py --sets stacked --data mnist.npz --steps 5000 --seeds 1

A finished run leaves a JSON file and is not run again, if it was of the same nets, losses and so
on; a run that was stopped goes on where it was, by the same command. Every call writes the table
and picture of all that is finished, beside the runs: runs/modes/ring/20000/table.md.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

import tinygan
from tinygan import Report, hooks

from mode_mixtures import Mixture, grid, ring
from mode_recipes import RECIPES, Make
from mode_stacked_mnist import Stacked

Set = Mixture | Stacked

COLUMNS = {"found": "modes", "high_quality": "high quality, %", "reverse_kl": "reverse KL"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is not finished yet, then write tables and pictures."""
    options = _parser().parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    for name in options.sets:
        modes = _set(name, options)
        steps = options.steps or modes.steps
        _refuse_others(modes, steps, _folder(options, modes, steps))
        for seed in range(options.seeds):
            for recipe in options.recipes:
                folder = _folder(options, modes, steps) / recipe / str(seed)
                if not (folder / "result.json").exists():
                    _run(modes, recipe, seed, steps, folder, options.device)
                _write(options, modes, steps)
        print((_folder(options, modes, steps) / "table.md").read_text())


def _folder(options: argparse.Namespace, modes: Set, steps: int) -> Path:
    return options.out / modes.name / f"{steps}"


def _refuse_others(modes: Set, steps: int, folder: Path) -> None:
    """Raise SystemExit if a finished run was made of something else than it would be now."""
    for file in sorted(folder.glob("*/*/result.json")):
        name, seed = file.parts[-3], int(file.parts[-2])
        if name in RECIPES:
            before = json.loads(file.read_text()).get("made_of", {})
            now = _made_of(modes, trainer_of(modes, RECIPES[name], seed, steps, [], "cpu"))
            changed = sorted(k for k in now.keys() | before if now.get(k) != before.get(k))
            if changed:
                raise SystemExit(f"{file} is of another {', '.join(changed)}; use another --out.")


def _made_of(modes: Set, trainer: tinygan.GANTrainer) -> dict[str, str]:
    """Return in words what a result depends on."""
    nets = f"{trainer.generator} {trainer.discriminator}"
    return trainer.state_dict()["configuration"] | modes.made_of() | {"nets": nets}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", choices=["ring", "grid", "stacked"], required=True)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--seeds", type=int, default=10, help="how many, from 0")
    parser.add_argument("--steps", type=int, help="fewer or more than the protocol's")
    parser.add_argument("--data", type=Path, help="the .npz of digits, for stacked")
    parser.add_argument("--classifier", type=Path, help="of digits; in the out folder by default")
    parser.add_argument("--out", type=Path, default=Path("runs/modes"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="of PyTorch on the CPU")
    return parser


def _set(name: str, options: argparse.Namespace) -> Set:
    if name != "stacked":
        return {"ring": ring, "grid": grid}[name]()
    if options.data is None:
        raise SystemExit("stacked needs --data, an .npz of MNIST's digits.")
    classifier = options.classifier or options.out / "classifier.pt"
    return Stacked(options.data, classifier, options.device)


class Clock(tinygan.Hook):
    """Add up the seconds between the ends of steps, those of earlier processes too."""

    def __init__(self) -> None:
        self.seconds, self.last = 0.0, None

    def on_fit_start(self, trainer: tinygan.GANTrainer) -> None:
        """Begin to count."""
        self.last = time.perf_counter()

    def on_step_end(self, trainer: tinygan.GANTrainer, report: Report) -> None:
        """Count the step."""
        now = time.perf_counter()
        self.seconds, self.last = self.seconds + now - self.last, now

    def state_dict(self) -> dict[str, float]:
        """Return what was counted."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Count on."""
        self.seconds = state["seconds"]


def trainer_of(
    modes: Set, make: Make, seed: int, steps: int, watching: Sequence[tinygan.Hook], device: str
) -> tinygan.GANTrainer:
    """Return the trainer of a recipe on a set, with the set's own optimizer."""
    torch.manual_seed(seed)  # the nets' first weights
    recipe = make(modes.nets, modes.weight, steps * modes.batch)
    recipe.generator.prior = modes.prior
    recipe = replace(recipe, optimizer=modes.optimizer)
    return recipe.trainer(hooks=watching, seed=seed, device=device)


def _run(modes: Set, name: str, seed: int, steps: int, folder: Path, device: str) -> None:
    clock = Clock()
    every = max(1, steps // 10)
    watching = [*modes.hooks(steps), clock, hooks.Checkpoint(folder, every=every, keep=1)]
    trainer = trainer_of(modes, RECIPES[name], seed, steps, watching, device)
    trainer.resume(folder)
    trainer.fit(modes.batches(seed, steps), steps=steps)
    samples = trainer.sample(modes.samples, seed=seed)
    result = asdict(modes.coverage(samples)) | {"seconds": clock.seconds}
    torch.save(samples[: modes.shown].cpu().clone(), folder / "samples.pt")
    # Last, and at once: the run is finished when it is there.
    part = folder / "result.part"
    part.write_text(json.dumps(result | {"made_of": _made_of(modes, trainer)}))
    part.replace(folder / "result.json")
    print(f"{modes.name} {name} seed {seed}: {result}", flush=True)


def _write(options: argparse.Namespace, modes: Set, steps: int) -> None:
    """Write a set's table and picture, of what is finished."""
    folder = _folder(options, modes, steps)
    head = ["recipe", *COLUMNS.values(), "seconds", "seeds", "command"]
    lines = [f"## {modes.name}: {steps:,} steps of {modes.steps:,}, {modes.samples:,} samples", ""]
    lines += ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    panels = {"data": modes.real(modes.shown)}
    for name in RECIPES:
        files = sorted((folder / name).glob("*/result.json"), key=lambda f: int(f.parent.name))
        if not files:
            lines.append(f"| {name} |" + " not run |" + " |" * (len(head) - 2))
            continue
        results = [json.loads(file.read_text()) for file in files]
        cells = [_mean([result[key] for result in results], key) for key in COLUMNS]
        seconds = f"{statistics.mean(result['seconds'] for result in results):.0f}"
        command = _command(options, modes, name, steps, len(files))
        lines.append("| " + " | ".join([name, *cells, seconds, str(len(files)), command]) + " |")
        panels[name] = torch.load(files[0].with_name("samples.pt"))
        floor = results[0]["floor"]
    lines += ["", f"Mean ± standard error. A perfect sampler's reverse KL is about {floor:.4f}."]
    (folder / "table.md").write_text("\n".join(lines) + "\n")
    modes.picture(panels).save(folder / "picture.png")


def _mean(values: list[float | None], key: str) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return ""
    scale, digits = {"found": (1, 1), "high_quality": (100, 1), "reverse_kl": (1, 4)}[key]
    mean = scale * statistics.mean(known)
    if len(known) == 1:
        return f"{mean:.{digits}f}"
    error = scale * statistics.stdev(known) / math.sqrt(len(known))
    return f"{mean:.{digits}f} ± {error:.{digits}f}"


def _command(options: argparse.Namespace, modes: Set, recipe: str, steps: int, seeds: int) -> str:
    words = f"python benchmarks/modes.py --sets {modes.name} --recipes {recipe} --seeds {seeds}"
    if steps != modes.steps:
        words += f" --steps {steps}"
    if modes.name == "stacked":
        words += f" --data {options.data.name}"
    return f"`{words}`"


if __name__ == "__main__":
    main()
