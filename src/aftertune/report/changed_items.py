"""Shows the items that changed, with the question and both answers, and counts format failures of generated answers.

    Path("flips.md").write_text(write_flips(flips, limit=20))

    format_table(evaluation, answers)[0]
        FormatLine(title="GSM8K (chain of thought)", n=8, cut_off=5, no_answer=2, other_form=4, no_end=8, empty=0)

The counts come from `aftertune.stats.answer_format`: *cut off* at the token limit, *no answer* to extract, *other form*
(extracted, but not by a stricter filter), *no end* (the model did not write its end token), *empty*. Imported answers
often do not say how they ended; that is shown as not known.

Text of a model or a data set is in fences that are longer than any fence in it, and its control characters are shown by
their code points, so that it is never rendered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from aftertune.catalog import METRICS, MetricKey
from aftertune.report import documents as md
from aftertune.report import formatting as fmt
from aftertune.report.names import metric_label, task_title
from aftertune.stats.answer_format import count_forms, is_generated
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

# --- Format of generated answers ---
#: Evaluation id -> its answers.
TaskAnswers = Mapping[str, Sequence[Answer]]

_EXAMPLES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatLine:
    """The counts of one generated task of one evaluation; an answer can be in several columns."""

    title: str
    n: int
    cut_off: int
    no_answer: int
    other_form: int
    no_end: int
    empty: int
    unknown_end: int = 0

    @property
    def text(self) -> str:
        """All counts in one line."""
        known, others = "", f"{self.no_answer} without an extractable answer, {self.other_form} with an answer in " \
                            "another format"
        if self.unknown_end == self.n:
            return f"of {self.n}, {others}, {self.empty} empty; how they ended is not known"
        if self.unknown_end:
            known = f"; how {self.unknown_end} of them ended is not known"
        return (f"of {self.n}, {self.cut_off} cut off at the token limit, {others}, {self.no_end} not ended by the "
                f"model's own end token, {self.empty} empty{known}")

    def by_end(self, count: int) -> str:
        """A count of answers by their end: "5", "5 (2 not known)", or "not known" where no end is known."""
        unknown = f"{fmt.count(self.unknown_end)} not known"
        return "not known" if self.unknown_end == self.n else \
            f"{fmt.count(count)} ({unknown})" if self.unknown_end else fmt.count(count)


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """One item that became right or wrong, with both generated texts."""

    title: str
    index: int
    direction: str
    base: str
    tuned: str


def format_table(evaluation: Evaluation, answers: Sequence[Answer]) -> list[FormatLine]:
    """The format failures of each generated task of an evaluation."""
    lines = []
    for task in evaluation.tasks:
        own = [a for a in answers if a.task == task.task and is_generated(a)]
        if own:
            lines.append(FormatLine(title=fmt.visible(task_title(task.task)),
                                    **asdict(count_forms(own, MetricKey(task.primary).filter))))
    return lines


def form_text(counts: FormCounts) -> str:
    """The counts in words: "5 of 8 cut off at the token limit, 2 without an extractable answer"."""
    failures = [(counts.cut_off, "cut off at the token limit"), (counts.no_answer, "without an extractable answer"),
                (counts.other_form, "with an answer in another format only"),
                (counts.no_end, "not ended by the model's own end token"), (counts.empty, "empty")]
    texts = [f"{fmt.count(n)}{'' if at else f' of {fmt.count(counts.n)}'} {reason}"
             for at, (n, reason) in enumerate(failure for failure in failures if failure[0])]
    if not counts.unknown_end:
        return ", ".join(texts) or f"all {fmt.count(counts.n)} complete and with an answer"
    some = "how they ended is not known" if counts.unknown_end == counts.n else \
        f"how {fmt.count(counts.unknown_end)} of them ended is not known"
    return f"{', '.join(texts) or f'all {fmt.count(counts.n)} with an answer'} ({some})"


def shift_text(shift: FormShift) -> str:
    """How many lost items have no answer to score; "" if no item was lost."""
    if not shift.lost:
        return ""
    unknown = f", and {fmt.count(shift.lost_unknown)} more may have been cut off" if shift.lost_unknown else ""
    return (f"{fmt.count(shift.lost_by_form)} of {fmt.count(shift.lost)} lost items have no answer to score{unknown} "
            f"({fmt.percent(shift.lost_by_form / shift.lost)}, 95 % interval {fmt.percent(shift.low)} to "
            f"{fmt.percent(shift.high)}): {_CAUSES[shift.cause]}")


_CAUSES = {"format": "the loss is mostly in format", "skill": "the loss is mostly in skill",
           "mixed": "it is undecided whether the loss is in format or in skill"}


# --- Items that changed ---
def changed_items(comparison: Comparison, answers: TaskAnswers) -> list[Changed]:
    """Up to three changed items for each generated primary row, lost items first."""
    items: list[Changed] = []
    for row in comparison.rows:
        if row.primary and row.kind == "binary":
            items += _changed(row, answers.get(comparison.base, ()), answers.get(comparison.tuned, ()))
    return items


def _changed(row: ComparisonRow, base: Sequence[Answer], tuned: Sequence[Answer]) -> list[Changed]:
    key = MetricKey.of(row.metric, row.filter)
    before = {a.item: a for a in base if a.task == row.task}
    items = []
    for second in tuned:
        first = before.get(second.item) if second.task == row.task else None
        if first is None or first.metrics.get(key) == second.metrics.get(key):
            continue
        texts = _text(first), _text(second)
        if None not in texts:
            lost = (first.metrics.get(key) or 0) > (second.metrics.get(key) or 0)
            items.append(Changed(title=fmt.visible(task_title(row.task)), index=second.index,
                                 direction="lost" if lost else "gained",
                                 base=texts[0] or "", tuned=texts[1] or ""))
    return sorted(items, key=lambda c: (c.direction != "lost", c.index))[:_EXAMPLES]


def _text(answer: Answer) -> str | None:
    """The generated text of an answer's first response, made safe to display; None for log-likelihoods."""
    text = answer.responses[0].text if answer.responses else None
    return None if text is None else fmt.visible(text) if text.strip() else "(empty)"


