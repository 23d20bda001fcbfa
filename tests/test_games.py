"""Games of one's own: the examples that write their algorithm, and one of four players in full."""

from __future__ import annotations

import re
import runpy
import sys
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from torch import nn

import tinygan
from tinygan import hooks
from tinygan._execution import capture
from tinygan._run import checkpoint

import ranks
from helpers import assert_identical, bits, fingerprint, saved_in
from recorder import CountingRecorder, Counts, CPURecorder

FOLDER = Path(__file__).parents[1] / "examples"
SMALL = {
    "image_to_image": ["--faces", "40"],
    "cyclegan": ["--faces", "200", "--width", "2"],
    "acgan": ["--faces", "80", "--width", "2"],
    "points": [],
}
STEPS = 5  # which is more than an epoch, but for the points


@cache
def example(name):
    """Return what an example defines."""
    return runpy.run_path(str(FOLDER / f"{name}.py"))


def written(folder):
    """Return what a run has written: its last checkpoint by parts, logs and pictures as bytes."""
    last = max((folder / "checkpoints").iterdir())
    return saved_in(last) | {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.suffix in (".jsonl", ".png")
    }


def run(name, folder, steps=STEPS):
    """Run an example in short."""
    example(name)["main"]([*SMALL[name], "--steps", str(steps), "--out", str(folder)])


