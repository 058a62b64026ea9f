"""Owns reading a Markdown record of results: headings name models, tables give scores, lists give metadata.

    document = read_record(Path("record.md"))
    document.rows[0]         Reported(model="Base Llama 3.2 1B", task="hellaswag", metric="acc", value=0.4523, …)

Read are tables with a column of tasks and one of results (errors, n, filters and models where they have
columns), also those that lm-eval prints, and tables with a column per model. A column of the latter that only
repeats a model's figures is left out. The nearest heading names the model, the one above it the section. A heading
with "not evaluated" below it, and no table, is a planned model; code on that line is its command.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from aftertune import catalog
from aftertune.errors import InputError
from aftertune.exchange.inline import Heading, Table, Text, read_blocks
from aftertune.exchange.reading import MIB, read_text
from aftertune.exchange.remarks import read_remarks
from aftertune.reported import Remark, Reported
from aftertune.stats.audit import Figure

LIMIT = 16 * MIB

_FACT = re.compile(r"(?!\[[ xX]\])([^:]{1,80}?)\s*:\s*(\S.*)")
_NOT_EVALUATED = re.compile(r"(?i)\bnot\b[^.|]{0,12}\bevaluated\b")
_SEVERAL = re.compile(r"\s*(?:±|\+/-)\s*")
_RULE = re.compile(r"\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?")
_NUMBERED = re.compile(r"\d+\.\s+")
_ABSENT = frozenset({"", "-", "–", "—", "n/a", "na", "nan", "none", "?", "tbd"})
#: What a column is, by the beginning of its heading.
_ROLES = (("task", ("task", "benchmark", "dataset")), ("filter", ("filter",)), ("metric", ("metric", "measure")),
          ("error", ("error", "stderr", "std", "standard error", "±", "se ", "uncertainty")),
          ("result", ("result", "value", "score")), ("n", ("n", "items", "questions", "samples")),
          ("model", ("model",)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """What a record says: scores and planned models, and its remarks beside them."""

    source: str
    rows: tuple[Reported, ...]
    remarks: tuple[Remark, ...] = ()

    @property
    def scores(self) -> tuple[Reported, ...]:
        """The rows with a figure: those of planned models have none."""
        return tuple(r for r in self.rows if r.planned is None)


def read_record(path: Path, *, source: str | None = None) -> Document:
    """Read a Markdown record. Raises InputError with file and line, also where it holds no table of scores."""
    reader = _Reader(path, source or path.name)
    blocks = read_blocks(read_text(path, limit=LIMIT))
    reader.read(blocks)
    document = reader.document()
    return replace(document, remarks=read_remarks(blocks, document.scores))


@dataclass(slots=True)
class _Place:
    """A heading: its title, the section above it, what was found below it."""

    title: str
    section: str
    rows: list[Reported] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    planned: tuple[str, int] | None = None


@dataclass(frozen=True, slots=True)
class _Draft:
    """A row's figure before it is known in which unit the table has its shares. cell: value, perhaps ± error."""

    line: int
    model: str
    row: Mapping[str, str]
    cell: str

    @property
    def value(self) -> str:
        return _SEVERAL.split(self.cell, maxsplit=1)[0].strip()

    @property
    def error(self) -> str:
        parts = _SEVERAL.split(self.cell, maxsplit=1)
        inside = parts[1] if len(parts) > 1 else ""
        return (self.row.get("error") or inside).strip().lstrip("±").strip()

    @property
    def metric(self) -> tuple[str, str]:
        """(metric, filter); a table without a column of metrics gives accuracies."""
        return catalog.metric_named(self.row.get("metric") or "accuracy", self.row.get("filter") or "none")

    @property
    def beyond_one(self) -> bool:
        """True for a share above 1 without a percent sign."""
        return catalog.is_share(self.metric[0]) and "%" not in self.cell and _is_figure(self.cell) and \
            Figure.parse(self.value).value > 1


