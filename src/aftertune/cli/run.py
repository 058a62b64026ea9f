"""``aftertune run STUDY``: run what is missing of a study and write its record and page."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aftertune.cli.console import Progress, emit, jsonable, progress
from aftertune.cli.options import Json, StudyFile
from aftertune.errors import AftertuneError

if TYPE_CHECKING:
    from rich.table import Table

    from aftertune.pipeline import Choice, Result
    from aftertune.pipeline.running import Turn
    from aftertune.study import Study

#: Help of the flag that changes a study for one call.
SET = "KEY=VALUE: change the study for this call, for example tunings.*.learning_rate=1e-4. Repeatable."


def run(
    study: StudyFile,
    only: Annotated[list[str] | None, typer.Option(
        help="Run only this and what it needs: a base, a tuning, a cell (\"tune careful\") or a pattern. "
             "Repeatable.")] = None,
    keep_going: Annotated[bool, typer.Option(
        "--keep-going", help="Continue after a cell fails; cells that need it are skipped.")] = False,
    sets: Annotated[list[str] | None, typer.Option("--set", help=SET)] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the tunings, the record and the page.")] = None,
    as_json: Json = False,
) -> None:
    """Run a study. What the ledger already has is not run again."""
    from aftertune.pipeline import Choice
    from aftertune.study import Study

    loaded = Study.load(study, sets or ())
    result = execute(loaded, out or Path("runs") / loaded.study, Choice(tuple(only or ()), keep_going, str(study)))
    show(result, as_json)
    if result.failed:
        cells = "; ".join(f"{name}: {why}" for name, why in result.failed)
        raise AftertuneError(f"{len(result.failed)} cells of {loaded.study} were not run ({cells}); give the same "
                             "command again once that is mended")


def execute(study: Study, out: Path, choice: Choice | None = None) -> Result:
    """Run the study with progress on stderr."""
    from aftertune.ledger import Ledger
    from aftertune.pipeline import chosen
    from aftertune.pipeline import run as run_study

    names = [cell.name for cell in chosen(study, choice.only if choice else ())]
    with Ledger() as ledger, _shown(names) as (told, turn):
        return run_study(study, ledger=ledger, out=out, choice=choice, progress=told, turn=turn)


@contextlib.contextmanager
def _shown(names: list[str]) -> Iterator[tuple[Progress, Turn]]:
    """A live table of the cells on a terminal, else plain lines."""
    if not sys.stderr.isatty():
        with progress() as told:
            yield told, lambda *_: None
        return
    from rich.console import Console
    from rich.live import Live

    board = Board(names)
    with Live(board, console=Console(stderr=True), refresh_per_second=4, transient=True):
        yield board.told, board.turn


class Board:
    """The cells of a run as a table: their states, and how far the one at work is."""

    #: Rows shown; of a longer run those around the cell at work.
    ROWS = 18

    def __init__(self, names: list[str]) -> None:
        import time

        self.clock = time.monotonic
        self.states = dict.fromkeys(names, "planned")
        self.begun, self.took = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
        self.at, self.text = names[0] if names else "", ""
        self.share: float | None = None

    def turn(self, name: str, status: str) -> None:
        """A cell begins or ends."""
        self.states[name] = status
        if status == "running":
            self.at, self.text, self.share, self.begun[name] = name, "", None, self.clock()
        elif self.begun[name]:
            self.took[name] = self.clock() - self.begun[name]

    def told(self, done: int, total: int, text: str) -> None:
        """How far the cell at work is."""
        self.text, self.share = text.partition(": ")[2] or text, done / total if total else None

    def __rich__(self) -> Table:
        from rich import table as tables
        from rich.text import Text

        names = list(self.states)
        place = names.index(self.at) if self.at in names else 0
        first = max(min(place - self.ROWS // 2, len(names) - self.ROWS), 0)
        done = sum(state == "done" for state in self.states.values())
        table = tables.Table(box=None, pad_edge=False, title=f"{done} of {len(names)} cells done", title_justify="left")
        for column in ("cell", "state", "time", "progress"):
            table.add_column(column, no_wrap=True, overflow="ellipsis")
        colours = {"running": "bold cyan", "done": "green", "failed": "bold red", "skipped": "yellow", "planned": "dim"}
        for name in names[first:first + self.ROWS]:
            state = self.states[name]
            running = state == "running"
            seconds = self.clock() - self.begun[name] if running else self.took[name]
            table.add_row(Text(name), Text(state, colours[state]), Text(f"{seconds:.0f} s" if seconds else ""),
                          Text(self._bar() if running else ""))
        return table

    def _bar(self) -> str:
        if self.share is None:
            return self.text
        seconds = self.clock() - self.begun[self.at]
        left = f", about {seconds * (1 - self.share) / self.share:.0f} s left" if self.share > 0.02 else ""
        full = round(20 * self.share)
        return f"{'━' * full}{'╌' * (20 - full)} {self.share:.0%} {self.text}{left}"


def show(result: Result, as_json: bool) -> None:
    """The verdict tables and the paths of what was written."""
    from aftertune.cli.compare import as_object
    from aftertune.cli.compare import show as show_comparison
    from aftertune.report import seed_observations

    if as_json:
        emit({"comparisons": [as_object(c) for c in result.comparisons], "contrasts": jsonable(result.contrasts),
              "record": str(result.record), "report": str(result.page),
              "failed": [{"cell": name, "why": why} for name, why in result.failed]})
        return
    for comparison in result.comparisons:
        show_comparison(comparison)
    for one in seed_observations(result.contrasts):
        typer.echo(f"{one.lead}: {one.text}")
    typer.echo(f"record  {result.record}\nreport  {result.page}")
