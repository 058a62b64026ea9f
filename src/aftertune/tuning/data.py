"""Owns what a training example is, and reading one from a row of any of the usual forms.

    examples = read_examples(Path("orders.jsonl"))
    examples[0].turns, examples[0].completion    ((("user", "A message: …"),), '{"item": "mug", …}')

The forms, told apart by a row's keys:
    prompt     {"prompt", "completion"}
    messages   {"messages": [{"role", "content", "weight"?}, …]}
    alpaca     {"instruction", "input"?, "output", "system"?, "history"?: [[question, answer], …]}
    sharegpt   {"conversations": [{"from", "value"}, …], "system"?}
    text       {"text"}                                          all of it is learned
Every answer of a conversation is learned, and the last turn is one; an answer that is empty, or whose ``weight`` is 0
as OpenAI's form has it, is context. Other keys are left alone; other names for these are given as ``fields``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from aftertune.errors import InputError, nearest
from aftertune.tuning.files import Line, read_rows

ROLES = ("system", "user", "assistant", "tool")
#: What ShareGPT's ``from`` says, as roles.
SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "model": "assistant",
            "chatgpt": "assistant", "system": "system", "tool": "tool", "observation": "tool"}
Turns = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Example:
    """One training example. turns: (role, text) that lead up to the last answer, the completion; input: what Alpaca's
    form has apart from the instruction, which is the last turn; context: places of the answers among the turns that are
    not to be learned; where: file and line, which is no part of what the example is."""

    turns: Turns
    completion: str
    input: str = ""
    context: tuple[int, ...] = ()
    where: str = field(default="", compare=False)

    def row(self) -> dict[str, Any]:
        """The example as JSON-ready values: the form that is fingerprinted."""
        row: dict[str, Any] = {"turns": [list(turn) for turn in self.turns], "completion": self.completion}
        row |= {"input": self.input} if self.input else {}
        return row | ({"context": list(self.context)} if self.context else {})

    @property
    def answers(self) -> tuple[int, ...]:
        """Places of the answers that are learned, among the turns and the completion after them."""
        earlier = (n for n, (role, _) in enumerate(self.turns) if role == "assistant" and n not in self.context)
        return (*earlier, len(self.turns))

    @property
    def conversation(self) -> Turns:
        """The turns, with Alpaca's input under its instruction."""
        if not self.input:
            return self.turns
        role, text = self.turns[-1]
        return (*self.turns[:-1], (role, f"{text}\n{self.input}"))


@dataclass(slots=True)
class Account:
    """What was counted on the way, and what of it is worth telling."""

    counts: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Reading:
    """How a file is read. form: one of FORMS, or "auto"; fields: our names -> the file's; skip_bad: leave unreadable
    rows out, and say how many."""

    form: str = "auto"
    fields: Mapping[str, str] = field(default_factory=dict)
    encoding: str = "utf-8"
    split: str = "train"
    subset: str | None = None
    skip_bad: bool = False


def read_examples(path: Path, reading: Reading | None = None, account: Account | None = None) -> list[Example]:
    """The examples of a data file, in its order; what was left out is told in ``account``: rows, of which so many were
    unreadable and so many empty (without a completion), and marks that were read past.

    Raises InputError, naming file and row, for whatever is no example (see Reading.skip_bad); SourceError for what the
    Hub does not give.
    """
    reading = reading or Reading()
    account = account or Account()
    rows = read_rows(path, reading.encoding, reading.split, reading.subset, account.notes)
    found, bad = [], []
    for row in rows:
        try:
            found.append(replace(_example(row, reading), where=row.where))
        except InputError as error:
            if not reading.skip_bad:
                raise
            bad.append(str(error))
    kept = [e for e in found if e.completion.strip()]
    account.counts |= {"rows": len(rows), "unreadable": len(bad), "empty": len(found) - len(kept)}
    if bad:
        account.notes.append(f"{path}: {len(bad)} of {len(rows)} rows are unreadable and were left out; the first: "
                             f"{bad[0]}")
    if not kept:
        raise InputError(f"{path}: no examples: of {len(rows)} rows {len(bad)} are unreadable and {len(found)} have an "
                         "empty completion; each row needs a text to learn")
    return kept


def _example(line: Line, reading: Reading) -> Example:
    if isinstance(line.value, InputError):
        raise line.value
    row, where = line.value, line.where
    if not isinstance(row, dict):
        raise InputError(f"{where}: found a JSON {type(row).__name__}; each row must be {ANY}")
    for ours, theirs in reading.fields.items():
        if theirs not in row:
            raise InputError(f"{where}: no `{theirs}`, which data.fields gives for `{ours}`; found {_keys(row)}")
        row = {**row, ours: row[theirs]}
    form = reading.form if reading.form != "auto" else _form(row)
    return FORMS[form](row, where)


def _form(row: Mapping[str, Any]) -> str:
    """The form whose keys a row has; ``prompt``, which then names what is missing, where it has none."""
    if "messages" in row and "completion" not in row:
        return "messages"
    if "conversations" in row:
        return "sharegpt"
    if "instruction" in row and "output" in row:
        return "alpaca"
    return "text" if "text" in row and not {"prompt", "completion"} & set(row) else "prompt"


def _prompt(row: dict[str, Any], where: str) -> Example:
    return Example((("user", _text(row, "prompt", where)),), _text(row, "completion", where))


