"""Leases: which processes work on an evaluation, and the lease of a dead process can be taken over.

    ledger.acquire(id)                            ResourceError with pid and host if another live process has a lease
    ledger.acquire(id, shared=True, join=True)    beside the live processes that share the evaluation
    ledger.beat(id)                               heartbeat; save_batch sends one too
    ledger.release(id)

Each process has a lease of its own. Without ``join`` it is refused where another one works on the evaluation. Which
batches a process computes is in its lease too (`aftertune.ledger.ranges`).

A process of this machine is alive if a process with its pid and start time exists, so a reused pid is not mistaken for
it. One of an earlier boot of this machine is dead: its last heartbeat is older than this boot, which tells it from one
of another machine with the same name. A process of another machine or container counts as dead after LEASE_TIMEOUT
seconds without a heartbeat, by the clock of the database's server (of a file: of the machine that looks). Its lease can
be taken before, with `Ledger(take_over=True)` (``--take-over``), for example where its clock was ahead. The process
that lost its lease is refused at its next batch.
"""

from __future__ import annotations

import os
import platform
import time
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, func, select

from aftertune.errors import InUse, ResourceError
from aftertune.ledger.database import database_clock, database_time, hold, repeatable
from aftertune.ledger.schema import evaluation, lease
from aftertune.ledger.store import Store, find_key, find_row

#: Seconds without a heartbeat after which a process of another machine counts as dead.
LEASE_TIMEOUT = 15 * 60.0
#: Seconds by which the clocks of two machines may differ before a message says so.
_CLOCKS = 60.0


@dataclass(frozen=True)
class Process:
    """Who holds a lease. boot: machine boot / process namespace; started: as `process_start` gives it."""

    pid: int
    host: str
    boot: str
    started: str

    @classmethod
    def own(cls) -> Process:
        """This process."""
        pid = os.getpid()
        return cls(pid, platform.node(), _boot(), process_start(pid) or "unknown")

    def same_machine(self, here: Process) -> bool:
        """Whether it runs, or ran, on this machine and in this process namespace, where its end is known."""
        return (self.host, self.boot) == (here.host, here.boot)

    def alive(self, silent: float, here: Process) -> bool:
        """Whether it still runs. silent: seconds since its last heartbeat; here: the process that asks."""
        if self.same_machine(here):
            return process_start(self.pid) == self.started
        if self.host == here.host and self.boot.partition("/")[0] != here.boot.partition("/")[0] and silent > _uptime():
            return False  # the machine was restarted since; a heartbeat after that is of another one with this name
        return silent < LEASE_TIMEOUT


@repeatable("acquire", "beat", "held", "processes", "time", "check_free", "release")
class Leases(Store):
    """Leases of evaluations. take_over: whether `acquire` takes the lease of a process of another machine at once."""

    take_over: bool = False

    def acquire(self, evaluation_id: str, *, shared: bool = False, join: bool = False) -> None:
        """Take a lease, or renew it. Raises ResourceError if another live process has one.

        shared: processes may join this one; join: beside others that share the evaluation.
        """
        with self.database.write() as connection:
            seq = find_row(connection, evaluation, evaluation_id).seq
            others = remove_dead(connection, seq, take_over=self.take_over)
            refused = [row for row in others if not (join and shared and row.shared)]
            if refused:
                raise _in_use(connection, evaluation_id, refused[0],
                              joinable=shared and all(row.shared for row in others))
            own = own_lease(connection, seq)
            if own is not None:
                connection.execute(lease.update().where(_of_process(seq, Process.own())).values(
                    heartbeat=database_clock(connection), shared=shared))
                return
            add_lease(connection, seq, shared=shared)

    def beat(self, evaluation_id: str) -> None:
        """Send a heartbeat: this process is still working on the evaluation."""
        with self.database.write(within=True) as connection:
            beat(connection, find_row(connection, evaluation, evaluation_id).seq, evaluation_id)

    def held(self) -> set[str]:
        """Ids of the evaluations on which a living process works."""
        return set(self.processes())

    def processes(self) -> dict[str, int]:
        """Id of each evaluation on which living processes work -> how many."""
        own = Process.own()
        query = select(lease, evaluation.c.id).join(evaluation, evaluation.c.seq == lease.c.evaluation).order_by(
            lease.c.evaluation, lease.c.number)
        with self.database.read() as connection:
            now = database_time(connection)
            return dict(Counter(row.id for row in connection.execute(query)
                                if _holder(row).alive(now - row.heartbeat, own)))

    def time(self) -> float:
        """Seconds since 1970 by the clock of the leases."""
        with self.database.read() as connection:
            return database_time(connection)

    def check_free(self, evaluation_id: str) -> None:
        """ResourceError where another living process works on an evaluation."""
        with self.database.read() as connection:
            check_lease(connection, find_key(connection, evaluation, evaluation_id).seq, evaluation_id)

    def release(self, evaluation_id: str) -> None:
        """Release the lease of this process; those of others are not changed."""
        with self.database.write() as connection:
            seq = find_row(connection, evaluation, evaluation_id).seq
            connection.execute(lease.delete().where(_of_process(seq, Process.own())))


