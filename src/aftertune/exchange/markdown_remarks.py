"""Reads what a Markdown document states beside its scores.

    read_remarks(blocks, scores)[0]      Remark(kind="observation", lead="Catastrophic Forgetting", text="…")

These are the rows of a table of models (sizes), the models of a comparison table and its bold figures, definitions of
metrics, descriptions of tasks, observations, and open points (``- [ ] …``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence, Set

from aftertune import bounds, catalog
from aftertune.exchange.markdown_blocks import Block, Heading, InlineText, Table, Text
from aftertune.exchange.table_grids import MAX_COLUMNS
from aftertune.values.reported import Remark, Reported

_OPEN_POINT = re.compile(r"\[ \]\s+(\S.*)")
_OBSERVATIONS = re.compile(r"(?i)\b(observations?|findings?|conclusions?|takeaways?)\b")
_DESCRIPTIONS = re.compile(r"(?i)\b(descriptions?|definitions?|tasks|metrics)\b")
_PLUS_MINUS = re.compile(r"\s*(?:±|\+/-)\s*")
#: The most remarks of each kind, and the most characters of a lead.
_MAX_REMARKS, _MAX_LEAD = bounds.RECORD_REMARKS, bounds.RECORD_LEAD

#: (metric, filter, printed value) of a score.
_Figure = tuple[str, str, str]
#: (line, task, metric, filter, cells) of a row.
_NamedRow = tuple[int, str, str, str, Sequence[InlineText]]


def read_remarks(blocks: Sequence[Block], scores: Sequence[Reported]) -> tuple[Remark, ...]:
    """The remarks of a document, in order within each kind. scores: of the document, to name the models of columns."""
    remarks: list[Remark] = []
    of_models: dict[str, set[_Figure]] = {}
    for s in scores:
        of_models.setdefault(s.model, set()).add((s.metric, s.filter, s.value_text))
    heading = ""
    for block in blocks:
        if isinstance(block, Heading):
            heading = block.content.text
        elif isinstance(block, Table):
            remarks += _table_remarks(block, of_models)
        elif isinstance(block, Text) and block.item:
            remarks += _item_remarks(block, heading)
    kinds: dict[str, list[Remark]] = {}
    for r in remarks:
        kinds.setdefault(r.kind, []).append(r)
    notes = (Remark(kind="note", text=f"{len(listed)} remarks of the kind {kind!r}: only the first {_MAX_REMARKS} were "
                                      "read") for kind, listed in kinds.items() if len(listed) > _MAX_REMARKS)
    return (*(r for listed in kinds.values() for r in listed[:_MAX_REMARKS]), *notes)


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


def _table_remarks(table: Table, of_models: Mapping[str, Set[_Figure]]) -> Iterator[Remark]:
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
    elif len(titles) <= MAX_COLUMNS and "task" in lower and not {"result", "value", "score", "model"} & set(lower):
        rows = list(_named_rows(lower, table.rows))
        for column, title in enumerate(titles):
            if lower[column] not in ("task", "metric", "filter", "n"):
                yield from _column_remarks(column, title, rows, of_models)


def _named_rows(titles: Sequence[str], rows: Sequence[tuple[int, Sequence[InlineText]]]) -> Iterator[_NamedRow]:
    """The rows of a comparison table with what they are about. titles: of all columns, in lower case."""
    task = ""
    for number, row in rows:
        by_title = {name: row[i].text for i, name in enumerate(titles)}
        task = catalog.task_named(by_title.get("task") or task)
        metric, filter_ = catalog.metric_named(by_title.get("metric") or "accuracy", by_title.get("filter") or "none")
        yield number, task, metric, filter_, row


def _column_remarks(column: int, title: str, rows: Sequence[_NamedRow], of_models: Mapping[str, Set[_Figure]]
                    ) -> Iterator[Remark]:
    """A model's column of a comparison table: which model it repeats, and which of its figures are bold.

    of_models: model -> its scores in the whole document.
    """
    cells = []
    for number, task, metric, filter_, row in rows:
        cells.append((number, task, metric, filter_, row[column]))
    figures = {(metric, filter_, _PLUS_MINUS.split(cell.text)[0]) for _, _, metric, filter_, cell in cells}
    model = next((m for m, own in of_models.items() if figures <= own), title)
    if model == title and title not in of_models:
        return  # a column that is no model, such as a difference
    yield Remark(kind="column", model=model, lead=title)
    for number, task, metric, filter_, cell in cells:
        if cell.bold:
            yield Remark(kind="bold", model=model, task=task, metric=metric, filter=filter_, text=cell.text,
                         line=number)


