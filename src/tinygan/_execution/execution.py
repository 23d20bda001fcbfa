"""How a run is executed: in which type, compiled, captured, by how many processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from tinygan import distributed
from tinygan._execution.finite import LossScale
from tinygan._run import checks
from tinygan.distributed import Ranks
from tinygan.player import Players


@dataclass(frozen=True)
class Execution:
    """How a trainer executes its steps.

    Args:
        dtype: the type in which the nets are applied in training, by autocast: ``torch.bfloat16``,
            or ``torch.float16`` for GPUs that lack it; None for the type of the weights. Weights,
            losses and samples keep theirs.
        compile: apply the nets by ``torch.compile`` in training; the first step takes a minute.
        capture: on a GPU, record a step as one CUDA graph or several, and replay it.
        ranks: the processes of the run; None for those that torchrun has started, see
            ``tinygan.distributed``.
        cudnn_benchmark: on a GPU, let cuDNN try its algorithms on each new shape, and take the
            fastest. Another run may take others, so not even a resumed run has the same bits.

    Examples:
        >>> Execution(dtype=torch.bfloat16, capture=True).compile
        False
    """

    dtype: torch.dtype | None = None
    compile: bool = False
    capture: bool = False
    ranks: Ranks | None = None
    cudnn_benchmark: bool = False

    def prepare(
        self, players: Players, device: torch.device | str | None
    ) -> tuple[Ranks, torch.dtype, LossScale | None]:
        """Move the nets to where they train; return the ranks, the type and its loss scale."""
        # Before the device is asked for: "cuda" is another one on each rank.
        ranks = self.ranks or distributed.join()
        where = players[0].device if device is None else checks.device(device)
        for player in players:
            own = _checked_dtype(self.dtype, player.weights_dtype)
            player.prepare(where, own, compiled=self.compile)
        dtype = players[0].applied.dtype
        # It belongs to autocast: nets that are in float16 themselves have none.
        scaled = dtype == torch.float16 and players[0].weights_dtype != torch.float16
        return ranks, dtype, LossScale(where) if scaled else None

    @contextmanager
    def cudnn_trials(self) -> Iterator[None]:
        """Within the block cuDNN tries its algorithms, if it is to."""
        if not self.cudnn_benchmark:
            yield
            return
        before = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = True
        try:
            yield
        finally:
            torch.backends.cudnn.benchmark = before


def _checked_dtype(dtype: torch.dtype | None, weights: torch.dtype) -> torch.dtype:
    lower = (torch.bfloat16, torch.float16) if weights == torch.float32 else ()
    possible = (weights, *lower)
    if dtype is not None and dtype not in possible:
        raise ValueError(
            f"dtype must be {' or '.join(map(str, possible))} for nets with weights of {weights}, "
            f"got {dtype!r}; leave it out, or convert the nets."
        )
    return weights if dtype is None else dtype


def checked(execution: object) -> Execution:
    """Return an execution; raise TypeError for anything else, such as a dtype alone."""
    if not isinstance(execution, Execution):
        raise TypeError(
            f"execution must be a tinygan.Execution, got {execution!r}; use "
            "tinygan.Execution(dtype=torch.bfloat16)."
        )
    return execution
