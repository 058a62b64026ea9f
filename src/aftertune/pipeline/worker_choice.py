"""Makes the workers that a run asks for: how many fit into the memory, with which threads and devices.

    choice = WorkerChoice(count=4)
    prepared = prepare(choice, study, jobs, ledger=ledger, out=out)
    prepared.count, prepared.note           3, "3 workers instead of 4: the 4 cells that need most memory …"
    prepared.workers                        LocalWorkers, which are not started yet
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from aftertune.errors import AftertuneError, InputError
from aftertune.pipeline.local_workers import LocalWorkers, Workers, threads_of_each
from aftertune.pipeline.scheduling import CellJob, workers_that_fit
from aftertune.pipeline.worker import Opening

if TYPE_CHECKING:
    from aftertune.ledger import Ledger
    from aftertune.study import Study


def _silent(_: str) -> None:
    return None


@dataclass(frozen=True, slots=True)
class WorkerChoice:
    """The workers that a run asks for. count: how many; say: gets a line where fewer are started."""

    count: int = 1
    say: Callable[[str], None] = field(default=_silent, compare=False)

    def __post_init__(self) -> None:
        if self.count < 1:
            raise InputError(f"--workers {self.count}: give 1 or more")


@dataclass(frozen=True, slots=True)
class PreparedWorkers:
    """Workers that can be started. count: how many; note: why there are fewer than asked for, or ""."""

    workers: Workers
    count: int
    note: str = ""


def prepare(choice: WorkerChoice, study: Study, jobs: Sequence[CellJob], *, ledger: Ledger, out: Path
            ) -> PreparedWorkers:
    """The workers of a run, as many as there are cells to run and as the memory allows."""
    gpus = visible_gpus(study.device)
    wanted = max(min(choice.count, len(jobs)), 1)
    free = free_bytes(study.device, len(gpus))
    count = workers_that_fit([job.memory for job in jobs], wanted, free)
    note = ""
    if count < wanted:
        needed = sum(sorted((job.memory for job in jobs), reverse=True)[:wanted])
        note = (f"{count} worker{'s' if count > 1 else ''} instead of {wanted}: the {wanted} cells that need most "
                f"memory need about {needed / 2**30:.1f} GiB together, {sum(free) / 2**30:.1f} GiB are free")
    opening = Opening(study=as_sent(study), ledger=address_of(ledger), out=str(out),
                      command=tuple(sys.argv), threads=threads_of_each(count), take_over=ledger.take_over)
    return PreparedWorkers(LocalWorkers(opening, gpus if len(gpus) > 1 else ()), count, note)


def as_sent(study: Study) -> str:
    """The study as the JSON that a worker reads. Fields that its file does not set stay so: a fine-tune notes them."""
    return study.model_dump_json(exclude_unset=True)


def address_of(ledger: Ledger) -> str:
    """What opens the ledger in another process. It may have a password: it goes over pipes, never into a command."""
    url = getattr(ledger.database.place, "url", None)  # of a server
    return str(ledger.database.place) if url is None else str(url.render_as_string(hide_password=False))


def visible_gpus(device: str) -> tuple[str, ...]:
    """The names of the CUDA devices that ``auto`` or ``cuda`` may use, as CUDA_VISIBLE_DEVICES names them."""
    from aftertune.engine.devices import choose_device, probe

    try:
        chosen = choose_device(device)
    except AftertuneError:  # each cell says so
        return ()
    if chosen != "cuda":
        return ()
    named = re.findall(r"[^,\s]+", os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    count = len(probe().cuda)
    return tuple(named[:count]) if len(named) >= count else tuple(map(str, range(count)))


def free_bytes(device: str, gpus: int) -> tuple[int, ...]:
    """Free memory of each device that the workers of this machine share: of each GPU, or of the machine."""
    from aftertune.engine.devices import choose_device, free_memory

    if gpus > 1:
        return tuple(free_memory(f"cuda:{number}") for number in range(gpus))
    try:
        return (free_memory(choose_device(device)),)
    except AftertuneError:
        return (free_memory("cpu"),)
