"""Libraries that not every user needs."""

from __future__ import annotations

import importlib.util


def require(module: str, *, extra: str, wanted_by: str) -> None:
    """Raise ImportError, naming the pip command, if an extra's library is not installed."""
    if importlib.util.find_spec(module) is None:
        raise ImportError(f'{wanted_by} needs {module}: pip install "tinygan[{extra}]"')
