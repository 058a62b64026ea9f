"""Owns reading foreign files: bounded, as text or JSON, with errors in one line that name file and place.

    text = read_text(Path("record.md"), limit=16 * 2**20)
    value = parse_json(text, "results_2025.json")
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aftertune.errors import InputError

MIB = 2**20


def read_text(path: Path, *, limit: int) -> str:
    """A whole UTF-8 file of at most ``limit`` bytes."""
    try:
        size = path.stat().st_size
        if size > limit:
            raise InputError(f"{path}: {size:,} bytes, and at most {limit:,} are read; is it the right file?")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def parse_json(text: str, where: str) -> Any:
    """A JSON value; NaN, infinities and integers of hundreds of digits become None: no figure here may be one."""
    try:
        value = json.loads(text, parse_constant=lambda _: None, parse_int=_whole)
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except UnicodeEncodeError:
        raise InputError(f"{where}: a text with half a character (a lone surrogate); save the file as UTF-8") from None
    except RecursionError:
        raise InputError(f"{where}: the JSON is nested too deep to be a result of lm-eval") from None
    except ValueError as error:
        found = " ".join(str(error).split())[:120]
        raise InputError(f"{where}: not valid JSON: {found}; was the file cut off?") from None


def _whole(digits: str) -> int | None:
    return int(digits) if len(digits) < 300 else None


def json_lines(path: Path, *, limit: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, object) of every line of a JSON Lines file; place is ``file:line``. limit: bytes of one line."""
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as lines:
            number = 0
            while line := lines.readline(limit + 1):
                number += 1
                place = f"{path}:{number}"
                if len(line) > limit:
                    raise InputError(f"{place}: a line of more than {limit:,} characters; is it the right file?")
                if not line.strip():
                    continue
                value = parse_json(line, place)
                if not isinstance(value, dict):
                    raise InputError(f"{place}: expected a JSON object, found {type(value).__name__}")
                yield place, value
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
