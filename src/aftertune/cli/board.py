"""Shows the cells of a run while it goes on: a live table on a terminal, plain lines elsewhere.

    with live_table(["evaluate b", "tune lora"]) as (update, turn):
        run(study, …, progress=update, on_cell=turn)

Several cells may run at the same time, each on its worker.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from aftertune.cli.console import Pace, progress
from aftertune.cli.streams import rich_console
from aftertune.values import Progress

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from aftertune.pipeline.running import CellCallback

_COLOURS = {"running": "bold cyan", "done": "green", "failed": "bold red", "skipped": "yellow", "planned": "dim"}


@contextlib.contextmanager
def live_table(names: list[str], *, workers: bool = False) -> Iterator[tuple[Progress, CellCallback]]:
    """Show a live table of the cells if stderr is a terminal, otherwise plain lines. workers: cells run on several."""
    if not sys.stderr.isatty():
        if workers:
            yield worker_lines(), lambda *_: None
            return
        with progress() as update:
            yield update, lambda *_: None
        return
    from rich.live import Live

    board = Board(names)
    with Live(board, console=rich_console(stderr=True), refresh_per_second=4, transient=True):
        yield board.update, board.turn


def worker_lines() -> Progress:
    """Print a line where a stage of a cell starts, and at each half of it; of the whole run at each tenth."""
    from aftertune.pipeline.driving import ALL_CELLS

    paces: dict[str, Pace] = {}
    parts: dict[str, int] = {}

    def update(done: int, total: int, text: str) -> None:
        cell, _, stage = text.partition(": ")
        pace = paces.setdefault(cell, Pace())
        pace.update(done, total, stage)
        part = (10 if cell == ALL_CELLS else 2) * done // total if total else 0
        if part == parts.get(cell, -1) and not pace.new:
            return
        parts[cell] = part
        left = f", about {pace.left:.0f} s left" if pace.left else ""
        share = f" {100 * done // total} %" if total else ""
        print(f"{text}{share}{left}", file=sys.stderr, flush=True)

    return update


def split_title(text: str) -> tuple[str, str, str]:
    """The cell, its worker and the rest of a progress text: "[3/12] tune careful · worker 2: training"."""
    title, _, rest = text.partition(": ")
    cell, _, worker = title.partition("] ")[2].partition(" · ")
    return cell, worker, rest or text


class Board:
    """A live table of the cells of a run: their states, and the progress of the running ones."""

    #: The largest number of rows; of a longer run the rows around the first running cell are shown.
    ROWS = 18

    def __init__(self, names: list[str]) -> None:
        self.clock = time.monotonic
        self.states = dict.fromkeys(names, "planned")
        self.started, self.seconds = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
        self.current = names[0] if names else ""
        self.paces: dict[str, Pace] = {}  # of the running cells
        self.texts: dict[str, str] = {}
        self.workers: dict[str, str] = {}
        self.overall = Pace()

    def turn(self, name: str, status: str) -> None:
        """Set the state of a cell."""
        self.states[name] = status
        if status == "running":
            self.current, self.started[name] = name, self.clock()
            self.paces[name], self.texts[name] = Pace(), ""
            self.workers.pop(name, None)
        elif self.started.get(name):
            self.seconds[name] = self.clock() - self.started[name]

    def update(self, done: int, total: int, text: str) -> None:
        """Set the progress of a running cell, or of the whole run."""
        from aftertune.pipeline.driving import ALL_CELLS

        if text == ALL_CELLS:
            self.overall.update(done, total, text)
            return
        cell, worker, rest = split_title(text)
        name = cell if cell in self.paces else self.current
        self.texts[name] = rest
        self.paces.setdefault(name, Pace()).update(done, total, rest)
        if worker:
            self.workers[name] = worker

    def __rich__(self) -> Table:
        from rich import table as tables
        from rich.text import Text

        names = list(self.states)
        running = [name for name in names if self.states[name] == "running"]
        position = names.index((running or [self.current])[0]) if names else 0
        first = max(min(position - self.ROWS // 2, len(names) - self.ROWS), 0)
        shown = names[first:first + self.ROWS]
        shown += [name for name in running if name not in shown]
        table = tables.Table(box=None, pad_edge=False, title=self.title(len(running)), title_justify="left")
        columns = ["cell", "state", *(["worker"] if self.workers else []), "time", "progress"]
        for column in columns:
            table.add_column(column, no_wrap=True, overflow="ellipsis")
        for name in shown:
            table.add_row(*self._row(name, Text))
        return table

    def title(self, running: int) -> str:
        """How many cells are done, and how long the others take."""
        done = sum(state == "done" for state in self.states.values())
        several = f", {running} running" if running > 1 else ""
        left = f", about {self.overall.left:.0f} s left" if self.overall.left else ""
        return f"{done} of {len(self.states)} cells done{several}{left}"

    def _row(self, name: str, text: type[Text]) -> list[Text]:
        state = self.states[name]
        running = state == "running"
        seconds = self.clock() - self.started[name] if running else self.seconds[name]
        worker = [text(self.workers.get(name, ""))] if self.workers else []
        return [text(name), text(state, _COLOURS[state]), *worker, text(f"{seconds:.0f} s" if seconds else ""),
                text(self.bar(name) if running else "")]

    def bar(self, name: str) -> str:
        """The bar of a running cell, or its text while the length of its stage is not known."""
        pace, text = self.paces[name], self.texts[name]
        if pace.share is None:
            return text
        full = round(20 * pace.share)
        remaining = f", about {pace.left:.0f} s left" if pace.left else ""
        return f"{'━' * full}{'╌' * (20 - full)} {pace.share:.0%}{remaining}, {pace.detail or text}"
