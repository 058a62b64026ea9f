"""Reads a results file of any tool that is known, as runs in one form, and the scores in it as reported scores.

    [run] = read_run(path, "lighteval", staging)      of the kind that `aftertune.exchange.discovery` found
    read_scores(Path("results.json"))           for an audit: the scores of every run in the file
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aftertune import bounds, catalog
from aftertune.errors import InputError
from aftertune.exchange.computed import how_computed, is_rounded, items_of, printed
from aftertune.exchange.discovery import Kind, discover
from aftertune.exchange.every_eval_ever import every_eval_ever_run
from aftertune.exchange.files import in_the_form_of, parse_json, read_text, results_limits
from aftertune.exchange.inspect_logs import inspect_run, read_eval
from aftertune.exchange.lighteval_files import lighteval_run
from aftertune.exchange.lm_eval_files import LIMIT, LmEvalRun, read_results
from aftertune.redaction import redact
from aftertune.values.reported import Reported

if TYPE_CHECKING:
    from aftertune.ledger import Staging

#: Parts of a results file that have an entry for each task.
_BY_TASK = frozenset(("results", "configs", "n-shot", "n-samples", "higher_is_better", "versions"))


def read_run(path: Path, kind: Kind, staging: Staging, *, root: Path | None = None) -> list[LmEvalRun]:
    """The runs of one results file. root: the folder in which to look for answers. Raises InputError.

    Their answers may be in ``staging``, and must be read before it is closed.
    """
    run, with_answers = _bounded(path, kind, root)
    with in_the_form_of(kind, str(path)):
        return [run if with_answers is None else with_answers(staging)]


def _bounded(path: Path, kind: Kind, root: Path | None) -> tuple[LmEvalRun, Callable[[Staging], LmEvalRun] | None]:
    """As `_without_answers`, within the limits of a file of results."""
    with results_limits(str(path)):
        run, with_answers = _without_answers(path, kind, root)
        tasks = len(run.section("results")) + len(run.section("groups")) + len(run.section("group_subtasks"))
        if tasks > bounds.RESULTS_TASKS:
            raise InputError(f"{path}: {tasks:,} tasks and groups, but at most {bounds.RESULTS_TASKS:,} are read; "
                             "check that it is the right file")
    return run, with_answers


def _without_answers(path: Path, kind: Kind, root: Path | None
                     ) -> tuple[LmEvalRun, Callable[[Staging], LmEvalRun] | None]:
    """The run of one results file without answers that are in another file, and what adds these; None where they are
    read later."""
    if kind == "lm-eval":
        return read_results(path), None
    packed = path.name.lower().endswith(".eval")
    value = read_eval(path) if packed else parse_json(read_text(path, limit=LIMIT), str(path))
    with in_the_form_of(kind, str(path)):
        if kind == "every-eval-ever":
            return every_eval_ever_run(path, value)
        return inspect_run(path, value) if kind == "inspect" else lighteval_run(path, value, root), None


def merged(runs: Sequence[LmEvalRun]) -> list[LmEvalRun]:
    """The runs, those that are parts of one run joined: some tools write a file for each task."""
    parts: dict[Any, LmEvalRun] = {}
    for number, run in enumerate(runs):
        key: Any = (run.tool, run.value["run"]) if run.value.get("run") else number
        first = parts.get(key)
        if first is not None and set(first.section("results")) & set(run.section("results")):
            key, first = number, None  # the same task twice is no part of one run
        parts[key] = run if first is None else _joined(first, run)
    return list(parts.values())


def _joined(first: LmEvalRun, second: LmEvalRun) -> LmEvalRun:
    value = {k: {**v, **other} if isinstance(v, dict) and isinstance(other := second.value.get(k), dict)
             and k in _BY_TASK else v for k, v in first.value.items()}
    tasks = [*_tasks(first), *_tasks(second)]
    return replace(first, value={**value, **({"aftertune": {"tasks": tasks}} if tasks else {})},
                   rows={**first.rows, **second.rows}, notes=(*first.notes, *second.notes))


def _tasks(run: LmEvalRun) -> list[Any]:
    """The settings that our own export wrote."""
    tasks = run.section("aftertune").get("tasks")
    return tasks if isinstance(tasks, list) else []


def read_scores(path: Path) -> tuple[Reported, ...]:
    """The scores of a results file (.json, .eval) of any known tool; its answers are not read. Raises InputError."""
    runs = [_bounded(file, kind, None)[0] for file, kind in discover(path).files]
    with results_limits(str(path)):
        return tuple(score for run in runs for score in reported_scores(run, path.name))


def reported_scores(run: LmEvalRun, source: str, without: Collection[str] = ()) -> tuple[Reported, ...]:
    """The scores of a run as reported scores. without: tasks and groups to leave out."""
    facts = {"Evaluation Date": run.started[:10], "Data Type": run.dtype,
             "Device": str(run.section("config").get("device") or ""), run.tool: run.version}
    facts = {k: v for k, v in facts.items() if v}
    rounded = is_rounded(run)
    return tuple(score for task in dict.fromkeys([*run.section("results"), *run.section("groups")])
                 if task not in without for score in _scores(run, task, source, facts, rounded=rounded))


def _scores(run: LmEvalRun, task: str, source: str, facts: dict[str, str], *, rounded: bool) -> Iterator[Reported]:
    shots = run.section("n-shot").get(task)
    own = {"Few-shot Examples": str(shots)} if isinstance(shots, int) and not isinstance(shots, bool) else {}
    name = task if run.tool == "lm-eval" and not task.startswith("hendrycksTest") else catalog.task_named(task)
    for score in run.scores(task):
        n, origin = items_of(run, task, name)
        how = how_computed(run, task, name, score.key)
        yield Reported(source=source, model=redact(run.model), task=name, metric=score.metric, filter=score.filter,
                       value=score.value, stderr=score.stderr, n=n, n_source=origin,
                       value_text=printed(score.value, rounded=rounded),
                       stderr_text="" if score.stderr is None else printed(score.stderr, rounded=rounded),
                       facts={**facts, **own}, mean_of=how.mean_of, error_of=how.error_of)
