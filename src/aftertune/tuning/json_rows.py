"""Reads the objects of a JSON list one after another, or of the only list in a JSON object.

    for row in read_json_rows(Path("orders.json"), "utf-8", notes):
        row.where, row.value         ("orders.json:2 (item 0)", {"prompt": …, "completion": …})

The file is read in blocks, and each item is decoded as soon as its end was read. A block that ends inside an item is
doubled, so that the time is linear in the size of the file.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Generator
from json import JSONDecodeError
from pathlib import Path
from typing import Any, BinaryIO

from aftertune.errors import InputError
from aftertune.tuning.text_rows import DECODER, MAX_ROW, DataRow, Encoding, too_long

_BLOCK = 2**18
_SPACE = re.compile(r"[ \t\r\n]*")
_RULE = "a .json file must be a list of objects, or an object with one such list"


def read_json_rows(path: Path, encoding: str, notes: list[str]) -> Generator[DataRow]:
    """The items of the list, with file and line. Raises InputError if the file is not such a list, with the line."""
    code = Encoding.of(path, encoding)
    with path.open("rb") as file:
        file.seek(code.skip)
        if code.by_lines and all(map(_is_object, [file.readline(MAX_ROW), file.readline(MAX_ROW)])):
            raise InputError(f"{path}:2: not one JSON value: the file has one object per line; give it the ending "
                             ".jsonl")
        file.seek(code.skip)
        try:
            yield from _items(_Text(file, code, path))
        finally:
            if code.assumed:
                removed = f"has {code.assumed[0]}, which was removed" if code.skip else f"read with {code.assumed[0]}"
                notes.append(f"{path}: {removed}")


def _items(text: _Text) -> Generator[DataRow]:
    first = text.peek()
    if first == "[":
        yield from _list(text)
    elif first == "{":
        yield from _object(text)
    elif first:
        raise InputError(f"{text.path}: found a JSON {type(text.value()).__name__}; {_RULE}")
    if text.peek():
        raise InputError(f"{text.place()}: not valid JSON (more text after the end of the "
                         f"{'object' if first == '{' else 'list'}); {_RULE}")


def _is_object(line: bytes) -> bool:
    try:
        return line.startswith(b"{") and isinstance(DECODER.decode(line.decode()), dict)
    except (ValueError, RecursionError):
        return False


def _list(text: _Text) -> Generator[DataRow]:
    text.take("[")
    number = 0
    while text.peek() != "]":
        place = text.place()
        where = f"{place} (item {number})"
        value, source = text.value(), text.source
        byte = text.encoding.escaped_byte(source)
        yield DataRow(where, value if byte is None else text.encoding.bad_byte(where, byte))
        number += 1
        place = text.place()
        if text.peek() == ",":
            text.take(",")
            if text.peek() == "]":
                raise InputError(f"{place}: a comma after the last item (item {number - 1}), before the closing "
                                 f"bracket in line {text.line}; remove the comma")
        elif text.peek() != "]":
            raise InputError(f"{text.place()}: expected a comma or the closing bracket after item {number - 1}, found "
                             f"{text.peek() or 'the end of the file'!r}; not valid JSON, fix it")
    text.take("]")


def _object(text: _Text) -> Generator[DataRow]:
    """The items of the only list of an object. The list is read before it is known whether another one follows."""
    text.take("{")
    lists = 0
    while text.peek() != "}":
        key = text.value()
        if not isinstance(key, str) or text.peek() != ":":
            raise InputError(f"{text.place()}: not valid JSON (expected a key and a colon); {_RULE}")
        text.take(":")
        if text.peek() == "[":
            lists += 1
            if lists > 1:
                raise InputError(f"{text.place()}: found a JSON object with 2 lists in it or more; {_RULE}")
            yield from _list(text)
        else:
            text.value()
        if text.peek() == ",":
            text.take(",")
        elif text.peek() != "}":
            raise InputError(f"{text.place()}: not valid JSON (expected a comma or a closing brace); {_RULE}")
    text.take("}")
    if not lists and not text.peek():
        raise InputError(f"{text.path}: found a JSON object with 0 lists in it; {_RULE}")


class _Text:
    """The text of a file, read in blocks. line: the number of the current line; source: the text of the last value."""

    def __init__(self, file: BinaryIO, encoding: Encoding, path: Path) -> None:
        self.file, self.encoding, self.path = file, encoding, path
        errors = "surrogateescape" if encoding.by_lines else "strict"
        self.decoder = codecs.getincrementaldecoder(encoding.name)(errors)
        self.buffer, self.at, self.line, self.ended, self.source = "", 0, 1, False, ""

    def place(self) -> str:
        """File and line of the next character that is not a space."""
        self.peek()
        return f"{self.path}:{self.line}"

    def peek(self) -> str:
        """The next character that is not a space; "" at the end."""
        while True:
            end = _SPACE.match(self.buffer, self.at).end()  # type: ignore[union-attr]  # it matches always
            self.line += self.buffer.count("\n", self.at, end)
            self.at = end
            if end < len(self.buffer) or not self._fill(_BLOCK):
                return self.buffer[self.at:self.at + 1]

    def take(self, character: str) -> None:
        """Go on after a character that `peek` found."""
        assert self.peek() == character
        self.at += 1

    def value(self) -> Any:
        """The next JSON value. Raises InputError, with the line, if it is not valid or longer than a row may be."""
        self.peek()
        block = _BLOCK
        while True:
            error: Exception | None = None
            try:
                value, end = DECODER.raw_decode(self.buffer, self.at)
                if end < len(self.buffer) or self.ended:  # a number may go on in the next block
                    break
            except RecursionError:
                raise InputError(f"{self.place()}: nested too deeply for an example; {_RULE}") from None
            except JSONDecodeError as refused:
                error = refused
                if refused.pos < len(self.buffer) - 16 and not refused.msg.startswith("Unterminated string"):
                    raise self._invalid(error) from None  # the error is not that the block has ended
            except ValueError as refused:
                raise self._invalid(refused) from None
            if len(self.buffer) - self.at > MAX_ROW:
                raise self._invalid(error) if error else too_long(self.place())
            if not self._fill(block):
                if error is None:
                    break
                raise self._invalid(error)
            block *= 2
        self.source = self.buffer[self.at:end]
        self.line += self.source.count("\n")
        self.at = end
        return value

    def _invalid(self, error: Exception) -> InputError:
        at = error.pos if isinstance(error, JSONDecodeError) else self.at
        line = self.line + self.buffer.count("\n", self.at, at)
        column = at - self.buffer.rfind("\n", 0, at)
        text = error.msg if isinstance(error, JSONDecodeError) else str(error)
        found = f"{self.buffer[at:at + 20]!r}" if self.buffer[at:] else "the end of the file"
        return InputError(f"{self.path}:{line}: not valid JSON ({text} at column {column}, found {found}); {_RULE}")

    def _fill(self, size: int) -> bool:
        """Read one more block; False at the end of the file."""
        if self.ended:
            return False
        raw = self.file.read(size)
        self.ended = not raw
        try:
            more = self.decoder.decode(raw, final=self.ended)
        except UnicodeError as error:
            raise InputError(f"{self.path}: not valid {self.encoding.name.upper()} "
                             f"({' '.join(str(error).split())[:120]}); save the file as UTF-8") from None
        self.buffer = self.buffer[self.at:] + more
        self.at = 0
        return True
