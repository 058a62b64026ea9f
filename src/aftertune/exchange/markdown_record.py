"""Reads Markdown records of results: scores from tables, models from headings, metadata and statements from lists.

    document = read_record(Path("record.md"))
    document.rows[0]         Reported(model="Base Llama 3.2 1B", task="hellaswag", metric="acc", value=0.4523, …)
    document.remarks[0]      Remark(kind="observation", lead="Catastrophic Forgetting", text="…")

Two kinds of tables have scores: tables with a column of tasks and one of results (also as lm-eval prints them), and
tables with one column per model. Columns for errors, n, filters and models are optional. A model's column that only
repeats scores of that model from other tables is left out. The nearest heading names the model, the heading above it
the section. A heading with "not evaluated" below it and no table is a planned model; code on that line is its command.

Remarks are what a document states beside its scores: the rows of a table of models (sizes), the models of a comparison
table and its bold figures, definitions of metrics, descriptions of tasks, observations, and open points (``- [ ] …``).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from aftertune import catalog
from aftertune.errors import InputError
from aftertune.exchange.files import MIB, read_text
from aftertune.stats.audit import Figure
from aftertune.values.reported import Remark, Reported

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

# --- Markdown as headings, tables and lines of text ---

#: Rules of CommonMark that are off, because they would hide text of a record: indented tables and lists are read, and
#: quotations, links and HTML are plain text. Without text_join an escaped character is a separate token.
_DISABLED = ("code", "blockquote", "lheading", "reference", "html_block", "html_inline", "link", "image", "autolink",
             "text_join")
_BREAKS = ("softbreak", "hardbreak")


@dataclass(frozen=True, slots=True)
class InlineText:
    """The text of a line or cell. spans: (kind, text) in order; kind is "strong", "code" or ""."""

    spans: tuple[tuple[str, str], ...]

    @property
    def text(self) -> str:
        """The text without marks, with single spaces."""
        return _joined(self.spans)

    @property
    def bold(self) -> bool:
        """True if all of the text is bold."""
        return bool(self.spans) and all(kind == "strong" for kind, _ in self.spans)

    @property
    def code(self) -> str:
        """The first code span, or ""."""
        return next((text for kind, text in self.spans if kind == "code"), "")

    @property
    def lead(self) -> tuple[str, str]:
        """The bold or code span at the start, or "", and the rest."""
        first = 1 if self.spans and self.spans[0][0] else 0
        return _joined(self.spans[:first]), _joined(self.spans[first:])


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading. depth: 1 to 6."""

    line: int
    depth: int
    content: InlineText


@dataclass(frozen=True, slots=True)
class Table:
    """A table. rows: (line, cells) of each row below the head; every row has as many cells as the head."""

    line: int
    head: Sequence[InlineText]
    rows: Sequence[tuple[int, Sequence[InlineText]]]


@dataclass(frozen=True, slots=True)
class Text:
    """A line of a paragraph or list. item: "bullet" or "ordered" for the first line of an item, else ""."""

    line: int
    content: InlineText
    item: str = ""


def read_blocks(text: str) -> list[Heading | Table | Text]:
    """The blocks of a Markdown document in order, each with its line number; code blocks are left out.

    >>> read_blocks("| Task | Result |\\n|---|---|\\n| **GSM8K** | 33.51% |")
    [Table(line=1, head=[…], rows=[(3, [InlineText((("strong", "GSM8K"),)), InlineText((("", "33.51%"),))])])]
    """
    return list(_blocks(_parser().parse(text)))


@cache
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark").enable("table").disable(_DISABLED)


def _blocks(tokens: Sequence[Token]) -> Iterator[Heading | Table | Text]:
    lists: list[str] = []
    item, position = "", 0
    while position < len(tokens):
        token = tokens[position]
        if token.type == "table_open":
            end = next(i for i in range(position, len(tokens)) if tokens[i].type == "table_close")
            yield _read_table(tokens[position:end])
            position = end
        elif token.type in ("bullet_list_open", "ordered_list_open"):
            lists.append(token.type.partition("_")[0])
        elif token.type in ("bullet_list_close", "ordered_list_close"):
            lists.pop()
        elif token.type == "list_item_open":
            item = lists[-1]
        elif token.type == "list_item_close":
            item = ""
        elif token.type == "inline":
            opening = tokens[position - 1]
            for offset, content in enumerate(_lines(token.children or [])):
                if opening.type == "heading_open":
                    yield Heading(_line(token) + offset, int(opening.tag[1:]), content)
                else:
                    yield Text(_line(token) + offset, content, item)
                item = ""
        position += 1


