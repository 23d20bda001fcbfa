"""What the command line takes: all commands' arguments, with their help. Imports no PyTorch."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any, NoReturn

from tinygan.version import __version__

RUN = (
    "a run's folder; or a generator: its folder, .safetensors file or checkpoint, or a .pt file of "
    "the DCGAN tutorial's weights"
)


# Defaults. LARGE has the tutorial's sizes, and about as many images as its five epochs of CelebA.
LARGE = {"batch_size": 128, "image_size": 64, "width": 64, "images": 1_000_000}
SMALL = {"batch_size": 32, "image_size": 64, "width": 32, "images": 360_000}  # on a CPU
DRAWN = SMALL | {"image_size": 32, "images": 80_000}  # faces, on a CPU
QUICK_BATCH = 12  # what the rate of the recipe quick is for


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line; ``command`` is the command's name."""
    parser = _Parser(
        prog="tinygan",
        description="Train GANs, and use what they have learned.",
        epilog="Try it: `tinygan train -` learns from built-in drawn faces.",
    )
    parser.add_argument("--version", action="version", version=f"tinygan {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    _train(_command(commands, "train", "train a GAN on images, or resume where it stopped"))
    _sample(_command(commands, "sample", "make images, one for each seed"))
    _interpolate(_command(commands, "interpolate", "make a film that morphs from seed to seed"))
    _evaluate(_command(commands, "evaluate", "compare a generator's images with real ones"))
    _export(_command(commands, "export", "write a generator as a file for other programs"))
    _invert(_command(commands, "invert", "find the z whose images are nearest to pictures"))
    _explore(_command(commands, "explore", "write a page to look at a generator in a browser"))
    info = _command(commands, "info", "describe a run or a generator")
    info.add_argument("run", type=Path, metavar="RUN", help=RUN)
    return parser


def _command(commands: Any, name: str, text: str) -> argparse.ArgumentParser:
    """Return a new command's parser."""
    made: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}."
    )
    return made


def _seeds(text: str) -> list[int]:
    """Return the seeds of "1-64,70"."""
    ends = [part.split("-") for part in text.split(",") if re.fullmatch(r"[0-9]+(-[0-9]+)?", part)]
    found = [range(int(part[0]), int(part[-1]) + 1) for part in ends]
    if len(found) <= text.count(",") or not all(found):
        raise argparse.ArgumentTypeError(f"must be as 1-64,70, got {text!r}")
    if sum(map(len, found)) > 10**7:
        raise argparse.ArgumentTypeError(f"must be at most ten million, got {text!r}")
    return [seed for some in found for seed in some]


def _train(command: argparse.ArgumentParser) -> None:
    """Add what ``tinygan train`` takes; names are the DCGAN tutorial's where it has one."""
    add = command.add_argument
    add("data", help="folder, zip or tar of images; - for drawn faces")
    add("--out", type=Path, help="output folder [runs/NAME, by the name of the data]")
    names = ("tutorial", "hinge", "r1", "wgan-gp", "relativistic", "quick", "r3gan")
    parts = "loss, penalties, rates; r3gan has nets of its own [relativistic; on a CPU: quick]"
    add("--recipe", choices=names, help=parts)
    pixels = "height and width of images in pixels, 8 or more, or both, as 61x47"
    pixels += f" [{LARGE['image_size']}; drawn faces on a CPU: {DRAWN['image_size']}]"
    add("--image-size", type=_size, metavar="N", help=pixels)
    batch = f"[{LARGE['batch_size']}; on a CPU: {SMALL['batch_size']}; of quick: {QUICK_BATCH}]"
    add("--batch-size", type=int, metavar="N", help=f"images per step {batch}")
    width = "channels of both nets next to the image; of r3gan's, at up to 32 pixels"
    width += f" [{LARGE['width']}; on a CPU: {SMALL['width']}]"
    add("--width", type=int, metavar="N", help=width)
    epochs = f"passes over all images [as many as show {LARGE['images']:,} images; on a CPU: "
    epochs += f"{SMALL['images']:,}, of drawn faces {DRAWN['images']:,}]"
    add("--num-epochs", type=int, metavar="N", help=epochs)
    add("--nc", type=int, default=3, help="channels of the images, 3 or 1 [3]")
    add("--nz", type=int, help="length of the latent vector [100; of r3gan 64]")
    add("--lr", type=float, help="learning rate [the recipe's]")
    add("--beta1", type=float, help="Adam's beta1 [the recipe's]")
    add("--ema", type=float, help="half-life of G's average, in images [the recipe's]")
    add("--diff-augment", action="store_true", help="for small data sets: augment all that D sees")
    add("--flip", action="store_true", help="mirror images at random")
    add("--labels", help='"folders" if sub-folders are classes, or a .csv or .json of them [none]')
    add("--no-pack", action="store_true", help="keep no array of images: decode in every epoch")
    add("--workers", type=int, default=2, help="processes that decode images [2]")
    add("--num-faces", type=int, default=8000, help="how many faces to draw [8000]")
    add(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="in which the nets compute",
    )
    add("--capture", action="store_true", help="replay steps as CUDA graphs, on a GPU")
    add("--compile", action="store_true", help="apply the nets by torch.compile")
    add("--cudnn-benchmark", action="store_true", help="take cuDNN's fastest algorithms, by trial")
    add("--device", help="cpu, cuda, mps [cuda if there is a GPU, else cpu]")
    add("--ngpu", type=int, default=1, help="processes, each with a GPU; 0 for one on the CPU [1]")
    add("--seed", type=int, default=999, help="seed of every random number [999]")
    add("--resume", type=Path, help="checkpoint to resume from [the newest good one in --out]")
    add(
        "--allow",
        nargs="+",
        default=(),
        help="what may differ from the checkpoint, as its error says",
    )
    add("--dry-run", action="store_true", help="say what would happen and how long; write nothing")


