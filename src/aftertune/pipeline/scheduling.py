"""Decides which worker runs which cell of a study next. It is pure: `run` and the simulation of `plan` share it.

    queue = CellQueue([CellJob("evaluate b", 60.0), CellJob("tune lora", 300.0), …], workers=2)
    queue.take("worker 1")                the cell with the longest remaining path, or None: nothing is ready now
    queue.finish("tune lora")             cells that needed it become ready
    simulate(jobs, workers=2).makespan    seconds, without running anything

It is list scheduling by the longest remaining path: of the cells that are ready, a free worker gets the one with the
longest chain of cells behind it. A worker that has a base loaded gets the cells of this base first, as long as no other
cell is critical, which means that its path is longer than the time that all workers still need.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

#: Seconds that a cell counts whose cost is not known.
UNKNOWN_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class CellJob:
    """A cell as the schedule sees it.

    seconds: its estimated time with the model loaded; needs: names of the cells that must be done before it; base: the
    model that stays loaded after it, "" for none; load: seconds to load this base; memory, disk: bytes, 0 if not known;
    shared: whether several workers can compute it together.
    """

    name: str
    seconds: float
    needs: tuple[str, ...] = ()
    base: str = ""
    load: float = 0.0
    memory: int = 0
    disk: int = 0
    shared: bool = False


class CellQueue:
    """The cells that are not done yet. workers: how many work at the same time. A need that is not among the jobs
    counts as done."""

    def __init__(self, jobs: Sequence[CellJob], workers: int = 1) -> None:
        self.jobs = {job.name: job for job in jobs}
        self.workers = max(workers, 1)
        self.paths = longest_paths(jobs)
        self.loaded: dict[str, str] = {}  # base by worker
        self.taken: set[str] = set()
        self.ended: set[str] = set()
        self.rest = sum(job.seconds for job in jobs)  # seconds of the cells that no worker has taken
        self._order = {job.name: number for number, job in enumerate(jobs)}
        self._missing = {job.name: {n for n in job.needs if n in self.jobs} for job in jobs}
        self._needed_by: dict[str, list[str]] = defaultdict(list)
        for name, needs in self._missing.items():
            for need in needs:
                self._needed_by[need].append(name)
        self._ready: list[tuple[float, int, str]] = []
        self._of_base: dict[str, list[tuple[float, int, str]]] = defaultdict(list)
        for job in jobs:
            if not self._missing[job.name]:
                self._push(job.name)

    def __len__(self) -> int:
        """The number of cells that have not ended."""
        return len(self.jobs) - len(self.ended)

    def take(self, worker: str, refused: Collection[str] = ()) -> CellJob | None:
        """The next cell of a free worker, which has it from now on. None if no cell is ready. refused: names of cells
        that this worker must not have."""
        aside: list[tuple[float, int, str]] = []
        while (best := self._top(self._ready)) is not None and best.name in refused:
            aside.append(heapq.heappop(self._ready))
        for entry in aside:
            heapq.heappush(self._ready, entry)
        if best is None:
            return None
        warm = self._top(self._of_base[base]) if (base := self.loaded.get(worker, "")) else None
        if warm is not None and warm.name in refused:
            warm = None
        job = best
        if warm is not None and (self.paths[warm.name] + best.load >= self.paths[best.name]
                                 or self.paths[best.name] * self.workers < self.rest):
            job = warm
        self.taken.add(job.name)
        self.rest -= job.seconds
        self.loaded[worker] = job.base
        return job

    def finish(self, name: str) -> None:
        """A cell is done: the cells that waited only for it are ready."""
        self.ended.add(name)
        for waiting in self._needed_by[name]:
            self._missing[waiting].discard(name)
            if not self._missing[waiting] and waiting not in self.ended:
                self._push(waiting)

    def fail(self, name: str) -> list[str]:
        """A cell failed: the names of the cells that need it, directly or through others, which end with it."""
        self.ended.add(name)
        skipped, waiting = [], [name]
        while waiting:
            for other in self._needed_by[waiting.pop()]:
                if other not in self.ended:
                    self.ended.add(other)
                    self.rest -= self.jobs[other].seconds
                    skipped.append(other)
                    waiting.append(other)
        return sorted(skipped, key=self._order.__getitem__)

    def give_back(self, name: str) -> None:
        """The worker of a cell is lost: another worker may take the cell."""
        self.taken.discard(name)
        self.rest += self.jobs[name].seconds
        self._push(name)

    def forget(self, worker: str) -> None:
        """A worker is lost, with the base that it had loaded."""
        self.loaded.pop(worker, None)

    def _push(self, name: str) -> None:
        entry = (-self.paths[name], self._order[name], name)
        heapq.heappush(self._ready, entry)
        if base := self.jobs[name].base:
            heapq.heappush(self._of_base[base], entry)

    def _top(self, heap: list[tuple[float, int, str]]) -> CellJob | None:
        """The first cell of a heap that is still ready; entries of other cells are removed."""
        while heap and (heap[0][2] in self.taken or heap[0][2] in self.ended):
            heapq.heappop(heap)
        return self.jobs[heap[0][2]] if heap else None


def longest_paths(jobs: Sequence[CellJob]) -> dict[str, float]:
    """Name of a cell -> seconds of the longest chain of cells that begins with it."""
    of_name = {job.name: job for job in jobs}
    needed_by: dict[str, list[str]] = defaultdict(list)
    waiting = dict.fromkeys(of_name, 0)  # cells that need it and have no path yet
    for job in jobs:
        for need in job.needs:
            if need in of_name:
                needed_by[need].append(job.name)
                waiting[need] += 1
    paths: dict[str, float] = {}
    free = [name for name, count in waiting.items() if not count]
    while free:
        name = free.pop()
        paths[name] = of_name[name].seconds + max((paths[other] for other in needed_by[name]), default=0.0)
        for need in of_name[name].needs:
            if need in of_name:
                waiting[need] -= 1
                if not waiting[need]:
                    free.append(need)
    return paths


@dataclass(frozen=True, slots=True)
class Placed:
    """One cell of a simulated schedule. start, end: seconds from the beginning."""

    name: str
    worker: int
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class SimulatedRun:
    """A simulated schedule. makespan: seconds until the last cell ends; critical: of the longest chain; area: of all
    cells, divided by the workers. No schedule is shorter than either of these two."""

    makespan: float
    critical: float
    area: float
    cells: tuple[Placed, ...]

    @property
    def bound(self) -> float:
        """The time below which no schedule can be."""
        return max(self.critical, self.area)


def simulate(jobs: Sequence[CellJob], workers: int) -> SimulatedRun:
    """Run a queue against a clock of its own. workers: 1 or more."""
    queue = CellQueue(jobs, workers)
    free, running = [*reversed(range(workers))], list[tuple[float, int, str]]()
    clock, placed = 0.0, []
    while True:
        while free:
            before = queue.loaded.get(str(free[-1]), "")
            job = queue.take(str(free[-1]))
            if job is None:
                break
            end, worker = clock + job.seconds + (job.load if job.base != before else 0.0), free.pop()
            heapq.heappush(running, (end, worker, job.name))
            placed.append(Placed(job.name, worker, clock, end))
        if not running:
            break
        clock, worker, name = heapq.heappop(running)
        queue.finish(name)
        free.append(worker)
        while running and running[0][0] <= clock:
            _, worker, name = heapq.heappop(running)
            queue.finish(name)
            free.append(worker)
    return SimulatedRun(clock, max(queue.paths.values(), default=0.0), sum(j.seconds for j in jobs) / workers,
                        tuple(placed))


def workers_that_fit(memory: Iterable[int], workers: int, free: Sequence[int]) -> int:
    """How many of the wanted workers fit, if each runs one of the cells that need most memory.

    memory: bytes of each cell; free: bytes of each device, over which the workers are spread evenly. At least 1.
    """
    largest = sorted(memory, reverse=True)
    for count in range(min(workers, len(largest)), 1, -1):
        if all(sum(largest[:count][device::len(free)]) <= room for device, room in enumerate(free)):
            return count
    return 1


def seconds_done(jobs: Mapping[str, CellJob], ended: Iterable[str], shares: Mapping[str, float]) -> float:
    """The estimated seconds of the work that is done. shares: of the running cells, by name."""
    whole = sum(jobs[name].seconds for name in ended)
    return whole + sum(jobs[name].seconds * min(max(share, 0.0), 1.0) for name, share in shares.items())
