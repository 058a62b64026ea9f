"""Runs the cells of a study on workers: gives them out, follows them, and replaces workers that are lost.

    with Drive(queue, workers, report) as drive:
        drive.run()
    drive.failed                       {"tune careful": "its worker was killed by SIGKILL …"}

Each cell is run by one worker at a time. A cell whose worker is lost goes to another worker, which continues it from
its last batch or checkpoint, up to `RERUNS` times.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aftertune import errors
from aftertune.errors import AftertuneError, InputError, ResourceError, StorageError
from aftertune.pipeline.local_workers import Message, Workers
from aftertune.pipeline.scheduling import CellQueue, seconds_done
from aftertune.values import Progress

#: How often a cell is run again after its worker was lost.
RERUNS = 3
#: Workers that may end one after another before one of them was ready: by themselves, and killed from outside.
_STARTS, _KILLS = 3, 12
#: Seconds without a message of a worker after which a run says that no worker can begin, and after which it no longer
#: counts on those that were asked for: a cluster that has lost a node may never have room for them.
_SAID, _GIVEN_UP = 30.0, 300.0
#: Seconds between two reports of the progress of the whole run.
_OVERALL = 1.0
#: Errors that may be those of a node: it lacks data, memory or room on its disk.
_OF_NODE = (InputError, ResourceError, StorageError)
#: The text of the progress of the whole run.
ALL_CELLS = "all cells"


@dataclass(frozen=True, slots=True)
class Report:
    """Where a drive reports. progress: as of `run`; on_cell: (cell, status) when a cell starts and ends; save: stores
    (cell, status, reason) of a cell that no worker can store."""

    progress: Progress
    on_cell: Callable[[str, str], None]
    save: Callable[[str, str, str], None]


class Drive:
    """One run on workers. keep_going: go on after a cell failed; help_after: workers without a cell help with
    evaluations that still take this many seconds or longer, None: never."""

    def __init__(self, queue: CellQueue, workers: Workers, report: Report, *, keep_going: bool = False,
                 help_after: float | None = None) -> None:
        self.queue, self.workers, self.report, self.keep_going = queue, workers, report, keep_going
        self.help_after = help_after
        self.running: dict[str, str] = {}  # cell by worker
        self.idle: set[str] = set()
        self.helping: dict[str, str] = {}  # cell by worker
        self.nodes: dict[str, str] = {}  # by worker
        self.failed: dict[str, str] = {}  # reason by cell
        self.first_error: AftertuneError | None = None
        self.lost: dict[str, int] = {}  # how often the worker of a cell was lost
        self.failed_on: dict[str, dict[str, AftertuneError]] = {}  # by cell: nodes on which it failed, and why
        self._shares: dict[str, float] = {}  # of the running cells
        self._done: set[str] = set()
        self._starting: set[str] = set()
        self._dead = 0.0  # of the endings that are too many
        self._reported = 0.0
        self._heard, self._waits = time.monotonic(), False  # when a worker last said something; whether it was said
        self._number = {name: n for n, name in enumerate(queue.jobs, 1)}

    def run(self, count: int) -> None:
        """Run all cells on ``count`` workers, which are stopped at the end, also when this raises.

        Raises the error of the first cell that fails, unless ``keep_going``; ResourceError if no worker can be started.
        """
        try:
            for _ in range(count):
                self._start()
            self.report.progress(0, 0, f"starting {count} worker{'s' if count > 1 else ''}")
            while len(self.queue):
                for worker, message in self.workers.receive(1.0):
                    self._heard, self._waits = time.monotonic(), False
                    self._take_in(worker, message)
                self._give_out()
                if not self.running and self._starting:
                    self._wait()
                if not self.running and self.idle and not self._starting:  # no node is left that may run what is left
                    for cell in [c for c in self.failed_on if c not in self.failed and c not in self._done]:
                        error = next(iter(self.failed_on[cell].values()))
                        self.report.save(cell, "failed", str(error))
                        self._fail(cell, error)
        finally:
            self.workers.stop()

    def _wait(self) -> None:
        """Say once that nothing can run until a worker begins; after a while, do not count on it any more."""
        quiet = time.monotonic() - self._heard
        if quiet > _SAID and not self._waits:
            self._waits = True
            self.report.progress(0, 0, f"waiting until there is room for {' and '.join(sorted(self._starting))}; "
                                       "others may use the machines, or a node is gone")
        if quiet > _GIVEN_UP and self.idle:
            self._starting.clear()

    def _start(self) -> None:
        self._starting.add(self.workers.start())

    def _give_out(self) -> None:
        """Give each idle worker a cell, as long as one is ready."""
        for worker in sorted(self.idle):
            job = self.queue.take(worker, [c for c, nodes in self.failed_on.items() if self.nodes[worker] in nodes])
            if job is None:
                self._help(worker)
                continue
            self.idle.discard(worker)
            self.running[worker] = job.name
            self._shares[job.name] = 0.0
            self.report.on_cell(job.name, "running")
            self._progress(worker, 0, 0, "starting")
            self.workers.send(worker, job.name)

    def _help(self, worker: str) -> None:
        """Let a worker that has no cell help with the longest evaluation, if this is worth loading its model."""
        if self.help_after is None:
            return
        jobs, helped = self.queue.jobs, [*self.helping.values()]
        left = {cell: (1 - self._shares[cell]) * jobs[cell].seconds / (1 + helped.count(cell))
                for cell in self.running.values() if jobs[cell].shared}
        longest = max(left, key=left.__getitem__, default="")
        if longest and left[longest] >= self.help_after + 2 * jobs[longest].load:
            self.idle.discard(worker)
            self.helping[worker] = longest
            self.queue.loaded[worker] = jobs[longest].base
            self.report.progress(0, 0, f"{self._title(longest, worker)}: helps")
            self.workers.send(worker, longest, helps=True)

    def _take_in(self, worker: str, message: Message) -> None:
        """Act on what a worker said."""
        event, cell = message.get("event"), self.running.get(worker)
        if event in ("helped", "lost"):
            self.helping.pop(worker, None)
        if event in ("ready", "lost"):
            self._starting.discard(worker)
        if event == "ready":
            self.nodes[worker] = str(message.get("node", ""))
            self.idle.add(worker)
            self._dead = 0.0  # of the endings that are too many
        elif event == "lost":
            self._lose(worker, str(message.get("reason", "")), killed=int(message.get("code", -1)) < 0)
        elif event == "helped":
            self.idle.add(worker)
        elif cell is None:
            return
        elif event == "progress":
            self._progress(worker, int(message["done"]), int(message["total"]), str(message["text"]))
        elif event in ("done", "failed"):
            self._free(worker)
            if event == "done":
                self.queue.finish(cell)
                self._done.add(cell)
                self.report.on_cell(cell, "done")
            else:
                self._fail_on(self.nodes[worker], cell, _error(message))

    def _free(self, worker: str) -> None:
        cell = self.running.pop(worker)
        self._shares.pop(cell, None)
        self.idle.add(worker)

    def _fail_on(self, node: str, cell: str, error: AftertuneError) -> None:
        """A cell failed on a node: where there are others, one of them tries it, because the reason may be the node."""
        tried = self.failed_on.setdefault(cell, {})
        tried[node] = error
        if isinstance(error, _OF_NODE) and any(other not in tried for other in self.nodes.values()):
            self.report.save(cell, "planned", "")
            self.report.on_cell(cell, "planned")
            self.report.progress(0, 0, f"{cell} failed on {node}: {error}; another node tries it")
            self.queue.give_back(cell)
        else:
            self._fail(cell, next(iter(tried.values())))

    def _fail(self, cell: str, error: AftertuneError, *, stop: bool = True) -> None:
        """A cell failed; the cells that need it are skipped. stop: end the run, unless ``keep_going``."""
        self.failed[cell] = str(error)
        self.report.on_cell(cell, "failed")
        for name in self.queue.fail(cell):
            need = next(n for n in self.queue.jobs[name].needs if n in self.failed)
            self.failed[name] = reason = f"needs {need}, which failed"
            self.report.save(name, "planned", reason)
            self.report.on_cell(name, "skipped")
        self.first_error = self.first_error or error
        if stop and not self.keep_going:
            raise error

    def _lose(self, worker: str, reason: str, *, killed: bool) -> None:
        """A worker ended: another one is started, and its cell is given out again, or fails."""
        self.queue.forget(worker)
        self.idle.discard(worker)
        self.nodes.pop(worker, None)
        cell = self.running.pop(worker, None)
        if cell is None:
            self._dead += 1 / _KILLS if killed else 1 / _STARTS
            if self._dead > 0.999:
                raise ResourceError(f"{worker} ended before it could begin: {reason}; `aftertune doctor` checks this "
                                    "machine")
        else:
            self._shares.pop(cell, None)
            self.lost[cell] = self.lost.get(cell, 0) + 1
            if self.lost[cell] > RERUNS:
                why = (f"{reason}, {self.lost[cell]} times; if memory is short, use fewer workers, a smaller batch or "
                       "--memory")
                self.report.save(cell, "failed", why)
                self._fail(cell, ResourceError(why), stop=False)
            else:
                self.report.save(cell, "planned", "")
                self.report.on_cell(cell, "planned")
                self.report.progress(0, 0, f"{self._title(cell, worker)}: {reason}; another worker goes on with it")
                self.queue.give_back(cell)
        if len(self.queue):
            self._start()

    def _progress(self, worker: str, done: int, total: int, text: str) -> None:
        """Report the progress of a cell, and now and then that of the whole run."""
        cell = self.running[worker]
        self.report.progress(done, total, f"{self._title(cell, worker)}: {text}")
        if total:
            self._shares[cell] = done / total
        now = time.monotonic()
        if now - self._reported > _OVERALL:
            self._reported = now
            jobs = self.queue.jobs
            whole = sum(job.seconds for job in jobs.values())
            self.report.progress(int(seconds_done(jobs, self._done | set(self.failed), self._shares)), int(whole),
                                 ALL_CELLS)

    def _title(self, cell: str, worker: str) -> str:
        """ "[3/12] tune careful · worker 2", with its node where there are several."""
        node = f" on {self.nodes[worker]}" if len(set(self.nodes.values())) > 1 and worker in self.nodes else ""
        return f"[{self._number[cell]}/{len(self.queue.jobs)}] {cell} · {worker}{node}"


def _error(message: Message) -> AftertuneError:
    """The error that a worker reported, of its class if this is one of ours."""
    kind: Any = getattr(errors, str(message.get("kind")), AftertuneError)
    reason = str(message.get("reason", ""))
    try:
        error = kind(reason)
    except TypeError:  # a class that needs more than a message
        return errors.InputError(reason)
    return error if isinstance(error, AftertuneError) else AftertuneError(reason)

