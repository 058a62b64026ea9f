"""Owns reading a Markdown record of results: headings name models, tables give scores, lists give metadata.

    document = read_record(Path("record.md"))
    document.rows[0]         Reported(model="Base Llama 3.2 1B", task="hellaswag", metric="acc", value=0.4523, …)

Read are tables with a column of tasks and one of results (errors, n, filters and models where they have
columns), also those that lm-eval prints, and tables with a column per model. A column of the latter that only
repeats a model's figures is left out. The nearest heading names the model, the one above it the section. A heading
with "not evaluated" below it, and no table, is a planned model; code on that line is its command.

Reads Markdown into headings, tables and lines of text, each with its line number, by markdown-it.

    read_blocks("| Task | Result |
|---|---|
| **GSM8K** | 33.51% |")
        [Table(line=1, head=[…], rows=[(3, [Words("GSM8K", bold), Words("33.51%")])])]

Rules of CommonMark that hide text from a reader of records are off: indented tables and lists count, a quotation, a
link and HTML are text as they stand, and a line under a text makes no heading of it.

Owns what a Markdown record says beside its scores, so that a record of ours can answer it.

    read_remarks(blocks, scores)     (Remark(kind="observation", lead="Catastrophic Forgetting", text="…"), …)

Read are rows of a table of models without tasks (sizes), which figures a comparison table sets in bold and which
models it has, definitions of metrics, descriptions of tasks, observations, and open points (``- [ ] …``).
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

_OFF = ("code", "blockquote", "lheading", "reference", "html_block", "html_inline", "link", "image", "autolink",
        "text_join")  # without text_join an escaped character is a token of its own
_BREAKS = ("softbreak", "hardbreak")


@dataclass(frozen=True, slots=True)
class TextWords:
    """The text of a line or cell. parts: (kind, text) in their order; kind is "strong", "code" or ""."""

    parts: tuple[tuple[str, str], ...]

    @property
    def text(self) -> str:
        """All of it without marks, with single spaces."""
        return _joined(self.parts)

    @property
    def bold(self) -> bool:
        """True where all of it is bold."""
        return bool(self.parts) and all(kind == "strong" for kind, _ in self.parts)

    @property
    def code(self) -> str:
        """The first code in it, or ""."""
        return next((text for kind, text in self.parts if kind == "code"), "")

    @property
    def lead(self) -> tuple[str, str]:
        """What is bold or code at the beginning, and the rest; ("", …) where nothing is."""
        first = 1 if self.parts and self.parts[0][0] else 0
        return _joined(self.parts[:first]), _joined(self.parts[first:])


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading. depth: 1 to 6."""

    line: int
    depth: int
    words: TextWords


@dataclass(frozen=True, slots=True)
class Table:
    """A table. rows: (line, cells) of each row below the head; every row has as many cells as the head."""

    line: int
    head: Sequence[TextWords]
    rows: Sequence[tuple[int, Sequence[TextWords]]]


@dataclass(frozen=True, slots=True)
class Text:
    """A line of a paragraph or list. item: "bullet" or "ordered" for the first line of an item, else ""."""

    line: int
    words: TextWords
    item: str = ""


def read_blocks(text: str) -> list[Heading | Table | Text]:
    """The blocks of a document in their order; code blocks are left out."""
    return list(_blocks(_parser().parse(text)))


@cache
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark").enable("table").disable(_OFF)


def _blocks(tokens: Sequence[Token]) -> Iterator[Heading | Table | Text]:
    lists: list[str] = []
    item, at = "", 0
    while at < len(tokens):
        token = tokens[at]
        if token.type == "table_open":
            end = next(i for i in range(at, len(tokens)) if tokens[i].type == "table_close")
            yield _read_table(tokens[at:end])
            at = end
        elif token.type in ("bullet_list_open", "ordered_list_open"):
            lists.append(token.type.partition("_")[0])
        elif token.type in ("bullet_list_close", "ordered_list_close"):
            lists.pop()
        elif token.type == "list_item_open":
            item = lists[-1]
        elif token.type == "list_item_close":
            item = ""
        elif token.type == "inline":
            opening = tokens[at - 1]
            for offset, words in enumerate(_lines(token.children or [])):
                if opening.type == "heading_open":
                    yield Heading(_line(token) + offset, int(opening.tag[1:]), words)
                else:
                    yield Text(_line(token) + offset, words, item)
                item = ""
        at += 1


def _read_table(tokens: Sequence[Token]) -> Table:
    rows: list[tuple[int, list[TextWords]]] = []
    for token in tokens:
        if token.type == "tr_open":
            rows.append((_line(token), []))
        elif token.type == "inline":
            rows[-1][1].append(_words(token.children or []))
    return Table(rows[0][0], rows[0][1], rows[1:])


def _line(token: Token) -> int:
    assert token.map is not None
    return token.map[0] + 1


def _lines(children: Sequence[Token]) -> Iterator[TextWords]:
    """The lines of a paragraph; emphasis that spans lines holds in each of them."""
    depth = 0
    for is_break, group in itertools.groupby(children, key=lambda t: t.type in _BREAKS):
        tokens = list(group)
        if is_break:
            continue
        yield _words(tokens, depth)
        depth += sum({"strong_open": 1, "strong_close": -1}.get(t.type, 0) for t in tokens)


