"""Reads text, JSON and JSON Lines files of other programs, with size limits and one-line errors.

    text = read_text(Path("record.md"), limit=16 * MIB)
    value = parse_json(text, "results_2025.json")
    for location, row in json_lines(Path("samples.jsonl"), limit=64 * MIB): …      location: "samples.jsonl:3"

Every error is an InputError that names the file, and the line if there is one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aftertune.errors import InputError

MIB = 2**20
#: Integers with as many digits or more are read as None.
_MAX_DIGITS = 300


def read_text(path: Path, *, limit: int) -> str:
    """The text of a UTF-8 file. limit: its largest size in bytes. Raises InputError."""
    try:
        size = path.stat().st_size
        if size > limit:
            raise InputError(f"{path}: the file has {size:,} bytes, but the limit is {limit:,}; check that it is the "
                             "right file")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def parse_json(text: str, where: str) -> Any:
    """Parse JSON; NaN, infinities and integers of 300 digits or more become None, because no result can be one.

    where: names the file in errors. Raises InputError.
    """
    try:
        value = json.loads(text, parse_constant=lambda _: None, parse_int=_integer)
        if "\\ud" in text.lower():  # an escaped surrogate: without its partner it cannot be encoded
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except UnicodeEncodeError:
        raise InputError(f"{where}: a string contains half a character (a lone surrogate); save the file as "
                         "UTF-8") from None
    except RecursionError:
        raise InputError(f"{where}: the JSON is nested too deep to be a result of lm-eval") from None
    except ValueError as error:
        detail = " ".join(str(error).split())[:120]
        raise InputError(f"{where}: not valid JSON: {detail}; check that the file is complete") from None


def _integer(digits: str) -> int | None:
    return int(digits) if len(digits) < _MAX_DIGITS else None


def json_lines(path: Path, *, limit: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """(location, object) for each line of a JSON Lines file that is not blank; the location is ``file:line``.

    limit: the most characters of a line. Raises InputError.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as lines:
            number = 0
            while line := lines.readline(limit + 1):
                number += 1
                location = f"{path}:{number}"
                if len(line) > limit:
                    raise InputError(f"{location}: the line has more than {limit:,} characters; check that it is the "
                                     "right file")
                if not line.strip():
                    continue
                value = parse_json(line, location)
                if not isinstance(value, dict):
                    raise InputError(f"{location}: expected a JSON object, found {type(value).__name__}")
                yield location, value
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
