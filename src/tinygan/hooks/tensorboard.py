"""Curves and sample grids in TensorBoard."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from tinygan import pictures
from tinygan._run import checks
from tinygan._run.checks import require
from tinygan.hook import Hook, Run
from tinygan.hooks.run_folder import not_fatal, prepared
from tinygan.report import Report

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoard(Hook):
    """Write the step's statistics and the fixed noise's images for TensorBoard.

    Needs tensorboard: ``pip install "tinygan[tensorboard]"``. Look at them with
    ``tensorboard --logdir runs/faces``.

    Args:
        folder: where the folder ``tensorboard`` is made.
        every: how often statistics are written, in steps; each time waits for the device.
        images_every: how often images are.

    Raises:
        ImportError: if tensorboard is not installed.

    Examples:
        >>> board = TensorBoard("runs/faces")
    """

    first_rank_only = True

    def __init__(
        self, folder: str | os.PathLike[str], *, every: int = 50, images_every: int = 500
    ) -> None:
        require("tensorboard", extra="tensorboard", wanted_by="TensorBoard")
        self.folder = Path(folder)
        self.every = checks.count("every", every)
        self.images_every = checks.count("images_every", images_every)
        self._writer: SummaryWriter | None = None

    @override
    def on_fit_start(self, trainer: Run) -> None:
        prepared(self.folder / "tensorboard")

    @override
    def on_step_start(self, trainer: Run) -> None:
        self._opened(trainer.step)

    @override
    def on_step_end(self, trainer: Run, report: Report) -> None:
        with not_fatal(self.folder):
            if trainer.step % self.every == 0:
                for name, value in report.floats().items():  # sync
                    self._opened(trainer.step).add_scalar(name, value, trainer.step)
            if trainer.step % self.images_every == 0:
                self._write_samples(trainer)

    @override
    def on_fit_end(self, trainer: Run) -> None:
        self._write_samples(trainer)
        self._close()

    @override
    def on_exception(self, trainer: Run, error: BaseException) -> None:
        self._close()

    def _write_samples(self, trainer: Run) -> None:
        from torchvision.transforms.functional import pil_to_tensor

        picture = pictures.grid(trainer.pictures())
        self._opened(trainer.step).add_image("samples", pil_to_tensor(picture), trainer.step)

    def _opened(self, step: int) -> SummaryWriter:
        """Return the writer; a new one discards what an earlier one wrote after this step."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=step + 1)
        return self._writer

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._close()
