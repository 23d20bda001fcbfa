"""The DCGAN faces tutorial on tinygan: train a generator of faces and look at what it makes.

    python examples/celeba_faces.py                          built-in drawn faces, no download
    python examples/celeba_faces.py --dataroot data/celeba   the tutorial, on CelebA
    python examples/celeba_faces.py --dataroot pets --labels folders     a class per sub-folder
    python examples/celeba_faces.py --ngpu 4                 on four GPUs, as torchrun would

Images are decoded once, into an array beside the output folder; later runs read that. All pictures
and logs go into one folder, which is named at the end. After any interruption the same command goes
on where the run stood.
"""

from __future__ import annotations

import argparse
import os
import re
import zlib
from functools import partial
from pathlib import Path
from typing import NoReturn

import torch

import tinygan
from tinygan import data, distributed, hooks

# The tutorial's inputs, in which 5 epochs of CelebA's 202,599 images are 7,915 steps.
TUTORIAL = {"batch_size": 128, "image_size": 64, "ngf": 64, "ndf": 64, "num_epochs": 5, "lr": 2e-4}
# What 2 CPU cores can do in one to three minutes: small images, many small steps.
SMALL = {"batch_size": 32, "image_size": 32, "ngf": 32, "ndf": 32, "num_epochs": 10, "lr": 5e-4}


def argument_parser() -> argparse.ArgumentParser:
    """Return a parser of the tutorial's inputs, and of the output folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument

    def sized(name: str, kind: type, text: str) -> None:
        sizes = f"[{TUTORIAL[name]}; drawn faces on a CPU: {SMALL[name]}]"
        add(f"--{name.replace('_', '-')}", type=kind, help=f"{text} {sizes}")

    add("--dataroot", type=Path, help="folder, zip or tar of images [none: drawn faces]")
    add("--labels", help='"folders" if sub-folders are classes, or a .csv or .json of them [none]')
    add("--packed", type=Path, help=".npy of the decoded images [beside --out]; alone: its images")
    add("--no-pack", action="store_true", help="keep no such file: decode anew in each epoch")
    add("--workers", type=int, default=2, help="processes that decode images: once, or always [2]")
    sized("batch_size", int, "images per step")
    sized("image_size", int, "height and width of images in pixels, 8 or more")
    add("--nc", type=int, default=3, help="channels of the images, 3 or 1 [3]")
    add("--nz", type=int, default=100, help="length of the latent vector [100]")
    sized("ngf", int, "width of the generator")
    sized("ndf", int, "width of the discriminator")
    sized("num_epochs", int, "passes over the data")
    sized("lr", float, "learning rate")
    add("--beta1", type=float, default=0.5, help="Adam's beta1 [0.5]")
    add("--ngpu", type=int, default=1, help="processes, each with a GPU; 0 for one on the CPU [1]")
    kinds = ("float32", "bfloat16", "float16")
    add("--dtype", choices=kinds, default=kinds[0], help="type in which nets are applied [float32]")
    add("--capture", action="store_true", help="replay steps as CUDA graphs, on a GPU")
    add("--compile", action="store_true", help="apply the nets by torch.compile")
    add("--seed", type=int, default=999, help="names every random draw [999]")
    add("--num-faces", type=int, default=8000, help="how many built-in faces to draw [8000]")
    add("--flip", action="store_true", help="mirror images at random")
    add("--out", type=Path, default=Path("runs/faces"), help="output folder [runs/faces]")
    add("--resume", type=Path, nargs="?", help="checkpoint to go on from [newest good in --out]")
    add("--allow", nargs="*", default=(), help="what may differ then, in the words of the error")
    return parser


def complete(arguments: argparse.Namespace) -> argparse.Namespace:
    """Choose the device, and what was not given by the data and the machine."""
    arguments.ranks = distributed.join()
    arguments.device = arguments.ranks.device if arguments.ngpu > 0 else torch.device("cpu")
    drawn = arguments.dataroot is None and arguments.packed is None
    sizes = SMALL if drawn and arguments.device.type == "cpu" else TUTORIAL
    for name, value in sizes.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    if arguments.packed is None and arguments.dataroot is not None:
        root, size = arguments.dataroot.resolve(), arguments.image_size
        # Folders of one name may lie in several places.
        name = f"{root.stem}-{zlib.crc32(os.fsencode(root)):08x}"
        arguments.packed = arguments.out.parent / f"{name}_{size}x{size}x{arguments.nc}.npy"
    return arguments


def check(arguments: argparse.Namespace) -> None:
    """Refuse a bad flag now, not after minutes of drawing or decoding: try it on one face."""
    a = arguments
    for flag, value, least in (
        ("--num-epochs", a.num_epochs, 1), ("--batch-size", a.batch_size, 1),
        ("--workers", a.workers, 0), ("--ngpu", a.ngpu, 0),
    ):  # fmt: skip
        if value < least:
            raise ValueError(f"{flag} must be at least {least}, got {value}; use {least} or more.")
    if a.resume is not None and not a.resume.exists():
        raise ValueError(f"--resume must be a checkpoint, a .pt file, got {a.resume}.")
    if a.packed is None:
        face = data.CartoonFaces(min(a.num_faces, 1), a.image_size, a.nc).pixels
        data.Loader(face.expand(a.num_faces, -1, -1, -1), a.batch_size)
    hooks.JSONLog(a.out).on_fit_start(make_trainer(a, steps=1))  # may it write there?


def say(*words: object) -> None:
    """Print, on one of the ranks."""
    if distributed.join().is_first:
        print(*words, flush=True)


def load(arguments: argparse.Namespace) -> data.Loader:
    """Open the user's images, packed unless that is not wanted, or draw faces."""
    a, root, packed = arguments, arguments.dataroot, arguments.packed
    if root is not None and a.no_pack:
        images = data.image_folder(root, a.image_size, a.nc, labels=a.labels)
    elif root is not None:
        if root.exists() and not packed.exists():
            say(f"Decoding the images of {root} once, into {packed}; --no-pack does without.")
        images = data.pack(root, packed, a.image_size, a.nc, labels=a.labels, workers=a.workers)
    elif packed is not None:
        images = data.open_packed(packed)
    else:
        say(
            f"No --dataroot: training on {a.num_faces} built-in drawn faces. For CelebA, get "
            "img_align_celeba.zip from https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html and give "
            "it as --dataroot."
        )
        images = data.CartoonFaces(a.num_faces, a.image_size, a.nc)
    if packed is not None:
        say(f"Training on {len(images)} images of {packed if root is None else root}.")
    return data.Loader(
        images, a.batch_size, seed=a.seed, flip=a.flip, workers=a.workers, device=a.device,
    )  # fmt: skip


