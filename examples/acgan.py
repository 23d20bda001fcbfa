"""Choose the hair: a GAN that knows classes, AC-GAN (Odena et al. 2017, arXiv:1610.09585).

    python examples/acgan.py

G makes a face from noise and one of four hair styles. D has two heads: one tells real from fake,
the other names the style. D pays for what both get wrong, on real faces and fakes, and G pays too
for fakes whose style is not the one it was given (equations 2 and 3). The faces are drawn, so
nothing is downloaded.

Each picture in runs/acgan/samples has four rows: bald, short, long and curly hair, with the same
noise in each row. After an interruption the same command goes on.
"""

import argparse
from functools import partial

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import tinygan
from tinygan import data
from tinygan.hooks import Checkpoint, JSONLog, ProgressBar, SampleGrid
from tinygan.losses import non_saturating

STYLES = data.CartoonFaces.ATTRIBUTES["hair_style"]


def acgan(players, batch):
    """Play the game of section 3: L_S with the first head, L_C with the second."""
    D, G = players
    real, styles = batch
    fakes = G(batch.normal("noise", G.latent_dim), styles)
    for faces, cost in (real, non_saturating.real), (fakes.detach(), non_saturating.fake):
        logits, guesses = D(faces)
        D.pay(cost(logits) + cross_entropy(guesses, styles, reduction="none"))
    yield D
    logits, guesses = D(fakes)
    G.pay(non_saturating.generator(logits) + cross_entropy(guesses, styles, reduction="none"))
    G.log(style_right=(guesses.argmax(1) == styles).float())
    yield G


class TwoHeads(nn.Module):
    """Maps faces (N, 3, 32, 32) to logits (N,), and to logits of the styles (N, STYLES)."""

    def __init__(self, w):
        super().__init__()
        layers = [nn.Conv2d(3, w, 4, 2, 1), nn.LeakyReLU(0.2)]
        for size in (w, 2 * w):
            conv = nn.Conv2d(size, 2 * size, 4, 2, 1)
            layers += [conv, nn.BatchNorm2d(2 * size), nn.LeakyReLU(0.2)]
        self.main = nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * w * 16, 1 + STYLES))

    def forward(self, faces):
        """Look at the faces once, and judge them twice."""
        made = self.main(faces)
        return made[:, 0], made[:, 1:]


def main(words=None):
    """Train, or go on."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--faces", type=int, default=8000, help="how many are trained on")
    parser.add_argument("--width", type=int, default=32, help="channels next to the images")
    parser.add_argument("--out", default="runs/acgan")
    a = parser.parse_args(words)
    adam = partial(torch.optim.Adam, lr=5e-4, betas=(0.5, 0.999), fused=True)
    torch.manual_seed(0)
    D = TwoHeads(a.width).apply(tinygan.weights_init)
    G = tinygan.DCGANGenerator(32, base_channels=a.width, num_classes=STYLES)
    G.apply(tinygan.weights_init)
    noise = torch.randn(8, G.latent_dim).repeat(STYLES, 1)
    styles = torch.arange(STYLES).repeat_interleave(8)
    trainer = tinygan.Trainer(
        [tinygan.Player("D", D, adam), tinygan.Player("G", G, adam)],
        acgan,
        sample=lambda players: players.G.sample(noise, styles),
        hooks=[ProgressBar(), JSONLog(a.out), SampleGrid(a.out, every=250), Checkpoint(a.out)],
    )
    trainer.resume(a.out)
    faces = data.CartoonFaces(a.faces, 32, label="hair_style")
    trainer.fit(data.Loader(faces, batch_size=32), steps=a.steps)
    print(f"{trainer.step} steps are done; look at {a.out}/samples.")


if __name__ == "__main__":
    main()
