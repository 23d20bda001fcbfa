"""Dye hair without pairs of pictures: CycleGAN (Zhu et al. 2017, arXiv:1703.10593).

    python examples/cyclegan.py

X are faces with black hair, Y other faces with blue hair; nobody is seen with both. G maps X to Y,
F maps Y to X; D_Y and D_X judge them by least squares (section 4). Who goes there and back must be
the same again: equation 2. The squares here are halved, so a weight of 5 is the 10 of equation 3.

Each picture in runs/cyclegan/samples has six rows of faces that were not trained on: x, G(x),
F(G(x)), and y, F(y), G(F(y)). After an interruption the same command goes on.
"""

import argparse

import torch
from torch import nn

import tinygan
from tinygan import data
from tinygan.hooks import Checkpoint, JSONLog, ProgressBar, SampleGrid
from tinygan.losses import least_squares


def cyclegan(players, batch, *, weight=5.0):
    """Play equation 3: one translator, its judge, then the other two."""
    G, F, D_X, D_Y = players
    x, y = batch
    for there, back, judge, a, b in (G, F, D_Y, x, y), (F, G, D_X, y, x):
        fake = there(a)
        cycle = (back(fake) - a).abs().mean() + (there(back(b)) - b).abs().mean()
        there.pay(least_squares.generator(judge(fake)).mean() + weight * cycle)
        there.log(**{f"cycle_{there.name}": cycle})
        yield there
        judge.pay(least_squares.real(judge(b)))
        judge.pay(least_squares.fake(judge(fake.detach())))
        yield judge


class Translator(nn.Sequential):
    """Paints over faces (N, 3, H, W): the paper's generator in small, with a bridge around it."""

    def __init__(self, w):
        layers = []
        sizes = (3, w, 3, 1), (w, 2 * w, 4, 2), *[(2 * w, 2 * w, 3, 1)] * 4
        for given, made, size, stride in sizes:
            layers += [nn.Conv2d(given, made, size, stride, 1), nn.InstanceNorm2d(made), nn.ReLU()]
        layers += [nn.ConvTranspose2d(2 * w, w, 4, 2, 1), nn.InstanceNorm2d(w), nn.ReLU()]
        super().__init__(*layers, nn.Conv2d(w, 3, 3, padding=1))

    def forward(self, faces):
        """Add what the layers make of the faces."""
        return faces + super().forward(faces)


def domains(count, seed):
    """Draw faces of all kinds; return those with black hair, and those with blue."""
    drawn = data.CartoonFaces(count, 32, seed=seed)
    faces = torch.stack([face for face, _ in drawn])
    _, hair, style, *_ = drawn.attributes.T  # style 0 is bald
    return [faces[(hair == colour) & (style > 0)] for colour in (0, 5)]


def main(words=None):
    """Train, or go on."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--faces", type=int, default=8000, help="of all kinds; an eighth is in X")
    parser.add_argument("--width", type=int, default=16, help="channels next to the images")
    parser.add_argument("--out", default="runs/cyclegan")
    a = parser.parse_args(words)
    x, y = (faces[:8] for faces in domains(100, seed=1))
    torch.manual_seed(0)
    nets = [Translator(a.width) for _ in range(2)]
    nets += [tinygan.DCGANDiscriminator(32, 3, a.width, norm=nn.InstanceNorm2d) for _ in range(2)]
    trainer = tinygan.Trainer(
        [tinygan.Player(name, net) for name, net in zip(("G", "F", "D_X", "D_Y"), nets)],
        cyclegan,
        sample=lambda p: torch.cat(
            [x, a := p.G.sample(x), p.F.sample(a), y, b := p.F.sample(y), p.G.sample(b)]
        ),
        hooks=[ProgressBar(), JSONLog(a.out), SampleGrid(a.out, every=250), Checkpoint(a.out)],
    )
    trainer.resume(a.out)
    unpaired = list(zip(*domains(a.faces, seed=0)))  # side by side, but of no relation
    trainer.fit(data.Loader(unpaired, batch_size=8), steps=a.steps)
    print(f"{trainer.step} steps are done; look at {a.out}/samples.")


if __name__ == "__main__":
    main()
