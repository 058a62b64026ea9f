"""Reads text, JSON and JSON Lines files of other programs, with size limits and one-line errors.

    text = read_text(Path("record.md"), limit=16 * MIB)
    value = parse_json(text, "results_2025.json")
    for location, row in json_rows(Path("samples.jsonl"), limit=64 * MIB): …       location: "samples.jsonl:3"
    with results_limits("results_2025.json"): …          InputError for what takes too much time or memory

A file whose name ends in ``.gz`` is unpacked as it is read. Every error is an InputError that names the file, and the
line if there is one. JSON is bounded in its size, its number of values and its depth (`aftertune.bounds`).
"""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from aftertune import bounds
from aftertune.errors import InputError
from aftertune.sources.limits import OutOfTime, memory_limit, time_limit

MIB = 2**20
#: Integers with as many digits or more are read as None.
_MAX_DIGITS = bounds.RESULTS_DIGITS
#: Characters that are read at once from a JSON array.
_CHUNK = MIB
#: What stands between two entries of a JSON array.
_BETWEEN = re.compile(r"[ \t\r\n,]*")


def read_text(path: Path, *, limit: int) -> str:
    """The text of a UTF-8 file. limit: its largest size in bytes, unpacked. Raises InputError."""
    with _readable(path, "rb") as file:
        data: bytes = file.read(limit + 1)
        if len(data) > limit:
            raise InputError(f"{path}: the file has more than {limit:,} bytes; check that it is the right file")
        return normal_lines(data.decode("utf-8-sig"))


def normal_lines(text: str) -> str:
    """The text with "\\n" at the end of each line."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


@contextlib.contextmanager
def _readable(path: Path, mode: str) -> Iterator[IO[Any]]:
    """The open file, unpacked if it is compressed; errors of reading become an InputError."""
    packed = path.suffix.lower() == ".gz"
    text: dict[str, str] = {} if mode == "rb" else {"encoding": "utf-8-sig", "newline": "\n"}
    try:
        with (gzip.open(path, mode, **text) if packed else path.open(mode, **text)) as file:  # type: ignore[call-overload]
            yield cast(IO[Any], file)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: cannot be unpacked ({error}); check that the file is complete") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None


def parse_json(text: str, where: str, *, values: int = bounds.RESULTS_VALUES) -> Any:
    """Parse JSON; NaN, infinities and integers of 300 digits or more become None, because no result can be one.

    where: names the file, or the line of one, in errors. values: the most commas and brackets. Raises InputError, also
    for more levels than `aftertune.bounds` allows.
    """
    brackets = text.count("[") + text.count("{")
    if brackets + text.count(",") > values:
        raise InputError(f"{where}: more than {values:,} commas and brackets are more values than a file of results "
                         "has there; check that it is the right file")
    try:
        value = json.loads(text, parse_constant=lambda _: None, parse_int=_integer)
        if "\\ud" in text.lower():  # an escaped surrogate: without its partner it cannot be encoded
            json.dumps(value, ensure_ascii=False).encode()
        if brackets > bounds.RESULTS_DEPTH and _is_deeper(value, bounds.RESULTS_DEPTH):
            raise RecursionError
        return value
    except UnicodeEncodeError:
        raise InputError(f"{where}: a string contains half a character (a lone surrogate); save the file as "
                         "UTF-8") from None
    except RecursionError:
        raise InputError(f"{where}: the JSON is nested deeper than {bounds.RESULTS_DEPTH} levels, too deep to be a "
                         "result of an evaluation") from None
    except ValueError as error:
        detail = " ".join(str(error).split())[:120]
        raise InputError(f"{where}: not valid JSON: {detail}; check that the file is complete") from None


def _is_deeper(value: Any, levels: int) -> bool:
    """True where lists and objects are in one another deeper than so many levels."""
    layer = [value] if isinstance(value, dict | list) else []
    for _ in range(levels):
        layer = [child for node in layer for child in (node.values() if isinstance(node, dict) else node)
                 if isinstance(child, dict | list)]
        if not layer:
            return False
    return bool(layer)


@contextlib.contextmanager
def results_limits(where: str) -> Iterator[None]:
    """Limits in time and memory for reading a file of results, without its samples. where: names it. InputError."""
    try:
        with memory_limit(bounds.RESULTS_MEMORY), time_limit(bounds.RESULTS_SECONDS):
            yield
    except OutOfTime:
        raise InputError(f"{where}: reading it takes more than {bounds.RESULTS_SECONDS:g} s; check that it is a file "
                         "of results") from None
    except MemoryError:
        raise InputError(f"{where}: reading it needs more than {bounds.RESULTS_MEMORY // MIB:,} MiB of memory; check "
                         "that it is a file of results") from None


def _integer(digits: str) -> int | None:
    return int(digits) if len(digits) < _MAX_DIGITS else None


@contextlib.contextmanager
def in_the_form_of(tool: str, where: str) -> Iterator[None]:
    """Turn an error about a value of another type than ``tool`` writes into an InputError. where: names the file."""
    try:
        yield
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        detail = " ".join(str(error).split())[:100]
        raise InputError(f"{where}: not in the form that {tool} writes ({type(error).__name__}: {detail}); check that "
                         "it is the right file") from None


def json_rows(path: Path, *, limit: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """(location, object) for each object of a JSON Lines file, or of a file that is one JSON array of objects.

    The location is ``file:line``, or ``file, entry N`` in an array. limit: the most characters of an object. Raises
    InputError.
    """
    with _readable(path, "rt") as lines:
        number = 0
        while line := lines.readline(limit + 1):
            number += 1
            location = f"{path}:{number}"
            if not line.strip():
                continue
            if number == 1 and line.lstrip().startswith("["):
                yield from _entries(path, line.lstrip()[1:], lines, limit)
                return
            if len(line) > limit:
                raise InputError(f"{location}: the line has more than {limit:,} characters; check that it is the "
                                 "right file")
            yield location, _object(parse_json(line, location, values=bounds.RESULTS_LINE_VALUES), location)


def _entries(path: Path, text: str, file: IO[str], limit: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSON array, of which ``text`` was read after its opening bracket."""
    decoder = json.JSONDecoder()
    number, at, complete, wanted = 1, 0, False, _CHUNK
    while True:
        at = _BETWEEN.match(text, at).end()  # type: ignore[union-attr]  # it matches everywhere
        location = f"{path}, entry {number}"
        if text.startswith("]", at):
            return
        try:
            end = decoder.raw_decode(text, at)[1] if at < len(text) else 0
        except (ValueError, RecursionError):
            end = 0
        if end or complete:  # where nothing more can come, parsing says what is wrong
            entry = parse_json(text[at:end or None], location, values=bounds.RESULTS_LINE_VALUES)
            yield location, _object(entry, location)
            at, number, wanted = end, number + 1, _CHUNK
            continue
        if len(text) - at > limit:
            raise InputError(f"{location}: the entry has more than {limit:,} characters, or is not valid JSON; check "
                             "that it is the right file")
        more = file.read(wanted)
        text, at, complete, wanted = text[at:] + more, 0, not more, 2 * wanted


def _object(value: Any, location: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{location}: expected a JSON object, found {type(value).__name__}")
    return value
