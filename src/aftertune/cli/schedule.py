"""Shows a plan as a schedule of several workers, and as commands for make, Slurm or a shell.

    simulated(cells, 4).makespan                              seconds of a run on four workers
    command_text(study, cells, "make", RunCall("study.yaml"))    a Makefile
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from aftertune.errors import AftertuneError, InputError, nearest

if TYPE_CHECKING:
    from aftertune.pipeline import PlannedCell
    from aftertune.pipeline.commands import RunCall
    from aftertune.pipeline.scheduling import SimulatedRun
    from aftertune.study import Study


def check_count(workers: int) -> None:
    """Raise InputError for a number of workers below 1."""
    if workers < 1:
        raise InputError(f"--workers {workers}: give 1 or more")


def check_form(form: str) -> None:
    """Raise InputError for an unknown form of commands."""
    from aftertune.pipeline.commands import FORMS

    if form not in FORMS:
        raise InputError(f"--commands {form}: unknown form{nearest(form, list(FORMS))}; allowed: {', '.join(FORMS)}")


def simulated(cells: Sequence[PlannedCell], workers: int) -> SimulatedRun:
    """The schedule of the cells that are not done."""
    from aftertune.pipeline.scheduling import simulate

    return simulate([cell.job for cell in cells if cell.job is not None and cell.status != "done"], workers)


def schedule_line(schedule: SimulatedRun, workers: int) -> str:
    """How long some workers take, and how long at least."""
    from aftertune.report import duration_text

    return (f"on {workers} worker{'s' if workers > 1 else ''} about {duration_text(schedule.makespan)}; the longest "
            f"chain of cells takes {duration_text(schedule.critical)}")


def command_text(study: Study, cells: Sequence[PlannedCell], form: str, call: RunCall) -> str:
    """The commands of the cells that are not done."""
    from aftertune.engine.devices import choose_device
    from aftertune.pipeline.commands import FORMS, CommandRow

    try:
        gpu = choose_device(study.device).startswith("cuda")
    except AftertuneError:  # the machine that runs the commands has the device
        gpu = study.device.startswith("cuda")
    rows = [CommandRow(c.name, c.needs, c.cost.memory) for c in cells if c.status != "done"]
    return FORMS[form](study.study, rows, replace(call, gpu=gpu))
