"""What processes work on now, how far they are, and what finished work took, for a reader who looks meanwhile.

    ledger.running()                 [RunningEntry(id="e-1f…", done=120, total=500, seconds_left=42.0, …)]
    ledger.result_seconds(["t-93…"]) {"t-93…": 61.0}

A run writes nothing for this beside what it stores anyway: an evaluation adds `evaluation_mark` to its schedule when it
begins, and each step of a training is stored with the number of steps and the time (`step_mark`). The end is estimated
from the pace since this process began, or over the last steps.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, func, select

from aftertune.ledger.lease import Leases
from aftertune.ledger.schema import (
    JsonField,
    answer,
    as_number,
    evaluation,
    lease,
    response,
    schedule,
    step,
    task,
    tuning,
)
from aftertune.ledger.store import CHUNK

#: The key of an unfinished evaluation's schedule for `evaluation_mark`.
PROGRESS = "progress"
#: Keys of a step that is stored while a training runs; the finished log does not have them.
TOTAL_STEPS, TIME = "total_steps", "time"
#: Steps over which the pace of a training is measured.
_PACE_STEPS = 30
#: Where a stored value has the time at which it was started.
STARTED = "$.provenance.started"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningEntry:
    """An entry on which a process works. done: of an evaluation the stored responses (one for each choice of an item,
    or for each text), of a tuning its last step; total: how many there will be at most, 0 where it is not known yet.
    items: of an evaluation. seconds_left: estimated from the pace so far, None without one. loss: of a tuning's last
    step. processes: that work on it; hosts: of an evaluation, the names of their machines."""

    id: str
    kind: str
    name: str
    started: str
    done: int
    total: int = 0
    items: int = 0
    tasks: tuple[str, ...] = ()
    seconds_left: float | None = None
    loss: float | None = None
    processes: int = 1
    hosts: tuple[str, ...] = ()


def evaluation_mark(total: int, before: int, since: float) -> dict[str, float]:
    """How far an evaluation is when a process begins to answer. total: its requests; before: those that are answered;
    since: the time by the clock of its heartbeats (`Ledger.time`)."""
    return {"total": total, "before": before, "since": since}


def step_mark(total: int) -> dict[str, float]:
    """What a step of a running training is stored with beside its metrics. total: of steps."""
    return {TOTAL_STEPS: total, TIME: round(time.time(), 2)}


class RunningEntries(Leases):
    """What runs now."""

    def interrupted(self) -> set[str]:
        """Ids of evaluations and tunings that say "running" although no process seems to work on them."""
        held = self.held()
        with self.database.read() as connection:
            ids = connection.execute(select(evaluation.c.id).where(evaluation.c.status == "running")).scalars().all()
            return {id_ for id_ in ids if id_ not in held} | {
                row.id for row in _tunings(connection) if not _trains(row)}

    def running(self) -> list[RunningEntry]:
        """The evaluations and tunings on which processes work now."""
        processes = self.processes()
        with self.database.read() as connection:
            last = select(func.max(lease.c.heartbeat)).where(lease.c.evaluation == evaluation.c.seq).scalar_subquery()
            rows = [(row, processes[row.id]) for row in connection.execute(
                select(evaluation.c.seq, evaluation.c.id, evaluation.c.name, last.label("heartbeat"),
                       json_field(evaluation, STARTED).label("started"))
                .where(evaluation.c.id.in_(processes)).order_by(evaluation.c.seq))]
            return [*(_evaluation(connection, r, count) for r, count in rows),
                    *(_tuning(connection, r) for r in _tunings(connection) if _trains(r))]

    def result_seconds(self, ids: Collection[str]) -> dict[str, float]:
        """Id of an evaluation or a tuning -> seconds of its scoring or training, where they are stored."""
        queries = ((evaluation, select(evaluation.c.id, json_field(schedule, "$.seconds").label("seconds"))
                    .join(schedule, schedule.c.evaluation == evaluation.c.seq)),
                   (tuning, select(tuning.c.id, json_field(tuning, "$.cost.seconds").label("seconds"))))
        found: dict[str, float] = {}
        wanted = list(ids)
        with self.database.read() as connection:
            for start in range(0, len(wanted), CHUNK):
                for table, query in queries:
                    rows = connection.execute(query.where(table.c.id.in_(wanted[start:start + CHUNK])))
                    found |= {r.id: seconds for r in rows if (seconds := as_number(r.seconds)) is not None}
        return found


def json_field(table: Any, path: str) -> Any:
    """A field of a stored value."""
    return JsonField(table.c.value, path)


def _tunings(connection: Connection) -> Sequence[Any]:
    return connection.execute(select(
        tuning.c.seq, tuning.c.id, tuning.c.name, json_field(tuning, "$.output").label("output"),
        json_field(tuning, STARTED).label("started")).where(tuning.c.status == "running").order_by(tuning.c.seq)).all()


def _trains(row: Any) -> bool:
    """Whether a process seems to train a tuning."""
    from aftertune.sources.folder_lock import in_use

    return in_use(Path(row.output or ""))


def _evaluation(connection: Connection, row: Any, processes: int) -> RunningEntry:
    items = connection.execute(select(func.count()).where(answer.c.evaluation == row.seq)).scalar_one()
    done = connection.execute(select(func.count()).where(response.c.evaluation == row.seq)).scalar_one()
    names = connection.execute(select(task.c.name).where(task.c.evaluation == row.seq).order_by(task.c.position))
    stored = connection.execute(select(schedule.c.value).where(schedule.c.evaluation == row.seq)).scalar() or {}
    begun: Mapping[str, float] = stored.get(PROGRESS) or {}
    hosts = connection.execute(select(lease.c.host).distinct().where(lease.c.evaluation == row.seq)).scalars()
    total = int(begun.get("total", 0))
    left = None
    if total:
        left = seconds_left(total - done, done - begun["before"], row.heartbeat - begun["since"])
    return RunningEntry(id=row.id, kind="evaluation", name=row.name, started=row.started or "", done=done, total=total,
                        items=items, tasks=tuple(names.scalars()), seconds_left=left, processes=processes,
                        hosts=tuple(sorted(hosts)))


def _tuning(connection: Connection, row: Any) -> RunningEntry:
    values = connection.execute(select(step.c.value).where(step.c.tuning == row.seq)
                                .order_by(step.c.number.desc()).limit(_PACE_STEPS)).scalars().all()
    last: Mapping[str, float] = values[0] if values else {}
    done, total = int(last.get("step", 0)), int(last.get(TOTAL_STEPS, 0))
    timed = [v for v in values if TIME in v]
    left = None
    if len(timed) > 1:
        left = seconds_left(total - done, timed[0]["step"] - timed[-1]["step"], timed[0][TIME] - timed[-1][TIME])
    return RunningEntry(id=row.id, kind="tuning", name=row.name, started=row.started or "", done=done, total=total,
                        seconds_left=left, loss=last.get("loss"))


def seconds_left(rest: float, done: float, seconds: float) -> float | None:
    """How long the rest takes at the pace of what was done in some seconds; None where there is no pace."""
    return max(rest, 0) * seconds / done if done > 0 and seconds > 0 else None
