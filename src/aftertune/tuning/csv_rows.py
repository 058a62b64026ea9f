"""Reads the rows of a CSV file as mappings with the names in the first line as keys.

    for row in read_csv_rows(Path("orders.csv"), "utf-8", notes):
        row.where, row.value         ("orders.csv:2", {"prompt": …, "completion": …})

People's files differ from RFC 4180: Excel separates by semicolons or writes ``sep=;``, pandas writes an index without a
name, and lines end with a comma too many. They are read, and one note says what was assumed. An empty cell is an empty
text.
"""

from __future__ import annotations

import csv
import itertools
import re
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, TextIO

from aftertune import bounds
from aftertune.errors import InputError
from aftertune.tuning.text_rows import MAX_ROW, SKIP, DataRow, Encoding, too_long

_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_QUOTE = "put cells that contain quotes, delimiters or line breaks in quotes"


def read_csv_rows(path: Path, encoding: str, notes: list[str]) -> Generator[DataRow]:
    """The rows, with file and line; notes receives what was assumed.

    Raises InputError if there are no distinct names, and for a quote that is not closed, which would hide the rows
    after it.
    """
    code = Encoding.of(path, encoding)
    table = _Table(path, code)
    errors = "surrogateescape" if code.by_lines else "strict"
    csv.field_size_limit(MAX_ROW)
    try:
        with path.open(encoding=code.name, errors=errors, newline="") as file:
            if code.skip:
                file.read(1)
            yield from table.rows(file)
    except UnicodeError as error:
        raise InputError(f"{path}: not valid {code.name.upper()} ({' '.join(str(error).split())[:120]}); save the "
                         "file as UTF-8") from None
    finally:
        if code.skip:
            notes.append(f"{path}: has {code.assumed[0]}, which was removed")
        if note := table.note():
            notes.append(f"{path}: read with {note}")


class _Table:
    """The columns of one file. assumed: in what the file is not plain CSV, for the note; surplus: the number of lines
    with empty cells at their end."""

    def __init__(self, path: Path, encoding: Encoding) -> None:
        self.path, self.encoding = path, encoding
        self.assumed = [] if encoding.skip else list(encoding.assumed)
        self.names: list[str] = []
        self.surplus = 0

    def note(self) -> str:
        """What was assumed so far, in one line; "" for nothing."""
        surplus = [f"empty cells at the end of {self.surplus:,} lines left out"] if self.surplus else []
        return "; ".join([*self.assumed, *surplus])

    def rows(self, file: TextIO) -> Generator[DataRow]:
        """The rows of an open file."""
        lines, header, declared, skipped = self._lines(file), "", "", 0
        for header in lines:
            named = re.fullmatch(r'"?sep=(.)"?\s*', header)
            if header.strip() and (named is None or declared):
                break
            declared, header, skipped = named[1] if named else declared, "", skipped + 1
        if not header:
            return
        delimiter = self._delimiter(header, declared)
        spaced = all(name.startswith(" ") for name in header.split(delimiter)[1:]) and delimiter in header
        reader = csv.reader(itertools.chain([header], lines), delimiter=delimiter, strict=True, skipinitialspace=spaced)
        yield from self._records(reader, skipped)

    def _lines(self, file: TextIO) -> Iterator[str]:
        """The lines of an open file. Raises InputError for one that is longer than any row may be."""
        number = 0
        while line := file.readline(MAX_ROW + 1):
            number += 1
            if len(line) > MAX_ROW:
                raise InputError(f"{self.path}:{number}: the line is longer than {MAX_ROW // 2**20} MiB; check that it "
                                 "is a CSV file, with a line for each row")
            yield line

    def _delimiter(self, header: str, declared: str) -> str:
        """The declared one, or that which gives the most names; the usual one if several do."""
        usual = "\t" if self.path.suffix.lower() == ".tsv" else ","
        found = declared or max([usual, *_DELIMITERS], key=header.count)
        if found != usual:
            self.assumed.append(f"{_DELIMITERS.get(found, repr(found))} as delimiters"
                                f"{', which the line sep= names' if declared else ''}")
        return found

    def _records(self, reader: Any, skipped: int) -> Generator[DataRow]:
        """skipped: lines before the first that the reader has."""
        unnamed: set[int] = set()
        while True:
            start = reader.line_num + skipped + 1
            try:
                cells = next(reader)
            except StopIteration:
                break
            except csv.Error as error:
                message = f"{self.path}:{start}: not valid CSV ({error}); {_QUOTE}"
                if "unexpected end" in str(error) or "field larger" in str(error) or not self.names:
                    raise InputError(message) from None  # a quote that is not closed hides the rows after it
                yield DataRow(f"{self.path}:{start}", InputError(f"{message}, {SKIP}"))
                continue
            if not self.names:
                self.names = self._header(cells, start)
                unnamed = {n for n, name in enumerate(self.names) if not name}
                self._note_columns(unnamed)
                continue
            if not cells:
                continue
            width = len(self.names)
            self.surplus += len(cells) > width and not any(cells[width:])
            yield self._record(cells, f"{self.path}:{start}", unnamed)

    def _header(self, cells: list[str], line: int) -> list[str]:
        if len(cells) > bounds.CSV_COLUMNS:
            raise InputError(f"{self.path}:{line}: {len(cells):,} columns; at most {bounds.CSV_COLUMNS:,} are read: "
                             "leave out the columns that are not needed")
        names = [cell.strip() for cell in cells]
        counts = Counter(filter(None, names))
        twice = next((name for name, count in counts.items() if count > 1), None)
        if twice is not None:
            raise InputError(f"{self.path}:{line}: two columns are named {twice[:80]!r}; give each column its own name")
        if not any(names):
            raise InputError(f"{self.path}:{line}: the first line has no names of columns; write for example "
                             "prompt,completion above the rows")
        return names

    def _record(self, cells: list[str], where: str, unnamed: set[int]) -> DataRow:
        width = len(self.names)
        if sum(map(len, cells)) > MAX_ROW:
            return DataRow(where, too_long(where))
        if any(cells[width:]) or (len(cells) < width and not set(range(len(cells), width)) <= unnamed):
            return DataRow(where, InputError(
                f"{where}: the number of cells differs from the first line ({len(cells)} and {width}); put cells that "
                f"contain delimiters or line breaks in quotes, {SKIP}"))
        row = {name: cell for name, cell in zip(self.names, cells, strict=False) if name}
        byte = next((b for cell in cells if (b := self.encoding.escaped_byte(cell)) is not None), None)
        return DataRow(where, row if byte is None else self.encoding.bad_byte(where, byte))

    def _note_columns(self, unnamed: set[int]) -> None:
        last = len(self.names) - 1
        for n in sorted(unnamed):
            which = "the first column" if n == 0 else "the last column" if n == last else f"column {n + 1}"
            self.assumed.append(f"{which} left out, because it has no name"
                                f"{' (an index, as pandas writes it)' if n == 0 else ''}")
