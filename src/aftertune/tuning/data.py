"""Reads training examples from JSON Lines, JSON, CSV, Parquet or a data set of the Hub, in any of the usual forms.

    examples = read_examples(Path("orders.jsonl"))
    examples[0].turns, examples[0].completion    ((("user", "A message: …"),), '{"item": "mug", …}')

The form of a row is known by its keys:

    prompt     {"prompt", "completion"}
    messages   {"messages": [{"role", "content", "weight"?}, …]}
    alpaca     {"instruction", "input"?, "output", "system"?, "history"?: [[question, answer], …]}
    sharegpt   {"conversations": [{"from", "value"}, …], "system"?}
    text       {"text"}                                          all of it is learned

Every answer of a conversation is learned, and its last turn must be one. An answer that is empty, or whose ``weight``
is 0 as in OpenAI's form, is context. Other keys are ignored. ``fields`` maps these names to other names in a file.

A byte order mark, CRLF line ends and blank lines are accepted; the first two are noted.
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
from aftertune.tuning.example import Example, Turns

# --- Reading rows from a file or the Hub ---

#: File name extensions, and how such a file is read.
KINDS = {".jsonl": "lines", ".ndjson": "lines", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}


@dataclass(frozen=True, slots=True)
class DataRow:
    """One row of a file. where: file and line, for messages; value: what was read, or the InputError that says why the
    row is unreadable, so that the caller decides whether to raise it."""

    where: str
    value: Any


def read_rows(path: Path, encoding: str = "utf-8", split: str = "train", subset: str | None = None,
              notes: list[str] | None = None) -> list[DataRow]:
    """The rows of a file in its order or, if there is no such file, of a data set of the Hub.

    path: a file, or ``owner/name`` on the Hub, or one of HUB_NAMES. split, subset: of a data set of the Hub. notes:
    receives a note on a byte order mark and on CRLF.

    Raises InputError for a missing or empty file, an unknown kind of file, bytes that are not ``encoding``, and a file
    that is damaged as a whole; SourceError if the Hub does not give the data set.
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
        raise InputError(f"{path}: no examples: the file is empty; write one example per row")
    return rows


def _decoded_text(path: Path, kind: str, encoding: str, notes: list[str]) -> Iterator[DataRow]:
    text = _decode(path, encoding)
    marks = {"a byte order mark": text.startswith("\ufeff"),
             "CRLF line ends": kind != "csv" and "\r\n" in text}  # CRLF is the standard for CSV (RFC 4180)
    if any(marks.values()):
        notes.append(f"{path}: has {' and '.join(m for m, present in marks.items() if present)}, which were removed")
    return {"lines": _lines, "json": _json, "csv": _csv}[kind](text.removeprefix("\ufeff"), path)


def _decode(path: Path, encoding: str) -> str:
    raw = path.read_bytes()
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{line}: byte 0x{raw[error.start]:02x} at offset {error.start} is not "
                         f"{encoding.upper()}; save the file as UTF-8, or name its encoding (data.encoding, "
                         "--encoding)") from None
    except LookupError:
        raise InputError(f"unknown encoding {encoding!r}; use for example utf-8, utf-16 or cp1252") from None


def _lines(text: str, path: Path) -> Iterator[DataRow]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield _parse_json(line, f"{path}:{number}", "each line must be one JSON object; fix it, or skip such rows "
                          "(data.skip_bad, --skip-bad)")


