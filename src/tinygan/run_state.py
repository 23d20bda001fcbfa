"""What a run must remember to go on: gathered from a trainer, and given back to one."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from tinygan.hook import Hook

if TYPE_CHECKING:
    from tinygan.trainer import GANTrainer

COUNTERS = ("seed", "step", "images", "epoch", "batch")


def collect(trainer: GANTrainer, batches: dict[str, Any] | None) -> dict[str, Any]:
    """Return the run's state, with ``batches`` as the place in the data."""
    return {
        **{name: getattr(trainer, name) for name in COUNTERS},
        "batches": batches,
        "players": {
            player.name: {
                "module": player.module.state_dict(),
                "optimizer": player.optimizer.state_dict(),
            }
            for player in trainer.players
        },
        "hooks": {name: hook.state_dict() for name, hook in _named(trainer.hooks)},
    }


def restore(trainer: GANTrainer, state: dict[str, Any]) -> dict[str, Any] | None:
    """Give a trainer a copy of its state; return the place in the data."""
    state = copy.deepcopy(state)  # optimizers keep the very tensors they are given
    hooks = dict(_named(trainer.hooks))
    missing = [name for name, saved in state["hooks"].items() if saved and name not in hooks]
    if missing:
        raise ValueError(
            f"hooks must include those whose state is loaded, got none for {', '.join(missing)}; "
            "add them to hooks=, or delete their entries from state['hooks']."
        )
    for player in trainer.players:
        player.module.load_state_dict(state["players"][player.name]["module"])
        player.optimizer.load_state_dict(state["players"][player.name]["optimizer"])
    for name, saved in state["hooks"].items():
        if name in hooks:
            hooks[name].load_state_dict(saved)
    for name in COUNTERS:
        setattr(trainer, name, state[name])
    batches: dict[str, Any] | None = state["batches"]
    return batches


def _named(hooks: Sequence[Hook]) -> Iterator[tuple[str, Hook]]:
    """Name each hook for its state: by its class, numbered if there are several of one."""
    seen: dict[str, int] = {}
    for hook in hooks:
        name = type(hook).__name__
        seen[name] = seen.get(name, 0) + 1
        yield (name if seen[name] == 1 else f"{name}-{seen[name]}"), hook
