"""Implements ``audit``, which checks the scores of a published record and what its differences can show.

    aftertune audit published.md --strict
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aftertune.api.objects import audit_object
from aftertune.cli.console import emit
from aftertune.cli.options import JsonFlag
from aftertune.cli.streams import rich_console

if TYPE_CHECKING:
    from rich.console import Console, Group

    from aftertune.exchange import Audit, Check, Claim
    from aftertune.values.reported import Reported

_STYLES = {"not reproducible": "bold red", "ok": "green", "ok*": "green", "not checked": "dim",
           "established": "bold green", "cannot be checked": "red"}
#: Status of a claim -> how it is shown; a status that is missing here is shown as it is.
_STATUS = {"open": "not established (the paired answers would decide)", "not shown": "not established",
           "cannot be checked": "not established (its scores fail the check)"}


def audit(
    file: Annotated[Path, typer.Argument(
        help="Markdown record, or results of lm-eval, lighteval or inspect: a file or a folder.")],
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 if a figure fails the check.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Check whether reported values and errors are possible (k of n), and whether the summary supports differences."""
    from aftertune.exchange import audit as run

    result = run(file)
    if as_json:
        emit(audit_object(result))
    else:
        show(result)
    if strict and not result.ok:
        raise typer.Exit(1)


def show(result: Audit) -> None:
    """Print the audit."""
    from rich.text import Text

    console = rich_console()
    failed_rows = sum(not c.ok for c in result.checks)
    failed_figures = sum((c.value_ok is False) + (c.stderr_ok is False) for c in result.checks)
    console.print(Text(f"{result.source}: {len(result.checks)} reported values; {failed_figures} figures of "
                       f"{failed_rows} rows are not reproducible", style="bold"))
    console.print(values_table(result.checks))
    for pair in dict.fromkeys((c.base, c.tuned) for c in result.claims):
        _show_claims(console, [c for c in result.claims if (c.base, c.tuned) == pair])
    if result.findings:
        console.print(Text("\nOther findings", style="bold"))
    for finding in result.findings:
        console.print(Text.assemble((finding.where, "bold"), f": {finding.text}"))


def values_table(checks: Sequence[Check]) -> Group:
    """A table of the reported values with their marks; below it, why a figure fails or was not checked."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    table.add_column("", overflow="fold")
    for heading in ("Reported", "k of n", "Mark"):
        table.add_column(heading, no_wrap=True)
    reasons: dict[str, None] = {}
    model = None
    for c in checks:
        if c.row.model != model:
            table.add_row(Text(c.row.model, style="bold"))
        model = c.row.model
        value = f"{c.row.value_text} ±{c.row.stderr_text}" if c.row.stderr_text else c.row.value_text
        k = f"{c.counts[0]}" if len(c.counts) == 1 else f"{c.counts[0]}-{c.counts[-1]}" if c.counts else "–"
        table.add_row(Text(f"  {_label(c.row)}"), Text(value), f"{k} of {c.row.n:,}" if c.row.n else "–",
                      Text(c.mark, style=_STYLES.get(c.mark, "")))
        if not c.ok or c.value_ok is None:
            reasons[f"{c.row.model}, {_label(c.row)}, {value}: {c.text}"] = None
    if any(c.mark == "ok*" for c in checks):
        reasons["* at this n every value with as many decimals is some k/n, so the check shows nothing"] = None
    return Group(table, *map(Text, reasons))


def _label(row: Reported | Claim) -> str:
    """Task and metric as a short label."""
    return f"{row.task} {row.metric if row.filter == 'none' else row.filter}"


def _show_claims(console: Console, claims: list[Claim]) -> None:
    """Print what the summary alone shows about the differences of one pair."""
    from rich.table import Table
    from rich.text import Text

    from aftertune.exchange import pairing_text

    first = claims[0]
    kind = "same section, so the document can claim forgetting" if first.family else \
        "different sections: a comparison of two models, not forgetting"
    console.print(Text.assemble((f"\n{first.tuned} against {first.base}", "bold"), f" ({kind})"))
    table = Table(box=None, pad_edge=False)
    table.add_column("", overflow="fold")
    for heading in ("Points", "z", "p", "Holm"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("From the summary alone", overflow="fold")
    for c in claims:
        table.add_row(Text(f"  {_label(c)}"), f"{100 * c.difference:+.2f}".replace("-", "−"),
                      "–" if c.z is None else f"{c.z:.2f}".replace("-", "−"), p_text(c.p), p_text(c.p_holm),
                      Text(_STATUS.get(c.status, c.status), style=_STYLES.get(c.status, "yellow")))
    console.print(table)
    for c in claims:
        if c.inputs_ok:
            console.print(Text(f"  {_label(c)}: {pairing_text(c)}", style="dim"))


def p_text(p: float) -> str:
    """A p-value with two significant digits."""
    return f"{p:.2g}" if p >= 1e-4 else "<.0001"
