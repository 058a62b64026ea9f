"""What generated answers look like: format failures told apart from wrong answers, and texts side by side.

    format_table(evaluation, answers)[0]
        FormatLine(title="GSM8K (chain of thought)", n=8, cut_off=5, no_answer=2, other_form=4, empty=0)

An answer is *cut off* where generation ended at the token limit, has *no answer* where the primary metric's
filter found nothing to extract (lm-eval writes ``[invalid]``), has an *other form* where that filter found
something but a stricter one did not, and is *empty* where no visible text came.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aftertune.report import format as fmt
from aftertune.report.names import task_title
from aftertune.values import Answer, Comparison, ComparisonRow, Evaluation

#: Answers by evaluation id.
Answers = Mapping[str, Sequence[Answer]]

_NOTHING = frozenset({"", "[invalid]"})
_EXAMPLES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatLine:
    """Counts over one generated task of one evaluation; an answer can be in more than one column."""

    title: str
    n: int
    cut_off: int
    no_answer: int
    other_form: int
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
        mine = [a for a in answers if a.task == task.task and any(r.text is not None for r in a.responses)]
        if mine:
            primary = task.primary.rpartition(",")[2]
            missing = [{name for name, v in a.extracted.items() if v.strip() in _NOTHING} for a in mine]
            lines.append(FormatLine(
                title=fmt.visible(task_title(task.task)), n=len(mine),
                cut_off=sum(any(r.finish == "length" for r in a.responses) for a in mine),
                no_answer=sum(primary in names for names in missing),
                other_form=sum(bool(names) and primary not in names for names in missing),
                empty=sum(all(not (r.text or "").strip() for r in a.responses) for a in mine)))
    return lines


def changed_items(comparison: Comparison, answers: Answers) -> list[Changed]:
    """Up to three changed items per generated primary row: those that were lost first, then gained."""
    found: list[Changed] = []
    for row in comparison.rows:
        if row.primary and row.kind == "binary":
            found += _changed(row, answers.get(comparison.base, ()), answers.get(comparison.tuned, ()))
    return found


def _changed(row: ComparisonRow, base: Sequence[Answer], tuned: Sequence[Answer]) -> list[Changed]:
    key = f"{row.metric},{row.filter}"
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
