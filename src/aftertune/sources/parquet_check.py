"""Checks a Parquet file before its rows are unpacked: some hundred bytes can claim 10^9 rows, or end the process.

    metadata = check_parquet(Path("orders.parquet"))     InputError for a damaged file and for one that claims too much
    batch_rows(metadata, characters)                     rows that may be unpacked at once

Damaged metadata can make pyarrow end the process that reads them, so a child process with limits reads them first.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from aftertune import bounds
from aftertune.errors import InputError
from aftertune.sources.child_process import ChildLimits, arguments, ending, run_child, set_limits

#: Rows of a Parquet file.
MAX_ROWS = bounds.PARQUET_ROWS
#: Rows for each byte of a Parquet file. Real texts need some bytes each.
MAX_ROWS_PER_BYTE = bounds.PARQUET_ROWS_PER_BYTE
#: Rows of a Parquet file that are unpacked at once, and values of a column in one row of it.
BATCH_ROWS, MAX_VALUES = bounds.PARQUET_BATCH, bounds.PARQUET_VALUES
#: What the child prints where it has too little memory.
_NO_MEMORY = b"memory"


def check_parquet(path: Path) -> Any:
    """The metadata of a Parquet file. Raises InputError if pyarrow crashes where it reads them, and if the file claims
    more rows or values than one of its size can have; ResourceError where the child process fails for another reason.

    Other faults of the file are pyarrow's own errors.
    """
    size = path.stat().st_size
    limits = ChildLimits(bounds.PARQUET_MEMORY + 2 * size, bounds.PARQUET_SECONDS)
    code, output = run_child("aftertune.sources.parquet_check", path, limits)
    if output.strip() == _NO_MEMORY:
        raise InputError(f"{path}: reading its metadata needs more than {limits.memory // bounds.MIB:,} MiB of memory, "
                         f"and the file has {size:,} bytes; write the file again with fewer columns and row groups")
    if code:
        raise InputError(f"{path}: not a readable Parquet file ({ending(code)}); write the file again")
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        metadata = file.metadata
    _refuse_bomb(path, metadata)
    return metadata


def batch_rows(metadata: Any, characters: int) -> int:
    """Rows that may be unpacked at once, if each of them had the longest value that the file can have.

    characters: that may be in memory at once.
    """
    groups = [metadata.row_group(n) for n in range(metadata.num_row_groups)]
    longest = max((group.column(n).total_uncompressed_size for group in groups for n in range(group.num_columns)),
                  default=1)
    return max(1, min(BATCH_ROWS, characters // max(longest, 1)))


def _refuse_bomb(path: Path, metadata: Any) -> None:
    size = path.stat().st_size
    if metadata.num_rows > min(MAX_ROWS, MAX_ROWS_PER_BYTE * size):
        raise InputError(f"{path}: {size:,} bytes that claim {metadata.num_rows:,} rows; at most {MAX_ROWS:,}, and "
                         f"{MAX_ROWS_PER_BYTE} for each byte, are read; write the file again without repeated rows")
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        for at in range(group.num_columns):
            values = group.column(at).num_values
            if values > MAX_VALUES * max(group.num_rows, 1) or values > MAX_ROWS:
                raise InputError(f"{path}: a column claims {values:,} values in {group.num_rows:,} rows; write the "
                                 "file again with shorter lists and smaller row groups")


def main(path: Path, limits: ChildLimits) -> None:
    """Read the metadata of every column. pyarrow ends the process for some damaged files; what it raises is left to the
    process that reads the rows, which says what is wrong."""
    from pyarrow import ArrowException, parquet

    set_limits(limits)
    try:
        metadata = parquet.ParquetFile(path).metadata
        for number in range(min(metadata.num_row_groups, MAX_ROWS_PER_BYTE * path.stat().st_size)):
            group = metadata.row_group(number)
            for at in range(group.num_columns):
                group.column(at)
    except MemoryError:
        os.write(1, _NO_MEMORY)
    except (ArrowException, OSError, ValueError, OverflowError):
        return


if __name__ == "__main__":
    main(*arguments())