@pytest.mark.parametrize("name", SMALL)
def test_an_example_that_is_interrupted_ends_in_the_same_bits(name, tmp_path, monkeypatch, capsys):
    """The same command goes on; weights, moments, logs and pictures are those of a whole run."""
    run(name, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(
            hooks.ProgressBar,
            "on_step_end",
            lambda bar, trainer, report: trainer.step == 2 and trainer.stop("interrupted"),
        )
        run(name, tmp_path / "parts")
    assert "2 steps" in capsys.readouterr().out
    assert max((tmp_path / "parts" / "checkpoints").iterdir()).stem == "step_000002"
    run(name, tmp_path / "parts")
    assert f"{STEPS} steps" in capsys.readouterr().out

    whole, parts = written(tmp_path / "whole"), written(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert [key for key in whole if whole[key] != parts[key]] == []
    assert any(key.endswith(".png") for key in whole)
    assert len(whole["log.jsonl"].splitlines()) == STEPS


def test_another_weight_of_a_cost_is_another_run(tmp_path):
    """What is bound to an algorithm by a partial is known to its checkpoints."""
    four_players().save(tmp_path / "run.pt")
    other = four_players(algorithm=partial(example("cyclegan")["cyclegan"], weight=5.0))
    with pytest.raises(ValueError, match=r"algorithm: .*cyclegan when saved, .*cyclegan\(weight=5"):
        other.resume(tmp_path / "run.pt")


def test_points_without_matplotlib(tmp_path, monkeypatch, capsys):
    """The run is the same, and says that there is no picture."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    run("points", tmp_path)
    assert "matplotlib is not installed" in capsys.readouterr().out
    assert not list(tmp_path.rglob("*.png"))


# The game of four players.


def four_players(dtype=torch.float32, algorithm=None, **arguments):
    """Return a trainer of CycleGAN's players on images of 8 pixels, the same each time.

    They have no batch norm, so what is made of an image does not depend on those beside it.
    """
    torch.manual_seed(0)
    translator = partial(example("cyclegan")["Translator"], 2)
    judge = partial(tinygan.DCGANDiscriminator, 8, base_channels=2, norm=None)
    makes = {"G": translator, "F": translator, "D_X": judge, "D_Y": judge}
    return tinygan.Trainer(
        [tinygan.Player(name, make().to(dtype)) for name, make in makes.items()],
        algorithm or example("cyclegan")["cyclegan"],
        **arguments,
    )


def unpaired():
    """Return an epoch of a batch of 8 images of each kind, and one of 4."""
    generator = torch.Generator().manual_seed(1)
    x, y = torch.rand(2, 12, 3, 8, 8, generator=generator, dtype=torch.float64) * 2 - 1
    return list(zip(x.split(8), y.split(8)))


def trained(steps=6, **arguments):
    """Return a trainer after some steps."""
    trainer = four_players(**arguments)
    trainer.fit(unpaired(), steps=steps)
    return trainer


def test_all_four_learn_and_are_reported():
    """Each player's weights move, and each cost has a name."""
    reports = []
    keep = hooks.every(1, lambda trainer, report: reports.append(report.floats()))
    before, after = fingerprint(four_players()), fingerprint(trained(2, hooks=[keep]))
    for name, value in before.items():
        # Nothing before an instance norm learns a bias: the norm takes it away again.
        if name.endswith("weight"):
            assert not torch.equal(value, after[name]), name
    assert list(reports[0]) == [*("loss_G", "cycle_G", "loss_D_Y", "loss_F", "cycle_F", "loss_D_X")]


class Look(tinygan.Hook):
    """Looks at everything, at every event, and draws from the global random state."""

    def on_gradients(self, trainer, player):
        """Read gradients, apply the nets."""
        torch.rand(3)
        self.norm = torch.stack([gradient.norm() for gradient in player.gradients()])
        trainer.pictures()

    def on_update(self, trainer, player):
        """Read weights."""
        trainer.state_dict()

    def on_step_end(self, trainer, report):
        """Read the report."""
        report.floats()


def test_hooks_that_look_change_no_bit(tmp_path):
    """Pictures, logs, checkpoints and a hook that applies the nets between their turns."""
    looking = trained(
        sample=lambda players: players.F(players.G(torch.zeros(8, 3, 8, 8))),
        hooks=[
            Look(),
            hooks.JSONLog(tmp_path),
            hooks.SampleGrid(tmp_path, every=2),
            hooks.Checkpoint(tmp_path, every=5),
        ],
    )
    assert_identical(fingerprint(trained()), fingerprint(looking))


def test_parts_of_a_batch_are_the_batch():
    """With accumulate=2, to 1e-10 in float64."""
    whole = fingerprint(trained(dtype=torch.float64))
    parts = fingerprint(trained(dtype=torch.float64, accumulate=2))
    for name, value in whole.items():
        assert torch.allclose(parts[name], value, rtol=0, atol=1e-10), name


def train_and_keep():
    """Train, and keep what came of it; on each of several ranks."""
    checkpoint.save(fingerprint(trained(dtype=torch.float64)), "kept.pt")


def test_two_ranks_are_one_process(tmp_path):
    """To 1e-9 in float64 they have its weights and moments, and each other's bits."""
    ranks.run(tmp_path, 2, train_and_keep)
    first, second = (checkpoint.load(tmp_path / str(rank) / "kept.pt") for rank in range(2))
    assert_identical(first, second)
    for name, value in fingerprint(trained(dtype=torch.float64)).items():
        assert torch.allclose(first[name], value, rtol=0, atol=1e-9), name


class Clip(tinygan.Hook):
    """Clips gradients of some players, some by replacing them."""

    def on_gradients(self, trainer, player):
        """Clip the translators' in place, and one judge's into new tensors."""
        if player.name in ("G", "F"):
            nn.utils.clip_grad_norm_(player.parameters, 0.1)
        elif player.name == "D_X":
            for parameter in player.parameters:
                parameter.grad = parameter.grad.clamp(-1e-3, 1e-3)


@pytest.mark.parametrize(
    ("dtype", "make_hooks", "pieces"),
    # With a hook, of each step: four phases, their updates, and an end.
    [(torch.bfloat16, list, 1), (None, lambda: [Clip()], 9)],
    ids=["alone, bfloat16", "clipped, float32"],
)
def test_a_captured_run_is_the_eager_one(dtype, make_hooks, pieces, monkeypatch):
    """Bit for bit, reports too; all of a step is replayed."""
    counts, reports = Counts(), {False: [], True: []}
    monkeypatch.setattr(
        capture, "recorder_for", lambda device: CountingRecorder(CPURecorder(), counts)
    )
    ends = {}
    for captured, kept in reports.items():
        keep = hooks.every(1, lambda trainer, report, kept=kept: kept.append(report.stacked()))
        execution = tinygan.Execution(dtype=dtype, capture=captured)
        ends[captured] = trained(10, hooks=[*make_hooks(), keep], execution=execution)
    assert_identical(*(fingerprint(trainer) for trainer in ends.values()))
    assert [*map(bits, reports[False])] == [*map(bits, reports[True])]
    assert counts.recorded == 2 * pieces  # of whole batches and of short ones
    assert counts.replayed == (10 - 2 * 3) * pieces


def test_it_runs_in_bfloat16():
    """Weights stay in float32, and all costs are those of float32 but for rounding."""
    found = []
    for dtype in (None, torch.bfloat16):
        keep = hooks.every(1, lambda trainer, report: found.append(report.stacked()))
        trainer = trained(1, hooks=[keep], execution=tinygan.Execution(dtype=dtype))
    assert trainer.dtype == torch.bfloat16
    assert {value.dtype for value in fingerprint(trainer).values()} == {torch.float32}
    assert not torch.equal(*found)
    torch.testing.assert_close(*found, rtol=0.02, atol=0.02)


def test_a_step_that_is_not_finite_leaves_no_trace():
    """If the first player's cost is not, none of the four moves."""
    good, bad = trained(2), four_players()
    batches = unpaired()
    bad.fit(batches, steps=2)
    batches[0][0][0, 0, 0, 0] = float("nan")
    bad.fit(batches, steps=3)
    assert_identical(fingerprint(good), fingerprint(bad))
    assert bad.skipped.in_row == 1


# What the page "Your own algorithm" says of rules and errors.


def plain(players, batch):
    """Pay and yield as one should."""
    d, g = players
    (real,) = batch
    fake = g(batch.normal("z", 2))
    d.pay(d(fake.detach()) - d(real))
    yield d
    g.pay(-d(fake))
    yield g


def not_detached(players, batch):
    """Leave it to pay whose weights learn."""
    d, g = players
    (real,) = batch
    fake = g(batch.normal("z", 2))
    d.pay(d(fake) - d(real))
    yield d
    g.pay(-d(fake))
    yield g


def no_generator(players, batch):
    """Return instead of yielding."""
    return [*players]


def never_yields_g(players, batch):
    """Stop after D."""
    players.D.pay(players.D(*batch))
    yield players.D


def yields_before_paying(players, batch):
    """Yield G too early."""
    yield players.G


def pays_after_its_last_yield(players, batch):
    """Pay once more at the end."""
    yield from plain(players, batch)
    players.D.pay(players.D(*batch))


def yields_a_name(players, batch):
    """Yield what is no player."""
    yield "D"


def detaches(players, batch):
    """Cut the graph."""
    players.D.pay(players.D(*batch).detach())
    yield players.D


def pays_twice_for_one_pass(players, batch):
    """Pay two terms one after the other."""
    logits = players.D(*batch)
    players.D.pay(logits.square())
    players.D.pay(logits)
    yield players.D


def two_players_pay_for_one_pass(players, batch):
    """Let both pay for the same logits."""
    logits = players.D(players.G(batch.normal("z", 2)))
    players.D.pay(logits.square())
    players.G.pay(-logits)
    yield from players


def logs_twice(players, batch):
    """Use one name for two values."""
    players.D.log(mean=batch.normal("z", 2))
    players.D.log(mean=batch.normal("y", 2))
    yield from plain(players, batch)


def draws_too_few(players, batch):
    """Draw fewer rows than there are examples."""
    batch.draw("z", lambda shape, generator, images: torch.zeros(3))
    yield from plain(players, batch)


def points(algorithm):
    """Return a trainer of D and G on points, after two steps."""
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))
    judge = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1))
    players = [tinygan.Player("D", judge), tinygan.Player("G", generator)]
    trainer = tinygan.Trainer(players, algorithm)
    trainer.fit([torch.ones(4, 2)], steps=2)
    return trainer


