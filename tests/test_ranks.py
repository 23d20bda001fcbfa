"""A run of several ranks is one run: the same data, the same noise, the same weights."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch.multiprocessing import start_processes

import tinygan
from tinygan import data, distributed, hooks, penalties
from tinygan._execution import capture
from tinygan._run import checkpoint

import ranks
import replicas
from helpers import assert_identical, fingerprint, with_execution
from recorder import CPURecorder

IMAGES, BATCH, STEPS = 19, 8, 20  # batches of 8, 8 and 3: parts of unequal size, and a whole

pytestmark = pytest.mark.filterwarnings("ignore:a penalty of a discriminator with batch norm")


def nets(norm=True):
    """Return G and D of float64 for 8 pixels, the same each time, with batch norm or without."""
    torch.manual_seed(0)
    kind = torch.nn.BatchNorm2d if norm else None
    generator = tinygan.DCGANGenerator(8, latent_dim=5, base_channels=4, norm=kind)
    discriminator = tinygan.DCGANDiscriminator(8, base_channels=4, norm=kind)
    if norm:  # at 8 pixels D has none of its own
        discriminator.main.insert(1, torch.nn.BatchNorm2d(4))
    return [net.apply(tinygan.weights_init).double() for net in (generator, discriminator)]


def images():
    """Return images whose first pixel tells their number, and the side on which it is a flip."""
    found = torch.rand(IMAGES, 3, 8, 8, generator=torch.Generator().manual_seed(1)) - 1
    found[:, 0, 0, 0] = torch.arange(IMAGES) / IMAGES
    return found.double()


def loader(**arguments):
    """Return the batches of the tests' runs."""
    return data.Loader(images(), BATCH, flip=True, **arguments)


class Stream(tinygan.Hook):
    """Notes, for each step, which images a rank sees, which of them mirrored, and what noise."""

    def __init__(self, trainer):
        self.seen = []
        trainer.generator.register_forward_pre_hook(self._note)

    def on_step_start(self, trainer):
        """Find the images by the pixel that is not negative."""
        sides = trainer.real[:, 0, 0, [0, -1]]
        self.seen.append(
            {
                "indices": (sides.max(1).values * IMAGES).round().int().tolist(),
                "flips": (sides[:, 1] >= 0).tolist(),
            }
        )

    def _note(self, generator, inputs):
        if self.seen and generator.training:  # or it is the rehearsal
            self.seen[-1]["noise"] = inputs[0].tolist()


def trained(norm=True, steps=STEPS, batches=None, make=nets, **arguments):
    """Return a trainer and what it saw, on this rank."""
    trainer = tinygan.GANTrainer(*make(norm), **with_execution(arguments))
    stream = Stream(trainer)
    trainer.hooks = (stream, *trainer.hooks)
    trainer.fit(batches or loader(), steps=steps)
    return trainer, stream.seen


def lazy():
    """Return a penalty for every second step."""
    return penalties.r1(1.0, every=2)


def slow_down(trainer, report):
    """Lower the learning rates a little."""
    for player in trainer.players:
        for group in player.optimizer.param_groups:
            group["lr"] *= 0.99


