"""Reads the rows of glaive-function-calling, whose conversations and functions are written as text.

    turns, tools = read_glaive(row, place)

    {"system": "SYSTEM: You are a helpful assistant with access to the following functions. Use them if required -
                {"name": "track", …}",
     "chat": "USER: Where is order 1?\\n\\n\\nASSISTANT: <functioncall> {"name": "track", "arguments": '{"order": 1}'}
              <|endoftext|>\\n\\n\\nFUNCTION RESPONSE: {"city": "Oslo"}\\n\\n\\nASSISTANT: In Oslo. <|endoftext|>"}

The functions become tools, the calls tool calls, and the responses tool turns. A chat template then writes all of them
as its model knows them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from aftertune.errors import InputError, shown
from aftertune.tuning.text_rows import SKIP
from aftertune.tuning.turns import Place, read_tools, text_of

_SPEAKER = re.compile(r"^[ \t]*(USER|ASSISTANT|FUNCTION RESPONSE):[ \t]*", re.MULTILINE)
_ROLES = {"USER": "user", "ASSISTANT": "assistant", "FUNCTION RESPONSE": "tool"}
_FUNCTIONS = re.compile(r"\s*,?\s*with access to the following functions\b.*", re.DOTALL)
_CALL = "<functioncall>"
_QUOTED = re.compile(r"""("arguments"\s*:\s*)'(.*)'(\s*\}\s*)$""", re.DOTALL)


def read_glaive(row: Mapping[str, Any], place: Place) -> tuple[list[dict[str, Any]], tuple[Mapping[str, Any], ...]]:
    """The turns of a row, as messages with role and content, and its functions.

    Raises InputError if the row has no speakers, or a call or a function that is not JSON.
    """
    system = text_of(row, "system", place, "").removeprefix("SYSTEM:").strip() if row.get("system") else ""
    tools: tuple[Mapping[str, Any], ...] = ()
    if _FUNCTIONS.search(system):
        tools = read_tools(_objects(system[system.find("{"):], place), place.at(": `system`"))
        system = _FUNCTIONS.sub("", system)
    parts = _SPEAKER.split(text_of(row, "chat", place, ""))
    if len(parts) < 3:
        raise InputError(f"{place.where}: `chat` has no lines that begin with USER: and ASSISTANT:, found "
                         f"{shown(parts[0])}; write them, {SKIP}")
    turns = [{"role": "system", "content": system}] if system else []
    for speaker, text in zip(parts[1::2], parts[2::2], strict=True):
        turns.append(_turn(_ROLES[speaker], text.replace("<|endoftext|>", "").strip(), place))
    return turns, tools


def _turn(role: str, text: str, place: Place) -> dict[str, Any]:
    if role != "assistant" or _CALL not in text:
        return {"role": role, "content": text}
    said, _, call = text.partition(_CALL)
    quoted = _QUOTED.search(call)
    try:
        if quoted:  # the arguments are JSON in single quotes
            call = f"{call[:quoted.start()]}{quoted[1]}{json.dumps(quoted[2])}{quoted[3]}"
        value = json.loads(call)
    except (ValueError, RecursionError):
        raise InputError(f"{place.where}: `chat` has a call that is not JSON: {shown(call.strip())}; correct it, "
                         f"{SKIP}") from None
    return {"role": role, "content": said.strip(), "tool_calls": [value]}


def _objects(text: str, place: Place) -> list[Any]:
    """The JSON objects that follow one another in a text."""
    objects, at, decoder = [], 0, json.JSONDecoder()
    while (at := text.find("{", at)) >= 0:
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            raise InputError(f"{place.where}: `system` has a function that is not JSON: {shown(text[at:])}; correct "
                             f"it, {SKIP}") from None
        objects.append(value)
    return objects