def _words(children: Sequence[Token], depth: int = 0) -> TextWords:
    """depth: how many bold spans are open before the first token."""
    parts: list[tuple[str, str]] = []
    for token in children:
        depth += {"strong_open": 1, "strong_close": -1}.get(token.type, 0)
        if token.type == "text":  # a mark that has no partner is no text: "45.2%*"
            text = token.content.replace("*", "").replace("`", "")
        elif token.type in ("text_special", "code_inline"):
            text = token.content
        else:
            continue
        kind = "strong" if depth else "code" if token.type == "code_inline" else ""
        if parts and parts[-1][0] == kind:
            parts[-1] = (kind, parts[-1][1] + text)
        elif text:
            parts.append((kind, text))
    return TextWords(tuple(parts))


def _joined(parts: Sequence[tuple[str, str]]) -> str:
    return " ".join("".join(text for _, text in parts).split())


_OPEN = re.compile(r"\[ \]\s+(\S.*)")
_OBSERVED = re.compile(r"(?i)\b(observations?|findings?|conclusions?|takeaways?)\b")
_DESCRIBED = re.compile(r"(?i)\b(descriptions?|definitions?|tasks|metrics)\b")
_SPREAD = re.compile(r"\s*(?:±|\+/-)\s*")
_LIMIT = 200  # of each kind
_LEAD = 120  # characters


def read_remarks(blocks: Sequence[Heading | Table | Text], scores: Sequence[Reported]) -> tuple[Remark, ...]:
    """The remarks of a document in their order; ``scores``: what was read of it, to name the models of columns."""
    found: list[Remark] = []
    heading = ""
    for block in blocks:
        if isinstance(block, Heading):
            heading = block.words.text
        elif isinstance(block, Table):
            found += _table(block, scores)
        elif block.item:
            found += _item(block, heading)
    return tuple(r for kind in dict.fromkeys(r.kind for r in found)
                 for r in [r for r in found if r.kind == kind][:_LIMIT])


def _item(item: Text, heading: str) -> Iterator[Remark]:
    lead, rest = item.words.lead
    lead, rest = lead.rstrip(": "), rest.lstrip(": ")
    if item.item == "bullet" and (task := _OPEN.fullmatch(item.words.text)):
        yield Remark(kind="future", text=task[1], line=item.line)
    elif lead and rest and len(lead) <= _LEAD:
        if catalog.is_metric(lead):
            metric, filter_ = catalog.metric_named(lead)
            yield Remark(kind="definition", metric=metric, filter=filter_, lead=lead, text=rest, line=item.line)
        elif _OBSERVED.search(heading):
            yield Remark(kind="observation", lead=lead, text=rest, line=item.line)
        elif _DESCRIBED.search(heading):
            yield Remark(kind="description", task=catalog.task_named(lead), lead=lead, text=rest, line=item.line)


def _table(table: Table, scores: Sequence[Reported]) -> Iterator[Remark]:
    titles = [cell.text for cell in table.head]
    lower = [t.lower() for t in titles]
    if "model" in lower and "task" not in lower and any("param" in t for t in lower):
        at = lower.index("model")
        for line, words in table.rows:
            cells = [cell.text for cell in words]
            if cells[at]:
                facts = {t: c for i, (t, c) in enumerate(zip(titles, cells, strict=True)) if i != at and c}
                yield Remark(kind="size", model=cells[at], facts=facts, line=line)
    elif "task" in lower and not {"result", "value", "score", "model"} & set(lower):
        for at, title in enumerate(titles):
            if lower[at] not in ("task", "metric", "filter", "n"):
                yield from _column(at, title, lower, table.rows, scores)


def _column(at: int, title: str, lower: Sequence[str], rows: Sequence[tuple[int, Sequence[TextWords]]],
            scores: Sequence[Reported]) -> Iterator[Remark]:
    """A model's column of a comparison table: whose figures it repeats, and which of them are bold."""
    found = []
    task = ""
    for number, cells in rows:
        named = {name: cells[i].text for i, name in enumerate(lower)}
        task = catalog.task_named(named.get("task") or task)
        metric, filter_ = catalog.metric_named(named.get("metric") or "accuracy", named.get("filter") or "none")
        found.append((number, task, metric, filter_, cells[at]))
    shown = {(metric, filter_, _SPREAD.split(cell.text)[0]) for _, _, metric, filter_, cell in found}
    own = (m for m in dict.fromkeys(s.model for s in scores)
           if shown & {(s.metric, s.filter, s.value_text) for s in scores if s.model == m} == shown)
    model = next(own, title)
    yield Remark(kind="column", model=model, lead=title)
    for number, task, metric, filter_, cell in found:
        if cell.bold:
            yield Remark(kind="bold", model=model, task=task, metric=metric, filter=filter_, text=cell.text,
                         line=number)


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
class _ModelDraft:
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
        drafts: list[_ModelDraft] = []
        for line, words in table.rows:
            cells = [cell.text for cell in words]
            row = {role: cells[i] for i, role in roles.items()}
            carried |= {k: v for k, v in row.items() if k in ("task", "filter") and v}
            row |= {k: v for k, v in carried.items() if not row.get(k)}
            if "result" in roles.values():
                drafts.append(_ModelDraft(line, row.get("model") or self.places[-1].title, row, row.get("result", "")))
            else:  # a column per model
                drafts += [_ModelDraft(line, head[i], row, cell) for i, cell in enumerate(cells)
                           if i not in roles and _is_figure(cell)]
        percent = any(d.beyond_one for d in drafts)
        place = self.places[-1]
        found = [score for d in drafts if (score := self._score(d, percent)) is not None]
        if "result" in roles.values():
            place.rows += [replace(r, section=place.section) for r in found]
        else:
            self.wide += [replace(r, section=place.title) for r in found]

    def _score(self, draft: _ModelDraft, percent: bool) -> Reported | None:
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

    def _figure(self, draft: _ModelDraft, text: str, *, percent: bool | None) -> Figure:
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
