"""The processes that load in the background: deaf to signals, and kept from epoch to epoch."""

from __future__ import annotations

import math
import multiprocessing
import os
import pickle
import random
import signal
import threading
import traceback
from collections.abc import Iterator
from multiprocessing.connection import wait
from multiprocessing.util import Finalize
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, get_worker_info
from torch.utils.data._utils import signal_handling
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from tinygan._run import signals
from tinygan.data.examples import load

# Seconds that a worker has to end when it is told to, and between looks at whether one has died.
_GRACE = 1.0


class Workers(_MultiProcessingDataLoaderIter):
    """The iterator of PyTorch's ``DataLoader``, over one list of tasks after the other.

    A signal to stop reaches the whole process group: the run that is asked to finish its step and
    save still needs its workers. So they ignore SIGINT and SIGTERM, and the second is what PyTorch
    would end them with. They are killed instead, which also ends one that is stuck.
    """

    def __init__(self, dataset: Any, count: int, **options: Any) -> None:
        if getattr(multiprocessing.current_process(), "_inheriting", False):
            os._exit(1)  # it runs a script without main guard, and the run that waits says so
        self._shutdown, self._home = True, os.getpid()  # there is nothing to shut down yet
        self._tasks: list[list[int]] = []
        self._examples = _Examples(dataset)
        self._loader: DataLoader[Any] = DataLoader(
            self._examples,  # type: ignore[arg-type]
            sampler=self._tasks,
            collate_fn=itemgetter(0),  # each task gives one whole batch
            num_workers=count,
            worker_init_fn=_begin,
            persistent_workers=True,
            **options,
        )
        forks = self._answered = multiprocessing.get_start_method() == "fork"
        # In processes that are forked meanwhile signals wait for ever. A server that starts them
        # would hand the mask on to all that it ever starts.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signals.SIGNALS) if forks else None
        try:
            with torch.device("cpu"):  # PyTorch draws a seed
                super().__init__(self._loader)
        except BaseException as error:  # one could not be started: let the others go
            self._shutdown = True
            _end(getattr(self, "_workers", []))
            if forks or not isinstance(error, (EOFError, OSError)):
                raise
            raise RuntimeError(_NONE_BEGAN) from error
        finally:
            if mask is not None:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        # PyTorch would raise that one has died wherever this process is, as in the midst of a step.
        signal_handling._remove_worker_pids(id(self))  # type: ignore[attr-defined]
        self._worker_pids_set = False
        # Runs before multiprocessing waits for its children to heed a signal that they ignore: when
        # the interpreter ends, and when a process of multiprocessing does, which has no atexit.
        Finalize(self, _end, [self._workers], exitpriority=0)

    def can_go_on(self, dataset: Any, count: int) -> bool:
        """Return whether so many live, and load this data set for this process."""
        is_same = (self._num_workers, self._home) == (count, os.getpid())
        return is_same and self._examples.dataset is dataset and not self._ended(0)

    def _ended(self, seconds: float) -> list[Any]:
        """Return those that have ended, once there are any or the time has passed."""
        ready = wait([worker.sentinel for worker in self._workers], seconds)
        for worker in self._workers:
            if worker.sentinel in ready:  # a pipe, which closes a moment before the process ends
                worker.join(_GRACE)
        return [worker for worker in self._workers if worker.exitcode is not None]

    def batches(self, tasks: list[list[int]]) -> Iterator[Any]:
        """Give the batch of each task: a seed, and indices. If not all are taken, they end."""
        self._tasks[:] = tasks
        try:
            self._reset(self._loader)
            for _ in tasks:
                batch = next(self)
                if isinstance(batch, Exception):
                    raise batch
                yield batch
        except BaseException:
            self._shutdown_workers()
            raise

    def _get_data(self) -> Any:
        # Looks are counted, not seconds: those that Ctrl-Z has stopped for an hour are not stuck.
        for _ in range(math.ceil(self._timeout / _GRACE)):
            try:
                given, data = self._try_get_data(min(_GRACE, self._timeout))  # type: ignore[no-untyped-call]
            except Exception as error:  # one may die while it hands a batch over
                if not (ended := self._ended(5 * _GRACE)):  # the news may be late
                    raise
                died = (
                    f"workers must not end while they load, got exit code {ended[0].exitcode} "
                    f"from process {ended[0].pid}; -9 is often a lack of memory, for which fewer "
                    "workers help."
                )
                raise RuntimeError(died if self._answered else _NONE_BEGAN) from error
            if given:
                self._answered = True
                return data
        raise RuntimeError(
            f"workers must give a batch within timeout={self._timeout} seconds, got none; one is "
            "stuck, or needs a longer timeout."
        )

    def _shutdown_workers(self) -> None:
        if self._shutdown or self._home != os.getpid():  # a fork leaves them to whom they belong
            return
        # PyTorch waits 5 seconds for each that is busy, and 5 more after a signal it ignores.
        late = threading.Timer(_GRACE, _end, [self._workers])
        late.daemon = True
        if len(self._ended(0)) < len(self._workers):  # else Python may be ending
            late.start()
        try:
            super()._shutdown_workers()
        finally:
            late.cancel()
            _end(self._workers)


_NONE_BEGAN = (
    "workers must be able to import the script and the data set, got none that could; put the "
    "script's code under if __name__ == '__main__':, or use workers=0. (In a notebook, put the "
    "data set's class into a module.)"
)


def _end(workers: list[Any]) -> None:
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.join()


def _begin(_number: int) -> None:
    signals.ignore()
    threading.Thread(target=_end_with_the_run, daemon=True).start()
    info: Any = get_worker_info()
    object.__setattr__(info, "dataset", info.dataset.dataset)  # for data sets that ask


def _end_with_the_run() -> None:
    # PyTorch's own watch begins a moment later: it misses a run that is killed until then.
    run: Any = multiprocessing.parent_process()
    run.join()
    os._exit(1)


class _Examples:
    """A data set whose batches are made where they are loaded; what fails is given, not raised."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, task: list[int]) -> Any:
        seed, *indices = task
        random.seed(seed)
        torch.manual_seed(seed)  # noqa: TID251 - the worker's own
        np.random.seed(seed % 2**32)
        try:
            return load(self.dataset, indices)
        except Exception as error:  # PyTorch would give another one, its message a traceback
            try:
                given: Exception = pickle.loads(pickle.dumps(error))
            except Exception:
                given = RuntimeError(f"{type(error).__name__}: {error}")
            given.add_note(f"in a worker:\n{''.join(traceback.format_exception(error)).rstrip()}")
            return given
