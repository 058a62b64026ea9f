"""Owns what a Markdown record says beside its scores, so that a record of ours can answer it.

    read_remarks(text, scores)      (Remark(kind="observation", lead="Catastrophic Forgetting", text="…"), …)

Read are rows of a table of models without tasks (sizes), which figures a comparison table sets in bold and which
models it has, definitions of metrics, descriptions of tasks, observations, and open points (``- [ ] …``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from aftertune.exchange import known
from aftertune.exchange.inline import HEADING, RULE, cells_of, plain_text, raw_cells
from aftertune.reported import Remark, Reported

_ITEM = re.compile(r"\s*(?:\d+\.|[-*+])\s+(?!\[[ xX]\])(\*\*|`)(.{1,120}?)\1:?\s*:?\s*(\S.*)")
_OPEN = re.compile(r"\s*[-*+]\s+\[ \]\s+(\S.*)")
_OBSERVED = re.compile(r"(?i)\b(observations?|findings?|conclusions?|takeaways?)\b")
_DESCRIBED = re.compile(r"(?i)\b(descriptions?|definitions?|tasks|metrics)\b")
_SPREAD = re.compile(r"\s*(?:±|\+/-)\s*")
_LIMIT = 200  # of each kind


def read_remarks(text: str, scores: Sequence[Reported]) -> tuple[Remark, ...]:
    """The remarks of a document in their order; ``scores``: what was read of it, to name the models of columns."""
    found: list[Remark] = []
    lines = text.splitlines()
    heading, at, fenced = "", 0, False
    while at < len(lines):
        line = lines[at]
        fenced ^= line.lstrip().startswith(("```", "~~~"))
        if fenced:
            at += 1
        elif "|" in line and at + 1 < len(lines) and RULE.fullmatch(lines[at + 1].strip()):
            end = next((i for i in range(at + 2, len(lines)) if "|" not in lines[i]), len(lines))
            found += _table(line, lines[at + 2:end], at + 1, scores)
            at = end
        else:
            if title := HEADING.fullmatch(line.strip()):
                heading = plain_text(title[2])
            else:
                found += _line(line, heading, at + 1)
            at += 1
    return tuple(r for kind in dict.fromkeys(r.kind for r in found)
                 for r in [r for r in found if r.kind == kind][:_LIMIT])


def _line(line: str, heading: str, number: int) -> Iterator[Remark]:
    if task := _OPEN.fullmatch(line):
        yield Remark(kind="future", text=plain_text(task[1]), line=number)
    elif item := _ITEM.fullmatch(line):
        lead, text = plain_text(item[2]).rstrip(": "), plain_text(item[3]).lstrip(": ")
        if known.is_metric(lead):
            metric, filter_ = known.metric_named(lead)
            yield Remark(kind="definition", metric=metric, filter=filter_, lead=lead, text=text, line=number)
        elif _OBSERVED.search(heading):
            yield Remark(kind="observation", lead=lead, text=text, line=number)
        elif _DESCRIBED.search(heading):
            yield Remark(kind="description", task=known.task_named(lead), lead=lead, text=text, line=number)


def _table(head: str, body: Sequence[str], number: int, scores: Sequence[Reported]) -> Iterator[Remark]:
    titles = cells_of(head)
    lower = [t.lower() for t in titles]
    if "model" in lower and "task" not in lower and any("param" in t for t in lower):
        at = lower.index("model")
        for offset, line in enumerate(body, start=2):
            cells = cells_of(line)
            if at < len(cells) and cells[at]:
                facts = {t: c for i, (t, c) in enumerate(zip(titles, cells, strict=False)) if i != at and c}
                yield Remark(kind="size", model=cells[at], facts=facts, line=number + offset)
    elif "task" in lower and not {"result", "value", "score", "model"} & set(lower):
        for at, title in enumerate(titles):
            if lower[at] not in ("task", "metric", "filter", "n"):
                rows = [(number + i, raw_cells(line)) for i, line in enumerate(body, start=2)]
                yield from _column(at, title, lower, rows, scores)


def _column(at: int, title: str, lower: Sequence[str], rows: Sequence[tuple[int, list[str]]],
            scores: Sequence[Reported]) -> Iterator[Remark]:
    """A model's column of a comparison table: whose figures it repeats, and which of them are bold."""
    found = []
    task = ""
    for number, cells in rows:
        named = {name: plain_text(cells[i]) for i, name in enumerate(lower) if i < len(cells)}
        task = known.task_named(named.get("task") or task)
        metric, filter_ = known.metric_named(named.get("metric") or "accuracy", named.get("filter") or "none")
        if at < len(cells):
            found.append((number, task, metric, filter_, cells[at]))
    shown = {(metric, filter_, _SPREAD.split(plain_text(cell))[0]) for _, _, metric, filter_, cell in found}
    own = (m for m in dict.fromkeys(s.model for s in scores)
           if shown & {(s.metric, s.filter, s.value_text) for s in scores if s.model == m} == shown)
    model = next(own, title)
    yield Remark(kind="column", model=model, lead=title)
    for number, task, metric, filter_, cell in found:
        if cell.startswith("**") and cell.endswith("**"):
            yield Remark(kind="bold", model=model, task=task, metric=metric, filter=filter_, text=plain_text(cell),
                         line=number)
