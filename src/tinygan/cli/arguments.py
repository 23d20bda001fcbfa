"""What the command line takes: all commands' arguments, with their help. Imports no PyTorch."""

from __future__ import annotations

import argparse
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
    return parser


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
