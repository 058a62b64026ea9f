"""Reads the turns of a conversation: speakers, texts, tool calls, reasoning, and which answers are learned.

    example = read_conversation([{"role": "user", "content": "Hi"}, …], "messages", place)
    example.turns, example.completion        ((("user", "Hi"),), "Ho")

A turn has ``role`` and ``content`` (OpenAI, Hugging Face) or ``from`` and ``value`` (ShareGPT). Keys that chat
templates use are carried on (`TURN_KEYS`). Older and other ways to write tool calls become ``tool_calls``:
``function_call`` of OpenAI, the speakers ``function_call`` and ``observation`` of ShareGPT and Glaive, and arguments as
JSON text.

Every answer is learned but one that is empty, one that a key of MASKS marks as not learned, and one with nothing before
it, because nothing asks for it. A key that is not known is counted, and noted once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aftertune.errors import InputError, nearest, shown
from aftertune.tuning.example import LEARNED_KEYS, TURN_KEYS, Example
from aftertune.tuning.text_rows import SKIP

ROLES = ("system", "user", "assistant", "tool")
#: Names of speakers, and the role of each. "call" is an answer that consists of tool calls.
SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "model": "assistant",
            "chatgpt": "assistant", "system": "system", "tool": "tool", "observation": "tool", "function_call": "call",
            "tool_call": "call", "function": "tool", "function_response": "tool", "tool_response": "tool",
            "ipython": "tool", "bot": "assistant", "ai": "assistant", "prompter": "user", "developer": "system"}
#: Keys of a turn that say whether it is learned: true or 1, false or 0.
MASKS = ("weight", "train", "loss", "loss_mask", "loss_weight", "loss_scale", "trainable")
#: Keys of a turn that say so in a way that is not one of these values.
UNCLEAR_MASKS = ("mask", "train_detail", "training_detail")
_KNOWN = {"role", "content", "from", "value", "function_call", *TURN_KEYS, *MASKS}


@dataclass(slots=True)
class Place:
    """Where a row is, for messages, and what was found in it. where: file and line. found: (kind, text) of what is
    noted once, with its count; the kinds are "turn key", "column" and "remark"."""

    where: str
    found: list[tuple[str, str]] = field(default_factory=list)

    def at(self, part: str) -> Place:
        """A part of the row."""
        return Place(f"{self.where}{part}", self.found)

    def remark(self, text: str) -> None:
        """Something that is noted once, after the number of its rows or turns."""
        self.found.append(("remark", text))


@dataclass(slots=True)
class Turn:
    """One turn. learned: what the turn's own keys say; None if they say nothing."""

    role: str
    text: str
    extra: dict[str, Any] = field(default_factory=dict)
    learned: bool | None = None

    @property
    def answers(self) -> bool:
        """Whether it is an answer with something to learn."""
        return self.role == "assistant" and bool(self.text.strip() or any(k in self.extra for k in LEARNED_KEYS))


def read_conversation(turns: Any, key: str, place: Place, *, prompt: Sequence[Turn] = ()) -> Example:
    """An example from a list of turns, of which the last must be an answer. Turns after the last learned answer are
    left out.

    key: of the list in the row. prompt: turns that come first, of which no answer is learned. Raises InputError for a
    list that is no conversation.
    """
    if not isinstance(turns, list) or not turns or len(turns) + len(prompt) < 2:
        raise InputError(f"{place.where}: `{key}` must be a list of at least two turns, found {_kind(turns)}; the last "
                         f"turn must be the assistant's; add the missing turns, {SKIP}")
    return conversation([*prompt, *read_turns(turns, key, place)], key, place, first=len(prompt))


def conversation(turns: Sequence[Turn], key: str, place: Place, *, first: int = 0) -> Example:
    """An example from turns that were read. key: of their list, for messages; first: index of the first turn that may
    be learned."""
    if turns[-1].role != "assistant":
        raise InputError(f"{place.where}: the last turn is {turns[-1].role!r}; it must be the assistant's, because the "
                         f"last answer is learned; add an answer, {SKIP}")
    opening = turns[0].role == "assistant"
    masked = {n for n, turn in enumerate(turns) if turn.learned is False or n < first or (opening and n == 0)}
    last = max((n for n, turn in enumerate(turns) if turn.role == "assistant" and n not in masked), default=None)
    if last is None:
        raise InputError(f"{place.where}: every answer in `{key}` has weight 0, train: false or nothing before it, so "
                         f"nothing can be learned; give an answer weight 1, {SKIP}")
    if opening:
        place.remark("conversations begin with an answer, which is context and not learned, because nothing comes "
                     "before it")
    for turn in turns:
        if turn.learned and turn.role != "assistant":
            place.remark("turns that are not answers are marked as learned; only answers are learned (--learn all "
                         "learns prompts too)")
    extra = {n: turn.extra for n, turn in enumerate(turns[:last + 1]) if turn.extra}
    context = tuple(n for n, turn in enumerate(turns[:last])
                    if turn.role == "assistant" and (n in masked or not turn.answers))
    return Example(tuple((turn.role, turn.text) for turn in turns[:last]), turns[last].text, context=context,
                   extra=extra)


