"""The hook: what may watch a run, and when.

The events of a run, in order::

    on_fit_start(trainer)
      on_epoch_start(trainer)
        on_step_start(trainer)
          on_gradients(trainer, player)   gradients are final, weights have not moved; by turns
          on_update(trainer, player)      weights have moved
        on_step_end(trainer, report)
      on_epoch_end(trainer)
      on_non_finite(trainer, error)       too many steps in a row were skipped
    on_fit_end(trainer)                   once, on normal return or after trainer.stop(reason)
    on_exception(trainer, error)          once otherwise; the error is then raised again

An epoch starts once and ends once, however many calls of ``fit`` it takes, unless it has to start
over. Hooks are called in list order.
"""

from __future__ import annotations

import difflib
import inspect
import logging
import os
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol, TypeAlias

import torch
from typing_extensions import override

from tinygan._execution.finite import NonFiniteError, SkippedSteps
from tinygan._run import checks
from tinygan.distributed import Ranks
from tinygan.player import Player, Players
from tinygan.report import Report

logger = logging.getLogger(__name__)

EVENTS = (
    "on_fit_start",
    "on_epoch_start",
    "on_step_start",
    "on_gradients",
    "on_update",
    "on_step_end",
    "on_epoch_end",
    "on_non_finite",
    "on_fit_end",
    "on_exception",
)


class Run(Protocol):
    """What hooks see of a trainer. Reading changes nothing.

    Attributes:
        step: completed steps, of all players.
        images: real examples seen so far.
        epoch: completed epochs.
        batch: completed batches of the current epoch.
        players: the players, by name and in order.
        data: the current step's batch on the device, this rank's part: a tensor (N, ...), or
            several; none before the first.
        hooks: all hooks, in order.
        seed: names every random draw of the run.
        device: where the run trains.
        ranks: the processes of the run.
        stop_reason: what the last ``stop`` said, or None.
        batches_per_epoch: the length of the current ``fit``'s batches; None if not known.
        rollbacks: how often the run went back to a checkpoint; each gives it other noise.
        between_steps: whether the state is that of a complete step or epoch, seen by all hooks.
    """

    step: int
    images: int
    epoch: int
    batch: int
    players: Players
    data: tuple[torch.Tensor, ...]
    hooks: tuple[Hook, ...]
    seed: int
    device: torch.device
    ranks: Ranks
    stop_reason: str | None
    batches_per_epoch: int | None
    rollbacks: int
    between_steps: bool

    @property
    def real(self) -> torch.Tensor:
        """The current step's real examples, (N, ...): the first tensor of ``data``."""

    @property
    def total_steps(self) -> int | None:
        """The steps at which the current ``fit`` is complete, or None if that is not known."""

    @property
    def total_epochs(self) -> int | None:
        """The epochs that the current ``fit`` takes, or None likewise."""

    @property
    def skipped(self) -> SkippedSteps:
        """The count of steps that were not finite and left no trace."""

    @property
    def compared_step(self) -> int:
        """The step at which all ranks were last found to hold the same bits."""

    def pictures(self) -> torch.Tensor:
        """Return the images (N, C, H, W) in [-1, 1] that show how far the run is."""

    def stop(self, reason: str) -> None:
        """Ask ``fit`` to return after the current step."""

    def state_dict(self) -> dict[str, Any]:
        """Return all that the run needs to go on."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what ``state_dict`` returned."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the run's state into one file."""


