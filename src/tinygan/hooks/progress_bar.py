"""A progress bar in the terminal."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm
from typing_extensions import override

from tinygan import checks
from tinygan.hook import Hook
from tinygan.step import StepReport
from tinygan.trainer import GANTrainer


class ProgressBar(Hook):
    """Show steps done, speed, time left and both losses; nothing where there is no terminal.

    Args:
        every: how often the losses are read, in steps; each reading waits for the device.

    Examples:
        >>> bar = ProgressBar()
    """

    first_rank_only = True

    def __init__(self, *, every: int = 20) -> None:
        self.every = checks.count("every", every)
        self._bar: tqdm[Any] | None = None

    @override
    def on_fit_start(self, trainer: GANTrainer) -> None:
        # disable=None is tqdm's word for "unless there is a terminal".
        self._bar = tqdm(total=trainer.total_steps, initial=trainer.step, unit="step", disable=None)

    @override
    def on_step_end(self, trainer: GANTrainer, report: StepReport) -> None:
        assert self._bar is not None
        self._bar.update(trainer.step - self._bar.n)  # less than 0 if the run has gone back
        if trainer.step % self.every == 0 and not self._bar.disable:
            self._bar.set_postfix(  # sync
                Loss_D=f"{report.loss_d.item():.3f}",
                Loss_G=f"{report.loss_g.item():.3f}",
                refresh=False,
            )

    @override
    def on_fit_end(self, trainer: GANTrainer) -> None:
        self._close()

    @override
    def on_exception(self, trainer: GANTrainer, error: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
