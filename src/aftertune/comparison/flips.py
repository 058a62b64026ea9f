"""Lists the items that one model answered right and the other wrong, with both answers.

    flips("smollm2", "careful", "hellaswag", ledger=ledger, direction="lost").flips[0].tuned.chosen
    flips_by_comparison(comparisons, answers, ledger=ledger)["c-1f…"][0].lost      for every task, for a report
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from aftertune.catalog import MetricKey
from aftertune.comparison import find_finished, pair_evaluations
from aftertune.comparison.answer_changes import choice_scores
from aftertune.comparison.pairing import Pair, metric_values, pair_answers
from aftertune.errors import InputError, nearest
from aftertune.values import (
    Answer,
    Asked,
    Comparison,
    ComparisonRow,
    Evaluation,
    Flip,
    Flips,
    FlipSide,
    Item,
    canonical,
)

if TYPE_CHECKING:
    from aftertune.ledger import Ledger

Direction = Literal["lost", "gained"]

#: Fields of a document that may contain the question, where it was stored without one.
_QUESTIONS = ("question", "query", "prompt", "problem", "question_stem", "goal", "sentence", "text")


def flips(base: Evaluation | str, tuned: Evaluation | str, task: str, *, ledger: Ledger, metric: str | None = None,
          direction: Direction | None = None, force: bool = False, common: bool = False) -> Flips:
    """The items of a task that changed on ``metric`` (``metric,filter`` or a metric's name; None: the primary metric).

    direction: only these. Raises NotComparable and InputError as `compare` does, and InputError for a metric that is
    not 0 or 1 on every item.
    """
    left, right = find_finished(base, ledger), find_finished(tuned, ledger)
    pairs, differences = pair_evaluations(left, right, ledger, force=force, common=common, tasks=[task])
    pair = next((p for p in pairs if p.settings.task == task), None)
    if pair is None:
        names = ", ".join(p.settings.task for p in pairs)
        raise InputError(f"{task} is a group of tasks; choose one of its tasks: {names}")
    key = binary_key(pair, left, right, metric)
    both = list(_changed(pair, key))
    hashes = {a.item for a, _ in both}
    items = {i.hash: i for e in (right, left) for i in ledger.each_item(e.id, task) if i.hash in hashes}
    changed = [_flip(key, items[a.item], a, b) for a, b in both]
    selected = [f for f in changed if direction in (None, f.direction)]
    return Flips(task=task, metric=key, base_name=left.name, tuned_name=right.name, n=len(pair.left),
                 lost=sum(f.direction == "lost" for f in changed), gained=sum(f.direction == "gained" for f in changed),
                 flips=tuple(sorted(selected, key=lambda f: (f.direction != "lost", f.index))),
                 differences=tuple(d for d in differences if d.blocking), unequal=pair.unequal)


def flips_by_comparison(comparisons: Sequence[Comparison], answers: Mapping[str, Sequence[Answer]], *, ledger: Ledger,
             each: int = 5) -> dict[str, tuple[Flips, ...]]:
    """Comparison id -> the items that changed on the primary metric of each task, at most ``each`` in either direction.

    answers: evaluation id -> all its answers.
    """
    rows: dict[str, list[_ChangedRow]] = {}
    wanted: dict[tuple[str, str], set[str]] = defaultdict(set)
    for comparison in comparisons:
        base = ledger.find_evaluation(comparison.base)
        rows[comparison.id] = []
        for row in (r for r in comparison.rows if r.primary and r.gained is not None):
            settings = base.task(row.task)
            if settings is None:
                continue  # a group, whose items are listed under its tasks
            pair = pair_answers(settings, *([a for a in answers[side] if a.task == row.task]
                                       for side in (comparison.base, comparison.tuned)))
            found = _changed_row(row, pair, each)
            wanted[base.id, row.task] |= {before.item for before, _ in found.shown}
            rows[comparison.id].append(found)
    items = {where: {i.hash: i for i in ledger.each_item(*where) if i.hash in hashes}
             for where, hashes in wanted.items()}  # a report shows few of the items of a large ledger
    return {c.id: tuple(_flips_of_row(c, row, items[c.base, row.task]) for row in rows[c.id]) for c in comparisons}


@dataclass(frozen=True, slots=True)
class _ChangedRow:
    """What changed on one task. n: paired items. shown: the answers of both models to some items that changed."""

    task: str
    metric: str
    n: int
    lost: int
    gained: int
    shown: tuple[tuple[Answer, Answer], ...]


def _changed_row(row: ComparisonRow, pair: Pair, each: int) -> _ChangedRow:
    key = MetricKey.of(row.metric, row.filter)
    changed = sorted(_changed(pair, key), key=lambda both: both[0].index)
    lost, gained = ([(a, b) for a, b in changed if (a.metrics[key] > b.metrics[key]) is loss] for loss in (True, False))
    return _ChangedRow(row.task, key, len(pair.left), len(lost), len(gained), (*lost[:each], *gained[:each]))


def _flips_of_row(comparison: Comparison, row: _ChangedRow, items: Mapping[str, Item]) -> Flips:
    return Flips(task=row.task, metric=row.metric, base_name=comparison.base_name, tuned_name=comparison.tuned_name,
                 n=row.n, lost=row.lost, gained=row.gained,
                 flips=tuple(_flip(row.metric, items[a.item], a, b) for a, b in row.shown),
                 differences=tuple(d for d in comparison.differences if d.blocking))


def binary_key(pair: Pair, left: Evaluation, right: Evaluation, metric: str | None) -> str:
    """The ``metric,filter`` to use. Raises InputError unless it is 0 or 1 on every item."""
    table = metric_values(left, right, pair)
    binary = [k for k, c in table.items() if c is not None and {*c.base.tolist(), *c.tuned.tolist()} <= {0.0, 1.0}]
    name = metric or pair.settings.primary
    key = name if name in binary else next((k for k in binary if MetricKey(k).metric == name), None)
    if key is None:
        raise InputError(f"{pair.settings.task} has no metric {name!r} that is right or wrong on each item"
                         f"{nearest(name, binary)}; allowed: {', '.join(binary) or 'none'}")
    return key


def _changed(pair: Pair, key: str) -> Iterator[tuple[Answer, Answer]]:
    """The answers of both models to the items on which the metric differs."""
    return ((a, b) for a, b in zip(pair.left, pair.right, strict=True) if a.metrics[key] != b.metrics[key])


def _flip(key: str, item: Item, before: Answer, after: Answer) -> Flip:
    asked = item.asked or question_of_document(item)
    gold = " | ".join(asked.choices[g] for g in asked.gold if g < len(asked.choices)) or asked.reference
    return Flip(task=item.task, index=item.index, item=item.hash,
                direction="lost" if before.metrics[key] > after.metrics[key] else "gained", question=asked.question,
                choices=asked.choices, gold=gold, base=side_of(key, asked, before), tuned=side_of(key, asked, after))


def question_of_document(item: Item) -> Asked:
    """The question of an item that was stored without it (in an older ledger, or with imported results)."""
    doc = item.doc
    question = next((v for k in _QUESTIONS if isinstance(v := doc.get(k), str)), canonical(dict(doc)))
    choices = doc.get("choices")
    texts = choices.get("text") if isinstance(choices, dict) else choices
    listed = tuple(texts) if isinstance(texts, list) and all(isinstance(t, str) for t in texts) else ()
    answer = doc.get("answer", doc.get("gold"))
    gold = (answer,) if listed and isinstance(answer, int) and 0 <= answer < len(listed) else ()
    reference = "" if gold or answer is None else answer if isinstance(answer, str) else json.dumps(answer)
    return Asked(question=question, choices=listed, gold=gold, reference=reference)


def side_of(key: str, asked: Asked, answer: Answer) -> FlipSide:
    """What one model answered to an item."""
    right = answer.metrics[key] > 0
    texts = [r.text for r in answer.responses if r.text is not None]
    if texts:
        first = answer.responses[0]
        return FlipSide(right=right, chosen=texts[0], extracted=answer.extracted, finish=first.finish,
                        reasoning=first.reasoning)
    scores = choice_scores(MetricKey(key).metric, asked.choices, [r.logprob for r in answer.responses])
    if not scores:
        return FlipSide(right=right, chosen="")
    best = max(range(len(scores)), key=scores.__getitem__)
    others = [s for i, s in enumerate(scores) if i not in asked.gold]
    margin = max(scores[g] for g in asked.gold) - max(others) if asked.gold and others else None
    return FlipSide(right=right, chosen=asked.choices[best] if asked.choices else "", scores=scores, margin=margin)
