"""``aftertune compare BASE TUNED``: the verdict table of two evaluations in the ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from aftertune.cli.console import emit, jsonable
from aftertune.errors import InputError

if TYPE_CHECKING:
    from aftertune.values import Comparison


def compare(
    base: Annotated[str, typer.Argument(help="Id or name of an evaluation.")],
    tuned: Annotated[str, typer.Argument(help="Id or name of an evaluation.")],
    margin: Annotated[float, typer.Option(help="Points; a change within them is no loss.")] = 2,
    force: Annotated[bool, typer.Option("--force", help="Compare in spite of differences; marked.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Compare two evaluations question by question: what was forgotten, kept, improved?"""
    if not 0 < margin <= 100:
        raise InputError(f"--margin {margin:g}: allowed are points above 0, up to 100; without a margin no small loss "
                         "can be told from noise, so take the smallest that would matter (2 by default)")
    from aftertune.comparison import compare as run
    from aftertune.ledger import Ledger

    with Ledger(create=False) as ledger:
        comparison = run(base, tuned, margins=margin / 100, ledger=ledger, force=force)
    if as_json:
        emit(as_object(comparison))
    else:
        show(comparison)


def show(comparison: Comparison) -> None:
    """The verdict table, with the differences that do not block."""
    from rich.console import Console
    from rich.text import Text

    from aftertune.report import terminal_table

    console = Console()
    console.print(terminal_table(comparison, width=console.width))
    for difference in comparison.differences:
        console.print(Text.assemble(("differs", "yellow"), f" {difference.field}: {difference.left} in "
                                    f"{comparison.base_name}, {difference.right} in {comparison.tuned_name}"))


def as_object(comparison: Comparison) -> dict[str, object]:
    """The comparison in the form that ``compare --json`` promises."""
    rows = [{"task": r.task, "metric": r.metric, "filter": r.filter, "n": r.n, "base": r.base, "tuned": r.tuned,
             "delta": r.delta, "ci": [r.low, r.high], "p": r.p, "p_adjusted": r.p_adjusted, "gained": r.gained,
             "lost": r.lost, "verdict": r.verdict, "told": r.told, "margin": r.margin, "primary": r.primary,
             "items_needed": r.items_needed, "note": r.note, "stopped_of": r.stopped_of} for r in comparison.rows]
    return {"comparison": comparison.id, "comparable": comparison.comparable, "forced": comparison.forced,
            "lineage": comparison.lineage, "rows": rows, "held_out": jsonable(comparison.held_out),
            "differences": jsonable(comparison.differences)}
