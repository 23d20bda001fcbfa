"""The speed record on faces: its split, its clock, what is kept, and who reaches the target."""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
import statistics
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from torch import nn

from tinygan import data, pictures, recipes

import gpu_check
import speedrun
import speedrun_quality
import tutorial
from helpers import assert_identical
from speedrun_entries import ENTRIES, Contender, Entry, Track

TINY = Track(4, 4, samples=8, marks=(), images=24, image_size=16)

plot = speedrun_quality._plot


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """Return a folder of 50 drawn faces, with what they are packed into beside it."""
    folder = tmp_path_factory.mktemp("made") / "faces"
    images = data.CartoonFaces(50, image_size=16).pixels
    pictures.save_images(images, (f"{n:06}" for n in range(50)), folder)
    data.pack(folder, folder.parent / "faces_16.npy", 16, workers=0)
    return folder


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """Let both tracks be tiny, warm-ups short, and no plots drawn, of which each run makes one."""
    monkeypatch.setattr(speedrun_quality, "_plot", lambda *_: None)
    monkeypatch.setattr(speedrun, "WARM_UP", 1)
    for name in speedrun.TRACKS:
        monkeypatch.setitem(speedrun.TRACKS, name, TINY)
    monkeypatch.setattr(speedrun_quality, "SHOWN", 4)


def packed(faces, out):
    """Copy the packed faces into a folder, which is sooner done than to pack them; return it."""
    out.mkdir(exist_ok=True)
    for file in faces.parent.glob(f"{faces.name}_*"):
        shutil.copy2(file, out)
    return out


def run(faces, out, *names, seeds=1, more=()):
    """Run the script on named entries; return the results that it wrote, if it measured any."""
    given = ["--data", faces, "--out", packed(faces, out), "--seeds", seeds]
    given += ["--features", "random_net"]
    given += ["--device", "cpu", "--recipes", *names, *more]
    speedrun.main(list(map(str, given)))
    return gpu_check.read(out / "laptop" / "results.json")


def rows(images):
    """Return images as a set, to compare without an order."""
    return {image.numpy().tobytes() for image in images}


def test_data_that_are_not_there_are_named(tmp_path):
    """In one line, not by a traceback."""
    with pytest.raises(
        SystemExit, match=r"--data must be .* of faces, .*nowhere\.zip does not exist"
    ):
        run(tmp_path / "nowhere.zip", tmp_path / "out", "tutorial-loop")


def test_the_split_is_fixed_and_disjoint(faces, tmp_path):
    """A fifth is held out, always the same; each face is on one side, and none is lost."""
    one, two = (speedrun._split(faces, None, tmp_path / name, 16) for name in "ab")
    assert (len(one), len(one.held)) == (40, 10)
    assert not rows(one.pixels) & rows(one.held)
    assert rows(one.pixels) | rows(one.held) == rows(data.CartoonFaces(50, image_size=16).pixels)
    assert torch.equal(one.held, two.held)
    assert torch.equal(one.pixels, two.pixels)
    assert one.known_by == two.known_by


@pytest.mark.parametrize(
    ("head", "line"), [("", "{}.png {}\n"), ("image_id,partition\n", "{}.png,{}\n")]
)
def test_celebas_own_split(faces, tmp_path, head, line):
    """By its list, what it has to train on (0) and for tests (2); what is to validate is left."""
    lines = [line.format(f"{n:06}", n % 3) for n in range(50)]
    (tmp_path / "list").write_text(head + "".join(lines))
    split = speedrun._split(faces, tmp_path / "list", packed(faces, tmp_path), 16)
    drawn = data.CartoonFaces(50, image_size=16).pixels
    assert rows(split.pixels) == rows(drawn[0::3])
    assert rows(split.held) == rows(drawn[2::3])
    assert split.known_by != speedrun._split(faces, None, tmp_path, 16).known_by
    (tmp_path / "list").write_text(head + "".join(lines[:47]))
    with pytest.raises(SystemExit, match=r"lacks 3, such as 0000(47|48|49)\.png; use"):
        speedrun._split(faces, tmp_path / "list", tmp_path, 16)


