"""Writes the headline of a comparison: what was learned, what was lost, what is safe, and what is not known.

    headline(comparison).sentences
        ("careful is fit to ship on what was asked: it improved on orders (+63.75 points) and kept HellaSwag and ARC
         Easy (margin 5 points).", "MMLU High School Computer Science cannot show a loss, because smollm2 …")
    study_lines(results)         one line for each fine-tune, or for each recipe with several seeds

Every sentence follows from the verdicts of the rows, the signs of collapse and the interval of the held-out loss, which
were all computed before. Without proven lineage no sentence mentions forgetting, and nothing is called fit or broken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from aftertune.report import formatting as fmt
from aftertune.report.changes import no_effect_text
from aftertune.report.names import task_title
from aftertune.report.results import Results, newest
from aftertune.report.table import difference_text, shown_verdict
from aftertune.stats.verdict import floored
from aftertune.values import (
    CollapseKind,
    CollapseSign,
    Comparison,
    ComparisonRow,
    Headline,
    HeadlineState,
    Verdict,
)

FEW = 3  #: Up to this number of comparisons, a report has all sentences of each headline; of more, the first ones.
_SHOWN = 3  # tasks that are named in one list
_LOSSES: tuple[Verdict, ...] = ("lower", "worse")
_GAINS: tuple[Verdict, ...] = ("higher", "better")
_SAFE: tuple[Verdict, ...] = (*_GAINS, "within", "no_loss")
#: Verdict -> what a sentence says of a model that was made from the base, in the order of a sentence.
_MADE: Mapping[Verdict, str] = {
    "lower": "forgot on", "worse": "is worse on", "higher": "improved on", "better": "is better on", "within": "kept",
    "no_loss": "has no loss on"}
#: The same of two models without proven lineage.
_OTHER: Mapping[Verdict, str] = {
    "lower": "scores lower on", "worse": "scores worse on", "higher": "scores higher on", "better": "scores better on",
    "within": "scores the same within the margin on", "no_loss": "is not lower by more than the margin on"}
#: State -> the words for a model in the line of a recipe.
STATE_WORDS: Mapping[HeadlineState, str] = {
    "no effect": "without any effect", "broken": "broken", "lost": "with a proven loss",
    "fit": "fit to ship on what was asked", "fit on average": "fit to ship on average",
    "not learned": "without clear proof of learning", "open": "undecided",
    "nothing": "not tested for a loss", "difference": "of unproven lineage",
    "none": "without a conclusion"}


@dataclass(frozen=True, slots=True)
class _Facts:
    """The primary rows of the tasks of a comparison, and the row of the average over them, which is in no list."""

    comparison: Comparison
    rows: tuple[ComparisonRow, ...]
    average: ComparisonRow | None

    @classmethod
    def of(cls, comparison: Comparison) -> _Facts:
        primary = [r for r in comparison.rows if r.primary]
        return cls(comparison, tuple(r for r in primary if not r.average_of),
                   next((r for r in primary if r.average_of), None))

    @property
    def tuned(self) -> str:
        return fmt.visible(self.comparison.tuned_name)

    @property
    def base(self) -> str:
        return fmt.visible(self.comparison.base_name)

    def having(self, verdicts: Sequence[Verdict], *, target: bool | None = None) -> list[ComparisonRow]:
        """The rows with one of these verdicts. target: only target tasks, or only others."""
        return [r for r in self.rows if shown_verdict(r) in verdicts and not _floored(r)
                and target in (None, r.target)]

    def averages(self, verdicts: Sequence[Verdict]) -> bool:
        """True where there is an average, with one of these verdicts."""
        return self.average is not None and self.average.verdict in verdicts

    @property
    def average_says_more(self) -> bool:
        """True where no single task has the loss that the average proves, or where it covers an undecided task."""
        if self.averages(_LOSSES):
            return not self.having(["lower"] if self.averages(["lower"]) else _LOSSES)
        return len(self.uncovered) < len(self.open)

    @property
    def floor(self) -> list[ComparisonRow]:
        """Benchmarks on which the base has nothing to lose, and on which no change is proven."""
        return [r for r in self.rows if _floored(r) and not r.target]

    @property
    def open(self) -> list[ComparisonRow]:
        """Benchmarks on which nothing is proven although something could be lost."""
        return self.having(["undecided"], target=False)

    @property
    def uncovered(self) -> list[ComparisonRow]:
        """Those of `open` that are not in an average on which a loss beyond the margin is ruled out."""
        covered = self.average.average_of if self.average is not None and self.averages(_SAFE) else ()
        return [r for r in self.open if r.task not in covered]

    @property
    def not_learned(self) -> list[ComparisonRow]:
        """Target tasks without a proven gain or loss."""
        return [r for r in self.rows if r.target and shown_verdict(r) not in (*_GAINS, *_LOSSES)]

    @property
    def signs(self) -> list[CollapseSign]:
        """The signs of collapse. One that rests on a proven loss needs the row to show it still."""
        lost = {r.task for r in self.having(_LOSSES)}
        return [s for s in self.comparison.signs if not s.base_too and (s.kind != "guessing" or s.task in lost)]

    @property
    def loss_fell(self) -> bool:
        return self.comparison.held_out is not None and self.comparison.held_out.high < 0

    @property
    def loss_rose(self) -> bool:
        return self.comparison.held_out is not None and self.comparison.held_out.low > 0

    @property
    def state(self) -> HeadlineState:
        if no_effect_text(self.comparison):
            return "no effect"
        if not self.comparison.lineage:
            return "difference"
        if self.signs:
            return "broken"
        if self.having(_LOSSES) or self.averages(_LOSSES):
            return "lost"
        if self.uncovered:
            return "open"
        if not self.open and not self.having(_SAFE, target=False):
            return "nothing"
        if self.loss_rose or (self.not_learned and not self.having(_GAINS, target=True)):
            return "not learned"
        return "fit on average" if self.open else "fit"


def _floored(row: ComparisonRow) -> bool:
    """True if the base has nothing to lose on this row."""
    return floored(row.verdict, row.at_floor) if row.verdict else False


def headline(comparison: Comparison) -> Headline:
    """The headline of one comparison."""
    facts = _Facts.of(comparison)
    if comparison.forced:
        return Headline(state="none", sentences=(
            f"No conclusion about {facts.tuned}: its evaluation and that of {facts.base} are not comparable.",))
    if not facts.rows:
        return Headline(state="nothing", sentences=(
            f"Nothing is known about {facts.tuned}: no metric could be compared with {facts.base}.",))
    state = facts.state
    sentences = _SENTENCES[state](facts)
    return Headline(
        state=state, sentences=tuple(_sentence(text) for text in sentences if text),
        learned=_tasks(facts.having(_GAINS, target=True)), lost=_tasks(facts.having(["lower"])),
        worse=_tasks(facts.having(["worse"])), safe=_tasks(facts.having(_SAFE, target=False)),
        unknown=tuple((r.task, why) for r, why in _unknown(facts)), signs=comparison.signs,
        average=facts.average.verdict if facts.average else None)


#: Beginnings of sentences that are no name of a model or task.
_STARTS = ("it ", "its ", "no ", "nothing ", "whether ")


def _sentence(text: str) -> str:
    """With a full stop, and a capital letter unless it begins with a name."""
    return f"{text[0].upper() if text.startswith(_STARTS) else text[0]}{text[1:]}."


def _tasks(rows: Sequence[ComparisonRow]) -> tuple[str, ...]:
    return tuple(r.task for r in rows)


# --- The sentences of each state ---
def _no_effect(facts: _Facts) -> Iterator[str]:
    yield no_effect_text(facts.comparison).removesuffix(".")


def _broken(facts: _Facts) -> Iterator[str]:
    shown = {s.task for s in facts.signs if s.kind == "guessing"}
    yield f"{facts.tuned} is broken: {_signs(facts)}"
    yield _it(_clauses(facts, skip=shown), facts)
    yield _rest(facts)


def _lost(facts: _Facts) -> Iterator[str]:
    proven = facts.having(["lower"]) or facts.averages(["lower"])
    beyond = "" if proven else "; that the loss is beyond the margin is not proven"
    yield f"{facts.tuned} {_join(_clauses(facts, _LOSSES))}{beyond}"
    yield _it(_clauses(facts, _SAFE), facts)
    yield _rest(facts)


def _fit(facts: _Facts) -> Iterator[str]:
    yield f"{facts.tuned} is fit to ship on what was asked: {_it(_clauses(facts, _SAFE), facts)}"
    yield _rest(facts)


def _fit_on_average(facts: _Facts) -> Iterator[str]:
    yield f"{facts.tuned} is fit to ship on average over what was asked: {_it(_clauses(facts, _SAFE), facts)}"
    yield _rest(facts)


def _not_learned(facts: _Facts) -> Iterator[str]:
    without_gain = facts.not_learned if not facts.having(_GAINS, target=True) else []
    what = [f"that it learned {_names(without_gain)} is not proven"] if without_gain else []
    if facts.loss_rose:
        what.append(_held_out(facts))
    where = "on average over what was asked" if facts.open else "on what was asked"
    yield f"{facts.tuned} lost nothing beyond the margin {where}, but {_join(what)}"
    yield f"it {_join(_clauses(facts, _SAFE))}{_margin(facts)}"
    yield _rest(facts, targets=not without_gain)


def _open(facts: _Facts) -> Iterator[str]:
    yield f"whether {facts.tuned} is fit to ship is not known: {_undecided(facts)}"
    yield _it(_clauses(facts, _SAFE), facts)
    yield _rest(facts, undecided=False)


def _nothing(facts: _Facts) -> Iterator[str]:
    yield f"nothing that was asked can show whether {facts.tuned} forgot anything"
    yield _it(_clauses(facts, _SAFE), facts)
    yield _rest(facts)


def _difference(facts: _Facts) -> Iterator[str]:
    clauses = _clauses(facts, words=_OTHER)
    guessing = [s for s in facts.signs if s.kind == "guessing"]
    yield f"{facts.tuned}, compared with {facts.base}, {_join(clauses)}{_margin(facts)}" if clauses else \
        f"no difference between {facts.tuned} and {facts.base} is proven or ruled out"
    yield _of_kind("guessing", guessing, facts) if guessing else ""
    yield _rest(facts)


def _it(clauses: list[str], facts: _Facts) -> str:
    """A sentence about the model from clauses; "" for none. The held-out loss is added where it rose, and where it fell
    and no target task shows what was learned."""
    about = [f"it {_join(clauses)}{_margin(facts)}"] if clauses else []
    if facts.loss_rose or (facts.loss_fell and not facts.having(_GAINS, target=True)):
        about.append(_held_out(facts))
    return ", and ".join(about)


def _held_out(facts: _Facts) -> str:
    """The change of the held-out loss, which its interval proves."""
    loss = facts.comparison.held_out
    assert loss is not None
    change = "rose" if facts.loss_rose else "fell"
    return f"its held-out loss {change} from {fmt.raw(loss.before, 3)} to {fmt.raw(loss.after, 3)}"


#: State -> the function that makes its sentences.
_SENTENCES: Mapping[HeadlineState, Callable[[_Facts], Iterator[str]]] = {
    "no effect": _no_effect, "broken": _broken, "lost": _lost, "fit": _fit, "fit on average": _fit_on_average,
    "not learned": _not_learned, "open": _open, "nothing": _nothing, "difference": _difference}


# --- Parts of sentences ---
def _clauses(facts: _Facts, verdicts: Sequence[Verdict] = tuple(_MADE), *, words: Mapping[Verdict, str] = _MADE,
             skip: set[str] | None = None) -> list[str]:
    """"forgot on HellaSwag (−11.00 points)", "kept ARC Easy", … skip: tasks that another sentence names."""
    clauses = []
    for verdict in (v for v in words if v in verdicts):
        rows = [r for r in facts.having([verdict]) if r.task not in (skip or ())]
        figures = verdict in (*_LOSSES, *_GAINS)
        if rows:
            clauses.append(f"{words[verdict]} {_names(rows, figures=figures)}")
        if facts.average and facts.averages([verdict]) and facts.average_says_more:
            on = "" if words[verdict].endswith(" on") else "its "
            change = f" ({_difference_of(facts.average)})" if figures else ""
            clauses.append(f"{words[verdict]} {on}average over {len(facts.average.average_of)} tasks{change}")
    return clauses


def _names(rows: Sequence[ComparisonRow], *, figures: bool = False) -> str:
    """The titles of the tasks, with their differences; of many tasks the first ones and the number of the others."""
    shown = list(rows) if len(rows) <= _SHOWN + 1 else list(rows[:_SHOWN])
    texts = [fmt.visible(task_title(r.task)) + (f" ({_difference_of(r)})" if figures else "") for r in shown]
    if len(rows) > len(shown):
        texts.append(f"{fmt.count(len(rows) - len(shown))} more tasks")
    return _join(texts)


def _difference_of(row: ComparisonRow) -> str:
    return f"{difference_text(row, row.delta)} {'points' if row.fraction else 'in its own unit'}"


def _join(texts: Sequence[str]) -> str:
    """"a", "a and b", "a, b and c"."""
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}" if texts else ""


def _margin(facts: _Facts) -> str:
    """The margin of the benchmarks that lost no more than it, where it is the same for all."""
    rows = facts.having(["within", "no_loss"])
    if facts.average and facts.averages(["within", "no_loss"]) and facts.average_says_more:
        rows.append(facts.average)
    margins = {difference_text(r, r.margin).lstrip("+") for r in rows if r.margin is not None and r.fraction}
    return f" (margin {f'{float(margins.pop()):g}'} points)" if len(margins) == 1 else ""


def _unknown(facts: _Facts) -> Iterator[tuple[ComparisonRow, str]]:
    """Each row of which nothing is known, with the reason."""
    for row in facts.rows:
        if row.margin is None:
            yield row, "no margin was given in its unit"
        elif row.target and row in facts.not_learned:
            yield row, "no gain is proven"
        elif _floored(row) and not row.target:
            yield row, f"{facts.base} scores like a guess"
        elif row in facts.open:
            needed = f"; about {fmt.count(row.items_needed)} items would decide it" if row.items_needed else ""
            yield row, f"nothing is proven with {fmt.count(row.n)} items{needed}"


def _undecided(facts: _Facts) -> str:
    """"HellaSwag is undecided (about 1,664 items would decide it)"."""
    rows = [r for r in facts.open if r.margin is not None]
    without = [r for r in facts.open if r.margin is None]
    numbers = [r.items_needed for r in rows]
    needed = ""
    if len(rows) == 1 and numbers[0]:
        needed = f" (about {fmt.count(numbers[0])} items would decide it)"
    parts = [f"{_names(rows)} {'is' if len(rows) == 1 else 'are'} undecided{needed}"] if rows else []
    return _join([*parts, *([f"no margin was given for {_names(without)}"] if without else [])])


def _rest(facts: _Facts, *, undecided: bool = True, targets: bool = True) -> str:
    """The sentence on what is not known, and why; "" if there is nothing."""
    parts = [_undecided(facts)] if undecided and facts.open else []
    if targets and facts.not_learned:
        parts.append(f"no gain on {_names(facts.not_learned)} is proven")
    if facts.floor:
        parts.append(f"{_names(facts.floor)} cannot show a loss, because {facts.base} scores like a guess there"
                     f"{_base_too(facts)}")
    return "; ".join(parts)


def _base_too(facts: _Facts) -> str:
    """On which of the tasks at the floor both models always take one choice."""
    tasks = {r.task for r in facts.floor}
    both = [s for s in facts.comparison.signs if s.base_too and s.kind == "one_choice" and s.task in tasks]
    return f" (both models always take one choice on {_titles(both)})" if both else ""


# --- Signs of collapse ---
def _signs(facts: _Facts) -> str:
    """What the signs are, those of one kind together."""
    kinds = dict.fromkeys(s.kind for s in facts.signs)
    return _join([_of_kind(kind, [s for s in facts.signs if s.kind == kind], facts) for kind in kinds])


def _of_kind(kind: CollapseKind, signs: Sequence[CollapseSign], facts: _Facts) -> str:
    figures = {"guessing": _guess, "endless": _endless, "one_choice": _choice, "empty": _share, "one_answer": _share}
    shown = list(signs) if len(signs) <= _SHOWN + 1 else list(signs[:_SHOWN])
    tasks = [f"{fmt.visible(task_title(s.task))} ({figures[kind](s, facts.base)})" for s in shown]
    if len(signs) > len(shown):
        tasks.append(f"{fmt.count(len(signs) - len(shown))} more tasks")
    if kind == "guessing":
        how = "below a guess" if all(s.below for s in signs) else "like a guess" if any(s.chance for s in signs) else ""
        return f"it {f'scores {how}' if how else 'gets next to nothing right'} on {_join(tasks)}"
    start = {"endless": "its texts do not end on", "one_choice": "it always takes one choice on",
             "empty": "its answers are empty on", "one_answer": "it always gives one answer on"}
    return f"{start[kind]} {_join(tasks)}"


def _titles(signs: Sequence[CollapseSign]) -> str:
    return _join([fmt.visible(task_title(s.task)) for s in signs])


def _percent(share: float, digits: int = 0) -> str:
    return f"{fmt.raw(100 * share, digits)} %"


def _guess(sign: CollapseSign, base: str) -> str:
    level = "" if sign.chance is None else f", a guess {_percent(sign.chance, 1)}"
    return f"{_percent(sign.tuned, 1)}{level}, {base} {_percent(sign.base, 1)}"


def _endless(sign: CollapseSign, base: str) -> str:
    limit = "the token limit" if sign.limit is None else f"the limit of {fmt.count(sign.limit)} tokens"
    return f"{_percent(sign.tuned)} reach {limit}, {base} {_percent(sign.base)}"


def _choice(sign: CollapseSign, base: str) -> str:
    return (f"choice {(sign.position or 0) + 1} on {_percent(sign.tuned)} of the items; {base} takes none on more than "
            f"{_percent(sign.base)}")


def _share(sign: CollapseSign, base: str) -> str:
    return f"{_percent(sign.tuned)} of them, {base} {_percent(sign.base)}"


# --- Studies ---
def study_lines(results: Results) -> list[str]:
    """One line for each recipe that was compared over seeds, then one for each other fine-tune.

    Of two models that were compared more than once, the newest comparison counts.
    """
    comparisons = newest(results.comparisons)
    recipes: dict[str, dict[str, None]] = {}
    for contrast in results.contrasts:
        for side, name in enumerate((contrast.left, contrast.right)):
            recipes.setdefault(name, {}).update(dict.fromkeys(pair[side] for pair in contrast.evaluations))
    lines, covered = [], set()
    for name, evaluations in recipes.items():
        own = [c for c in comparisons if c.tuned in evaluations]
        if len(own) > 1:
            covered |= {c.id for c in own}
            lines.append(_recipe_line(fmt.visible(name), [headline(c) for c in own]))
    return [*lines, *(headline(c).line for c in comparisons if c.id not in covered)]


def _recipe_line(name: str, headlines: Sequence[Headline]) -> str:
    """"lora, 3 seeds: 2 fit to ship on what was asked and 1 with a proven loss (on HellaSwag)"."""
    texts = []
    for state, words in STATE_WORDS.items():
        own = [h for h in headlines if h.state == state]
        if own:
            tasks = dict.fromkeys(task for h in own for task in (*h.lost, *h.worse, *(s.task for s in h.signs
                                                                                      if not s.base_too)))
            where = _join([fmt.visible(task_title(t)) for t in tasks]) if state in ("broken", "lost") else ""
            texts.append(f"{len(own)} {words}{f' (on {where})' if where else ''}")
    return f"{name}, {len(headlines)} seeds: {_join(texts)}."