def read_turns(turns: Any, key: str, place: Place) -> Iterator[Turn]:
    """The turns of a list. key: of the list in the row. Raises InputError for one that cannot be read."""
    if not isinstance(turns, list):
        raise InputError(f"{place.where}: `{key}` must be a list of turns, found {_kind(turns)}; write one, {SKIP}")
    for number, turn in enumerate(turns):
        here = place.at(f": {key}[{number}]")
        if not isinstance(turn, dict):
            raise InputError(f"{here.where}: found {_kind(turn)}; a turn must be an object with a speaker and a text "
                             "(role and content, or from and value)")
        yield _turn(turn, here)


def _turn(turn: Mapping[str, Any], place: Place) -> Turn:
    key = "role" if "role" in turn else "from"
    text_key = "content" if "content" in turn or (key == "role" and "value" not in turn) else "value"
    role = _role(turn, key, place)
    extra = _extra(turn, place)
    text = turn.get(text_key)
    if role == "call":
        extra["tool_calls"], role, text = _calls_of_text(text, text_key, place), "assistant", ""
    elif text is None and role == "assistant" and any(k in extra for k in LEARNED_KEYS):
        extra["content"], text = None, ""
    elif role == "tool" and isinstance(text, dict | list) and not _is_text_parts(text):
        extra["content"], text = text, json.dumps(text, ensure_ascii=False)
    else:
        text = text_of(turn, text_key, place, "a turn must have role and content, or from and value")
    place.found.extend(("turn key", name) for name in turn if name not in _KNOWN)
    return Turn(role, text, extra, _learned(turn, place))


def _role(turn: Mapping[str, Any], key: str, place: Place) -> str:
    name = text_of(turn, key, place, "a turn must have role and content, or from and value")
    role = SPEAKERS.get(name) or SPEAKERS.get(name.strip().casefold())
    if role is None:
        known = list(ROLES if key == "role" else SPEAKERS)
        raise InputError(f"{place.where}: {key} {shown(name)} is not one of {', '.join(known)}"
                         f"{nearest(name[:40], known)}; write one of them, {SKIP}")
    if name == "developer":
        place.remark("turns of the role developer are read as system turns")
    return role


def _learned(turn: Mapping[str, Any], place: Place) -> bool | None:
    """What the keys of MASKS say. Raises InputError for another value, an unclear key, and keys that disagree."""
    for key in UNCLEAR_MASKS:
        if turn.get(key) is not None:
            raise InputError(f"{place.where}: `{key}` may mean learned or not learned; write train: true or train: "
                             f"false for the whole turn instead, {SKIP}")
    said: dict[str, bool] = {}
    for key in MASKS:
        value = turn.get(key)
        if value is None:
            continue
        if isinstance(value, str):
            value = {"true": 1, "1": 1, "false": 0, "0": 0}.get(value.strip().casefold(), value)
        if value not in (0, 1):
            raise InputError(f"{place.where}: `{key}` is {shown(value)}; a turn is learned (1, true) or not (0, "
                             f"false); write one of them, {SKIP}")
        said[key] = bool(value)
    if len(set(said.values())) > 1:
        raise InputError(f"{place.where}: {' and '.join(f'`{k}`: {v}' for k, v in said.items())} disagree; keep one of "
                         f"them, {SKIP}")
    return next(iter(said.values()), None)


# --- Keys that chat templates use ---


