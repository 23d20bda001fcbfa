"""Time to the DCGAN tutorial's quality on faces: a speed record that anyone can beat.

    python benchmarks/speedrun.py --data celeba_10k.zip --recipes tutorial-loop relativistic

All runs are trained first and measured afterwards, perhaps by another call on another machine.
What is finished is not run again, if it was made of the same; a run that was cut off starts again.
The rules are in docs/speed.md; who may be named is in speedrun_entries.py.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from tinygan import data, seeds

import report
from gpu_check import read, write
from measuring import synchronize
from speedrun_entries import ENTRIES, TRACKS, Contender, Track
from speedrun_quality import Judge, save

BLOCK = 50  # updates between readings of the clock, which wait for a GPU; all have lazy penalties
WARM_UP = 5  # steps of throw-away nets, in which kernels are chosen and nets compiled


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is not finished, then measure what is trained; write the table and pictures."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads or torch.get_num_threads())
    track = replace(TRACKS[options.track], trial=options.images)
    folder, device = options.out / options.track, options.device
    machine = f"{report.hardware(device)}, torch {torch.__version__}"
    faces = _split(options.data, options.partition, options.out, track.image_size)
    print(f"{machine}\n{faces.known_by}", flush=True)
    numbers = range(options.first_seed, options.first_seed + options.seeds)
    runs = list(itertools.product(numbers, options.recipes))
    unfinished = [run for run in runs if not _is_finished(folder, *run, track, faces)]
    for seed, name in () if options.measure_only else unfinished:
        known = {"entry": name, "seed": seed, "machine": machine}
        _train(known, track, faces, folder / name / str(seed), device)
    if not options.train_only:
        judge = Judge(folder, track, faces, options.features, device)
        for seed, name in runs:
            judge.measure(name, seed)
        judge.write()
        print((folder / "table.md").read_text())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder, zip or tar of faces")
    parser.add_argument("--partition", type=Path, help="CelebA's list_eval_partition, .txt or .csv")
    parser.add_argument("--track", choices=TRACKS, default="laptop")
    parser.add_argument("--recipes", nargs="+", choices=ENTRIES, default=list(ENTRIES))
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--first-seed", type=int, default=0, help="others than 0, 1, 2 to tune by")
    parser.add_argument("--images", type=int, help="of each run, for a trial; use another --out")
    parser.add_argument("--out", type=Path, default=Path("runs/speedrun"))
    parser.add_argument("--train-only", action="store_true", help="measure another time")
    parser.add_argument("--measure-only", action="store_true", help="train nothing")
    parser.add_argument("--features", choices=["lite", "random_net"], default="lite")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="of PyTorch on the CPU; all cores by default")
    return parser


@dataclass(frozen=True)
class Faces:
    """Faces in bytes, (N, 3, H, W): ``pixels`` to train on, and ``held`` ones to compare with."""

    pixels: torch.Tensor
    held: torch.Tensor
    known_by: str

    def __len__(self) -> int:
        return len(self.pixels)


def _split(root: Path, partition: Path | None, out: Path, size: int) -> Faces:
    """Pack all faces, and hold out a fifth; or, by CelebA's list, its part for tests."""
    if not root.exists():
        raise SystemExit(f"--data must be a folder, zip or tar of faces, {root} does not exist.")
    packed = data.pack(root, out / f"faces_{size}.npy", size)
    order = torch.randperm(len(packed), generator=seeds.generator(0, "held out")).tolist()
    held, train = order[: len(order) // 5], order[len(order) // 5 :]
    if partition is not None:
        lines = partition.read_text().replace(",", " ").split("\n")
        parts = dict(line.split() for line in lines if line)
        names = [Path(name).name for name in packed.names]
        if lacking := [name for name in names if name not in parts]:
            raise SystemExit(
                f"--partition must name all images of --data, {partition} lacks {len(lacking)}, "
                f"such as {lacking[0]}; use the list that comes with the images."
            )
        of = [parts[name] for name in names]
        train, held = ([index for index in order if of[index] == part] for part in "02")
    digest = read(packed.path.with_suffix(".json"))["sha256"][:16]
    known_by = f"faces {digest}, {len(train):,} to train on and {len(held):,} held out"
    return Faces(packed.pixels[train], packed.pixels[held], known_by)


def _is_finished(folder: Path, seed: int, name: str, track: Track, faces: Faces) -> bool:
    """Return whether a run is finished; raise SystemExit if it was made of something else."""
    file = folder / name / str(seed) / "run.json"
    if file.exists():
        before = read(file)["made_of"]
        now = Contender(name, track, seed, "cpu").made_of | {"data": faces.known_by}
        changed = sorted(k for k in now.keys() | before if now.get(k) != before.get(k))
        if changed:
            raise SystemExit(f"{file} is of another {', '.join(changed)}; use another --out.")
    return file.exists()


@dataclass
class Clocked:
    """A run's batches, with its clock: all who take them are timed alike.

    The clock runs from the first batch until the last update is done. It stands still while
    ``keep(mark)`` is called, after the images of each of the ``marks``, the last of which ends all.
    """

    loader: data.Loader
    marks: dict[str, int]
    keep: Callable[[str], None]
    kept: list[dict] = field(default_factory=list)  # after which minutes and images
    per_update: list[float] = field(default_factory=list)  # seconds, between two readings
    updates: int = 0

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Give the batches of one epoch after the other."""
        batches = itertools.chain.from_iterable(itertools.repeat(self.loader))
        marks, batch = [*self.marks.items()], next(batches)
        synchronize(self.loader.device)  # a GPU has taken over all images by now
        images, seconds, read, began = 0, 0.0, 0, time.perf_counter()
        while True:
            yield batch
            images, self.updates = images + len(batch), self.updates + 1
            mark, at = marks[0]
            is_due = images >= at
            if is_due or self.updates % BLOCK == 0:
                synchronize(self.loader.device)
                before, seconds = seconds, time.perf_counter() - began
                self.per_update.append((seconds - before) / (self.updates - read))
                read = self.updates
            if is_due:
                self.kept.append({"mark": mark, "minutes": seconds / 60, "images": images})
                self.keep(mark)
                marks.pop(0)
                if not marks:
                    return
                began = time.perf_counter() - seconds
            batch = next(batches)


def _train(known: dict, track: Track, faces: Faces, folder: Path, device: str) -> None:
    """Train a run; write its generator at each mark, and what is known of it, at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    which = known["entry"], track, known["seed"], device
    began = time.perf_counter()
    contender = Contender(*which)  # thrown away
    shape = contender.entry.batch_size, *faces.pixels.shape[1:]
    contender.train([torch.rand(shape, device=device) * 2 - 1] * WARM_UP)
    synchronize(torch.device(device))
    known |= {"warm_up": time.perf_counter() - began, "diverged": None}

    contender = Contender(*which)
    entry, seed = contender.entry, known["seed"]
    loader = data.Loader(faces, entry.batch_size, seed=seed, flip=entry.flip, device=device)
    images = track.trial or entry.images or track.images
    marks = {f"{mark}": mark for mark in track.marks if mark < images} | {"end": images}

    def keep(mark: str) -> None:
        save(contender.net.state_dict(), folder / f"{mark}.pt")

    clock = Clocked(loader, marks, keep)
    try:
        contender.train(clock)
    except ArithmeticError as error:  # the trainer's, after many steps that were not finite
        known["diverged"] = str(error)
    update = statistics.median(clock.per_update or [math.nan])
    known |= {"seconds_per_update": update, "at_median_rate": update * clock.updates / 60}
    known |= {"marks": clock.kept, "made_of": contender.made_of | {"data": faces.known_by}}
    write(folder / "run.json", known)  # last, and at once: the run is finished when it is there
    print(f"{known['entry']}, seed {seed}: {clock.kept}", flush=True)


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[1] / "tests"))  # where the tutorial's loop is
    main()
