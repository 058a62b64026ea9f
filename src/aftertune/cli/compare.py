"""``aftertune compare BASE TUNED …``: the verdict tables of evaluations in the ledger."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

import typer

from aftertune.cli.console import emit, jsonable
from aftertune.cli.options import Common, Force, Json, StoredEvaluation
from aftertune.errors import InputError, NotComparable

if TYPE_CHECKING:
    from aftertune.values import Comparison


def compare(
    base: StoredEvaluation,
    tuned: Annotated[list[str], typer.Argument(help="Id or name of an evaluation. Several are compared one by one.")],
    margin: Annotated[list[str] | None, typer.Option(
        help="Points; a change within them is no loss. TASK=POINTS for one task. Repeatable. Default: 2.")] = None,
    common: Common = False,
    force: Force = False,
    details: Annotated[bool, typer.Option(
        "--details", help="Also show McNemar's p-values and every task of a group.")] = False,
    as_json: Json = False,
) -> None:
    """Compare evaluations question by question: what was forgotten, what was kept, what improved."""
    from aftertune.comparison import compare as run
    from aftertune.ledger import Ledger

    margins = parse_margins(margin or [])
    found: list[Comparison] = []
    errors: list[NotComparable] = []
    objects: list[dict[str, object]] = []
    with Ledger(create=False) as ledger:
        for name in dict.fromkeys(tuned):
            try:
                found.append(run(base, name, margins=margins, ledger=ledger, force=force, common=common))
                objects.append(as_object(found[-1]))
            except NotComparable as error:
                errors.append(error)
                objects.append(refused(error, base, name))
    if as_json:
        emit(objects[0] if len(objects) == 1 else {"comparisons": objects})
    else:
        _show_all(found, details)
    if errors:
        raise errors[0]


def parse_margins(texts: list[str]) -> dict[str, float]:
    """``2`` and ``hellaswag=5``, in points, as the fractions that `aftertune.comparison.compare` takes."""
    margins: dict[str, float] = {}
    for text in texts:
        task, found, points = text.rpartition("=")
        value = number(points)
        if not 0 < value <= 100 or (found and not task):
            raise InputError(f"--margin {text}: allowed are points above 0, up to 100, or TASK=POINTS; without a "
                             "margin no small loss can be told from noise, so take the smallest that would matter "
                             "(2 by default)")
        margins[task or "*"] = value / 100
    return margins


def number(text: str) -> float:
    """A text as a number, NaN where it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def show(comparison: Comparison, details: bool = False) -> None:
    """The verdict table, with the differences that do not block."""
    from rich.console import Console
    from rich.text import Text

    from aftertune.report import terminal_table

    console = Console()
    console.print(terminal_table(comparison, width=console.width, details=details))
    for difference in comparison.differences:
        console.print(Text.assemble(("differs", "yellow"), f" {difference.field}: {difference.left} in "
                                    f"{comparison.base_name}, {difference.right} in {comparison.tuned_name}"))
    if comparison.relation == "reversed":
        console.print(Text.assemble(("hint", "yellow"), " the base comes first: "
                                    f"aftertune compare {comparison.tuned_name} {comparison.base_name}"))


def _show_all(comparisons: list[Comparison], details: bool) -> None:
    """Every table, and for several tuned models a summary, a line a task."""
    from rich.console import Console
    from rich.text import Text

    from aftertune.report import terminal_summary

    for at, comparison in enumerate(comparisons):
        if at:
            Console().print()
        show(comparison, details)
    if len(comparisons) > 1:
        Console().print(Text(), terminal_summary(comparisons))


def as_object(comparison: Comparison) -> dict[str, object]:
    """The comparison in the form that ``compare --json`` promises."""
    from aftertune.report import watermark

    rows = [{"task": r.task, "metric": r.metric, "filter": r.filter, "n": r.n, "n_total": r.n_total, "base": r.base,
             "tuned": r.tuned, "delta": r.delta, "ci": [r.low, r.high], "p": r.p, "p_adjusted": r.p_adjusted,
             "p_exact": r.p_exact, "p_mid": r.p_mid, "q": r.q, "gained": r.gained, "lost": r.lost, "verdict": r.verdict,
             "told": r.told, "margin": r.margin, "primary": r.primary, "group": r.group or None,
             "items_needed": r.items_needed, "note": r.note, "stopped_of": r.stopped_of,
             "details": list(r.details)} for r in comparison.rows]
    return {"comparison": comparison.id, "base": comparison.base_name, "tuned": comparison.tuned_name,
            "comparable": comparison.comparable, "forced": comparison.forced,
            "watermark": watermark(comparison) or None,
            "lineage": comparison.lineage, "relation": comparison.relation or None, "common": comparison.common,
            "rows": rows, "held_out": jsonable(comparison.held_out), "forms": jsonable(comparison.forms),
            "differences": jsonable(comparison.differences)}


def refused(error: NotComparable, base: str, tuned: str) -> dict[str, object]:
    """A comparison that is not allowed, in the form that ``--json`` promises."""
    return {"base": base, "tuned": tuned, "comparable": False, "rows": [], "differences": jsonable(error.differences)}