def make_trainer(
    arguments: argparse.Namespace, steps: int, classes: int | None = None
) -> tinygan.GANTrainer:
    """Return a trainer of the tutorial's nets, with the tutorial's log and pictures."""
    a, out = arguments, arguments.out
    # Some thirty pictures make a good animation; the tutorial's 500 steps are right for long runs.
    every = min(500, max(1, steps // 30))
    adam = partial(torch.optim.Adam, lr=a.lr, betas=(a.beta1, 0.999), fused=True)
    torch.manual_seed(a.seed)
    generator = tinygan.DCGANGenerator(a.image_size, a.nc, a.nz, a.ngf, num_classes=classes)
    generator.apply(tinygan.weights_init)
    discriminator = tinygan.DCGANDiscriminator(a.image_size, a.nc, a.ndf, num_classes=classes)
    discriminator.apply(tinygan.weights_init)
    return tinygan.GANTrainer(
        generator,
        discriminator,
        generator_optimizer=adam,
        discriminator_optimizer=adam,
        hooks=[
            hooks.ProgressBar(),
            hooks.TutorialLog(out),
            hooks.JSONLog(out),
            hooks.TrainingGrid(out),
            hooks.SampleGrid(out, every=every),
            hooks.Animation(out),
            hooks.LossPlot(out),
            hooks.RealBesideFake(out),
            hooks.Checkpoint(out, every=every),
        ],
        seed=a.seed,
        device=a.device,
        execution=tinygan.Execution(getattr(torch, a.dtype), compile=a.compile, capture=a.capture),
    )


def main() -> None:
    """Train, and say where the pictures are."""
    parser = argument_parser()
    arguments = parser.parse_args()
    if arguments.ngpu > 1 and not distributed.is_launched():
        distributed.launch(arguments.ngpu)
    out, trainer, start = arguments.out, None, 0
    try:
        check(complete(arguments))
        loader, epochs = load(arguments), arguments.num_epochs
        trainer = make_trainer(arguments, epochs * len(loader), loader.dataset.num_classes)
        resumed = trainer.resume(arguments.resume or out, allow=arguments.allow)
        if arguments.resume and resumed is None:
            raise ValueError(f"--resume must be a checkpoint, a .pt file, got {arguments.resume}.")
        start = trainer.step
        ranks = "" if trainer.ranks.count == 1 else f"{trainer.ranks.count} ranks on "
        say(
            f"{epochs} epoch{'' if epochs == 1 else 's'} of {len(loader)} steps on {ranks}"
            f"{arguments.device.type}, in batches of {arguments.batch_size} images of "
            f"{arguments.image_size} pixels."
        )
        if resumed is not None:
            say(f"Found {resumed}, of step {start}, to go on from; another --out begins anew.")
        trainer.fit(loader, epochs=epochs)
    except (KeyboardInterrupt, SystemExit) as end:
        if trainer is not None and trainer.step > 0:
            say(f"\nStopped at step {trainer.step}, saved in {out}; the same command goes on.")
        else:
            say("\nStopped before the first step; nothing is saved.")
        # What a shell expects of Ctrl-C, or of another signal.
        raise SystemExit(130 if isinstance(end, KeyboardInterrupt) else end.code) from None
    except distributed.RankError as error:
        refuse(parser, error, status=1)
    # A bad input, an extra that is not installed, a disk that is full.
    except (ValueError, ImportError, OSError) as error:
        if trainer is not None and trainer.step > start:
            raise
        refuse(parser, error)
    if trainer.ranks.is_first:
        finish(trainer, out, loader.dataset)


def refuse(parser: argparse.ArgumentParser, error: Exception, status: int = 2) -> NoReturn:
    """End with one line for what is wrong."""
    rank = distributed.join().rank
    # What the library calls trainer.resume(..., allow=['a', 'b']) is --allow 'a' 'b' here.
    call = r"trainer\.resume\(\.\.\., allow=\[(.*)\]\)"
    text = re.sub(call, lambda found: f"--allow {found[1].replace(', ', ' ')}", str(error))
    # Each rank finds it, as a rule; one that is alone with it must not be silent.
    parser.exit(status, f"{parser.prog}{f', rank {rank}' if rank else ''}: error: {text}\n")


def finish(trainer: tinygan.GANTrainer, out: Path, images: torch.utils.data.Dataset) -> None:
    """Write the generator's weights, and say what else there is."""
    torch.save(trainer.generator.state_dict(), out / "generator.pt")
    rows = ""
    if trainer.num_classes is not None:
        rows, count = ", ".join(images.classes[:50]), min(trainer.num_classes, 50)
        noise, labels = trainer.fixed_noise[:8].repeat(count, 1), torch.arange(count)
        made = trainer.generate(noise, labels=labels.repeat_interleave(8))
        tinygan.pictures.grid(made).save(out / "classes.png")
    print(f"Done: {trainer.step} steps. Look into {out.resolve()}:")
    for name, content in {
        "real_beside_fake.png": "real images beside generated ones",
        "progress.html": "the generator's progress, with play, pause and a slider",
        "progress.gif": "the same as an animation; its pictures are in samples",
        "classes.png": f"a row for each class, with the same noise: {rows}",
        "loss_plot.png": "both players' losses",
        "log.jsonl": "every step's numbers; log.txt has the tutorial's",
        "generator.pt": "the generator's weights",
        "checkpoints": "the run itself, to go on from",
    }.items():
        if (out / name).exists():
            print(f"  {name:22}{content}")


if __name__ == "__main__":
    main()
