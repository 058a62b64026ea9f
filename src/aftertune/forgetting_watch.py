"""The forgetting watch: while a model is trained, quick paired checks of tasks on a fixed subset of items.

    watch = Watch(spec)                                  a line on stderr after each look
    tuning = tune(spec, look=watch)              its looks are in tuning.watch
    watch(model, 50, looks=4)                    (WatchPoint(step=50, task="hellaswag", delta=-0.035, …),)

What a look is held against is the model before its first step, which is the base: in its dtype, on its device, on four
bits where it is trained so. A verdict counts all looks at all tasks as one family (Bonferroni), so that "forgot" is
wrong in at most 5 % of runs however often was looked; the interval is that of the look alone. A watch is a warning
light on few items, and not the comparison of the finished model.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from aftertune import sources, tasks
from aftertune.catalog import MetricKey
from aftertune.engine import budget, devices
from aftertune.engine.engine import Engine
from aftertune.engine.verify import PackingDecision
from aftertune.errors import InputError
from aftertune.report import watch_text
from aftertune.stats.evidence import Evidence, paired_evidence
from aftertune.stats.verdict import ALPHA, at_floor
from aftertune.study import TaskSpec, TuneSpec
from aftertune.tasks import LoadedTask, LoadOptions
from aftertune.values import Answer, Request, Verdict, WatchPoint


class ForgettingWatch:
    """Looks at the tasks of ``spec.watch`` with the model in training. told: called with a line after each look."""

    def __init__(self, spec: TuneSpec, *, told: Callable[[str], None] | None = None,
                 task_source: str = "auto") -> None:
        if spec.watch is None:
            raise InputError("nothing to watch; name tasks with their items, for example --watch hellaswag=200")
        self.watch, self.threads, self.told = spec.watch, spec.threads, told or _say
        source = sources.resolve_model(spec.model, revision=spec.revision, trust_remote_code=spec.trust_remote_code)
        self.tokenizer = sources.load_tokenizer(source)
        specs = [TaskSpec(name=name, sample=count) for name, count in spec.watch.tasks.items()]
        self.loaded = tasks.load(specs, LoadOptions(source=task_source))
        self.requests: list[Request] = [r for one in self.loaded for r in one.requests]
        self.known: tuple[PackingDecision, int] | None = None
        self.base: Mapping[str, list[Answer]] = {}

    def __call__(self, model: Any, step: int, looks: int) -> tuple[WatchPoint, ...]:
        """What the tasks come to at ``step``; at step 0 the base is taken, and nothing told."""
        found = {one.settings.task: tasks.task_answers(one, self._responses(model)) for one in self.loaded}
        if step == 0:
            self.base = found
            return ()
        family = looks * len(self.loaded)
        points = tuple(self._point(one, found[one.settings.task], step, family) for one in self.loaded)
        for point in points:
            self.told(watch_text(point))
        return points

    def _responses(self, model: Any) -> dict[int, Any]:
        sizes = budget.resolve(model, free=devices.free_memory(str(model.device)) // 2,
                               threads=devices.set_threads(self.threads))
        engine = Engine(model, self.tokenizer, packed=True, budget=sizes)
        plan = engine.plan(self.requests, self.known)
        self.known = plan.decision, plan.longest
        return {p: r for batch in engine.run(plan, set()) for p, r in batch.responses.items()}

    def _point(self, one: LoadedTask, answers: list[Answer], step: int, family: int) -> WatchPoint:
        settings = one.settings
        key = MetricKey(settings.primary)
        before, after = (np.array([a.metrics[key] for a in side], dtype=np.float64)
                         for side in (self.base[settings.task], answers))
        better = settings.higher_is_better.get(key.metric, True)
        found = paired_evidence(before, after, margin=self.watch.margin / 100, higher_is_better=better)
        floor = found.base_low is not None and at_floor(found.base_low, settings.chance)
        return WatchPoint(step=step, task=settings.task, metric=key.metric, n=found.n, base=found.base,
                          tuned=found.tuned, delta=found.delta, low=found.low, high=found.high,
                          verdict=_verdict(found, ALPHA / family, floor=floor))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _verdict(found: Evidence, alpha: float, *, floor: bool) -> Verdict:
    """What the tests carry at this level; where few values call for a bootstrap, both tests must."""
    views = [found.tests, *([found.bootstrap] if found.bootstrap else [])]
    if all(t.lower < alpha for t in views):
        return "lower"
    if all(t.higher < alpha for t in views):
        return "higher"
    return "within" if not floor and all(t.within < alpha for t in views) else "undecided"
