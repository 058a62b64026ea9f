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

Owns reading rows from a data file: JSON Lines, JSON, CSV, Parquet, or a data set of the Hub.

    for row in read_rows(Path("orders.jsonl")):
        row.where, row.value          "orders.jsonl:12", {"prompt": …, "completion": …}

A row that cannot be read is one whose ``value`` is the InputError that says why, so that the reader decides whether
it ends the run. A byte order mark, CRLF and blank lines are accepted; the first two are noted.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from aftertune.errors import InputError, SourceError, nearest
from aftertune.sources.hub import offline
from aftertune.study import HUB_NAMES, on_hub

#: File names' endings, and how such a file is read.
KINDS = {".jsonl": "lines", ".ndjson": "lines", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}


@dataclass(frozen=True, slots=True)
class DataLine:
    """One row of a file, with the place to name; ``value`` is an InputError where it is unreadable."""

    where: str
    value: Any


def read_rows(path: Path, encoding: str = "utf-8", split: str = "train", subset: str | None = None,
              notes: list[str] | None = None) -> list[DataLine]:
    """The rows of a file, in its order; where there is no such file, those of a data set of the Hub: ``owner/name``, or
    one of HUB_NAMES. ``split`` and ``subset`` are for the latter. What was read past is added to ``notes``.

    Raises InputError for a missing or empty file, an unknown kind, bytes that are not of ``encoding``, and a file that
    is damaged as a whole; SourceError for what the Hub does not give.
    """
    kind = KINDS.get(path.suffix.lower())
    if not path.is_file():
        if on_hub(path) and (str(path) in HUB_NAMES or ("/" in str(path) and not path.parent.is_dir())):
            return _hub(HUB_NAMES.get(str(path), str(path)), split, subset)
        raise InputError(f"{path}: no such data file; give a .jsonl, .json, .csv or .parquet file, a Hub data set "
                         f"(owner/name), or one of {', '.join(HUB_NAMES)}")
    if kind is None:
        raise InputError(f"{path}: unknown kind of file {path.suffix!r}{nearest(path.suffix, list(KINDS))}; use one of "
                         f"{', '.join(KINDS)}")
    rows = list(_parquet(path) if kind == "parquet" else _decoded_text(path, kind, encoding,
                                                                       [] if notes is None else notes))
    if not rows:
        raise InputError(f"{path}: no examples: the file is empty; it needs one example a row")
    return rows


def _decoded_text(path: Path, kind: str, encoding: str, notes: list[str]) -> Iterator[DataLine]:
    text = _decode(path, encoding)
    marks = {"a byte order mark": text.startswith("\ufeff"),
             "CRLF line ends": kind != "csv" and "\r\n" in text}  # they are a CSV file's own, RFC 4180
    if any(marks.values()):
        notes.append(f"{path}: has {' and '.join(m for m, there in marks.items() if there)}; no part of any example")
    return {"lines": _lines, "json": _json, "csv": _csv}[kind](text.removeprefix("\ufeff"), path)


def _decode(path: Path, encoding: str) -> str:
    raw = path.read_bytes()
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{line}: byte 0x{raw[error.start]:02x} at offset {error.start} is not "
                         f"{encoding.upper()}; save the file as UTF-8 or say which encoding it has (data.encoding, "
                         "--encoding)") from None
    except LookupError:
        raise InputError(f"encoding {encoding!r} is unknown; use for example utf-8, utf-16 or cp1252") from None


def _lines(text: str, path: Path) -> Iterator[DataLine]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield _parsed(line, f"{path}:{number}", "each line must be one JSON object; mend it, or leave such rows "
                          "out, counted (data.skip_bad, --skip-bad)")