def test_a_payment_reaches_one_player_alone():
    """With detach or without, bit for bit."""
    assert_identical(fingerprint(points(plain)), fingerprint(points(not_detached)))


@pytest.mark.parametrize(
    ("algorithm", "sentence"),
    [
        (no_generator, "algorithm must be a generator function of (players, batch)"),
        (never_yields_g, "an algorithm must yield each of its players"),
        (yields_before_paying, "must have gradients when it is yielded, got none"),
        (pays_after_its_last_yield, "must be yielded after it pays"),
        (yields_a_name, "an algorithm must yield its players"),
        (detaches, "must pay a cost that its weights can learn from"),
        (pays_twice_for_one_pass, "must pay once for each pass through a net"),
        (two_players_pay_for_one_pass, "must pay once for each pass through a net"),
        (logs_twice, "a statistic's name must be used once"),
        (draws_too_few, "must draw one row for each example of the whole batch"),
    ],
)
def test_a_broken_rule_is_named(algorithm, sentence):
    """By the sentence that the page gives, before anything has moved."""
    with pytest.raises((TypeError, ValueError), match=re.escape(sentence)):
        points(algorithm)
    page = FOLDER.parent / "docs" / "your_own_algorithm.md"
    assert f"`{sentence}`" in page.read_text()