def _read_table(tokens: Sequence[Token]) -> Table:
    rows: list[tuple[int, list[InlineText]]] = []
    for token in tokens:
        if token.type == "tr_open":
            rows.append((_line(token), []))
        elif token.type == "inline":
            rows[-1][1].append(_inline(token.children or []))
    return Table(rows[0][0], rows[0][1], rows[1:])


def _line(token: Token) -> int:
    assert token.map is not None
    return token.map[0] + 1


def _lines(children: Sequence[Token]) -> Iterator[InlineText]:
    """The lines of a paragraph; bold text may continue over several lines."""
    depth = 0
    for is_break, group in itertools.groupby(children, key=lambda t: t.type in _BREAKS):
        tokens = list(group)
        if is_break:
            continue
        yield _inline(tokens, depth)
        depth += sum({"strong_open": 1, "strong_close": -1}.get(t.type, 0) for t in tokens)


def _inline(children: Sequence[Token], depth: int = 0) -> InlineText:
    """The text of some tokens. depth: number of bold spans that are open before the first token."""
    spans: list[tuple[str, str]] = []
    for token in children:
        depth += {"strong_open": 1, "strong_close": -1}.get(token.type, 0)
        if token.type == "text":  # a mark without a partner is not text: "45.2%*"
            text = token.content.replace("*", "").replace("`", "")
        elif token.type in ("text_special", "code_inline"):
            text = token.content
        else:
            continue
        kind = "strong" if depth else "code" if token.type == "code_inline" else ""
        if spans and spans[-1][0] == kind:
            spans[-1] = (kind, spans[-1][1] + text)
        elif text:
            spans.append((kind, text))
    return InlineText(tuple(spans))


def _joined(spans: Sequence[tuple[str, str]]) -> str:
    return " ".join("".join(text for _, text in spans).split())


# --- Remarks: what a document states beside its scores ---

_OPEN_POINT = re.compile(r"\[ \]\s+(\S.*)")
_OBSERVATIONS = re.compile(r"(?i)\b(observations?|findings?|conclusions?|takeaways?)\b")
_DESCRIPTIONS = re.compile(r"(?i)\b(descriptions?|definitions?|tasks|metrics)\b")
_PLUS_MINUS = re.compile(r"\s*(?:±|\+/-)\s*")
#: The most remarks of each kind, and the most characters of a lead.
_MAX_REMARKS = 200
_MAX_LEAD = 120


def read_remarks(blocks: Sequence[Heading | Table | Text], scores: Sequence[Reported]) -> tuple[Remark, ...]:
    """The remarks of a document, in order within each kind. scores: of the document, to name the models of columns."""
    remarks: list[Remark] = []
    heading = ""
    for block in blocks:
        if isinstance(block, Heading):
            heading = block.content.text
        elif isinstance(block, Table):
            remarks += _table_remarks(block, scores)
        elif block.item:
            remarks += _item_remarks(block, heading)
    return tuple(r for kind in dict.fromkeys(r.kind for r in remarks)
                 for r in [r for r in remarks if r.kind == kind][:_MAX_REMARKS])


def _item_remarks(item: Text, heading: str) -> Iterator[Remark]:
    """The remark of a list item below ``heading``."""
    lead, rest = item.content.lead
    lead, rest = lead.rstrip(": "), rest.lstrip(": ")
    if item.item == "bullet" and (open_point := _OPEN_POINT.fullmatch(item.content.text)):
        yield Remark(kind="future", text=open_point[1], line=item.line)
    elif lead and rest and len(lead) <= _MAX_LEAD:
        if catalog.is_metric(lead):
            metric, filter_ = catalog.metric_named(lead)
            yield Remark(kind="definition", metric=metric, filter=filter_, lead=lead, text=rest, line=item.line)
        elif _OBSERVATIONS.search(heading):
            yield Remark(kind="observation", lead=lead, text=rest, line=item.line)
        elif _DESCRIPTIONS.search(heading):
            yield Remark(kind="description", task=catalog.task_named(lead), lead=lead, text=rest, line=item.line)