def _parse_json(text: str, where: str, advice: str) -> DataRow:
    try:
        return DataRow(where, json.loads(text, parse_constant=_refuse_constant))
    except RecursionError:
        return DataRow(where, InputError(f"{where}: nested too deeply for an example; {advice}"))
    except ValueError as error:
        return DataRow(where, InputError(f"{where}: not valid JSON ({error}); {advice}"))


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _json(text: str, path: Path) -> Iterator[DataRow]:
    """The objects of a JSON list, or of the only list in a JSON object."""
    if not text.strip():
        return
    content = _parse_json(text, str(path), "a .json file must be a list of objects; fix it, or write one object per "
                          "line to a .jsonl file").value
    if isinstance(content, InputError):
        raise content
    if isinstance(content, dict):
        lists = [key for key, value in content.items() if isinstance(value, list)]
        if len(lists) != 1:
            raise InputError(f"{path}: found a JSON object with {len(lists)} lists in it; a .json file must be a list "
                             "of objects, or an object with one such list")
        content = content[lists[0]]
    if not isinstance(content, list):
        raise InputError(f"{path}: found a JSON {type(content).__name__}; a .json file must be a list of objects")
    for number, value in enumerate(content):
        yield DataRow(f"{path}[{number}]", value)


def _csv(text: str, path: Path) -> Iterator[DataRow]:
    """Rows as dictionaries with the names in the first line as keys; an empty cell is an empty text."""
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if path.suffix.lower() == ".tsv" else ",",
                            strict=True, restkey="")
    try:
        for row in reader:
            where = f"{path}:{reader.line_num}"
            wrong_length = None in row.values() or "" in row
            yield DataRow(where, InputError(f"{where}: the number of cells differs from the first line; put cells that "
                                            "contain commas in quotes") if wrong_length else row)
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: not valid CSV ({error}); put cells that contain quotes, commas "
                         "or line breaks in quotes") from None


def _parquet(path: Path) -> Iterator[DataRow]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        for batch in parquet.ParquetFile(path).iter_batches():
            for value in batch.to_pylist():
                yield DataRow(f"{path}: row {number}", value)
                number += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable Parquet file ({' '.join(str(error).split())[:120]}); write "
                         "the file again") from None


def _hub(name: str, split: str, subset: str | None) -> list[DataRow]:
    """The rows of a data set of the Hub, or from the local cache."""
    from datasets import load_dataset

    try:
        data = load_dataset(name, subset, split=split)
    except Exception as error:
        raise SourceError(_hub_error(error, name, split)) from None
    return [DataRow(f"{name}: row {number}", value) for number, value in enumerate(data)]


def _hub_error(error: Exception, name: str, split: str) -> str:
    """One line that says why the Hub did not give a data set. It never quotes the server, whose text may contain
    addresses or tokens."""
    text = " ".join(str(error).split())
    chain = " ".join(type(e).__name__ for e in (error, error.__cause__, error.__context__) if e)
    if "nknown split" in text:
        splits = text.partition("Should be one of")[2].strip(" .[]") or "others"
        return f"{name}: has no split {split!r}; it has {splits[:200]}; choose one with data.split (--split)"
    if "Config name is missing" in text or ("BuilderConfig" in text and "not found" in text):
        subsets = text.partition("configs: [" if "missing" in text else "Available: [")[2].partition("]")[0]
        return f"{name}: has the subsets {subsets[:200] or 'several'}; choose one with data.subset (--subset)"
    if "scripts are no longer supported" in text or "trust_remote_code" in text:
        return (f"{name}: needs a loading script, which is foreign code and is not run; use its Parquet files (on the "
                "Hub: revision refs/convert/parquet)")
    if "gated" in text.lower() or "Gated" in chain:
        return f"{name}: this data set is gated; accept its terms on the Hub and set HF_TOKEN"
    if offline() or "Offline" in chain or "Connection" in chain:
        return (f"{name}: no such file here, and this run is offline or the Hub cannot be reached; give a local file, "
                "or download the data set once while online")
    if "401" in text or "403" in text:
        return f"{name}: the Hub refused access; set HF_TOKEN to a token that may read this data set"
    return (f"{name}: no such file here, and the Hub has no readable data set of this name; check the spelling, "
            f"or give a file that ends in one of {', '.join(KINDS)}")


# --- From rows to examples ---

ROLES = ("system", "user", "assistant", "tool")
#: The values of ShareGPT's ``from``, and the role of each.
SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "model": "assistant",
            "chatgpt": "assistant", "system": "system", "tool": "tool", "observation": "tool"}


