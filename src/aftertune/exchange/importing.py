"""Imports results of other tools into the ledger: lm-eval's output folders and Markdown records.

    [result] = import_results(Path("out"), ledger=ledger)
    result.evaluation       with answers, where lm-eval wrote samples
    result.reported         scores without answers

Importing the same content again changes nothing: an evaluation's id is a digest of its content, and the scores of a
document replace those stored from it before. Nothing proves which weights a foreign result came from. Its model
therefore gets an `UNPROVEN` mark instead of a fingerprint, so that no comparison treats it as the base or the fine-tune
of another model.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from aftertune import catalog
from aftertune.catalog import MetricKey
from aftertune.errors import InputError
from aftertune.exchange.lm_eval_files import LmEvalRun, Sample, read_results, read_samples, results_files, samples_name
from aftertune.exchange.markdown_record import read_record
from aftertune.redaction import redact
from aftertune.tasks import chance
from aftertune.tasks.loading import primary_metric
from aftertune.values import (
    Answer,
    Evaluation,
    ModelIdentity,
    Provenance,
    Response,
    Score,
    TaskSettings,
    canonical,
    digest,
    json_ready,
)
from aftertune.values.reported import UNPROVEN, Reported

if TYPE_CHECKING:
    from aftertune.ledger import Ledger

_IMPORTED = "imported from lm-eval's files, which name the model but do not prove which weights gave these answers"


@dataclass(frozen=True, slots=True)
class ImportedResult:
    """What was imported from one file.

    evaluation: stored with its answers, None if the file has none; new: False if it was already in the ledger;
    reported: scores without answers.
    """

    source: str
    evaluation: Evaluation | None
    new: bool
    reported: tuple[Reported, ...]


@dataclass(frozen=True, slots=True)
class _TaskSamples:
    """A task with its samples and scores."""

    settings: TaskSettings
    samples: list[Sample]
    scores: list[Score]


def import_results(path: Path, *, ledger: Ledger, name: str | None = None) -> list[ImportedResult]:
    """Import an lm-eval folder or results file, or a Markdown record (.md), into the ledger.

    name: of the evaluation, or of the record. All files are read before anything is stored. Raises InputError.
    """
    if path.suffix.lower() in (".md", ".markdown"):
        document = read_record(path, source=name)
        ledger.save_reported(document.source, [asdict(r) for r in document.rows], [asdict(r) for r in document.remarks])
        return [ImportedResult(document.source, None, True, document.rows)]
    if path.suffix.lower() == ".jsonl":
        raise InputError(f"{path}: a samples file alone does not state its model and settings; give the folder that "
                         "contains it and the results_*.json of the same time")
    files = results_files(path)
    if name is not None and len(files) > 1:
        raise InputError(f"--name {name} names one evaluation, but {path} has {len(files)} results files; import "
                         "them one at a time, or omit --name")
    runs = [(run, _tasks_with_samples(run)) for run in map(read_results, files)]
    return [_store(run, tasks, ledger, name) for run, tasks in runs]


def _tasks_with_samples(run: LmEvalRun) -> list[_TaskSamples]:
    """The tasks of a run that have a samples file beside the results file."""
    tasks = []
    for task in run.leaves:
        path = run.path.with_name(samples_name(task, run.stamp))
        if not run.stamp or not path.is_file():
            continue
        config = run.section("configs", task)
        kind = str(config.get("output_type") or "multiple_choice")
        filters = list(dict.fromkeys(f.filter for f in run.scores(task)))
        samples = read_samples(path, task=task, output_type=kind, filters=filters, cluster=catalog.cluster_field(task))
        _check_samples(run, task, path, samples)
        settings = _exported_settings(run, task, samples) or _settings(run, task, config, kind, samples)
        tasks.append(_TaskSamples(settings, samples, _scores(run, settings, len(samples))))
    return tasks


def _check_samples(run: LmEvalRun, task: str, path: Path, samples: Sequence[Sample]) -> None:
    """Raises InputError where the samples do not agree with the results."""
    used = run.counts(task)[0]
    if used is not None and used != len(samples):
        raise InputError(f"{path}: {len(samples)} documents, but {run.path.name} states {used}; the samples file is "
                         "incomplete or belongs to another run")
    for score in run.scores(task):
        key = score.key
        values = [s.metrics[key] for s in samples if key in s.metrics]
        if catalog.is_share(score.metric) and len(values) == len(samples) and \
                abs(sum(values) / len(values) - score.value) > 1e-6:
            raise InputError(f"{path}: the mean of {key} is {sum(values) / len(values):.6f}, but {run.path.name} "
                             f"states {score.value:.6f}; give the two files of the same run")


def _exported_settings(run: LmEvalRun, task: str, samples: Sequence[Sample]) -> TaskSettings | None:
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
    return settings if (settings.items, settings.n) == (digest([s.item.hash for s in samples]), len(samples)) else None


def _settings(run: LmEvalRun, task: str, config: dict[str, Any], kind: str, samples: Sequence[Sample]) -> TaskSettings:
    total = run.counts(task)[1] or len(samples)
    better = {k: bool(v) for k, v in run.section("higher_is_better", task).items()}
    scores = list(run.scores(task))
    better = better or {s.metric: True for s in scores}
    if not scores:
        raise InputError(f"{run.path}: `results.{task}` has no score; the run may have been interrupted: run lm-eval "
                         "again")
    shots = run.section("n-shot").get(task)
    template = run.value.get("chat_template_sha")
    return TaskSettings(
        task=task, version=str(run.section("versions").get(task, "")), output_type=kind,
        num_fewshot=shots if isinstance(shots, int) else 0, n=len(samples), n_total=max(total, len(samples)),
        split=str(config.get("test_split") or config.get("validation_split") or "not stated"),
        data=f"hub:{config['dataset_path']}" if config.get("dataset_path") else "not stated",
        items=digest([s.item.hash for s in samples]), prompts=digest([list(a) for s in samples for a in s.prompts]),
        primary=primary_metric(better, list(dict.fromkeys(s.filter for s in scores)), kind), higher_is_better=better,
        limit=len(samples) if len(samples) < total else None,
        chat_template=str(template) if template else None,
        system_instruction=run.value.get("system_instruction") or None,
        # lm-eval 0.4.13 turns it on by default; without a chat template it has no effect
        fewshot_as_multiturn=bool(template and run.value.get("fewshot_as_multiturn")),
        generation=json_ready(config.get("generation_kwargs") or {}) if kind == "generate_until" else {},
        chance=_chance(task, kind, samples),
        cluster=catalog.cluster_field(task),
        groups=tuple(g for g in run.groups if task in run.leaves_of(g)))


def _chance(task: str, kind: str, samples: Sequence[Sample]) -> float | None:
    """The expected score of a guess, the mean over the documents; None where answers cannot be guessed."""
    if kind == "generate_until":
        levels = [chance.generated_guess(task, s.item.doc, s.prompts[0][0] if s.prompts else "", s.target)
                  for s in samples]
    elif kind == "multiple_choice":
        mutual = any(MetricKey(key).metric == "acc_mutual_info" for key in samples[0].metrics)
        levels = [chance.request_guess(s.prompts, chance.indices(s.target), mutual_info=mutual) for s in samples]
    else:
        return None
    return chance.task_chance(task, levels)


def _scores(run: LmEvalRun, settings: TaskSettings, n: int) -> list[Score]:
    return [Score(task=settings.task, metric=f.metric, filter=f.filter, value=f.value, stderr=f.stderr, n=n,
                  higher_is_better=settings.higher_is_better.get(f.metric, True),
                  primary=f.key == settings.primary) for f in run.scores(settings.task)]


def _store(run: LmEvalRun, tasks: list[_TaskSamples], ledger: Ledger, name: str | None) -> ImportedResult:
    """Store the tasks with answers as an evaluation, and the other scores as reported scores."""
    source = name or f"{run.path.parent.name}/{run.path.name}".lstrip("/")
    with_answers = {t.settings.task for t in tasks}
    groups = [g for g in run.groups if set(run.leaves_of(g)) <= with_answers]
    rest = reported_scores(run, source, with_answers | set(groups))
    if rest:
        ledger.save_reported(source, [asdict(r) for r in rest])
    if not tasks:
        return ImportedResult(source, None, True, rest)
    scores = [s for t in tasks for s in t.scores]
    for group in groups:
        n = sum(len(t.samples) for t in tasks if group in t.settings.groups)
        scores += [Score(task=group, metric=f.metric, filter=f.filter, value=f.value, stderr=f.stderr, n=n,
                         group=True) for f in run.scores(group)]
    evaluation = _evaluation(run, tasks, tuple(scores), name)
    new = all(e.id != evaluation.id or e.status != "done" for e in ledger.evaluations())
    stored = _save(evaluation, tasks, ledger) if new else ledger.find_evaluation(evaluation.id)
    return ImportedResult(source, stored, new, rest)


def _evaluation(run: LmEvalRun, tasks: Sequence[_TaskSamples], scores: tuple[Score, ...],
                name: str | None) -> Evaluation:
    config = run.section("config")
    model = redact(run.model)
    engine = f"lm-eval:{run.value.get('model_source') or config.get('model') or 'unknown'}"
    identity = [model, *(config.get(k) for k in ("model_sha", "peft_sha", "model_revision", "delta_sha"))]
    mark = UNPROVEN + digest(json_ready(identity))
    settings = tuple(t.settings for t in tasks)
    content = digest([mark, run.started, run.dtype, [asdict(s) for s in settings],
                      [[s.metrics for s in t.samples] for t in tasks]])
    parameters = config.get("model_num_parameters")
    versions = {"lm-eval": run.version, "transformers": str(run.value.get("transformers_version") or "")}
    seconds = run.value.get("total_evaluation_time_seconds")
    return Evaluation(
        id=f"e-{content[:10]}", name=name or model.rstrip("/").rpartition("/")[2] or model, tasks=settings,
        model=ModelIdentity(source=model, weights=mark, config=mark, tokenizer=mark,
                            parameters=parameters if isinstance(parameters, int) and 0 < parameters < 2**62 else None,
                            revision=str(config["model_revision"]) if config.get("model_revision") else None),
        device=str(config.get("device") or "not stated"), dtype=run.dtype, engine=engine,
        engine_note=f"imported from {run.path.name}, lm-eval {run.version or '(version not stated)'}",
        scores=scores, warnings=(_IMPORTED,),
        provenance=Provenance(command=f"lm-eval, imported from {run.path.name}", started=run.started,
                              seconds=_seconds(seconds), versions={k: v for k, v in versions.items() if v}))


def _seconds(text: Any) -> float | None:
    try:
        seconds = float(text)
    except (TypeError, ValueError):
        return None
    return seconds if 0 <= seconds < 1e9 else None


def _save(evaluation: Evaluation, tasks: Sequence[_TaskSamples], ledger: Ledger) -> Evaluation:
    """Store items, responses and answers; after an interruption the same call completes them."""
    samples = [s for t in tasks for s in t.samples]
    responses: dict[int, Response] = {}
    positions: list[list[int]] = []
    for sample in samples:
        start = len(responses)
        responses |= dict(enumerate(sample.responses, start))
        positions.append(list(range(start, len(responses))))
    answers = [Answer(task=s.item.task, index=s.item.index, item=s.item.hash, metrics=s.metrics,
                      extracted=s.extracted, cluster=s.item.cluster) for s in samples]
    ledger.open_evaluation(replace(evaluation, scores=()), [s.item for s in samples])
    ledger.acquire(evaluation.id)
    try:
        ledger.save_batch(evaluation.id, 0, responses)
        return ledger.finish_evaluation(evaluation, answers, positions)
    finally:
        ledger.release(evaluation.id)


def reported_scores(run: LmEvalRun, source: str, without: Collection[str] = ()) -> tuple[Reported, ...]:
    """The scores of a results file as reported scores. without: tasks and groups to leave out."""
    facts = {"Evaluation Date": run.started[:10], "Data Type": run.dtype,
             "Device": str(run.section("config").get("device") or ""), "lm-eval": run.version}
    scores: list[Reported] = []
    for task in dict.fromkeys([*run.section("results"), *run.section("groups")]):
        used = run.counts(task)[0]
        n = used or catalog.hub_items(task)
        scores += [Reported(
            source=source, model=redact(run.model), task=task, metric=f.metric, filter=f.filter, value=f.value,
            stderr=f.stderr, n=n, n_source="stated" if used else "known" if n else "", value_text=_digits(f.value),
            stderr_text="" if f.stderr is None else _digits(f.stderr), facts={k: v for k, v in facts.items() if v})
            for f in run.scores(task) if task not in without]
    return tuple(scores)


def _digits(value: float) -> str:
    """A float with so many digits that the audit does not read it as a rounded figure."""
    return f"{value:.12f}"
