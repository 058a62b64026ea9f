"""Lists every item that two models answered, with both answers: those that changed and those that did not.

    listed = paired_items("smollm2", "careful", "hellaswag", ledger=ledger)
    listed.counts                                  {"lost": 12, "gained": 9, "both right": 130, "both wrong": 149}
    [i for i in listed.items if i.kind == "lost"][0].tuned.margin

`aftertune.comparison.flips` lists the changed ones of one task; this is for a reader who looks for the reason, and
wants to see what is like the lost items without being lost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from aftertune.catalog import MetricKey
from aftertune.comparison import find_finished, pair_evaluations
from aftertune.comparison.flips import binary_key, question_of_document, side_of
from aftertune.comparison.pairing import Pair
from aftertune.errors import NotComparable
from aftertune.stats.answer_format import has_no_answer, is_cut_off, is_empty, is_generated
from aftertune.values import Answer, Asked, Difference, Evaluation, FlipSide, Item

if TYPE_CHECKING:
    from aftertune.ledger import Ledger

#: lost: right in the base and wrong in the tuned model; gained: the other way round.
ItemKind = Literal["lost", "gained", "both right", "both wrong"]
KINDS: tuple[ItemKind, ...] = ("lost", "gained", "both right", "both wrong")
#: Why a generated answer has nothing to judge.
FormFailure = Literal["no answer", "cut off", "empty"]
FAILURES: tuple[FormFailure, ...] = ("no answer", "cut off", "empty")


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedItem:
    """One item with both answers. item: its hash; cluster: what it belongs to, such as a document, "" for nothing.
    golds: positions of the right choices, whose texts `gold` joins. base_forms, tuned_forms: failures of form of the
    two answers."""

    task: str
    index: int
    item: str
    kind: ItemKind
    question: str
    choices: tuple[str, ...]
    gold: str
    base: FlipSide
    tuned: FlipSide
    cluster: str = ""
    base_forms: tuple[FormFailure, ...] = ()
    tuned_forms: tuple[FormFailure, ...] = ()
    golds: tuple[int, ...] = ()

    @property
    def completion(self) -> str:
        """A right answer to train on: the first one, where several choices are right."""
        return self.choices[self.golds[0]] if self.golds else self.gold

    @property
    def margins(self) -> tuple[float, float] | None:
        """The margins of both models, None where one is not known."""
        base, tuned = self.base.margin, self.tuned.margin
        return None if base is None or tuned is None else (base, tuned)

    @property
    def texts(self) -> Iterator[str]:
        """Everything that a search looks at."""
        yield from (self.question, self.gold, *self.choices, self.base.chosen, self.tuned.chosen)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedItems:
    """All items of a task, or of the tasks of a group, in their order. metrics: task -> the ``metric,filter`` that says
    right or wrong. differences: the blocking ones, where the comparison was forced."""

    task: str
    base: Evaluation
    tuned: Evaluation
    metrics: Mapping[str, str]
    items: tuple[PairedItem, ...]
    differences: tuple[Difference, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """Kind -> number of items."""
        counted = Counter(item.kind for item in self.items)
        return {kind: counted[kind] for kind in KINDS}

    def find(self, task: str, index: int) -> int | None:
        """The place of an item in `items`, None where there is no such item."""
        return next((at for at, i in enumerate(self.items) if (i.task, i.index) == (task, index)), None)


def paired_items(base: Evaluation | str, tuned: Evaluation | str, task: str, *, ledger: Ledger,
                 metric: str | None = None, force: bool = False, common: bool = False) -> PairedItems:
    """The items of a task, or of all tasks of a group, with both answers.

    metric: ``metric,filter`` or a metric's name; None: the primary one. Raises NotComparable and InputError as
    `aftertune.comparison.flips.flips` does.
    """
    left, right = find_finished(base, ledger), find_finished(tuned, ledger)
    asked: dict[str, dict[str, Asked]] = {}

    def keep(item: Item) -> None:
        """Keep the question of an item; one that was stored comes before one that its document has."""
        of_task = asked.setdefault(item.task, {})
        if item.asked or item.hash not in of_task:
            of_task[item.hash] = item.asked or question_of_document(item)

    pairs, differences = pair_evaluations(left, right, ledger, force=force, common=common, tasks=[task], each=keep)
    pairs = [p for p in pairs if p.left]
    if not pairs:
        raise NotComparable(f"{left.name} and {right.name} share no answered item of {task}")
    keys = {p.settings.task: binary_key(p, left, right, metric) for p in pairs}
    return PairedItems(task=task, base=left, tuned=right, metrics=keys, items=tuple(
        i for p in pairs for i in _items_of(p, keys[p.settings.task], asked[p.settings.task])),
        differences=tuple(d for d in differences if d.blocking))


def _items_of(pair: Pair, key: str, asked: Mapping[str, Asked]) -> Iterator[PairedItem]:
    """The items of one task in the order in which the tuned model was asked. asked: hash of an item -> its question."""
    before = {(a.task, a.index): b for b, a in zip(pair.left, pair.right, strict=True)}
    for after in pair.all_right:
        if (after.task, after.index) in before:
            yield _paired(key, asked[after.item], before[after.task, after.index], after)


def _paired(key: str, asked: Asked, before: Answer, after: Answer) -> PairedItem:
    gold = " | ".join(asked.choices[g] for g in asked.gold if g < len(asked.choices)) or asked.reference
    first, second = before.metrics[key] > 0, after.metrics[key] > 0
    kind: ItemKind = ("both right" if second else "lost") if first else "gained" if second else "both wrong"
    name = MetricKey(key).filter
    return PairedItem(task=after.task, index=after.index, item=after.item, kind=kind, question=asked.question,
                      choices=asked.choices, gold=gold, base=side_of(key, asked, before),
                      tuned=side_of(key, asked, after), cluster=after.cluster or "",
                      base_forms=_failures(before, name), tuned_forms=_failures(after, name),
                      golds=tuple(g for g in asked.gold if g < len(asked.choices)))


def _failures(answer: Answer, filter_name: str) -> tuple[FormFailure, ...]:
    """What is wrong with the form of a generated answer."""
    if not is_generated(answer):
        return ()
    found = (has_no_answer(answer, filter_name), is_cut_off(answer), is_empty(answer))
    return tuple(name for name, failed in zip(FAILURES, found, strict=True) if failed)