#: What a reader must know of the counts of items that were drawn with weights.
UNEQUAL = ("These items were drawn where the base was unsure, where most changes are: their counts say nothing of the "
           "task.")
#: How a generated text ended -> in words.
ENDS = {"length": "cut off at the token limit", "stop": "ended by a stop string", "eos": "ended by the model"}


def write_flips(flips: Flips, *, limit: int | None = None) -> str:
    """The flips as a Markdown document, with at most ``limit`` items of each direction."""
    key = MetricKey(flips.metric)
    names = md.text(fmt.visible(flips.base_name)), md.text(fmt.visible(flips.tuned_name))
    blocks = [f"# {md.text(task_title(flips.task))}: what changed from {names[0]} to {names[1]}"]
    if flips.differences:
        blocks.append(f"> **{md.text(forced_text(flips.differences))}**")
    blocks.append(f"Of {fmt.count(flips.n)} items, by {md.text(metric_label(key.metric, key.filter))}: "
                  f"{fmt.count(flips.lost)} lost (right before, wrong after), {fmt.count(flips.gained)} gained."
                  + (" " + UNEQUAL if flips.unequal else ""))
    for direction in ("lost", "gained"):
        matching = [f for f in flips.flips if f.direction == direction]
        for flip in matching[:limit]:
            blocks += _flip(flip, names, score_unit(key.metric))
        if limit is not None and len(matching) > limit:
            blocks.append(f"*{fmt.count(len(matching) - limit)} more {direction} items are not shown.*")
    return "\n\n".join(blocks) + "\n"


def score_unit(metric: str) -> str:
    """The unit of the log-likelihoods that a metric compares: "nats", or for example "nats per character"."""
    length = METRICS[metric].length if metric in METRICS else ""
    return f"nats per {length}" if length else "nats"


def forced_text(differences: Sequence[Difference]) -> str:
    """The warning above a comparison of evaluations that are not comparable."""
    fields = "; ".join(f"{fmt.visible(d.field)}: {fmt.visible(d.left, 60)} against {fmt.visible(d.right, 60)}"
                      for d in differences)
    return f"FORCED COMPARISON: these evaluations are not comparable ({fields or 'compared with --force'})."


def _flip(flip: Flip, names: tuple[str, str], unit: str) -> list[str]:
    blocks = [f"## {flip.direction.capitalize()}: item {flip.index}",
              md.block(fmt.visible(flip.question) or "(no text)")]
    if flip.base.scores or flip.tuned.scores:
        return [*blocks, *_choices(flip, names, unit)]
    blocks += [f"Right answer: {md.code(fmt.visible(flip.gold, 300))}"] if flip.gold else []
    for name, side in zip(names, (flip.base, flip.tuned), strict=True):
        blocks += [f"**{name}**, {'right' if side.right else 'wrong'}{_about(side)}:",
                   md.block(fmt.visible(side.chosen) if side.chosen.strip() else "(empty)")]
        if side.reasoning is not None:
            blocks += [f"Reasoning of {name} before it, which was not judged:",
                       md.block(fmt.visible(side.reasoning) if side.reasoning.strip() else "(empty)")]
    return blocks


def _about(side: FlipSide) -> str:
    """How the text ended, and what the filters extracted from it."""
    ended = f", {ENDS[side.finish]}" if side.finish in ENDS else ""
    extracted = [f"{md.text(name)} {md.code(fmt.visible(value, 100) or '(nothing)')}"
                 for name, value in side.extracted.items() if value.strip() != side.chosen.strip()]
    return f"{ended}, extracted: {', '.join(extracted)}" if extracted else ended


def _choices(flip: Flip, names: tuple[str, str], unit: str) -> list[str]:
    """A table of the choices with the scores of both models; the choice of each model is bold."""
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
            f"Log-likelihoods in {unit}. Bold: the choice of each model."
            + (f" Margin of the right choice over the best other choice: {margins}." if margins else "")]