def _table_remarks(table: Table, scores: Sequence[Reported]) -> Iterator[Remark]:
    """Sizes from a table of models; columns and bold figures from a table with one column per model."""
    titles = [cell.text for cell in table.head]
    lower = [t.lower() for t in titles]
    if "model" in lower and "task" not in lower and any("param" in t for t in lower):
        model_column = lower.index("model")
        for line, row in table.rows:
            cells = [cell.text for cell in row]
            if cells[model_column]:
                facts = {t: c for i, (t, c) in enumerate(zip(titles, cells, strict=True)) if i != model_column and c}
                yield Remark(kind="size", model=cells[model_column], facts=facts, line=line)
    elif "task" in lower and not {"result", "value", "score", "model"} & set(lower):
        for column, title in enumerate(titles):
            if lower[column] not in ("task", "metric", "filter", "n"):
                yield from _column_remarks(column, title, lower, table.rows, scores)


def _column_remarks(column: int, title: str, titles: Sequence[str], rows: Sequence[tuple[int, Sequence[InlineText]]],
                    scores: Sequence[Reported]) -> Iterator[Remark]:
    """A model's column of a comparison table: which model it repeats, and which of its figures are bold.

    titles: of all columns, in lower case.
    """
    cells = []
    task = ""
    for number, row in rows:
        by_title = {name: row[i].text for i, name in enumerate(titles)}
        task = catalog.task_named(by_title.get("task") or task)
        metric, filter_ = catalog.metric_named(by_title.get("metric") or "accuracy", by_title.get("filter") or "none")
        cells.append((number, task, metric, filter_, row[column]))
    figures = {(metric, filter_, _PLUS_MINUS.split(cell.text)[0]) for _, _, metric, filter_, cell in cells}
    repeated = (m for m in dict.fromkeys(s.model for s in scores)
                if figures & {(s.metric, s.filter, s.value_text) for s in scores if s.model == m} == figures)
    model = next(repeated, title)
    yield Remark(kind="column", model=model, lead=title)
    for number, task, metric, filter_, cell in cells:
        if cell.bold:
            yield Remark(kind="bold", model=model, task=task, metric=metric, filter=filter_, text=cell.text,
                         line=number)


# --- Scores ---

#: The largest record, in bytes.
LIMIT = 16 * MIB

