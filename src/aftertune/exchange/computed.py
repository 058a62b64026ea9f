"""Tells of each score of a results file what it is the mean of, and how its error was computed.

    how_computed(run, "truthfulqa_mc2", "truthfulqa_mc2", key)    HowComputed(mean_of="the probability of the true …")
    how_computed(run, "mmlu", "mmlu", key).error_of               "pooled over the tasks of the group"
    items_of(run, "piqa", "piqa")                                 (50, "stated"): the run had --limit 50

The audit needs it: only the share of right answers to n items is k of n, and only its error is
sqrt(p (1 - p) / (n - 1)). The file's own aggregation and its groups decide, then the catalog.
"""

from __future__ import annotations

from dataclasses import dataclass

from aftertune import catalog
from aftertune.catalog import MetricKey
from aftertune.exchange.benchmark_names import is_mean
from aftertune.exchange.lm_eval_files import LmEvalRun
from aftertune.exchange.lm_eval_tables import items_used

#: Digits after the point from which a number is a float that nobody rounded.
_UNROUNDED = 10
#: Aggregations of lm-eval that are the mean of the items.
_MEANS = ("", "mean", "nanmean")


@dataclass(frozen=True, slots=True)
class HowComputed:
    """mean_of, error_of: as in `Reported`; "" where the score may be a share of right answers, and its error one's."""

    mean_of: str = ""
    error_of: str = ""


def how_computed(run: LmEvalRun, task: str, name: str, key: MetricKey) -> HowComputed:
    """What a score is the mean of, and how its error was computed. name: the catalog's name of the task."""
    if is_mean(task):  # lighteval's row of all tasks
        return HowComputed("several benchmarks", "that of a mean of several benchmarks")
    if what := catalog.averaged(name, key.metric):
        return HowComputed(what)
    if task in run.groups or task in run.section("groups"):
        kind = run.averages(task, key) if run.groups.get(task) else ""
        if kind == "tasks":
            return HowComputed("the scores of tasks", "that of a mean of tasks of equal weight")
        if not kind and run.counts(task)[0] is not None:
            return HowComputed("its tasks, weighted in a way that the file does not show", "that of a group")
        return HowComputed("", "pooled over the tasks of the group")
    if run.aggregation(task, key.metric) not in _MEANS:
        return HowComputed("the task's own aggregation", "that of the task's own aggregation")
    repeats = run.section("configs", task).get("repeats")
    if isinstance(repeats, int) and not isinstance(repeats, bool) and repeats > 1:
        return HowComputed(f"{repeats} answers to each item", "that of repeated answers")
    return HowComputed()


def items_of(run: LmEvalRun, task: str, name: str) -> tuple[int | None, str]:
    """(items, "stated" or "known") of a task or group; (None, "") where that is not known.

    The file's own number, else what its limit leaves of lm-eval's task, else the size of that task.
    """
    used = run.counts(task)[0]
    if used:
        return used, "stated"
    known = items_used(name, run.limit)
    return (known, "known" if run.limit is None else "stated") if known else (None, "")


def is_rounded(run: LmEvalRun) -> bool:
    """True where no score or error of the file has the digits of a float that nobody rounded."""
    numbers = (n for task in (*run.section("results"), *run.section("groups")) for s in run.scores(task)
               for n in (s.value, s.stderr) if n is not None)
    return not any("e" in repr(n) or len(repr(n).partition(".")[2]) >= _UNROUNDED for n in numbers)


def printed(value: float, *, rounded: bool) -> str:
    """A number of a file as the audit should read it: its own digits if it was rounded, else twelve decimals.

    rounded: all numbers of the file are. One with 3 to 6 decimals was rounded in any case; a share with so few decimals
    by chance (397 of 1,000) passes either way.
    """
    own = repr(float(value))
    decimals = len(own.partition(".")[2])
    return own if "e" not in own and (rounded or 3 <= decimals <= 6) else f"{value:.12f}"
