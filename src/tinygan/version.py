"""The library's version, which is known where it is not installed too."""

from __future__ import annotations

__version__ = "0.1.0"
