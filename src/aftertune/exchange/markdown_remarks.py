"""Reads what a Markdown document states beside its scores.

    read_remarks(blocks, scores)[0]      Remark(kind="observation", lead="Catastrophic Forgetting", text="…")

These are the rows of a table of models (sizes), the models of a comparison table and its bold figures, definitions of
metrics, descriptions of tasks, observations, and open points (``- [ ] …``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from aftertune import catalog
from aftertune.exchange.markdown_blocks import Block, Heading, InlineText, Table, Text
from aftertune.values.reported import Remark, Reported

_OPEN_POINT = re.compile(r"\[ \]\s+(\S.*)")
_OBSERVATIONS = re.compile(r"(?i)\b(observations?|findings?|conclusions?|takeaways?)\b")
_DESCRIPTIONS = re.compile(r"(?i)\b(descriptions?|definitions?|tasks|metrics)\b")
_PLUS_MINUS = re.compile(r"\s*(?:±|\+/-)\s*")
#: The most remarks of each kind, and the most characters of a lead.
_MAX_REMARKS = 200
_MAX_LEAD = 120


def read_remarks(blocks: Sequence[Block], scores: Sequence[Reported]) -> tuple[Remark, ...]:
    """The remarks of a document, in order within each kind. scores: of the document, to name the models of columns."""
    remarks: list[Remark] = []
    heading = ""
    for block in blocks:
        if isinstance(block, Heading):
            heading = block.content.text
        elif isinstance(block, Table):
            remarks += _table_remarks(block, scores)
        elif isinstance(block, Text) and block.item:
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
    if model == title and all(s.model != title for s in scores):
        return  # a column that is no model, such as a difference
    yield Remark(kind="column", model=model, lead=title)
    for number, task, metric, filter_, cell in cells:
        if cell.bold:
            yield Remark(kind="bold", model=model, task=task, metric=metric, filter=filter_, text=cell.text,
                         line=number)