def _messages(row: dict[str, Any], where: str) -> Example:
    def read(turn: dict[str, Any], place: str) -> tuple[str, str]:
        return _role(turn, place), _text(turn, "content", place)

    return _conversation(row, "messages", where, read)


def _sharegpt(row: dict[str, Any], where: str) -> Example:
    def read(turn: dict[str, Any], place: str) -> tuple[str, str]:
        speaker = _text(turn, "from", place)
        if speaker not in SPEAKERS:
            raise InputError(f"{place}: from {speaker!r} is not one of {', '.join(SPEAKERS)}"
                             f"{nearest(speaker, list(SPEAKERS))}")
        return SPEAKERS[speaker], _text(turn, "value", place)

    return _conversation(row, "conversations", where, read, _system(row, where))


def _alpaca(row: dict[str, Any], where: str) -> Example:
    history = row.get("history") or []
    if not isinstance(history, list) or not all(map(_is_pair, history)):
        raise InputError(f"{where}: `history` must be a list of [question, answer] pairs of texts")
    turns = [turn for question, answer in history for turn in (("user", question), ("assistant", answer))]
    turns.append(("user", _text(row, "instruction", where)))
    extra = _text(row, "input", where) if row.get("input") is not None else ""
    turns = [*_system(row, where), *turns]
    return Example(tuple(turns), _text(row, "output", where), extra.strip() and extra, _empty(turns))


def _empty(turns: Sequence[tuple[str, str]]) -> tuple[int, ...]:
    """Places of the answers without text."""
    return tuple(n for n, (role, text) in enumerate(turns) if role == "assistant" and not text.strip())


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(x, str) for x in value)


def _plain(row: dict[str, Any], where: str) -> Example:
    return Example((), _text(row, "text", where))


#: Readers of a row, by the name of its form.
FORMS: dict[str, Callable[[dict[str, Any], str], Example]] = {
    "prompt": _prompt, "messages": _messages, "alpaca": _alpaca, "sharegpt": _sharegpt, "text": _plain}
ANY = ('{"prompt", "completion"}, {"messages": [{"role", "content"}, …]}, {"instruction", "input", "output"}, '
       '{"conversations": [{"from", "value"}, …]} or {"text"}')


def _system(row: dict[str, Any], where: str) -> Turns:
    return (("system", _text(row, "system", where)),) if row.get("system") else ()


def _conversation(row: dict[str, Any], key: str, where: str, read: Callable[[dict[str, Any], str], tuple[str, str]],
                  system: Turns = ()) -> Example:
    """An example of a list of turns, the last of them the assistant's; what comes after the last answer that is to be
    learned is left away."""
    turns = row.get(key)
    if not isinstance(turns, list) or len(turns) < 2:
        raise InputError(f"{where}: `{key}` must be a list of at least two turns, found {type(turns).__name__}; it "
                         "ends with the assistant's turn")
    found = (*system, *_turns(turns, f"{where}: {key}", read))
    if found[-1][0] != "assistant":
        raise InputError(f"{where}: the last turn is {found[-1][0]!r}; it must be the assistant's, which is what is "
                         "learned")
    context = {len(system) + n for n, turn in enumerate(turns) if turn.get("weight") == 0}
    last = max((n for n, (role, _) in enumerate(found) if role == "assistant" and n not in context), default=None)
    if last is None:
        raise InputError(f"{where}: every answer in `{key}` has weight 0, so nothing is to be learned; leave the row "
                         "out, or give an answer weight 1")
    before = found[:last]
    return Example(before, found[last][1], context=tuple(sorted(
        {n for n in context if n < last and found[n][0] == "assistant"} | set(_empty(before)))))


def _turns(turns: list[Any], where: str, read: Callable[[dict[str, Any], str], tuple[str, str]]
           ) -> Iterator[tuple[str, str]]:
    for number, turn in enumerate(turns):
        place = f"{where}[{number}]"
        if not isinstance(turn, dict):
            raise InputError(f"{place}: found {type(turn).__name__}; a turn is an object with a speaker and a text")
        yield read(turn, place)


def _role(turn: dict[str, Any], where: str) -> str:
    role = _text(turn, "role", where)
    if role not in ROLES:
        raise InputError(f"{where}: role {role!r} is not one of {', '.join(ROLES)}{nearest(role, list(ROLES))}")
    return role


def _text(row: dict[str, Any], key: str, where: str) -> str:
    if key not in row:
        raise InputError(f"{where}: no `{key}`; found {_keys(row)}; each row must be {ANY}; other names are given as "
                         f"data.fields (--field {key}=NAME)")
    value = _pieces(row[key])
    if not isinstance(value, str):
        hint = "calls of tools are learned as text only: write them into it" if row.get("tool_calls") else \
            "put it in quotes"
        raise InputError(f"{where}: `{key}` must be text, found {type(value).__name__}; {hint}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(f"{where}: `{key}` holds half of a surrogate pair, which is no text; "
                         "write the whole character") from None
    return value


def _pieces(value: Any) -> Any:
    """OpenAI's list of text pieces as one text; anything else as it is."""
    if isinstance(value, list) and value and all(isinstance(v, dict) and v.get("type") == "text"
                                                 and isinstance(v.get("text"), str) for v in value):
        return "".join(v["text"] for v in value)
    return value


def _keys(row: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, row)) or "no keys"
