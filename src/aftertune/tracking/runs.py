"""Makes runs for trackers from entries of the ledger.

    [base, orders] = tracked_runs(ledger, [evaluation.id, tuning.id])
    base.metrics            {"hellaswag/acc_norm": 0.41, "hellaswag/acc_norm.low": 0.354, …}
    orders.curves           [(10, {"loss": 1.9}), …]
    orders.tags             {"aftertune.id": "t-…", "verdict/hellaswag": "kept", …}

Secrets are removed from every text, and paths of this machine become names.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from aftertune.errors import AftertuneError, InputError
from aftertune.pipeline.study_verdicts import over_studies
from aftertune.redaction import published, redact, redact_known
from aftertune.report import Results, headline, score_interval, write_card, write_page
from aftertune.values import Comparison, Evaluation, Tuning

if TYPE_CHECKING:
    from aftertune.ledger import Ledger

CARD, PAGE = "README.md", "report.html"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedRun:
    """One entry of the ledger as a tracker shows it.

    group: of the runs of a study, else "aftertune". kind: "evaluation" or "tuning". params: settings. metrics: single
    figures; shares are fractions. curves: (step, figures). tags: id, model and verdicts. files: name -> text.
    """

    id: str
    name: str
    group: str
    kind: str
    params: Mapping[str, str | int | float | bool]
    metrics: Mapping[str, float]
    curves: Sequence[tuple[int, Mapping[str, float]]] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)


def tracked_runs(ledger: Ledger, ids: Sequence[str]) -> list[TrackedRun]:
    """The runs of evaluations and tunings, in the order of ``ids``, each in the group of its newest study; unfinished
    ones are left out. Raises InputError for an unknown id."""
    groups = {c.ref: study.name for study in ledger.studies() for c in ledger.cells(study.name) if c.ref}
    comparisons = over_studies(ledger.comparisons(), ledger)
    results = Results(evaluations=ledger.evaluations(), tunings=ledger.tunings(), comparisons=comparisons)
    entries: dict[str, Evaluation | Tuning] = {e.id: e for e in results.evaluations}
    entries |= {t.id: t for t in results.tunings}
    runs = []
    for id_ in dict.fromkeys(ids):
        if id_ not in entries:
            raise InputError(f"no evaluation or tuning {id_!r} in the ledger")
        entry = entries[id_]
        if entry.status == "done":
            run = _evaluation(entry, results, ledger) if isinstance(entry, Evaluation) else _tuning(entry, results)
            runs.append(_clean(replace(run, group=groups.get(id_, "aftertune"))))
    return runs


def _evaluation(evaluation: Evaluation, results: Results, ledger: Ledger) -> TrackedRun:
    shown = published(evaluation)
    params: dict[str, Any] = {
        "model": shown.model.source, "adapter": shown.model.adapter_source, "revision": shown.model.revision,
        "parameters": shown.model.parameters, "quantization": shown.model.quantization, "dtype": shown.dtype,
        "device": shown.device, "engine": shown.engine, "command": shown.provenance and shown.provenance.command}
    for task in shown.tasks:
        used = task.n if task.used is None else task.used
        params |= {f"{task.task}/items": used, f"{task.task}/of": task.n_total, f"{task.task}/shots": task.num_fewshot,
                   f"{task.task}/chat_template": bool(task.chat_template)}
    own = [c for c in results.comparisons if evaluation.id in (c.base, c.tuned)]
    tags = {"model": shown.name, "fingerprint": shown.model.fingerprint[:16], "partial": str(any(
        (t.used or t.n) < t.n_total for t in shown.tasks)).lower()}
    metrics = dict(_scores(evaluation))
    against = next((c for c in reversed(own) if c.tuned == evaluation.id), None)
    if against is not None:
        tags |= _verdicts(published(against))
        metrics |= dict(_differences(against))
    files = {CARD: write_card(evaluation, results).readme, PAGE: _page(ledger, evaluation, against)}
    return TrackedRun(id=evaluation.id, name=shown.name, group="", kind="evaluation", params=_given(params),
                      metrics=metrics, tags=tags, files={k: v for k, v in files.items() if v})


def _scores(evaluation: Evaluation) -> Iterator[tuple[str, float]]:
    """Each score with its standard error and interval. An estimate of a task that was stopped early says so.

    No name is a folder of another one: MLflow's store of files takes names for paths.
    """
    for score in evaluation.scores:
        suffix = "" if score.filter == "none" else f".{score.filter}"
        early = ".early_estimate" if evaluation.stopped(score.task) else ""
        name = f"{score.task}/{score.metric}{suffix}{early}"
        interval = score_interval(score)
        yield name, score.value
        yield f"{name}.n", score.n
        if score.stderr is not None:
            yield f"{name}.stderr", score.stderr
        if interval is not None and not early:
            yield f"{name}.low", interval[0]
            yield f"{name}.high", interval[1]


def _differences(comparison: Comparison) -> Iterator[tuple[str, float]]:
    """The differences from the base with their intervals, on the primary metrics."""
    for row in (r for r in comparison.rows if r.primary):
        for name in ("delta", "low", "high", "p_adjusted"):
            value = getattr(row, name)
            if value is not None:
                yield f"against_base/{row.task}/{name}", value


def _verdicts(comparison: Comparison) -> dict[str, str]:
    """The verdict of each primary row, and the headline."""
    words = {f"verdict/{r.task}": r.told or "undecided" for r in comparison.rows if r.primary}
    return {**words, "against": comparison.base_name, "comparison": comparison.id,
            "headline": headline(comparison).line}


def _tuning(tuning: Tuning, results: Results) -> TrackedRun:
    shown = published(tuning)
    params = {"base": shown.base.source, "method": shown.method, "data": shown.data_source, "seed": shown.seed,
              "examples": shown.examples, "trainable_parameters": shown.trainable_parameters,
              "command": shown.provenance and shown.provenance.command, **dict(_flat(shown.settings))}
    metrics: dict[str, float] = {f"cost/{k}": v for k, v in shown.cost.items()}
    if shown.held_out is not None:
        h = shown.held_out
        metrics |= {"held_out/before": h.before, "held_out/after": h.after, "held_out/change": h.after - h.before,
                    "held_out/low": h.low, "held_out/high": h.high}
    curves = [(int(s.get("step", n)), {k: float(v) for k, v in s.items() if k != "step"})
              for n, s in enumerate(shown.steps)]
    curves += [(p.step, {f"watch/{p.task}/{name}": getattr(p, name) for name in ("tuned", "delta", "low", "high")})
               for p in shown.watch]
    tags = {"model": shown.name, "fingerprint": (shown.result or "")[:16]}
    evaluations = {e.id for e in results.evaluations if tuning.made(e.model.fingerprint)}
    against = next((c for c in reversed(results.comparisons) if c.tuned in evaluations and c.lineage), None)
    if against is not None:
        tags |= _verdicts(published(against))
    return TrackedRun(id=tuning.id, name=shown.name, group="", kind="tuning", params=_given(params), metrics=metrics,
                      curves=sorted(curves, key=lambda c: c[0]), tags=tags,
                      files={CARD: write_card(tuning, results).readme})


def _flat(settings: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Settings with dotted names."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def _given(params: Mapping[str, Any]) -> dict[str, str | int | float | bool]:
    """Parameters without those that are not set; what is no scalar as text."""
    return {k: v if isinstance(v, str | int | float | bool) else str(v) for k, v in params.items() if v is not None}


def _page(ledger: Ledger, evaluation: Evaluation, against: Comparison | None) -> str:
    """The page of an evaluation beside its base; "" where it cannot be written."""
    from aftertune.comparison.flips import flips_by_comparison

    only = [evaluation.id] if against is None else [against.base, evaluation.id]
    try:
        results = Results.load(ledger, only)
        flips = flips_by_comparison(results.comparisons, results.answers, ledger=ledger)
        results = replace(results, evaluations=published(results.evaluations), tunings=published(results.tunings),
                          comparisons=published(results.comparisons), flips=flips)
        return write_page(results, title=published(evaluation.name))
    except AftertuneError:
        return ""


def _clean(run: TrackedRun) -> TrackedRun:
    """The run without secrets and without figures that no tracker takes (not a number, infinite)."""
    def text(value: Any) -> Any:
        return redact(value) if isinstance(value, str) else value

    def finite(values: Mapping[str, float]) -> dict[str, float]:
        return {redact(k): float(v) for k, v in values.items() if math.isfinite(v)}

    return replace(run, name=redact(run.name), group=redact(run.group), metrics=finite(run.metrics),
                   params={redact(k): text(v) for k, v in run.params.items()},
                   curves=[(step, finite(values)) for step, values in run.curves],
                   tags={"aftertune.id": run.id, "aftertune.kind": run.kind,
                         **{redact(k): redact(v) for k, v in run.tags.items()}},
                   files={name: redact_known(content) for name, content in run.files.items()})
