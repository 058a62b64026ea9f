"""Implements ``ledger``, which copies, checks and tidies ledgers as a whole.

    aftertune ledger copy .aftertune/ledger.db postgresql+psycopg://me@db/team      everything
    aftertune ledger copy FROM TO --study orders --run careful                      a part of it
    aftertune ledger check                  what `aftertune doctor` says of the ledger
    aftertune ledger size                   rows and bytes of each table
    aftertune ledger vacuum                 gives the space of removed entries back

An address may have a password, which other users of this machine can see in a command line: leave it out, and put it
into ~/.pgpass or PGPASSWORD.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from aftertune.cli.console import emit
from aftertune.cli.options import JsonFlag
from aftertune.cli.streams import rich_console
from aftertune.errors import AftertuneError, InputError, InUse, StorageError

if TYPE_CHECKING:
    from aftertune.ledger.copying import CopiedEntry


class LedgerAction(StrEnum):
    """What to do with a ledger."""

    COPY = "copy"
    CHECK = "check"
    SIZE = "size"
    VACUUM = "vacuum"


def ledger(
    action: Annotated[LedgerAction, typer.Argument(
        help="copy entries to another ledger, check everything that is stored, show the size, or vacuum: give the "
             "space of removed entries back.")],
    places: Annotated[list[str] | None, typer.Argument(
        metavar="[LEDGER…]", help="Path or address of a ledger: two for copy, FROM and TO; at most one for the others. "
                                  "Default: AFTERTUNE_LEDGER, else .aftertune/ledger.db.")] = None,
    study: Annotated[list[str] | None, typer.Option(
        help="Study to copy, with all that its cells made; several times for several.")] = None,
    run: Annotated[list[str] | None, typer.Option(
        metavar="ID", help="Evaluation, tuning or comparison to copy, with its answers and what it belongs to; several "
                           "times for several.")] = None,
    replace: Annotated[bool, typer.Option(
        "--replace", help="Replace what the target has under the same id in another form.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Copy, check, measure or vacuum a ledger."""
    given = places or []
    most = 2 if action is LedgerAction.COPY else 1
    if len(given) > most or (action is LedgerAction.COPY and len(given) < most):
        form = "aftertune ledger copy FROM TO" if most == 2 else f"aftertune ledger {action} [LEDGER]"
        raise InputError(f"{len(given)} ledgers are given; the form is `{form}`")
    if action is LedgerAction.COPY:
        _copy(given[0], given[1], (study or [], run or []), replace, as_json)
        return
    if study or run or replace:
        raise InputError("--study, --run and --replace have an effect with copy alone; leave them out")
    {LedgerAction.CHECK: _check, LedgerAction.SIZE: _size, LedgerAction.VACUUM: _vacuum}[action](
        given[0] if given else None, as_json)


def _copy(source: str, target: str, chosen: tuple[list[str], list[str]], replace: bool, as_json: bool) -> None:
    """Copy entries, and exit with 2 where some differ, else with 4 where some are in use."""
    from aftertune.ledger import Ledger
    from aftertune.ledger.copying import chosen_entries, copy_entries

    done: list[CopiedEntry] = []
    with Ledger(source, create=False, read_only=True) as first:
        entries = chosen_entries(first.database, studies=chosen[0], runs=chosen[1])
        with Ledger(target) as second:  # not made for a name that is wrong
            for entry in copy_entries(first.database, second.database, entries, replace=replace):
                done.append(entry)
                if not as_json and entry.state != "there":
                    typer.echo(f"{entry.state}: {entry.kind.replace('_', ' ')} {entry.id}")
            place = str(second.database.place)
    counts = Counter(entry.state for entry in done)
    if as_json:
        emit({"to": place, "counts": dict(counts), "entries": [asdict(entry) for entry in done]})
    else:
        equal = counts["copied"] + counts["replaced"] + counts["there"]
        typer.echo(f"{equal:,} of {len(done):,} entries are in {place} with the same digest"
                   f"{''.join(f', {n:,} {state}' for state, n in counts.items())}")
    left = [entry for state in ("differs", "in use") for entry in done if entry.state == state]
    if left:
        what = {"differs": "is there in another form (--replace replaces it)", "in use": "is in use; copy it later"}
        number = "1 entry was" if len(left) == 1 else f"{len(left)} entries were"
        error: type[AftertuneError] = InputError if left[0].state == "differs" else InUse
        raise error(f"{number} not copied: {left[0].kind} {left[0].id} {what[left[0].state]}"
                    f"{', and others' if len(left) > 1 else ''}")


def _check(place: str | None, as_json: bool) -> None:
    """Check everything that is stored."""
    from aftertune.ledger import Ledger

    with Ledger(place, create=False) as opened:
        found = opened.check()
    if as_json:
        emit({"findings": [asdict(finding) for finding in found]})
    else:
        for finding in found:
            remedy = f"; {finding.remedy}" if finding.remedy else ""
            typer.echo(f"{finding.name}: {finding.value}{f' ({finding.problem}{remedy})' if finding.problem else ''}")
    if any(finding.problem for finding in found):
        raise typer.Exit(StorageError.exit_code)


def _size(place: str | None, as_json: bool) -> None:
    """Show rows and bytes of each table."""
    from rich.table import Table

    from aftertune.ledger import Ledger

    with Ledger(place, create=False) as opened:
        sizes, total, where = opened.database.sizes(), opened.database.total_bytes(), str(opened.database.place)
    if as_json:
        emit({"ledger": where, "bytes": total, "tables": {name: {"rows": rows, "bytes": size}
                                                          for name, (rows, size) in sizes.items()}})
        return
    table = Table("table", box=None, pad_edge=False)
    table.add_column("rows", justify="right")
    table.add_column("MB", justify="right")
    for name, (rows, size) in sizes.items():
        if rows:
            table.add_row(name, f"{rows:,}", "" if size is None else f"{size / 1e6:,.2f}")
    rich_console().print(table)
    typer.echo(f"{where}: {total / 1e6:,.2f} MB")


def _vacuum(place: str | None, as_json: bool) -> None:
    """Give the space of removed entries back."""
    from aftertune.ledger import Ledger

    with Ledger(place, create=False) as opened:
        before = opened.database.total_bytes()
        opened.database.vacuum()
        after, where = opened.database.total_bytes(), str(opened.database.place)
    if as_json:
        emit({"ledger": where, "before": before, "after": after})
    else:
        typer.echo(f"{where}: {before / 1e6:,.2f} MB before, {after / 1e6:,.2f} MB now")