def beat(connection: Connection, seq: int, evaluation_id: str, saved: int | None = None) -> None:
    """Lock an evaluation until the transaction ends (`hold`), and renew this process's lease, if there is one.

    ResourceError where another process took it, alive or not. Not for a finished evaluation: who finished it has
    released the leases of all, and a process that came too late may have taken one since.
    saved: a batch that is stored now; the process goes on with the next one of its range.
    """
    hold(connection, evaluation, seq)
    own = own_lease(connection, seq)
    if own is None:
        if connection.execute(select(evaluation.c.status).where(evaluation.c.seq == seq)).scalar() == "done":
            return
        row = check_lease(connection, seq, evaluation_id)
        if row is not None:
            raise ResourceError(f"evaluation {evaluation_id} was taken over by process {row.pid} on {row.host}; what "
                                "this process stored before is kept: let the other one finish, or run the command "
                                "again when it has ended")
        return
    moved = {} if saved is None or own.start is None or not own.start <= saved < own.stop else {"start": saved + 1}
    connection.execute(lease.update().where(lease.c.evaluation == seq, lease.c.number == own.number).values(
        heartbeat=database_clock(connection), **moved))


def add_lease(connection: Connection, seq: int, **values: Any) -> None:
    """Give this process a lease on an evaluation. values: of its columns."""
    me = Process.own()
    last = connection.execute(select(func.max(lease.c.number)).where(lease.c.evaluation == seq)).scalar()
    connection.execute(lease.insert().values(
        evaluation=seq, number=0 if last is None else last + 1, pid=me.pid, host=me.host, boot=me.boot,
        started=me.started, heartbeat=database_clock(connection), **values))


def own_lease(connection: Connection, seq: int) -> Row[Any] | None:
    """The lease of this process on an evaluation, or None."""
    return connection.execute(select(lease).where(_of_process(seq, Process.own()))).first()


def remove_dead(connection: Connection, seq: int, *, take_over: bool = False) -> list[Row[Any]]:
    """Remove the leases of processes that have ended; returns those of the other live ones, the oldest first.

    take_over: a process of another machine counts as ended.
    """
    alive = live_leases(connection, seq, take_over=take_over)
    kept = [row.number for row in alive]
    connection.execute(lease.delete().where(
        lease.c.evaluation == seq, lease.c.number.not_in(kept), ~_of_process(seq, Process.own())))
    return alive


def live_leases(connection: Connection, seq: int, *, take_over: bool = False) -> list[Row[Any]]:
    """The leases of other live processes, the oldest first. take_over: one of another machine counts as dead."""
    own = Process.own()
    query = select(lease).where(lease.c.evaluation == seq).order_by(lease.c.number)
    others = [(row, holder) for row in connection.execute(query) if (holder := _holder(row)) != own]
    now = database_time(connection) if others else 0.0
    return [row for row, holder in others if holder.alive(now - row.heartbeat, own)
            and not (take_over and not holder.same_machine(own))]


def check_lease(connection: Connection, seq: int, evaluation_id: str, *, take_over: bool = False) -> Row[Any] | None:
    """A lease on an evaluation, or None; ResourceError where another live process has one.

    take_over: a process of another machine counts as dead.
    """
    others = live_leases(connection, seq, take_over=take_over)
    if others:
        raise _in_use(connection, evaluation_id, others[0])
    return connection.execute(select(lease).where(lease.c.evaluation == seq).order_by(lease.c.number)).first()


def _of_process(seq: int, process: Process) -> ColumnElement[bool]:
    """The condition "the lease of this process"."""
    return and_(lease.c.evaluation == seq, lease.c.pid == process.pid, lease.c.host == process.host,
                lease.c.boot == process.boot, lease.c.started == process.started)


def _in_use(connection: Connection, evaluation_id: str, row: Row[Any], *, joinable: bool = False) -> ResourceError:
    """The error where a live process has a lease. joinable: this process could join it."""
    holder, silent = _holder(row), database_time(connection) - row.heartbeat
    when = f"last heartbeat {max(0.0, silent):.0f} s ago"
    if silent < -_CLOCKS:
        when = f"last heartbeat {-silent:.0f} s in the future: the clock there was ahead, or the one here is behind"
    advice = "wait for it, or stop it and run the command again"
    if joinable:
        advice += "; to work on it together, add --join (`aftertune eval` has it; join=True in Python)"
    if not holder.same_machine(Process.own()):
        advice += ("; if you know that it has ended, add --take-over (`aftertune eval`, `run` and `import` have it; "
                   "Ledger(take_over=True) in Python)")
    return InUse(f"evaluation {evaluation_id} is in use by process {holder.pid} on {holder.host} ({when}); "
                 f"{advice}")


def _holder(row: Row[Any]) -> Process:
    return Process(row.pid, row.host, row.boot, row.started)


@cache
def _boot() -> str:
    """Boot of this machine, and the process namespace that pids belong to."""
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    if boot.is_file():
        inode = namespace.stat().st_ino if namespace.exists() else 0
        return f"{boot.read_text().strip()}/{inode}"
    import psutil

    return f"{psutil.boot_time():.0f}/0"


def _uptime() -> float:
    """Seconds since the boot of this machine."""
    import psutil

    return time.time() - float(psutil.boot_time())


def process_start(pid: int) -> str | None:
    """When process ``pid`` started, or None if there is no such process (or only its zombie).

    On Linux in clock ticks since the boot, as in /proc/PID/stat and in stored leases, so that an adjusted clock does
    not make a live process look like another one. Elsewhere in seconds since 1970.
    """
    import psutil

    try:
        process = psutil.Process(pid)
        if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return None
        if not psutil.LINUX:
            return f"{process.create_time():.0f}"
        while True:  # psutil adds the boot time, which changes with the clock
            before, started, after = psutil.boot_time(), process.create_time(), psutil.boot_time()
            if before == after:
                return f"{(started - before) * os.sysconf('SC_CLK_TCK'):.0f}"
    except psutil.Error:
        return None
