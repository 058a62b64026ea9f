"""Format failure against skill loss: owns the form of generated answers on both sides of a comparison.

    shifts([pair])[0].cause      "format": most of what was lost has no answer to judge (rule: `aftertune.stats.form`)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from aftertune.catalog import MetricKey
from aftertune.comparison.pairs import Pair
from aftertune.stats.form import cause, count_forms, generated, unjudged
from aftertune.values import FormShift


def shifts(pairs: Sequence[Pair]) -> Iterator[FormShift]:
    """One a task with generated answers, over the items that both sides answered."""
    for pair in pairs:
        if not all(generated(answer) for answer in (*pair.left, *pair.right)):
            continue
        key = MetricKey(pair.settings.primary)
        sign = 1 if pair.settings.higher_is_better.get(key.metric, True) else -1
        lost = [b for a, b in zip(pair.left, pair.right, strict=True)
                if sign * (a.metrics.get(key) or 0) > sign * (b.metrics.get(key) or 0)]
        by_form = sum(unjudged(answer, key.filter) for answer in lost)
        found, low, high = cause(len(lost), by_form)
        yield FormShift(task=pair.settings.task, base=count_forms(pair.left, key.filter),
                        tuned=count_forms(pair.right, key.filter), lost=len(lost), lost_by_form=by_form, low=low,
                        high=high, cause=found)
