"""One command for a GPU that is there for ten minutes: what is worth most is run first.

    python benchmarks/gpu_check.py --minutes 9 --out results

Each step is a process with a limit of its own. At the limit it is killed, with all that it has
started. What it has written until then stays, so a run that is cut off still tells. The same
command once more goes on with what has not been run yet. tinygan need not be installed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

GRACE = 1.0
"""Seconds in which a process at its limit may write where it stands."""

LEAST = 1 / 3
"""The share of its limit that must be left for a step to be begun."""

AT_THE_END = 3.0
"""Seconds for the archive."""


@dataclass(frozen=True)
class Step:
    """What is run in a process of its own.

    Args:
        name: of its folder.
        title: of its section in the summary.
        limit: seconds after which it is killed.
        command: the process.
        told: whether its folder, and its end by ``time.monotonic``, are given to it as options.
    """

    name: str
    title: str
    limit: float
    command: tuple[str, ...]
    told: bool = True


def steps(device: str, others: bool, speedrun: Sequence[str] = ()) -> list[Step]:
    """Return all steps, in order of worth; without faces for ``speedrun`` it is left out."""
    chosen = [
        ("versions", "The machine and the versions", 30),
        ("replayed", "Tests of replayed steps", 45),
        ("tests", "The other tests on real graphs", 120),
        ("probe", "One step: time, kernels, memory", 90),
        ("training", "Training beside the other loops", 150),
        ("epochs", "Five epochs of 202,599 images, with all hooks", 45),
        ("floor", "Batch 1024, and the floor", 75),
        ("compiled", "Tests of compiled steps", 90),
        ("kernels", "Where a step's time goes", 60),
    ]
    if device == "cpu":
        chosen = [(name, title, 30) for name, title, _ in chosen]
    options = ("--device", device, *(["--others"] if others else []))
    script = str(Path(__file__).with_name("gpu_steps.py"))
    found = [
        Step(name, title, limit, (sys.executable, script, name, *options))
        for name, title, limit in chosen
    ]
    if not speedrun:
        return found
    track, images = ("laptop", "64") if device == "cpu" else ("gpu", "50000")
    options = ("--track", track, "--images", images, "--device", device, "--seeds", "1")
    script = str(Path(__file__).with_name("speedrun.py"))
    command = (sys.executable, script, *options, "--train-only", *speedrun)
    faces = Step("speedrun", "Faces, by each entry of the speed record", 60, command, told=False)
    return [*found[:-1], faces, found[-1]]


def environment() -> dict[str, str]:
    """Return the environment of the steps: with this source tree, installed or not."""
    folders = [str(ROOT / name) for name in ("src", "tests", "benchmarks")]
    before = os.environ.get("PYTHONPATH")
    return {
        # PyTorch's own remedy for CUPTI, which crashes when it is torn down beside CUDA graphs.
        "TEARDOWN_CUPTI": "0",
        "DISABLE_CUPTI_LAZY_REINIT": "1",
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*folders, *([before] if before else [])]),
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",  # who is killed at the limit says where it hangs
    }


def run_limited(
    command: Sequence[str], output: Path, limit: float, variables: Mapping[str, str]
) -> int | None:
    """Run a command until its end or its limit; return its exit code, or None at the limit.

    In both cases nothing that it has started is left.
    """
    with output.open("ab") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=variables,
            cwd=ROOT,
            start_new_session=True,  # which makes a process group, too
        )
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            # One after the other, or what they say would be mixed.
            process.send_signal(signal.SIGABRT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
            _signal_group(process.pid, signal.SIGABRT)
            time.sleep(GRACE / 4)
            return None
        finally:
            _signal_group(process.pid, signal.SIGKILL)
            process.wait()


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


class Run:
    """All steps, in one folder.

    Args:
        steps: in order of worth.
        folder: where all is kept; one that is there already is gone on with.
        minutes: how long all of them may take.
        again: whether steps that failed, or were stopped at their limit, are run once more.
        say: prints a line.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        folder: Path,
        minutes: float,
        *,
        again: bool = False,
        say: Callable[[str], None] = print,
    ) -> None:
        self.steps, self.folder, self.again, self.say = steps, folder.absolute(), again, say
        self._end = time.monotonic() + 60 * minutes - AT_THE_END
        self.folder.mkdir(parents=True, exist_ok=True)

    def run(self) -> None:
        """Run what is to be run; write the summary after each step, and the archive at the end."""
        try:
            for step in self.steps:
                if self._is_due(step):
                    self._run(step)
                    self.summarise()
        finally:  # when it is stopped from outside, too
            self.summarise()
            self._pack()

    def _is_due(self, step: Step) -> bool:
        status = self._outcome(step).get("status")
        if status == "done":
            return False
        return self.again or status not in ("failed", "stopped")

    def _run(self, step: Step) -> None:
        limit = min(step.limit, self._end - time.monotonic())
        if limit < LEAST * step.limit:
            self.say(f"{step.name}: not reached")
            return
        folder = self.folder / step.name
        folder.mkdir(exist_ok=True)
        outcome = folder / "outcome.json"
        write(outcome, {"status": "begun", "limit": limit})
        self.say(f"{step.name}: runs, for {limit:.0f} s at most ...")
        start = time.monotonic()
        # Not its seconds: to import takes some of them, and it could not know how many.
        told = ["--folder", str(folder), "--until", f"{start + limit:.1f}"] if step.told else []
        code = run_limited([*step.command, *told], folder / "output.txt", limit, environment())
        status = "stopped" if code is None else "failed" if code else "done"
        taken = time.monotonic() - start
        write(outcome, {"status": status, "limit": limit, "seconds": taken, "code": code})
        self.say(f"{step.name}: {self._in_words(step)}")

    def _outcome(self, step: Step) -> dict[str, Any]:
        return read(self.folder / step.name / "outcome.json")

    def _in_words(self, step: Step) -> str:
        """Say how a step ended."""
        outcome = self._outcome(step)
        match outcome.get("status"):
            case "done":
                return f"done in {outcome['seconds']:.0f} s"
            case "stopped":
                return f"stopped at its limit of {outcome['limit']:.0f} s"
            case "failed":
                last = _last_line(self.folder / step.name / "output.txt")
                return f"failed after {outcome['seconds']:.0f} s, code {outcome['code']}: {last}"
            case "begun":
                return "was cut off, and is run again by the same command"
            case _:
                return "not reached; the same command goes on with it"

    def summarise(self) -> None:
        """Write what is known by now, in words."""
        width = max(len(step.title) for step in self.steps)
        lines = ["# A GPU for ten minutes", "", "```text"]
        lines += [f"{step.title.ljust(width)}  {self._in_words(step)}" for step in self.steps]
        lines += ["```", ""]
        for step in self.steps:
            folder = self.folder / step.name
            words = read(folder / "result.json").get("words") or _tail(folder / "output.txt")
            if words:
                lines += [f"## {step.title}", "", "```text", *words, "```", ""]
        (self.folder / "summary.md").write_text("\n".join(lines))

    def _pack(self) -> None:
        archive = self.folder / "results.tar.gz"
        with tarfile.open(archive, "w:gz", compresslevel=6) as tar:
            for path in sorted(self.folder.rglob("*")):
                if path.is_file() and path != archive:
                    tar.add(path, path.relative_to(self.folder.parent))


