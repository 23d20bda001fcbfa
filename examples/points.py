"""A GAN without images: points on a ring of eight modes.

    python examples/points.py

Nets are any modules: here G maps z (N, 4) to points (N, 2), and D maps points to logits (N, 1). The
ring is an old test for modes that G drops. The recipe is R3GAN's (Huang et al. 2024, equation 2):
the relativistic pairing loss with the penalties R1 and R2, every fourth step, and an average of G.
It prints how many modes are found, and draws real and generated points in runs/points/points.png if
matplotlib is installed. After an interruption the same command goes on.
"""

import argparse
from functools import partial
from itertools import pairwise

import torch
from torch import nn

from tinygan import GANTrainer, losses, metrics, penalties
from tinygan.hooks import Checkpoint, JSONLog, ProgressBar, every

MODES, DEVIATION = 8, 0.05
ANGLES = torch.arange(MODES) * (2 * torch.pi / MODES)
MEANS = torch.stack([ANGLES.cos(), ANGLES.sin()], dim=1)


def ring(count):
    """Draw points (N, 2) of the ring, each mode as often as any other."""
    return MEANS[torch.randperm(count) % MODES] + DEVIATION * torch.randn(count, 2)


def perceptron(*sizes):
    """Return a chain of linear layers of these sizes, with ReLUs between them."""
    layers = [layer for io in pairwise(sizes) for layer in (nn.Linear(*io), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def tell(trainer, report=None):
    """Print which modes 2,500 generated points lie near to."""
    nearest, good = metrics.nearest_mode(trainer.sample(2500), MEANS, DEVIATION)
    found = metrics.mode_coverage(nearest, MODES, high_quality=good)
    near = f"{found.high_quality:.0%} of the points near one"
    print(f"{trainer.step} steps: {found.found} of {MODES} modes, {near}.")


def draw(trainer, real, path):
    """Draw generated points over real ones."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("matplotlib is not installed, so there is no picture.")
        return
    axes = Figure(figsize=(5, 5)).add_subplot(aspect="equal")
    for points, label in ((real[:2500], "real"), (trainer.sample(2500).cpu(), "generated")):
        axes.scatter(*points.T, s=3, alpha=0.5, label=label)
    axes.legend(loc="center")
    axes.figure.savefig(path)
    print(f"Look at {path}.")


def main(words=None):
    """Train, or go on."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10000)
    parser.add_argument("--out", default="runs/points")
    a = parser.parse_args(words)
    torch.manual_seed(0)
    generator, discriminator = perceptron(4, 64, 64, 2), perceptron(2, 64, 64, 1)
    generator.latent_dim = 4
    points = ring(64_000)
    adam = partial(torch.optim.Adam, lr=1e-3, betas=(0.5, 0.99), fused=True)
    trainer = GANTrainer(
        generator,
        discriminator,
        loss=losses.relativistic,
        penalties=[penalties.r1(0.1, every=4), penalties.r2(0.1, every=4)],
        generator_optimizer=adam,
        discriminator_optimizer=adam,
        ema_half_life=50_000,
        hooks=[ProgressBar(), JSONLog(a.out), every(1000, tell), Checkpoint(a.out, every=1000)],
    )
    trainer.resume(a.out)
    trainer.fit(points.split(128), steps=a.steps)
    if trainer.step % 1000 != 0:
        tell(trainer)
    draw(trainer, points, f"{a.out}/points.png")


if __name__ == "__main__":
    main()
