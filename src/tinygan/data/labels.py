"""The class of each image: from its folder, or from a table of file names and classes."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from tinygan.data.decoding import BadImageError
from tinygan.data.sources import EXTENSIONS, Source, listed

Labels = str | Path | Mapping[str, int | str] | None

# Every number up to the largest is a class.
_MOST = 2**20


def read_labels(labels: Labels, source: Source) -> dict[str, Any]:
    """Return the names of the ``classes``, and the ``labels`` of the source's images, or Nones."""
    if labels is None or isinstance(labels, Mapping):
        table: Mapping[str, Any] | None = labels
    else:
        table = _folders(source.names) if labels == "folders" else _table(labels, source)
    if table is None:
        return {"classes": None, "labels": None}
    # A table may have the files' bare names, if no two files share one.
    bare = Counter(PurePosixPath(name).name for name in source.stamps)
    keys = {
        name: last if name not in table and bare[last := PurePosixPath(name).name] == 1 else name
        for name in source.names
    }
    missing = [name for name, key in keys.items() if key not in table]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(keys)} images in {source.root} have no class in labels: "
            f"{listed(missing)}; add them there, or move them away."
        )
    return _numbered({name: table[key] for name, key in keys.items()})


def _folders(names: Sequence[str]) -> dict[str, str]:
    """Return the first folder of each name, below one that may hold all the others."""
    parts = {name: PurePosixPath(name).parts for name in names}
    while len({each[0] for each in parts.values()}) == 1 and min(map(len, parts.values())) > 2:
        parts = {name: each[1:] for name, each in parts.items()}
    return {name: each[0] for name, each in parts.items() if len(each) > 1}


def _table(path: Any, source: Source) -> dict[str, Any] | None:
    try:
        path = Path(path)
        content = path.read_bytes() if path.is_file() else source.read(path.as_posix())
        text = content.decode("utf-8-sig")
        if path.suffix.lower() == ".json":
            found = json.loads(text)
            found = found.get("labels", found)  # as StyleGAN's dataset.json has it
            return None if found is None else dict(found)
        rows = [row for row in csv.reader(io.StringIO(text)) if row]
        if rows and PurePosixPath(rows[0][0]).suffix.lower() not in EXTENSIONS:
            del rows[0]  # the columns' names
        table = {row[0].strip(): row[1].strip() for row in rows}
        if len(table) < len(rows):
            raise ValueError("it names a file twice")
        return table
    except (ValueError, LookupError, TypeError, AttributeError, OSError, BadImageError) as error:
        raise ValueError(
            'labels must be None, "folders", a mapping, or a .csv or .json of names and classes, '
            f"got {path} ({error!r}); check its path and content."
        ) from error


def _numbered(classes: dict[str, Any]) -> dict[str, Any]:
    """Return names of classes, sorted, and the number of each; numbers stand for themselves."""
    values = list(classes.values())
    if all(isinstance(each, str) for each in values):
        # "10" comes after "9".
        ordered = sorted(set(values), key=int if all(map(str.isdecimal, values)) else None)
        number = {each: index for index, each in enumerate(ordered)}
        return {"classes": ordered, "labels": [number[each] for each in values]}
    for name, each in classes.items():
        if not isinstance(each, int) or not 0 <= each < _MOST:
            raise ValueError(
                f"labels must all be names, or all numbers from 0 to {_MOST - 1}, got {each!r} for "
                f"{name!r}; correct it."
            )
    return {"classes": [str(number) for number in range(max(values) + 1)], "labels": values}
