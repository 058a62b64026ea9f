"""Owns turning foreign results into ledger rows: lm-eval's folders into evaluations with answers, or, where there
are no answers, like a Markdown record, into reported scores.

    [arrival] = receive(Path("out"), ledger=ledger)
    arrival.evaluation, arrival.reported

What comes in twice is stored once: an evaluation's id is a digest of its content, and the scores of a document
replace those that it gave before. Of a foreign model nothing is proven, so its weights get a mark in the place of
a fingerprint and no comparison ever takes it for a base or a fine-tune of something.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from aftertune import catalog
from aftertune.errors import InputError
from aftertune.exchange.lm_eval_files import LmEvalRun, Sample, read_results, read_samples, results_files, samples_name
from aftertune.exchange.markdown_record import read_record
from aftertune.redaction import redact
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

_IMPORTED = "imported from lm-eval's files: which weights gave these answers is stated there, not proven"


@dataclass(frozen=True, slots=True)
class ImportedResult:
    """What one file brought. evaluation: stored with its answers, None where it has none; new: it was not there
    before; reported: scores without answers."""

    source: str
    evaluation: Evaluation | None
    new: bool
    reported: tuple[Reported, ...]


@dataclass(frozen=True, slots=True)
class _Answered:
    """A task with its answers."""

    settings: TaskSettings
    samples: list[Sample]
    scores: list[Score]


def import_results(path: Path, *, ledger: Ledger, name: str | None = None) -> list[ImportedResult]:
    """Store what lies at ``path``: an lm-eval folder or results file, or a Markdown record (.md).

    name: of the evaluation, or of the record. Everything is read before anything is stored. Raises InputError.
    """
    if path.suffix.lower() in (".md", ".markdown"):
        document = read_record(path, source=name)
        ledger.save_reported(document.source, [asdict(r) for r in document.rows], [asdict(r) for r in document.remarks])
        return [ImportedResult(document.source, None, True, document.rows)]
    if path.suffix.lower() == ".jsonl":
        raise InputError(f"{path}: a samples file alone does not say which model and settings it belongs to; give its "
                         "folder, with the results_*.json of the same time")
    files = results_files(path)
    if name is not None and len(files) > 1:
        raise InputError(f"--name {name} names one evaluation, but {path} holds {len(files)} results files; import "
                         "them one by one, or leave it out")
    read = [(run, _answered(run)) for run in map(read_results, files)]
    return [_store(run, answered, ledger, name) for run, answered in read]


def _answered(run: LmEvalRun) -> list[_Answered]:
    """The tasks of a run whose samples lie beside the results."""
    found = []
    for task in run.leaves:
        path = run.path.with_name(samples_name(task, run.stamp))
        if not run.stamp or not path.is_file():
            continue
        config = run.part("configs", task)
        kind = str(config.get("output_type") or "multiple_choice")
        filters = list(dict.fromkeys(f.filter for f in run.scores(task)))
        samples = read_samples(path, task=task, output_type=kind, filters=filters, cluster=catalog.cluster_field(task))
        _check(run, task, path, samples)
        settings = _own(run, task, samples) or _settings(run, task, config, kind, samples)
        found.append(_Answered(settings, samples, _scores(run, settings, len(samples))))
    return found


def _check(run: LmEvalRun, task: str, path: Path, samples: Sequence[Sample]) -> None:
    """Raises InputError where results and samples do not belong together."""
    used = run.counts(task)[0]
    if used is not None and used != len(samples):
        raise InputError(f"{path}: {len(samples)} documents, and {run.path.name} was made of {used}; the file was cut "
                         "off, or it belongs to another run")
    for figures in run.scores(task):
        key = figures.key
        values = [s.metrics[key] for s in samples if key in s.metrics]
        if catalog.is_share(figures.metric) and len(values) == len(samples) and \
                abs(sum(values) / len(values) - figures.value) > 1e-6:
            raise InputError(f"{path}: {key} is {sum(values) / len(values):.6f} over its documents, and "
                             f"{run.path.name} says {figures.value:.6f}; they do not belong together")


def _own(run: LmEvalRun, task: str, samples: Sequence[Sample]) -> TaskSettings | None:
    """The settings that our own export wrote down, where they fit the items; None for files of lm-eval."""
    stored = run.part("aftertune").get("tasks")
    row = next((r for r in stored if isinstance(r, dict) and r.get("task") == task), None) \
        if isinstance(stored, list) else None
    if row is None:
        return None
    try:
        settings = TypeAdapter(TaskSettings).validate_json(canonical(row), strict=True)
    except ValidationError:
        raise InputError(f"{run.path}: `aftertune.tasks` does not hold the settings of {task}; export it "
                         "anew") from None
    return settings if (settings.items, settings.n) == (digest([s.item.hash for s in samples]), len(samples)) else None


def _settings(run: LmEvalRun, task: str, config: dict[str, Any], kind: str, samples: Sequence[Sample]) -> TaskSettings:
    total = run.counts(task)[1] or len(samples)
    better = {k: bool(v) for k, v in run.part("higher_is_better", task).items()}
    keys = list(run.scores(task))
    better = better or {f.metric: True for f in keys}
    if not keys:
        raise InputError(f"{run.path}: `results.{task}` has no score; was the run broken off?")
    shots = run.part("n-shot").get(task)
    template = run.value.get("chat_template_sha")
    return TaskSettings(
        task=task, version=str(run.part("versions").get(task, "")), output_type=kind,
        num_fewshot=shots if isinstance(shots, int) else 0, n=len(samples), n_total=max(total, len(samples)),
        split=str(config.get("test_split") or config.get("validation_split") or "not stated"),
        data=f"hub:{config['dataset_path']}" if config.get("dataset_path") else "not stated",
        items=digest([s.item.hash for s in samples]), prompts=digest([list(a) for s in samples for a in s.asked]),
        primary=primary_metric(better, list(dict.fromkeys(f.filter for f in keys)), kind), higher_is_better=better,
        limit=len(samples) if len(samples) < total else None,
        chat_template=str(template) if template else None,
        system_instruction=run.value.get("system_instruction") or None,
        # lm-eval 0.4.13 has it on by default; without a chat template it changes nothing
        fewshot_as_multiturn=bool(template and run.value.get("fewshot_as_multiturn")),
        generation=json_ready(config.get("generation_kwargs") or {}) if kind == "generate_until" else {},
        chance=1 / len(samples[0].asked) if kind == "multiple_choice" and samples[0].asked else None,
        cluster=catalog.cluster_field(task),
        groups=tuple(g for g in run.groups if task in run.leaves_of(g)))


def _scores(run: LmEvalRun, settings: TaskSettings, n: int) -> list[Score]:
    return [Score(task=settings.task, metric=f.metric, filter=f.filter, value=f.value, stderr=f.stderr, n=n,
                  higher_is_better=settings.higher_is_better.get(f.metric, True),
                  primary=f.key == settings.primary) for f in run.scores(settings.task)]


def _store(run: LmEvalRun, answered: list[_Answered], ledger: Ledger, name: str | None) -> ImportedResult:
    """Store the answers as an evaluation and the other scores as reported ones."""
    source = name or f"{run.path.parent.name}/{run.path.name}".lstrip("/")
    with_answers = {a.settings.task for a in answered}
    groups = [g for g in run.groups if set(run.leaves_of(g)) <= with_answers]
    rest = reported_scores(run, source, with_answers | set(groups))
    if rest:
        ledger.save_reported(source, [asdict(r) for r in rest])
    if not answered:
        return ImportedResult(source, None, True, rest)
    scores = [s for a in answered for s in a.scores]
    for group in groups:
        n = sum(len(a.samples) for a in answered if group in a.settings.groups)
        scores += [Score(task=group, metric=f.metric, filter=f.filter, value=f.value, stderr=f.stderr, n=n,
                         group=True) for f in run.scores(group)]
    evaluation = _evaluation(run, answered, tuple(scores), name)
    new = all(e.id != evaluation.id or e.status != "done" for e in ledger.evaluations())
    return ImportedResult(source, _keep(evaluation, answered, ledger) if new else ledger.find_evaluation(evaluation.id),
                          new,
                   rest)


def _evaluation(run: LmEvalRun, answered: Sequence[_Answered], scores: tuple[Score, ...],
                name: str | None) -> Evaluation:
    config = run.part("config")
    model = redact(run.model)
    engine = f"lm-eval:{run.value.get('model_source') or config.get('model') or 'unknown'}"
    told = [model, *(config.get(k) for k in ("model_sha", "peft_sha", "model_revision", "delta_sha"))]
    mark = UNPROVEN + digest(json_ready(told))
    tasks = tuple(a.settings for a in answered)
    content = digest([mark, run.started, run.dtype, [asdict(t) for t in tasks],
                      [[s.metrics for s in a.samples] for a in answered]])
    parameters = config.get("model_num_parameters")
    versions = {"lm-eval": run.version, "transformers": str(run.value.get("transformers_version") or "")}
    seconds = run.value.get("total_evaluation_time_seconds")
    return Evaluation(
        id=f"e-{content[:10]}", name=name or model.rstrip("/").rpartition("/")[2] or model, tasks=tasks,
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


def _keep(evaluation: Evaluation, answered: Sequence[_Answered], ledger: Ledger) -> Evaluation:
    """Store items, responses and answers; broken off, the same call goes on."""
    samples = [s for a in answered for s in a.samples]
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
    """The scores of a results file as reported ones, but those of the tasks and groups in ``without``."""
    facts = {"Evaluation Date": run.started[:10], "Data Type": run.dtype,
             "Device": str(run.part("config").get("device") or ""), "lm-eval": run.version}
    found = []
    for task in dict.fromkeys([*run.part("results"), *run.part("groups")]):
        used = run.counts(task)[0]
        n = used or catalog.hub_items(task)
        found += [Reported(
            source=source, model=redact(run.model), task=task, metric=f.metric, filter=f.filter, value=f.value,
            stderr=f.stderr, n=n, n_source="stated" if used else "known" if n else "", value_text=_digits(f.value),
            stderr_text="" if f.stderr is None else _digits(f.stderr), facts={k: v for k, v in facts.items() if v})
            for f in run.scores(task) if task not in without]
    return tuple(found)


def _digits(value: float) -> str:
    """A float with so many digits that no reader takes it for a rounded figure."""
    return f"{value:.12f}"