@dataclass(slots=True)
class ReadReport:
    """Counts and notes of what was read. counts: "rows", and how many are "unreadable" or "empty" (no completion)."""

    counts: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How a file is read. form: one of FORMS, or "auto"; fields: our names -> names in the file; skip_bad: leave out
    unreadable rows, and count them."""

    form: str = "auto"
    fields: Mapping[str, str] = field(default_factory=dict)
    encoding: str = "utf-8"
    split: str = "train"
    subset: str | None = None
    skip_bad: bool = False


def read_examples(path: Path, options: ReadOptions | None = None, report: ReadReport | None = None) -> list[Example]:
    """The examples of a data file or a data set of the Hub, in its order. report: receives counts and notes.

    Raises InputError, with file and line, for a row that is not an example (unless ``skip_bad``), and if there is no
    example; SourceError if the Hub does not give the data set.
    """
    options = options or ReadOptions()
    report = report or ReadReport()
    rows = read_rows(path, options.encoding, options.split, options.subset, report.notes)
    examples, errors = [], []
    for row in rows:
        try:
            examples.append(replace(_example(row, options), where=row.where))
        except InputError as error:
            if not options.skip_bad:
                raise
            errors.append(str(error))
    complete = [e for e in examples if e.completion.strip()]
    report.counts |= {"rows": len(rows), "unreadable": len(errors), "empty": len(examples) - len(complete)}
    if errors:
        report.notes.append(f"{path}: {len(errors)} of {len(rows)} rows are unreadable and were left out; the first: "
                            f"{errors[0]}")
    if not complete:
        raise InputError(f"{path}: no examples: of {len(rows)} rows {len(errors)} are unreadable and {len(examples)} "
                         "have an empty completion; each row needs a text to learn")
    return complete


def _example(data: DataRow, options: ReadOptions) -> Example:
    if isinstance(data.value, InputError):
        raise data.value
    row, where = data.value, data.where
    if not isinstance(row, dict):
        raise InputError(f"{where}: found a JSON {type(row).__name__}; each row must be {ACCEPTED_FORMS}")
    for name, column in options.fields.items():
        if column not in row:
            raise InputError(f"{where}: no `{column}`, which data.fields gives for `{name}`; found {_keys(row)}")
        row = {**row, name: row[column]}
    form = options.form if options.form != "auto" else _form(row)
    return FORMS[form](row, where)


def _form(row: Mapping[str, Any]) -> str:
    """The form of a row by its keys; "prompt" if no form fits, so that the error names the missing key."""
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
    def read(turn: dict[str, Any], where: str) -> tuple[str, str]:
        return _role(turn, where), _text(turn, "content", where)

    return _conversation(row, "messages", where, read)


def _sharegpt(row: dict[str, Any], where: str) -> Example:
    def read(turn: dict[str, Any], where: str) -> tuple[str, str]:
        speaker = _text(turn, "from", where)
        if speaker not in SPEAKERS:
            raise InputError(f"{where}: from {speaker!r} is not one of {', '.join(SPEAKERS)}"
                             f"{nearest(speaker, list(SPEAKERS))}")
        return SPEAKERS[speaker], _text(turn, "value", where)

    return _conversation(row, "conversations", where, read, _system(row, where))


def _alpaca(row: dict[str, Any], where: str) -> Example:
    history = row.get("history") or []
    if not isinstance(history, list) or not all(map(_is_pair, history)):
        raise InputError(f"{where}: `history` must be a list of [question, answer] pairs of texts")
    turns = [turn for question, answer in history for turn in (("user", question), ("assistant", answer))]
    turns.append(("user", _text(row, "instruction", where)))
    addition = _text(row, "input", where) if row.get("input") is not None else ""
    turns = [*_system(row, where), *turns]
    return Example(tuple(turns), _text(row, "output", where), addition.strip() and addition, _empty_answers(turns))


def _empty_answers(turns: Sequence[tuple[str, str]]) -> tuple[int, ...]:
    """The indices of the answers without text."""
    return tuple(n for n, (role, text) in enumerate(turns) if role == "assistant" and not text.strip())


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(x, str) for x in value)


def _plain(row: dict[str, Any], where: str) -> Example:
    return Example((), _text(row, "text", where))


#: The function that reads a row, by the name of its form.
FORMS: dict[str, Callable[[dict[str, Any], str], Example]] = {
    "prompt": _prompt, "messages": _messages, "alpaca": _alpaca, "sharegpt": _sharegpt, "text": _plain}
ACCEPTED_FORMS = ('{"prompt", "completion"}, {"messages": [{"role", "content"}, …]}, {"instruction", "input", '
                  '"output"}, {"conversations": [{"from", "value"}, …]} or {"text"}')


def _system(row: dict[str, Any], where: str) -> Turns:
    return (("system", _text(row, "system", where)),) if row.get("system") else ()


def _conversation(row: dict[str, Any], key: str, where: str, read: Callable[[dict[str, Any], str], tuple[str, str]],
                  system: Turns = ()) -> Example:
    """An example from a list of turns, of which the last must be the assistant's. The turns after the last learned
    answer are left out.

    key: of the list in ``row``. read: a turn and its place in the file -> role and text. system: a system prompt that
    comes first.
    """
    turns = row.get(key)
    if not isinstance(turns, list) or len(turns) < 2:
        raise InputError(f"{where}: `{key}` must be a list of at least two turns, found {type(turns).__name__}; the "
                         "last turn must be the assistant's")
    conversation = (*system, *_turns(turns, f"{where}: {key}", read))
    if conversation[-1][0] != "assistant":
        raise InputError(f"{where}: the last turn is {conversation[-1][0]!r}; it must be the assistant's, because the "
                         "last answer is learned")
    context = {len(system) + n for n, turn in enumerate(turns) if turn.get("weight") == 0}
    last = max((n for n, (role, _) in enumerate(conversation) if role == "assistant" and n not in context),
               default=None)
    if last is None:
        raise InputError(f"{where}: every answer in `{key}` has weight 0, so nothing can be learned; leave out the "
                         "row, or give an answer weight 1")
    before = conversation[:last]
    return Example(before, conversation[last][1], context=tuple(sorted(
        {n for n in context if n < last and conversation[n][0] == "assistant"} | set(_empty_answers(before)))))


def _turns(turns: list[Any], where: str, read: Callable[[dict[str, Any], str], tuple[str, str]]
           ) -> Iterator[tuple[str, str]]:
    for number, turn in enumerate(turns):
        if not isinstance(turn, dict):
            raise InputError(f"{where}[{number}]: found {type(turn).__name__}; a turn must be an object with a "
                             "speaker and a text")
        yield read(turn, f"{where}[{number}]")


def _role(turn: dict[str, Any], where: str) -> str:
    role = _text(turn, "role", where)
    if role not in ROLES:
        raise InputError(f"{where}: role {role!r} is not one of {', '.join(ROLES)}{nearest(role, list(ROLES))}")
    return role


def _text(row: dict[str, Any], key: str, where: str) -> str:
    if key not in row:
        raise InputError(f"{where}: no `{key}`; found {_keys(row)}; each row must be {ACCEPTED_FORMS}; map "
                         f"other names with data.fields (--field {key}=NAME)")
    value = _joined_text(row[key])
    if not isinstance(value, str):
        advice = "tool calls are learned only as text; write them into the content" if row.get("tool_calls") else \
            "put it in quotes"
        raise InputError(f"{where}: `{key}` must be text, found {type(value).__name__}; {advice}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(f"{where}: `{key}` contains half of a surrogate pair, which is not valid text; "
                         "write the whole character") from None
    return value


def _joined_text(value: Any) -> Any:
    """OpenAI's list of text pieces joined to one text; any other value unchanged."""
    if isinstance(value, list) and value and all(isinstance(v, dict) and v.get("type") == "text"
                                                 and isinstance(v.get("text"), str) for v in value):
        return "".join(v["text"] for v in value)
    return value


def _keys(row: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, row)) or "no keys"