class Time:
    """A clock that moves only where a test moves it."""

    def __init__(self):
        self.now = 17.0

    def perf_counter(self):
        """Return the seconds."""
        return self.now


class Batches(list):
    """Batches that take time to load."""

    device = torch.device("cpu")

    def __init__(self, sizes, time, cost):
        super().__init__(torch.zeros(size, 1) for size in sizes)
        self.time, self.cost = time, cost

    def __iter__(self):
        for batch in super().__iter__():
            self.time.now += self.cost
            yield batch


@given(
    updates=st.lists(st.integers(1, 9), min_size=40, max_size=40),
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    marks=st.lists(st.integers(1, 90), min_size=1, max_size=4, unique=True).map(sorted),
    block=st.integers(1, 5),
    load=st.integers(0, 2),
)
def test_the_clock(updates, sizes, marks, block, load):
    """It counts loading and updates from the first batch on, and no second of what is kept."""
    time, kept = Time(), []

    def keep(mark):
        kept.append((mark, clock.updates))
        time.now += 1000

    names = [*map(str, marks[:-1]), "end"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speedrun, "time", time)
        patch.setattr(speedrun, "BLOCK", block)
        clock = speedrun.Clocked(Batches(sizes, time, load), dict(zip(names, marks)), keep)
        for _, cost in zip(clock, updates):  # the clock first: it must see the last update's end
            time.now += cost
    # The same in plain: a run of updates, each after the loading of its batch but for the first.
    seconds = itertools.accumulate(cost + load * (n > 0) for n, cost in enumerate(updates))
    seen = itertools.accumulate(itertools.cycle(sizes))
    expected, left = [], list(zip(names, marks))
    states = [(0, 0, 0), *zip(seconds, seen, range(1, 41))]
    for now in states[1:]:
        if now[1] >= left[0][1]:
            expected.append((left.pop(0)[0], *now))
        if not left:
            break
    assert kept == [(mark, update) for mark, _, _, update in expected]
    at = [(m["mark"], round(60 * m["minutes"], 9), m["images"]) for m in clock.kept]
    assert at == [each[:3] for each in expected]
    read = {now[2] for now in states[: clock.updates + 1] if now[2] % block == 0}
    read = sorted(read | {0} | {each[3] for each in expected})
    assert clock.per_update == pytest.approx(
        [(states[b][0] - states[a][0]) / (b - a) for a, b in itertools.pairwise(read)]
    )


def test_warm_up_and_nets_are_outside_the_clock(faces, tmp_path, monkeypatch):
    """They take 1,000 seconds here, and writing a generator another 1,000; an update takes one."""
    time = Time()

    class Slow(Contender):
        def __init__(self, *given):
            super().__init__(*given)
            time.now += 1000
            inner = self.train

            def train(batches):
                def slowly():
                    for batch in batches:
                        yield batch
                        time.now += 1

                inner(slowly() if isinstance(batches, speedrun.Clocked) else batches)

            self.train = train

    def save(*given):
        time.now += 1000
        saved(*given)

    saved = torch.save
    monkeypatch.setattr(torch, "save", save)
    monkeypatch.setattr(speedrun, "time", time)
    monkeypatch.setattr(speedrun, "Contender", Slow)
    monkeypatch.setitem(speedrun.TRACKS, "laptop", replace(TINY, marks=(9, 24, 99), images=36))
    run(faces, tmp_path, "tutorial-loop", more=["--train-only"])
    known = gpu_check.read(tmp_path / "laptop" / "tutorial-loop" / "0" / "run.json")
    assert known["warm_up"] == 1000
    assert [mark["mark"] for mark in known["marks"]] == ["9", "24", "end"]
    assert [60 * mark["minutes"] for mark in known["marks"]] == pytest.approx([3, 6, 9])
    assert [mark["images"] for mark in known["marks"]] == [12, 24, 36]
    assert 60 * known["at_median_rate"] == pytest.approx(9)


