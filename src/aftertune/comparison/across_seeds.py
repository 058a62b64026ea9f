"""Compares recipes, such as two methods or two data sizes, over several training seeds.

    for contrast in contrasts_across_seeds(evaluations, tunings, margins={"hellaswag": 0.02}, ledger=ledger):
        contrast.factor, contrast.left, contrast.right, contrast.rows[0].verdict

Fine-tunes of one base that differ only in their seed are one recipe. Two recipes with at least three seeds in common
are compared on the same items (`aftertune.stats.across_seeds`). Two with fewer are not compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from aftertune.catalog import FRACTIONS, MetricKey, Unit
from aftertune.comparison.compatibility import find_differences
from aftertune.comparison.margins import Margins, margin_of, missing_margin_note
from aftertune.comparison.pairing import MetricValues, Pair, metric_values, pair_answers
from aftertune.comparison.rows import RowDraft, build_row
from aftertune.stats.across_seeds import ENOUGH_SEEDS, SeedContrast, seed_contrast
from aftertune.stats.evidence import Evidence
from aftertune.stats.paired import NO_EVIDENCE
from aftertune.stats.verdict import Case, Decision, decide
from aftertune.values import ComparisonRow, Contrast, Evaluation, Tuning, digest

if TYPE_CHECKING:
    from aftertune.ledger import Ledger

#: Settings that depend on the seed or the machine, or that repeat another setting. They do not distinguish recipes.
_IGNORED = ("threads", "device", "held_out", "validation", "replay")
#: Setting -> the factor of a comparison, where only this setting differs.
_FACTORS = {"method": "method", "examples": "data size", "replay_share": "replay", "replay_examples": "replay",
            "learning_rate": "learning rate"}


@dataclass(frozen=True, slots=True)
class RecipeGroup:
    """Fine-tunes that differ only in their seed. settings: all other settings; members: seed -> (tuning, its
    evaluation)."""

    settings: Mapping[str, Any]
    members: Mapping[int, tuple[Tuning, Evaluation]]

    @property
    def name(self) -> str:
        """The parts, between hyphens, that the names of all its fine-tunes share."""
        names = [tuning.name for tuning, _ in self.members.values()]
        segments = [set(name.split("-")) for name in names]
        shared = [segment for segment in names[0].split("-") if all(segment in others for others in segments)]
        return "-".join(shared) or names[0]


def group_by_recipe(evaluations: Sequence[Evaluation], tunings: Sequence[Tuning]) -> list[RecipeGroup]:
    """Group the finished fine-tunes that have an evaluation by recipe, in their order."""
    groups: dict[str, tuple[dict[str, Any], dict[int, tuple[Tuning, Evaluation]]]] = {}
    for tuning in tunings:
        after = next((e for e in evaluations if e.status == "done" and e.model.fingerprint in tuning.results), None)
        if tuning.status == "done" and after is not None:
            settings = _recipe_settings(tuning)
            members = groups.setdefault(digest(settings), (settings, {}))[1]
            members.setdefault(tuning.seed, (tuning, after))
    return [RecipeGroup(settings, members) for settings, members in groups.values()]


def contrasts_across_seeds(evaluations: Sequence[Evaluation], tunings: Sequence[Tuning], *, margins: Margins,
                           ledger: Ledger) -> list[Contrast]:
    """Compare every two recipes of one base that have enough seeds in common and comparable evaluations."""
    pairs = combinations(group_by_recipe(evaluations, tunings), 2)
    return [c for left, right in pairs if (c := _contrast(left, right, margins, ledger)) is not None]


def _recipe_settings(tuning: Tuning) -> dict[str, Any]:
    """Everything that decides a fine-tune except its seed."""
    settings = {k: v for k, v in tuning.settings.items() if k not in _IGNORED}
    return {"base": tuning.base.fingerprint, "method": tuning.method, "data": tuning.data_source,
            "examples": tuning.examples, **settings}


def _contrast(left: RecipeGroup, right: RecipeGroup, margins: Margins, ledger: Ledger) -> Contrast | None:
    seeds = [seed for seed in left.members if seed in right.members]
    if left.settings["base"] != right.settings["base"] or len(seeds) < ENOUGH_SEEDS:
        return None
    pairs = [(left.members[seed][1], right.members[seed][1]) for seed in seeds]
    rows = _rows(pairs, margins, ledger)
    if not rows:
        return None
    names = dict.fromkeys([*left.settings, *right.settings])
    settings = tuple((name, _text(left.settings.get(name)), _text(right.settings.get(name))) for name in names
                     if left.settings.get(name) != right.settings.get(name))
    factors = {_FACTORS.get(name, name.replace("_", " ")) for name, _, _ in settings}
    ids = tuple((a.id, b.id) for a, b in pairs)
    first = left.members[seeds[0]][0]
    return Contrast(id="r-" + digest([ids, [r.margin for r in rows]])[:10], left=left.name, right=right.name,
                    factor=factors.pop() if len(factors) == 1 else "recipe", base_name=first.base.source,
                    settings=settings, seeds=tuple(seeds), evaluations=ids, rows=rows)


def _rows(sides: Sequence[tuple[Evaluation, Evaluation]], margins: Margins, ledger: Ledger
          ) -> tuple[ComparisonRow, ...]:
    """A row for each task whose primary metric has values of every seed on the same items. The rows are one family."""
    tasks: list[tuple[Pair, list[MetricValues], SeedContrast]] = []
    for task in sides[0][0].tasks:
        per_seed = [_primary_values(a, b, task.task, ledger) for a, b in sides]
        available = [v for v in per_seed if v is not None]
        if len(available) < len(sides) or len({tuple(a.item for a in pair.left) for pair, _ in available}) > 1:
            continue
        pair, values = available[0][0], [v for _, v in available]
        sign = 1 if _higher_is_better(pair) else -1
        tasks.append((pair, values, seed_contrast(np.array([sign * (v.tuned - v.base) for v in values]))))
    margin = [margin_of(margins, _unit(values), pair.settings.task, *pair.settings.groups) for pair, values, _ in tasks]
    tested = [contrast.tests(m) for (_, _, contrast), m in zip(tasks, margin, strict=True) if m is not None]
    decisions = iter(decide([Case(tests=tests) for tests in tested]))
    return tuple(_row(pair, values, contrast, m, None if m is None else next(decisions))
                 for (pair, values, contrast), m in zip(tasks, margin, strict=True))


def _unit(values: Sequence[MetricValues]) -> Unit:
    """The unit of one metric over all seeds: no share if it is none with one seed."""
    return next((v.unit for v in values if v.unit not in FRACTIONS), values[0].unit)


def _primary_values(left: Evaluation, right: Evaluation, task: str, ledger: Ledger
                    ) -> tuple[Pair, MetricValues] | None:
    """One task of one seed: its pair and the values of its primary metric. None where it cannot be compared."""
    ours, theirs = left.task(task), right.task(task)
    if ours is None or theirs is None or ours.used is not None or theirs.used is not None:
        return None
    pair = pair_answers(ours, ledger.answers(left.id, task), ledger.answers(right.id, task))
    if not pair.left or any(d.blocking for d in find_differences(left, right, {task: pair.counts}, tasks=(task,))):
        return None
    values = metric_values(left, right, pair).get(ours.primary)
    return None if values is None else (pair, values)


def _higher_is_better(pair: Pair) -> bool:
    """True where a higher value of the primary metric is better."""
    settings = pair.settings
    metric = MetricKey(settings.primary).metric
    return bool(settings.higher_is_better.get(settings.primary, settings.higher_is_better.get(metric, True)))


def _row(pair: Pair, values: Sequence[MetricValues], contrast: SeedContrast, margin: float | None,
         decision: Decision | None) -> ComparisonRow:
    low, high = contrast.interval()
    base, tuned = (float(np.mean([getattr(v, side) for v in values])) for side in ("base", "tuned"))
    tests = NO_EVIDENCE if margin is None else contrast.tests(margin)
    evidence = Evidence(n=len(pair.left), base=base, tuned=tuned, delta=contrast.mean, low=low, high=high, kind="real",
                        tests=tests, items_needed=None)
    draft = RowDraft(task=pair.settings.task, key=pair.settings.primary, evidence=evidence, margin=margin, primary=True,
                     unit=_unit(values), target=pair.settings.target, n_total=pair.settings.n_total)
    ask = missing_margin_note(draft.task) if margin is None else ""
    return build_row(draft, decision, lineage=False, notes=[ask, f"over {len(values)} seeds"],
                     tests=tests if decision else None)


def _text(value: Any) -> str:
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
