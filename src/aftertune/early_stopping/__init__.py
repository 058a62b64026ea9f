"""Evaluates a model against a base and stops each task as soon as its verdict is safe.

    decided = until_decided(spec, "smollm2", EarlySpec(margin=2), ledger=ledger)
    decided.comparison.rows[0].told, decided.comparison.rows[0].n          "forgot", 352 (of 10,042)

The items of each task are put into a random order before the first one is asked. A group whose mean is over items is
one test on the pooled items of its tasks. A task stops once its verdict about the models is proven; with the target
"full-run", once it is proven what asking all items would show. In each round every undecided test gets its next batch
of items, both models answer them (the base from the ledger, if its answers are there), and the test makes an interim
analysis. A round is a stage of the evaluation with its own schedule, so a resumed run gives the same results as an
uninterrupted one.

Where the ledger has the base's answers to all items of a multiple-choice task, its items are drawn with weights: most
often where the base was unsure (`aftertune.comparison.weighted_draws`). What decided each draw is stored before the
items of its round are asked, and with the finished evaluation.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from aftertune import tasks
from aftertune.catalog import MetricKey, has_clusters, is_bounded
from aftertune.comparison import compare, differences
from aftertune.comparison.rows import group_chance
from aftertune.comparison.weighted_draws import (
    FEW,
    choice_margin,
    earlier_tunings,
    weighted_test,
    with_strata,
)
from aftertune.early_stopping.running_tests import ItemKey, ItemMetrics, RunningTest, WeightedTest
from aftertune.errors import AmbiguousName, InputError, NotComparable, SourceError
from aftertune.evaluation import EvaluationRun
from aftertune.ledger import Ledger
from aftertune.paths import exists
from aftertune.sources import BaseModelCache
from aftertune.stats.paired import NO_EVIDENCE, wilson
from aftertune.stats.sequential import PairedSequential, first_of_clusters, random_order_key
from aftertune.stats.verdict import ALPHA, Case, at_floor
from aftertune.stats.weighted import enough_items
from aftertune.study import EarlySpec, EvalSpec
from aftertune.tasks import LoadedTask
from aftertune.tasks.pools import pools as pools_of
from aftertune.tasks.pools import weighted_by_items
from aftertune.values import (
    Answer,
    Comparison,
    DrawnBatch,
    Early,
    EarlyUnit,
    Evaluation,
    Item,
    Margin,
    Progress,
    digest,
    plain,
    restore,
)

_Pools = Sequence[tuple[str, list[LoadedTask]]]
StopTarget = Literal["", "models", "full-run"]

#: Items between two interim analyses: of a task with more than FEW items, and of a smaller one.
BATCH, SMALL_BATCH = 32, 8
#: The key of a schedule for what was drawn so far: name of the test -> its batches.
_DRAWN = "drawn"

_ANSWERING = "answering until every task is decided"


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyResult:
    """Both evaluations and their comparison."""

    base: Evaluation
    tuned: Evaluation
    comparison: Comparison


def until_decided(spec: EvalSpec, against: str, early: EarlySpec, *, ledger: Ledger, progress: Progress | None = None,
                  bases: BaseModelCache | None = None, join: bool = False) -> EarlyResult:
    """Evaluate ``spec`` against a base until every primary metric has its verdict, or all items are used.

    against: id or name of a finished evaluation with the same items and settings. If it was stopped early, or if
    ``against`` is a model source, the base is evaluated in the same rounds. A task with ``until_decided`` false is
    asked all of its items. bases: keeps the base of an adapter loaded. join: as in `aftertune.evaluation.evaluate`; the
    processes share the batches of each round, and each makes the same interim analyses. Raises NotComparable where the
    settings differ, and the errors of `aftertune.evaluation.evaluate`.
    """
    for task in spec.tasks:
        if task.target and task.target.slice and task.until_decided is not False:
            raise InputError(f"{task.name} has slices, whose verdicts need all of its items, so it cannot be stopped "
                             "early; leave --slice or --until-decided out")
    return _EarlyStopping(spec, against, early, ledger, progress or (lambda *_: None), bases, join).run()


@dataclass(frozen=True, slots=True)
class _StopRule:
    """How an evaluation is planned: what belongs to its id. shares: number of tests that share the error level with
    each test, without shares all tests do. weighted: names of the tests whose items are drawn with weights."""

    shares: Mapping[str, int]
    target: StopTarget
    weighted: frozenset[str] = frozenset()


class Side(Protocol):
    """One of the two models, which answers items."""

    def ask(self, chosen: Mapping[str, Sequence[int]], stage: int) -> Mapping[ItemKey, ItemMetrics]:
        """The metrics of items, given as task -> indices in the list of its items. May return more items."""


class _StoredSide:
    """A base with all its answers in the ledger."""

    def __init__(self, evaluation: Evaluation, loaded: Sequence[LoadedTask], ledger: Ledger) -> None:
        self.metrics: dict[ItemKey, ItemMetrics] = {}
        for task in loaded:
            answers = ledger.answers(evaluation.id, task.settings.task)
            self.metrics |= {(i.task, i.index): a.metrics for i, a in zip(task.items, answers, strict=True)}

    def ask(self, chosen: Mapping[str, Sequence[int]], stage: int) -> Mapping[ItemKey, ItemMetrics]:
        del chosen, stage
        return self.metrics


class _RunningSide:
    """A model that is evaluated in stages."""

    def __init__(self, run: EvaluationRun) -> None:
        self.run = run

    def ask(self, chosen: Mapping[str, Sequence[int]], stage: int) -> Mapping[ItemKey, ItemMetrics]:
        subsets = tasks.subset_tasks(self.run.loaded, chosen)
        self.run.answer([request for task in subsets for request in task.requests], stage)
        return {(a.task, a.index): a.metrics for task in subsets for a in tasks.task_answers(task, self.run.responses)}


class _EarlyStopping:
    """Both models and their tests, from the random order to the comparison."""

    def __init__(self, spec: EvalSpec, against: str, early: EarlySpec, ledger: Ledger, progress: Progress,
                 bases: BaseModelCache | None, join: bool) -> None:
        self.spec, self.against, self.early_spec, self.ledger, self.progress = spec, against, early, ledger, progress
        self.bases, self.join = bases, join
        self.whole = {t.name for t in spec.tasks if t.until_decided is False}  # asked all items

    def run(self) -> EarlyResult:
        given = self._stored_base()
        if isinstance(given, EvalSpec) and self.early_spec.draw == "weighted":  # asked once, for all its tunings
            given = EvaluationRun(given, self.ledger, self.progress, join=self.join).run()
        self.tuned = EvaluationRun(self.spec, self.ledger, self._tuned_progress, self.bases,
                                   sides=2 if isinstance(given, EvalSpec) else 1, join=self.join)
        prepared = self.tuned.prepare()
        alongside = None if isinstance(given, Evaluation) else EvaluationRun(given, self.ledger, self._base_progress,
                                                                             sides=2, join=self.join)
        base = given if isinstance(given, Evaluation) else self._prepared(alongside)
        _check(base, prepared)
        pools = list(pools_of(self.tuned.loaded))
        stored = {e.id for e in self.ledger.evaluations()}
        self.equal = {name: self._equal_chances(name, members, base) if alongside is None else
                      "the ledger does not have the base's answers to all items"
                      for name, members in pools} if self.early_spec.draw != "uniform" else {}
        for rule in self._rules(pools, base):
            early, tests = self._plan(base, pools, rule)
            base_id, tuned_id = self._ids(base, prepared, early, alone=alongside is None)
            if tuned_id in stored:
                break
        early = replace(early, against=base_id)
        evaluation = replace(prepared, id=tuned_id, early=early,
                             warnings=(*prepared.warnings, *_warnings(tests, self.whole), *self._drawing_notes(tests)))
        if alongside is not None:
            base = alongside.open(replace(base, id=base_id, name=f"{base.name}-alongside",
                                          early=replace(early, against=evaluation.id)))
        tuned = self.tuned.open(evaluation)
        if "running" in (base.status, tuned.status):
            runs = [r for r in (alongside, self.tuned) if r is not None and r.stored.status != "done"]
            base, tuned = self._decide(base, alongside, tests, runs)
        margins = {u.name: Margin(early.margins[u.name], self.given.get(u.name)) for u in early.units}
        margins["*"] = Margin(self.early_spec.margin / 100)  # of their average
        return EarlyResult(base=base, tuned=tuned, comparison=compare(base, tuned, margins=margins, ledger=self.ledger))

    def _rules(self, pools: _Pools, base: Evaluation) -> Iterator[_StopRule]:
        """The rules of earlier versions, the oldest first, then that of this one.

        An evaluation that an earlier version began goes on by the rules of that version.
        """
        shares, draw = self._shares(pools, base), self.early_spec.draw
        weighted = [name for name, reason in self.equal.items() if not reason and draw != "uniform"]
        if draw == "weighted" and not weighted:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in self.equal.items())
            raise InputError(f"--draw weighted: no task can be drawn with weights ({reasons}); leave --draw out to "
                             "draw all items with equal chances")
        if draw != "weighted":
            yield _StopRule({}, "")
            yield _StopRule(shares, "")
            if any(self._stops(name, members) for name, members in pools):
                yield _StopRule(shares, self.early_spec.target)
        if weighted:
            yield _StopRule(shares, self.early_spec.target, frozenset(weighted))

    def _equal_chances(self, name: str, members: Sequence[LoadedTask], base: Evaluation) -> str:
        """Why the items of a test are drawn with equal chances, or "" where they can be drawn with weights."""
        first, items = members[0].settings, [i for t in members for i in t.items]
        if not self._stops(name, members) or len(items) <= FEW:
            return f"it has no more than {FEW} items" if len(items) <= FEW else "it cannot be stopped early"
        if any(t.settings.output_type != "multiple_choice" for t in members) or \
                not first.higher_is_better.get(MetricKey(first.primary).metric, True):
            return "its answers are not choices"
        answers = self._base_answers(members, base)
        known = [(a := answers.get((i.task, i.index))) and choice_margin(a, i.asked, first.primary) for i in items]
        values = [a.metrics.get(first.primary, -1.0) for a in answers.values()]
        if any(k is None for k in known) or not all(0 <= v <= 1 for v in values):
            return "the base's log-likelihoods of its choices are not known"
        labels = _clusters(members, items)
        if labels is not None and (None in labels or len(set(labels)) < len(items) / 2):
            return "its items come in few clusters"
        if self.early_spec.target == "models" and not enough_items(len(items), self._margin(name, members)):
            return "it has too few items for weights to help with a claim about the models"
        return ""

    def _base_answers(self, members: Sequence[LoadedTask], base: Evaluation) -> dict[ItemKey, Answer]:
        """The base's answers to the items of the tasks, from the ledger."""
        return {(t.settings.task, a.index): a for t in members
                for a in self.ledger.answers(base.id, t.settings.task)}

    def _drawing_notes(self, tests: Sequence[RunningTest]) -> Iterator[str]:
        """Which items are drawn with weights, and why others are not."""
        weighted = [t.unit.name for t in tests if t.unit.draw == "weighted"]
        if weighted:
            yield (f"{', '.join(weighted)}: items are drawn with weights, most often where the base was unsure (--draw "
                   "uniform gives all items equal chances)")
        reasons: dict[str, list[str]] = {}
        for test in tests:
            if test.sequential is not None and test.unit.draw != "weighted" and (
                    reason := self.equal.get(test.unit.name)):
                reasons.setdefault(reason, []).append(test.unit.name)
        for reason, names in reasons.items():
            yield f"{', '.join(names)}: items are drawn with equal chances, because {reason}"

    def _ids(self, base: Evaluation, tuned: Evaluation, early: Early, *, alone: bool) -> tuple[str, str]:
        """The ids of both evaluations. alone: the base is finished and has its id."""
        settings = [early.seed, early.min_items, early.max_width,
                    [[u.name, u.batch, early.margins[u.name], u.order, *([u.share] if u.share else []),
                      *([u.draw] if u.draw else [])] for u in early.units],
                    *([early.stop_target] if early.stop_target else []),
                    *([{"max_items": early.max_items}] if early.max_items else [])]
        # both models decide when it stops, so both are part of its identity
        base_id = base.id if alone else self._id(base, [tuned.id, settings])
        return base_id, self._id(tuned, [base_id, settings])

    def _id(self, prepared: Evaluation, content: list[object]) -> str:
        return self.tuned.fresh("e-" + digest(["until decided", prepared.id.partition(".")[0], content])[:10])

    def _stored_base(self) -> Evaluation | EvalSpec:
        """The finished evaluation of the base in the ledger, or the spec to evaluate its model in the same rounds."""
        own = self.spec.tokenizer == "adapter"  # the base has no adapter whose tokenizer it could take
        changes = {"adapter": None, "revision": None, "name": None, "tokenizer": None if own else self.spec.tokenizer}
        model = self.spec.model_copy(update={**changes, "model": self.against})
        try:
            base = self.ledger.find_evaluation(self.against)
        except AmbiguousName:
            raise
        except InputError as error:
            self.reason = str(error)
            return model
        if base.status != "done" and self.early_spec.draw == "weighted" and exists(Path(self.against)):
            self.reason = f"evaluation {base.id} is {base.status!r}"  # this command, or another process of it, began it
            return model
        if any(base.stopped(t.task) for t in base.tasks):
            self.reason = f"evaluation {base.id} was stopped early, so its model must be evaluated again"
            return self.spec.model_copy(update={**changes, "model": base.model.source, "revision": base.model.revision,
                                                "adapter": base.model.adapter_source,
                                                "quantize": base.model.quantization})
        if base.status != "done":
            raise InputError(f"--against {self.against}: evaluation {base.id} is {base.status!r}; run its command "
                             "again to finish it, or give the model itself to evaluate it in the same run")
        return base

    def _prepared(self, alongside: EvaluationRun | None) -> Evaluation:
        assert alongside is not None
        try:
            return alongside.prepare(like=self.tuned)
        except SourceError as error:
            raise InputError(f"--against {self.against!r} is neither a finished evaluation ({self.reason}) nor a "
                             f"model that can be evaluated ({error})") from None

    def _plan(self, base: Evaluation, pools: _Pools, rule: _StopRule) -> tuple[Early, list[RunningTest]]:
        """The tests, each with its items in random order."""
        seed = self.spec.tasks[0].sample_seed
        self.given = {name: given for name, members in pools if (given := self._given(name, members)) is not None}
        margins = {name: self._margin(name, members) for name, members in pools}
        early = Early(against=base.id, seed=seed, margins=margins, units=(), min_items=self.early_spec.min_items,
                      max_width=None if self.early_spec.max_width is None else self.early_spec.max_width / 100,
                      max_items=self.early_spec.max_items,
                      stop_target=rule.target)
        tests = []
        for name, members in pools:
            items = [(t.settings.task, index, item) for t in members for index, item in enumerate(t.items)]
            items.sort(key=lambda i: _order_key(seed, i[2]))
            first = members[0].settings
            metric = MetricKey(first.primary).metric
            testable = self._stops(name, members)
            batch = self.early_spec.batch or (BATCH if len(items) > FEW else SMALL_BATCH)
            batch = min(batch, self.early_spec.max_items or batch)
            unit = EarlyUnit(name=name, key=first.primary, tasks=tuple(t.settings.task for t in members),
                             items=len(items), batch=batch if testable else len(items),
                             order=digest([item.hash for _, _, item in items]))
            share = rule.shares.get(name, len(pools))
            unit = replace(unit, share=share if share != len(pools) else None)
            if name in rule.weighted:
                unit = self._stratified(unit, members, [item for _, _, item in items], base)
            of_models = rule.target == "models"
            sequential = PairedSequential(None if of_models else len(items), margins[name],
                                          alpha=ALPHA / share) if testable else None
            counted = first_of_clusters(_clusters(members, [item for _, _, item in items]) if of_models else None,
                                        len(items))
            sign = 1 if first.higher_is_better.get(metric, True) else -1
            order = [(task, index, (item.task, item.index)) for task, index, item in items]
            tests.append(RunningTest(unit, order, sign, counted, sequential))
        return replace(early, units=tuple(t.unit for t in tests)), tests

    def _shares(self, pools: _Pools, base: Evaluation) -> dict[str, int]:
        """Number of tests that share the error level with each test: those of its family (`stats.verdict.Case`).

        Whether the base is at the floor is known only where its answers are in the ledger.
        """
        families, stored = {}, any(e.id == base.id for e in self.ledger.evaluations())
        for name, members in pools:
            first = members[0].settings
            answers = [a for t in members if stored for a in self.ledger.answers(base.id, t.settings.task)]
            values = [a.metrics[first.primary] for a in answers]
            known = bool(values) and is_bounded(MetricKey(first.primary).metric)
            chance = group_chance([t.settings for t in members], [len(t.items) for t in members])
            floor = known and at_floor(wilson(min(sum(values), len(values)), len(values))[0], chance)
            families[name] = Case(tests=NO_EVIDENCE, target=first.target, at_floor=floor).family
        return {name: list(families.values()).count(family) for name, family in families.items()}

    def _stops(self, name: str, members: Sequence[LoadedTask]) -> bool:
        """Whether a test may end before all items were asked."""
        return _testable(name, members) and not self.whole & _names(name, members)

    def _margin(self, name: str, members: Sequence[LoadedTask]) -> float:
        """The margin of a test, as a fraction."""
        given = self._given(name, members)
        return (self.early_spec.margin if given is None else given) / 100

    def _given(self, name: str, members: Sequence[LoadedTask]) -> float | None:
        """The margin that the user gave for a test by name: in points, or in the unit of its metric."""
        names = _names(name, members)
        return next((t.margin for t in self.spec.tasks if t.name in names and t.margin is not None), None)

    def _decide(self, base: Evaluation, alongside: EvaluationRun | None, tests: list[RunningTest],
                runs: list[EvaluationRun]) -> tuple[Evaluation, Evaluation]:
        """Run the rounds until every test is decided, then store both evaluations."""
        leased: list[EvaluationRun] = []
        try:
            for run in runs:
                run.start()
                leased.append(run)
            left: Side = (_StoredSide(base, self.tuned.loaded, self.ledger) if alongside is None
                          else _RunningSide(alongside))
            early = self.tuned.stored.early
            assert early is not None
            tests = [self._weighted(test, unit, base, early) if unit.draw == "weighted" else test
                     for test, unit in zip(tests, early.units, strict=True)]
            self._rounds(left, _RunningSide(self.tuned), tests, early)
            ended = {run: _finish(run, tests) for run in runs}
        finally:
            for run in leased:
                run.leave()
        return (ended.get(alongside, base) if alongside else base), ended.get(self.tuned, self.tuned.stored)

    def _rounds(self, left: Side, right: Side, tests: list[RunningTest], early: Early) -> None:
        stage, total = 0, sum(t.unit.items for t in tests)
        while undecided := [t for t in tests if not t.decided]:
            used = sum(t.used for t in tests)
            self.round = used, sum(len(t.next_batch()) for t in undecided), total
            self.progress(used, total, _ANSWERING)
            chosen: dict[str, list[int]] = {}
            for test in undecided:
                for task, index, _ in test.next_batch():
                    chosen.setdefault(task, []).append(index)
            self.tuned.further = {_DRAWN: drawn} if (drawn := {
                t.unit.name: plain(t.batches) for t in tests if isinstance(t, WeightedTest)}) else {}
            base, tuned = left.ask(chosen, stage), right.ask(chosen, stage)
            for test in undecided:
                test.analyze(base, tuned, early)
            stage += 1

    def _stratified(self, unit: EarlyUnit, members: Sequence[LoadedTask], items: Sequence[Item], base: Evaluation
                    ) -> EarlyUnit:
        """The unit with the strata of its items, which are in their random order."""
        def values(answers: Mapping[ItemKey, Answer]) -> NDArray[np.float64]:
            found = (answers.get((item.task, item.index)) for item in items)
            return np.array([np.nan if answer is None else answer.metrics[unit.key] for answer in found])

        answers = self._base_answers(members, base)
        margins = [choice_margin(answers[i.task, i.index], i.asked, unit.key) or 0.0 for i in items]
        own = values(answers)
        earlier = earlier_tunings(base, self.tuned.identity.fingerprint, unit.tasks, self.ledger)
        return with_strata(unit, own, margins, [(own, values(self._base_answers(members, e))) for e in earlier])

    def _weighted(self, test: RunningTest, unit: EarlyUnit, base: Evaluation, early: Early) -> WeightedTest:
        """The test of a stored unit, with the batches that were drawn before an interruption."""
        members = [t for t in self.tuned.loaded if t.settings.task in unit.tasks]
        item_of = {(i.task, i.index): i for t in members for i in t.items}
        answers = self._base_answers(members, base)
        own = np.array([answers[key].metrics[unit.key] for _, _, key in test.order])
        of_models = early.stop_target == "models"
        labels = _clusters(members, [item_of[key] for _, _, key in test.order]) if of_models else None
        sequential = weighted_test(unit, own, early.margins[unit.name], alpha=ALPHA / (unit.share or len(early.units)),
                                   models=of_models, labels=labels)
        stored = (self.tuned.schedule or {}).get(_DRAWN, {}).get(unit.name, [])
        return WeightedTest(unit, test.order, sequential, early.seed, [restore(DrawnBatch, b) for b in stored])

    def _base_progress(self, done: int, total: int, text: str) -> None:
        """Report the steps of the base that occur once, without the batches of a round."""
        if not total and text != "planning the batches":
            self.progress(done, total, text)

    def _tuned_progress(self, done: int, total: int, text: str) -> None:
        """Report the steps of the tuned model, and its batches as a part of the items of the round."""
        self._base_progress(done, total, text)
        if total and text == "answering":
            used, batch, items = self.round
            self.progress(used + batch * done // total, items, _ANSWERING)


def _order_key(seed: int, item: Item) -> str:
    return random_order_key(seed, item.task, item.index, item.hash)


def _names(name: str, members: Sequence[LoadedTask]) -> set[str]:
    """The names under which a test may be asked for: its own, and those of its tasks and their groups."""
    return {name, *(n for t in members for n in (t.settings.task, *t.settings.groups))}


def _testable(name: str, members: Sequence[LoadedTask]) -> bool:
    """True where the primary metric can be tested before all items were asked."""
    metric = MetricKey(members[0].settings.primary).metric
    return all(is_bounded(metric, t.settings.task) for t in members) and weighted_by_items(name, members)


def _clusters(members: Sequence[LoadedTask], items: Sequence[Item]) -> list[Hashable | None] | None:
    """The clusters of items in their random order, as a comparison finds them; None where no two belong together."""
    fields = {t.settings.task: t.settings.cluster for t in members}
    alone = len(members) == 1 and not has_clusters(members[0].settings.task) and not members[0].settings.target
    labels: list[Hashable | None] = []
    for item in items:
        field = None if alone else fields[item.task]
        labels.append(("item", item.hash) if field is None else None if item.cluster is None else (field, item.cluster))
    return labels if None in labels or len(set(labels)) < len(labels) else None


def _warnings(tests: Sequence[RunningTest], whole: Collection[str]) -> Iterator[str]:
    """Why tests do not stop early, except those of tasks that are asked all their items (``whole``)."""
    for test in tests:
        if test.sequential is None and not {test.unit.name, *test.unit.tasks} & {*whole}:
            reason = "its mean weights tasks, not items" if len(test.unit.tasks) > 1 else \
                f"{MetricKey(test.unit.key).metric} has no bounds"
            yield f"{test.unit.name}: all items were asked, because it cannot be stopped early ({reason})"


def _found_warnings(tests: Sequence[RunningTest]) -> Iterator[str]:
    """What became known only from the answers: a metric that was taken for a share and is none, and tasks that were
    stopped on a weighted sample."""
    for test in tests:
        if test.no_share:
            yield (f"{test.unit.name}: all items were asked, because it cannot be stopped early "
                   f"({MetricKey(test.unit.key).metric} has values outside 0 to 1)")
        if test.ended().unequal:
            yield (f"{test.unit.name}: no score, because its items were drawn with weights; the comparison with the "
                   "base has a weighted estimate")


def _check(base: Evaluation, tuned: Evaluation) -> None:
    """Raise NotComparable unless both models get the same items under the same settings."""
    blocking = [d for d in differences(base, tuned) if d.blocking or (d.left, d.right) == ("absent", "evaluated")]
    if blocking:
        listed = "; ".join(f"{d.field} ({d.left} | {d.right})" for d in blocking[:8])
        more = f" and {len(blocking) - 8} more" if len(blocking) > 8 else ""
        raise NotComparable(f"{base.name} and {tuned.name} cannot be compared: they differ in {listed}{more}; evaluate "
                            "both under the same settings, or give the base's model as --against to evaluate it again")


def _finish(run: EvaluationRun, tests: Sequence[RunningTest]) -> Evaluation:
    """Store an evaluation with the items that were asked; of several processes, one does."""
    if not run.may_finish():
        return run.stored
    asked: dict[str, list[int]] = {task.settings.task: [] for task in run.loaded}
    for test in tests:
        for name, index, _ in test.asked:
            asked[name].append(index)
    stopped = {name: test for test in tests if test.stopped for name in test.unit.tasks}
    subsets = [replace(task, groups={n: g for n, g in task.groups.items()
                                     if n == stopped[task.settings.task].unit.name})
               if task.settings.task in stopped else task for task in tasks.subset_tasks(run.loaded, asked)]
    early = run.stored.early
    assert early is not None
    value = replace(
        run.stored, early=replace(early, units=tuple(test.ended() for test in tests)),
        warnings=(*run.stored.warnings, *_found_warnings(tests)),
        tasks=tuple(replace(t, used=len(asked[t.task]), draw_seed=early.seed) if t.task in stopped else t
                    for t in run.stored.tasks))
    return run.finish(subsets, value)
