"""Lets a study be run and planned by its own methods; `aftertune.api` says how, because a study only describes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aftertune.actions import perform


class Runnable:
    """The methods of a study that run it."""

    def run(self, out: str | Path | None = None, *, only: str | Sequence[str] = (), keep_going: bool = False,
            ledger: Any = None, progress: Any = None, workers: int | None = None) -> Any:
        """Run the cells that the ledger does not have, compare the results, and write the record and the page.

        out: folder for the tunings, the record and the page; default: runs/NAME. only: run only these and what they
        need: bases, tunings, cells ("tune careful") or patterns. keep_going: continue after a cell fails. ledger,
        progress: as of `aftertune.evaluate`. workers: run cells in this many processes of this machine, by default one
        after another in this process.

        Returns the result: ``comparisons``, ``headlines``, ``record`` and ``page`` (paths) and ``failed``. Raises the
        error of the first cell that fails; with keep_going only if no cell could be run.
        """
        return perform("run", self, out, only=only, keep_going=keep_going, ledger=ledger, progress=progress,
                       workers=workers)

    def plan(self, out: str | Path | None = None, *, ledger: Any = None) -> Any:
        """The state, cost and command of each cell, and what is missing, as a table. Nothing is downloaded or run."""
        return perform("plan", self, out, ledger=ledger)
