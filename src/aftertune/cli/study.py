"""Implements ``study``, ``plan``, ``run`` and ``demo``, which check, estimate and run a study.

    aftertune study study.yaml tasks.hellaswag.limit=50      change the file, check it and show its tunings
    aftertune plan study.yaml                                the cost and state of each cell
    aftertune run study.yaml --only careful                  run the cells that are missing
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aftertune.cli.board import live_table
from aftertune.cli.console import emit, jsonable, progress
from aftertune.cli.options import JsonFlag, StudyFile, TakeOver
from aftertune.cli.streams import rich_console
from aftertune.cli.tracking import Track, chosen_trackers, tracked_study
from aftertune.errors import AftertuneError, InputError

if TYPE_CHECKING:

    from aftertune.pipeline import CellChoice, PlannedCell, Result, WorkerChoice
    from aftertune.study import Study

#: Help of the flag that changes a study for one call.
SET = "KEY=VALUE: change the study for this call, for example tunings.*.learning_rate=1e-4. Repeatable."


def study(
    file: Annotated[Path | None, typer.Argument(help="Study file (YAML).")] = None,
    changes: Annotated[list[str] | None, typer.Argument(
        help="KEY=VALUE: a change to write into the file, for example tasks.hellaswag.limit=50.")] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of study files.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Check a study file and show its tunings, including those of its matrix. KEY=VALUE changes the file first."""
    from aftertune.report import write_document
    from aftertune.study import Study

    if schema:
        print(json.dumps(Study.json_schema(), indent=1))
        return
    if file is None:
        raise InputError("no study file is given; name one, for example `aftertune study study.yaml`, or use --schema")
    if changes:
        text, loaded = Study.edited(file, changes)
        write_document(file, text, verbatim=True)
    else:
        loaded = Study.load(file)
    if as_json:
        emit({"study": loaded.study, "hash": loaded.hash, "bases": list(loaded.bases),
              "tasks": [t.name for t in loaded.tasks],
              "tunings": {name: _changed_settings(loaded, name) for name in loaded.tunings}})
    else:
        _show_study(loaded)


def _changed_settings(study: Study, name: str) -> dict[str, Any]:
    """The settings of a tuning that differ from the defaults."""
    settings: dict[str, Any] = study.tunings[name].model_dump(mode="json", exclude_defaults=True)
    return settings


def _show_study(study: Study) -> None:
    """Print a table with one row for each tuning."""
    from rich.table import Table

    counts = f"{len(study.bases)} bases, {len(study.tunings)} tunings, {len(study.tasks)} tasks"
    table = Table(title=f"{study.study}: {counts}", box=None, title_justify="left", pad_edge=False)
    for column in ("tuning", "base", "method", "settings"):
        table.add_column(column, overflow="fold")
    for name in study.tunings:
        settings = _changed_settings(study, name)
        base, method = settings.pop("base"), settings.pop("method", study.tunings[name].method)
        table.add_row(name, base, method, ", ".join(_settings(settings)))
    rich_console().print(table)


def _settings(settings: dict[str, Any], prefix: str = "") -> list[str]:
    """Settings as text, such as ``learning_rate 0.0001`` and ``lora.r 8``. A file is shown without its folder."""
    texts: list[str] = []
    for key, value in settings.items():
        if isinstance(value, dict):
            texts += _settings(value, f"{prefix}{key}.")
        else:
            texts.append(f"{prefix}{key} {Path(value).name if key.endswith('file') else value}")
    return texts


