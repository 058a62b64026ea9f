"""Owns reading rows from a data file: JSON Lines, JSON, CSV, Parquet, or a data set of the Hub.

    for row in read_rows(Path("orders.jsonl")):
        row.where, row.value          "orders.jsonl:12", {"prompt": …, "completion": …}

A row that cannot be read is one whose ``value`` is the InputError that says why, so that the reader decides whether
it ends the run. A byte order mark, CRLF and blank lines are accepted; the first two are noted.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aftertune.errors import InputError, SourceError, nearest
from aftertune.sources.hub import offline
from aftertune.study import HUB_NAMES, on_hub

#: File names' endings, and how such a file is read.
KINDS = {".jsonl": "lines", ".ndjson": "lines", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}


@dataclass(frozen=True, slots=True)
class Line:
    """One row of a file, with the place to name; ``value`` is an InputError where it is unreadable."""

    where: str
    value: Any


def read_rows(path: Path, encoding: str = "utf-8", split: str = "train", subset: str | None = None,
              notes: list[str] | None = None) -> list[Line]:
    """The rows of a file, in its order; where there is no such file, those of a data set of the Hub: ``owner/name``, or
    one of HUB_NAMES. ``split`` and ``subset`` are for the latter. What was read past is added to ``notes``.

    Raises InputError for a missing or empty file, an unknown kind, bytes that are not of ``encoding``, and a file that
    is damaged as a whole; SourceError for what the Hub does not give.
    """
    kind = KINDS.get(path.suffix.lower())
    if not path.is_file():
        if on_hub(path) and (str(path) in HUB_NAMES or ("/" in str(path) and not path.parent.is_dir())):
            return _hub(HUB_NAMES.get(str(path), str(path)), split, subset)
        raise InputError(f"{path}: no such data file; give a .jsonl, .json, .csv or .parquet file, a Hub data set "
                         f"(owner/name), or one of {', '.join(HUB_NAMES)}")
    if kind is None:
        raise InputError(f"{path}: unknown kind of file {path.suffix!r}{nearest(path.suffix, list(KINDS))}; use one of "
                         f"{', '.join(KINDS)}")
    rows = list(_parquet(path) if kind == "parquet" else _text(path, kind, encoding, [] if notes is None else notes))
    if not rows:
        raise InputError(f"{path}: no examples: the file is empty; it needs one example a row")
    return rows


def _text(path: Path, kind: str, encoding: str, notes: list[str]) -> Iterator[Line]:
    text = _decode(path, encoding)
    marks = {"a byte order mark": text.startswith("\ufeff"),
             "CRLF line ends": kind != "csv" and "\r\n" in text}  # they are a CSV file's own, RFC 4180
    if any(marks.values()):
        notes.append(f"{path}: has {' and '.join(m for m, there in marks.items() if there)}; no part of any example")
    return {"lines": _lines, "json": _json, "csv": _csv}[kind](text.removeprefix("\ufeff"), path)


def _decode(path: Path, encoding: str) -> str:
    raw = path.read_bytes()
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{line}: byte 0x{raw[error.start]:02x} at offset {error.start} is not "
                         f"{encoding.upper()}; save the file as UTF-8 or say which encoding it has (data.encoding, "
                         "--encoding)") from None
    except LookupError:
        raise InputError(f"encoding {encoding!r} is unknown; use for example utf-8, utf-16 or cp1252") from None


def _lines(text: str, path: Path) -> Iterator[Line]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield _parsed(line, f"{path}:{number}", "each line must be one JSON object; mend it, or leave such rows "
                          "out, counted (data.skip_bad, --skip-bad)")


def _parsed(text: str, where: str, way: str) -> Line:
    try:
        return Line(where, json.loads(text, parse_constant=_refuse))
    except RecursionError:
        return Line(where, InputError(f"{where}: nested too deeply for an example; {way}"))
    except ValueError as error:
        return Line(where, InputError(f"{where}: not valid JSON ({error}); {way}"))


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _json(text: str, path: Path) -> Iterator[Line]:
    """A list of objects, or an object with one list of them in it."""
    if not text.strip():
        return
    whole = _parsed(text, str(path), "an example file is a list of objects; mend it, or write one object a line into a "
                    ".jsonl file").value
    if isinstance(whole, InputError):
        raise whole
    if isinstance(whole, dict):
        lists = [key for key, value in whole.items() if isinstance(value, list)]
        if len(lists) != 1:
            raise InputError(f"{path}: found a JSON object with {len(lists)} lists in it; an example file is a list of "
                             "objects, or has one such list")
        whole = whole[lists[0]]
    if not isinstance(whole, list):
        raise InputError(f"{path}: found a JSON {type(whole).__name__}; an example file is a list of objects")
    for number, value in enumerate(whole):
        yield Line(f"{path}[{number}]", value)


def _csv(text: str, path: Path) -> Iterator[Line]:
    """Columns by the first line's names; empty cells are empty texts."""
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if path.suffix.lower() == ".tsv" else ",",
                            strict=True, restkey="")
    try:
        for row in reader:
            where = f"{path}:{reader.line_num}"
            bad = None in row.values() or "" in row
            yield Line(where, InputError(f"{where}: has another number of cells than the first line has names; quote "
                                         "cells that hold commas") if bad else row)
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: not valid CSV ({error}); quote cells that hold quotes, commas or "
                         "line breaks") from None


def _parquet(path: Path) -> Iterator[Line]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        for batch in parquet.ParquetFile(path).iter_batches():
            for value in batch.to_pylist():
                yield Line(f"{path}: row {number}", value)
                number += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable Parquet file ({' '.join(str(error).split())[:120]}); write it "
                         "again") from None


def _hub(name: str, split: str, subset: str | None) -> list[Line]:
    """The rows of a data set of the Hub, or of its local cache."""
    from datasets import load_dataset

    try:
        data = load_dataset(name, subset, split=split)
    except Exception as error:
        raise SourceError(_told(error, name, split)) from None
    return [Line(f"{name}: row {number}", value) for number, value in enumerate(data)]


def _told(error: Exception, name: str, split: str) -> str:
    """One line for what the Hub did not give; never the server's own text, which may carry addresses or tokens."""
    text = " ".join(str(error).split())
    chain = " ".join(type(e).__name__ for e in (error, error.__cause__, error.__context__) if e)
    if "nknown split" in text:
        found = text.partition("Should be one of")[2].strip(" .[]") or "others"
        return f"{name}: has no split {split!r}; it has {found[:200]}; choose one with data.split (--split)"
    if "Config name is missing" in text or ("BuilderConfig" in text and "not found" in text):
        found = text.partition("configs: [" if "missing" in text else "Available: [")[2].partition("]")[0] or "several"
        return f"{name}: has the subsets {found[:200]}; choose one with data.subset (--subset)"
    if "scripts are no longer supported" in text or "trust_remote_code" in text:
        return (f"{name}: is a data set with a loading script, which would run foreign code; use its Parquet files (on "
                "the Hub: revision refs/convert/parquet)")
    if "gated" in text.lower() or "Gated" in chain:
        return f"{name}: the Hub keeps this data set behind a form; accept its terms there and set HF_TOKEN"
    if offline() or "Offline" in chain or "Connection" in chain:
        return (f"{name}: no such file here, and this run is offline or the Hub cannot be reached; give a local file, "
                "or fetch the data set once online")
    if "401" in text or "403" in text:
        return f"{name}: the Hub refused access; set HF_TOKEN to a token that may read this data set"
    return (f"{name}: no such file here, and the Hub has no data set of this name that can be read; check the "
            f"spelling, or give a file that ends in one of {', '.join(KINDS)}")
