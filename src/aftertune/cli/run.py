"""``aftertune run STUDY``: run what is missing of a study and write its record and page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aftertune.cli.console import emit, progress

if TYPE_CHECKING:
    from aftertune.pipeline import Result
    from aftertune.study import Study

#: Help of the flag that changes a study for one call.
SET = "KEY=VALUE: changes the study for this call, for example tunings.*.learning_rate=1e-4. Repeatable."


def run(
    study: Annotated[Path, typer.Argument(help="A study file (YAML).")],
    sets: Annotated[list[str] | None, typer.Option("--set", help=SET)] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for tunings, record and page.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Run a study; what the ledger already has is not run again."""
    from aftertune.study import Study

    loaded = Study.load(study, sets or ())
    show(execute(loaded, out or Path("runs") / loaded.study), as_json)


def execute(study: Study, out: Path) -> Result:
    """Run the study with progress on stderr."""
    from aftertune.ledger import Ledger
    from aftertune.pipeline import run as run_study

    with Ledger() as ledger, progress() as told:
        return run_study(study, ledger=ledger, out=out, progress=told)


def show(result: Result, as_json: bool) -> None:
    """The verdict tables and the paths of what was written."""
    from aftertune.cli.compare import as_object
    from aftertune.cli.compare import show as show_comparison

    if as_json:
        emit({"comparisons": [as_object(c) for c in result.comparisons], "record": str(result.record),
              "report": str(result.page)})
        return
    for comparison in result.comparisons:
        show_comparison(comparison)
    typer.echo(f"record  {result.record}\nreport  {result.page}")
