"""Gives values as plain objects: dicts, lists and scalars, as ``--json`` prints them and ``to_dict()`` returns them.

    evaluation_object(evaluation)["scores"][0]          {"task": "arc_easy", "metric": "acc", "value": 0.41, …}

Shares are fractions here, as everywhere outside of texts for people.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from aftertune.errors import NotComparable
from aftertune.values import Comparison, Drift, Evaluation, GateLine

if TYPE_CHECKING:
    from aftertune.exchange import Audit, ImportedResult


def jsonable(value: Any) -> Any:
    """A value of `aftertune.values`, or a structure of them, as dicts, lists and scalars.

    Numbers that are not finite become None.
    """
    from pydantic_core import from_json, to_json

    return from_json(to_json(value, inf_nan_mode="null"))


def evaluation_object(evaluation: Evaluation) -> dict[str, Any]:
    """An evaluation as ``eval --json`` prints it."""
    seconds = evaluation.provenance.seconds if evaluation.provenance else None
    return {"evaluation": evaluation.id, "model": evaluation.model,
            "scores": [{"task": s.task, "metric": s.metric, "filter": s.filter, "value": s.value,
                        "stderr": s.stderr, "n": s.n, "n_total": evaluation.total(s.task),
                        "stopped_early": evaluation.stopped(s.task) is not None}
                       for s in evaluation.scores],
            "early": evaluation.early,
            "seconds": seconds, "warnings": list(evaluation.warnings), "engine": evaluation.engine_note}


def comparison_object(comparison: Comparison, drift: Drift | None = None) -> dict[str, object]:
    """The comparison as ``compare --json`` prints it. drift: of the two models, where it was measured."""
    from aftertune.report import as_objects, comparison_export, headline, watermark

    rows = [{**row, "told": r.told, "ci": [r.low, r.high]}  # the names of version 0.1 for label, and for low and high
            for row, r in zip(as_objects(comparison_export(comparison, "json")), comparison.rows, strict=True)]
    return {"comparison": comparison.id, "base": comparison.base_name, "tuned": comparison.tuned_name,
            "headline": jsonable(headline(comparison)), "comparable": comparison.comparable,
            "forced": comparison.forced,
            "watermark": watermark(comparison) or None, "rules": comparison.rules,
            "lineage": comparison.lineage, "relation": comparison.relation or None, "common": comparison.common,
            "rows": rows, "held_out": jsonable(comparison.held_out), "forms": jsonable(comparison.forms),
            "few_shot": jsonable(comparison.few_shot),
            "changes": changes_object(comparison), "drift": drift and drift_object(drift),
            "differences": jsonable(comparison.differences)}


def changes_object(comparison: Comparison) -> dict[str, Any] | None:
    """What changed beside right and wrong, as ``compare --json`` prints it; None where it was not computed."""
    changes = comparison.changes
    if changes is None:
        return None
    return {**jsonable(changes), "no_effect": changes.no_effect or None, "moved": changes.moved, "tests": changes.tests}


def refusal_object(error: NotComparable, base: str, tuned: str) -> dict[str, object]:
    """A refused comparison as ``--json`` prints it."""
    return {"base": base, "tuned": tuned, "comparable": False, "rows": [], "differences": jsonable(error.differences)}


def gate_object(comparison: Comparison, lines: Sequence[GateLine]) -> dict[str, Any]:
    """A gate as ``gate --json`` prints it."""
    from aftertune.report import gate_reason, headline, unit_name

    return {"passed": not any(line.failed for line in lines), "base": comparison.base_name,
            "tuned": comparison.tuned_name, "headline": jsonable(headline(comparison)), "comparable": True,
            "lineage": comparison.lineage, "no_effect": (comparison.changes and comparison.changes.no_effect) or None,
            "limits": [{"task": line.task, "limit": line.limit, "unit": unit_name(line.row),
                        "outcome": line.outcome, "failed": line.failed,
                        "n": line.row.n, "stopped_of": line.row.stopped_of, "delta": line.row.delta,
                        "ci": [line.row.low, line.row.high], "p_adjusted": line.row.p_adjusted,
                        "p_no_drop": line.row.p_no_drop, "reason": gate_reason(line)} for line in lines]}


def audit_object(result: Audit) -> dict[str, Any]:
    """The audit as ``audit --json`` prints it."""
    from aftertune.exchange import pairing_text

    values = [{"model": c.row.model, "task": c.row.task, "metric": c.row.metric, "filter": c.row.filter,
               "value": c.row.value_text, "stderr": c.row.stderr_text, "n": c.row.n, "n_source": c.row.n_source,
               "mark": c.mark, "value_ok": c.value_ok, "stderr_ok": c.stderr_ok, "counts": list(c.counts[:20]),
               "power": c.power, "text": c.text} for c in result.checks]
    claims = [{"base": c.base, "tuned": c.tuned, "task": c.task, "metric": c.metric, "filter": c.filter,
               "difference": c.difference, "z": c.z, "p": c.p, "p_holm": c.p_holm, "p_every_pairing": c.p_every,
               "same_section": c.family, "status": c.status, "pairing": c.pairing, "pairing_text": pairing_text(c)}
              for c in result.claims]
    return {"source": result.source, "ok": result.ok, "values": values, "claims": claims,
            "findings": jsonable(result.findings)}


def import_object(result: ImportedResult) -> dict[str, Any]:
    """An import as ``import --json`` prints it."""
    evaluation = result.evaluation
    return {"source": result.source, "evaluation": evaluation.id if evaluation else None,
            "name": evaluation.name if evaluation else None, "new": result.new, "notes": list(result.notes),
            "error": result.error or None,
            "reported": sum(r.planned is None for r in result.reported),
            "planned": sum(r.planned is not None for r in result.reported)}


def drift_object(drift: Drift) -> dict[str, Any]:
    """A drift measurement, without its texts."""
    return {"id": drift.id, "dtype": drift.dtype, "device": drift.device, "prompts": drift.prompts,
            "tokens": drift.tokens, "seed": drift.seed, "notes": list(drift.notes),
            "groups": [{"name": group.name, "n": len(group.texts), "tokens": group.tokens, "kl": group.kl,
                        "low": group.low, "high": group.high, "moved": group.moved, "changed": group.changed,
                        "random_kl": group.random_kl, "beyond_random": group.beyond_random}
                       for group in drift.groups]}


def drift_texts_object(drift: Drift) -> dict[str, Any]:
    """A drift measurement with its texts, as ``drift --json`` prints it."""
    value = drift_object(drift)
    groups = [{**group, "texts": jsonable(measured.texts)}
              for group, measured in zip(value["groups"], drift.groups, strict=True)]
    return {**value, "base": drift.base.source, "tuned": drift.tuned.adapter_source or drift.tuned.source,
            "groups": groups}
