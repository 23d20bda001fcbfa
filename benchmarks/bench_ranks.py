"""What ranks cost and bring: steps of two processes beside steps of one, and beside a model."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from operator import methodcaller
from statistics import median

import torch
from torch import nn

from tinygan import distributed

from contenders import BF16, Setting, TinyGAN
from measuring import Ratio, Run, first_line, in_turn, seconds
from report import Report, cores

RANKS = 2
MODES = {"fp32": {}, "bf16": {"dtype": BF16}, "bf16 capture": {"dtype": BF16, "capture": True}}
PATIENCE = 120
"""Seconds after which a process that does not answer is taken for stuck."""

PART, AT_ONCE = "1 process, its part of a batch", f"{RANKS} such processes at once"
WHOLE, ALL_CORES, SHARED = "1 process", "1 process, all cores", f"{RANKS} ranks"


@dataclass(frozen=True)
class Loop:
    """Who trains on what: processes, threads of each, images of all, and whether ranks share it."""

    processes: int
    threads: int
    images: int
    shared: bool = False


def loops(setting: Setting) -> dict[str, Loop]:
    """Return what trains in turn. Each process has a GPU, or its part of the cores."""
    each, batch = max(1, cores() // RANKS), setting.batch_size
    found = {
        PART: Loop(1, each, batch // RANKS),
        AT_ONCE: Loop(RANKS, each, batch // RANKS * RANKS),
        WHOLE: Loop(1, each, batch),
        ALL_CORES: Loop(1, cores(), batch),
        SHARED: Loop(RANKS, each, batch, shared=True),
    }
    if setting.device == "cuda":
        del found[ALL_CORES]
    return found


class Rank:
    """One of the processes: does what the benchmark tells it, and returns the seconds."""

    def __init__(self, setting: Setting) -> None:
        self.ranks = distributed.join(timeout=PATIENCE)
        self.setting = setting
        self.batch = setting.batch()
        self.nets = dict(zip("GD", setting.nets()))
        self.made: dict[tuple[str, Loop], TinyGAN] = {}

    def agree(self) -> float:
        """Agree, as ranks do three times per step."""
        return self._at_once(lambda: self.ranks.gather([0] * 3), times=50)

    def add_up(self, net: str) -> float:
        """Add up as many bytes as a net has gradients, which are float32 in all modes."""
        flat = torch.zeros(size(self.nets[net]), device=self.batch.device)
        return self._at_once(lambda: self.ranks.sum(flat), times=5)

    def copy(self, net: str) -> float:
        """Copy gradients, which are channels last, into one row, weigh them and copy them back."""
        weights = self.nets[net].to(memory_format=torch.channels_last).parameters()
        gradients = [torch.zeros_like(weight) for weight in weights]

        def work() -> None:
            flat = torch.zeros(size(self.nets[net]), device=self.batch.device)
            parts = flat.split([gradient.numel() for gradient in gradients])
            views = [part.view(gradient.shape) for part, gradient in zip(parts, gradients)]
            torch._foreach_copy_(views, gradients)
            flat.mul_(1 / RANKS)
            torch._foreach_copy_(gradients, views)

        return self._at_once(work, times=5)

    def step(self, mode: str, loop: Loop) -> float:
        """Train; before it is timed for the first time, see that it trains."""
        on_gpu = self.batch.is_cuda
        torch.set_num_threads(loop.threads)
        batch = self.batch if loop.shared else self.batch[: loop.images // loop.processes]
        if (mode, loop) not in self.made:
            ranks = self.ranks if loop.shared else distributed.ALONE
            made = self.made[mode, loop] = TinyGAN(self.setting, ranks=ranks, **MODES[mode])
            made.check(batch, steps=8 if on_gpu else 2)
        # The lead: once per call, ranks share the state and look at the first batch.
        steps, lead = (20, 5) if on_gpu else (1, 1)
        return self.made[mode, loop].time(batch, steps, lead) / steps

    def _at_once(self, work: Callable[[], object], times: int) -> float:
        torch.set_num_threads(max(1, cores() // RANKS))
        work()  # its memory is there after this
        self.ranks.gather([0])  # all begin together
        return seconds(lambda: [work() for _ in range(times)], self.batch.device) / times


def size(net: nn.Module) -> int:
    """Return the number of a net's weights."""
    return sum(weight.numel() for weight in net.parameters())


def _enter(rank: int, port: int, pipe: Connection, setting: Setting) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    try:
        this = Rank(setting)
        while True:
            pipe.send(pipe.recv()(this))
    except Exception as error:
        pipe.send(f"rank {rank}: {first_line(error)}")


