"""Workers in scripts, where Python starts them by importing the script again."""

from __future__ import annotations

import os
import subprocess
import sys

from PIL import Image

SCRIPT = """
import multiprocessing, os, signal, sys, torch
from tinygan import data

class Tells:
    def __len__(self):
        return 4

    def __getitem__(self, index):
        if os.path.exists("die"):
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.tensor([os.getpid()])

multiprocessing.set_start_method(sys.argv[1], force=True)
"""
LOADS = SCRIPT + "list(data.Loader(Tells(), 2, workers=1))"
PACKS = SCRIPT + "data.pack('pictures', 'packed.npy', 8, workers=2)"
GUARDED = (
    SCRIPT
    + """
from tinygan.data import workers

if __name__ == "__main__":
    del workers.signal  # Windows has no pthread_sigmask
    loader = data.Loader(Tells(), 2, workers=1)
    first, second = (torch.cat(list(loader)).unique().tolist() for _ in range(2))
    assert first == second != [os.getpid()]
    open("die", "w").close()
    try:
        list(loader)
    except RuntimeError as error:
        assert "workers must not end while they load, got exit code -9" in str(error), error
    else:
        raise AssertionError
"""
)


def test_scripts_where_processes_are_not_forked(tmp_path):
    """Without a main guard they end at once with the remedy; with it they run, workers kept."""
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "pictures" / "1.png")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
    started = []
    for method, text in (("spawn", LOADS), ("forkserver", PACKS), ("spawn", GUARDED)):
        path = tmp_path / f"{len(started)}.py"
        path.write_text(text)
        command = [sys.executable, path, method]
        started.append(
            subprocess.Popen(
                command, env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True
            )
        )
    *unguarded, guarded = [(each.communicate(timeout=600)[1], each.returncode) for each in started]
    assert guarded == ("", 0)
    for errors, code in unguarded:
        assert code == 1
        assert (
            "RuntimeError: workers must be able to import the script and the data set, got none "
            "that could; put the script's code under if __name__ == '__main__':, or use workers=0. "
            "(In a notebook, put the data set's class into a module.)\n"
        ) in errors
        assert "freeze_support" not in errors
        assert "leaked" not in errors