def _extra(turn: Mapping[str, Any], place: Place) -> dict[str, Any]:
    """The keys of TURN_KEYS that have a value."""
    extra = {key: turn[key] for key in TURN_KEYS if turn.get(key) not in (None, "", [], {})}
    for key in ("reasoning_content", "reasoning", "thinking", "name", "tool_call_id"):
        if key in extra:
            extra[key] = text_of(turn, key, place, "")
    if "tool_calls" in extra:
        extra["tool_calls"] = _calls(_from_json(extra["tool_calls"]), "tool_calls", place)
    if turn.get("function_call"):
        extra["tool_calls"] = [*extra.get("tool_calls", []),
                               *_calls([_from_json(turn["function_call"])], "function_call", place)]
    return extra


def _calls_of_text(text: Any, key: str, place: Place) -> list[dict[str, Any]]:
    """The tool calls of a turn whose whole text is one call, or a list of calls, as JSON."""
    value = _from_json(text)
    return _calls(value if isinstance(value, list) else [value], key, place)


def _calls(calls: Any, key: str, place: Place) -> list[dict[str, Any]]:
    """Tool calls as ``{"type": "function", "function": {"name", "arguments"}}``, as transformers documents them, with
    the arguments as an object. Raises InputError for a call without a name."""
    result = []
    for call in calls if isinstance(calls, list) else [None]:
        call = call if isinstance(call, dict) else {}
        inner = call.get("function", call)
        if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
            form = '[{"function": {"name": …, "arguments": {…}}}]'
            raise InputError(f"{place.where}: `{key}` must be a list of calls with a name and arguments, found "
                             f"{shown(calls)}; write {form}, {SKIP}")
        outer = {k: v for k, v in call.items() if v is not None} if "function" in call else {}
        function = {**inner, "arguments": _from_json(inner.get("arguments", {}))}
        result.append({"type": "function", **outer, "function": function})
    return result


def read_tools(value: Any, place: Place) -> tuple[Mapping[str, Any], ...]:
    """The functions that a model may call, from a list or its JSON text; a function without ``type`` gets the usual
    frame. Raises InputError for anything else."""
    tools = _from_json(value)
    tools = [tools] if isinstance(tools, dict) else tools or []
    if not isinstance(tools, list) or not all(
            isinstance(tool, dict) and isinstance(tool.get("function", tool), dict) for tool in tools):
        raise InputError(f"{place.where} must be a list of functions or its JSON text, found {shown(value)}; write "
                         f"[{{\"type\": \"function\", \"function\": {{\"name\": …}}}}], {SKIP}")
    return tuple(tool if "function" in tool or "name" not in tool else {"type": "function", "function": tool}
                 for tool in tools)


def _from_json(value: Any) -> Any:
    """The value of a JSON text that is an object or a list; any other value unchanged."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


# --- Texts ---


def text_of(row: Mapping[str, Any], key: str, place: Place, rule: str) -> str:
    """The text under a key. rule: what a row must have, for the message if there is no such key.

    Raises InputError for another type, a part that is no text, and half of a surrogate pair.
    """
    if key not in row:
        raise InputError(f"{place.where}: no `{key}`; found {keys_of(row)}; {rule}")
    value = row[key]
    if isinstance(value, list):
        value = _joined(value, key, place)
    if not isinstance(value, str):
        advice = "write a text" if value is None or isinstance(value, dict | list) else "put it in quotes"
        raise InputError(f"{place.where}: `{key}` must be text, found {_kind(value)}; {advice}, {SKIP}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InputError(f"{place.where}: `{key}` contains half of a surrogate pair, which is not valid text; "
                             "write the whole character") from None
    return value


def _is_text_parts(value: Any) -> bool:
    """Whether a value is OpenAI's list of text pieces."""
    return isinstance(value, list) and all(isinstance(part, dict) and part.get("type") in ("text", "input_text",
                                           "output_text") and isinstance(part.get("text"), str) for part in value)


def _joined(parts: list[Any], key: str, place: Place) -> Any:
    """OpenAI's list of text pieces joined to one text; another list unchanged. InputError for an image."""
    if _is_text_parts(parts):
        return "".join(part["text"] for part in parts)
    for number, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(kind, str) and kind != "text":
            raise InputError(f"{place.where}: `{key}` has a part of type {shown(kind)} (part {number}); only text can "
                             f"be trained; leave the part out, {SKIP}")
    return parts


def keys_of(row: Mapping[str, Any]) -> str:
    """The keys of a row in a message, at most twelve of them."""
    names = [repr(str(key)[:40]) for key in list(row)[:12]]
    return ", ".join([*names, *(["…"] if len(row) > 12 else [])]) or "no keys"


def _kind(value: Any) -> str:
    return type(value).__name__
