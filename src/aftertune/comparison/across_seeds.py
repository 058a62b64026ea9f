"""Recipes over several seeds: owns which fine-tunes belong together, and what may be said of a method or a data size.

    for contrast in contrasts(evaluations, tunings, margins={"hellaswag": 0.02}, ledger=ledger):
        contrast.factor, contrast.left, contrast.right, contrast.rows[0].verdict

Fine-tunes of one base that differ in nothing but their seed are one recipe. Two recipes with three seeds in common or
more are compared seed by seed on the same items (`aftertune.stats.across_seeds`); with fewer,
nothing is said of the recipe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from aftertune.catalog import MetricKey
from aftertune.comparison.compatibility import find_differences
from aftertune.comparison.pairing import Pair, columns, pair_up
from aftertune.comparison.rows import Draft, Margins, build_row, margin_of
from aftertune.stats.across_seeds import ENOUGH_SEEDS, SeedContrast, seed_contrast
from aftertune.stats.evidence import Evidence
from aftertune.stats.paired import Floats
from aftertune.stats.verdict import Case, Decision, decide
from aftertune.values import ComparisonRow, Contrast, Evaluation, Tuning, digest

if TYPE_CHECKING:
    from aftertune.ledger import Ledger

#: Settings that follow from the seed or the machine, or whose content is told by another one.
_NO_PART = ("threads", "device", "held_out", "validation", "replay")
#: What a single differing setting is called.
_FACTORS = {"method": "method", "examples": "data size", "replay_share": "replay", "replay_examples": "replay",
            "learning_rate": "learning rate"}


@dataclass(frozen=True, slots=True)
class RecipeGroup:
    """Fine-tunes that differ in their seed alone. said: everything else; members: (tuning, its evaluation) by seed."""

    said: Mapping[str, Any]
    members: Mapping[int, tuple[Tuning, Evaluation]]

    @property
    def name(self) -> str:
        """What the names of its fine-tunes have in common."""
        names = [tuning.name for tuning, _ in self.members.values()]
        parts = [set(name.split("-")) for name in names]
        shared = [part for part in names[0].split("-") if all(part in others for others in parts)]
        return "-".join(shared) or names[0]


def recipes(evaluations: Sequence[Evaluation], tunings: Sequence[Tuning]) -> list[RecipeGroup]:
    """Finished fine-tunes with an evaluation, grouped by recipe, in their order."""
    found: dict[str, tuple[dict[str, Any], dict[int, tuple[Tuning, Evaluation]]]] = {}
    for tuning in tunings:
        after = next((e for e in evaluations if e.status == "done" and e.model.fingerprint in tuning.results), None)
        if tuning.status == "done" and after is not None:
            said = _said(tuning)
            found.setdefault(digest(said), (said, {}))[1].setdefault(tuning.seed, (tuning, after))
    return [RecipeGroup(said, members) for said, members in found.values()]


def contrasts(evaluations: Sequence[Evaluation], tunings: Sequence[Tuning], *, margins: Margins, ledger: Ledger
              ) -> list[Contrast]:
    """Every two recipes of one base with enough seeds in common whose evaluations may be compared."""
    made = (_contrast(a, b, margins, ledger) for a, b in combinations(recipes(evaluations, tunings), 2))
    return [one for one in made if one is not None]


def _said(tuning: Tuning) -> dict[str, Any]:
    """All that decides a fine-tune but its seed."""
    settings = {k: v for k, v in tuning.settings.items() if k not in _NO_PART}
    return {"base": tuning.base.fingerprint, "method": tuning.method, "data": tuning.data_source,
            "examples": tuning.examples, **settings}


def _contrast(left: RecipeGroup, right: RecipeGroup, margins: Margins, ledger: Ledger) -> Contrast | None:
    seeds = [seed for seed in left.members if seed in right.members]
    if left.said["base"] != right.said["base"] or len(seeds) < ENOUGH_SEEDS:
        return None
    pairs = [(left.members[seed][1], right.members[seed][1]) for seed in seeds]
    rows = _rows(pairs, margins, ledger)
    if not rows:
        return None
    names = dict.fromkeys([*left.said, *right.said])
    settings = tuple((name, _text(left.said.get(name)), _text(right.said.get(name))) for name in names
                     if left.said.get(name) != right.said.get(name))
    factors = {_FACTORS.get(name, name.replace("_", " ")) for name, _, _ in settings}
    ids = tuple((a.id, b.id) for a, b in pairs)
    first = left.members[seeds[0]][0]
    return Contrast(id="r-" + digest([ids, [r.margin for r in rows]])[:10], left=left.name, right=right.name,
                    factor=factors.pop() if len(factors) == 1 else "recipe", base_name=first.base.source,
                    settings=settings, seeds=tuple(seeds), evaluations=ids, rows=rows)


def _rows(sides: Sequence[tuple[Evaluation, Evaluation]], margins: Margins, ledger: Ledger
          ) -> tuple[ComparisonRow, ...]:
    """A row for each task whose primary metric every seed has on the same items; one family."""
    found: list[tuple[Pair, list[tuple[Floats, Floats]], SeedContrast]] = []
    for task in sides[0][0].tasks:
        per_seed = [_paired(a, b, task.task, ledger) for a, b in sides]
        known = [one for one in per_seed if one is not None]
        if len(known) < len(sides) or len({tuple(a.item for a in pair.left) for pair, _, _ in known}) > 1:
            continue
        values = [(base, tuned) for _, base, tuned in known]
        sign = 1 if _better(known[0][0]) else -1
        found.append((known[0][0], values, seed_contrast(np.array([sign * (t - b) for b, t in values]))))
    margin = [margin_of(margins, pair.settings.task, *pair.settings.groups) for pair, _, _ in found]
    decisions = decide([Case(tests=one.tests(m)) for (_, _, one), m in zip(found, margin, strict=True)])
    return tuple(_row(pair, values, one, m, decision) for (pair, values, one), m, decision in
                 zip(found, margin, decisions, strict=True))


def _paired(left: Evaluation, right: Evaluation, task: str, ledger: Ledger) -> tuple[Pair, Floats, Floats] | None:
    """One task of one seed: its pair and the values of its primary metric; None where it may not be compared."""
    settings, other = left.task(task), right.task(task)
    if settings is None or other is None or settings.used is not None or other.used is not None:
        return None
    pair = pair_up(settings, ledger.answers(left.id, task), ledger.answers(right.id, task))
    if not pair.left or any(d.blocking for d in find_differences(left, right, {task: pair.counts}, tasks=(task,))):
        return None
    column = columns(left, right, pair).get(settings.primary)
    return None if column is None else (pair, column.base, column.tuned)


def _better(pair: Pair) -> bool:
    """Whether more of the primary metric is better."""
    settings = pair.settings
    metric = MetricKey(settings.primary).metric
    return bool(settings.higher_is_better.get(settings.primary, settings.higher_is_better.get(metric, True)))


def _row(pair: Pair, values: Sequence[tuple[Floats, Floats]], found: SeedContrast, margin: float, decision: Decision
         ) -> ComparisonRow:
    low, high = found.interval()
    base, tuned = (float(np.mean([side[k] for side in values])) for k in (0, 1))
    tests = found.tests(margin)
    evidence = Evidence(n=len(pair.left), base=base, tuned=tuned, delta=found.mean, low=low, high=high, kind="real",
                        tests=tests, items_needed=None)
    draft = Draft(task=pair.settings.task, key=pair.settings.primary, evidence=evidence, margin=margin, primary=True,
                  target=pair.settings.target, n_total=pair.settings.n_total)
    return build_row(draft, decision, lineage=False, notes=[f"over {len(values)} seeds"], tests=tests)


def _text(value: Any) -> str:
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