_FACT = re.compile(r"(?!\[[ xX]\])([^:]{1,80}?)\s*:\s*(\S.*)")
_NOT_EVALUATED = re.compile(r"(?i)\bnot\b[^.|]{0,12}\bevaluated\b")
_RULE = re.compile(r"\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?")
_NUMBERED = re.compile(r"\d+\.\s+")
_ABSENT = frozenset({"", "-", "–", "—", "n/a", "na", "nan", "none", "?", "tbd"})
#: The role of a column, by the start of its heading.
_ROLES = (("task", ("task", "benchmark", "dataset")), ("filter", ("filter",)), ("metric", ("metric", "measure")),
          ("error", ("error", "stderr", "std", "standard error", "±", "se ", "uncertainty")),
          ("result", ("result", "value", "score")), ("n", ("n", "items", "questions", "samples")),
          ("model", ("model",)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """What a record states. rows: scores and planned models; remarks: everything else that is read."""

    source: str
    rows: tuple[Reported, ...]
    remarks: tuple[Remark, ...] = ()

    @property
    def scores(self) -> tuple[Reported, ...]:
        """The rows with a score, without planned models."""
        return tuple(r for r in self.rows if r.planned is None)


def read_record(path: Path, *, source: str | None = None) -> Document:
    """Read a Markdown record. source: its name in the ledger, by default the file's.

    Raises InputError with file and line, also if the record has no table of scores.
    """
    reader = _Reader(path, source or path.name)
    blocks = read_blocks(read_text(path, limit=LIMIT))
    reader.read(blocks)
    document = reader.document()
    return replace(document, remarks=read_remarks(blocks, document.scores))


@dataclass(slots=True)
class _HeadingContent:
    """A heading: its title, the section above it, and what was read below it. planned: (command, line)."""

    title: str
    section: str
    rows: list[Reported] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    planned: tuple[str, int] | None = None


@dataclass(frozen=True, slots=True)
class _ScoreCell:
    """A score as printed, before it is known whether the table's shares are percent.

    row: the cells of its row by role; cell: its value, perhaps with ± error.
    """

    line: int
    model: str
    row: Mapping[str, str]
    cell: str

    @property
    def value(self) -> str:
        return _PLUS_MINUS.split(self.cell, maxsplit=1)[0].strip()

    @property
    def error(self) -> str:
        _, *errors = _PLUS_MINUS.split(self.cell, maxsplit=1)
        return (self.row.get("error") or "".join(errors)).strip().lstrip("±").strip()

    @property
    def metric(self) -> tuple[str, str]:
        """(metric, filter); in a table without a column of metrics the scores are accuracies."""
        return catalog.metric_named(self.row.get("metric") or "accuracy", self.row.get("filter") or "none")

    @property
    def beyond_one(self) -> bool:
        """True for a share above 1 without a percent sign: it must be in percent."""
        return catalog.is_share(self.metric[0]) and "%" not in self.cell and _is_figure(self.cell) and \
            Figure.parse(self.value).value > 1


class _Reader:
    """Collects the scores of one document, block by block."""

    def __init__(self, path: Path, source: str) -> None:
        self.path = path
        self.source = source
        self.headings: list[tuple[int, str]] = []
        self.contents: list[_HeadingContent] = [_HeadingContent(source, "")]
        self.wide: list[Reported] = []  # from tables with one column per model
        self.previous = ""  # the line of text before

    def read(self, blocks: Sequence[Heading | Table | Text]) -> None:
        """Read the blocks of the document. Raises InputError."""
        for block in blocks:
            if isinstance(block, Table):
                self._table(block)
            elif isinstance(block, Heading):
                self._heading(block)
            else:
                self._text(block)

    def _heading(self, heading: Heading) -> None:
        title = _NUMBERED.sub("", heading.content.text, count=1)
        self.headings = [h for h in self.headings if h[0] < heading.depth] + [(heading.depth, title)]
        above = [t for d, t in self.headings[:-1] if d > 1]
        self.contents.append(_HeadingContent(title, above[-1] if above else title))

    def _text(self, line: Text) -> None:
        content = self.contents[-1]
        text = line.content.text
        if line.item == "bullet" and (fact := _FACT.fullmatch(text)):
            if not catalog.is_metric(fact[1]):  # that is a definition
                content.facts[fact[1]] = fact[2]
        elif _NOT_EVALUATED.search(text):
            content.planned = (line.content.code, line.line)
        elif _RULE.fullmatch(text) and "task" in _roles(re.split(r"\s*\|\s*", self.previous)).values():
            raise InputError(f"{self.path}:{line.line}: the line below a table's head has another number of columns "
                             f"than the head ({self.previous[:60]!r}); use the same number of | in both")
        self.previous = text

    def _table(self, table: Table) -> None:
        head = [cell.text for cell in table.head]
        roles = _roles(head)
        if "task" not in roles.values():
            return
        carried: dict[str, str] = {}  # task and filter: an empty cell repeats the one above
        scores: list[_ScoreCell] = []
        for line, inline in table.rows:
            cells = [cell.text for cell in inline]
            row = {role: cells[i] for i, role in roles.items()}
            carried |= {k: v for k, v in row.items() if k in ("task", "filter") and v}
            row |= {k: v for k, v in carried.items() if not row.get(k)}
            if "result" in roles.values():
                scores.append(_ScoreCell(line, row.get("model") or self.contents[-1].title, row, row.get("result", "")))
            else:  # one column per model
                scores += [_ScoreCell(line, head[i], row, cell) for i, cell in enumerate(cells)
                           if i not in roles and _is_figure(cell)]
        percent = any(s.beyond_one for s in scores)
        content = self.contents[-1]
        rows = [reported for s in scores if (reported := self._reported(s, percent)) is not None]
        if "result" in roles.values():
            content.rows += [replace(r, section=content.section) for r in rows]
        else:
            self.wide += [replace(r, section=content.title) for r in rows]

    def _reported(self, score: _ScoreCell, percent: bool) -> Reported | None:
        """The score with its error; None for an empty cell. percent: shares without a unit are percent."""
        value, error, row = score.value, score.error, score.row
        if value.lower() in _ABSENT or not row.get("task"):
            return None
        metric, filter_ = score.metric
        task = catalog.task_named(row["task"])
        stated = re.match(r"[\d,]+", row.get("n", ""))
        n = int(stated[0].replace(",", "")) if stated and stated[0].strip(",") else None
        figure = self._figure(score, value, percent=True if percent and catalog.is_share(metric) else None)
        stderr = None if error.lower() in _ABSENT else self._figure(score, error, percent=figure.scale == 100)
        return Reported(
            source=self.source, model=score.model, task=task, metric=metric, filter=filter_, value=figure.fraction,
            stderr=stderr.fraction if stderr else None, n=n or catalog.hub_items(task),
            n_source="stated" if n else "known" if catalog.hub_items(task) else "",
            value_text=_with_unit(value, figure), stderr_text=_with_unit(error, figure) if stderr else "",
            line=score.line)

    def _figure(self, score: _ScoreCell, text: str, *, percent: bool | None) -> Figure:
        try:
            return Figure.parse(text, percent=percent)
        except ValueError as error:
            raise InputError(f"{self.path}:{score.line}: the result of {score.row['task'][:60]!r}: {error}; write a "
                             "number, with % for percent, or – if there is none") from None

    def document(self) -> Document:
        """Everything that was read. Raises InputError if there is no score."""
        rows: list[Reported] = []
        for content in self.contents:
            rows += [replace(r, facts=content.facts) for r in content.rows]
            if content.planned is not None and not content.rows:
                command, line = content.planned
                rows.append(Reported(source=self.source, model=_evaluated_name(content.title), section=content.section,
                                     facts=content.facts, planned=command, line=line))
        rows += _not_repeated(self.wide, rows)
        if not any(r.planned is None for r in rows):
            raise InputError(f"{self.path}: no table of scores was found; a table needs a column of tasks (Task) and "
                             "one of results (Result, Value or Score), or one column per model")
        return Document(source=self.source, rows=tuple(rows))


def _is_figure(cell: str) -> bool:
    try:
        Figure.parse(_PLUS_MINUS.split(cell, maxsplit=1)[0])
    except ValueError:
        return False
    return True


def _with_unit(text: str, figure: Figure) -> str:
    """A printed figure with its percent sign."""
    return f"{text}%" if figure.scale == 100 and "%" not in text else text


def _roles(head: Sequence[str]) -> dict[int, str]:
    """Index of a column -> its role; only the first column with a role has it."""
    roles: dict[int, str] = {}
    for i, title in enumerate(head):
        text = title.lower() + " "
        role = next((role for role, starts in _ROLES
                     if role not in roles.values() and any(_starts_with(text, s) for s in starts)), None)
        if role is not None:
            roles[i] = role
    return roles


def _starts_with(text: str, start: str) -> bool:
    """True if ``start`` is the first word or words of a heading; "n" must be all of it."""
    return text == "n " if start == "n" else bool(re.match(re.escape(start) + r"(?:s?\b|$|(?<=\W))", text))


def _evaluated_name(title: str) -> str:
    """The name of a planned model without "(Not Evaluated)"."""
    return re.sub(r"\s*\((?i:not (?:yet )?evaluated)\)", "", title)


def _not_repeated(wide: Sequence[Reported], rows: Sequence[Reported]) -> Iterator[Reported]:
    """The columns of ``wide`` that do not repeat the scores of a model in ``rows``, with or without their tasks."""
    def figures(scores: Sequence[Reported]) -> set[tuple[object, ...]]:
        return {(r.task, r.metric, r.filter, r.value) for r in scores if r.planned is None}

    models = dict.fromkeys(r.model for r in rows)
    with_task = [figures([r for r in rows if r.model == model]) for model in models]
    without_task = [figures([replace(r, task="") for r in rows if r.model == model]) for model in models]
    for model in dict.fromkeys(r.model for r in wide):
        column = [r for r in wide if r.model == model]
        taskless = figures([replace(r, task="") for r in column])
        if not any(figures(column) <= own for own in with_task) and not any(taskless <= own for own in without_task):
            yield from column
