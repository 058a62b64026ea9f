"""The command line: one file per verb, each parses into one value and makes one call.

Nothing heavy is imported before a verb runs, so that ``aftertune --help`` answers at once.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from aftertune import __version__
from aftertune.cli import (
    audit,
    card,
    compare,
    demo,
    doctor,
    eval,
    export,
    flips,
    gate,
    import_,
    merge,
    plan,
    plan_items,
    record,
    run,
    runs,
    study,
    tune,
)
from aftertune.cli.console import guarded

app = typer.Typer(
    name="aftertune", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="What does your model know after the tune? Fine-tunes small language models and tells, with "
         "evidence, what each fine-tune taught and what it made the model forget.",
    epilog="Exit codes: 0 fine, 1 a gate failed, 2 bad input, 3 not comparable, 4 out of resources, 5 storage.")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"aftertune {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True,
                                          help="Show the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of expected errors.")] = False,
) -> None:
    """Options of every verb."""
    del version
    if debug:
        os.environ["AFTERTUNE_DEBUG"] = "1"


app.command("demo")(demo.demo)
app.command("eval")(eval.evaluate)
app.command("tune")(tune.tune)
app.command("check-merge")(merge.check_merge)
app.command("compare")(compare.compare)
app.command("flips")(flips.flips)
app.command("gate")(gate.gate)
app.command("study")(study.study)
app.command("plan")(plan.plan)
app.command("plan-items")(plan_items.plan_items)
app.command("run")(run.run)
app.command("runs")(runs.runs)
app.command("show")(runs.show)
app.command("record")(record.record)
app.command("report")(record.report)
app.command("import")(import_.import_)
app.command("audit")(audit.audit)
app.command("export")(export.export)
app.command("card")(card.card)
app.command("doctor")(doctor.doctor)


def main() -> None:
    """Entry point of the ``aftertune`` command."""
    sys.exit(guarded(app))
