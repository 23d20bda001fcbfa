"""The class of each image: from its folder, or from a table of file names and classes."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from tinygan.data.decoding import BadImageError
from tinygan.data.sources import EXTENSIONS, Source, listed

_log = logging.getLogger(__name__)

Labels = str | Path | Mapping[str, int | str] | None

# Every number up to the largest is a class.
_MOST = 2**20


def read_labels(labels: Labels, source: Source) -> dict[str, Any]:
    """Return the names of the ``classes``, and the ``labels`` of the source's images, or Nones."""
    table: Mapping[str, int | str] | None
    if labels is None or isinstance(labels, Mapping):
        table = labels
    else:
        table = _folders(source.names) if labels == "folders" else _table(Path(labels), source)
    if table is None:
        return {"classes": None, "labels": None}
    kind = "the table" if isinstance(labels, Mapping) else labels
    # A table may have the files' bare names, if no two files share one.
    bare = Counter(PurePosixPath(name).name for name in source.names)
    keys = [
        last if name not in table and bare[last := PurePosixPath(name).name] == 1 else name
        for name in source.names
    ]
    missing = [name for name, key in zip(source.names, keys) if key not in table]
    if missing:
        raise ValueError(
            f"labels must give each image a class, got {len(missing)} of {len(keys)} images in "
            f"{source.root} without one in {kind}: {listed(missing)}; add or move them."
        )
    unused = sorted(table.keys() - set(keys) - source.rejected.keys())
    if unused:
        _log.warning("%d names in %s have no image: %s.", len(unused), kind, listed(unused))
    classes, numbers = _numbered([table[key] for key in keys], keys)
    return {"classes": classes, "labels": numbers}


def _folders(names: Sequence[str]) -> dict[str, str]:
    """Return the first folder of each name, below one that may hold all the others."""
    parts = {name: PurePosixPath(name).parts for name in names}
    while len({each[0] for each in parts.values()}) == 1 and min(map(len, parts.values())) > 2:
        parts = {name: each[1:] for name, each in parts.items()}
    return {name: each[0] for name, each in parts.items() if len(each) > 1}


def _table(path: Path, source: Source) -> Mapping[str, int | str] | None:
    try:
        if path.suffix.lower() not in (".csv", ".json"):
            raise ValueError("no .csv or .json")
        content = path.read_bytes() if path.is_file() else source.open(path.as_posix()).read()
        text = content.decode("utf-8-sig")
        if path.suffix.lower() == ".csv":
            rows = [row for row in csv.reader(io.StringIO(text)) if row]
            if rows and PurePosixPath(rows[0][0]).suffix.lower() not in EXTENSIONS:
                del rows[0]  # the columns' names
            return {row[0].strip(): row[1].strip() for row in rows}
        found = json.loads(text)
        found = found.get("labels", found)  # as StyleGAN's dataset.json has it
        return None if found is None else dict(found)
    except (ValueError, LookupError, TypeError, AttributeError, OSError, BadImageError) as error:
        raise ValueError(
            'labels must be None, "folders", or a .csv or .json file of names and classes, '
            f"got {path} ({error!r}); check its path and content."
        ) from error


def _numbered(classes: list[int | str], names: list[str]) -> tuple[list[str], list[int]]:
    if all(isinstance(each, str) for each in classes):
        # "10" comes after "9".
        numeric = all(each.isdecimal() for each in classes)  # type: ignore[union-attr]
        ordered = sorted({str(each) for each in classes}, key=int if numeric else None)
        number = {each: index for index, each in enumerate(ordered)}
        return ordered, [number[str(each)] for each in classes]
    for each, name in zip(classes, names):
        if not isinstance(each, int) or not 0 <= each < _MOST:
            raise ValueError(
                f"labels must all be names, or all numbers from 0 to {_MOST - 1}, got {each!r} for "
                f"{name!r}; correct it."
            )
    numbers = [int(each) for each in classes]
    return [str(number) for number in range(max(numbers) + 1)], numbers