def run_and_keep():
    """Train in several ways, and keep what came of it; on each of several ranks."""
    trainer, seen = trained()
    found = {"seen": seen, "images": trainer.images, "norm": fingerprint(trainer)}
    found["no norm"] = fingerprint(trained(norm=False, penalties=lazy())[0])
    found["eager"] = fingerprint(trained(penalties=lazy())[0])
    capture.recorder_for = lambda device: CPURecorder()
    found["captured"] = fingerprint(trained(penalties=lazy(), capture=True)[0])
    # Parts of unequal size, a rate whose bits differ when replayed, and a second call.
    slower, _ = trained(capture=True, hooks=[hooks.every(1, slow_down)], steps=STEPS)
    slower.fit(loader(), steps=2 * STEPS)
    found["slower"] = fingerprint(slower)
    # From weights that differ, as of a script that draws them without a seed.
    torch.manual_seed(distributed.join().rank)

    def other(norm):
        return [net.apply(tinygan.weights_init) for net in nets(norm)]

    found["other"] = fingerprint(trained(make=other, steps=2)[0])
    checkpoint.save(found, "kept.pt")


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Return what each of three ranks, whose parts differ in size, has kept."""
    folder = tmp_path_factory.mktemp("ranks")
    ranks.run(folder, 3, run_and_keep)
    return [checkpoint.load(folder / str(rank) / "kept.pt") for rank in range(3)]


def merged(seen, start=0):
    """Return the stream of a run, from a step on, of what each rank saw of it."""
    sizes = [BATCH, BATCH, IMAGES - 2 * BATCH]
    whole = []
    for step, parts in enumerate(zip(*seen), start):
        shared = sizes[step % 3] >= 2 * len(parts)
        assert shared or all(part == parts[0] for part in parts)
        whole.append(
            {
                name: [value for part in (parts if shared else parts[:1]) for value in part[name]]
                for name in parts[0]
            }
        )
        assert len(whole[-1]["indices"]) == sizes[step % 3]
    return whole


def digest(stream):
    """Return a stream's hash."""
    return hashlib.sha256(json.dumps(stream).encode()).hexdigest()


def test_ranks_see_together_what_one_process_sees(kept):
    """Indices, flips and noise are those of one process, in the same order."""
    _, alone = trained()
    assert digest(merged([rank["seen"] for rank in kept])) == digest(merged([alone]))
    assert any(any(step["flips"]) for step in alone)
    assert kept[0]["images"] == sum(len(step["indices"]) for step in alone)


def test_ranks_are_the_replicas_of_one_process(kept):
    """With batch norm: weights and running statistics after 20 steps, to 1e-10 in float64."""
    trainer = tinygan.GANTrainer(*nets())
    made = replicas.train(nets(), loader(), trainer.noise, len(kept), STEPS)
    for name, net in zip(("generator", "discriminator"), made):
        for key, value in net.state_dict().items():
            theirs = kept[0]["norm"][f"{name}.{key}"]
            assert torch.allclose(theirs, value, rtol=0, atol=1e-10), (name, key)


def test_without_batch_norm_they_are_one_process_on_the_whole_batch(kept):
    """With a lazy penalty too: each rank's mean counts by its images."""
    alone = fingerprint(trained(norm=False, penalties=lazy())[0])
    for name, value in alone.items():
        assert torch.allclose(kept[0]["no norm"][name], value, rtol=0, atol=1e-10), name


@pytest.mark.parametrize("run", ["norm", "no norm", "captured", "slower", "other"])
def test_all_ranks_hold_the_same_bits(kept, run):
    """Weights, statistics and moments; whatever weights the ranks began with."""
    for rank in kept[1:]:
        assert_identical(rank[run], kept[0][run])


def test_captured_steps_are_averaged_too(kept):
    """Replayed pieces give the eager ones' bits: the all-reduce is between them."""
    assert_identical(kept[0]["captured"], kept[0]["eager"])


def go_on(folder, steps, norm):
    """Take up the run in a folder, and keep what this part of it saw."""
    trainer = tinygan.GANTrainer(
        *nets(norm), hooks=[hooks.JSONLog(folder), hooks.Checkpoint(folder, every=4)]
    )
    trainer.resume(folder)
    stream = Stream(trainer)
    trainer.hooks = (stream, *trainer.hooks)
    trainer.fit(loader(), steps=steps)
    checkpoint.save({"seen": stream.seen, "state": fingerprint(trainer)}, "kept.pt")


