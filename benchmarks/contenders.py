"""Who is compared: the tutorial's loop, the best one by hand, two frameworks, and tinygan.

All train the same nets from the same kind of start on the batches they are given, with the same
loss, optimizer and order of updates: D on real images, D on fakes, G by the updated D.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

import tinygan

import tutorial
from measuring import ClockedBatches

Z = 100
"""Length of the noise vector."""

Adam = partial(torch.optim.Adam, lr=2e-4, betas=(0.5, 0.999))


@dataclass(frozen=True)
class Setting:
    """What is trained, and where.

    Args:
        image_size: height and width in pixels.
        batch_size: images per step.
        width: channels of the layer next to the image, in both nets.
        device: "cpu" or "cuda".
        seed: of the first weights.
    """

    image_size: int
    batch_size: int
    width: int
    device: str
    seed: int = 999

    def batch(self) -> torch.Tensor:
        """Return the real images of every step, (N, 3, H, W) in [-1, 1], on the device."""
        generator = torch.Generator().manual_seed(999)
        shape = (self.batch_size, 3, self.image_size, self.image_size)
        return (torch.rand(shape, generator=generator) * 2 - 1).to(self.device)

    def nets(self) -> tuple[nn.Module, nn.Module]:
        """Return G and D, which gives logits, as tinygan builds them."""
        torch.manual_seed(self.seed)
        return (
            tinygan.DCGANGenerator(self.image_size, base_channels=self.width)
            .apply(tinygan.weights_init)
            .to(self.device),
            tinygan.DCGANDiscriminator(self.image_size, base_channels=self.width)
            .apply(tinygan.weights_init)
            .to(self.device),
        )


class Contender:
    """Someone who trains.

    Attributes:
        generator, discriminator: the nets.
        losses: D's and G's, of the last step.
    """

    generator: nn.Module
    discriminator: nn.Module
    losses: Sequence[torch.Tensor | float]

    def train(self, batches: ClockedBatches) -> None:
        """Take one step per batch."""
        raise NotImplementedError

    def time(self, batch: torch.Tensor, steps: int, lead: int = 0) -> float:
        """Train on the same batch again and again: seconds of ``steps`` steps after ``lead``."""
        batches = ClockedBatches(batch, steps, lead)
        self.train(batches)
        return batches.seconds

    def check(self, batch: torch.Tensor, steps: int) -> None:
        """Train, which is the warm-up too; raise unless losses are finite and weights move."""
        weights = [*self.generator.parameters(), *self.discriminator.parameters()]
        before = [weight.detach().cpu().clone() for weight in weights]
        self.time(batch, steps)
        losses = [float(loss) for loss in self.losses]
        if not all(map(math.isfinite, losses)):
            raise ArithmeticError(f"losses are not finite: {losses}")
        still = sum(torch.equal(a, b.detach().cpu()) for a, b in zip(before, weights))
        if still:
            raise ArithmeticError(f"{still} of {len(weights)} weights have not moved")


class Tutorial(Contender):
    """The tutorial's loop as printed: fp32, a wait for the device at each of five statistics.

    At 64 pixels with the tutorial's nets; at other sizes with tinygan's, and the tutorial's sigmoid
    behind D.
    """

    def __init__(self, setting: Setting) -> None:
        width = setting.width
        if setting.image_size == 64:
            torch.manual_seed(setting.seed)
            g = tutorial.make_generator(ngf=width).apply(tutorial.weights_init)
            d = tutorial.make_discriminator(ndf=width).apply(tutorial.weights_init)
            self.generator, self.discriminator = g.to(setting.device), d.to(setting.device)
        else:
            self.generator, d = setting.nets()
            self.discriminator = nn.Sequential(d, nn.Sigmoid())
        self.loop = tutorial.Loop(self.generator, self.discriminator)

    def train(self, batches: Iterable[torch.Tensor]) -> None:
        """Take one step per batch."""
        statistics = self.loop.train(batches, self._noise)
        self.losses = statistics.loss_d[-1], statistics.loss_g[-1]

    def _noise(self, step: int, count: int) -> torch.Tensor:
        return torch.randn(count, Z, device=self.loop.device)


class HandTuned(Contender):
    """The best loop that we know to write by hand, with the tutorial's five statistics.

    It waits for nothing, is channels last, has fused Adam, losses on logits in fp32, no gradients
    of D's weights in G's phase, and lets cuDNN choose its algorithms by trying them.

    Compiled it is in torch.compile's default mode. "reduce-overhead" keeps the outputs of a
    compiled net in memory that its next run may write to, and takes the first forward after any
    backward for the begin of a new step. Here D runs three times in a step and the fakes must
    outlive its first two backwards, so they would be overwritten before G's phase needs them.

    Args:
        setting: what is trained.
        dtype: of autocast; None for fp32.
        compile: whether both nets are compiled.
    """

    def __init__(
        self, setting: Setting, dtype: torch.dtype | None = None, compile: bool = False
    ) -> None:
        g, d = (net.to(memory_format=torch.channels_last) for net in setting.nets())
        self.generator, self.discriminator = g, d
        self.g, self.d = (torch.compile(g), torch.compile(d)) if compile else (g, d)
        self.compiled = compile
        self.autocast = partial(torch.autocast, setting.device, dtype, enabled=dtype is not None)
        self.device = torch.device(setting.device)
        self.make_optimizers()

    def make_optimizers(self) -> None:
        """Make both players' Adam."""
        self.optimizer_g = Adam(self.generator.parameters(), fused=True)
        self.optimizer_d = Adam(self.discriminator.parameters(), fused=True)

    def train(self, batches: Iterable[torch.Tensor]) -> None:
        """Take one step per batch."""
        with tinygan.Execution(cudnn_benchmark=True).cudnn_trials():
            for images in batches:
                real = images.to(self.device, non_blocking=True, memory_format=torch.channels_last)
                self.statistics = self.step(real)
        self.losses = self.statistics[:2]

    def step(self, real: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Take one step: Loss_D, Loss_G, D(x), D(G(z)) before and after D's update."""
        self.optimizer_d.zero_grad()
        with self.autocast():
            real_logits = self.d(real)
        loss_real = F.softplus(-real_logits.float()).mean()
        loss_real.backward()
        z = torch.randn(len(real), Z, device=self.device)
        with self.autocast():
            fake = self.g(z)
            fake_logits = self.d(fake.detach())
        loss_fake = F.softplus(fake_logits.float()).mean()
        loss_fake.backward()
        self.optimizer_d.step()

        self.optimizer_g.zero_grad()
        if self.compiled:
            # A compiled backward computes all that its graph has, whatever it is asked for: so
            # there is a graph of D without gradients of its weights.
            self.discriminator.requires_grad_(False)
        with self.autocast():
            logits = self.d(fake)
        loss_g = F.softplus(-logits.float()).mean()
        loss_g.backward(inputs=list(self.generator.parameters()))
        if self.compiled:
            self.discriminator.requires_grad_(True)
        self.optimizer_g.step()

        with torch.no_grad():
            means = [x.float().sigmoid().mean() for x in (real_logits, fake_logits, logits)]
        return (loss_real.detach() + loss_fake.detach(), loss_g.detach(), *means)


class HandCaptured(HandTuned):
    """The same step, uncompiled, captured by hand as one CUDA graph."""

    def make_optimizers(self) -> None:
        """Make both players' Adam, which count their steps on the device."""
        self.optimizer_g = Adam(self.generator.parameters(), fused=True, capturable=True)
        self.optimizer_d = Adam(self.discriminator.parameters(), fused=True, capturable=True)
        self.graph: torch.cuda.CUDAGraph | None = None

    def step(self, real: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Take one step, by replaying the graph."""
        if self.graph is None:
            self._capture(real)
        self.real.copy_(real)
        self.graph.replay()
        return self.statistics

    def _capture(self, real: torch.Tensor) -> None:
        self.real = real.clone()
        # Aside, as PyTorch asks for: lazy initialisations must be over before the capture.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                super().step(self.real)
        torch.cuda.current_stream().wait_stream(stream)
        # The graph's own gradients are then made in its own memory.
        self.optimizer_d.zero_grad()
        self.optimizer_g.zero_grad()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.statistics = super().step(self.real)


class Lightning(Contender):
    """Lightning with manual optimization, as its own GAN example is written.

    Each block is a ``fit`` of one epoch; its set-up is outside the clock.

    Args:
        setting: what is trained.
        precision: "32-true" or "bf16-mixed".
    """

    def __init__(self, setting: Setting, precision: str) -> None:
        import lightning

        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

        class GAN(lightning.LightningModule):
            def __init__(self, generator: nn.Module, discriminator: nn.Module) -> None:
                super().__init__()
                self.automatic_optimization = False
                self.g, self.d = generator, discriminator
                self.adams = Adam(generator.parameters()), Adam(discriminator.parameters())
                self.batches: ClockedBatches
                self.losses: Sequence[torch.Tensor] = ()

            def configure_optimizers(self) -> list[torch.optim.Optimizer]:
                return list(self.adams)

            def training_step(self, real: torch.Tensor, index: int) -> None:
                optimizer_g, optimizer_d = self.optimizers()
                cost = F.binary_cross_entropy_with_logits
                fake = self.g(torch.randn(len(real), Z, device=self.device))

                self.toggle_optimizer(optimizer_d)
                optimizer_d.zero_grad()
                logits = self.d(real)
                loss_real = cost(logits, torch.ones_like(logits))
                self.manual_backward(loss_real)
                logits = self.d(fake.detach())
                loss_fake = cost(logits, torch.zeros_like(logits))
                self.manual_backward(loss_fake)
                optimizer_d.step()
                self.untoggle_optimizer(optimizer_d)

                self.toggle_optimizer(optimizer_g)
                optimizer_g.zero_grad()
                logits = self.d(fake)
                loss_g = cost(logits, torch.ones_like(logits))
                self.manual_backward(loss_g)
                optimizer_g.step()
                self.untoggle_optimizer(optimizer_g)
                self.losses = (loss_real + loss_fake).detach(), loss_g.detach()

            def on_train_epoch_end(self) -> None:
                self.batches.stop()

        self.generator, self.discriminator = setting.nets()
        self.module = GAN(self.generator, self.discriminator)
        self.make_trainer = partial(
            lightning.Trainer,
            accelerator="gpu" if setting.device == "cuda" else "cpu",
            devices=1,
            precision=precision,
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )

    def train(self, batches: ClockedBatches) -> None:
        """Take one step per batch."""
        self.module.batches = batches
        self.make_trainer().fit(self.module, batches)
        self.losses = self.module.losses


class Accelerate(Contender):
    """Hugging Face's accelerate: the plain loop, with what it prepares.

    Args:
        setting: what is trained.
        precision: "no" or "bf16".
    """

    def __init__(self, setting: Setting, precision: str) -> None:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        # One process has one state with one precision; what was prepared before keeps its own.
        AcceleratorState._reset_state()
        self.accelerator = Accelerator(mixed_precision=precision, cpu=setting.device == "cpu")
        self.generator, self.discriminator = setting.nets()
        self.g, self.d, self.optimizer_g, self.optimizer_d = self.accelerator.prepare(
            self.generator,
            self.discriminator,
            Adam(self.generator.parameters()),
            Adam(self.discriminator.parameters()),
        )

    def train(self, batches: Iterable[torch.Tensor]) -> None:
        """Take one step per batch."""
        cost = F.binary_cross_entropy_with_logits
        backward = self.accelerator.backward
        for real in batches:
            self.optimizer_d.zero_grad()
            logits = self.d(real)
            loss_real = cost(logits, torch.ones_like(logits))
            backward(loss_real)
            fake = self.g(torch.randn(len(real), Z, device=real.device))
            logits = self.d(fake.detach())
            loss_fake = cost(logits, torch.zeros_like(logits))
            backward(loss_fake)
            self.optimizer_d.step()

            self.optimizer_g.zero_grad()
            logits = self.d(fake)
            loss_g = cost(logits, torch.ones_like(logits))
            backward(loss_g)
            self.optimizer_g.step()
        self.losses = (loss_real + loss_fake).detach(), loss_g.detach()


class TinyGAN(Contender):
    """tinygan's trainer.

    Args:
        setting: what is trained.
        dtype: of autocast; None for fp32.
        compile: whether the nets are compiled.
        capture: whether a step is replayed from CUDA graphs.
        hooks: what watches.
        ranks: the processes that share each batch; None for those that torchrun has started.
    """

    def __init__(
        self,
        setting: Setting,
        dtype: torch.dtype | None = None,
        compile: bool = False,
        capture: bool = False,
        hooks: Sequence[tinygan.Hook] = (),
        ranks: tinygan.distributed.Ranks | None = None,
    ) -> None:
        self.generator, self.discriminator = setting.nets()
        self.warned: list[str] = []
        with self._listening():
            self.trainer = tinygan.GANTrainer(
                self.generator,
                self.discriminator,
                hooks=hooks,
                execution=tinygan.Execution(
                    dtype=dtype, compile=compile, capture=capture, ranks=ranks
                ),
            )

    def check(self, batch: torch.Tensor, steps: int) -> None:
        """Train as the others do; raise also if the trainer warns: of steps that run eagerly, say.

        Meanwhile one more hook looks at the losses.
        """
        hooks = self.trainer.hooks
        self.trainer.hooks = (*hooks, _LastLosses(self))
        with self._listening():
            super().check(batch, steps)
        self.trainer.hooks = hooks
        if self.warned:
            raise RuntimeError(self.warned[0])

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Within the block the trainer's warnings are kept."""
        logger, handler = logging.getLogger("tinygan"), _Keeping(self.warned)
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)

    def train(self, batches: ClockedBatches) -> None:
        """Take one step per batch."""
        self.trainer.fit(batches, steps=self.trainer.step + len(batches))


class _Keeping(logging.Handler):
    """Keeps warnings in a list."""

    def __init__(self, kept: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.kept = kept

    def emit(self, record: logging.LogRecord) -> None:
        self.kept.append(record.getMessage())


class _LastLosses(tinygan.Hook):
    """Keeps the losses of the last step."""

    def __init__(self, contender: Contender) -> None:
        self.contender = contender

    def on_step_end(self, trainer: tinygan.GANTrainer, report: tinygan.Report) -> None:
        self.contender.losses = report["loss_discriminator"], report["loss_generator"]


Maker = Callable[[Setting], Contender]

BF16 = torch.bfloat16

EVERYWHERE: dict[str, Maker] = {
    "tutorial": Tutorial,
    "hand-tuned fp32": HandTuned,
    "hand-tuned bf16": partial(HandTuned, dtype=BF16),
    "hand-tuned bf16 compile": partial(HandTuned, dtype=BF16, compile=True),
    "Lightning fp32": partial(Lightning, precision="32-true"),
    "Lightning bf16": partial(Lightning, precision="bf16-mixed"),
    "accelerate fp32": partial(Accelerate, precision="no"),
    "accelerate bf16": partial(Accelerate, precision="bf16"),
    "tinygan fp32": TinyGAN,
    "tinygan bf16": partial(TinyGAN, dtype=BF16),
    "tinygan bf16 compile": partial(TinyGAN, dtype=BF16, compile=True),
}

ON_CUDA: dict[str, Maker] = {
    "hand-tuned bf16 capture": partial(HandCaptured, dtype=BF16),
    "tinygan fp32 capture": partial(TinyGAN, capture=True),
    "tinygan bf16 capture": partial(TinyGAN, dtype=BF16, capture=True),
    "tinygan bf16 compile capture": partial(TinyGAN, dtype=BF16, compile=True, capture=True),
}


def makers(device: str) -> dict[str, Maker]:
    """Return what makes each contender on a device, by name."""
    return EVERYWHERE | (ON_CUDA if device == "cuda" else {})
