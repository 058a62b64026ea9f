"""Reads the rows of a data file one after another, whatever its kind.

    for row in read_rows(Path("orders.jsonl"), ReadOptions(), notes):
        row.where, row.value         ("orders.jsonl:1", {"prompt": "A message: …", "completion": "…"})

Rows are read as they are asked for, so that the memory does not grow with the file. A row that cannot be read has an
InputError as its value, and the caller decides whether to raise it. What was assumed about a file is noted in one line:
its encoding by a byte order mark, its delimiter, columns without a name.

`text_rows` and `arrow_rows` have the bounds of what is read.
"""

from __future__ import annotations

import codecs
import itertools
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from aftertune.errors import InputError, nearest
from aftertune.paths import is_dir, is_file
from aftertune.study import HUB_NAMES, on_hub
from aftertune.tuning.arrow_rows import read_hub_rows, read_parquet_rows
from aftertune.tuning.csv_rows import read_csv_rows
from aftertune.tuning.json_rows import read_json_rows
from aftertune.tuning.text_rows import DataRow, read_line_rows

#: File name extensions, and how such a file is read.
KINDS = {".jsonl": "lines", ".ndjson": "lines", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
_PACKED = (".gz", ".zip", ".zst", ".bz2", ".xz")


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How data is read. form: one of FORMS (`aftertune.tuning.forms`), or "auto"; fields: our names -> names in the
    file; encoding: of a text file; split, subset: of a data set of the Hub; skip_bad: leave out unreadable rows, and
    count them; limit: the most rows that are read."""

    form: str = "auto"
    fields: Mapping[str, str] = field(default_factory=dict)
    encoding: str = "utf-8"
    split: str = "train"
    subset: str | None = None
    skip_bad: bool = False
    limit: int | None = None


def read_rows(path: Path, options: ReadOptions, notes: list[str]) -> Generator[DataRow]:
    """The rows of a file in its order or, if there is no such file, of a data set of the Hub.

    path: a file, or ``owner/name`` on the Hub, or one of HUB_NAMES. notes: receives what was assumed, at
    the latest when all rows were read.

    Raises InputError for a missing or empty file, an unknown kind of file, an unknown encoding, and a file that is
    damaged as a whole; SourceError if the Hub does not give the data set.
    """
    if not is_file(path):
        if not on_hub(path) or not (str(path) in HUB_NAMES or ("/" in str(path) and not is_dir(path.parent))):
            raise InputError(f"{path}: no such data file; give a .jsonl, .json, .csv or .parquet file, a Hub data set "
                             f"(owner/name), or one of {', '.join(HUB_NAMES)}")
        rows = read_hub_rows(HUB_NAMES.get(str(path), str(path)), options.split, options.subset)
    else:
        rows = _file_rows(path, options, notes)
    empty = True
    for row in itertools.islice(rows, options.limit):
        empty = False
        yield row
    if options.limit is not None and next(rows, None) is not None:
        rows.close()
        notes.append(f"{path}: only the first {options.limit:,} rows were read")
    if empty:
        raise InputError(f"{path}: no examples: the file is empty; write one example per row")


def _file_rows(path: Path, options: ReadOptions, notes: list[str]) -> Generator[DataRow]:
    kind = KINDS.get(path.suffix.lower())
    if kind is None:
        packed = path.suffix.lower() in _PACKED
        raise InputError(f"{path}: unknown kind of file {path.suffix!r}{nearest(path.suffix, list(KINDS))}; "
                         f"{'unpack it, and ' if packed else ''}use one of {', '.join(KINDS)}")
    if kind == "parquet":
        return read_parquet_rows(path, notes)
    try:
        codecs.lookup(options.encoding)
    except LookupError:
        raise InputError(f"unknown encoding {options.encoding!r}; use for example utf-8, utf-16 or cp1252") from None
    readers = {"lines": read_line_rows, "json": read_json_rows, "csv": read_csv_rows}
    return readers[kind](path, options.encoding, notes)
