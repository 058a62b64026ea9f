"""Reads training examples from JSON Lines, JSON, CSV, Parquet or a data set of the Hub, in any of the usual forms.

    examples = read_examples(Path("orders.jsonl"))
    examples[0].turns, examples[0].completion    ((("user", "A message: …"),), '{"item": "mug", …}')

`aftertune.tuning.rows` reads the rows of a file, and `aftertune.tuning.forms` recognises their form:

    prompt      {"prompt", "completion"}, each a text or a list of turns
    messages    {"messages": [{"role", "content", "weight"?}, …]}
    alpaca      {"instruction", "input", "output", "history"?: [[question, answer], …]}
    dolly       {"instruction", "context", "response"}
    sharegpt    {"conversations": [{"from", "value"}, …]}
    glaive      {"system", "chat"}                           "USER: …", "ASSISTANT: <functioncall> …"
    preference  {"prompt", "chosen", "rejected"}             chosen is learned
    text        {"text"}                                     all of it is learned

Each may have ``system``. ``fields`` maps these names to other names in a file. The notes of a report say which form was
taken and why, and what of the rows is not used.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

from aftertune.errors import InputError
from aftertune.tuning.example import LEARNED_KEYS, Example
from aftertune.tuning.forms import ACCEPTED_FORMS, FORMS, form_of, read_form
from aftertune.tuning.rows import ReadOptions, read_rows
from aftertune.tuning.text_rows import SKIP, DataRow
from aftertune.tuning.turns import Place, keys_of

#: The most names that a note lists, and that are counted.
_NAMED, _COUNTED = 8, 1000


@dataclass(slots=True)
class ReadReport:
    """Counts and notes of what was read. counts: "rows", and how many are "unreadable" or "empty" (no completion)."""

    counts: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_examples(path: Path, options: ReadOptions | None = None, report: ReadReport | None = None) -> list[Example]:
    """The examples of a data file or a data set of the Hub, in its order. report: receives counts and notes.

    Raises InputError, with file and line, for a row that is not an example (unless ``skip_bad``), and if there is no
    example; SourceError if the Hub does not give the data set.
    """
    options = options or ReadOptions()
    report = report or ReadReport()
    findings = _Findings(path)
    examples: list[Example] = []
    rows = unreadable = empty = 0
    first_error = ""
    for row in read_rows(path, options, report.notes):
        rows += 1
        try:
            example = _example(row, options, findings)
        except InputError as error:
            if not options.skip_bad:
                raise
            unreadable += 1
            first_error = first_error or str(error)
            continue
        if example.completion.strip() or set(LEARNED_KEYS) & set(example.extra.get(len(example.turns), ())):
            examples.append(example)
        else:
            empty += 1
    report.counts |= {"rows": rows, "unreadable": unreadable, "empty": empty}
    if unreadable:
        report.notes.append(f"{path}: {unreadable} of {rows} rows are unreadable and were left out; the first: "
                            f"{first_error}")
    if not examples:
        first = f"; the first unreadable one: {first_error}" if first_error else ""
        raise InputError(f"{path}: no examples: of {rows} rows {unreadable} are unreadable and {empty} have an empty "
                         f"completion; each row needs a text to learn{first}")
    report.notes += findings.notes(automatic=options.form == "auto")
    return examples


def _example(row: DataRow, options: ReadOptions, findings: _Findings) -> Example:
    if isinstance(row.value, InputError):
        raise row.value
    value = row.value
    if not isinstance(value, dict):
        ending = "give a file that is one JSON list the ending .json; " if isinstance(value, list) else ""
        raise InputError(f"{row.where}: found a JSON {type(value).__name__}; {ending}each row must be {ACCEPTED_FORMS}")
    for name, column in options.fields.items():
        if column not in value:
            raise InputError(f"{row.where}: no `{column[:80]}`, which data.fields gives for `{name}`; found "
                             f"{keys_of(value)}")
        value = {**value, name: value[column]}
    form = options.form if options.form != "auto" else form_of(value)
    place = Place(row.where)
    example = replace(read_form(form, value, place, options.fields), where=row.where)
    _check_characters(example)
    findings.add(form, place)
    return example


def _check_characters(example: Example) -> None:
    """Raise InputError for half of a surrogate pair, anywhere: no tokenizer reads it, and no file can hold it."""
    others = (example.extra, example.tools, example.template_arguments)
    parts = [*(text for turn in example.turns for text in turn), example.completion, example.input,
             *(json.dumps(part, ensure_ascii=False, default=str) for part in others if part)]
    try:
        for part in parts:
            part.encode()
    except UnicodeEncodeError as error:
        half = ord(error.object[error.start])
        raise InputError(f"{example.where}: a text contains half of a surrogate pair (U+{half:04X}), which is not "
                         f"valid text; write the whole character, {SKIP}") from None


class _Findings:
    """What is noted once about the rows of a file, with its count."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.forms: Counter[str] = Counter()
        self.found: Counter[tuple[str, str]] = Counter()

    def add(self, form: str, place: Place) -> None:
        """Count the form of a row that was read, and what was found in it."""
        self.forms[form] += 1
        for found in place.found:
            if found in self.found or len(self.found) < _COUNTED:
                self.found[found] += 1

    def notes(self, *, automatic: bool) -> list[str]:
        """The notes. automatic: the forms were recognised, so the reasons are given too."""
        notes = []
        if automatic:
            forms = [f"{f'{count:,} rows ' * (len(self.forms) > 1)}as {name}, because the {FORMS[name].because}"
                     for name, count in self.forms.most_common()]
            notes.append(f"{self.path}: read {'; '.join(forms)}")
        notes += [f"{self.path}: {count:,} {text}" for (kind, text), count in self.found.items() if kind == "remark"]
        for kind, label, unit in (("turn key", "keys of turns", "turns"), ("column", "columns", "rows")):
            names = [f"{name[:40]!r} ({count:,} {unit})" for (of, name), count in self.found.most_common()
                     if of == kind]
            if names:
                more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
                notes.append(f"{self.path}: {label} that are not used: {', '.join(names[:_NAMED])}{more}")
        return notes
