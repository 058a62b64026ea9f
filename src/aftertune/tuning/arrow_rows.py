"""Reads the rows of a Parquet file, and of a data set of the Hub.

    for row in read_parquet_rows(Path("orders.parquet"), notes):
        row.where, row.value             ("orders.parquet: row 0", {"prompt": …, "completion": …})
    next(read_hub_rows("yahma/alpaca-cleaned", "train", None)).where         "yahma/alpaca-cleaned: row 0"

A Parquet file is checked before it is read (`aftertune.sources.parquet_check`), and MAX_TEXT and MAX_TEXT_PER_BYTE
bound what its rows unpack to.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

from aftertune import bounds
from aftertune.errors import InputError, SourceError
from aftertune.sources.hub import offline
from aftertune.sources.parquet_check import batch_rows, check_parquet
from aftertune.study import DATA_FILES
from aftertune.tuning.text_rows import MAX_ROW, DataRow, too_long

#: Characters that a Parquet file may unpack to: so many, and so many more for each of its bytes.
MAX_TEXT, MAX_TEXT_PER_BYTE = bounds.PARQUET_TEXT, bounds.PARQUET_TEXT_PER_BYTE


def read_parquet_rows(path: Path, notes: list[str]) -> Generator[DataRow]:
    """The rows of a Parquet file; notes receives the columns that cannot be read. Raises InputError for a damaged file
    and for one that claims more than data of its size can have."""
    import pyarrow
    from pyarrow import parquet

    number, size, allowed = 0, 0, MAX_TEXT + MAX_TEXT_PER_BYTE * path.stat().st_size
    lost: dict[str, str] = {}
    try:
        metadata = check_parquet(path)
        flat = [f.name for f in parquet.read_schema(path) if pyarrow.types.is_string(f.type)]
        # dictionary arrays: a value that is repeated is unpacked once
        with parquet.ParquetFile(path, read_dictionary=flat) as file:
            for batch in file.iter_batches(batch_size=batch_rows(metadata, allowed)):
                columns = {}
                for name, column in zip(batch.schema.names, batch.columns, strict=True):
                    try:
                        columns[name] = _values(column)
                    except Exception as error:  # dates out of range, unknown time zones, text that is not UTF-8 …
                        lost.setdefault(name, type(error).__name__)
                for at in range(batch.num_rows):
                    row = {name: without_none(values[at]) for name, values in columns.items()}
                    where, length = f"{path}: row {number}", _text_size(row)
                    size += length
                    if size > allowed:
                        raise InputError(f"{where}: the file unpacks to more than {allowed:,} characters, which is too "
                                         f"much for {path.stat().st_size:,} bytes; write it again without repeated "
                                         "rows")
                    yield DataRow(where, too_long(where) if length > MAX_ROW else row)
                    number += 1
    except (pyarrow.ArrowException, OSError, MemoryError, ValueError, OverflowError) as error:
        raise InputError(f"{path}: not a readable Parquet file ({' '.join(str(error).split())[:120]}); write "
                         "the file again") from None
    for name, reason in list(lost.items())[:8]:
        notes.append(f"{path}: the column {name[:80]!r} cannot be read ({reason}), so it was left out")


def _values(column: Any) -> list[Any]:
    """The values of a column; repeated ones of a dictionary array are one object."""
    if not hasattr(column, "dictionary"):
        return list(column.to_pylist())
    values = column.dictionary.to_pylist()
    return [None if index is None else values[index] for index in column.indices.to_pylist()]


def _text_size(value: Any) -> int:
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_text_size, value.values()))
    return sum(map(_text_size, value)) if isinstance(value, list) else 0


def without_none(value: Any) -> Any:
    """A value without the keys that are None. Arrow gives every object of a column the keys of all of them."""
    if isinstance(value, dict):
        return {key: without_none(inner) for key, inner in value.items() if inner is not None}
    return [without_none(inner) for inner in value] if isinstance(value, list) else value


def read_hub_rows(name: str, split: str, subset: str | None) -> Generator[DataRow]:
    """The rows of a data set of the Hub, or from the local cache. Raises SourceError if there is none."""
    from datasets import load_dataset

    try:
        data = load_dataset(name, subset, split=split)
    except Exception as error:
        raise SourceError(_hub_error(error, name, split)) from None
    for number, value in enumerate(data):
        yield DataRow(f"{name}: row {number}", {key: without_none(cell) for key, cell in value.items()})


def _hub_error(error: Exception, name: str, split: str) -> str:
    """One line that says why the Hub did not give a data set. It never quotes the server, whose text may contain
    addresses or tokens."""
    text = " ".join(str(error).split())
    chain = " ".join(type(e).__name__ for e in (error, error.__cause__, error.__context__) if e)
    if "nknown split" in text:
        splits = text.partition("Should be one of")[2].strip(" .[]") or "others"
        return f"{name}: has no split {split!r}; it has {splits[:200]}; choose one with data.split (--split)"
    if "Config name is missing" in text or ("BuilderConfig" in text and "not found" in text):
        subsets = text.partition("configs: [" if "missing" in text else "Available: [")[2].partition("]")[0]
        return f"{name}: has the subsets {subsets[:200] or 'several'}; choose one with data.subset (--subset)"
    if "scripts are no longer supported" in text or "trust_remote_code" in text:
        return (f"{name}: needs a loading script, which is foreign code and is not run; use its Parquet files (on the "
                "Hub: revision refs/convert/parquet)")
    if "gated" in text.lower() or "Gated" in chain:
        return f"{name}: this data set is gated; accept its terms on the Hub and set HF_TOKEN"
    if offline() or "Offline" in chain or "Connection" in chain:
        return (f"{name}: no such file here, and this run is offline or the Hub cannot be reached; give a local file, "
                "or download the data set once while online")
    if "401" in text or "403" in text:
        return f"{name}: the Hub refused access; set HF_TOKEN to a token that may read this data set"
    return (f"{name}: no such file here, and the Hub has no readable data set of this name; check the spelling, "
            f"or give a file that ends in one of {', '.join(DATA_FILES)}")
