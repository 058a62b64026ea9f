"""Evaluates a few items of some tasks during training and compares them with the base.

    watch = ForgettingWatch(spec)                prints a line on stderr after each interim analysis
    tuning = tune(spec, look=watch)              the analyses are in tuning.watch
    watch(model, 50, looks=4)                    (WatchPoint(step=50, task="hellaswag", delta=-0.035, …),)

Each interim analysis compares the model with itself before the first step, which is the base in the same dtype, on the
same device and with the same quantization. All analyses of all tasks are one family (Bonferroni's correction), so that
"forgot" is wrong in at most 5 % of runs. The interval of an analysis is not corrected. The watch is a warning on few
items; it does not replace the comparison of the finished model. `watch_point` is one analysis of one task.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from aftertune import sources, tasks
from aftertune.catalog import FRACTIONS, MetricKey, has_clusters, unit_of
from aftertune.engine import budget, devices
from aftertune.engine.engine import Engine
from aftertune.engine.verify import PackingDecision
from aftertune.errors import InputError
from aftertune.report import watch_text
from aftertune.stats.evidence import Evidence, paired_evidence
from aftertune.stats.verdict import ALPHA, QUESTIONS, at_floor, first_claim, floored
from aftertune.study import TaskSpec, TuneSpec
from aftertune.tasks import LoadedTask, LoadOptions
from aftertune.values import Answer, Request, Verdict, WatchPoint


class ForgettingWatch:
    """Evaluates the tasks of ``spec.watch`` with the model in training. report: called with a line for each task."""

    def __init__(self, spec: TuneSpec, *, report: Callable[[str], None] | None = None,
                 task_source: str = "auto") -> None:
        if spec.watch is None:
            raise InputError("no tasks to watch; give tasks with a number of items, for example --watch hellaswag=200")
        self.watch, self.threads, self.report = spec.watch, spec.threads, report or print_line
        source = sources.resolve_model(spec.model, revision=spec.revision, trust_remote_code=spec.trust_remote_code)
        self.tokenizer = sources.load_tokenizer(source)
        specs = [TaskSpec(name=name, sample=count) for name, count in spec.watch.tasks.items()]
        self.loaded = tasks.load(specs, LoadOptions(source=task_source))
        for task in self.loaded:
            refuse_own_unit(task)
        self.requests: list[Request] = [request for task in self.loaded for request in task.requests]
        self.known: tuple[PackingDecision, int] | None = None
        self.base: Mapping[str, list[Answer]] = {}

    def __call__(self, model: Any, step: int, looks: int) -> tuple[WatchPoint, ...]:
        """Evaluate the tasks at ``step``, in one of ``looks`` analyses. Step 0 only stores the answers of the base."""
        answers = {task.settings.task: tasks.task_answers(task, self._responses(model)) for task in self.loaded}
        if step == 0:
            for task in self.loaded:
                refuse_own_unit(task, primary_values(task, answers[task.settings.task]))
            self.base = answers
            return ()
        family = looks * len(self.loaded)
        points = tuple(watch_point(task, self.base[task.settings.task], answers[task.settings.task], step=step,
                                   margin=self.watch.margin, family=family) for task in self.loaded)
        for point in points:
            self.report(watch_text(point))
        return points

    def _responses(self, model: Any) -> dict[int, Any]:
        sizes = budget.resolve(model, free=devices.free_memory(str(model.device)) // 2,
                               threads=devices.set_threads(self.threads))
        engine = Engine(model, self.tokenizer, packed=True, budget=sizes)
        plan = engine.plan(self.requests, self.known)
        self.known = plan.decision, plan.longest
        return {p: r for batch in engine.run(plan, set()) for p, r in batch.responses.items()}


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
                               clusters=_clusters(task), bounded=unit in FRACTIONS)
    floor = evidence.base_low is not None and at_floor(evidence.base_low, settings.chance)
    verdict = _verdict(evidence, ALPHA / family, floor=floor) if unit in FRACTIONS else "undecided"
    return WatchPoint(step=step, task=settings.task, metric=key.metric, n=evidence.n, base=evidence.base,
                      tuned=evidence.tuned, delta=evidence.delta, low=evidence.low, high=evidence.high,
                      verdict=verdict)


def primary_values(task: LoadedTask, answers: Sequence[Answer]) -> list[float]:
    """The primary metric of each answer."""
    return [a.metrics[task.settings.primary] for a in answers]


def refuse_own_unit(task: LoadedTask, values: Sequence[float] = ()) -> None:
    """Raise InputError where the primary metric is no share: a margin in points means nothing there."""
    name, metric = task.settings.task, MetricKey(task.settings.primary).metric
    if unit_of(metric, values, task=name) not in FRACTIONS:
        raise InputError(f"--watch {name}: {metric} is no share but has its own unit, in which a margin in points "
                         f"means nothing; leave {name} out of --watch, and compare it after the fine-tune with "
                         f"`aftertune compare BASE TUNED --margin {name}=VALUE`")


def print_line(line: str) -> None:
    """Print a line on stderr."""
    print(line, file=sys.stderr, flush=True)


def _clusters(task: LoadedTask) -> list[str | None]:
    """The clusters of its items: by the task's field, else those of equal items."""
    if task.settings.cluster is None or not has_clusters(task.settings.task):
        return [item.hash for item in task.items]
    return [item.cluster for item in task.items]


def _verdict(evidence: Evidence, alpha: float, *, floor: bool) -> Verdict:
    """The verdict at this level. Where items come in clusters or few values need a bootstrap, all tests must agree."""
    tests = [t for t in (evidence.tests, evidence.clustered, evidence.bootstrap) if t is not None]
    claims = [claim for question in QUESTIONS for claim in question]
    verdict = first_claim([c for c in claims if all(getattr(t, c) < alpha for t in tests)])
    return "undecided" if floored(verdict, floor) else verdict
