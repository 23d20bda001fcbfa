"""The DCGAN faces tutorial on tinygan: train a generator of faces and look at what it makes.

    python examples/celeba_faces.py                          built-in drawn faces, no download
    python examples/celeba_faces.py --dataroot data/celeba   the tutorial, on CelebA
    python examples/celeba_faces.py --ngpu 4                 on four GPUs, as torchrun would

Images are decoded once, into an array beside the output folder; later runs read that. All pictures
and logs go into one folder, which is named at the end. After any interruption the same command goes
on where the run stood.

This is just the tutorial, except that drawn faces on a CPU have a quick recipe. The command
`tinygan train` has other recipes, and classes, 16 bits, captured steps, mirrored images and
checkpoints by name: `tinygan train -h`.
"""

from __future__ import annotations

import argparse
import zlib
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import tinygan
from tinygan import data, distributed, hooks, recipes

# The tutorial's inputs, in which 5 epochs of CelebA's 202,599 images are 7,915 steps.
TUTORIAL = {
    "batch_size": 128, "image_size": 64, "ngf": 64, "ndf": 64, "num_epochs": 5,
    "lr": 2e-4, "beta1": 0.5,
}  # fmt: skip
# What 2 CPU cores can do in two minutes: small images, many small steps, the quick recipe.
QUICK = {
    "batch_size": 24, "image_size": 32, "ngf": 32, "ndf": 32, "num_epochs": 10,
    "lr": 2e-3, "beta1": 0.0,
}  # fmt: skip


def argument_parser() -> argparse.ArgumentParser:
    """Return a parser of the tutorial's inputs, and of the output folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument

    def sized(name: str, kind: type, text: str) -> None:
        sizes = f"[{TUTORIAL[name]}; drawn faces on a CPU: {QUICK[name]}]"
        add(f"--{name.replace('_', '-')}", type=kind, help=f"{text} {sizes}")

    add("--dataroot", type=Path, help="folder, zip or tar of images [none: drawn faces]")
    add("--workers", type=int, default=2, help="processes that decode images [2]")
    sized("batch_size", int, "images per step")
    sized("image_size", int, "height and width of images in pixels, 8 or more")
    add("--nc", type=int, default=3, help="channels of the images, 3 or 1 [3]")
    add("--nz", type=int, default=100, help="length of the latent vector [100]")
    sized("ngf", int, "width of the generator")
    sized("ndf", int, "width of the discriminator")
    sized("num_epochs", int, "passes over the data")
    sized("lr", float, "learning rate")
    sized("beta1", float, "Adam's beta1")
    add("--ngpu", type=int, default=1, help="processes, each with a GPU; 0 for one on the CPU [1]")
    add("--seed", type=int, default=999, help="names every random draw [999]")
    add("--num-faces", type=int, default=8000, help="how many built-in faces to draw [8000]")
    add("--out", type=Path, help="output folder [runs/faces, or runs/ and the name of --dataroot]")
    return parser


def complete(a: argparse.Namespace) -> argparse.Namespace:
    """Choose the device, and what was not given, by the data and the machine; check numbers."""
    a.device = distributed.join().device if a.ngpu > 0 else torch.device("cpu")
    a.quick = a.dataroot is None and a.device.type == "cpu"
    a.out = a.out or Path("runs", a.dataroot.resolve().stem if a.dataroot else "faces")
    for name, value in (QUICK if a.quick else TUTORIAL).items():
        if getattr(a, name) is None:
            setattr(a, name, value)
    ones, zeros = ("num_epochs", "batch_size", "num_faces"), ("lr", "workers", "ngpu")
    for name, least in {**dict.fromkeys(ones, 1), **dict.fromkeys(zeros, 0)}.items():
        if not (value := getattr(a, name)) >= least:  # nor is NaN
            raise ValueError(f"{name} must be at least {least}, got {value}; use {least} or more.")
    return a


def load(a: argparse.Namespace) -> data.Loader:
    """Decode the user's images, once, or draw faces."""
    if a.dataroot is not None:
        # Folders of one name may lie in several places.
        root = a.dataroot.resolve()
        name = f"{root.stem}-{zlib.crc32(bytes(root)):08x}"
        packed = a.out.parent / f"{name}_{a.image_size}x{a.image_size}x{a.nc}.npy"
        if root.exists():
            say(f"Training on the images of {a.dataroot}, decoded once, into {packed}.")
        images = data.pack(a.dataroot, packed, a.image_size, a.nc, workers=a.workers)
    else:
        images = data.CartoonFaces(a.num_faces, a.image_size, a.nc)
    loader = data.Loader(images, a.batch_size, seed=a.seed, device=a.device)
    if a.dataroot is None:
        say(f"No --dataroot: training on {a.num_faces} built-in drawn faces. For CelebA, get")
        say("img_align_celeba.zip from https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html")
    return loader


