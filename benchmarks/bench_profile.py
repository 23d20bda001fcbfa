"""Where the time of a step goes, and what each measure buys on the way from the tutorial's loop."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile

import floor
from contenders import BF16, Adam, Contender, Setting, TinyGAN, Z
from measuring import Ratio, in_turn, synchronize
from report import Report


class Rung(Contender):
    """The tutorial's loop with some of the measures that make it faster.

    Args:
        setting: what is trained.
        logits: losses of logits, and none of the five waits for the device.
        only_generator: no gradients of D's weights in G's phase.
        channels_last: memory in the order N, H, W, C.
        fused: Adam in one kernel.
        bf16: autocast.
    """

    def __init__(
        self,
        setting: Setting,
        logits: bool = False,
        only_generator: bool = False,
        channels_last: bool = False,
        fused: bool = False,
        bf16: bool = False,
    ) -> None:
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.generator, d = (net.to(memory_format=self.format) for net in setting.nets())
        self.discriminator = d if logits else nn.Sequential(d, nn.Sigmoid())
        self.logits = logits
        self.asked = list(self.generator.parameters()) if only_generator else None
        self.optimizers = [
            # None lets PyTorch choose, as the tutorial does; False would forbid more than this.
            Adam(net.parameters(), fused=fused or None)
            for net in (self.discriminator, self.generator)
        ]
        self.autocast = partial(torch.autocast, setting.device, BF16) if bf16 else nullcontext

    def train(self, batches: Iterable[torch.Tensor]) -> None:
        """Take one step per batch."""
        for batch in batches:
            self._step(batch.to(memory_format=self.format))

    def _step(self, real: torch.Tensor) -> None:
        g = self.generator
        optimizer_d, optimizer_g = self.optimizers
        optimizer_d.zero_grad()
        loss_real, _ = self._judge(real, 1.0)
        loss_real.backward()
        with self.autocast():
            fake = g(torch.randn(len(real), Z, device=real.device))
        loss_fake, _ = self._judge(fake.detach(), 0.0)
        loss_fake.backward()
        optimizer_d.step()

        optimizer_g.zero_grad()
        loss_g, _ = self._judge(fake, 1.0)
        loss_g.backward(inputs=self.asked)
        optimizer_g.step()
        self.losses = (loss_real + loss_fake).detach(), loss_g.detach()
        if not self.logits:
            self.losses = [loss.item() for loss in self.losses]

    def _judge(self, images: torch.Tensor, target: float) -> tuple[torch.Tensor, object]:
        """Return the loss, and the mean of D's probabilities."""
        with self.autocast():
            output = self.discriminator(images)
        output = output.float()
        label = torch.full_like(output, target)
        if self.logits:
            loss = F.binary_cross_entropy_with_logits(output, label)
            return loss, output.detach().sigmoid().mean()
        return F.binary_cross_entropy(output, label), output.mean().item()


def test_ladder(device: torch.device, quick: bool, report: Report) -> None:
    """Add one measure after the other to the tutorial's loop, and let all train in turn."""
    setting = _setting(device, quick)
    measures = ["logits", "only_generator", "channels_last", "fused", "bf16"]
    named = {
        "the tutorial's way": [],
        "+ losses of logits, no waits": measures[:1],
        "+ G's gradients alone in its phase": measures[:2],
        "+ channels last": measures[:3],
        "+ fused Adam": measures[:4],
        "+ bfloat16": measures[:5],
    }
    made: dict[str, Contender] = {
        name: Rung(setting, **dict.fromkeys(chosen, True)) for name, chosen in named.items()
    }
    made["tinygan, bfloat16"] = TinyGAN(setting, dtype=BF16)
    if device.type == "cuda":
        made["tinygan, bfloat16, capture"] = TinyGAN(setting, dtype=BF16, capture=True)
    batch = setting.batch()
    for contender in made.values():
        contender.check(batch, 8 if device.type == "cuda" else 2)
    steps, lead = (20, 5) if device.type == "cuda" else (1, 1)
    times, errors = in_turn(
        {name: partial(who.time, batch, steps, lead) for name, who in made.items()},
        budget=0 if quick else 10 if device.type == "cuda" else 120,
    )
    assert not errors, errors
    table = report.table(f"What each measure buys, {_in_words(setting)}")
    before = first = times["the tutorial's way"]
    for name, blocks in times.items():
        table.row(
            loop=name,
            ms_per_step=statistics.median(blocks) / steps * 1000,
            **Ratio.of(first, blocks).columns,
            by_itself=Ratio.of(before, blocks).median,
        )
        before = blocks
    table.note(
        f"Medians of {len(first)} rounds in turn. ratio: to the first row, and its range; by "
        "itself: to the row above."
    )


FAMILIES = {
    "convolutions": ("conv",),
    "batch norm": ("batch_norm",),
    "activations": ("relu", "tanh", "clamp", "threshold"),
    "Adam": ("_fused_adam", "Optimizer", "_foreach_add", "_foreach_sub"),
    "copies and conversions": ("aten::copy_", "aten::to", "_to_copy", "contiguous", "empty"),
    "looking for NaN and infinity": (
        "norm",
        "aten::where",
        "aten::cat",
        "_foreach_copy",
        "isfinite",
    ),
    "losses and statistics": ("sigmoid", "mean", "softplus", "stack"),
}
"""By what the names of operators contain; the first that fits counts."""


def test_where_the_time_goes(
    device: torch.device, quick: bool, report: Report, rates: floor.Rates
) -> None:
    """Profile tinygan's steps, and add up operators by what they are for."""
    setting = _setting(device, quick)
    flops = floor.least_flops(setting)
    batch = setting.batch()
    table = report.table(f"Where a step's time goes, {_in_words(setting)}")
    for name, dtype in {"fp32": None, "bf16": BF16}.items():
        contender = TinyGAN(setting, dtype=dtype)
        contender.check(batch, 3)
        steps = 10 if device.type == "cuda" else 3
        taken = statistics.median(contender.time(batch, steps, 1) for _ in range(3)) / steps
        kinds = [ProfilerActivity.CPU]
        kinds += [ProfilerActivity.CUDA] if device.type == "cuda" else []
        with profile(activities=kinds) as profiler:
            contender.time(batch, steps)
            synchronize(device)
        shares = dict.fromkeys([*FAMILIES, "all else"], 0.0)
        for event in profiler.key_averages():
            own = event.self_cpu_time_total
            if device.type == "cuda":
                own = event.self_device_time_total if event.key.startswith("aten::") else 0.0
            shares[family_of(event.key)] += own
        total = sum(shares.values())
        for family, share in shares.items():
            table.row(precision=name, part=family, percent=100 * share / total)
        least = rates.floor(setting, flops, dtype)
        table.note(
            f"{name}: {taken * 1000:,.1f} ms per step, of which the floor is {least / taken:.0%}."
        )
        if device.type == "cuda":
            busy = total / 1e6 / steps / taken
            table.note(f"{name}: the GPU computes for {busy:.0%} of an eager step.")
    table.note("By the operators' own times in the profiler, added up by their names.")


def family_of(name: str, families: Mapping[str, Sequence[str]] = FAMILIES) -> str:
    """Return what an operator or a kernel is for, by its name."""
    for family, words in families.items():
        if any(word in name for word in words):
            return family
    return "all else"


def _setting(device: torch.device, quick: bool) -> Setting:
    if quick:
        return Setting(16, 8, 4, device.type)
    return Setting(64, 128 if device.type == "cuda" else 64, 64, device.type)


def _in_words(setting: Setting) -> str:
    return f"{setting.image_size} px, batch {setting.batch_size}, width {setting.width}"
