"""A run's faults in full: every byte, every operation, every event, a hundred kills.

Of each kind, a few are tried in the test module that it is taken from.
"""

from __future__ import annotations

import signal

import pytest

from tests import (
    test_cli_train,
    test_damage,
    test_durability,
    test_example,
    test_kills,
    test_resume,
    test_signals,
)
from tests.test_cli_train import whole as whole_command  # noqa: F401 - fixtures
from tests.test_damage import saved  # noqa: F401 - a fixture
from tests.test_example import whole as whole_example  # noqa: F401
from tests.test_resume import root  # noqa: F401 - a fixture


@pytest.mark.parametrize("all_bits", [False, True])
def test_any_flipped_byte_is_an_error_or_changes_nothing(all_bits, saved):  # noqa: F811
    """Wherever a bit or a byte is flipped, a checkpoint is refused, or its values are as saved."""
    test_damage.flip(*saved, all_bits)


# Before an operation is after the last one, so that one number of files tries both.
@pytest.mark.parametrize(("keep", "share"), [(1, 0), (1, 0.5), (1, 0.99), (1, 1), (2, 1)])
def test_a_crash_at_every_operation_loses_nothing(keep, share, tmp_path):
    """Died at any of its file operations, a run has its old files or the new; it ends the same."""
    test_durability.crash(keep, share, tmp_path)


def test_a_run_that_is_killed_a_hundred_times_ends_the_same(tmp_path):
    """SIGKILL at any moment loses no step that was saved, and changes no bit of the run."""
    test_kills.kill(100, tmp_path)


@test_signals.both_signals
@pytest.mark.parametrize(("name", "call", "expected"), test_signals.MOMENTS)
def test_a_step_is_finished_wherever_a_signal_comes(number, name, call, expected, tmp_path):
    """Wherever the first signal comes, in an event or a save, the step in progress is the last."""
    test_signals.ask(number, name, call, expected, tmp_path)


@pytest.mark.parametrize(("second", "code"), test_signals.SECOND)
@pytest.mark.parametrize("first", test_signals.signals.SIGNALS)
@pytest.mark.parametrize(("name", "call", "saved_step"), test_signals.LONG)
def test_every_second_signal_ends_at_once(name, call, saved_step, first, second, code, tmp_path):
    """Asleep in a hook or a save, a run dies by the second signal, and what it saved stays."""
    test_signals.insist(name, call, saved_step, first, second, code, tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=str)
def test_the_same_command_finishes_a_run_however_it_ended(number, tmp_path, whole_command):  # noqa: F811
    """``tinygan train`` that was told to end, or killed, and started again, has the same files."""
    test_cli_train.interrupt(number, tmp_path, whole_command)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=str)
def test_the_example_finishes_a_run_however_it_ended(number, tmp_path, whole_example):  # noqa: F811
    """And so has the example."""
    test_example.interrupt(number, tmp_path, whole_example)


# Within an epoch, at its edge and past it, each with workers and without.
@pytest.mark.parametrize(
    ("stops", "workers"),
    [
        ((1,), 2),
        ((2,), 0),
        ((test_resume.PER_EPOCH,), 2),
        ((test_resume.PER_EPOCH + 1,), 2),
        ((test_resume.STEPS - 1,), 0),
        ((test_resume.STEPS,), 0),
        ((1, 3, 4, 8, 9), 0),
    ],
    ids=str,
)
def test_wherever_it_is_interrupted_a_run_ends_in_the_same_bits(root, workers, stops, request):  # noqa: F811
    """After the first step, within an epoch, at its edge, past it, at the end, and often."""
    test_resume.interrupt(root, request.node.name, workers, stops)
