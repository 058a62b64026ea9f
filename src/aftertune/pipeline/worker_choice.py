"""Makes the workers that a run asks for: where, how many fit into the memory, with which threads and devices.

    choice = WorkerChoice(count=4)
    with prepared(choice, study, jobs, ledger=ledger, out=out) as ready:
        ready.count, ready.note             3, "3 workers instead of 4: the 4 cells that need most memory …"
        ready.workers                       LocalWorkers, or with on="ray" RayWorkers, which are not started yet
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from aftertune.errors import AftertuneError, InputError, ResourceError
from aftertune.pipeline.local_workers import LocalWorkers, Workers, threads_of_each
from aftertune.pipeline.scheduling import CellJob, workers_that_fit
from aftertune.pipeline.worker import Opening
from aftertune.redaction import clean_words

if TYPE_CHECKING:
    from aftertune.ledger import Ledger
    from aftertune.pipeline.ray_workers import ClusterNode
    from aftertune.study import Study


def _silent(_: str) -> None:
    return None


@dataclass(frozen=True, slots=True)
class WorkerChoice:
    """The workers that a run asks for.

    count: how many, None for as many as the cluster has nodes, or GPUs; on: "" for this machine, "ray" or
    "ray://HOST:PORT"; root: shared place of the fine-tunes; insecure: whether a cluster of another machine may be used
    without authentication; say: gets a line where fewer workers are started.
    """

    count: int | None = None
    on: str = ""
    root: str = ""
    insecure: bool = False
    say: Callable[[str], None] = field(default=_silent, compare=False)

    def __post_init__(self) -> None:
        if self.count is not None and self.count < 1:
            raise InputError(f"--workers {self.count}: give 1 or more")


@dataclass(frozen=True, slots=True)
class PreparedWorkers:
    """Workers that can be started. count: how many; note: why there are fewer than asked for, or ""; may_help: whether
    the memory is enough for all of them to work on the same cell."""

    workers: Workers
    count: int
    note: str = ""
    may_help: bool = False


@contextlib.contextmanager
def prepared(choice: WorkerChoice, study: Study, jobs: Sequence[CellJob], *, ledger: Ledger, out: Path
             ) -> Iterator[PreparedWorkers]:
    """The workers of a run, as many as there are cells to run and as the memory allows; a cluster is connected until
    the end of the block. Raises InputError and ResourceError."""
    opening = Opening(study=as_sent(study), ledger=address_of(ledger), out=str(out), folder=str(Path.cwd()),
                      command=(*sys.argv[:1], *clean_words(sys.argv[1:])), take_over=ledger.take_over)
    if choice.on:
        from aftertune.pipeline.ray_workers import cluster

        with cluster(choice.on, insecure=choice.insecure) as nodes:
            yield _on_cluster(choice, study, jobs, opening, nodes)
    else:
        yield _on_this_machine(choice, study, jobs, opening)


def _on_this_machine(choice: WorkerChoice, study: Study, jobs: Sequence[CellJob], opening: Opening) -> PreparedWorkers:
    gpus = visible_gpus(study.device)
    wanted = max(min(choice.count or 1, len(jobs)), 1)
    free = free_bytes(study.device, len(gpus))
    count = workers_that_fit([job.memory for job in jobs], wanted, free)
    note = ""
    if count < wanted:
        needed = sum(sorted((job.memory for job in jobs), reverse=True)[:wanted])
        note = (f"{count} worker{'s' if count > 1 else ''} instead of {wanted}: the {wanted} cells that need most "
                f"memory need about {needed / 2**30:.1f} GiB together, {sum(free) / 2**30:.1f} GiB are free")
    workers = LocalWorkers(replace(opening, threads=threads_of_each(count)), gpus if len(gpus) > 1 else ())
    largest = max((job.memory for job in jobs if job.shared), default=0)
    may_help = workers_that_fit([largest] * count, count, free) == count
    return PreparedWorkers(workers, count, note, may_help)


def _on_cluster(choice: WorkerChoice, study: Study, jobs: Sequence[CellJob], opening: Opening,
                nodes: Sequence[ClusterNode]) -> PreparedWorkers:
    """Workers on a cluster: one on each GPU, or on each node where the study runs on CPUs."""
    from aftertune.pipeline.ray_workers import Needs, RayWorkers

    if not nodes:
        raise ResourceError(f"--on {choice.on}: the cluster has no live node; start one with `ray start`")
    places = [node for node in nodes if node.gpus] if study.device != "cpu" else []
    gpus = int(sum(node.gpus for node in places))
    places = places or [node for node in nodes if node.cpus >= 1]  # the first node often gives no CPUs
    if not places:
        raise ResourceError(f"--on {choice.on}: no node of the cluster has a CPU for a cell; start one with "
                            "`ray start`")
    _check_shared(choice, opening, nodes)
    count = max(min(choice.count or gpus or len(places), len(jobs)), 1)
    each = -(-count // len(places))  # workers of one node
    cpus = max(int(min(node.cpus / (node.gpus if gpus else each) for node in places)), 1)
    memory = 0 if gpus else max((job.memory for job in jobs), default=0)
    largest = max(node.memory for node in places)
    if memory > largest:
        raise ResourceError(f"--on {choice.on}: a cell needs about {memory / 2**30:.1f} GiB, and the largest node has "
                            f"{largest / 2**30:.1f} GiB; use larger nodes, or a smaller batch")
    root = _whole_root(choice.root)
    out = Path(root) / study.study if root and "://" not in root else Path(opening.out)
    opening = replace(opening, out=str(out.absolute()), root=root, threads=cpus,
                      disk={job.name: job.disk for job in jobs if job.disk})
    return PreparedWorkers(RayWorkers(opening, Needs(cpus, 1 if gpus else 0, memory)), count, may_help=True)


def _whole_root(root: str) -> str:
    """A root as every node reads it: a folder without ~ and not relative to where a node starts its programs."""
    return root if not root or "://" in root else str(Path(root).expanduser().absolute())


def _check_shared(choice: WorkerChoice, opening: Opening, nodes: Sequence[ClusterNode]) -> None:
    """Raise InputError where another machine computes and the ledger or the fine-tunes are on this one alone."""
    if {node.host for node in nodes} == {platform.node()}:
        return
    if "://" not in opening.ledger:
        raise InputError(f"--on {choice.on}: the cluster has other machines than this one, and the ledger is a SQLite "
                         "file of this one; use a ledger in PostgreSQL "
                         "(AFTERTUNE_LEDGER=postgresql+psycopg://USER@HOST/DATABASE)")
    if not choice.root:
        raise InputError(f"--on {choice.on}: the cluster has other machines than this one; give --root, a folder that "
                         "all of them mount or an address such as s3://BUCKET/runs, for the fine-tunes")


def as_sent(study: Study) -> str:
    """The study as the JSON that a worker reads. Fields that its file does not set stay so: a fine-tune notes them."""
    return study.model_dump_json(exclude_unset=True)


def address_of(ledger: Ledger) -> str:
    """What opens the ledger in another process. It may have a password: it goes over pipes, never into a command."""
    from aftertune.ledger import DatabaseAddress

    place = ledger.database.place
    return place.with_password() if isinstance(place, DatabaseAddress) else str(place)


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