def parts_of_a_run(folder, norm, parts):
    """Run in parts of so many ranks to such a step; return the stream, and the last state."""
    stream, start = [], 0
    for count, steps in parts:
        ranks.run(folder, count, go_on, folder / "run", steps, norm)
        kept = [checkpoint.load(folder / str(rank) / "kept.pt") for rank in range(count)]
        stream += merged([rank["seen"] for rank in kept], start)
        start = steps
    return stream, kept[0]["state"]


def test_a_run_goes_on_with_another_number_of_ranks(tmp_path):
    """From 2 to 1 to 3: the same stream, nothing twice or left out, and the same weights."""
    stream, state = parts_of_a_run(tmp_path, False, [(2, 5), (1, 9), (3, 14)])
    alone, seen = trained(norm=False, steps=14)
    assert digest(stream) == digest(merged([seen]))
    for name, value in fingerprint(alone).items():
        assert torch.allclose(state[name], value, rtol=0, atol=1e-10), name
    rows = [json.loads(row) for row in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 15))
    assert not list(tmp_path.glob("[0-9]/*.jsonl"))  # logs are rank 0's alone


def test_a_resumed_run_of_ranks_is_the_uninterrupted_one(tmp_path):
    """With batch norm, bit for bit: statistics and moments of all ranks are rank 0's."""
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    _, whole = parts_of_a_run(tmp_path / "whole", True, [(2, 7)])
    _, parts = parts_of_a_run(tmp_path / "parts", True, [(2, 4), (2, 7)])
    assert_identical(parts, whole)


def train_and_log(folder):
    """Train with a log; return what this rank ends with."""
    torch.manual_seed(distributed.join().rank)  # the first rank's weights are everybody's
    other = tinygan.DCGANGenerator(8, latent_dim=5), tinygan.DCGANDiscriminator(8)
    trainer = tinygan.GANTrainer(*other, hooks=[hooks.JSONLog(folder)])
    trainer.fit(loader(), steps=4)
    checkpoint.save(fingerprint(trainer), folder / f"rank_{trainer.ranks.rank}.pt")


def work(rank, folder):
    """Be a process that PyTorch has started, and make a process group, as its tutorials do."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    train_and_log(folder)
    dist.destroy_process_group()


def test_a_process_group_of_the_scripts_own_is_joined(tmp_path):
    """By ``torch.multiprocessing``: the bits of torchrun's ranks, and one log."""
    for name in ("spawned", "launched"):
        (tmp_path / name).mkdir()
    start_processes(work, (tmp_path / "spawned",), nprocs=2, start_method="forkserver")
    ranks.run(tmp_path, 2, train_and_log, tmp_path / "launched")
    (one, other), launched = (
        [checkpoint.load(tmp_path / name / f"rank_{rank}.pt") for rank in range(2)]
        for name in ("spawned", "launched")
    )
    assert_identical(one, other)
    assert_identical(one, launched[0])
    rows = (tmp_path / "spawned" / "log.jsonl").read_text().splitlines()
    assert [(json.loads(row)["step"], json.loads(row)["images"]) for row in rows] == [
        (1, 8), (2, 16), (3, 19), (4, 27)
    ]  # fmt: skip


@given(size=st.integers(1, 200), count=st.integers(1, 16))
def test_parts_are_the_batch(size, count):
    """Parts follow each other, differ by one at most, and weigh what they hold."""
    all_ranks = [distributed.Ranks(rank, count) for rank in range(count)]
    parts = [list(range(size))[rank.part(size)] for rank in all_ranks]
    assert [*map(len, parts)] == all_ranks[0].sizes(size)
    assert len(parts[-1]) == min(map(len, parts))
    if size >= 2 * count:
        assert [index for part in parts for index in part] == list(range(size))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    else:
        assert parts == [list(range(size))] * count
    weights = [rank.share(size) for rank in all_ranks]
    assert sum(weights) == pytest.approx(1)
    for part, weight in zip(parts, weights):
        assert weight == pytest.approx(len(part) / sum(map(len, parts)))
