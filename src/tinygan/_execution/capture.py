"""Steps as CUDA graphs: when a step is recorded, and how it is replayed between the hooks.

A step is some hundreds of small kernels, which a GPU runs faster than Python can ask for them. A
graph asks for all of a piece at once. If nothing happens at the borders, a step is one piece. Else
a piece is what the algorithm does up to its next border, or a player's update, and hooks run at the
borders as ever. Between steps they may change anything that graphs hold: tensors, options, modes,
layers, hooks of PyTorch's own. All is recorded anew then. Within a step they may write into
weights, buffers, moments and gradients, replace gradients by others of the same layout, and set
learning rates that have changed before; anything else there is an error.

Python inside the nets, the algorithm and the optimizers (forward hooks, a line that prints) runs
only while a step is recorded.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager

from tinygan import optimizers
from tinygan._execution.cuda_graphs import recorder_for
from tinygan._execution.recording import RATES, Border, Held, Kind, Recording
from tinygan._execution.step import Step
from tinygan.batch import Batch, Draw
from tinygan.player import Player
from tinygan.report import Report

logger = logging.getLogger(__name__)

WARM_UP = 3
"""Eager steps before a recording: libraries choose and prepare their kernels in the first ones."""

MOST = 4
"""Kinds of steps that are recorded: whole and short batches, with a penalty and without."""

MOST_ANEW = 16
"""How often recordings may be made again; beyond that they cost more than they save."""


class CapturedStep:
    """A step that is recorded, for each kind of step, and then replayed.

    What cannot be recorded runs eagerly, with one warning.

    Args:
        step: the step.
        alone: whether no other rank has to be met at the borders.
    """

    def __init__(self, step: Step, *, alone: bool) -> None:
        self._step, self._alone = step, alone
        self._watched = False
        self.skipped = step.skipped
        self.loss_scale = step.loss_scale
        self._recorder = recorder_for(step.device)
        self._warned: set[str] = set()
        if self._recorder is None:
            self._warn("capture needs a CUDA device, got %s: steps run eagerly.", step.device)
        self._asked: set[int] = set()
        self._seen: Counter[Kind] = Counter()
        self._last: dict[Kind, tuple[list[str], dict[str, Draw]]] = {}
        """What in the last eager step of each kind cannot be recorded, and its draws by name."""
        self._moments: dict[Player, int] = {}
        """How many weights had moments after each player's last eager update."""
        self._recordings: dict[Kind, Recording] = {}
        self._held: Held | None = None
        """What all recordings hold; None if there are none."""
        # A constant rate is recorded as such, in all its bits; one that has changed, as a tensor.
        self._rates_change = False
        self._forgotten = 0
        self._border: Border | None = None
        """Where the step that is replayed stands; None in one that runs eagerly."""
        self._against: list[str] = []
        self.report: Report

    def watch(self, watched: bool) -> None:
        """Learn whether hooks run at the borders: then steps are recorded in pieces.

        What hooks must not change is then looked for after each of them as well.
        """
        if watched != self._watched:
            self._watched = watched
            self.begin_anew()

    def phases(self, batch: Batch) -> Generator[Player]:
        """Do as ``Step.phases`` does."""
        recording = self._recording(batch)
        self._border = None
        if recording is not None:
            yield from self._replayed(recording, batch)
            return
        self._against = []
        with closing(self._step.phases(batch)) as phases:
            while True:
                with self._eagerly():
                    player = next(phases, None)
                if player is None:
                    break
                self._against += [
                    f"the {other.name} pays before the {player.name} is yielded, where a hook may "
                    "change the gradients of both; let it pay after that"
                    for other in self._step.players
                    if self._watched and other.ledger.paid and other is not player
                ]
                yield player
        self.report = self._step.report
        self._asked |= batch.draws.asked
        kind = self._kind(batch)
        self._seen[kind] += 1
        drawn = {name: draw for name, (draw, _) in batch.draws.drawn.items()}
        self._last[kind] = self._against, drawn

    def _replayed(self, recording: Recording, batch: Batch) -> Iterator[Player]:
        self._step.begin()
        recording.begin(batch)
        for border in recording.borders:
            border.replay_phase()
            self._border, self._step.phase = border, border.phase
            yield border.player
            if self._watched:
                border.held.check()
        self.report = recording.replay_end()

    def update(self, player: Player) -> None:
        """Do as ``Step.update`` does."""
        border = self._border
        if border is None:
            with self._eagerly():
                self._step.measure(player)
            with self._eagerly(noted=optimizers.recordable(player.optimizer)):
                self._step.move(player)
            if optimizers.recordable(player.optimizer):
                self._moments[player] = _with_moments(player)
            return
        if self._watched:
            border.held.check()
            border.take_gradients()
            border.fill_rates()
        border.replay_update()

    def begin_anew(self) -> None:
        """Record all steps anew: the state may be another, on this rank or on others."""
        self._held = None
        self._recordings.clear()
        self._seen.clear()
        if self._recorder is not None:  # whose pool of memory cannot be used again
            self._recorder = recorder_for(self._step.device)

    @contextmanager
    def _eagerly(self, *, noted: bool = True) -> Iterator[None]:
        if self._recorder is None:
            yield
            return
        with self._recorder.eagerly() as waits:
            yield
        if noted:
            self._against += waits

    def _kind(self, batch: Batch) -> Kind:
        shapes = tuple(tensor.shape for tensor in batch.tensors)
        answers = tuple(batch.draws.step % steps == 0 for steps in sorted(self._asked))
        size = batch.draws.shape[0]
        return shapes, answers, size, self._step.is_short(size)

    def _recording(self, batch: Batch) -> Recording | None:
        """Return what to replay for such a batch, or None to run it eagerly."""
        if self._held is not None and (changed := self._held.changed()):
            self._forget(what for _, what in changed)
        kind = self._kind(batch)
        if kind in self._recordings:
            return self._recordings[kind]
        if self._recorder is None or self._seen[kind] < WARM_UP:
            return None
        if len(self._recordings) == MOST:
            self._warn("there are more than %d kinds of steps: further kinds run eagerly.", MOST)
            return None
        if any(_with_moments(player) < before for player, before in self._moments.items()):
            self._forget(["moments"])  # a recording would make them anew in each replay
            return None
        try:
            against, drawn = self._last[kind]
            if against:  # better found before a recording than in it
                raise RuntimeError(against[0])
            held = self._held or Held(self._step.players, rates_change=self._rates_change)
            whole = self._alone and not self._watched and not held.eager
            recording = Recording(self._step, self._recorder, held, batch, drawn, whole=whole)
        except Exception as error:
            self._recorder = None
            self.begin_anew()
            self._warn("a step cannot be captured, so all run eagerly: %s", error)
            return None
        for player in held.eager:
            self._warn(
                "the update of the %s cannot be captured and runs eagerly: its optimizer is a %s; "
                "Adam, AdamW and SGD can, with fused=True.",
                player.name, type(player.optimizer).__name__,
            )  # fmt: skip
        self._held, self._recordings[kind] = held, recording
        return recording

    def _forget(self, changed: Iterable[str]) -> None:
        self._rates_change |= RATES in changed
        self._forgotten += 1
        self.begin_anew()
        if self._forgotten > MOST_ANEW:
            self._recorder = None
            self._warn(
                "what is recorded of steps has changed %d times: they run eagerly from here on.",
                self._forgotten,
            )  # fmt: skip

    def _warn(self, sentence: str, *arguments: object) -> None:
        if sentence not in self._warned:
            self._warned.add(sentence)
            logger.warning(sentence, *arguments)


def _with_moments(player: Player) -> int:
    return sum(map(bool, player.optimizer.state.values()))
