"""How a run is executed: in which type, compiled, captured, by how many processes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tinygan import distributed
from tinygan._execution import precision
from tinygan._execution.precision import LossScale
from tinygan.distributed import Ranks
from tinygan.nets import traits
from tinygan.player import Players


@dataclass(frozen=True)
class Execution:
    """How a trainer executes its steps.

    Args:
        dtype: the type in which the nets are applied in training, by autocast: ``torch.bfloat16``,
            or ``torch.float16`` for GPUs that lack it; None for the weights' own. The weights, the
            losses and samples keep theirs.
        compile: apply the nets by ``torch.compile`` in training, which takes a minute at first.
        capture: on a GPU, record the pieces of a step as CUDA graphs, after some steps, and replay
            them, see ``tinygan._execution.capture``.
        sync_batch_norm: let batch norm see the whole batch of a run of several ranks, on GPUs;
            else each rank's sees its own part.
        ranks: the processes of the run; None for those that torchrun has started, see
            ``tinygan.distributed``.

    Examples:
        >>> Execution(dtype=torch.bfloat16, capture=True).compile
        False
    """

    dtype: torch.dtype | None = None
    compile: bool = False
    capture: bool = False
    sync_batch_norm: bool = False
    ranks: Ranks | None = None

    def __post_init__(self) -> None:
        if self.sync_batch_norm and self.capture:
            raise ValueError(
                "sync_batch_norm must be without capture and penalty, got one of them; leave it "
                "out: it can be neither recorded nor differentiated twice."
            )

    def prepare(
        self, players: Players, device: torch.device | str | None
    ) -> tuple[Ranks, torch.dtype, LossScale | None]:
        """Move the nets to where they train, and choose how they are applied.

        Args:
            players: whose nets these are.
            device: where to train; None for where the first player's net is.

        Returns:
            The processes of the run, the type in which the first player's net is applied, and
            float16's loss scale.

        Raises:
            ValueError: for a type in which the nets cannot be applied, or ``sync_batch_norm``
                without a GPU.
        """
        # Before the device is asked for: "cuda" is another one on each rank.
        ranks = distributed.join() if self.ranks is None else self.ranks
        where = players[0].device if device is None else torch.device(device)
        weights = players[0].weights_dtype
        dtype = precision.check(self.dtype, weights)
        scale = precision.loss_scale_for(dtype, weights, where)
        for player in players:
            if self.sync_batch_norm:
                player.module = traits.synchronised(player.module, where)
            own = precision.check(self.dtype, player.weights_dtype)
            player.prepare(where, own, compiled=self.compile, loss_scale=scale)
        return ranks, dtype, scale


def checked(execution: object) -> Execution:
    """Return an execution.

    Raises:
        TypeError: for anything else, such as a dtype alone.

    Examples:
        >>> checked(Execution()).capture
        False
    """
    if not isinstance(execution, Execution):
        raise TypeError(
            f"execution must be a tinygan.Execution, got {execution!r}; use "
            "tinygan.Execution(dtype=torch.bfloat16)."
        )
    return execution
