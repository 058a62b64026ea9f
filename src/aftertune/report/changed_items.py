"""The items that changed, as Markdown: owns how a question and both answers stand side by side.

    Path("flips.md").write_text(write_flips(found, limit=20))

Everything that a model or a data set wrote stands in fences longer than any it holds, with control characters shown
by their code points: it is read, never rendered.

What generated answers look like: format failures told apart from wrong answers, and texts side by side.

    format_table(evaluation, answers)[0]
        FormatLine(title="GSM8K (chain of thought)", n=8, cut_off=5, no_answer=2, other_form=4, no_end=8, empty=0)

The counts are those of `aftertune.stats.answer_format`: *cut off* at the token limit, *no answer* to extract,
*other form*
(found, but not by a stricter filter), *no end* (the model did not write its end token), *empty*.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from aftertune.catalog import METRICS, MetricKey
from aftertune.report import documents as md
from aftertune.report import formatting as fmt
from aftertune.report.names import metric_title, task_title
from aftertune.stats.answer_format import count_forms, generated
from aftertune.values import (
    Answer,
    Comparison,
    ComparisonRow,
    Difference,
    Evaluation,
    Flip,
    Flips,
    FlipSide,
    FormCounts,
    FormShift,
)

#: Answers by evaluation id.
TaskAnswers = Mapping[str, Sequence[Answer]]

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


def changed_items(comparison: Comparison, answers: TaskAnswers) -> list[Changed]:
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


ENDS = {"length": "cut off at the token limit", "stop": "ended by a stop string", "eos": "ended by the model"}


def write_flips(found: Flips, *, limit: int | None = None) -> str:
    """The flips as one Markdown document; ``limit`` items of each direction at most."""
    key = MetricKey(found.metric)
    names = md.text(fmt.visible(found.base_name)), md.text(fmt.visible(found.tuned_name))
    blocks = [f"# {md.text(task_title(found.task))}: what changed from {names[0]} to {names[1]}"]
    if found.differences:
        blocks.append(f"> **{md.text(forced_text(found.differences))}**")
    blocks.append(f"Of {fmt.count(found.n)} items, by {md.text(metric_title(key.metric, key.filter))}: "
                  f"{fmt.count(found.lost)} lost (right before, wrong after), {fmt.count(found.gained)} gained.")
    for direction in ("lost", "gained"):
        mine = [f for f in found.flips if f.direction == direction]
        for flip in mine[:limit]:
            blocks += _flip(flip, names, score_unit(key.metric))
        if limit is not None and len(mine) > limit:
            blocks.append(f"*{fmt.count(len(mine) - limit)} more {direction} items are not shown.*")
    return "\n\n".join(blocks) + "\n"


def score_unit(metric: str) -> str:
    """The unit of what a metric compares: log-likelihoods, perhaps divided by the length of the choice."""
    length = METRICS[metric].length if metric in METRICS else ""
    return f"nats per {length}" if length else "nats"


def forced_text(differences: Sequence[Difference]) -> str:
    """The watermark of what was compared by force."""
    shown = "; ".join(f"{fmt.visible(d.field)}: {fmt.visible(d.left, 60)} against {fmt.visible(d.right, 60)}"
                      for d in differences)
    return f"FORCED COMPARISON: these evaluations are not comparable ({shown or 'compared with --force'})."


def _flip(flip: Flip, names: tuple[str, str], unit: str) -> list[str]:
    blocks = [f"## {flip.direction.capitalize()}: item {flip.index}",
              md.block(fmt.visible(flip.question) or "(no text)")]
    if flip.base.scores or flip.tuned.scores:
        return [*blocks, *_choices(flip, names, unit)]
    blocks += [f"Right answer: {md.code(fmt.visible(flip.gold, 300))}"] if flip.gold else []
    for name, side in zip(names, (flip.base, flip.tuned), strict=True):
        blocks += [f"**{name}**, {'right' if side.right else 'wrong'}{_about(side)}:",
                   md.block(fmt.visible(side.chosen) if side.chosen.strip() else "(empty)")]
    return blocks


def _about(side: FlipSide) -> str:
    """How the text ended, and what was taken from it."""
    ended = f", {ENDS[side.finish]}" if side.finish in ENDS else ""
    taken = [f"{md.text(name)} {md.code(fmt.visible(value, 100) or '(nothing)')}"
             for name, value in side.extracted.items() if value.strip() != side.chosen.strip()]
    return f"{ended}, extracted: {', '.join(taken)}" if taken else ended


def _choices(flip: Flip, names: tuple[str, str], unit: str) -> list[str]:
    """A table of the choices with both models' scores; what each took is bold."""
    sides = (flip.base, flip.tuned)
    best = [max(range(len(s.scores)), key=s.scores.__getitem__) if s.scores else -1 for s in sides]
    rows = []
    for at in range(max(len(s.scores) for s in sides)):
        text = flip.choices[at] if at < len(flip.choices) else f"choice {at + 1}"
        cells = [fmt.raw(s.scores[at], 3) if at < len(s.scores) else fmt.DASH for s in sides]
        rows.append(["✓" if text == flip.gold else "", md.text(fmt.visible(text, 300)),
                     *(f"**{cell}**" if at == b else cell for cell, b in zip(cells, best, strict=True))])
    margins = " and ".join(f"{fmt.change(s.margin)} ({name})" for s, name in zip(sides, names, strict=True)
                           if s.margin is not None)
    return [md.table(["", "Choice", *names], rows),
            f"Log-likelihoods in {unit}; bold: the choice taken."
            + (f" Margin of the right choice over the best other one: {margins}." if margins else "")]
