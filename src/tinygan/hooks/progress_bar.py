"""A progress bar in the terminal."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm
from typing_extensions import override

from tinygan._run import checks
from tinygan.hook import Hook, Run
from tinygan.report import Report


class ProgressBar(Hook):
    """Show steps done, speed, time left and statistics; nothing where there is no terminal.

    Args:
        every: how often the statistics are read, in steps; each reading waits for the device.

    Examples:
        >>> bar = ProgressBar()
    """

    first_rank_only = True

    def __init__(self, *, every: int = 20) -> None:
        self.every = checks.count("every", every)
        self._bar: tqdm[Any] | None = None

    @override
    def on_fit_start(self, trainer: Run) -> None:
        # disable=None is tqdm's word for "unless there is a terminal".
        self._bar = tqdm(total=trainer.total_steps, initial=trainer.step, unit="step", disable=None)

    @override
    def on_step_end(self, trainer: Run, report: Report) -> None:
        assert self._bar is not None
        self._bar.update(trainer.step - self._bar.n)  # less than 0 if the run has gone back
        if trainer.step % self.every == 0 and not self._bar.disable:
            values = report.floats()  # sync
            # What players pay comes first: a narrow terminal cuts the rest off.
            names = sorted(values, key=lambda name: not is_cost(name))
            shown = {short(name): f"{values[name]:.3f}" for name in names}
            self._bar.set_postfix(shown, refresh=False)

    @override
    def on_fit_end(self, trainer: Run) -> None:
        self._close()

    @override
    def on_exception(self, trainer: Run, error: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def is_cost(name: str) -> bool:
    """Return whether a statistic is what a player pays.

    Examples:
        >>> is_cost("loss_generator"), is_cost("d_real")
        (True, False)
    """
    return name.startswith("loss_")


def short(name: str) -> str:
    """Return a short name of a player's loss, for D and G the tutorial's, and others as they are.

    Examples:
        >>> short("loss_generator"), short("loss_critic")
        ('Loss_G', 'Loss_critic')
    """
    if not is_cost(name):
        return name
    player = name.removeprefix("loss_")
    return f"Loss_{player[0].upper() if player in ('generator', 'discriminator') else player}"
