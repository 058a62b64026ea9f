"""Evaluates a few items of some tasks during training and compares them with the base.

    watch = ForgettingWatch(spec)                prints a line on stderr after each interim analysis
    tuning = tune(spec, look=watch)              the analyses are in tuning.watch
    watch(model, 50, looks=4)                    (WatchPoint(step=50, task="hellaswag", delta=-0.035, …),)
    watch.report(model, 50)                      the same on the other half of the items, with --keep-best

Each interim analysis compares the model with itself before the first step, which is the base in the same dtype, on the
same device and with the same quantization. All analyses of all tasks are one family (Bonferroni's correction), so that
"forgot" is wrong in at most 5 % of runs. The interval of an analysis is not corrected. The watch is a warning on few
items; it does not replace the comparison of the finished model. `watch_point` is one analysis of one task. A group that
has a score, such as MMLU, is one row and one test (`question_point`).

The target task is asked in the form in which the model is trained: with the chat template, or as an Alpaca prompt.

With --keep-best the items of each task are split in two halves (`aftertune.study.keep_best.split_halves`). The interim
analyses use one half, which chooses a checkpoint. The chosen one is measured on the other half, in one analysis, so its
family is the number of tasks. There, a task with a limit is tested with its limit as the margin.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from aftertune import sources, tasks
from aftertune.catalog import FRACTIONS, MetricKey, has_clusters, unit_of
from aftertune.comparison.rows import group_chance
from aftertune.engine import budget, devices
from aftertune.engine.engine import Engine
from aftertune.engine.verify import PackingDecision
from aftertune.errors import InputError
from aftertune.report import watch_text
from aftertune.stats.clustered import Weighting, weights
from aftertune.stats.evidence import Evidence, group_evidence, paired_evidence
from aftertune.stats.verdict import ALPHA, QUESTIONS, at_floor, first_claim, floored
from aftertune.study import TargetSpec, TaskSpec, TuneSpec, WatchedTarget
from aftertune.study.keep_best import VALIDATION_LOSS, KeepBest, split_halves
from aftertune.tasks import LoadedTask, LoadOptions
from aftertune.tasks.chat_template import get_chat_template, template_date
from aftertune.tasks.pools import pools, weighted_by_items
from aftertune.tuning.template import alpaca_prompt
from aftertune.values import Answer, Half, Request, Verdict, WatchPoint, digest

#: The seed of the halves; the same in every run, so that runs may be compared.
HALVES_SEED = 0


class ForgettingWatch:
    """Evaluates the tasks of ``spec.watch`` with the model in training. report: called with a line for each task."""

    def __init__(self, spec: TuneSpec, *, report: Callable[[str], None] | None = None,
                 task_source: str = "auto") -> None:
        if spec.watch is None:
            raise InputError("no tasks to watch; give tasks with a number of items, for example --watch hellaswag=200")
        self.watch, self.threads, self.say = spec.watch, spec.threads, report or print_line
        source = sources.resolve_model(spec.model, revision=spec.revision, trust_remote_code=spec.trust_remote_code)
        self.tokenizer = sources.load_tokenizer(source)
        specs = [TaskSpec(name=name, sample=count) for name, count in spec.watch.tasks.items()]
        target = [] if spec.watch.target is None else [_target_task(spec.watch.target, spec.template)]
        self.targets = {task.name for task in target}
        loaded = tasks.load([*target, *specs], _options(spec, self.tokenizer, task_source))
        for task in loaded:
            refuse_own_unit(task)
        self.rule = None if spec.keep_best is None else KeepBest.parse(
            spec.keep_best, tasks=spec.watch.names, validated=spec.data.validation is not None)
        #: The tasks with the items of each half; of the looks comes first.
        self.halves: dict[Half, list[LoadedTask]] = task_halves(loaded, self.rule) if self.rule else {"all": loaded}
        self.known: dict[Half, tuple[PackingDecision, int]] = {}
        self.base: dict[Half, dict[str, list[Answer]]] = {}

    def settings(self) -> dict[str, Any]:
        """The items of each task and half, by their content."""
        return watched_items(self.halves)

    def __call__(self, model: Any, step: int, looks: int) -> tuple[WatchPoint, ...]:
        """Evaluate the tasks at ``step``, in one of ``looks`` analyses. Step 0 only stores the answers of the base."""
        if step == 0:
            for half, loaded in self.halves.items():
                self.base[half] = self._answers(model, half)
                for task in loaded:
                    refuse_own_unit(task, primary_values(task, self.base[half][task.settings.task]))
            return ()
        half = next(iter(self.halves))
        points = self._points(model, step, half, looks * len(self._questions(half)))
        for point in points:
            self.say(watch_text(point))
        return points

    def early(self, model: Any, step: int) -> tuple[WatchPoint, ...]:
        """Evaluate the tasks for the early warning (`aftertune.tuning.early_warning`), on the items of the looks. The
        family is the number of tasks that can be forgotten."""
        half = next(iter(self.halves))
        return self._points(model, step, half, max(len(self._questions(half)) - len(self.targets), 1))

    def report(self, model: Any, step: int) -> tuple[WatchPoint, ...]:
        """Evaluate the tasks on the half of the items that has no part in the choice; nothing without halves."""
        return () if self.rule is None else self._points(model, step, "report", len(self._questions("report")))

    def _points(self, model: Any, step: int, half: Half, family: int) -> tuple[WatchPoint, ...]:
        answers = self._answers(model, half)
        limits = self.rule.limits if self.rule and half == "report" else {}
        points = [question_point(name, members, self.base[half], answers, step=step,
                                 margin=limits.get(name, self.watch.margin), family=family)
                  for name, members in self._questions(half)]
        return tuple(replace(point, half=half, is_target=point.task in self.targets) for point in points)

    def _questions(self, half: Half) -> list[tuple[str, list[LoadedTask]]]:
        """(name, tasks) of each row: a group that has a score is one."""
        return list(pools(self.halves[half]))

    def _answers(self, model: Any, half: Half) -> dict[str, list[Answer]]:
        """The answers of the model to the items of one half, by task."""
        requests: list[Request] = [request for task in self.halves[half] for request in task.requests]
        sizes = budget.resolve(model, free=devices.free_memory(str(model.device)) // 2,
                               threads=devices.set_threads(self.threads))
        engine = Engine(model, self.tokenizer, packed=True, budget=sizes)
        plan = engine.plan(requests, self.known.get(half))
        self.known[half] = plan.decision, plan.longest
        responses = {p: r for batch in engine.run(plan, set()) for p, r in batch.responses.items()}
        return {task.settings.task: tasks.task_answers(task, responses) for task in self.halves[half]}


def task_halves(loaded: Sequence[LoadedTask], rule: KeepBest) -> dict[Half, list[LoadedTask]]:
    """The tasks with the items that choose, and with those that report. Raises InputError where a task has too few, or
    where the rule names tasks without a score of their own."""
    names = {name for name, _ in pools(loaded)}
    for task in ({rule.goal, *rule.limits} - {VALIDATION_LOSS}) - names:
        members = sorted(t.settings.task for t in loaded if task in t.groups)
        raise InputError(f"--keep-best: {task} is {len(members)} tasks without a score, and the rule needs one score; "
                         f"watch a task of it and name that, for example --watch {(members or ['hellaswag'])[0]}=100")
    chosen: dict[Half, dict[str, list[int]]] = {"choice": {}, "report": {}}
    for loaded_task in loaded:
        name = loaded_task.settings.task
        try:
            chosen["choice"][name], chosen["report"][name] = split_halves(item_clusters(loaded_task), HALVES_SEED)
        except ValueError as error:
            raise InputError(f"--keep-best: {name} cannot choose and report: {error}; use more items") from None
    return {half: tasks.subset_tasks(loaded, indices) for half, indices in chosen.items()}


def watched_items(halves: Mapping[Half, Sequence[LoadedTask]]) -> dict[str, Any]:
    """The items of each task and half, by their content, for the record of a fine-tune."""
    items: dict[str, Any] = {
        half: {task.settings.task: {"items": len(task.items), "digest": digest([i.hash for i in task.items])}
               for task in loaded} for half, loaded in halves.items()}
    return items if "all" in halves else items | {"halves_seed": HALVES_SEED}


def _target_task(target: WatchedTarget, template: str) -> TaskSpec:
    """The target as a task. template: of the training, which its prompts get too."""
    answers = TargetSpec.model_validate(target.model_dump(exclude={"name", "items"}))
    return TaskSpec(name=target.name, sample=target.items, target=answers, apply_chat_template=template != "plain")


def _options(spec: TuneSpec, tokenizer: Any, task_source: str) -> LoadOptions:
    """How prompts are written: those of the watched tasks without a template, those of the target as in training."""
    if spec.template == "alpaca":
        return LoadOptions(source=task_source, template=_alpaca, template_hash=digest("alpaca"))
    day = template_date(tokenizer, spec.template_date)
    template = get_chat_template(tokenizer, day) if spec.watch and spec.watch.target else None
    return LoadOptions(source=task_source, template=template.render if template else None,
                       template_hash=template.hash if template else None, template_date=day if template else None)


def _alpaca(chat: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
    """The last message of a chat as an Alpaca prompt."""
    del add_generation_prompt
    return alpaca_prompt(chat[-1]["content"])


def watch_point(task: LoadedTask, base: Sequence[Answer], tuned: Sequence[Answer], *, step: int, margin: float,
                family: int) -> WatchPoint:
    """One analysis of a task: the answers of the base and of the model after ``step`` steps, paired by item.

    margin: in points. family: number of all analyses of the run, over all steps and tasks, for Bonferroni's correction.
    """
    settings = task.settings
    key = MetricKey(settings.primary)
    before, after = (np.array(primary_values(task, side), dtype=np.float64) for side in (base, tuned))
    unit = unit_of(key.metric, [*before, *after], task=settings.task)
    better = settings.higher_is_better.get(key.metric, True)
    evidence = paired_evidence(before, after, margin=margin / 100, higher_is_better=better,
                               clusters=item_clusters(task), bounded=unit in FRACTIONS)
    return _point(settings.task, key.metric, evidence, settings.chance, step=step, family=family,
                  tested=unit in FRACTIONS)


def question_point(name: str, members: Sequence[LoadedTask], base: Mapping[str, Sequence[Answer]],
                   tuned: Mapping[str, Sequence[Answer]], *, step: int, margin: float, family: int) -> WatchPoint:
    """One analysis of a task or a group (`tasks.pools`), as `watch_point`. base, tuned: the answers of each task."""
    if len(members) == 1:
        task = members[0]
        return replace(watch_point(task, base[task.settings.task], tuned[task.settings.task], step=step, margin=margin,
                                   family=family), task=name)
    key = MetricKey(members[0].settings.primary)
    before, after = ([np.array(primary_values(t, side[t.settings.task]), dtype=np.float64) for t in members]
                     for side in (base, tuned))
    better = members[0].settings.higher_is_better.get(key.metric, True)
    weighting: Weighting = "micro" if weighted_by_items(name, members) else "macro"
    labels = [[item.hash if t.settings.cluster is None else item.cluster for item in t.items] for t in members]
    every = [label for task in labels for label in task]
    evidence = group_evidence(before, after, margin=margin / 100, higher_is_better=better, weighting=weighting,
                              clusters=labels if None in every or len(set(every)) < len(every) else None)
    chance = group_chance([t.settings for t in members], weights([b.size for b in before], weighting).tolist())
    return _point(name, key.metric, evidence, chance, step=step, family=family)


def _point(name: str, metric: str, evidence: Evidence, chance: float | None, *, step: int, family: int,
           tested: bool = True) -> WatchPoint:
    """The analysis of a question. tested: False where a margin in points means nothing."""
    floor = evidence.base_low is not None and at_floor(evidence.base_low, chance)
    verdict = _verdict(evidence, ALPHA / family, floor=floor) if tested else "undecided"
    return WatchPoint(step=step, task=name, metric=metric, n=evidence.n, base=evidence.base, tuned=evidence.tuned,
                      delta=evidence.delta, low=evidence.low, high=evidence.high, verdict=verdict)


def primary_values(task: LoadedTask, answers: Sequence[Answer]) -> list[float]:
    """The primary metric of each answer."""
    return [a.metrics[task.settings.primary] for a in answers]


def refuse_own_unit(task: LoadedTask, values: Sequence[float] = (), option: str = "--watch") -> None:
    """Raise InputError where the primary metric is no share: a margin in points means nothing there. option: that
    named the task."""
    name, metric = task.settings.task, MetricKey(task.settings.primary).metric
    if unit_of(metric, values, task=name) not in FRACTIONS:
        raise InputError(f"{option} {name}: {metric} is no share but has its own unit, in which a margin in points "
                         f"means nothing; leave {name} out of {option}, and compare it after the fine-tune with "
                         f"`aftertune compare BASE TUNED --margin {name}=VALUE`")


def print_line(line: str) -> None:
    """Print a line on stderr."""
    print(line, file=sys.stderr, flush=True)


def item_clusters(task: LoadedTask) -> list[str | None]:
    """The clusters of its items: by the task's field, else those of equal items."""
    if task.settings.cluster is None or not (task.settings.target or has_clusters(task.settings.task)):
        return [item.hash for item in task.items]
    return [item.cluster for item in task.items]


def _verdict(evidence: Evidence, alpha: float, *, floor: bool) -> Verdict:
    """The verdict at this level. Where items come in clusters or few values need a bootstrap, all tests must agree."""
    tests = [t for t in (evidence.tests, evidence.clustered, evidence.bootstrap) if t is not None]
    claims = [claim for question in QUESTIONS for claim in question]
    verdict = first_claim([c for c in claims if all(getattr(t, c) < alpha for t in tests)])
    return "undecided" if floored(verdict, floor) else verdict
