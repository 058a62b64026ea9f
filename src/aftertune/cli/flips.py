"""``aftertune flips BASE TUNED --task T``: the items that changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from aftertune.cli.console import emit, jsonable
from aftertune.errors import InputError


def flips(
    base: Annotated[str, typer.Argument(help="Id or name of an evaluation.")],
    tuned: Annotated[str, typer.Argument(help="Id or name of an evaluation.")],
    task: Annotated[str, typer.Option(help="The task whose items are shown.")],
    metric: Annotated[str | None, typer.Option(help="By this metric instead of the task's primary one.")] = None,
    lost: Annotated[bool, typer.Option("--lost", help="Only what became wrong.")] = False,
    gained: Annotated[bool, typer.Option("--gained", help="Only what became right.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="Items of each direction that are shown.")] = 10,
    out: Annotated[str, typer.Option(help="Markdown file to write; - for stdout.")] = "-",
    common: Annotated[bool, typer.Option("--common", help="Look at the items that both have.")] = False,
    force: Annotated[bool, typer.Option("--force", help="In spite of differences; marked.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Show the items that one model has right and the other wrong, with both answers."""
    if lost and gained:
        raise InputError("--lost and --gained exclude each other; without either both are shown")
    from aftertune.comparison.flips import flips as run
    from aftertune.ledger import Ledger
    from aftertune.report import write_document, write_flips

    with Ledger(create=False) as ledger:
        found = run(base, tuned, task, ledger=ledger, metric=metric, force=force, common=common,
                    direction="lost" if lost else "gained" if gained else None)
    if as_json:
        kept = [f for way in ("lost", "gained") for f in [g for g in found.flips if g.direction == way][:limit]]
        emit({**jsonable(replace(found, flips=())), "forced": bool(found.differences), "flips": jsonable(kept)})
        return
    text = write_flips(found, limit=limit)
    if out == "-":
        typer.echo(text)
        return
    write_document(Path(out), text)
    typer.echo(f"written to {out}")
