"""Imports results of other tools into the ledger: lm-eval, lighteval, inspect_ai, Every Eval Ever, Markdown records.

    [result] = import_results(Path("out"), ledger=ledger)
    result.evaluation       with answers, where the tool wrote them
    result.reported         scores without answers
    result.notes            what was left out

Importing the same content again changes nothing: an evaluation's id is a digest of its content, and the scores of a
document replace those stored from it before. An evaluation is stored in one transaction, so an interrupted import
leaves nothing of it. While files are read, their answers are on disk (`aftertune.ledger.Staging`), so memory does not
grow with a file. Nothing proves which weights a foreign result came from. Its model therefore gets an `UNPROVEN` mark
instead of a fingerprint, so that no comparison treats it as the base or the fine-tune of another model.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from aftertune import catalog
from aftertune.actions import Shown
from aftertune.catalog import unit_of
from aftertune.errors import InputError, ResourceError
from aftertune.exchange.discovery import discover, unused
from aftertune.exchange.files import in_the_form_of, results_limits
from aftertune.exchange.lm_eval_files import LmEvalRun
from aftertune.exchange.lm_eval_samples import MetricSummary, Samples, TaskKind, read_samples
from aftertune.exchange.markdown_record import read_record
from aftertune.exchange.reading import merged, read_run, reported_scores
from aftertune.redaction import redact
from aftertune.tasks import chance
from aftertune.tasks.loading import primary_metric
from aftertune.values import (
    Evaluation,
    ListDigest,
    ModelIdentity,
    Provenance,
    Score,
    TaskSettings,
    canonical,
    digest,
    group_unit,
    json_ready,
    plain,
    restore,
)
from aftertune.values.reported import UNPROVEN, Reported

if TYPE_CHECKING:
    from aftertune.ledger import Ledger, Staging

#: The fields of settings that the id of an imported evaluation covers; a new field must not change stored ids.
_IN_ID = frozenset((
    "task", "version", "output_type", "num_fewshot", "n", "n_total", "split", "data", "items", "prompts", "primary",
    "higher_is_better", "limit", "sample", "sample_seed", "chat_template", "system_instruction", "fewshot_as_multiturn",
    "generation", "cluster", "groups", "target", "used", "draw_seed"))
_IMPORTED = "imported from the files of {tool}, which name the model but do not prove which weights gave these answers"


@dataclass(frozen=True, slots=True)
class ImportedResult(Shown):
    """What was imported from one file.

    evaluation: stored with its answers, None if the file has none; new: False if it was already in the ledger;
    reported: scores without answers; notes: what was left out, here or in the folder; error: why the file could not be
    read, "" if it was.
    """

    source: str
    evaluation: Evaluation | None
    new: bool
    reported: tuple[Reported, ...]
    notes: tuple[str, ...] = ()
    error: str = ""


@dataclass(frozen=True, slots=True)
class _TaskSamples:
    """A task with its samples and scores."""

    settings: TaskSettings
    samples: Samples
    scores: list[Score]

    @property
    def content(self) -> dict[str, Any]:
        """What of the settings is in the id of an evaluation: their fields of version 0.1, chance by the first item."""
        first = self.samples.prompts_of_first
        kind = self.settings.output_type
        return {k: v for k, v in asdict(self.settings).items() if k in _IN_ID} | {
            "chance": 1 / first if kind == "multiple_choice" and first else None}


@dataclass(frozen=True, slots=True)
class _Read:
    """A run that was read: its tasks with answers, and what was left out."""

    run: LmEvalRun
    tasks: list[_TaskSamples]
    notes: tuple[str, ...]


def import_results(path: Path, *, ledger: Ledger, name: str | None = None) -> list[ImportedResult]:
    """Import a results file, a folder of them, or a Markdown record (.md), into the ledger.

    name: of the evaluation, or of the record. All files are read before anything is stored. In a folder, a file that
    cannot be read gives a result with its error, and the others are imported. Raises InputError where nothing can be
    imported.
    """
    from aftertune.ledger import Staging

    if path.suffix.lower() in (".md", ".markdown"):
        document = read_record(path, source=name)
        ledger.save_reported(document.source, [asdict(r) for r in document.rows], [asdict(r) for r in document.remarks])
        notes = tuple(f"line {n.line}: {n.text}" if n.line else n.text for n in document.notes)
        return [ImportedResult(document.source, None, True, document.rows, notes)]
    found = discover(path)
    if name is not None and len(found.files) > 1:
        raise InputError(f"--name {name} names one evaluation, but {path} has {len(found.files)} results files; import "
                         "them one at a time, or omit --name")
    alone, root = len(found.files) == 1, path if path.is_dir() else None
    read: list[_Read] = []
    failed: list[ImportedResult] = []
    with Staging() as staging:
        runs: list[LmEvalRun] = []
        for file, kind in found.files:
            with _collecting(failed, file, alone=alone):
                runs += read_run(file, kind, staging, root=root)
        for run in merged(runs):
            with _collecting(failed, run.path, alone=alone):
                read.append(_read(run, staging))
        if not read:
            raise InputError(f"none of the {len(failed)} results files could be read, the first for this reason: "
                             f"{failed[0].error}")
        taken = {e.name: e.id for e in ledger.evaluations()}
        imported = [_store(r, ledger, name, taken) for r in read]
    used = {p for r in read for t in r.tasks for p in r.run.files(t.settings.task)}
    notes = (*found.notes, *(unused(found, used, path) if root else ()))
    return [*imported[:-1], replace(imported[-1], notes=(*imported[-1].notes, *notes)), *failed]


@contextlib.contextmanager
def _collecting(failed: list[ImportedResult], file: Path, *, alone: bool) -> Iterator[None]:
    """Collect an error about a file in ``failed``; one about the only file is raised."""
    try:
        yield
    except (InputError, ResourceError) as error:
        if alone:
            raise
        failed.append(ImportedResult(str(file), None, False, (), error=str(error)))


def _read(run: LmEvalRun, staging: Staging) -> _Read:
    """Read the answers of a run. Raises InputError where the run has no score."""
    tasks: list[_TaskSamples] = []
    notes = list(run.notes)
    for task in run.leaves:
        answers = run.answers(task)
        if answers is None:
            continue
        try:
            with in_the_form_of(run.tool, answers[0]):
                tasks.append(_task(run, task, *answers, staging))
        except _OtherRun as error:
            notes.append(f"{task}: {error}; its scores are imported without answers")
    with results_limits(str(run.path)):
        return _with_scores(run, tasks, notes)


def _with_scores(run: LmEvalRun, tasks: list[_TaskSamples], notes: list[str]) -> _Read:
    """A run with scores, and a note on tasks without. Raises InputError where there is no score."""
    named = dict.fromkeys([*run.section("results"), *run.section("groups")])
    scored = {t for t in named if any(True for _ in run.scores(t))}
    bare = [t for t in named if t not in scored and not run.is_heading(t)]
    if bare:
        notes.append(f"no score that can be read: {', '.join(bare[:6])}"
                     + (f" and {len(bare) - 6} more tasks" if len(bare) > 6 else ""))
    if not scored:
        raise InputError(f"{run.path}: no score that can be read ({len(bare)} tasks: {', '.join(bare[:4]) or 'none'}); "
                         "the run may have been interrupted: run it again")
    return _Read(run, tasks, tuple(notes))


class _OtherRun(InputError):
    """Answers beside the results that another run has written."""


def _task(run: LmEvalRun, task: str, where: str, rows: Any, staging: Staging) -> _TaskSamples:
    """A task with its answers."""
    config = run.section("configs", task)
    kind = str(config.get("output_type") or "multiple_choice")
    filters = list(dict.fromkeys(f.filter for f in run.scores(task)))
    samples = read_samples(rows, where, TaskKind(task, kind, filters), staging)
    _check_samples(run, task, where, samples)
    settings = _exported_settings(run, task, samples) or _settings(run, task, config, kind, samples)
    restore(TaskSettings, plain(settings))  # a value of another type could be stored, but not be read again
    return _TaskSamples(settings, samples, _scores(run, settings, samples))


def _check_samples(run: LmEvalRun, task: str, where: str, samples: Samples) -> None:
    """Raises InputError where the samples do not agree with the results."""
    # one name for the answers of all runs in the folder; or a scorer may convert scores in its own way
    unsure = (run.tool == "lm-eval" and not run.stamp) or run.tool == "inspect_ai"
    refusal = _OtherRun if unsure else InputError
    used = run.counts(task)[0]
    if used is not None and used != len(samples):
        raise refusal(f"{where}: {len(samples)} documents, but {run.path.name} states {used}; the samples file is "
                      "incomplete or belongs to another run")
    for score in run.scores(task):
        key = score.key
        values = samples.values.get(key, MetricSummary())
        if catalog.is_share(score.metric) and values.count == len(samples) and abs(values.mean - score.value) > 1e-6:
            raise refusal(f"{where}: the mean of {key} is {values.mean:.6f}, but {run.path.name} "
                          f"states {score.value:.6f}; give the two files of the same run")


def _exported_settings(run: LmEvalRun, task: str, samples: Samples) -> TaskSettings | None:
    """The settings that our own export wrote, if they match the items; None for files of lm-eval."""
    stored = run.section("aftertune").get("tasks")
    row = next((r for r in stored if isinstance(r, dict) and r.get("task") == task), None) \
        if isinstance(stored, list) else None
    if row is None:
        return None
    try:
        settings = TypeAdapter(TaskSettings).validate_json(canonical(row), strict=True)
    except ValidationError:
        raise InputError(f"{run.path}: `aftertune.tasks` has no valid settings of {task}; export the evaluation "
                         "again") from None
    return settings if (settings.items, settings.n) == (samples.items, len(samples)) else None


def _settings(run: LmEvalRun, task: str, config: dict[str, Any], kind: str, samples: Samples) -> TaskSettings:
    total, partial = _total(run, task, samples)
    better = run.higher_is_better(task)
    scores = list(run.scores(task))
    if not scores:
        raise InputError(f"{run.path}: `results.{task}` has no score; the run may have been interrupted: run lm-eval "
                         "again")
    shots = run.section("n-shot").get(task)
    template = run.value.get("chat_template_sha")
    return TaskSettings(
        task=task, version=str(run.section("versions").get(task, "")), output_type=kind,
        num_fewshot=shots if isinstance(shots, int) else 0, n=len(samples), n_total=total,
        split=str(config.get("test_split") or config.get("validation_split") or "not stated"),
        data=f"hub:{config['dataset_path']}" if config.get("dataset_path") else "not stated",
        items=samples.items, prompts=samples.prompts,
        primary=primary_metric(better, list(dict.fromkeys(s.filter for s in scores)), kind), higher_is_better=better,
        # other tools may shuffle the documents before they take some, and their numbers are those of the file
        limit=len(samples) if partial and run.tool == "lm-eval" and samples.highest < len(samples) else None,
        chat_template=str(template) if template else None,
        system_instruction=run.value.get("system_instruction") or None,
        # lm-eval 0.4.13 turns it on by default; without a chat template it has no effect
        fewshot_as_multiturn=bool(template and run.value.get("fewshot_as_multiturn")),
        generation=json_ready(config.get("generation_kwargs") or {}) if kind == "generate_until" else {},
        chance=_chance(task, samples),
        cluster=catalog.cluster_field(task),
        groups=run.groups_with(task))


def _total(run: LmEvalRun, task: str, samples: Samples) -> tuple[int, bool]:
    """(items of the task, whether the answers are to some of them alone). Where the files do not state the number, it
    is the smallest that fits; a limit of the run that was reached then says that there are more."""
    n, stated, limit = len(samples), run.counts(task)[1], run.limit
    total = max(stated or 0, n, samples.highest + 1)
    return total, n < total or (stated is None and limit is not None and (limit < 1 or n >= limit))


def _parts(tasks: Sequence[_TaskSamples]) -> Iterator[str]:
    """What a reader must know of tasks of which the run asked some items."""
    for task in tasks:
        settings, n, total = task.settings, len(task.samples), task.settings.n_total
        if settings.limit is not None and n == total:
            yield f"{settings.task}: the first {n:,} items; how many the task has is not stated"
        elif n < total and settings.limit is settings.sample is settings.used is None and not settings.part:
            yield (f"{settings.task}: {n:,} of {total:,} items; how they were chosen is not stated, so they may be no "
                   "random sample")


def _chance(task: str, samples: Samples) -> float | None:
    """The expected score of a guess, the mean over the documents; None where answers cannot be guessed."""
    kind = samples.kind.output_type
    return chance.task_chance(task, samples.levels()) if kind in ("generate_until", "multiple_choice") else None


def _scores(run: LmEvalRun, settings: TaskSettings, samples: Samples) -> list[Score]:
    listed = run.section("configs", settings.task).get("metric_list")
    aggregations = {str(m.get("metric")): str(m.get("aggregation") or "") for m in listed if isinstance(m, dict)} \
        if isinstance(listed, list) else {}
    extremes = {key: (v.low, v.high) for key, v in samples.values.items()}
    return [Score(task=settings.task, metric=f.metric, filter=f.filter, value=f.value, stderr=f.stderr, n=len(samples),
                  higher_is_better=settings.higher_is_better.get(f.metric, True), primary=f.key == settings.primary,
                  unit=unit_of(f.metric, [f.value, *extremes.get(f.key, ())], task=settings.task,
                               aggregation=aggregations.get(f.metric, ""))) for f in run.scores(settings.task)]


def _store(read: _Read, ledger: Ledger, name: str | None, taken: dict[str, str]) -> ImportedResult:
    """Store the tasks with answers as an evaluation, and the other scores as reported scores.

    taken: name -> id of the evaluations in the ledger; the new one is added.
    """
    run, tasks = read.run, read.tasks
    with_answers = {t.settings.task for t in tasks}
    with results_limits(str(run.path)):
        groups = [g for g in run.groups if (leaves := run.leaves_of(g)) and set(leaves) <= with_answers]
        rest = reported_scores(run, "", with_answers | set(groups))
    source = name or _source(run, rest, ledger)
    rest = tuple(replace(r, source=source) for r in rest)
    if not tasks:
        _save_rest(ledger, source, rest)
        return ImportedResult(source, None, True, rest, read.notes)
    scores = [s for t in tasks for s in t.scores]
    for group in groups:
        n = sum(len(t.samples) for t in tasks if group in t.settings.groups)
        members = [s for t in tasks if group in t.settings.groups for s in t.scores]
        scores += [Score(task=group, metric=f.metric, filter=f.filter, value=f.value, stderr=f.stderr, n=n,
                         group=True, unit=group_unit(f.key, members)) for f in run.scores(group)]
    evaluation = _evaluation(run, tasks, tuple(scores), name)
    stored = next((e for e in ledger.evaluations() if e.id == evaluation.id), None)
    new = stored is None or stored.status != "done"
    if new and name is None:
        evaluation = replace(evaluation, name=_free_name(run, evaluation, taken))
    elif new and taken.get(evaluation.name, evaluation.id) != evaluation.id:
        raise InputError(f"--name {name}: evaluation {taken[evaluation.name]} has this name; choose another one")
    done = ledger.store_evaluation(evaluation, chain.from_iterable(t.samples for t in tasks)) if new \
        else ledger.find_evaluation(evaluation.id)
    taken.setdefault(done.name, done.id)
    _save_rest(ledger, source, rest)  # last: what is refused above leaves nothing
    return ImportedResult(source, done, new, rest, read.notes)


def _save_rest(ledger: Ledger, source: str, rest: Sequence[Reported]) -> None:
    """Store the scores without answers, if there are any."""
    if rest:
        ledger.save_reported(source, [asdict(r) for r in rest])


def _free_name(run: LmEvalRun, evaluation: Evaluation, taken: Mapping[str, str]) -> str:
    """A name that no other evaluation has: the last part of the model, then with more of it, the task and the day."""
    parts = [p for p in re.split(r"[/\\]", redact(run.model)) if p] or [evaluation.name]
    names = ["-".join(parts[-n:]) for n in range(1, min(len(parts), 4) + 1)]
    details = [evaluation.tasks[0].task] if len(evaluation.tasks) == 1 else []
    details += [run.started[:10], run.started[:16].replace("T", "-").replace(":", "")] if run.started else []
    names += [f"{names[0]}-{detail}" for detail in details]
    return next((n for n in names if taken.get(n, evaluation.id) == evaluation.id), f"{names[0]}-{evaluation.id[2:]}")


def _source(run: LmEvalRun, rows: Sequence[Reported], ledger: Ledger) -> str:
    """The name of a results file as a document: so many of its folders that no other document has it.

    A file with scores of the same models under the same name is taken for a new version of the document.
    """
    parts = run.path.absolute().parts[1:]
    names = ["/".join(parts[-n:]) for n in range(min(2, len(parts)), min(len(parts), 6) + 1)]
    models = {r.model for r in rows}
    return next((n for n in names if {r["model"] for r in ledger.reported(n)} <= models), names[-1])


def _evaluation(run: LmEvalRun, tasks: Sequence[_TaskSamples], scores: tuple[Score, ...],
                name: str | None) -> Evaluation:
    config = run.section("config")
    model = redact(run.model)
    source = run.value.get("model_source") or config.get("model") or "unknown"
    engine = f"lm-eval:{source}" if run.tool == "lm-eval" else str(source)
    identity = [model, *(config.get(k) for k in ("model_sha", "peft_sha", "model_revision", "delta_sha"))]
    mark = UNPROVEN + digest(json_ready(identity))
    settings = tuple(t.settings for t in tasks)
    content = ListDigest()
    for part in (mark, run.started, run.dtype, [t.content for t in tasks], (t.samples.metrics() for t in tasks)):
        content.add(part)
    parameters = config.get("model_num_parameters")
    versions = {run.tool: run.version, "transformers": str(run.value.get("transformers_version") or "")}
    seconds = run.value.get("total_evaluation_time_seconds")
    return Evaluation(
        id=f"e-{content.hexdigest()[:10]}", name=name or model.rstrip("/").rpartition("/")[2] or model, tasks=settings,
        model=ModelIdentity(source=model, weights=mark, config=mark, tokenizer=mark,
                            parameters=parameters if isinstance(parameters, int) and 0 < parameters < 2**62 else None,
                            revision=str(config["model_revision"]) if config.get("model_revision") else None),
        device=str(config.get("device") or "not stated"), dtype=run.dtype, engine=engine,
        engine_note=f"imported from {run.path.name}, {run.tool} {run.version or '(version not stated)'}",
        scores=scores, warnings=(_IMPORTED.format(tool=run.tool) + _unsaid(tasks), *_parts(tasks)),
        provenance=Provenance(command=f"{run.tool}, imported from {run.path.name}", started=run.started,
                              seconds=_seconds(seconds), versions={k: v for k, v in versions.items() if v}))


def _unsaid(tasks: Sequence[_TaskSamples]) -> str:
    """What the files do not say of the answers, as the end of a warning."""
    unsaid = ["how some texts ended"] * any(t.samples.unknown_end for t in tasks)
    unsaid += ["whether some contexts were cut off"] * any(t.samples.unknown_cut for t in tasks)
    return f"; they do not say {' and '.join(unsaid)}" if unsaid else ""


def _seconds(text: Any) -> float | None:
    try:
        seconds = float(text)
    except (TypeError, ValueError):
        return None
    return seconds if 0 <= seconds < 1e9 else None