def plan(
    study: StudyFile,
    sets: Annotated[list[str] | None, typer.Option("--set", help=SET)] = None,
    out: Annotated[Path | None, typer.Option(help="Output folder, as for `aftertune run`.")] = None,
    workers: Annotated[int | None, typer.Option(
        help="Also show how long this many workers take, by a simulation of their schedule.")] = None,
    commands: Annotated[str | None, typer.Option(
        help="Print only the command of each cell that is not done, with its dependencies: plain (a shell script), "
             "make (a Makefile) or slurm (sbatch lines).")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show the state, cost and command of each cell of a study, and what is missing. Nothing is downloaded or run."""
    from aftertune.cli.schedule import check_count, check_form, command_text, schedule_line, simulated
    from aftertune.ledger import Ledger
    from aftertune.pipeline import plan as plan_cells
    from aftertune.pipeline.commands import RunCall
    from aftertune.study import Study

    loaded = Study.load(study, sets or ())
    if workers is not None:
        check_count(workers)
    if commands is not None:
        check_form(commands)
    with contextlib.ExitStack() as stack:
        try:
            ledger = stack.enter_context(Ledger(create=False))
        except InputError:  # there is no ledger yet
            ledger = None
        cells = plan_cells(loaded, ledger=ledger, file=str(study), out=out, sets=tuple(sets or ()))
    schedule = None if workers is None else simulated(cells, workers)
    if commands is not None:
        print(command_text(loaded, cells, commands, RunCall(str(study), tuple(sets or ()), out)))
    elif as_json:
        emit({"study": loaded.study, "family": loaded.family, "primary": loaded.primary, "cells": [{
            "cell": c.name, "status": c.status, "why": c.why, "seconds": c.cost.seconds, "memory": c.cost.memory,
            "disk": c.cost.disk, "basis": c.cost.basis, "estimated": c.cost.estimated, "command": c.command,
            "missing": list(c.missing), "needs": list(c.needs), **({"until_decided": [{
                "task": e.task, "items": e.items, "of": e.total, "weighted": e.weighted} for e in c.early]}
                if c.early else {})} for c in cells], **({} if schedule is None else {"schedule": {
            "workers": workers, "seconds": schedule.makespan, "bound": schedule.bound,
            "cells": jsonable(schedule.cells)}})})
    else:
        _show_plan(loaded.study, cells)
        _show_verdict_rules(loaded)
        for line in dict.fromkeys(_early_line(c) for c in cells if c.early):
            rich_console().print(line, soft_wrap=True)
        if schedule is not None and schedule.cells:
            typer.echo(schedule_line(schedule, workers or 1))


def _early_line(cell: PlannedCell) -> str:
    """How many items a fine-tune is asked until its verdicts."""
    shown = [f"all {e.total:,} of {e.task}" if e.items >= e.total else f"{e.items:,} of {e.total:,} of {e.task}"
             + (" (drawn where the base was unsure)" if e.weighted else "") for e in cell.early]
    return ("Until decided: a base is asked all items first, once for all its fine-tunes. A fine-tune that loses "
            f"nothing is asked about {', '.join(shown)}; the times above count with this, and a harsh one needs fewer.")


def _show_verdict_rules(study: Study) -> None:
    """Print what the study file says about verdicts, if it says anything."""
    rules = []
    if study.primary:
        rules.append("the verdicts of multiple-choice tasks are about expected accuracy (prob)")
    if study.family == "study":
        rules.append(f"the error level of 5 % covers all {len(study.tunings)} fine-tunes together")
    if rules:
        rich_console().print(f"Verdicts: {'; '.join(rules)}.", soft_wrap=True)


def _show_plan(name: str, cells: list[PlannedCell]) -> None:
    """Print a line for each cell, what is missing, the total time and the commands."""
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
    console = rich_console()
    console.print(table)
    for text in dict.fromkeys(f"{c.name}: {c.why}" for c in cells if c.why):
        console.print(Text(text), soft_wrap=True)
    for text, names in _missing(cells).items():
        console.print(Text.assemble(("missing ", "yellow"), text, f" (for {names})"), soft_wrap=True)
    remaining = [c for c in cells if c.status not in ("done", "running")]
    seconds = [c.cost.seconds for c in remaining if c.cost.seconds is not None]
    if remaining:
        mark = ("; ≈: estimated from a preset, without the model's config" if any(c.cost.estimated for c in remaining)
                else "")
        console.print(Text(f"{len(remaining)} cells to run, about {duration_text(sum(seconds))} on this machine{mark}"))
        console.print(Text("commands:"))
        for cell in remaining:
            console.print(Text(f"  {cell.command}"), soft_wrap=True)


def _missing(cells: list[PlannedCell]) -> dict[str, str]:
    """What is missing -> the cells that need it, as text."""
    cells_by_text: dict[str, list[str]] = {}
    for cell in cells:
        for text in cell.missing:
            cells_by_text.setdefault(text, []).append(cell.name)
    return {text: ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            for text, names in cells_by_text.items()}


def _gib(size: int | None) -> str:
    return "?" if size is None else f"{size / 2**30:.1f} GiB" if size else ""


def run(
    study: StudyFile,
    only: Annotated[list[str] | None, typer.Option(
        help="Run only this and what it needs: a base, a tuning, a cell (\"tune careful\") or a pattern. "
             "Repeatable.")] = None,
    keep_going: Annotated[bool, typer.Option(
        "--keep-going", help="Continue after a cell fails; cells that need it are skipped.")] = False,
    sets: Annotated[list[str] | None, typer.Option("--set", help=SET)] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the tunings, the record and the page.")] = None,
    cell: Annotated[str | None, typer.Option(
        help="Run this one cell alone, such as \"tune careful\", after the cells that it needs, and write no record. "
             "Several of these commands may run at the same time (`aftertune plan --commands`).")] = None,
    workers: Annotated[int | None, typer.Option(
        help="Run cells in this many processes of this machine, which share its cores; with several GPUs, one "
             "process on each. Default: one after another.")] = None,
    on: Annotated[str | None, typer.Option(
        metavar="ray|ray://HOST:PORT", help="Run cells on a Ray cluster: the running one (or that of RAY_ADDRESS), or "
                                            "that of an address. Needs the extra ray.")] = None,
    root: Annotated[str | None, typer.Option(
        help="Where the workers of a cluster keep the fine-tunes: a folder that all nodes mount, or an address such as "
             "s3://BUCKET/runs.")] = None,
    insecure_cluster: Annotated[bool, typer.Option(
        "--insecure-cluster", help="Use a cluster of another machine without authentication.")] = False,
    track: Track = None,
    take_over: TakeOver = False,
    as_json: JsonFlag = False,
) -> None:
    """Run a study. What the ledger already has is not run again."""
    from aftertune.pipeline import CellChoice, WorkerChoice
    from aftertune.study import Study

    loaded = Study.load(study, sets or ())
    folder = out or Path("runs") / loaded.study
    if cell is not None:
        _run_one(loaded, cell, folder, take_over=take_over)
        return
    choice = CellChoice(tuple(only or ()), keep_going, str(study))
    chosen = None if workers is None and on is None else WorkerChoice(
        workers, on or "", root or "", insecure_cluster, say=lambda text: typer.echo(text, err=True))
    with tracked_study(chosen_trackers(track), loaded.study):
        result = execute(loaded, folder, choice, take_over=take_over, workers=chosen)
    _show_result(result, as_json)
    if result.failed:
        cells = "; ".join(f"{name}: {why}" for name, why in result.failed)
        raise AftertuneError(f"{len(result.failed)} cells of {loaded.study} failed or were skipped ({cells}); fix the "
                             "cause and run the same command again")


def _run_one(study: Study, cell: str, out: Path, *, take_over: bool) -> None:
    """Run one cell with progress on stderr."""
    from aftertune.ledger import Ledger
    from aftertune.pipeline import run_cell

    with Ledger(take_over=take_over) as ledger, progress() as update:
        run_cell(study, cell, ledger=ledger, out=out, progress=update)


def execute(study: Study, out: Path, choice: CellChoice | None = None, *, take_over: bool = False,
            workers: WorkerChoice | None = None) -> Result:
    """Run the study with progress on stderr."""
    from aftertune.ledger import Ledger
    from aftertune.pipeline import run as run_study
    from aftertune.pipeline import select_cells

    names = [cell.name for cell in select_cells(study, choice.only if choice else ())]
    with Ledger(take_over=take_over) as ledger, live_table(names, workers=workers is not None) as (update, turn):
        return run_study(study, ledger=ledger, out=out, choice=choice, progress=update, on_cell=turn, workers=workers)


def _show_result(result: Result, as_json: bool) -> None:
    """Print the verdict tables, a line for each fine-tune or recipe, and the paths of the record and the page."""
    from aftertune.api.objects import comparison_object
    from aftertune.cli.compare import show as show_comparison
    from aftertune.report import seed_observations

    results, lines = result.results, result.headlines
    if as_json:
        emit({"headlines": lines, "comparisons": [comparison_object(c, results.drift(c)) for c in results.comparisons],
              "contrasts": jsonable(results.contrasts), "record": str(result.record), "report": str(result.page),
              "failed": [{"cell": name, "why": why} for name, why in result.failed]})
        return
    for comparison in results.comparisons:
        show_comparison(comparison, drift=results.drift(comparison))
    for observation in seed_observations(results.contrasts):
        typer.echo(f"{observation.lead}: {observation.text}")
    for line in lines if len(results.comparisons) > 1 else ():
        typer.echo(line)
    typer.echo(f"record  {result.record}\nreport  {result.page}")


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the tunings, the record and the page.")] = Path("runs/demo"),
    as_json: JsonFlag = False,
) -> None:
    """Evaluate a small model, fine-tune it carefully and carelessly, and compare what each learned and forgot."""
    from aftertune.demo import folder
    from aftertune.sources import check_packs_installed
    from aftertune.study import Study

    check_packs_installed("the demo")
    _show_result(execute(Study.load(folder() / "study.yaml"), out), as_json)
