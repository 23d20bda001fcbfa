"""What a person sees while a run goes on: bars in a terminal; bars and pictures in a notebook."""

from __future__ import annotations

import importlib
import sys
import warnings
from pathlib import Path
from typing import Any

from tqdm import TqdmWarning, tqdm


def is_here() -> bool:
    """Return whether a notebook's kernel runs this process; IPython is not imported to find out."""
    get_ipython = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)
    return getattr(get_ipython(), "kernel", None) is not None


def bar(*, shown: bool = True, **options: Any) -> Any:
    """Return tqdm's bar; none is seen where there is neither a terminal nor a notebook."""
    if not is_here():
        # disable=None is tqdm's word for "unless there is a terminal".
        return tqdm(disable=None if shown else True, **options)
    with warnings.catch_warnings():
        # That ipywidgets is missing: then the bar is text.
        warnings.simplefilter("ignore", TqdmWarning)
        from tqdm.auto import tqdm as anywhere
    # In the stream of printed lines: of two streams each line would begin a new bar.
    return anywhere(disable=not shown, file=sys.stdout, **options)


def gif(path: Path) -> Any:
    """Return an animation as notebooks show it: of Pillow's they show one frame."""
    return importlib.import_module("IPython.display").Image(path.read_bytes(), format="gif")


def show(picture: Any, display: Any) -> Any:
    """Show a picture below a notebook's cell, in place of the last one; return its display."""
    if display is None:
        return importlib.import_module("IPython.display").display(picture, display_id=True)
    display.update(picture)
    return display
