"""Captured steps with each change by a hook at each event, once and all the time.

Of these a few are tried in ``tests/test_capture.py``.
"""

from __future__ import annotations

from itertools import product

import pytest

from tests import test_capture
from tests.test_capture import ACTS, EVENTS, MEDDLING, PARTS, recorder  # noqa: F401

pytestmark = pytest.mark.filterwarnings("ignore:a penalty of a discriminator with batch norm")


@pytest.mark.parametrize(("event", "act", "once"), list(product(EVENTS, ACTS, (True, False))))
def test_what_hooks_change_is_not_lost(recorder, event, act, once):  # noqa: F811
    """What a hook has changed is what is used, or an error says what must not change there."""
    test_capture.meddle(recorder, event, act, once)


@pytest.mark.parametrize(("event", "act"), MEDDLING)
@pytest.mark.parametrize("arguments", PARTS, ids=" and ".join)
def test_turns_and_parts_are_replayed_whatever_hooks_do(recorder, arguments, event, act):  # noqa: F811
    """Several turns of D and parts of a batch, with a hook that meddles once: equal to eager."""
    test_capture.assert_same_run_with_an_act(recorder, act, event, (6,), 12, (8,), **arguments)
