"""Every step's statistics as JSON lines."""

from __future__ import annotations

import json
import os
from math import isfinite
from pathlib import Path
from typing import Any

from typing_extensions import override

from tinygan._run import checks
from tinygan.hook import Hook, Run
from tinygan.hooks.history import History
from tinygan.hooks.run_folder import LogFile
from tinygan.report import Report


class JSONLog(Hook):
    """Write one JSON object per step to ``log.jsonl``: counters, losses and D's probabilities.

    A value that is not finite is null. No clock is in it, so two runs of one seed write the same
    bytes. Read it with ``pandas.read_json(path, lines=True)``, say.

    Args:
        folder: where to write.
        every: how often lines are written, in steps; each time waits for the device once.

    Examples:
        >>> log = JSONLog("runs/faces")
    """

    first_rank_only = True

    def __init__(self, folder: str | os.PathLike[str], *, every: int = 50) -> None:
        self.every = checks.count("every", every)
        self.folder = Path(folder)
        self._file = LogFile(self.folder / "log.jsonl")
        self._history = History()

    @override
    def on_fit_start(self, trainer: Run) -> None:
        self._file.open()

    @override
    def on_step_end(self, trainer: Run, report: Report) -> None:
        self._history.add(trainer, report)
        if len(self._history) >= self.every:
            self._flush()

    @override
    def on_fit_end(self, trainer: Run) -> None:
        self._flush()
        self._file.finish()

    @override
    def on_exception(self, trainer: Run, error: BaseException) -> None:
        self._flush()

    def _flush(self) -> None:
        if len(self._history) > 0:
            self._file.write(map(as_json, self._history.take()))  # sync

    @override
    def state_dict(self) -> dict[str, Any]:
        self._flush()
        return self._file.state_dict()

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._file.load_state_dict(state)
        self._history = History()


def as_json(row: dict[str, float]) -> str:
    """Return a row as one line of JSON, with null for what JSON has no number for: inf and NaN.

    Examples:
        >>> as_json({"step": 1, "loss_d": float("nan")})
        '{"step": 1, "loss_d": null}'
    """
    return json.dumps({name: value if isfinite(value) else None for name, value in row.items()})
