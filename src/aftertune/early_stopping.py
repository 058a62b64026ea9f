"""An evaluation that stops at the first safe moment: owns the draw, the looks and the end.

    decided = until_decided(spec, "smollm2", EarlySpec(margin=2), ledger=ledger)
    decided.comparison.rows[0].told, decided.comparison.rows[0].n          "forgot", 352 (of 10,042)

The items of each task (of a group whose mean is over items: of all its tasks together) are put into a random order
before anything is scored. Then, round by round, each task that is not decided gets its next batch of items, both models
answer it (the base from the ledger where it has them), and the sequential test looks. Every round is a stage of the
evaluation with a schedule of its own, so what follows from the answers so far is the same on resume: a killed run ends
with the numbers of an unbroken one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from aftertune import tasks
from aftertune.catalog import MetricKey, is_bounded
from aftertune.comparison import compare, differences
from aftertune.errors import InputError, NotComparable, SourceError
from aftertune.evaluation import EvaluationRun
from aftertune.ledger import Ledger
from aftertune.stats.sequential import PairedSequential, draw_key
from aftertune.stats.verdict import ALPHA
from aftertune.study import EarlySpec, EvalSpec
from aftertune.tasks import LoadedTask
from aftertune.values import Comparison, Early, EarlyUnit, Evaluation, Item, Progress, digest

#: Items between two looks, and for a task of up to FEW items, where a batch would be a good part of it.
BATCH, SMALL_BATCH, FEW = 32, 8, 200

_ASKING = "asking until decided, of at most all items"

#: An item by (task, index); its metrics by ``metric,filter``.
Key = tuple[str, int]
Metrics = Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """Both evaluations and what they came to."""

    base: Evaluation
    tuned: Evaluation
    comparison: Comparison


def until_decided(spec: EvalSpec, against: str, early: EarlySpec, *, ledger: Ledger, progress: Progress | None = None
                  ) -> Decided:
    """Evaluate ``spec`` against a base until every primary metric has its verdict, or all items are used.

    against: id or name of a finished evaluation of the ledger with the same items and settings; or of one that was
    itself stopped early, or a model source: then the base is scored alongside. Raises NotComparable where the settings
    differ, and the errors of `aftertune.evaluation.evaluate`.
    """
    return _Deciding(spec, against, early, ledger, progress or (lambda *_: None)).whole()


class Side(Protocol):
    """One of the two models."""

    def ask(self, chosen: Mapping[str, Sequence[int]], stage: int) -> Mapping[Key, Metrics]:
        """Metrics of the chosen items (places in each task's list of items)."""


class _Stored:
    """A base whose answers are all in the ledger."""

    def __init__(self, evaluation: Evaluation, loaded: Sequence[LoadedTask], ledger: Ledger) -> None:
        self.known: dict[Key, Metrics] = {}
        for one in loaded:
            answers = ledger.answers(evaluation.id, one.settings.task)
            self.known |= {(i.task, i.index): a.metrics for i, a in zip(one.items, answers, strict=True)}

    def ask(self, chosen: Mapping[str, Sequence[int]], stage: int) -> Mapping[Key, Metrics]:
        del chosen, stage
        return self.known


class _Scored:
    """A model that answers stage by stage."""

    def __init__(self, run: EvaluationRun) -> None:
        self.run = run

    def ask(self, chosen: Mapping[str, Sequence[int]], stage: int) -> Mapping[Key, Metrics]:
        parts = tasks.subset_tasks(self.run.loaded, chosen)
        self.run.answer([r for one in parts for r in one.requests], stage)
        return {(a.task, a.index): a.metrics for one in parts for a in tasks.task_answers(one, self.run.found)}


class _Unit:
    """One sequential verdict on its way. order: (task, place, key) of each item in drawn order."""

    def __init__(self, unit: EarlyUnit, order: Sequence[tuple[str, int, Key]], sign: int,
                 watch: PairedSequential | None, early: Early) -> None:
        self.unit, self.order, self.sign, self.watch, self.early = unit, order, sign, watch, early
        self.used = 0
        self.decided = False

    def next(self) -> Sequence[tuple[str, int, Key]]:
        return self.order[self.used:self.used + self.unit.batch]

    def look(self, base: Mapping[Key, Metrics], tuned: Mapping[Key, Metrics]) -> None:
        """Take the answers to the batch; decided is True once the verdict may stand or all items are used."""
        batch, key = self.next(), self.unit.key
        if self.watch is not None:
            self.watch.update([self.sign * (tuned[k][key] - base[k][key]) for _, _, k in batch])
        self.used += len(batch)
        self.decided = self.used == self.unit.items or self._settled()

    def _settled(self) -> bool:
        if self.watch is None or self.watch.verdict is None or self.used < self.early.min_items:
            return False
        low, high = self.watch.interval() if self.early.max_width is not None else (0.0, 0.0)
        return high - low <= (self.early.max_width or 0.0)

    @property
    def stopped(self) -> bool:
        return self.used < self.unit.items

    def ended(self) -> EarlyUnit:
        verdict = self.watch.verdict if self.watch and self.stopped else None
        return replace(self.unit, used=self.used, verdict=verdict)


class _Deciding:
    """The two sides and their units, from the draw to the comparison."""

    def __init__(self, spec: EvalSpec, against: str, early: EarlySpec, ledger: Ledger, progress: Progress) -> None:
        self.spec, self.against, self.early_spec, self.ledger, self.progress = spec, against, early, ledger, progress

    def whole(self) -> Decided:
        found = self._stored_base()
        self.tuned = EvaluationRun(self.spec, self.ledger, self._told, sides=2 if isinstance(found, EvalSpec) else 1)
        prepared = self.tuned.prepare()
        alongside = None if isinstance(found, Evaluation) else EvaluationRun(found, self.ledger, self._quietly, sides=2)
        base = found if isinstance(found, Evaluation) else self._prepared(alongside)
        _check(base, prepared)
        early, drawn = self._draw(base.id)
        settings = [early.seed, early.min_items, early.max_width,
                    [[u.name, u.batch, early.margins[u.name], u.order] for u in early.units]]
        if alongside is not None:  # the pair decides when it stops, so the pair is its identity
            base = replace(base, id=self._id(base, [prepared.id, settings]), name=f"{base.name}-alongside")
        early = replace(early, against=base.id)
        evaluation = replace(prepared, id=self._id(prepared, [base.id, settings]), early=early,
                             warnings=(*prepared.warnings, *_notes(drawn)))
        if alongside is not None:
            base = alongside.open(replace(base, early=replace(early, against=evaluation.id)))
        tuned = self.tuned.open(evaluation)
        if "running" in (base.status, tuned.status):
            runs = [r for r in (alongside, self.tuned) if r is not None and r.stored.status != "done"]
            base, tuned = self._decide(base, alongside, drawn, runs)
        margins = {u.name: early.margins[u.name] for u in early.units}
        return Decided(base=base, tuned=tuned, comparison=compare(base, tuned, margins=margins, ledger=self.ledger))

    def _id(self, prepared: Evaluation, more: list[object]) -> str:
        return self.tuned.fresh("e-" + digest(["until decided", prepared.id.partition(".")[0], more])[:10])

    def _stored_base(self) -> Evaluation | EvalSpec:
        """The base's evaluation in the ledger, or what scores its model alongside."""
        other = {"adapter": None, "revision": None, "name": None}
        try:
            found = self.ledger.find_evaluation(self.against)
        except InputError as error:
            self.unknown = str(error)
            return self.spec.model_copy(update={**other, "model": self.against})
        if any(found.stopped(t.task) for t in found.tasks):
            self.unknown = f"evaluation {found.id} was stopped early, so its model is scored alongside"
            return self.spec.model_copy(update={**other, "model": found.model.source, "revision": found.model.revision,
                                                "adapter": found.model.adapter_source,
                                                "quantize": found.model.quantization})
        if found.status != "done":
            raise InputError(f"--against {self.against}: evaluation {found.id} is {found.status!r}; run its command "
                             "again to finish it, or name the model itself to score it alongside")
        return found

    def _prepared(self, alongside: EvaluationRun | None) -> Evaluation:
        assert alongside is not None
        try:
            return alongside.prepare(like=self.tuned)
        except SourceError as error:
            raise InputError(f"--against {self.against!r} is neither a finished evaluation ({self.unknown}) nor a "
                             f"model that can be scored alongside ({error})") from None

    def _draw(self, against: str) -> tuple[Early, list[_Unit]]:
        """The units, each with its items in random order."""
        seed = self.spec.tasks[0].sample_seed
        pools = list(_pools(self.tuned.loaded))
        margins = {name: self._margin(name, members) for name, members in pools}
        early = Early(against=against, seed=seed, margins=margins, units=(), min_items=self.early_spec.min_items,
                      max_width=None if self.early_spec.max_width is None else self.early_spec.max_width / 100)
        drawn = []
        for name, members in pools:
            items = [(one.settings.task, place, item) for one in members for place, item in enumerate(one.items)]
            items.sort(key=lambda i: _place(seed, i[2]))
            first = members[0].settings
            metric = MetricKey(first.primary).metric
            watched = is_bounded(metric) and _by_items(name, members)
            batch = self.early_spec.batch or (BATCH if len(items) > FEW else SMALL_BATCH)
            unit = EarlyUnit(name=name, key=first.primary, tasks=tuple(one.settings.task for one in members),
                             items=len(items), batch=batch if watched else len(items),
                             order=digest([item.hash for _, _, item in items]))
            watch = PairedSequential(len(items), margins[name], alpha=ALPHA / len(pools)) if watched else None
            sign = 1 if first.higher_is_better.get(metric, True) else -1
            drawn.append(_Unit(unit, [(t, p, (i.task, i.index)) for t, p, i in items], sign, watch, early))
        return replace(early, units=tuple(u.unit for u in drawn)), drawn

    def _margin(self, name: str, members: Sequence[LoadedTask]) -> float:
        named = {name, *(n for one in members for n in (one.settings.task, *one.settings.groups))}
        given = [t.margin for t in self.spec.tasks if t.name in named and t.margin is not None]
        return (given[0] if given else self.early_spec.margin) / 100

    def _decide(self, base: Evaluation, alongside: EvaluationRun | None, drawn: list[_Unit], runs: list[EvaluationRun]
                ) -> tuple[Evaluation, Evaluation]:
        """Ask and look, round by round, then store both sides."""
        held: list[EvaluationRun] = []
        try:
            for run in runs:
                self.ledger.acquire(run.stored.id)
                held.append(run)
            left: Side = _Stored(base, self.tuned.loaded, self.ledger) if alongside is None else _Scored(alongside)
            self._rounds(left, _Scored(self.tuned), drawn)
            ended = {run: _finish(run, drawn) for run in runs}
        finally:
            for run in held:
                self.ledger.release(run.stored.id)
        return (ended.get(alongside, base) if alongside else base), ended.get(self.tuned, self.tuned.stored)

    def _rounds(self, left: Side, right: Side, drawn: list[_Unit]) -> None:
        stage, total = 0, sum(u.unit.items for u in drawn)
        while waiting := [u for u in drawn if not u.decided]:
            used = sum(u.used for u in drawn)
            self.at = used, sum(len(u.next()) for u in waiting), total
            self.progress(used, total, _ASKING)
            chosen: dict[str, list[int]] = {}
            for unit in waiting:
                for task, place, _ in unit.next():
                    chosen.setdefault(task, []).append(place)
            base, tuned = left.ask(chosen, stage), right.ask(chosen, stage)
            for unit in waiting:
                unit.look(base, tuned)
            stage += 1

    def _quietly(self, done: int, total: int, text: str) -> None:
        """Progress of the base: what comes once is told, the batches of a round are not."""
        if not total and text != "planning the batches":
            self.progress(done, total, text)

    def _told(self, done: int, total: int, text: str) -> None:
        """Progress of the tuned model: within a round as a part of its items."""
        self._quietly(done, total, text)
        if total and text == "answering":
            self.progress(self.at[0] + self.at[1] * done // total, self.at[2], _ASKING)


def _place(seed: int, item: Item) -> str:
    return draw_key(seed, item.task, item.index, item.hash)


def _pools(loaded: Sequence[LoadedTask]) -> Iterator[tuple[str, list[LoadedTask]]]:
    """What each verdict is about: the outermost group that has a score of its tasks' primary metric, or a task."""
    covered: set[str] = set()
    for one in loaded:
        if one.settings.task in covered:
            continue
        groups = {name: [o for o in loaded if name in o.groups] for name, group in one.groups.items()
                  if _speaks(group, one.settings.primary)}
        whole = {name: members for name, members in groups.items()
                 if {o.settings.primary for o in members} == {one.settings.primary}
                 and len(members) == len(one.groups[name].get_all_tasks())}
        name = max(whole, key=lambda n: len(whole[n]), default=one.settings.task)
        members = whole.get(name, [one])
        covered |= {o.settings.task for o in members}
        yield name, members


def _speaks(group: object, primary: str) -> bool:
    """True where the group has a score of this ``metric,filter``."""
    key = MetricKey(primary)
    found = getattr(group, "aggregate_metric_list", None) or []
    return any(a.metric == key.metric and key.filter in (a.filter_list or [key.filter]) for a in found)


def _by_items(name: str, members: Sequence[LoadedTask]) -> bool:
    """False for a group whose mean weighs its tasks alike: a pooled draw says nothing of such a mean."""
    group = members[0].groups.get(name)
    metric = MetricKey(members[0].settings.primary).metric
    return group is None or all(a.weight_by_size for a in group.aggregate_metric_list if a.metric == metric)


def _notes(drawn: Sequence[_Unit]) -> Iterator[str]:
    for unit in drawn:
        if unit.watch is None:
            why = "its mean weighs tasks, not items" if len(unit.unit.tasks) > 1 else \
                f"{MetricKey(unit.unit.key).metric} has no bounds"
            yield f"{unit.unit.name}: all items were asked, since an early stop does not cover it ({why})"


def _check(base: Evaluation, tuned: Evaluation) -> None:
    """NotComparable where the two would not be asked the same under the same settings."""
    found = [d for d in differences(base, tuned) if d.blocking or (d.left, d.right) == ("absent", "evaluated")]
    if found:
        listed = "; ".join(f"{d.field} ({d.left} | {d.right})" for d in found[:8])
        more = f" and {len(found) - 8} more" if len(found) > 8 else ""
        raise NotComparable(f"{base.name} and {tuned.name} cannot be compared: they differ in {listed}{more}; ask both "
                            "under the same settings, or name the base's model to score it alongside")


def _finish(run: EvaluationRun, drawn: Sequence[_Unit]) -> Evaluation:
    """Store a side with what was asked of it."""
    asked: dict[str, list[int]] = {one.settings.task: [] for one in run.loaded}
    for unit in drawn:
        for task, place, _ in unit.order[:unit.used]:
            asked[task].append(place)
    stopped = {task: unit for unit in drawn if unit.stopped for task in unit.unit.tasks}
    parts = [replace(one, groups={n: g for n, g in one.groups.items() if n == stopped[one.settings.task].unit.name})
             if one.settings.task in stopped else one for one in tasks.subset_tasks(run.loaded, asked)]
    early = run.stored.early
    assert early is not None
    value = replace(
        run.stored, early=replace(early, units=tuple(u.ended() for u in drawn)),
        tasks=tuple(replace(t, used=len(asked[t.task]), draw_seed=early.seed) if t.task in stopped else t
                    for t in run.stored.tasks))
    return run.finish(parts, value)
