"""Time to the DCGAN tutorial's quality on faces: a speed record that anyone can beat.

    python benchmarks/speedrun.py --data celeba_10k.zip --recipes tutorial-loop relativistic

All runs are trained first and measured afterwards, perhaps by another call on another machine.
What is finished is not run again, if it was made of the same; a run that was cut off starts again.
The rules are in docs/speed.md; who may be named is in speedrun_entries.py.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from tinygan import data, seeds

import report
from measuring import synchronize
from speedrun_entries import ENTRIES, TRACKS, Contender, Track
from speedrun_quality import Judge

BLOCK = 50
"""Updates between two readings of the clock, which wait for a GPU; all have lazy penalties."""

WARM_UP = 5
"""Steps of throw-away nets, in which libraries choose their kernels and nets are compiled."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is not finished, then measure what is trained; write the table and pictures."""
    options = _parser().parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    track = replace(TRACKS[options.track], trial=options.images)
    if options.minutes:
        earlier = tuple(mark for mark in track.marks if mark < options.minutes)
        track = replace(track, minutes=options.minutes, images=math.inf, marks=earlier)
    folder, device = options.out / options.track, options.device
    machine = f"{report.hardware(device)}, torch {torch.__version__}"
    faces = _split(options, track)
    print(f"{machine}\n{len(faces):,} faces to train on, {len(faces.held):,} held out")
    _refuse_others(folder, track, faces)
    runs = list(itertools.product(range(options.seeds), options.recipes))
    for seed, name in [] if options.measure_only else runs:
        if not (folder / name / str(seed) / "run.json").exists():
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
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0")
    parser.add_argument("--minutes", type=float, help="what ends a run without its own length")
    parser.add_argument("--images", type=int, help="what ends every run, for a trial")
    parser.add_argument("--out", type=Path, default=Path("runs/speedrun"))
    parser.add_argument("--train-only", action="store_true", help="measure another time")
    parser.add_argument("--measure-only", action="store_true", help="train nothing")
    parser.add_argument("--features", choices=["lite", "random_net"], default="lite")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="of PyTorch on the CPU; all cores by default")
    return parser


@dataclass(frozen=True)
class Faces:
    """Faces in bytes, (N, 3, H, W): ``pixels`` to train on and ``held`` ones to compare with."""

    pixels: torch.Tensor
    held: torch.Tensor
    sha256: str

    def __len__(self) -> int:
        return len(self.pixels)


def _split(options: argparse.Namespace, track: Track) -> Faces:
    """Pack all faces, and hold out a fifth; or, by CelebA's list, its part for tests."""
    path = options.out / f"faces_{track.image_size}.npy"
    packed = data.pack(options.data, path, track.image_size)
    order = torch.randperm(len(packed), generator=seeds.generator(0, "held out")).tolist()
    held, train = order[: len(order) // 5], order[len(order) // 5 :]
    if options.partition is not None:
        lines = options.partition.read_text().replace(",", " ").splitlines()
        parts = dict(line.split() for line in lines if line)
        of = [parts[Path(name).name] for name in packed.names]
        train, held = ([index for index in order if of[index] == part] for part in "02")
    known = json.loads(path.with_suffix(".json").read_text())
    return Faces(packed.pixels[train], packed.pixels[held], known["sha256"])


def _refuse_others(folder: Path, track: Track, faces: Faces) -> None:
    """Raise SystemExit if a finished run was made of something else than it would be now."""
    for file in sorted(folder.glob("*/*/run.json")):
        name, seed = file.parts[-3], int(file.parts[-2])
        if name in ENTRIES:
            before = json.loads(file.read_text())["made_of"]
            now = Contender(name, track, seed, "cpu").made_of | {"data": faces.sha256}
            changed = sorted(k for k in now.keys() | before if now.get(k) != before.get(k))
            if changed:
                raise SystemExit(f"{file} is of another {', '.join(changed)}; use another --out.")


class Clocked:
    """A run's batches, with its clock: all who take them are timed alike.

    The clock runs from the first batch until the last update is done. It stands still while
    ``keep(clock, is_end)`` is called: after each of some ``marks``, in seconds, and at the end.
    """

    def __init__(
        self,
        loader: data.Loader,
        marks: Sequence[float],
        ends: tuple[float, float],
        keep: Callable[[Clocked, bool], None],
    ) -> None:
        self.loader, self.marks, self.ends, self.keep = loader, [*marks, math.inf], ends, keep
        self.seconds, self.images, self.updates = 0.0, 0, 0
        self.blocks: list[float] = []  # seconds of an update, between two readings of the clock

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Give batches of one epoch after the other, until the seconds or the images are over."""
        batches = itertools.chain.from_iterable(itertools.repeat(self.loader))
        batch = next(batches)  # a GPU has taken over the images by now
        synchronize(self.loader.device)
        began, read = time.perf_counter(), 0
        while True:
            yield batch
            self.images, self.updates = self.images + len(batch), self.updates + 1
            due = time.perf_counter() - began >= min(self.marks[0], self.ends[0])
            is_last = self.images >= self.ends[1]
            if due or is_last or self.updates % BLOCK == 0:
                synchronize(self.loader.device)
                seconds = time.perf_counter() - began
                self.blocks.append((seconds - self.seconds) / (self.updates - read))
                self.seconds, read = seconds, self.updates
            if due or is_last:
                is_last |= self.seconds >= self.ends[0]
                self.keep(self, is_last)
                if is_last:
                    return
                self.marks.pop(0)
                began = time.perf_counter() - self.seconds
            batch = next(batches)


def _train(known: dict, track: Track, faces: Faces, folder: Path, device: str) -> None:
    """Train a run; write its generator at each mark, and what is known of it, at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    name, seed = known["entry"], known["seed"]
    began = time.perf_counter()
    thrown_away = Contender(name, track, seed, device)
    shape = thrown_away.entry.batch_size, *faces.pixels.shape[1:]
    thrown_away.train([torch.rand(shape, device=device) * 2 - 1] * WARM_UP)
    synchronize(torch.device(device))
    known |= {"warm_up": time.perf_counter() - began, "diverged": None, "marks": []}

    contender = Contender(name, track, seed, device)
    entry = contender.entry
    loader = data.Loader(faces, entry.batch_size, seed=seed, flip=entry.flip, device=device)
    own = track.trial or entry.images
    ends = (math.inf, own) if own else (60 * track.minutes, track.images)

    def keep(clock: Clocked, is_end: bool) -> None:
        mark = "end" if is_end else f"{track.marks[len(known['marks'])]:g}"
        torch.save(contender.net.state_dict(), folder / f"{mark}.pt")
        at = {"mark": mark, "minutes": clock.seconds / 60, "images": clock.images}
        known["marks"].append(at)
        print(f"{name}, seed {seed}: {at}", flush=True)

    clock = Clocked(loader, [60 * mark for mark in track.marks], ends, keep)
    try:
        contender.train(clock)
    except ArithmeticError as error:  # the trainer's, after many steps that were not finite
        known["diverged"] = str(error)
    update = statistics.median(clock.blocks)
    known |= {"update": update, "at_median_rate": update * clock.updates / 60}
    # Last, and at once: the run is finished when it is there.
    part = folder / "run.part"
    part.write_text(json.dumps(known | {"made_of": contender.made_of | {"data": faces.sha256}}))
    part.replace(folder / "run.json")


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[1] / "tests"))  # where the tutorial's loop is
    main()
