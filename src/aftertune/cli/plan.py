"""``aftertune plan STUDY``: what each cell would cost here, what is missing, and the command that does it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aftertune.cli.console import emit
from aftertune.cli.options import Json, StudyFile
from aftertune.cli.run import SET
from aftertune.errors import InputError

if TYPE_CHECKING:
    from aftertune.pipeline import PlannedCell


def plan(
    study: StudyFile,
    sets: Annotated[list[str] | None, typer.Option("--set", help=SET)] = None,
    out: Annotated[Path | None, typer.Option(help="Output folder, as for `aftertune run`.")] = None,
    as_json: Json = False,
) -> None:
    """Show each cell of a study: state, cost on this machine, command, what is missing. Nothing is fetched or run."""
    from aftertune.ledger import Ledger
    from aftertune.pipeline import plan as make
    from aftertune.study import Study

    loaded = Study.load(study, sets or ())
    with contextlib.ExitStack() as stack:
        try:
            ledger = stack.enter_context(Ledger(create=False))
        except InputError:  # nothing was run yet
            ledger = None
        cells = make(loaded, ledger=ledger, file=str(study), out=out)
    if as_json:
        emit({"study": loaded.study, "cells": [{
            "cell": c.name, "status": c.status, "why": c.why, "seconds": c.cost.seconds, "memory": c.cost.memory,
            "disk": c.cost.disk, "basis": c.cost.basis, "estimated": c.cost.estimated, "command": c.command,
            "missing": list(c.missing)} for c in cells]})
    else:
        show(loaded.study, cells)


def show(name: str, cells: list[PlannedCell]) -> None:
    """A line for each cell, what is missing for some of them, and the sum."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from aftertune.report import duration_text

    table = Table(title=f"{name}: {len(cells)} cells", box=None, title_justify="left", pad_edge=False)
    table.add_column("cell", overflow="fold")
    table.add_column("state", no_wrap=True, min_width=8)
    for column, width in (("time", 14), ("memory", 9), ("disk", 8)):
        table.add_column(column, justify="right", no_wrap=True, min_width=width)
    colours = {"done": "green", "failed": "bold red", "running": "bold cyan", "reported": "cyan"}
    for cell in cells:
        mark = "≈ " if cell.cost.estimated else ""
        time = "" if cell.status == "done" else \
            "?" if cell.cost.seconds is None else mark + duration_text(cell.cost.seconds)
        table.add_row(Text(cell.name), Text(cell.status, colours.get(cell.status, "")), Text(time),
                      Text(_gib(cell.cost.memory)), Text(_gib(cell.cost.disk)))
    console = Console()
    console.print(table)
    for text in dict.fromkeys(f"{c.name}: {c.why}" for c in cells if c.why):
        console.print(Text(text), soft_wrap=True)
    for text, names in _missing(cells).items():
        console.print(Text.assemble(("missing ", "yellow"), text, f" (for {names})"), soft_wrap=True)
    left = [c for c in cells if c.status not in ("done", "running")]
    known = [c.cost.seconds for c in left if c.cost.seconds is not None]
    if left:
        mark = "; ≈: from a preset, the config is not here yet" if any(c.cost.estimated for c in left) else ""
        console.print(Text(f"{len(left)} cells to run, about {duration_text(sum(known))} here{mark}"))
        console.print(Text("commands:"))
        for cell in left:
            console.print(Text(f"  {cell.command}"), soft_wrap=True)


def _missing(cells: list[PlannedCell]) -> dict[str, str]:
    """What is missing, each once, with the cells that need it."""
    found: dict[str, list[str]] = {}
    for cell in cells:
        for text in cell.missing:
            found.setdefault(text, []).append(cell.name)
    return {text: ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            for text, names in found.items()}


def _gib(size: int | None) -> str:
    return "?" if size is None else f"{size / 2**30:.1f} GiB" if size else ""
