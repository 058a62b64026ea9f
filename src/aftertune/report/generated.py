"""What generated answers look like: format failures told apart from wrong answers, and texts side by side.

    format_table(evaluation, answers)[0]
        FormatLine(title="GSM8K (chain of thought)", n=8, cut_off=5, no_answer=2, other_form=4, no_end=8, empty=0)

The counts are those of `aftertune.stats.form`: *cut off* at the token limit, *no answer* to extract, *other form*
(found, but not by a stricter filter), *no end* (the model did not write its end token), *empty*.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from aftertune.catalog import MetricKey
from aftertune.report import format as fmt
from aftertune.report.names import task_title
from aftertune.stats.form import count_forms, generated
from aftertune.values import Answer, Comparison, ComparisonRow, Evaluation, FormCounts, FormShift

#: Answers by evaluation id.
Answers = Mapping[str, Sequence[Answer]]

_EXAMPLES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatLine:
    """Counts over one generated task of one evaluation; an answer can be in more than one column."""

    title: str
    n: int
    cut_off: int
    no_answer: int
    other_form: int
    no_end: int
    empty: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """One item that became right or wrong, with both generated texts."""

    title: str
    index: int
    direction: str
    base: str
    tuned: str


def format_table(evaluation: Evaluation, answers: Sequence[Answer]) -> list[FormatLine]:
    """Format failures of each generated task of an evaluation."""
    lines = []
    for task in evaluation.tasks:
        mine = [a for a in answers if a.task == task.task and generated(a)]
        if mine:
            lines.append(FormatLine(title=fmt.visible(task_title(task.task)),
                                    **asdict(count_forms(mine, MetricKey(task.primary).filter))))
    return lines


def form_text(counts: FormCounts) -> str:
    """The form of generated answers in words: "of 8, 5 cut off at the token limit, 2 without an extractable answer"."""
    parts = [(counts.cut_off, "cut off at the token limit"), (counts.no_answer, "without an extractable answer"),
             (counts.other_form, "with an answer in another form only"),
             (counts.no_end, "not ended by the model's own end token"), (counts.empty, "empty")]
    said = ", ".join(f"{fmt.count(n)} {what}" for n, what in parts if n)
    return f"of {fmt.count(counts.n)}, {said or 'all with an answer, ended by the model'}"


def shift_text(shift: FormShift) -> str:
    """What was lost with no answer to judge, "" where nothing was lost."""
    if not shift.lost:
        return ""
    return (f"of {fmt.count(shift.lost)} lost items {fmt.count(shift.lost_by_form)} have no answer to judge "
            f"({fmt.percent(shift.lost_by_form / shift.lost)}, 95 % interval {fmt.percent(shift.low)} to "
            f"{fmt.percent(shift.high)}): {_CAUSES[shift.cause]}")


_CAUSES = {"format": "the loss is mostly one of format", "skill": "the loss is mostly one of skill",
           "mixed": "whether the loss is one of format or of skill is not decided"}


def changed_items(comparison: Comparison, answers: Answers) -> list[Changed]:
    """Up to three changed items per generated primary row: those that were lost first, then gained."""
    found: list[Changed] = []
    for row in comparison.rows:
        if row.primary and row.kind == "binary":
            found += _changed(row, answers.get(comparison.base, ()), answers.get(comparison.tuned, ()))
    return found


def _changed(row: ComparisonRow, base: Sequence[Answer], tuned: Sequence[Answer]) -> list[Changed]:
    key = MetricKey.of(row.metric, row.filter)
    before = {a.item: a for a in base if a.task == row.task}
    found = []
    for after in tuned:
        first = before.get(after.item) if after.task == row.task else None
        if first is None or first.metrics.get(key) == after.metrics.get(key):
            continue
        texts = _text(first), _text(after)
        if None not in texts:
            lost = (first.metrics.get(key) or 0) > (after.metrics.get(key) or 0)
            found.append(Changed(title=fmt.visible(task_title(row.task)), index=after.index,
                                 direction="lost" if lost else "gained",
                                 base=texts[0] or "", tuned=texts[1] or ""))
    return sorted(found, key=lambda c: (c.direction != "lost", c.index))[:_EXAMPLES]


def _text(answer: Answer) -> str | None:
    """The generated text of an answer's first response, made visible; None for scored answers."""
    text = answer.responses[0].text if answer.responses else None
    return None if text is None else fmt.visible(text) if text.strip() else "(empty)"