@contextmanager
def started(setting: Setting) -> Iterator[Callable[..., float]]:
    """Start the ranks; give what lets the first few do something: the seconds of the slowest."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for rank in range(RANKS):
        pipe, its_end = context.Pipe()
        pipes.append(pipe)
        arguments = (rank, port, its_end, setting)
        processes.append(context.Process(target=_enter, args=arguments, daemon=True))
        processes[-1].start()
        its_end.close()  # or the pipe would seem open when the process has ended

    def tell(work: methodcaller, count: int = RANKS) -> float:
        for pipe in pipes[:count]:
            pipe.send(work)
        answers = []
        for pipe in pipes[:count]:
            answers.append(pipe.recv() if pipe.poll(PATIENCE) else "a rank is stuck")
            if isinstance(answers[-1], str):
                end()  # whatever else is asked of them fails at once
                raise RuntimeError(answers[-1])
        return max(answers)

    def end() -> None:
        for process in processes:
            process.kill()
            process.join()

    try:
        yield tell
    finally:
        end()


def test_ranks(device: torch.device, quick: bool, report: Report) -> None:
    """Let one process and two train in turn; in the same rounds time what two exchange."""
    setting = Setting(16, 8, 4, device.type) if quick else Setting(64, 64, 64, device.type)
    on_gpu = device.type == "cuda"
    shape = f"{setting.image_size} px, batch {setting.batch_size}, width {setting.width}"
    steps = report.table(f"Ranks: steps, {shape}")
    if on_gpu and torch.cuda.device_count() < RANKS:
        steps.row(trained="all", remark=f"not measured: needs {RANKS} GPUs")
        return
    chosen = loops(setting)
    modes = list(MODES)[: 3 if on_gpu else 2]
    with started(setting) as tell:
        runs: dict[str, Run] = {"agree": partial(tell, methodcaller("agree"))}
        for net in "DG":
            runs[f"sum {net}"] = partial(tell, methodcaller("add_up", net))
            runs[f"copy {net}"] = partial(tell, methodcaller("copy", net))
        for mode in modes:
            for name, loop in chosen.items():
                work = methodcaller("step", mode, loop)
                runs[f"{mode}, {name}"] = partial(tell, work, loop.processes)
        for run in runs.values():  # what fails is told here, and ends the benchmark
            run()
        times, errors = in_turn(runs, budget=0.5 if quick else 30 if on_gpu else 200)
    assert not errors, errors

    exchanged = report.table("Ranks: what two exchange per step")
    exchanged.row(what="an agreement, of two", ms=1000 * median(times["agree"]))
    for name, net in zip("GD", setting.nets()):
        mb = size(net) * 4 / 1e6
        for work, what in ("copy", "copying there and back"), ("sum", "all-reduce"):
            ms = 1000 * median(times[f"{work} {name}"])
            exchanged.row(what=f"{name}'s gradients, {what}", ms=ms, mb=mb)
    model = report.table(f"Ranks: measured beside predicted, {shape}")
    for mode in modes:
        base = times[f"{mode}, {WHOLE if on_gpu else ALL_CORES}"]
        for name, loop in chosen.items():
            blocks = times[f"{mode}, {name}"]
            steps.row(
                trained=mode,
                by=name,
                threads=loop.threads,
                images=loop.images,
                images_per_s=loop.images / median(blocks),
                ms_per_step=1000 * median(blocks),
                **(Ratio.of(base, blocks).columns if name in (WHOLE, ALL_CORES, SHARED) else {}),
            )
        for compute, copies in (PART, []), (AT_ONCE, ["copy D", "copy G"]):
            parts = [f"{mode}, {compute}", *copies, "sum D", "sum G", *["agree"] * 3]
            predicted = [sum(part) for part in zip(*(times[name] for name in parts))]
            model.row(
                trained=mode,
                compute=compute,
                compute_ms=1000 * median(times[parts[0]]),
                predicted_ms=1000 * median(predicted),
                ms_per_step=1000 * median(times[f"{mode}, {SHARED}"]),
                **Ratio.of(times[f"{mode}, {SHARED}"], predicted).columns,
            )
    rounds = f"median of {len(times['agree'])} rounds, and its range"
    steps.note(f"ratio: to {WHOLE if on_gpu else ALL_CORES}, above 1 if faster; {rounds}.")
    steps.note("images: of all processes together; the slower one's time counts.")
    exchanged.note(f"By {'NCCL' if on_gpu else 'gloo'}; agreements are by gloo in any case.")
    model.note(
        "predicted: computing a part + all-reduces of both nets' gradients + 3 agreements; where "
        "parts are computed at once, also copies. ratio: measured (ms/step) by predicted."
    )
