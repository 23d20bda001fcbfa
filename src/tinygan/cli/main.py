"""One command of the command line: its arguments read, its module imported, its errors told."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from tinygan.cli.arguments import argument_parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``tinygan COMMAND ...``, each command by the module of its name.

    A bad input, an extra that is not installed and a disk that is full end it with one sentence and
    exit code 2, Ctrl-C with 130.
    """
    arguments = argument_parser().parse_args(argv)
    try:  # around the import too, which takes a second or two
        importlib.import_module(f"tinygan.cli.{arguments.command}").run(arguments)
        sys.stdout.flush()
    except (ValueError, ImportError, OSError) as error:
        if isinstance(error, BrokenPipeError):  # its reader, such as `head`, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(141) from None
        print(f"tinygan {arguments.command}: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print(f"\ntinygan {arguments.command}: stopped", file=sys.stderr)
        raise SystemExit(130) from None