def make_trainer(a: argparse.Namespace, watching: list[tinygan.Hook]) -> tinygan.GANTrainer:
    """Return a trainer of the tutorial's nets, by the tutorial's recipe or by the quick one."""

    def nets(weights: Any = tinygan.weights_init, **of_d: Any) -> tuple[nn.Module, nn.Module]:
        torch.manual_seed(a.seed)
        generator = tinygan.DCGANGenerator(a.image_size, a.nc, a.nz, a.ngf)
        generator.apply(tinygan.weights_init)
        discriminator = tinygan.DCGANDiscriminator(a.image_size, a.nc, a.ndf, **of_d)
        if weights is not None:
            discriminator.apply(weights)
        return generator, discriminator

    # The quick one: R3GAN's game, a falling rate and the average of G; no weights_init in D.
    recipe = recipes.quick(nets, lr=a.lr) if a.quick else recipes.tutorial(nets)
    betas = a.beta1, recipe.optimizer.keywords["betas"][1]
    recipe = replace(recipe, optimizer=partial(recipe.optimizer, lr=a.lr, betas=betas))
    return recipe.trainer(hooks=watching, seed=a.seed, device=a.device)


def train(a: argparse.Namespace) -> None:
    """Train, or go on with what is in the output folder, and say where the pictures are."""
    hooks.JSONLog(a.out).on_fit_start(make_trainer(a, []))  # bad flags are errors now
    loader = load(a)
    steps = a.num_epochs * len(loader)
    # Some thirty pictures make a good animation; the tutorial's 500 steps are right for long runs.
    trainer = make_trainer(a, hooks.usual(a.out, every=min(500, max(1, steps // 30))))
    found = trainer.resume(a.out)
    say(f"{a.num_epochs} epochs of {len(loader)} steps on {a.device.type}.")
    if found is not None:
        say(f"Resuming from {found}; use another --out to start afresh.")
    trainer.fit(loader, epochs=a.num_epochs)
    if trainer.ranks.is_first:
        generator = trainer.average.net if trainer.average else trainer.generator
        torch.save(generator.state_dict(), a.out / "generator.pt")
    say(
        f"Done: {trainer.step} steps. Look into {a.out.resolve()}: progress.html plays what was "
        "learned, real_beside_fake.png shows the end, and generator.pt has G's weights."
    )


def say(words: str) -> None:
    """Print, on one of the ranks."""
    if distributed.join().is_first:
        print(words, flush=True)


def main() -> None:
    """Read the arguments and train; say in one line what is wrong."""
    parser = argument_parser()
    arguments = parser.parse_args()
    if arguments.ngpu > 1 and not distributed.is_launched():
        distributed.launch(arguments.ngpu)
    try:
        train(complete(arguments))
    except KeyboardInterrupt:  # what was done is saved, and said
        raise SystemExit(130) from None
    except (ValueError, ImportError, OSError) as error:
        rank = distributed.join().rank  # each finds it; one that is alone with it must say it too
        parser.exit(2, f"{parser.prog}{f', rank {rank}' if rank else ''}: error: {error}\n")


if __name__ == "__main__":
    main()
