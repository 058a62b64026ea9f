"""``aftertune flips BASE TUNED --task T``: the items that changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from aftertune.cli.console import emit, jsonable
from aftertune.cli.options import Common, Force, Json, StoredEvaluation
from aftertune.errors import InputError


def flips(
    base: StoredEvaluation,
    tuned: StoredEvaluation,
    task: Annotated[str, typer.Option(help="Task whose items are shown.")],
    metric: Annotated[str | None, typer.Option(help="Metric; default: the task's primary one.")] = None,
    lost: Annotated[bool, typer.Option("--lost", help="Show only items that became wrong.")] = False,
    gained: Annotated[bool, typer.Option("--gained", help="Show only items that became right.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="Items to show for each direction.")] = 10,
    out: Annotated[str, typer.Option(help="Markdown file to write; - for stdout.")] = "-",
    common: Common = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Show the items that one model answers right and the other wrong, with both answers."""
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
