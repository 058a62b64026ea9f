"""Owns what a Markdown record says beside its scores, so that a record of ours can answer it.

    read_remarks(blocks, scores)     (Remark(kind="observation", lead="Catastrophic Forgetting", text="…"), …)

Read are rows of a table of models without tasks (sizes), which figures a comparison table sets in bold and which
models it has, definitions of metrics, descriptions of tasks, observations, and open points (``- [ ] …``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from aftertune import catalog
from aftertune.exchange.inline import Heading, Table, Text, Words
from aftertune.reported import Remark, Reported

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


def _column(at: int, title: str, lower: Sequence[str], rows: Sequence[tuple[int, Sequence[Words]]],
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