def _generator(command: argparse.ArgumentParser, out: str) -> None:
    """Add what every command on a trained generator takes."""
    command.add_argument("run", type=Path, metavar="RUN", help=RUN)
    command.add_argument("--out", type=Path, help=out)
    command.add_argument("--device", help="cpu, cuda, mps [cuda if there is a GPU, else cpu]")
    command.add_argument(
        "--seed", type=int, default=0, help="first seed, or that of random starts [0]"
    )


def _chosen(command: argparse.ArgumentParser, count: int) -> None:
    """Add what chooses seeds and classes."""
    command.add_argument(
        "-n", type=int, default=count, help=f"how many seeds, from --seed on [{count}]"
    )
    command.add_argument("--seeds", type=_seeds, help="which seeds, such as 1-64,70")
    command.add_argument("--labels", help="classes by name or number, such as cat,3")
    command.add_argument("--truncation", type=float, default=1.0, help="0.7: less variety [1]")


def _sample(command: argparse.ArgumentParser) -> None:
    _generator(command, "folder or .zip of PNG files, or .npy of bytes (N, H, W, C) [RUN/images]")
    _chosen(command, 64)
    command.add_argument("--grid", action="store_true", help="one picture: a .png or OUT/grid.png")


def _interpolate(command: argparse.ArgumentParser) -> None:
    _generator(command, "an .mp4, .gif or .html [RUN/walk.mp4, or .gif without PyAV]")
    _chosen(command, 6)
    command.add_argument("--seconds", type=float, default=10, help="how long it takes [10]")
    command.add_argument("--fps", type=int, default=30, help="frames per second [30; 20 in a .gif]")


def _evaluate(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("run", type=Path, metavar="RUN", help=RUN)
    add("--real", required=True, metavar="DATA", help="folder, zip, tar or .npy; - for drawn faces")
    add(
        "-n",
        dest="count",
        type=int,
        default=5000,
        help="generated images; twice as many real ones are used [5000]",
    )
    nets = "Inception's, downloaded once; lite's, installed by pip; a random net's, which say less"
    names = ("inception", "lite", "random")
    add("--features", choices=names, default="inception", help=f"{nets} [%(default)s]")
    add("--weights", type=Path, help="a file of Inception's weights")
    add("--device", help="cpu, cuda, mps [cuda if there is a GPU, else cpu]")
    add("--seed", type=int, default=0, help="decides what is drawn [0]")


def _export(command: argparse.ArgumentParser) -> None:
    forms = ("onnx", "torch.export", "torchscript", "safetensors")
    command.add_argument("run", type=Path, metavar="RUN", help=RUN)
    command.add_argument("--to", choices=forms, help="its format [onnx, or as OUT ends]")
    command.add_argument("--out", type=Path, help="the file [RUN/generator.onnx]")
    command.add_argument("--half", action="store_true", help="float16: half the bytes, for GPUs")


def _invert(command: argparse.ArgumentParser) -> None:
    _generator(command, "a .png of both, beside it z as .npy, or a folder [RUN/inverted.png]")
    command.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="a picture's file")
    command.add_argument("--steps", type=int, default=300, help="optimizer steps [300]")
    command.add_argument("--starts", type=int, default=4, help="starts for each picture [4]")
    command.add_argument("--labels", help="a class for each, by name or number: cat,3 [found too]")


def _explore(command: argparse.ArgumentParser) -> None:
    _generator(command, "the page, or its folder [RUN/explore.html]")


def _size(text: str) -> int | tuple[int, int]:
    """Return the size of "64" or "61x47"."""
    if not re.fullmatch("[0-9]+(x[0-9]+)?", text):
        raise argparse.ArgumentTypeError(f"must be as 64 or 61x47, got {text!r}")
    height, _, width = text.partition("x")
    return (int(height), int(width)) if width else int(height)
