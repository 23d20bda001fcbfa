"""The hook: what may watch a run, and when.

The events are methods of ``Hook``, in the order of a run; docs/hooks.md shows how they nest.
An epoch starts once and ends once, however many calls of ``fit`` it takes, unless it has to start
over. Hooks are called in list order.
"""

from __future__ import annotations

import difflib
import inspect
import logging
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from tinygan._execution.finite import NonFiniteError
from tinygan._run import checks
from tinygan.player import Player
from tinygan.report import Report
from tinygan.run import Run as Run

logger = logging.getLogger(__name__)


class Hook:
    """Base of everything that watches a run: override the events that matter, leave the rest.

    A hook that only reads changes nothing: the run ends in bit-identical weights with or without
    it, for nothing in the run draws from the global random state.

    A misspelt event, or a wrong signature, is a TypeError at the subclass's ``class`` line.

    Attributes:
        first_rank_only: in a run of several ranks, hear events on rank 0 alone. Right for hooks
            that write or draw, wrong for those that change gradients or weights.
        folder: where the hook writes, if it does; by this hooks of one class are told apart.
        settings: what the hook does to a run, by name: a run is resumed only with the same.

    Examples:
        >>> class Shout(Hook):
        ...     def on_fit_end(self, trainer):
        ...         print("done at step", trainer.step)
    """

    first_rank_only: bool = False
    folder: Any
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
        """All players have moved; to read the report waits for the device, so do it rarely."""

    def on_epoch_end(self, trainer: Run) -> None:
        """An epoch is complete; ``trainer.epoch`` counts it."""

    def on_non_finite(self, trainer: Run, error: NonFiniteError) -> None:
        """Too many steps in a row were skipped: load an earlier state, or the run ends."""

    def on_fit_end(self, trainer: Run) -> None:
        """``fit`` returns; ``trainer.stop_reason`` says why if it was stopped."""

    def on_exception(self, trainer: Run, error: BaseException) -> None:
        """``fit`` ends by ``error`` (a second Ctrl-C included), which is raised afterwards."""

    def state_dict(self) -> dict[str, Any]:
        """Return what the hook must remember across a resume: plain values and tensors."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what ``state_dict`` returned."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for base in cls.__mro__:
            for name, member in vars(base).items():
                # What mixins are for besides is their own: dict has an update.
                is_own = base is cls and not name.startswith("_")
                if callable(member) and (is_own or name.startswith("on_")):
                    _check_method(f"{base.__name__}.{name}", name, member)
        own = [getattr(cls, name) is not getattr(Hook, name) for name in STATE]
        if own == [True, False]:  # what is saved would be lost when the run is resumed
            raise TypeError(
                f"{cls.__name__} has state_dict without load_state_dict; define both, or neither."
            )


STATE = ("state_dict", "load_state_dict")
EVENTS = tuple(name for name in vars(Hook) if name.startswith("on_"))


def _check_method(owner: str, name: str, member: Callable[..., object]) -> None:
    if name in (*EVENTS, *STATE):
        expected = inspect.signature(getattr(Hook, name)).parameters
        _check_call(owner, member, f"({', '.join(expected)})", "see tinygan.Hook.")
        return
    # "step_end" and "onStepEnd" resemble an event by .84 and more; helpers' names do not.
    close = difflib.get_close_matches(name.lower(), EVENTS, n=1, cutoff=0.8)
    if close or name.startswith("on_"):
        meant = f"did you mean {close[0]}?" if close else f"events are {', '.join(EVENTS)}."
        raise TypeError(f"{owner} is not an event; {meant}")


def _check_call(owner: str, function: object, arguments: str, remedy: str) -> None:
    """Raise TypeError for what cannot be called so, or would not run by the call."""
    checks.takes(owner, function, arguments, remedy)
    if any(is_such(function) for is_such in DEFERRED):
        raise TypeError(f"{owner} must run when it is called; write it without async and yield.")


DEFERRED = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)


def check_hooks(hooks: Iterable[object]) -> tuple[Hook, ...]:
    """Return one hook or several as a tuple, if they are different Hook objects."""
    remedy = "subclass tinygan.Hook, or wrap a function as tinygan.hooks.every(100, function)."
    found = checks.several("hooks", hooks, Hook, remedy)
    for index, hook in enumerate(found):
        if hook in found[:index]:
            raise ValueError(
                f"hooks must be different objects, got the same {type(hook).__name__} twice; leave "
                "one out, or make a second."
            )
    return found


def check_unused(hooks: Iterable[object], token: object) -> None:
    """Raise ValueError for a hook that has watched, and remembers, another trainer's run."""
    for hook in hooks:
        if vars(hook).setdefault("_token", token) is not token:
            raise ValueError(
                f"a hook must watch one trainer's run, got a {type(hook).__name__} that already "
                "belongs to another trainer; make a new one for each."
            )


def listens_at_borders(hooks: Iterable[object]) -> bool:
    """Return whether any hook runs in the middle of a step, where a player is yielded."""
    return any(
        getattr(getattr(hook, event), "__func__", None) is not getattr(Hook, event)
        for hook in hooks
        for event in ("on_gradients", "on_update")
    )


def call(hooks: Iterable[object], event: str, *arguments: object) -> None:
    """Call one event of every hook, in order; an error is raised with the hook's name."""
    for hook in hooks:
        try:
            getattr(hook, event)(*arguments)
        except Exception as error:
            error.add_note(f"raised by the hook {type(hook).__name__}, in {event}")
            raise


def call_on_exception(hooks: Iterable[Any], trainer: Run, error: BaseException) -> None:
    """Call every hook's ``on_exception``; its own errors are logged and hide nothing."""
    for hook in hooks:
        try:
            hook.on_exception(trainer, error)
        except Exception:
            name = type(hook).__name__
            logger.exception("%s.on_exception failed while the run was ending by %r", name, error)


class every(Hook):  # noqa: N801 - reads as the verb it is: every(100, show)
    """Make a hook of a function, called as ``function(trainer, report)`` after every n-th step.

    Examples:
        >>> show = every(100, lambda trainer, report: print(trainer.step, report.floats()))
    """

    def __init__(self, n: int, function: Callable[[Run, Report], object]) -> None:
        self.n = checks.count("n", n)
        remedy = "use lambda trainer, report: print(report.floats()), for example."
        _check_call("what every calls", function, "(trainer, report)", remedy)
        self.function = function

    def on_step_end(self, trainer: Run, report: Report) -> None:
        if trainer.step % self.n == 0:
            self.function(trainer, report)
