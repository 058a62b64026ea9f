"""Owns reading training examples from a file: what a row is, and what is wrong with one that is not.

    examples = read_examples(Path("orders.jsonl"))
    examples[0].turns, examples[0].completion    ((("user", "A message: …"),), '{"item": "mug", …}')

JSON Lines in UTF-8 (a byte order mark and CRLF are accepted, blank lines skipped). A row is either
``{"prompt": str, "completion": str}`` or ``{"messages": [{"role", "content"}, …]}`` that ends with the
assistant's turn. Other keys are left alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aftertune.errors import InputError, nearest

ROLES = ("system", "user", "assistant", "tool")
FORMS = '{"prompt", "completion"} or {"messages": [{"role", "content"}, …]}'
Turns = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Example:
    """One training example. turns: (role, text) that lead up to it; completion: what is to be learned."""

    turns: Turns
    completion: str

    def row(self) -> dict[str, Any]:
        """The example as JSON-ready values: the form that is fingerprinted."""
        return {"turns": [list(turn) for turn in self.turns], "completion": self.completion}


def read_examples(path: Path) -> list[Example]:
    """The examples of a JSONL file, in its order.

    Raises InputError, naming file and line, for a missing or empty file, a byte that is not UTF-8, a line
    that is not JSON, a missing field, a wrong type or role, and an empty completion.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such data file; give a JSONL file with one example a line")
    lines = _decode(path.read_bytes(), path).removeprefix("\ufeff").split("\n")
    examples = [_example(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not examples:
        raise InputError(f"{path}: no examples: the file is empty; each line must be {FORMS}")
    return examples


def _decode(raw: bytes, path: Path) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{line}: byte 0x{raw[error.start]:02x} at offset {error.start} is not "
                         "UTF-8; save the file as UTF-8") from None


def _example(line: str, where: str) -> Example:
    try:
        row = json.loads(line, parse_constant=_refuse)
    except RecursionError:
        raise InputError(f"{where}: nested too deeply; each line must be {FORMS}") from None
    except ValueError as error:
        raise InputError(f"{where}: not valid JSON ({error}); each line must be one JSON object") from None
    if not isinstance(row, dict):
        raise InputError(f"{where}: found a JSON {type(row).__name__}; each line must be {FORMS}")
    if "messages" in row and "completion" not in row:
        return _from_messages(row["messages"], where)
    return Example((("user", _text(row, "prompt", where)),), _filled(_text(row, "completion", where), where))


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _from_messages(messages: Any, where: str) -> Example:
    if not isinstance(messages, list) or len(messages) < 2:
        raise InputError(f"{where}: `messages` must be a list of at least two turns, found "
                         f"{type(messages).__name__}; it ends with the assistant's turn")
    turns = tuple(_turn(turn, f"{where}: messages[{n}]") for n, turn in enumerate(messages))
    if turns[-1][0] != "assistant":
        raise InputError(f"{where}: the last turn is {turns[-1][0]!r}; it must be the assistant's, "
                         "which is what is learned")
    return Example(turns[:-1], _filled(turns[-1][1], where))


def _turn(turn: Any, where: str) -> tuple[str, str]:
    if not isinstance(turn, dict):
        raise InputError(f"{where}: found {type(turn).__name__}; a turn is {{\"role\", \"content\"}}")
    role = _text(turn, "role", where)
    if role not in ROLES:
        raise InputError(f"{where}: role {role!r} is not one of {', '.join(ROLES)}"
                         f"{nearest(role, list(ROLES))}")
    return role, _text(turn, "content", where)


def _text(row: dict[str, Any], key: str, where: str) -> str:
    if key not in row:
        raise InputError(f"{where}: no `{key}`; found {', '.join(map(repr, row)) or 'no keys'}; "
                         f"each line must be {FORMS}")
    value = row[key]
    if not isinstance(value, str):
        raise InputError(f"{where}: `{key}` must be text, found {type(value).__name__}; put it in quotes")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(f"{where}: `{key}` holds half of a surrogate pair, which is no text; "
                         "write the whole character") from None
    return value


def _filled(completion: str, where: str) -> str:
    if not completion.strip():
        raise InputError(f"{where}: the completion is empty, so there is nothing to learn; fill or remove it")
    return completion
