"""Paint faces from outlines: pix2pix (Isola et al. 2017, arXiv:1611.07004).

    python examples/image_to_image.py

G sees an outline and paints a face. D sees an outline and a face, and judges each patch of them.
They play equation 4: the GAN's loss, and the L1 distance to the true face with a weight of 100. The
paper's only noise, dropout in G, is left out. The faces are drawn, so nothing is downloaded. Each
picture in runs/image_to_image/samples has three rows: outlines of faces that were not trained on,
what G paints, and the true faces. After an interruption the same command goes on.
"""

import argparse

import torch
from torch import nn

from tinygan import Player, Trainer, data
from tinygan.hooks import Checkpoint, JSONLog, ProgressBar, SampleGrid
from tinygan.losses import non_saturating


def pix2pix(players, batch, *, weight=100.0):
    """Play equation 4; D pays half of its loss, as in section 3.3."""
    D, G = players
    outlines, faces = batch
    painted = G(outlines)
    D.pay(non_saturating.real(D(torch.cat([outlines, faces], 1))), weight=0.5)
    D.pay(non_saturating.fake(D(torch.cat([outlines, painted.detach()], 1))), weight=0.5)
    yield D
    adversarial = non_saturating.generator(D(torch.cat([outlines, painted], 1))).mean()
    distance = (painted - faces).abs().mean()
    G.pay(adversarial + weight * distance)  # G was applied once, so it pays once
    G.log(adversarial=adversarial, l1=distance)
    yield G


def stage(conv, given, made):
    """Return layers that halve the sides of a map, or double them."""
    return nn.Sequential(conv(given, made, 4, 2, 1), nn.BatchNorm2d(made), nn.LeakyReLU(0.2))


class Bridge(nn.Sequential):
    """Puts what its layers make of a map beside the map: a U-Net is bridges within bridges."""

    def forward(self, x):
        """Map (N, C, H, W) to (N, C + what the layers make, H, W)."""
        return torch.cat([x, super().forward(x)], 1)


def nets(w=32):
    """Return D, with logits (N, 1, H / 4, W / 4), and G, of (N, 3, H, W) to (N, 3, H, W)."""
    down, up = nn.Conv2d, nn.ConvTranspose2d
    judge = stage(down, 6, w), stage(down, w, 2 * w), nn.Conv2d(2 * w, 1, 3, padding=1)
    inner = Bridge(stage(down, 2 * w, 4 * w), stage(up, 4 * w, 2 * w))
    middle = Bridge(stage(down, w, 2 * w), inner, stage(up, 4 * w, w))
    outer = Bridge(stage(down, 3, w), middle, stage(up, 2 * w, w))
    return nn.Sequential(*judge), nn.Sequential(outer, nn.Conv2d(3 + w, 3, 3, padding=1), nn.Tanh())


def pairs(count, seed):
    """Return outlines on white paper and the faces they are taken from, both (N, 3, 32, 32)."""
    faces = torch.stack([face for face, _ in data.CartoonFaces(count, 32, seed=seed)])
    steps = [faces - faces.roll(by, axis) for by in (-1, 1) for axis in (2, 3)]
    edges = torch.cat(steps, 1).abs().amax(1, keepdim=True).clamp(max=1)
    return torch.ones_like(faces).lerp(faces, edges), faces


def main(words=None):
    """Train, or go on."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--faces", type=int, default=4000, help="how many are trained on")
    parser.add_argument("--out", default="runs/image_to_image")
    a = parser.parse_args(words)
    outlines, faces = pairs(8, seed=1)
    torch.manual_seed(0)
    trainer = Trainer(
        [Player(name, net) for name, net in zip("DG", nets())],
        pix2pix,
        sample=lambda players: torch.cat([outlines, players.G.sample(outlines), faces]),
        hooks=[ProgressBar(), JSONLog(a.out), SampleGrid(a.out, every=250), Checkpoint(a.out)],
    )
    trainer.resume(a.out)
    trainer.fit(data.Loader(list(zip(*pairs(a.faces, seed=0))), batch_size=16), steps=a.steps)
    print(f"{trainer.step} steps are done; look at {a.out}/samples.")


if __name__ == "__main__":
    main()
