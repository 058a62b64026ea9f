"""Which batches of an evaluation each of its processes computes, and which of them sets it up and finishes it.

    ledger.take_step(id, SETUP)               True where this process does it now, and no other one
    taken = ledger.take_range(id, costs)      costs: number of each batch to compute -> its cost
    taken.batches                             (4, 5, 6): those that this process computes next
    ledger.range_stop(id)                     where they end by now: another process may have taken the last ones

A process takes the first batches that no other one has. Where all are taken, it takes the second half of the largest
range, but never the batch on which its process works; that process sees it before its next batch. So a process that
joins gets half of what is left, and one that ends leaves its batches to the others: on the same machine at once,
elsewhere all but one at once, and that one after `LEASE_TIMEOUT`.

A range is kept in the lease of its process: ``start`` is the batch that it works on, ``stop`` the one after its last.
Steps that one process takes alone are ranges below 0.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, select

from aftertune.ledger.database import repeatable
from aftertune.ledger.digests import check, check_part
from aftertune.ledger.evaluations import delete_rows, load_responses, store_schedule
from aftertune.ledger.lease import Leases, add_lease, beat, live_leases, own_lease, remove_dead
from aftertune.ledger.schema import checksum, evaluation, lease, response, schedule
from aftertune.ledger.store import CHUNK, encode, find_key, find_row
from aftertune.values import Response

#: Steps of an evaluation that one process takes alone: planning its batches, and storing its scores.
SETUP, FINISH = -2, -1


@dataclass(frozen=True, slots=True)
class TakenBatches:
    """What a process computes next. batches: their numbers; stored: those of the evaluation that are stored; others:
    how many other processes work on it."""

    batches: tuple[int, ...]
    stored: frozenset[int]
    others: int


@repeatable("take_step", "take_range", "range_stop", "stored_batches", "batch_responses", "is_done", "others",
            "leave", "discard")
class SharedEvaluations(Leases):
    """Evaluations on which several processes work."""

    def take_step(self, evaluation_id: str, step: int) -> bool:
        """Take a step that one process takes alone; also again. False where another live process takes it now, or the
        evaluation is done. Whoever takes a range or another step has ended it."""
        with self.database.read() as connection:
            seq = find_key(connection, evaluation, evaluation_id).seq
            if any(row.start == step for row in live_leases(connection, seq)):
                return False
        with self.database.write(within=True) as connection:
            beat(connection, seq, evaluation_id)
            others = remove_dead(connection, seq)
            if any(row.start == step for row in others) or _is_done(connection, seq):
                return False
            return _set_range(connection, seq, step, step + 1)

    def take_range(self, evaluation_id: str, costs: Mapping[int, int]) -> TakenBatches:
        """Take batches that are not stored and that no other process computes; none where there are none.

        costs: number -> cost of all batches to compute, in their order; the same for every process.
        """
        with self.database.read() as connection:  # who waits for others asks again and again, and writes nothing
            seq = find_key(connection, evaluation, evaluation_id).seq
            offer, stored, others = _offer(connection, seq, costs)
            if offer is None:
                return TakenBatches((), stored, len(others))
        with self.database.write(within=True) as connection:
            beat(connection, seq, evaluation_id)
            remove_dead(connection, seq)
            offer, stored, others = _offer(connection, seq, costs)
            if offer is None or not _set_range(connection, seq, offer.batches[0], offer.stop):
                return TakenBatches((), stored, len(others))
            if offer.of is not None:
                connection.execute(lease.update().where(lease.c.evaluation == seq, lease.c.number == offer.of)
                                   .values(stop=offer.batches[0]))
            return TakenBatches(offer.batches, stored, len(others))

    def range_stop(self, evaluation_id: str) -> int | None:
        """The batch after the last one that this process computes; None without a range."""
        with self.database.read() as connection:
            own = own_lease(connection, find_key(connection, evaluation, evaluation_id).seq)
            return None if own is None else own.stop

    def stored_batches(self, evaluation_id: str, batches: Collection[int]) -> frozenset[int]:
        """Those of these batches that are stored."""
        with self.database.read() as connection:
            return _stored(connection, find_key(connection, evaluation, evaluation_id).seq, batches)

    def batch_responses(self, evaluation_id: str, batches: Collection[int]) -> dict[int, Response]:
        """Position -> response of these batches. StorageError where one is damaged."""
        numbers = sorted(batches)
        with self.database.read() as connection:
            row = find_key(connection, evaluation, evaluation_id)
            positions: list[int] = []
            for number in numbers:
                check_part(connection, response, row.seq, number, f"evaluation {row.id}")
            for start in range(0, len(numbers), CHUNK):
                positions += connection.execute(select(response.c.position).where(
                    response.c.evaluation == row.seq, response.c.batch.in_(numbers[start:start + CHUNK]))).scalars()
            return load_responses(connection, row.seq, sorted(positions))

    def is_done(self, evaluation_id: str) -> bool:
        """Whether an evaluation is finished."""
        with self.database.read() as connection:
            return _is_done(connection, find_key(connection, evaluation, evaluation_id).seq)

    def others(self, evaluation_id: str) -> int:
        """How many other live processes work on an evaluation."""
        with self.database.read() as connection:
            return len(live_leases(connection, find_key(connection, evaluation, evaluation_id).seq))

    def change_schedule(self, evaluation_id: str, change: Callable[[dict[str, Any] | None], dict[str, Any]]
                        ) -> dict[str, Any]:
        """Replace the schedule by what ``change`` makes of the stored one, in one transaction; returns the new one.

        That of a finished evaluation stays: a process may be slower than the one that finished it.
        """
        with self.database.write(within=True) as connection:
            row = find_row(connection, evaluation, evaluation_id)
            beat(connection, row.seq, row.id)
            check(connection, schedule, {row.seq: f"evaluation {row.id}"})
            before = connection.execute(select(schedule.c.value).where(schedule.c.evaluation == row.seq)).scalar()
            if row.status == "done" and before is not None:
                return dict(before)
            after: dict[str, Any] = encode(change(None if before is None else dict(before)))
            if after != before:
                store_schedule(connection, row.seq, after)
            return after

    def leave(self, evaluation_id: str, *, drop: bool = False) -> None:
        """Release the lease of this process; of an evaluation that is gone, nothing.

        drop: also delete the evaluation if it has no response, unless another live process works on it.
        """
        self._release(evaluation_id, lambda connection, seq: drop and connection.execute(
            select(response.c.position).where(response.c.evaluation == seq).limit(1)).first() is None)

    def discard(self, evaluation_id: str) -> None:
        """Delete an evaluation with its responses, unless it is done or another live process works on it."""
        self._release(evaluation_id, lambda *_: True)

    def _release(self, evaluation_id: str, drop: Callable[[Connection, int], bool]) -> None:
        with self.database.write() as connection:
            key = connection.execute(select(evaluation.c.seq, evaluation.c.id)
                                     .where(evaluation.c.id == evaluation_id)).first()
            if key is None:
                return
            own = own_lease(connection, key.seq)
            if own is not None:
                connection.execute(lease.delete().where(
                    lease.c.evaluation == key.seq, lease.c.number == own.number))
            if not live_leases(connection, key.seq) and not _is_done(connection, key.seq) and \
                    drop(connection, key.seq):
                delete_rows(connection, key)


@dataclass(frozen=True, slots=True)
class _Offer:
    """Batches that a process may take. stop: the end of the range; of: number of the lease that it is cut off from."""

    batches: tuple[int, ...]
    stop: int
    of: int | None = None


def _offer(connection: Connection, seq: int, costs: Mapping[int, int]
           ) -> tuple[_Offer | None, frozenset[int], list[Row[Any]]]:
    """What this process may take, the stored batches, and the leases of other live processes."""
    others = live_leases(connection, seq)
    stored = _stored(connection, seq, costs)
    taken = [row for row in others if row.start is not None and row.start >= 0]
    left = [n for n in costs if n not in stored]
    return (_free(left, taken) or _half(left, taken, costs)), stored, others


def _free(left: Sequence[int], taken: Sequence[Row[Any]]) -> _Offer | None:
    """The first batches that nobody has, up to the next range of another process."""
    first = next((n for n in left if not any(row.start <= n < row.stop for row in taken)), None)
    if first is None:
        return None
    stop = min((row.start for row in taken if row.start > first), default=left[-1] + 1)
    return _Offer(tuple(n for n in left if first <= n < stop), stop)


def _half(left: Sequence[int], taken: Sequence[Row[Any]], costs: Mapping[int, int]) -> _Offer | None:
    """The second half, by cost, of the range with the most cost behind the batch that its process works on."""
    ranges = [(row, [n for n in left if row.start <= n < row.stop]) for row in taken]
    row, batches = max(ranges, key=lambda r: sum(costs[n] for n in r[1][1:]), default=(None, []))
    if row is None or len(batches) < 2:
        return None
    cut, behind, total = len(batches) - 1, costs[batches[-1]], sum(costs[n] for n in batches)
    while cut > 1 and 2 * (behind + costs[batches[cut - 1]]) <= total:
        cut -= 1
        behind += costs[batches[cut]]
    return _Offer(tuple(batches[cut:]), row.stop, row.number)


def _is_done(connection: Connection, seq: int) -> bool:
    return connection.execute(select(evaluation.c.status).where(evaluation.c.seq == seq)).scalar() == "done"


def _set_range(connection: Connection, seq: int, start: int, stop: int) -> bool:
    """Set the range of this process; False where the evaluation is done. A process that was silent for too long, and
    whose lease was taken by one that has ended since, gets a lease again: nobody else works on the evaluation."""
    if _is_done(connection, seq):
        return False
    own = own_lease(connection, seq)
    if own is None:
        add_lease(connection, seq, shared=True, start=start, stop=stop)
        return True
    connection.execute(lease.update().where(lease.c.evaluation == seq, lease.c.number == own.number)
                       .values(start=start, stop=stop))
    return True


def _stored(connection: Connection, seq: int, batches: Collection[int]) -> frozenset[int]:
    """Those of these batches that are stored: each has one digest, which is stored with its responses."""
    if not batches:
        return frozenset()
    query = select(checksum.c.part).where(checksum.c.table == response.name, checksum.c.owner == str(seq),
                                          checksum.c.part.between(min(batches), max(batches)))
    return frozenset(connection.execute(query).scalars()) & frozenset(batches)