def test_every_entry_runs_once_and_the_table_is_right(faces, tmp_path, monkeypatch, capsys):
    """All numbers of the table follow from results.json; a second call trains and measures none."""
    short = partial(run, faces, tmp_path, more=["--images", "8"])
    three = "tutorial-loop", "relativistic"
    short(*three, seeds=3)
    gone = tmp_path / "laptop" / "gone" / "0"
    gone.mkdir(parents=True)
    (gone / "run.json").write_text("{}")  # of an entry that was taken out
    results = short(*ENTRIES)
    assert [each["entry"] for each in results["runs"]] == [*ENTRIES, *three, *three]
    rows = (tmp_path / "laptop" / "table.md").read_text().split("\n")
    head, _, *rows = [row.strip("| ").split(" | ") for row in rows if row.startswith("|")]
    by_entry = {row[0]: dict(itertools.zip_longest(head, row, fillvalue="")) for row in rows}
    assert by_entry.keys() == ENTRIES.keys()
    found = {name: [r for r in results["runs"] if r["entry"] == name] for name in ENTRIES}
    kds = {name: [run["marks"][-1]["kd"] for run in found[name]] for name in ENTRIES}
    for name, cells in by_entry.items():
        runs, count = found[name], 3 if name in three else 1
        assert [run["seed"] for run in runs] == list(range(count))
        assert cells["KD-random_net"] == f"{sum(kds[name]) / count:.5f}"
        assert cells["KD-random_net of each seed"] == ", ".join(f"{kd:.5f}" for kd in kds[name])
        assert cells["sd"] == (f"{statistics.stdev(kds[name]):.5f}" if count > 1 else "")
        for key, form in {
            "minutes": ".2f",
            "images": ".0f",
            "recall": ".3f",
            "spread": ".3f",
        }.items():
            assert cells[key] == f"{sum(run['marks'][-1][key] for run in runs) / count:{form}}"
        for key, form in {"at_median_rate": ".2f", "warm_up": ".0f"}.items():
            assert cells[key] == f"{sum(run[key] for run in runs) / count:{form}}"
    p = speedrun_quality.p_value(kds["relativistic"], kds["tutorial-loop"])
    assert [row["p"].strip() for row in by_entry.values() if row["p"].strip()] == [f"{p:.2g}"]
    made = [json.dumps(run["made_of"]) for run in results["runs"] if run["seed"] == 0]
    assert len(set(made)) == len(ENTRIES)
    assert (tmp_path / "laptop" / "faces.png").stat().st_size > 1000
    plot(results, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 1000

    capsys.readouterr()
    monkeypatch.setattr(speedrun, "_train", None)
    monkeypatch.setattr(speedrun_quality.Judge, "_compared", lambda *_: results["floor"])
    assert short(*ENTRIES) == results
    assert "seed 0" not in capsys.readouterr().out


def test_measured_later_is_measured_alike(faces, tmp_path):
    """Training alone leaves no table; measuring alone trains nothing, and finds the same."""
    both = run(faces, tmp_path / "both", "hinge")
    run(faces, tmp_path / "parts", "hinge", more=["--train-only"])
    assert not (tmp_path / "parts" / "laptop" / "table.md").exists()
    later = run(faces, tmp_path / "parts", "hinge", "tutorial", more=["--measure-only"])
    assert not (tmp_path / "parts" / "laptop" / "tutorial").exists()
    assert [run["marks"][0]["kd"] for run in later["runs"]] == [both["runs"][0]["marks"][0]["kd"]]


def test_a_run_that_was_cut_off_starts_again(faces, tmp_path, monkeypatch):
    """It leaves no result, and ends as if nothing had happened; marks change nothing either."""
    run(faces, tmp_path / "whole", "relativistic", more=["--train-only"])
    ends = tmp_path / "cut" / "laptop" / "relativistic" / "0"

    def interrupted(content, file):
        file.write_bytes(b"half")
        raise KeyboardInterrupt

    for name, what in (("cut", "--train-only"), ("whole", "--measure-only")):
        with monkeypatch.context() as patch:
            patch.setattr(torch, "save", interrupted)
            with pytest.raises(KeyboardInterrupt):
                run(faces, tmp_path / name, "relativistic", more=[what])
    assert not (ends / "run.json").exists()
    assert [file.name for file in tmp_path.rglob("*.pt")] == ["end.pt"]  # of the whole run
    monkeypatch.setitem(speedrun.TRACKS, "laptop", replace(TINY, marks=(4, 12)))
    run(faces, tmp_path / "cut", "relativistic", more=["--train-only"])
    assert {file.name for file in ends.glob("*.pt")} == {"4.pt", "12.pt", "end.pt"}
    one, other = (
        torch.load(tmp_path / name / "laptop" / "relativistic" / "0" / "end.pt")
        for name in ("whole", "cut")
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_small_batches():
    """It is the quick recipe on the track's nets, for 36,000 images."""
    entry = ENTRIES["small-batches"](TINY, 3)
    quick = recipes.quick(TINY.nets(3))
    for name in ("generator", "discriminator"):
        assert_identical(*(getattr(made, name).state_dict() for made in (entry.recipe, quick)))
    made, wanted = (recipe.trainer().state_dict() for recipe in (entry.recipe, quick))
    assert made["configuration"] == wanted["configuration"]
    assert (entry.batch_size, entry.flip, entry.execution.dtype) == (12, True, torch.bfloat16)
    assert entry.images == 36_000


def test_results_of_another_make_are_refused(faces, tmp_path, monkeypatch):
    """A changed recipe, length, track or data is named, before anything is trained."""
    run(faces, tmp_path, "tutorial", more=["--train-only"])
    run(faces, tmp_path, "tutorial", more=["--train-only"])
    changes = {
        "discriminator optimizer.lr": lambda entry: replace(
            entry, recipe=replace(entry.recipe, optimizer=recipes._adam(1.0, 0.5, 0.999))
        ),
        "entry": lambda entry: replace(entry, images=28),
        "nets": lambda entry: replace(
            entry,
            recipe=replace(entry.recipe, discriminator=nn.Sequential(entry.recipe.discriminator)),
        ),
    }
    make = ENTRIES["tutorial"]
    for told, change in changes.items():
        with monkeypatch.context() as patch:
            patch.setitem(ENTRIES, "tutorial", lambda *given, change=change: change(make(*given)))
            with pytest.raises(
                SystemExit, match=rf"run\.json is of another .*{told}.*; use another"
            ):
                run(faces, tmp_path, "hinge", "tutorial")
    with pytest.raises(SystemExit, match="another track; use another --out"):
        run(faces, tmp_path, "tutorial", more=["--images", "12"])
    (faces.parent / "more").mkdir()
    for file in faces.iterdir():
        (faces.parent / "more" / f"x{file.name}").write_bytes(file.read_bytes())
    pictures.save_images(data.CartoonFaces(1, 16, seed=9).pixels, ["y"], faces.parent / "more")
    (tmp_path / "faces_16.npy").unlink()
    (tmp_path / "faces_16.json").unlink()
    with pytest.raises(SystemExit, match="another data; use another --out"):
        run(faces.parent / "more", tmp_path, "tutorial")
    assert not (tmp_path / "laptop" / "hinge").exists()


def test_what_is_left_of_others_is_no_result(faces, tmp_path):
    """Trials, other faces and other features are not of the table, in whatever folder they lie."""
    table, folder = tmp_path / "laptop" / "table.md", tmp_path / "laptop" / "tutorial" / "7"
    run(faces, tmp_path, "hinge", more=["--images", "4"])
    assert "A trial of 4 images" in table.read_text()
    results = run(faces, tmp_path, "tutorial", more=["--first-seed", "7"])
    assert [(each["entry"], each["seed"]) for each in results["runs"]] == [("tutorial", 7)]
    assert not re.search("hinge|trial", table.read_text())
    before = gpu_check.read(folder / "run.json")
    (mark,) = before["marks"]
    others = before | {"marks": [mark | {"of": mark["of"] | {"features": "lite"}}]}
    gpu_check.write(folder / "run.json", others)
    first, second = run(faces, tmp_path, "relativistic")["runs"]
    assert (first["entry"], second["entry"]) == ("relativistic", "tutorial")
    assert "kd" not in second["marks"][0]
    assert "| tutorial |" not in table.read_text()
    assert gpu_check.read(folder / "run.json") == others  # to be measured again by what it was
    made_of = before["made_of"] | {"data": "other faces"}
    gpu_check.write(folder / "run.json", before | {"made_of": made_of})
    (only,) = run(faces, tmp_path, "relativistic")["runs"]
    assert only["entry"] == "relativistic"


def test_the_loop_is_the_tutorials_own(faces, tmp_path, monkeypatch):
    """What is kept of it is what the tutorial's loop makes of the same batches and noise."""
    monkeypatch.setitem(speedrun.TRACKS, "laptop", replace(TINY, width=2, image_size=64))
    run(faces, tmp_path, "tutorial-loop", seeds=2, more=["--train-only"])
    for seed in (0, 1):
        torch.manual_seed(seed)
        g = tutorial.make_generator(ngf=2).apply(tutorial.weights_init)
        d = tutorial.make_discriminator(ndf=2).apply(tutorial.weights_init)
        split = speedrun._split(faces, None, tmp_path, 64)
        batches = itertools.islice(data.Loader(split, 4, seed=seed), 6)
        tutorial.Loop(g, d).train(batches, lambda step, count: torch.randn(count, 100))
        kept = torch.load(tmp_path / "laptop" / "tutorial-loop" / str(seed) / "end.pt")
        assert len(kept) == len(g.state_dict())
        for name, value in g.state_dict().items():
            assert torch.equal(kept[f"1.{name}"], value), name


def test_an_average_is_what_is_sampled_from(faces, tmp_path):
    """Where there is one, and not the live generator."""
    run(faces, tmp_path, "relativistic", more=["--train-only"])
    kept = torch.load(tmp_path / "laptop" / "relativistic" / "0" / "end.pt")
    trainer = ENTRIES["relativistic"](TINY, 0).recipe.trainer(seed=0)
    split = speedrun._split(faces, None, tmp_path, 16)
    trainer.fit(data.Loader(split, 4, seed=0), steps=6)
    assert all(torch.equal(kept[k], v) for k, v in trainer.average.net.state_dict().items())


def test_a_run_that_diverges_is_told(faces, tmp_path, monkeypatch):
    """It ends without a result, and ends no other run; there is nothing of it to draw."""
    losses = recipes.tutorial(TINY.nets(0)).loss

    def hopeless(track, seed):
        recipe = recipes.tutorial(track.nets(seed))
        if seed:
            return Entry(recipe, 2, images=4)
        recipe = replace(recipe, loss=replace(losses, generator=lambda logits: logits / 0))
        return Entry(recipe, 2, images=2 * 51)  # at the 50th step the trainer looks

    monkeypatch.setitem(ENTRIES, "hinge", hopeless)
    run(faces, tmp_path, "tutorial-loop", "hinge")
    assert "| inf |" in (tmp_path / "laptop" / "table.md").read_text()
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    monkeypatch.setattr(speedrun_quality, "_plot", plot)
    more = ["--first-seed", "1"]
    finished, diverged, second = run(faces, tmp_path, "hinge", more=more)["runs"]
    assert (diverged["entry"], diverged["marks"]) == ("hinge", [])
    assert "not finite" in diverged["diverged"]
    assert finished["diverged"] is second["diverged"] is None
    (axes,) = drawn[-1].axes
    assert axes.get_legend_handles_labels()[1] == ["real faces", "tutorial-loop", "hinge"]
    assert [len(line.get_xdata()) for line in axes.lines[1:]] == [1, 1]


spots = st.floats(-3, 3)


@given(ours=spots, target=spots, width=st.floats(0.1, 3), count=st.sampled_from([2, 3]))
def test_p_of_equal_variances(ours, target, width, count):
    """Samples of n numbers have 2 n - 2 degrees of freedom, for 2 and 4 of which t is known."""
    offsets = {2: (-width, width), 3: (-width, 0.0, width)}[count]
    samples = [[middle + offset for offset in offsets] for middle in (ours, target)]
    variance = statistics.variance(offsets)
    t = (ours - target) / math.sqrt(2 * variance / count)
    expected = {
        2: 1 / 2 + t / (2 * math.sqrt(2 + t * t)),
        3: 1 / 2 + 3 / 8 * t / math.sqrt(1 + t * t / 4) * (1 - t * t / (12 * (1 + t * t / 4))),
    }[count]
    assert speedrun_quality.p_value(*samples) == pytest.approx(expected, abs=1e-6)


def test_p_of_unequal_variances():
    """The noisier sample decides; by a printed table, t = 6.965 has p = .01 with 2 degrees."""
    noisy = [-1.0, 0.0, 1.0]
    middle = 6.965 * math.sqrt(1 / 3)
    still = [middle - 1e-6, middle, middle + 1e-6]
    assert speedrun_quality.p_value(noisy, still) == pytest.approx(0.01, abs=1e-5)
    assert speedrun_quality.p_value(still, noisy) == pytest.approx(0.99, abs=1e-5)


def test_p_without_variance():
    """Means that chance has no part in differ surely, or do not."""
    one, two = [1.0] * 3, [2.0] * 3
    assert speedrun_quality.p_value(one, two) == 0
    assert speedrun_quality.p_value(two, one) == speedrun_quality.p_value(one, one) == 1


def ends(*kds, minutes=30.0, recall=0.5, spread=1.0, machine="one"):
    """Return runs as measured at their ends."""
    known = {"minutes": minutes, "precision": 0.5, "recall": recall, "spread": spread}
    return [known | {"kd": k, "machine": machine} for k in kds]


def test_who_reaches_the_target():
    """Three seeds, so far below that it is no chance, no collapse; and none that has diverged."""
    floor = {"precision": 0.9, "recall": 0.9, "spread": 1.0}
    target = ends(0.10, 0.11, 0.12)

    def told(ours, against=target):
        return speedrun_quality.verdict(ours, against, floor)[1:]

    assert told(target) == ["the target", ""]
    assert told(ends(0.05, 0.051, 0.052, minutes=10.0)) == ["reached", "3.00"]
    assert told(ends(0.05, 0.051, 0.052, machine="two")) == ["reached", ""]
    mixed = ends(0.05, 0.051) + ends(0.052, machine="two")
    assert told(mixed) == ["reached", ""]
    assert told(ends(0.10, 0.105, 0.11)) == ["no", ""]
    assert told(ends(0.15, 0.151, 0.152)) == ["no", ""]
    assert told(ends(0.05, 0.051)) == ["fewer than 3 seeds", ""]
    assert told(ends(0.05, 0.051, 0.052), target[:2]) == ["fewer than 3 seeds", ""]
    assert told(ends(0.05, 0.051, math.inf)) == ["no: diverged", ""]
    assert told(ends(0.05, 0.051, 0.052, recall=0.44, spread=0.89)) == ["no: recall, spread", ""]
    assert told(ends(0.05, 0.051, 0.052, recall=0.46, spread=0.91))[0] == "reached"
    # A target that spreads its images further than real ones are apart is noise, and no measure.
    noisy = ends(0.10, 0.11, 0.12, spread=2.0)
    assert told(ends(0.05, 0.051, 0.052, spread=0.91), noisy)[0] == "reached"


def test_few_images_many_times_have_no_spread(faces, tmp_path):
    """Which the distance hardly notices: the mean of the features is as before."""
    split = speedrun._split(faces, None, packed(faces, tmp_path), 16)
    judge = speedrun_quality.Judge(tmp_path, replace(TINY, samples=10), split, "random_net", "cpu")
    few = judge.held[:5].repeat(2, 1) * (1 + 1e-4 * torch.rand(10, 1, dtype=torch.float64))
    assert judge._compared(few)["spread"] < 0.1
    assert judge.floor["spread"] > 0.5
    assert judge._compared(judge.held)["precision"] == 1


def test_the_gpu_check_has_a_speedrun():
    """If it is given faces, with options that the script takes, and entries of its own choice."""
    given = ("--data", "faces.zip", "--out", "elsewhere")
    names = [step.name for step in gpu_check.steps("cuda", False)]
    assert "speedrun" not in names
    for device, track in (("cuda", "gpu"), ("cpu", "laptop")):
        (step,) = [s for s in gpu_check.steps(device, False, given) if s.name == "speedrun"]
        options = speedrun._parser().parse_args(step.command[2:])
        assert (options.track, options.device, options.train_only) == (track, device, True)
