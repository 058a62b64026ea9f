"""Compares recipes, such as two methods or two data sizes, over several training seeds.

    for contrast in contrasts_across_seeds(evaluations, tunings, margins={"hellaswag": 0.02}, ledger=ledger):
        contrast.factor, contrast.left, contrast.right, contrast.rows[0].verdict
    recipe_changes(base, evaluations_of_one_recipe, ledger)["hellaswag"].low      one recipe against its base

Fine-tunes of one base that differ only in their seed are one recipe. Two recipes with at least three seeds in common
are compared on the same items (`aftertune.stats.across_seeds`). Two with fewer are not compared. The rules are those of
a comparison of two models: a group is one test, clusters count, two recipes at the floor are undecided, and the average
over the tasks is a question of its own (`comparison.average`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from aftertune.catalog import FRACTIONS, Unit
from aftertune.comparison.average import average_group, average_name, average_note, why_left_out
from aftertune.comparison.clusters import average_clusters, question_clusters, with_clusters
from aftertune.comparison.compatibility import find_differences
from aftertune.comparison.expected_accuracy import answers_and_questions
from aftertune.comparison.margins import Margins, margin_of, missing_margin_note
from aftertune.comparison.pairing import MetricValues, Pair, metric_values, pair_answers, score_of
from aftertune.comparison.rows import RowDraft, TaskGroup, build_row, group_note, paired_groups, replacing_groups
from aftertune.stats.across_seeds import ENOUGH_SEEDS, SeedErrors, SeedSpread, pooled_spread, seed_errors
from aftertune.stats.clustered import stratified_mean
from aftertune.stats.evidence import Evidence, cluster_notes, is_shares
from aftertune.stats.item_errors import Clusters
from aftertune.stats.paired import NO_EVIDENCE, Floats
from aftertune.stats.verdict import Case, Decision, at_floor, decide
from aftertune.values import ComparisonRow, Contrast, Evaluation, Tuning, digest

if TYPE_CHECKING:
    from aftertune.ledger import Ledger

#: Settings that depend on the seed or the machine, that repeat another setting, or with which a training ends with the
#: same weights as without them. They do not distinguish recipes.
_IGNORED = ("threads", "device", "held_out", "validation", "replay", "keep_checkpoints", "watched")
#: Setting -> the factor of a comparison, where only this setting differs.
_FACTORS = {"method": "method", "examples": "data size", "replay_share": "replay", "replay_examples": "replay",
            "replay_base": "replay",
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
            settings = recipe_settings(tuning)
            members = groups.setdefault(digest(settings), (settings, {}))[1]
            members.setdefault(tuning.seed, (tuning, after))
    return [RecipeGroup(settings, members) for settings, members in groups.values()]


def contrasts_across_seeds(evaluations: Sequence[Evaluation], tunings: Sequence[Tuning], *, margins: Margins,
                           ledger: Ledger) -> list[Contrast]:
    """Compare every two recipes of one base that have enough seeds in common and comparable evaluations."""
    recipes = group_by_recipe(evaluations, tunings)
    return [c for left, right in combinations(recipes, 2)
            if (c := _contrast(left, right, recipes, margins, ledger)) is not None]


@dataclass(frozen=True, slots=True)
class RecipeChange:
    """How far a recipe moved its base on a task, a group or the average, over its seeds and items. low, high: of the
    95 % interval; positive is better. average_of: the tasks and groups of an average."""

    mean: float
    low: float
    high: float
    average_of: tuple[str, ...] = ()


def recipe_changes(base: Evaluation, evaluations: Sequence[Evaluation], ledger: Ledger, tasks: Collection[str] = ()
                   ) -> dict[str, RecipeChange]:
    """Name of a task, a group or the average -> its change, as in a contrast of which one side has no seeds; {} for
    fewer than three seeds. evaluations: of one recipe, one for each seed. tasks: only these, and their average. It is
    no verdict: a margin belongs to a comparison."""
    if len(evaluations) < ENOUGH_SEEDS:
        return {}
    sides = [(base, tuned) for tuned in evaluations]
    questions = [q for q in _questions(sides, ledger) if not tasks or q.group.name in tasks]
    names = {name for side in sides for e in side for t in e.tasks for name in (t.task, *t.groups)}
    found = {}
    for question in (*questions, *average_over_seeds(questions, average_name(names))):
        errors = question.errors
        found[question.group.name] = RecipeChange(errors.mean, *_interval(question, errors),
                                                  tuple(q.group.name for q in question.average_of))
    return found


def recipe_settings(tuning: Tuning) -> dict[str, Any]:
    """Everything that decides a fine-tune except its seed."""
    settings = {k: v for k, v in tuning.settings.items() if k not in _IGNORED}
    watch = settings.get("watch")
    if isinstance(watch, Mapping) and not watch.get("stop"):  # it only looks
        del settings["watch"]
    return {"base": tuning.base.fingerprint, "method": tuning.method, "data": tuning.data_source,
            "examples": tuning.examples, **settings}


def _contrast(left: RecipeGroup, right: RecipeGroup, recipes: Sequence[RecipeGroup], margins: Margins, ledger: Ledger
              ) -> Contrast | None:
    seeds = [seed for seed in left.members if seed in right.members]
    if left.settings["base"] != right.settings["base"] or len(seeds) < ENOUGH_SEEDS:
        return None
    pairs = [(left.members[seed][1], right.members[seed][1]) for seed in seeds]
    others = [[e for _, e in r.members.values()] for r in recipes
              if r not in (left, right) and r.settings["base"] == left.settings["base"]]
    rows = _rows(pairs, others, margins, ledger)
    if not rows:
        return None
    names = dict.fromkeys([*left.settings, *right.settings])
    changed = [name for name in names if left.settings.get(name) != right.settings.get(name)]
    settings = tuple(line for name in changed
                     for line in _changes(name, left.settings.get(name), right.settings.get(name)))
    factors = {_FACTORS.get(name, name.replace("_", " ")) for name in changed}
    ids = tuple((a.id, b.id) for a, b in pairs)
    first = left.members[seeds[0]][0]
    return Contrast(id="r-" + digest([ids, [r.margin for r in rows]])[:10], left=left.name, right=right.name,
                    factor=factors.pop() if len(factors) == 1 else "recipe", base_name=first.base.source,
                    settings=settings, seeds=tuple(seeds), evaluations=ids, rows=rows)


@dataclass(frozen=True, slots=True)
class SeedQuestion:
    """One test: a task, a group that replaces its tasks, or an average. seeds: its paired values of each seed, task by
    task.

    names: of the task and its groups, for the margin. spread: between the seeds of a recipe, pooled over the study.
    average_of: the tasks and groups of an average; left_out: (name, why) of the others.
    """

    group: TaskGroup
    seeds: Sequence[TaskGroup]
    names: tuple[str, ...]
    is_group: bool
    spread: SeedSpread | None = None
    average_of: tuple[SeedQuestion, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()

    @property
    def unit(self) -> Unit:
        """Of the values: no share if they are none with one seed."""
        return next((g.unit for g in self.seeds if g.unit not in FRACTIONS), self.group.unit)

    @property
    def errors(self) -> SeedErrors:
        """Of the right recipe's mean minus the left one's, with the sign turned so that positive is better."""
        return self._of(lambda v: v.tuned - v.base if v.higher_is_better else v.base - v.tuned, bounded=self.shares,
                        spread=self.spread)

    @property
    def at_floor(self) -> bool:
        """True where neither recipe is above the floor, so that equal scores mean nothing."""
        if self.average_of or not (self.shares and self.group.members[0][1].higher_is_better):
            return False
        lows = [self._of(side).interval()[0] for side in (lambda v: v.base, lambda v: v.tuned)]
        return all(at_floor(low, self.group.chance) for low in lows)

    @property
    def shares(self) -> bool:
        """True where the metric is a share, and all values are in [0, 1]."""
        values = (side for g in self.seeds for _, v in g.members for side in (v.base, v.tuned))
        return self.unit in FRACTIONS and is_shares(*values)

    def _of(self, value: Callable[[MetricValues], Floats], *, bounded: bool = False, spread: SeedSpread | None = None
            ) -> SeedErrors:
        """The errors of a mean over seeds and items. bounded: of differences of shares."""
        strata = [np.array([value(g.members[k][1]) for g in self.seeds]) for k in range(len(self.group.members))]
        return seed_errors(strata, weighting=self.group.weighting, clusters=self._clusters(), bounded=bounded,
                           spread=spread, members=self.group.sizes)

    def _clusters(self) -> Clusters | None:
        if self.average_of:
            return average_clusters([q.group.pairs for q in self.average_of])
        return question_clusters(self.group.pairs)

    @property
    def case(self) -> Case:
        """The test without its p-values, for its family."""
        return Case(tests=NO_EVIDENCE, at_floor=self.at_floor, target=self.group.pairs[0].settings.target)


def _rows(sides: Sequence[tuple[Evaluation, Evaluation]], others: Sequence[Sequence[Evaluation]], margins: Margins,
          ledger: Ledger) -> tuple[ComparisonRow, ...]:
    """A row for each primary metric, as for two models, where every seed has values on the same items.

    others: the evaluations of each other recipe, over its seeds.
    """
    questions = _questions(sides, ledger)
    names = {name for side in sides for e in side for t in e.tasks for name in (t.task, *t.groups)}
    average = average_over_seeds(questions, average_name(names))
    judged = [judge_questions([replace(q, spread=_spread(q, sides, others)) for q in family], margins)
              for family in (questions, average)]
    return tuple(_row(*values) for family in judged for values in family)


def average_over_seeds(questions: Sequence[SeedQuestion], name: str) -> list[SeedQuestion]:
    """The average over the questions on which something can be lost, as one question; [] for fewer than two."""
    reasons = [why_left_out(q.unit, q.shares, q.case) for q in questions]
    members = tuple(q for q, why in zip(questions, reasons, strict=True) if not why)
    if len(members) < 2:
        return []
    seeds = [average_group(name, [q.seeds[s] for q in members]) for s in range(len(members[0].seeds))]
    return [SeedQuestion(seeds[0], seeds, (name,), True, average_of=members, left_out=tuple(
        (q.group.name, why) for q, why in zip(questions, reasons, strict=True) if why))]


def _spread(question: SeedQuestion, sides: Sequence[tuple[Evaluation, Evaluation]],
            others: Sequence[Sequence[Evaluation]]) -> SeedSpread | None:
    """The variance between seeds of a share, pooled over all recipes that answered the same items."""
    group = question.group
    if not question.shares:
        return None

    def scores(evaluations: Sequence[Evaluation]) -> Floats:
        """Of the seeds of one recipe that have this task on the same items."""
        found = [_score(e, question) for e in evaluations
                 if all((t := e.task(p.settings.task)) and t.items == p.settings.items and t.used is None
                        for p in group.pairs)]
        return np.array([s for s in found if s is not None])

    pair = [scores([side[k] for side in sides]) for k in (0, 1)]
    return pooled_spread(pair, [scores(recipe) for recipe in others])


def _score(evaluation: Evaluation, question: SeedQuestion) -> float | None:
    """The stored score of a question, or the average of those of its members; None where one is missing."""
    if not question.average_of:
        score = score_of(evaluation, question.group.name, question.group.key)
        return None if score is None else score.value
    values = [(_score(evaluation, q), q.group.members[0][1].higher_is_better) for q in question.average_of]
    known = [v if better else 1 - v for v, better in values if v is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def judge_questions(questions: Sequence[SeedQuestion], margins: Margins
                    ) -> list[tuple[SeedQuestion, SeedErrors, float | None, Decision | None]]:
    """Each question with its errors, its margin and its decision; None for a metric without a margin in its unit."""
    errors = [q.errors for q in questions]
    given = [margin_of(margins, q.unit, *q.names) for q in questions]
    cases = [replace(q.case, tests=e.tests(margin), clustered=e.robust_tests(margin))
             for q, e, margin in zip(questions, errors, given, strict=True) if margin is not None]
    decisions = iter(decide(cases))
    return [(q, e, margin, None if margin is None else next(decisions))
            for q, e, margin in zip(questions, errors, given, strict=True)]


def _questions(sides: Sequence[tuple[Evaluation, Evaluation]], ledger: Ledger) -> list[SeedQuestion]:
    """The primary metrics that can be tested over all seeds, in the order of their tasks."""
    pairs = _common_pairs(sides, ledger)
    tables = [{p.settings.task: metric_values(*evaluations, p) for p in own}
              for evaluations, own in zip(sides, pairs, strict=True)]
    found = [{(g.name, g.key): g for g in paired_groups(*evaluations, own, table)}
             for evaluations, own, table in zip(sides, pairs, tables, strict=True)]
    shared = [g for key, g in found[0].items() if all(key in groups for groups in found)]
    questions = [SeedQuestion(g, [groups[g.name, g.key] for groups in found], (g.name,), True)
                 for g in replacing_groups(shared)]
    replaced = {task for q in questions if not q.group.sliced for task in q.group.tasks}
    for k, pair in enumerate(pairs[0]):
        task, key = pair.settings.task, pair.settings.primary
        values = [v for table in tables if (v := table[task].get(key)) is not None]
        if task not in replaced and len(values) == len(sides):
            seeds = [TaskGroup(task, key, ((own[k], v),), None) for own, v in zip(pairs, values, strict=True)]
            questions.append(SeedQuestion(seeds[0], seeds, (task, *pair.settings.groups), False))
    order = [p.settings.task for p in pairs[0]]
    return sorted(questions, key=lambda q: order.index(q.group.pairs[0].settings.task))


def _common_pairs(sides: Sequence[tuple[Evaluation, Evaluation]], ledger: Ledger) -> list[list[Pair]]:
    """For each seed the pairs of the tasks that every seed has on the same items, in the same order."""
    kept: list[list[Pair]] = [[] for _ in sides]
    for task in sides[0][0].tasks:
        pairs = [_pair(a, b, task.task, ledger) for a, b in sides]
        available = [p for p in pairs if p is not None]
        if len(available) == len(sides) and len({tuple(a.item for a in p.left) for p in available}) == 1:
            available[0] = with_clusters(available[0], *sides[0], ledger)
            for own, pair in zip(kept, available, strict=True):
                own.append(pair)
    return kept


def _pair(left: Evaluation, right: Evaluation, task: str, ledger: Ledger) -> Pair | None:
    """The paired answers to one task of one seed. None where they cannot be compared."""
    ours, theirs = left.task(task), right.task(task)
    if ours is None or theirs is None or ours.used is not None or theirs.used is not None:
        return None
    pair = pair_answers(ours, *answers_and_questions(left, right, ours, ledger)[:2])
    differences = find_differences(left, right, {task: pair.counts}, tasks=(task,))
    return None if not pair.left or any(d.blocking for d in differences) else pair


def _interval(question: SeedQuestion, errors: SeedErrors) -> tuple[float, float]:
    """The 95 % interval of a task, a group or an average."""
    return errors.widest_interval() if question.average_of else errors.interval()


def _row(question: SeedQuestion, errors: SeedErrors, margin: float | None, decision: Decision | None) -> ComparisonRow:
    group, settings = question.group, question.group.pairs[0].settings
    low, high = _interval(question, errors)
    names = tuple(q.group.name for q in question.average_of)
    base, tuned = (float(np.mean([stratified_mean([getattr(v, side) for _, v in seed.members], group.weighting).mean
                                  for seed in question.seeds])) for side in ("base", "tuned"))
    tests = NO_EVIDENCE if margin is None else errors.tests(margin)
    evidence = Evidence(n=sum(len(p.left) for p in group.pairs), base=base, tuned=tuned, delta=errors.mean, low=low,
                        high=high, kind="real", tests=tests, shares=question.shares,
                        clustered=None if margin is None else errors.robust_tests(margin))
    draft = RowDraft(task=group.name, key=group.key, evidence=evidence, margin=margin, primary=True, unit=question.unit,
                     target=settings.target, n_total=sum(p.settings.n_total for p in group.pairs), average_of=names)
    notes = [missing_margin_note(group.name) if margin is None else "", f"over {len(question.seeds)} seeds",
             spread_note(question.spread),
             average_note(names, question.left_out) if names else
             group_note(group.weighting, len(group.members)) if question.is_group else "",
             *cluster_notes(errors.items, question.shares), decision.note if decision else "",
             "both recipes score no better than a guess" if decision and decision.at_floor else ""]
    return build_row(draft, decision, lineage=False, notes=notes, tests=tests if decision else None)


def spread_note(spread: SeedSpread | None) -> str:
    """Where the error between seeds is from, if other recipes are part of it."""
    return f"error between seeds pooled over {spread.recipes} recipes" if spread and spread.recipes > 2 else ""


def _changes(name: str, left: Any, right: Any) -> list[tuple[str, str, str]]:
    """The name of a setting with its two values in words; of a setting with parts, each part that differs."""
    if not all(value is None or isinstance(value, Mapping) for value in (left, right)):
        return [(name, _text(left), _text(right))]
    one, other = left or {}, right or {}
    parts = [part for part in dict.fromkeys([*one, *other]) if one.get(part) != other.get(part)]
    return [line for part in parts for line in _changes(f"{name} {part}", one.get(part), other.get(part))]


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "–", True: "yes", False: "no"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
