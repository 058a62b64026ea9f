"""Reads the rows of a JSON Lines file, and defines what every kind of text file needs: encodings, bounds and errors.

    for row in read_line_rows(Path("orders.jsonl"), "utf-8", notes):
        row.where, row.value         ("orders.jsonl:1", {"prompt": "A message: …", "completion": "…"})

Each line is decoded on its own, so that one bad byte makes one row unreadable.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from aftertune import bounds
from aftertune.errors import InputError

#: Bytes of one row, or characters where a row is text.
MAX_ROW = bounds.DATA_ROW
#: The end of a refusal of one row.
SKIP = "or leave such rows out (data.skip_bad, --skip-bad)"

_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
          (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


@dataclass(frozen=True, slots=True)
class DataRow:
    """One row of a file. where: file and line, for messages; value: what was read, or the InputError that says why the
    row is unreadable."""

    where: str
    value: Any


@dataclass(slots=True)
class Encoding:
    """How the bytes of a file become text. name: of the codec; skip: bytes of a UTF-8 byte order mark; assumed: what a
    byte order mark said, for a note."""

    name: str
    skip: int = 0
    assumed: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, path: Path, name: str) -> Encoding:
        """The encoding that a byte order mark names, or the given one. Raises InputError for UTF-16 without a mark."""
        with path.open("rb") as file:
            head = file.read(256)
        utf8 = codecs.lookup(name).name in ("utf-8", "utf-8-sig")
        for mark, marked in _MARKS:
            if utf8 and head.startswith(mark):
                if marked == "utf-8":
                    return cls(marked, len(mark), ["a byte order mark"])
                return cls(marked, 0, [f"the encoding {marked.upper()}, which its byte order mark names"])
        if utf8 and b"\0" in head[:4]:
            wide = "utf-16-le" if head[1:2] == b"\0" else "utf-16-be"
            raise InputError(f"{path}: looks like {wide.upper()} without a byte order mark; name its encoding "
                             f"(data.encoding, --encoding {wide})")
        return cls("utf-8" if utf8 else name)

    @property
    def by_lines(self) -> bool:
        """True if a line end is one byte, so that each line can be decoded on its own."""
        return "\n".encode(self.name) == b"\n"

    def bad_byte(self, where: str, byte: int, place: str = "") -> InputError:
        """The refusal of a row with a byte that this encoding does not have."""
        return InputError(f"{where}: byte 0x{byte:02x}{place} is not {self.name.upper()}; save the file as UTF-8, or "
                          f"name its encoding (data.encoding, --encoding), {SKIP}")

    def escaped_byte(self, text: str) -> int | None:
        """The first byte that was not of this encoding, in text decoded with ``surrogateescape``; None if all were."""
        if text.isascii():
            return None
        return next((ord(c) - 0xDC00 for c in text if "\udc80" <= c <= "\udcff"), None)


def read_line_rows(path: Path, name: str, notes: list[str]) -> Generator[DataRow]:
    """The rows of a JSON Lines file, with file and line. name: of the encoding; notes receives what was assumed."""
    encoding = Encoding.of(path, name)
    removed = [a for a in encoding.assumed if encoding.skip]
    crlf = False
    try:
        with path.open("rb") as file:
            file.seek(encoding.skip)
            for number, line in enumerate(_decoded_lines(file, encoding, path), 1):
                crlf |= isinstance(line, str) and line.endswith("\r\n")
                if isinstance(line, InputError):
                    yield DataRow(f"{path}:{number}", line)
                elif line.strip():
                    yield _parse_line(line, f"{path}:{number}", first=number == 1)
    finally:
        removed += ["CRLF line ends"] if crlf else []
        if removed:
            notes.append(f"{path}: has {' and '.join(removed)}, which were removed")
        elif encoding.assumed:
            notes.append(f"{path}: read with {encoding.assumed[0]}")


def _decoded_lines(file: BinaryIO, encoding: Encoding, path: Path) -> Iterator[str | InputError]:
    """The lines of a file, each with its end; an InputError for one that is too long or is not of the encoding."""
    if not encoding.by_lines:
        yield from _wide_lines(file, encoding, path)
        return
    number, start = 0, encoding.skip
    while raw := file.readline(MAX_ROW + 1):
        number += 1
        where = f"{path}:{number}"
        if len(raw) > MAX_ROW and not raw.endswith(b"\n"):
            start += len(raw) + _skip_line(file)
            yield too_long(where)
            continue
        try:
            yield raw.decode(encoding.name)
        except UnicodeDecodeError as error:
            yield encoding.bad_byte(where, raw[error.start], f" at offset {start + error.start}")
        start += len(raw)


def _skip_line(file: BinaryIO) -> int:
    """Read to the end of a line that is too long; returns the number of bytes."""
    skipped = 0
    while raw := file.readline(MAX_ROW):
        skipped += len(raw)
        if raw.endswith(b"\n"):
            break
    return skipped


def _wide_lines(file: BinaryIO, encoding: Encoding, path: Path) -> Iterator[str]:
    """The lines of an encoding with several bytes for each character. Raises InputError for bytes that are not of it,
    because the lines after them are lost."""
    text = codecs.getreader(encoding.name)(file)
    number = 0
    try:
        for line in text:
            number += 1
            yield line
    except UnicodeError as error:
        raise InputError(f"{path}:{number + 1}: not valid {encoding.name.upper()} "
                         f"({' '.join(str(error).split())[:120]}); save the file as UTF-8") from None


def too_long(where: str) -> InputError:
    """The refusal of a row that is longer than MAX_ROW."""
    return InputError(f"{where}: the row is longer than {MAX_ROW // 2**20} MiB; shorten it, {SKIP}")


# --- JSON ---


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


#: Reads JSON, without the constants NaN and Infinity, which are not JSON.
DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def _parse_line(line: str, where: str, *, first: bool) -> DataRow:
    advice = f"each line must be one JSON object; fix it, {SKIP}"
    try:
        return DataRow(where, DECODER.decode(line))
    except RecursionError:
        return DataRow(where, InputError(f"{where}: nested too deeply for an example; {advice}"))
    except ValueError as error:
        if first and line.strip() in ("[", "[{"):
            raise InputError(f"{where}: the file is a JSON list over several lines; give it the ending .json") from None
        return DataRow(where, InputError(f"{where}: not valid JSON ({error}); {advice}"))
