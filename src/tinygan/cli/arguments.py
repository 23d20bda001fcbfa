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
    sample.add_argument("--grid", action="store_true", help="make one picture: OUT/grid.png")
    walk = _command(commands, "interpolate", "film a walk from seed to seed, and back to the first")
    walk.add_argument("--seconds", type=float, default=10, help="how long it takes [10]")
    walk.add_argument("--fps", type=int, default=30, help="frames a second, in a .gif 20 [30]")
    kinds = (
        (sample, 64, "DIR or .zip for PNG files; .npy (N, H, W, C)"),
        (walk, 6, "an .mp4, .gif or .html"),
    )
    for command, n, out in kinds:
        _generator(command)
        command.add_argument("-n", type=int, default=n, help=f"seeds, from --seed on [{n}]")
        command.add_argument("--out", type=Path, required=True, help=out)
        command.add_argument("--seeds", type=_seeds, help="which, such as 1-64,70")
        command.add_argument("--labels", help="classes by name or number: cat,3; a film fades")
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
    export = _command(commands, "export", "write a generator as a file for other programs")
    export.add_argument("run", type=Path, metavar="RUN", help=RUN)
    forms = ["onnx", "torch.export", "torchscript", "safetensors"]
    export.add_argument("--to", choices=forms, help="its format [onnx, or as FILE ends]")
    export.add_argument("--out", type=Path, metavar="FILE", help="the file [RUN/generator.onnx]")
    export.add_argument("--half", action="store_true", help="float16: half the bytes, for GPUs")
    return parser


def _seeds(text: str) -> list[int]:
    """Return the seeds of "1-64,70"."""
    ends = [part.split("-") for part in text.split(",") if re.fullmatch(r"[0-9]+(-[0-9]+)?", part)]
    found = [range(int(part[0]), int(part[-1]) + 1) for part in ends]
    if len(found) <= text.count(",") or not all(found):
        raise argparse.ArgumentTypeError(f"must be as 1-64,70, got {text!r}")
    return [seed for some in found for seed in some]


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
