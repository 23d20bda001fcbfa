"""What the command line takes: all commands' arguments, with their help. Imports no PyTorch."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from tinygan.version import __version__

RUN = (
    "a run's folder; or a generator: its folder, .safetensors file or checkpoint, or a .pt file of "
    "the DCGAN tutorial's weights"
)


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line; ``command`` is the command's name."""
    parser = argparse.ArgumentParser(
        prog="tinygan",
        description="Train GANs, and use what they have learned.",
        epilog="Try it: `tinygan train -` learns from built-in drawn faces.",
    )
    parser.add_argument("--version", action="version", version=f"tinygan {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    info = _command(commands, "info", "say what a run or a generator is, and how to go on")
    info.add_argument("run", type=Path, metavar="RUN|FILE", help=RUN)

    sample = _command(commands, "sample", "make images, each of a seed of its own")
    sample.add_argument("-n", type=int, default=64, help="how many, from --seed on [64]")
    sample.add_argument("--grid", action="store_true", help="make one picture of all, grid.png")
    walk = _command(commands, "interpolate", "film a walk from seed to seed, and back to the first")
    walk.add_argument("--seconds", type=float, default=10, help="how long it takes [10]")
    walk.add_argument("--fps", type=int, default=30, help="frames a second, in a .gif 20 [30]")
    walk.set_defaults(n=6)
    for command, out in ((sample, "a folder, or a .zip, for PNG files"), (walk, "an .mp4 or .gif")):
        _generator(command)
        command.add_argument("--out", type=Path, required=True, help=out)
        command.add_argument("--seeds", type=_seeds, help="which, such as 1-64,70")
        command.add_argument("--labels", help="classes, by name or number: cat,3 [all, in turn]")
        command.add_argument("--truncation", type=float, default=1.0, help="0.7: less variety [1]")

    evaluate = _command(commands, "evaluate", "compare a generator's images with real ones")
    _generator(evaluate)
    evaluate.add_argument(
        "--real", required=True, metavar="FOLDER|ZIP|-", help="real images; - is the drawn faces"
    )
    evaluate.add_argument(
        "-n", dest="count", type=int, default=5000, help="images, at most half the real ones [5000]"
    )
    evaluate.add_argument(
        "--features",
        choices=["inception", "random"],
        default="inception",
        help="the net of published values, which is downloaded once, or one of random weights, "
        "which needs no download and says less [inception]",
    )
    evaluate.add_argument("--weights", type=Path, help="a file of Inception's weights")

    invert = _command(commands, "invert", "find the z whose images are nearest to pictures")
    invert.add_argument("--steps", type=int, default=300, help="of Adam [300]")
    invert.add_argument("--starts", type=int, default=4, help="for each picture [4]")
    invert.add_argument("--labels", help="a class for each, by name or number: cat,3 [found too]")
    explore = _command(commands, "explore", "write a page to look at a generator in a browser")
    for command, out in ((invert, "inverted.png, and .npy for z"), (explore, "explore.html")):
        _generator(command)
        command.add_argument("--out", type=Path, help=f"the file [RUN/{out}]")
    invert.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="a picture's file")
    return parser


def _seeds(text: str) -> list[int]:
    """Return the seeds of "1-64,70"."""
    if not re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"must be as 1-64,70, got {text!r}")
    ends = [[int(end) for end in part.split("-")] for part in text.split(",")]
    return [seed for part in ends for seed in range(part[0], part[-1] + 1)]


def _command(commands: Any, name: str, text: str) -> argparse.ArgumentParser:
    """Return a new command's parser."""
    made: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}."
    )
    return made


def _generator(command: argparse.ArgumentParser) -> None:
    """Add what every command on a trained generator takes."""
    command.add_argument("run", type=Path, metavar="RUN", help=RUN)
    command.add_argument("--device", help="cpu, cuda, mps [cuda if there is a GPU, else cpu]")
    command.add_argument("--seed", type=int, default=0, help="decides what is drawn [0]")