def write(path: Path, content: object) -> None:
    """Write JSON, whole or not at all."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(content, indent=1) + "\n")
    new.replace(path)


def read(path: Path) -> dict[str, Any]:
    """Return what is in a JSON file; nothing if there is none."""
    return json.loads(path.read_text()) if path.exists() else {}


def _last_line(path: Path) -> str:
    """Return the last line of an output that names an error, or else just the last one."""
    lines = _tail(path, 1000) or ["it said nothing"]
    errors = [line for line in lines if re.match(r"[\w.]+(Error|Exception)\b", line)]
    return (errors or lines)[-1]


def _tail(path: Path, count: int = 20) -> list[str]:
    """Return the last lines of an output, if there is one."""
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    # faulthandler's list of modules tells nothing.
    told = [line[:200] for line in lines if line.strip() and "Extension modules:" not in line]
    return told[-count:]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=9, help="for all steps together")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--again", action="store_true", help="run once more what failed")
    parser.add_argument("--others", action="store_true", help="Lightning and accelerate as well")
    parser.add_argument(
        "--device", choices=["cuda", "cpu"], default="cuda", help="cpu: a trial with tiny nets"
    )
    parser.add_argument("--faces", type=Path, help="some thousand, for the speed record")
    options = parser.parse_args(arguments)
    known = read(options.out / "run.json").get("device", options.device)
    if known != options.device:
        parser.error(f"{options.out} is of a run with --device {known}; use another --out")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # A process that is aborted at its limit must not write all of its memory to the disk.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Beside the results, because packed faces are large.
    out = f"{options.out.absolute()}_speedrun"
    given = ("--data", str(options.faces.absolute()), "--out", out) if options.faces else ()
    chosen = steps(options.device, options.others, given)
    run = Run(chosen, options.out, options.minutes, again=options.again)
    write(run.folder / "run.json", {"device": options.device})
    run.run()
    print("\n" + (run.folder / "summary.md").read_text())
    print(f"All of it: {run.folder / 'results.tar.gz'}")


if __name__ == "__main__":
    main()
