"""``aftertune gate BASE TUNED --max-drop TASK=POINTS``: fail a build where a drop beyond a limit is proven."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aftertune.cli.compare import number, refused
from aftertune.cli.console import emit
from aftertune.cli.options import Common, Json, StoredEvaluation
from aftertune.errors import GateFailed, InputError, NotComparable

if TYPE_CHECKING:
    from aftertune.values import Comparison, Evaluation, GateLine


def gate(
    base: StoredEvaluation,
    tuned: StoredEvaluation,
    max_drop: Annotated[list[str], typer.Option(help="TASK=POINTS: the largest allowed drop. Repeatable.")],
    require_proof: Annotated[bool, typer.Option(
        "--require-proof", help="Also fail if it is not proven that a limit holds.")] = False,
    common: Common = False,
    junit: Annotated[Path | None, typer.Option(help="JUnit XML file to write.")] = None,
    as_json: Json = False,
) -> None:
    """Exit with 1 if a drop beyond a limit is proven (with --require-proof: if its absence is not proven)."""
    from aftertune.comparison import find
    from aftertune.comparison.gate import gate as run
    from aftertune.ledger import Ledger
    from aftertune.report import gate_text, write_document, write_junit, write_junit_error

    drops = _drops(max_drop)
    with Ledger(create=False) as ledger:
        left, right = find(base, ledger), find(tuned, ledger)
        title = f"{right.name} against {left.name}"
        limits = {task: points / _scale(left, task) for task, points in drops.items()}
        try:
            comparison, lines = run(left, right, limits, ledger=ledger, require_proof=require_proof, common=common)
        except NotComparable as error:
            if junit is not None:
                write_document(junit, write_junit_error(tuple(limits), str(error), title=title))
            if as_json:
                emit({"passed": False, **refused(error, base, tuned)})
            raise
    if junit is not None:
        write_document(junit, write_junit(lines, title=title))
    if as_json:
        emit(as_object(comparison, lines))
    else:
        for line in lines:
            typer.echo(gate_text(line))
    failed = [line.task for line in lines if line.failed]
    if failed:
        raise GateFailed(f"the gate failed on {len(failed)} of {len(lines)} limits ({', '.join(failed)}); see the "
                         f"items with `aftertune flips {left.name} {right.name} --task {failed[0]} --lost`")


def _drops(texts: list[str]) -> dict[str, float]:
    """``hellaswag=2`` as task and points, each task once."""
    found: dict[str, float] = {}
    for text in texts:
        task, _, points = text.rpartition("=")
        if not task or not 0 < number(points) <= 100:
            raise InputError(f"--max-drop {text}: write TASK=POINTS with points above 0, up to 100, for example "
                             "hellaswag=2; a drop of 0 can never be excluded, so take the smallest that would matter")
        if task in found:
            raise InputError(f"--max-drop {task}: given twice ({found[task]:g} and {points}); each task has one limit")
        found[task] = number(points)
    return found


def _scale(evaluation: Evaluation, task: str) -> int:
    """100 where the task's (or group's) primary metric is told in points, else 1: its own unit."""
    from aftertune.report.names import is_fraction

    keys = [t.primary for t in evaluation.tasks if task in (t.task, *t.groups)]
    return 100 if all(is_fraction(key.partition(",")[0]) for key in keys) else 1


def as_object(comparison: Comparison, lines: tuple[GateLine, ...]) -> dict[str, Any]:
    """A gate in the form that ``gate --json`` promises."""
    from aftertune.report import gate_reason

    return {"passed": not any(line.failed for line in lines), "base": comparison.base_name,
            "tuned": comparison.tuned_name, "comparable": True, "lineage": comparison.lineage,
            "limits": [{"task": line.task, "limit": line.limit, "outcome": line.outcome, "failed": line.failed,
                        "n": line.row.n, "stopped_of": line.row.stopped_of, "delta": line.row.delta,
                        "ci": [line.row.low, line.row.high], "p_adjusted": line.row.p_adjusted,
                        "p_no_drop": line.row.p_no_drop, "reason": gate_reason(line)} for line in lines]}
