"""The command for a short time on a GPU: steps that end well, crash or hang, and going on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from functools import partial
from pathlib import Path

import pytest

import contenders
import gpu_check
import gpu_probe
import gpu_steps
import kernels
import workers
from processes import eventually

GOOD = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[sys.argv.index("--folder") + 1])
(folder / "result.json").write_text(json.dumps({"words": ["All is well."]}))
"""

HANGS = """
import pathlib, subprocess, sys, time
folder = pathlib.Path(sys.argv[sys.argv.index("--folder") + 1])
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
(folder / "child").write_text(str(child.pid))
print("I have begun.", flush=True)
time.sleep(600)
"""

LEAVES = HANGS.replace("time.sleep(600)\n", "sys.exit(0)\n")

CRASHES = "raise ValueError('no such kernel')"


def step(name, code, limit=10.0):
    """Return a step of a script."""
    return gpu_check.Step(name, f"The {name} step", limit, (sys.executable, "-c", code))


def run(folder, *steps, minutes=1.0, again=False):
    """Run steps; return what was said, and the summary."""
    said = []
    gpu_check.Run(steps, folder, minutes, again=again, say=said.append).run()
    return said, (folder / "summary.md").read_text()


def eventually_gone(pid):
    """Wait until a process that was killed has ended; it may still wait to be reaped."""

    def is_gone():
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return True
        return stat.rpartition(")")[2].split()[0] in "ZX"

    eventually(is_gone)


def test_each_step_is_told_in_words_and_a_second_call_goes_on(tmp_path):
    """What hangs is killed with its children, what crashes stops nobody, what is done stays."""
    steps = [step("good", GOOD), step("bad", CRASHES), step("stuck", HANGS, limit=1.0)]
    said, summary = run(tmp_path, *steps, step("long", GOOD, limit=600.0))
    assert [line.partition(":")[0] for line in said if "runs" in line] == ["good", "bad", "stuck"]
    assert "The good step   done in" in summary
    assert "code 1: ValueError: no such kernel" in summary
    assert "The stuck step  stopped at its limit of 1 s" in summary
    assert "The long step   not reached" in summary
    assert "All is well." in summary
    assert "I have begun." in summary
    # Where it hung; and nothing that it has started is left.
    assert 'File "<string>", line 7' in (tmp_path / "stuck" / "output.txt").read_text()
    eventually_gone((tmp_path / "stuck" / "child").read_text())
    with tarfile.open(tmp_path / "results.tar.gz") as archive:
        names = {Path(name).relative_to(tmp_path.name).as_posix() for name in archive.getnames()}
    assert {"summary.md", "good/result.json", "bad/output.txt", "stuck/outcome.json"} <= names

    said, summary = run(tmp_path, *steps, step("long", GOOD))
    assert [line.partition(":")[0] for line in said if "runs" in line] == ["long"]
    assert "The long step   done in" in summary
    said, summary = run(tmp_path, step("good", CRASHES), step("bad", GOOD), again=True)
    assert [line.partition(":")[0] for line in said if "runs" in line] == ["bad"]
    assert "The bad step   done in" in summary


def test_a_step_that_ends_leaves_nothing_behind(tmp_path):
    """Processes that it has started are ended with it."""
    run(tmp_path, step("untidy", LEAVES))
    assert json.loads((tmp_path / "untidy" / "outcome.json").read_text())["status"] == "done"
    eventually_gone((tmp_path / "untidy" / "child").read_text())


def test_a_run_that_is_cut_off_still_tells(tmp_path):
    """The summary and the archive are written when it is ended from outside; it is gone on with."""
    script = (
        "import sys, gpu_check\n"
        "def step(name, code): return gpu_check.Step(name, f'The {name} step', 60.0, code)\n"
        f"good, stuck = [(sys.executable, '-c', code) for code in ({GOOD!r}, {HANGS!r})]\n"
        "gpu_check.steps = lambda *_: [step('good', good), step('stuck', stuck)]\n"
        f"gpu_check.main(['--out', {str(tmp_path)!r}])\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=Path(gpu_check.__file__).parent,
        stdout=subprocess.DEVNULL,
    )
    child = tmp_path / "stuck" / "child"
    end = time.monotonic() + 60
    while not (child.exists() and child.read_text()) and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    eventually_gone(child.read_text())
    assert "The stuck step  was cut off" in (tmp_path / "summary.md").read_text()
    assert (tmp_path / "results.tar.gz").exists()
    said, summary = run(tmp_path, step("good", CRASHES), step("stuck", GOOD))
    assert [line.partition(":")[0] for line in said if "runs" in line] == ["stuck"]
    assert "The stuck step  done in" in summary


def test_less_time_than_the_limit(tmp_path):
    """A step gets what is left if that is a third of its limit; with less it is not begun."""
    left = 2 + gpu_check.AT_THE_END
    run(tmp_path, step("good", GOOD, limit=5.0), minutes=left / 60)
    assert json.loads((tmp_path / "good" / "outcome.json").read_text())["limit"] < 2
    said, _ = run(tmp_path, step("other", GOOD, limit=7.0), minutes=left / 60)
    assert said == ["other: not reached"]


def test_the_steps_are_there():
    """All steps of the command are known to the script that runs them, and so are who trains."""
    for device in ("cuda", "cpu"):
        names = [step.name for step in gpu_check.steps(device, others=True) if step.told]
        assert sorted(names) == sorted(gpu_steps.STEPS)
    trained = {*gpu_steps.TRAINED, *gpu_steps.OTHERS, *gpu_steps.SLOW_TO_BEGIN}
    trained |= {*gpu_steps.IN_LARGE_BATCHES, *(probe.name for probe in gpu_probe.PROBES)}
    assert trained <= contenders.makers("cuda").keys()


def test_the_device_and_its_host_are_clocked():
    """All batches are given, and the trainer's last wait is outside the clock."""
    setting = contenders.Setting(16, 4, 2, "cpu")
    trained = contenders.TinyGAN(setting)
    found = kernels.milliseconds(trained, setting.batch(), steps=2, blocks=1)
    assert trained.trainer.step == (3 + 2 + 1) + (3 + 2 + 1)
    assert min(found.values()) > 0
    parts = kernels.profiled(trained, setting.batch())
    assert trained.trainer.step == 12 + kernels.WARM_UP + kernels.PROFILED + 1
    assert kernels.by_family(parts, gpu=False)["convolutions"] > 0
    (adam,) = (part for part in parts if part.name == "aten::_fused_adam_")
    assert adam.runs == 2


def fail():
    """Fail in a worker."""
    raise ModuleNotFoundError(name="lightning")


@pytest.mark.slow
def test_workers_answer_fail_and_hang():
    """One that fails goes on; one that hangs, or ends, is told."""
    worker = workers.Worker()
    try:
        assert worker.ask(os.path.basename, "a/b") == "b"
        with pytest.raises(workers.WorkerError, match="not installed: lightning"):
            worker.ask(fail)
        assert worker.ask(partial(int, base=2), "11") == 3
        with pytest.raises(TimeoutError, match="no answer within 0 s"):
            worker.ask(time.sleep, 600, patience=0.2)
        with pytest.raises(workers.WorkerError, match="ended with code -6"):
            worker.ask(int)
    finally:
        worker.end()