class _Reader:
    """Collects what one document says, block by block."""

    def __init__(self, path: Path, source: str) -> None:
        self.path = path
        self.source = source
        self.headings: list[tuple[int, str]] = []
        self.places: list[_Place] = [_Place(source, "")]
        self.wide: list[Reported] = []
        self.above = ""  # the line of text before

    def read(self, blocks: Sequence[Heading | Table | Text]) -> None:
        for block in blocks:
            if isinstance(block, Table):
                self._table(block)
            elif isinstance(block, Heading):
                self._heading(block)
            else:
                self._text(block)

    def _heading(self, heading: Heading) -> None:
        title = _NUMBERED.sub("", heading.words.text, count=1)
        self.headings = [h for h in self.headings if h[0] < heading.depth] + [(heading.depth, title)]
        above = [t for d, t in self.headings[:-1] if d > 1]
        self.places.append(_Place(title, above[-1] if above else title))

    def _text(self, line: Text) -> None:
        place = self.places[-1]
        if line.item == "bullet" and (fact := _FACT.fullmatch(line.words.text)):
            if not catalog.is_metric(fact[1]):  # those are definitions
                place.facts[fact[1]] = fact[2]
        elif _NOT_EVALUATED.search(line.words.text):
            place.planned = (line.words.code, line.line)
        elif _RULE.fullmatch(line.words.text) and "task" in _roles(re.split(r"\s*\|\s*", self.above)).values():
            raise InputError(f"{self.path}:{line.line}: the line below a table's head has another number of columns "
                             f"than the head ({self.above[:60]!r}); give both the same number of |")
        self.above = line.words.text

    def _table(self, table: Table) -> None:
        head = [cell.text for cell in table.head]
        roles = _roles(head)
        if "task" not in roles.values():
            return
        carried: dict[str, str] = {}
        drafts: list[_Draft] = []
        for line, words in table.rows:
            cells = [cell.text for cell in words]
            row = {role: cells[i] for i, role in roles.items()}
            carried |= {k: v for k, v in row.items() if k in ("task", "filter") and v}
            row |= {k: v for k, v in carried.items() if not row.get(k)}
            if "result" in roles.values():
                drafts.append(_Draft(line, row.get("model") or self.places[-1].title, row, row.get("result", "")))
            else:  # a column per model
                drafts += [_Draft(line, head[i], row, cell) for i, cell in enumerate(cells)
                           if i not in roles and _is_figure(cell)]
        percent = any(d.beyond_one for d in drafts)
        place = self.places[-1]
        found = [score for d in drafts if (score := self._score(d, percent)) is not None]
        if "result" in roles.values():
            place.rows += [replace(r, section=place.section) for r in found]
        else:
            self.wide += [replace(r, section=place.title) for r in found]

    def _score(self, draft: _Draft, percent: bool) -> Reported | None:
        """One figure with its error; None for an absent one. percent: unmarked shares of this table are percent."""
        value, error, row = draft.value, draft.error, draft.row
        if value.lower() in _ABSENT or not row.get("task"):
            return None
        metric, filter_ = draft.metric
        task = catalog.task_named(row["task"])
        stated = re.match(r"[\d,]+", row.get("n", ""))
        n = int(stated[0].replace(",", "")) if stated and stated[0].strip(",") else None
        figure = self._figure(draft, value, percent=True if percent and catalog.is_share(metric) else None)
        stderr = None if error.lower() in _ABSENT else self._figure(draft, error, percent=figure.scale == 100)
        return Reported(
            source=self.source, model=draft.model, task=task, metric=metric, filter=filter_, value=figure.fraction,
            stderr=stderr.fraction if stderr else None, n=n or catalog.hub_items(task),
            n_source="stated" if n else "known" if catalog.hub_items(task) else "",
            value_text=_marked(value, figure), stderr_text=_marked(error, figure) if stderr else "", line=draft.line)

    def _figure(self, draft: _Draft, text: str, *, percent: bool | None) -> Figure:
        try:
            return Figure.parse(text, percent=percent)
        except ValueError as error:
            raise InputError(f"{self.path}:{draft.line}: the result of {draft.row['task'][:60]!r}: {error}; write a "
                             "number, with % for percent, or – where there is none") from None

    def document(self) -> Document:
        """All that was read; InputError where it holds no score."""
        rows: list[Reported] = []
        for place in self.places:
            rows += [replace(r, facts=place.facts) for r in place.rows]
            if place.planned is not None and not place.rows:
                command, line = place.planned
                rows.append(Reported(source=self.source, model=_evaluated(place.title), section=place.section,
                                     facts=place.facts, planned=command, line=line))
        rows += _unrepeated(self.wide, rows)
        if not any(r.planned is None for r in rows):
            raise InputError(f"{self.path}: no table of scores was found; a table needs a column of tasks (Task) and "
                             "one of results (Result, Value or Score), or one per model")
        return Document(source=self.source, rows=tuple(rows))


def _is_figure(cell: str) -> bool:
    try:
        Figure.parse(_SEVERAL.split(cell, maxsplit=1)[0])
    except ValueError:
        return False
    return True


def _marked(text: str, figure: Figure) -> str:
    """A printed figure that says its unit."""
    return f"{text}%" if figure.scale == 100 and "%" not in text else text


def _roles(head: Sequence[str]) -> dict[int, str]:
    """Column -> what it is; the first of a kind counts."""
    roles: dict[int, str] = {}
    for i, title in enumerate(head):
        words = title.lower() + " "
        role = next((role for role, starts in _ROLES
                     if role not in roles.values() and any(_begins(words, s) for s in starts)), None)
        if role is not None:
            roles[i] = role
    return roles


def _begins(words: str, start: str) -> bool:
    """True where ``start`` is the first word or words; "n" must be the whole of it."""
    return words == "n " if start == "n" else bool(re.match(re.escape(start) + r"(?:s?\b|$|(?<=\W))", words))


def _evaluated(title: str) -> str:
    """The name of a planned model without its "(Not Evaluated)"."""
    return re.sub(r"\s*\((?i:not (?:yet )?evaluated)\)", "", title)


def _unrepeated(wide: Sequence[Reported], rows: Sequence[Reported]) -> Iterator[Reported]:
    """Columns of wide tables that are not the figures of a model that has a table of its own."""
    def figures(part: Sequence[Reported]) -> set[tuple[object, ...]]:
        return {(r.task, r.metric, r.filter, r.value) for r in part if r.planned is None}

    own = [figures([r for r in rows if r.model == model]) for model in dict.fromkeys(r.model for r in rows)]
    loose = [figures([replace(r, task="") for r in rows if r.model == model])
             for model in dict.fromkeys(r.model for r in rows)]
    for model in dict.fromkeys(r.model for r in wide):
        column = [r for r in wide if r.model == model]
        untasked = figures([replace(r, task="") for r in column])
        if not any(figures(column) <= has for has in own) and not any(untasked <= has for has in loose):
            yield from column
