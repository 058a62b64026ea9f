"""Writes rows that are in memory as a data file, which is named by their digest.

    stored_rows([{"prompt": "2 + 2?", "completion": "4"}], Path("data"))      data/rows-5d1c….jsonl
    stored_rows("orders.jsonl", Path("data"))                                 orders.jsonl, as it is

A training reads the file as it reads any file, so that rows in memory have the identity of a file of the same rows, an
interrupted training can continue, and a later measurement finds the held-out rows again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from aftertune.errors import InputError, StorageError, shown

#: What a function takes as data, for messages.
ALLOWED = "a file, a data set of the Hub, a datasets.Dataset, a DataFrame, or dicts"


def stored_rows(data: Any, folder: Path) -> Path:
    """The data file of a function's ``data``: the path itself, or a file of the rows in ``folder``.

    Raises InputError for something else, for a row that is no dict, and for a value that JSON does not have.
    """
    if isinstance(data, str | Path):
        return Path(data)
    sha, lines = hashlib.sha256(), 0
    part = folder / f"writing-{os.getpid()}.jsonl"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            for row in _rows(data):
                line = _line(row, lines).encode("utf-8", "surrogatepass") + b"\n"
                sha.update(line)
                file.write(line)
                lines += 1
        if not lines:
            raise InputError("data has no rows; each needs a text to learn")
        path = folder / f"rows-{sha.hexdigest()[:16]}.jsonl"
        part.replace(path)
    except OSError as error:
        raise StorageError(f"{folder}: the rows cannot be written ({error.strerror}); make room, or give a "
                           "file") from None
    finally:
        part.unlink(missing_ok=True)
    return path


def _rows(data: Any) -> Iterator[Any]:
    """The rows of a data set, a frame or an iterable. A value that is missing in a table is left out of its row."""
    library = type(data).__module__.partition(".")[0]
    if library == "datasets":
        yield from map(_without_missing, _dataset(data))
    elif library == "pandas":
        yield from map(_without_missing, data.to_dict("records"))
    elif library == "polars":
        yield from map(_without_missing, data.iter_rows(named=True))
    elif isinstance(data, Iterable) and not isinstance(data, Mapping | bytes):
        yield from data
    else:
        raise InputError(f"data is a {type(data).__name__}; allowed are {ALLOWED}")


def _dataset(data: Any) -> Iterable[Any]:
    """The rows of a datasets.Dataset; InputError for a dict of splits."""
    if isinstance(data, Mapping):
        splits = ", ".join(map(repr, list(data)[:8]))
        raise InputError(f"data is a {type(data).__name__} with the splits {splits}; give one of them, for example "
                         f"data[{next(iter(data))!r}]")
    rows: Iterable[Any] = data.with_format(None) if hasattr(data, "with_format") else data
    return rows


def _without_missing(value: Any) -> Any:
    """A row of a table without its missing values (None, NaN), and with plain Python values."""
    if isinstance(value, Mapping):
        return {str(k): _without_missing(v) for k, v in value.items() if not _is_missing(v)}
    if hasattr(value, "tolist"):  # of NumPy: an array, or one number
        value = value.tolist()
    return [_without_missing(v) for v in value] if isinstance(value, list | tuple) else value


def _is_missing(value: Any) -> bool:
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, float) and value != value


def _line(row: Any, number: int) -> str:
    """A row as a line of JSON."""
    if not isinstance(row, Mapping):
        raise InputError(f"data, row {number}: found a {type(row).__name__} ({shown(row, 40)}); each row is a dict, "
                         'such as {"prompt": "…", "completion": "…"}')
    try:
        return json.dumps(dict(row), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"data, row {number}: {error}; a row has texts, numbers, lists and dicts") from None