class Hook:
    """Base of everything that watches a run: override the events that matter, leave the rest.

    A hook that only reads changes nothing: the run ends in bit-identical weights with or without
    it, for nothing in the run draws from the global random state.

    Attributes:
        first_rank_only: in a run of several ranks, hear events on rank 0 alone. Right for hooks
            that write or draw; wrong for those that change gradients or weights, which all ranks
            must change alike.
        settings: what the hook does to a run, by name: a run is resumed only with the same. Empty
            for hooks that only watch.

    Raises:
        TypeError: at the subclass's ``class`` line, for a misspelt event or a wrong signature.

    Examples:
        >>> class Shout(Hook):
        ...     def on_fit_end(self, trainer):
        ...         print("done at step", trainer.step)
    """

    first_rank_only: bool = False
    settings: Mapping[str, object] = MappingProxyType({})

    def on_fit_start(self, trainer: Run) -> None:
        """``fit`` was called; nothing has moved yet."""

    def on_epoch_start(self, trainer: Run) -> None:
        """Epoch number ``trainer.epoch`` (from 0) begins."""

    def on_step_start(self, trainer: Run) -> None:
        """A batch is on the device, as ``trainer.real``; the nets have not seen it."""

    def on_gradients(self, trainer: Run, player: Player) -> None:
        """The player's gradients are final, its weights have not moved: clip or inspect here."""

    def on_update(self, trainer: Run, player: Player) -> None:
        """The player's weights have moved: average or clip weights here."""

    def on_step_end(self, trainer: Run, report: Report) -> None:
        """All players have moved; ``trainer.step`` counts this step.

        The report's tensors stay on the device: reading a value waits for it, so read every n-th.
        """

    def on_epoch_end(self, trainer: Run) -> None:
        """An epoch is complete; ``trainer.epoch`` counts it."""

    def on_non_finite(self, trainer: Run, error: NonFiniteError) -> None:
        """Losses or gradients were not finite in too many steps in a row, which were skipped.

        A hook that loads an earlier state rescues the run; else ``error`` ends it.
        """

    def on_fit_end(self, trainer: Run) -> None:
        """``fit`` returns; ``trainer.stop_reason`` says why if it was stopped."""

    def on_exception(self, trainer: Run, error: BaseException) -> None:
        """``fit`` ends by ``error`` (Ctrl-C included), which is raised again afterwards."""

    def state_dict(self) -> dict[str, Any]:
        """Return what the hook must remember across a resume: plain values and tensors."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what ``state_dict`` returned."""

    @override
    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a misspelt event or a wrong signature where it is written."""
        super().__init_subclass__(**kwargs)
        for name, member in vars(cls).items():
            if callable(member) and not name.startswith("_"):
                _check_event(cls.__name__, name, member)
        if (
            cls.state_dict is not Hook.state_dict and cls.load_state_dict is Hook.load_state_dict
        ):  # what is saved would be lost when the run is resumed
            raise TypeError(
                f"{cls.__name__} has state_dict without load_state_dict; define both, or neither."
            )


_BASE_METHODS = (*EVENTS, "state_dict", "load_state_dict")


def _check_event(owner: str, name: str, member: Callable[..., object]) -> None:
    if name not in _BASE_METHODS:
        # "step_end" and "onStepEnd" resemble an event by .84 and more; helpers' names do not.
        close = difflib.get_close_matches(name.lower(), EVENTS, n=1, cutoff=0.8)
        if close or name.startswith("on_"):
            meant = f"did you mean {close[0]}?" if close else f"events are {', '.join(EVENTS)}."
            raise TypeError(f"{owner}.{name} is not an event; {meant}")
        return
    expected = inspect.signature(getattr(Hook, name))
    try:
        inspect.signature(member).bind(*expected.parameters)
    except TypeError:
        given = inspect.signature(member)
        names = ", ".join(expected.parameters)
        raise TypeError(f"{owner}.{name}{given} must accept ({names}).") from None


def check_hooks(hooks: Iterable[object]) -> tuple[Hook, ...]:
    """Return hooks as a tuple.

    Raises:
        TypeError: for anything that is not a Hook, or a Hook that is not in a list.
        ValueError: for one that is there twice.
    """
    if isinstance(hooks, Hook):
        raise TypeError(f"hooks must be a list of Hook objects, got {hooks!r}; pass [it].")
    found: list[Hook] = []
    for hook in hooks:
        if not isinstance(hook, Hook):
            raise TypeError(
                f"hooks must be Hook objects, got {hook!r}; subclass tinygan.Hook, "
                "or wrap a function as tinygan.hooks.every(100, function)."
            )
        if any(hook is other for other in found):
            raise ValueError(
                f"hooks must be different objects, got the same {type(hook).__name__} twice; leave "
                "one out, or make a second."
            )
        found.append(hook)
    return tuple(found)


_users: weakref.WeakKeyDictionary[Hook, object] = weakref.WeakKeyDictionary()
"""For each hook that has watched a run, a token of the trainer whose run that was."""


def check_unused(hooks: Iterable[Hook], token: object) -> None:
    """Raise ValueError for a hook that has watched another trainer's run: it remembers that run.

    Args:
        hooks: the hooks of a trainer.
        token: stands for the trainer.
    """
    for hook in hooks:
        if _users.setdefault(hook, token) is not token:
            raise ValueError(
                f"a hook must watch one trainer's run, got a {type(hook).__name__} that has "
                "watched another's, and remembers it; make a new one for each trainer."
            )


def listens_between_pieces(hooks: Iterable[Hook]) -> bool:
    """Return whether any hook runs in the middle of a step.

    Examples:
        >>> listens_between_pieces([every(10, lambda trainer, report: None)])
        False
    """
    return any(
        getattr(type(hook), event) is not getattr(Hook, event) or event in vars(hook)
        for hook in hooks
        for event in ("on_gradients", "on_update")
    )


def call(hooks: Sequence[Hook], event: str, *arguments: object) -> None:
    """Call one event of every hook, in order; an error is raised with the hook's name."""
    for hook in hooks:
        try:
            getattr(hook, event)(*arguments)
        except Exception as error:
            error.add_note(f"raised by the hook {type(hook).__name__}, in {event}")
            raise


def call_on_exception(hooks: Sequence[Hook], trainer: Run, error: BaseException) -> None:
    """Tell every hook of the error; what fails in the telling is logged and must not hide it."""
    for hook in hooks:
        try:
            hook.on_exception(trainer, error)
        except Exception:  # the error that ends the run is the one to raise
            logger.exception(
                "%s.on_exception failed while the run was ending by %r", type(hook).__name__, error
            )


StepFunction: TypeAlias = Callable[[Run, Report], object]
"""Called as ``function(trainer, report)``."""


class every(Hook):  # noqa: N801 - reads as the verb it is: every(100, show)
    """Make a hook of a plain function, called after every n-th step.

    Args:
        n: how often, in steps.
        function: called as ``function(trainer, report)``.

    Raises:
        ValueError: for n under 1.
        TypeError: for a function that does not take those two arguments.

    Examples:
        >>> show = every(100, lambda trainer, report: print(trainer.step, report.floats()))
    """

    def __init__(self, n: int, function: StepFunction) -> None:
        self.n = checks.count("n", n)
        try:
            inspect.signature(function).bind("trainer", "report")
        except TypeError:
            raise TypeError(
                f"every({n}, {function!r}): it must accept (trainer, report)."
            ) from None
        self.function = function

    @override
    def on_step_end(self, trainer: Run, report: Report) -> None:
        """Call the function if this is an n-th step."""
        if trainer.step % self.n == 0:
            self.function(trainer, report)
