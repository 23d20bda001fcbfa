"""The processes that load in the background: deaf to signals, and kept from epoch to epoch."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import signal
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any

import numpy as np
import torch
from torch.utils.data._utils import worker as pytorchs

from tinygan._run import signals
from tinygan.data.examples import load

# Seconds that a worker has for its current batch when it is told to end.
_GRACE = 1.0
# Seconds after an epoch in which the next one may begin with the same workers. A worker ends by
# itself after twice as long, so that none does while it is being asked.
_REST = 30.0
# Batches that each worker is asked for ahead of time.
_AHEAD = 2


class Workers:
    """Processes that each have a copy of a data set, and load batches of it.

    A signal to stop reaches the whole process group: the run that is asked to finish its step and
    save still needs its workers. So they ignore SIGINT and SIGTERM, and the second is what
    multiprocessing would end them with. They are told to end instead, and killed if they do not.
    """

    def __init__(self, dataset: Any, count: int, timeout: float) -> None:
        if getattr(multiprocessing.current_process(), "_inheriting", False):
            # A worker that runs the script to learn what it defines, and has come to where workers
            # are started. The run that waits for it says what to do.
            os._exit(1)
        self.dataset, self.count, self.timeout, self._home = dataset, count, timeout, os.getpid()
        self._forks = multiprocessing.get_start_method() == "fork"
        self._answered, self._resting = self._forks, 0.0
        self._pairs: list[tuple[BaseProcess, Connection]] = []
        # Runs before multiprocessing waits for its children to heed a signal that they ignore: when
        # the interpreter ends, and when a process of multiprocessing does, which has no atexit.
        self.end = Finalize(self, _end, [self._pairs], exitpriority=0)
        # Signals wait, and for ever in processes that are forked meanwhile. Not if a server starts
        # the processes: it would hand the mask on to all of them.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signals.SIGNALS) if self._forks else None
        try:
            for number in range(count):
                self._start(number)
        except BaseException as error:  # one could not be started: let the others go
            self.end()
            if isinstance(error, (EOFError, OSError)) and not self._answered:
                raise self._died() from error
            raise
        finally:
            if mask is not None:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _start(self, number: int) -> None:
        ours, theirs = multiprocessing.Pipe()
        # A forked worker has the run's ends of all pipes too. It closes them, or else nobody would
        # notice that the run has died.
        inherited = [*(pipe for _, pipe in self._pairs), ours] if self._forks else []
        process = multiprocessing.Process(
            target=_work, args=(self.dataset, theirs, inherited, number, self.count), daemon=True
        )
        process.start()
        self._pairs.append((process, ours))
        theirs.close()

    def can_go_on(self, dataset: Any, count: int) -> bool:
        """Return whether they load this data set, and all wait for another epoch."""
        ends = [end for process, pipe in self._pairs for end in (process.sentinel, pipe)]
        is_same = self.dataset is dataset and (self.count, self._home) == (count, os.getpid())
        return is_same and time.monotonic() < self._resting + _REST and not wait(ends, 0)

    def batches(self, tasks: Sequence[list[int]], seed: int) -> Iterator[Any]:
        """Give the batch of each list of indices, in order. If not all are taken, the workers end.

        ``seed`` is what each worker's global random state begins with, but for its number.
        """
        ahead = _AHEAD * self.count
        try:
            for number in range(self.count):
                self._tell(number, seed)
            for asked in range(len(tasks) + ahead):
                if asked < len(tasks):
                    self._tell(asked % self.count, tasks[asked])
                if asked >= ahead:
                    yield self._take(asked % self.count)
            for number in range(self.count):
                self._tell(number, None)
        except BaseException:
            self.end()
            raise
        self._resting = time.monotonic()

    def _tell(self, number: int, message: object) -> None:
        process, pipe = self._pairs[number]
        try:
            pipe.send(message)
        except OSError as error:
            raise self._died(process) from error

    def _take(self, number: int) -> Any:
        process, pipe = self._pairs[number]
        if not wait([pipe, process.sentinel], self.timeout):
            raise RuntimeError(
                f"workers must give a batch within timeout={self.timeout} seconds, got none from "
                f"process {process.pid}; it is stuck, or needs a longer timeout."
            )
        try:
            taken = pipe.recv() if pipe.poll() else None
        except (EOFError, OSError) as error:  # it may die while it hands a batch over
            raise self._died(process) from error
        if taken is None:
            raise self._died(process)
        self._answered = True
        [batch] = taken
        if isinstance(batch, Exception):
            raise batch
        return batch

    def _died(self, process: BaseProcess | None = None) -> RuntimeError:
        if process is None or not self._answered:
            return RuntimeError(
                "workers must be able to import the script and the data set, got none that could; "
                "put the script's code under if __name__ == '__main__':, or use workers=0. (In a "
                "notebook, put the data set's class into a module.)"
            )
        process.join(_GRACE)
        return RuntimeError(
            f"workers must not end while they load, got exit code {process.exitcode} from process "
            f"{process.pid}; -9 is often a lack of memory, for which fewer workers help."
        )


def _end(pairs: list[tuple[BaseProcess, Connection]]) -> None:
    """Let each finish its current batch within the time it is given, and kill the others."""
    limit = time.monotonic() + _GRACE
    try:
        for _, pipe in pairs:
            with suppress(OSError):
                pipe.send(())
            pipe.close()  # for one that has more to do before it would read that
        for process, _ in pairs:
            process.join(max(0, limit - time.monotonic()))
    finally:
        for process, _ in pairs:
            process.kill()
        for process, _ in pairs:
            process.join()


def _work(
    dataset: Any, pipe: Connection, inherited: list[Connection], number: int, count: int
) -> None:
    """Load what is asked for: a list is a batch's indices, an int begins an epoch, None ends it."""
    signals.ignore()
    for other in inherited:
        other.close()
    torch.set_num_threads(1)
    rests = True
    with suppress(EOFError, ConnectionError):  # the run has died, or broken off
        while pipe.poll(2 * _REST if rests else None):
            message = pipe.recv()
            if message == ():
                return
            rests = message is None
            if isinstance(message, int):
                seed = message + number
                random.seed(seed)
                torch.manual_seed(seed)  # noqa: TID251 - the worker's own
                np.random.seed(seed % 2**32)
                # What torch.utils.data.get_worker_info() returns to data sets that ask. It also
                # lets batches be made in shared memory.
                pytorchs._worker_info = pytorchs.WorkerInfo(
                    id=number, num_workers=count, seed=seed, dataset=dataset
                )
            elif message is not None:
                _give(pipe, dataset, message)


def _give(pipe: Connection, dataset: Any, indices: list[int]) -> None:
    """Send a batch, or what has kept it from being made or sent."""
    try:
        pipe.send((load(dataset, indices),))
    except Exception as error:
        try:
            sent: Exception = pickle.loads(pickle.dumps(error))
        except Exception:
            sent = RuntimeError(f"{type(error).__name__}: {error}")
        sent.add_note(f"in a worker:\n{''.join(traceback.format_exception(error)).rstrip()}")
        pipe.send((sent,))