def _parsed(text: str, where: str, way: str) -> DataLine:
    try:
        return DataLine(where, json.loads(text, parse_constant=_refuse))
    except RecursionError:
        return DataLine(where, InputError(f"{where}: nested too deeply for an example; {way}"))
    except ValueError as error:
        return DataLine(where, InputError(f"{where}: not valid JSON ({error}); {way}"))


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _json(text: str, path: Path) -> Iterator[DataLine]:
    """A list of objects, or an object with one list of them in it."""
    if not text.strip():
        return
    whole = _parsed(text, str(path), "an example file is a list of objects; mend it, or write one object a line into a "
                    ".jsonl file").value
    if isinstance(whole, InputError):
        raise whole
    if isinstance(whole, dict):
        lists = [key for key, value in whole.items() if isinstance(value, list)]
        if len(lists) != 1:
            raise InputError(f"{path}: found a JSON object with {len(lists)} lists in it; an example file is a list of "
                             "objects, or has one such list")
        whole = whole[lists[0]]
    if not isinstance(whole, list):
        raise InputError(f"{path}: found a JSON {type(whole).__name__}; an example file is a list of objects")
    for number, value in enumerate(whole):
        yield DataLine(f"{path}[{number}]", value)


def _csv(text: str, path: Path) -> Iterator[DataLine]:
    """Columns by the first line's names; empty cells are empty texts."""
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if path.suffix.lower() == ".tsv" else ",",
                            strict=True, restkey="")
    try:
        for row in reader:
            where = f"{path}:{reader.line_num}"
            bad = None in row.values() or "" in row
            yield DataLine(where,
                           InputError(f"{where}: has another number of cells than the first line has names; quote "
                                         "cells that hold commas") if bad else row)
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: not valid CSV ({error}); quote cells that hold quotes, commas or "
                         "line breaks") from None


def _parquet(path: Path) -> Iterator[DataLine]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        for batch in parquet.ParquetFile(path).iter_batches():
            for value in batch.to_pylist():
                yield DataLine(f"{path}: row {number}", value)
                number += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable Parquet file ({' '.join(str(error).split())[:120]}); write it "
                         "again") from None


def _hub(name: str, split: str, subset: str | None) -> list[DataLine]:
    """The rows of a data set of the Hub, or of its local cache."""
    from datasets import load_dataset

    try:
        data = load_dataset(name, subset, split=split)
    except Exception as error:
        raise SourceError(_told(error, name, split)) from None
    return [DataLine(f"{name}: row {number}", value) for number, value in enumerate(data)]


def _told(error: Exception, name: str, split: str) -> str:
    """One line for what the Hub did not give; never the server's own text, which may carry addresses or tokens."""
    text = " ".join(str(error).split())
    chain = " ".join(type(e).__name__ for e in (error, error.__cause__, error.__context__) if e)
    if "nknown split" in text:
        found = text.partition("Should be one of")[2].strip(" .[]") or "others"
        return f"{name}: has no split {split!r}; it has {found[:200]}; choose one with data.split (--split)"
    if "Config name is missing" in text or ("BuilderConfig" in text and "not found" in text):
        found = text.partition("configs: [" if "missing" in text else "Available: [")[2].partition("]")[0] or "several"
        return f"{name}: has the subsets {found[:200]}; choose one with data.subset (--subset)"
    if "scripts are no longer supported" in text or "trust_remote_code" in text:
        return (f"{name}: is a data set with a loading script, which would run foreign code; use its Parquet files (on "
                "the Hub: revision refs/convert/parquet)")
    if "gated" in text.lower() or "Gated" in chain:
        return f"{name}: the Hub keeps this data set behind a form; accept its terms there and set HF_TOKEN"
    if offline() or "Offline" in chain or "Connection" in chain:
        return (f"{name}: no such file here, and this run is offline or the Hub cannot be reached; give a local file, "
                "or fetch the data set once online")
    if "401" in text or "403" in text:
        return f"{name}: the Hub refused access; set HF_TOKEN to a token that may read this data set"
    return (f"{name}: no such file here, and the Hub has no data set of this name that can be read; check the "
            f"spelling, or give a file that ends in one of {', '.join(KINDS)}")


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


def _example(line: DataLine, reading: Reading) -> Example:
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
