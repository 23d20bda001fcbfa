"""A checkpoint of each schema is kept: it is read by every later version, and gone on from.

``python tests/test_golden.py`` writes the present schema's file and prints its end. That is done
once per schema; a file that has been released is never written again.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from tinygan import data, run, sampling
from tinygan._run import checkpoint

from helpers import flat, tiny_images, tiny_trainer

GOLDEN = Path(__file__).parent / "golden"

# Of the state at step 12 of the run that the file was saved from at step 5, uninterrupted.
ENDS = {2: "35232349"}


def golden_trainer():
    """Return a trainer whose numbers are the same on every machine, to ten digits and more.

    In float64, where rounding is far below what is compared, and with uniform noise, which unlike
    normal noise is drawn without functions that differ between processors.
    """
    trainer = tiny_trainer(prior=sampling.uniform)
    return type(trainer)(trainer.generator.double(), trainer.discriminator.double())


def batches():
    """Return four batches an epoch, mirrored at random."""
    return data.Loader(tiny_images(22), 6, flip=True)


def end(trainer):
    """Hash the weights, buffers and moments, rounded, and the counters."""
    state = trainer.state_dict()
    players = flat(state["players"], of_tensor=lambda t: t.double().mul(1e6).round().tolist())
    counters = [state[name] for name in run.COUNTERS]
    text = repr((sorted(players.items()), counters, state["batches"]["given"]))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


@pytest.mark.parametrize("schema", sorted(ENDS))
def test_a_checkpoint_of_each_schema_is_gone_on_from(schema):
    """It is loaded, refused by nothing, and ends as the run that it was saved from ended."""
    trainer = golden_trainer()
    trainer.resume(GOLDEN / f"schema_{schema}.pt")
    assert (trainer.step, trainer.epoch, trainer.batch) == (5, 1, 1)
    trainer.fit(batches(), steps=12)
    assert end(trainer) == ENDS[schema]


def test_an_unknown_schema_is_refused(tmp_path):
    """A newer file says which version wrote it."""
    state = checkpoint.load(GOLDEN / "schema_2.pt")
    state["schema"], state["versions"]["tinygan"] = 99, "7.0"
    checkpoint.save(state, tmp_path / "newer.pt")
    with pytest.raises(ValueError, match=r"have schema 2, got 99; .*'tinygan': '7\.0'"):
        golden_trainer().resume(tmp_path / "newer.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    made = golden_trainer()
    made.fit(batches(), steps=5)
    made.save(GOLDEN / f"schema_{run.SCHEMA}.pt")
    made.fit(batches(), steps=12)
    print(end(made))  # noqa: T201 - a script talks to its user
