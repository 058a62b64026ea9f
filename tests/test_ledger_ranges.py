"""Which batches of an evaluation each of its processes computes. The processes of these tests are on other machines,
where only the heartbeat says whether they live."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ledger_cases as cases
from aftertune.cli.runs import entries
from aftertune.errors import ResourceError, StorageError
from aftertune.ledger import Ledger
from aftertune.ledger.lease import LEASE_TIMEOUT, Process
from aftertune.ledger.ranges import FINISH, SETUP
from aftertune.ledger.schema import lease
from aftertune.values import Response
from aftertune.view.rendering import progress_text

COSTS = dict.fromkeys(range(8), 100)


class Machines:
    """The ledger, as processes of several machines see it."""

    def __init__(self, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ledger, self.name = ledger, "a"
        monkeypatch.setattr(Process, "own", lambda: Process(1, self.name, f"boot {self.name}", "1"))

    def on(self, name: str) -> Ledger:
        self.name = name
        return self.ledger

    def join(self, name: str) -> Ledger:
        self.on(name).acquire("e1", shared=True, join=True)
        return self.ledger

    def take(self, name: str, costs: dict[int, int] | None = None) -> tuple[int, ...]:
        return self.on(name).take_range("e1", costs or COSTS).batches

    def save(self, name: str, *batches: int) -> None:
        for batch in batches:
            self.on(name).save_batch("e1", batch, {batch: Response(logprob=-float(batch))})

    def silence(self, name: str) -> None:
        """The process has sent no heartbeat for so long that it counts as dead."""
        with self.ledger.database.write() as connection:
            connection.execute(lease.update().where(lease.c.host == name).values(
                heartbeat=lease.c.heartbeat - (LEASE_TIMEOUT + 5)))


@pytest.fixture
def machines(place: Path | str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machines]:
    with Ledger(place) as ledger:
        ledger.open_evaluation(cases.evaluation(), [])
        yield Machines(ledger, monkeypatch)


def test_one_process_takes_all_and_a_joining_one_half_of_what_is_left(machines: Machines) -> None:
    machines.join("a")
    assert machines.take("a") == tuple(range(8))
    assert machines.on("a").range_stop("e1") == 8
    machines.save("a", 0, 1)
    machines.join("b")
    assert machines.take("b") == (5, 6, 7)  # a works on 2
    assert machines.on("a").range_stop("e1") == 5
    machines.join("c")
    assert machines.take("c") == (4,)
    machines.save("c", 4)
    assert machines.take("c") == (7,)  # b has the largest range now


def test_the_batch_that_a_process_works_on_is_never_taken(machines: Machines) -> None:
    machines.join("a")
    machines.take("a", {0: 1, 1: 1})
    machines.join("b")
    assert machines.take("b", {0: 1, 1: 1}) == (1,)
    machines.join("c")
    assert machines.take("c", {0: 1, 1: 1}) == ()
    machines.save("a", 0)
    assert machines.take("a", {0: 1, 1: 1}) == ()
    machines.save("b", 1)
    taken = machines.on("c").take_range("e1", {0: 1, 1: 1})
    assert (taken.batches, taken.stored, taken.others) == ((), {0, 1}, 2)


def test_ranges_are_cut_by_cost(machines: Machines) -> None:
    costs = {0: 10, 1: 10, 2: 10, 3: 10, 4: 40}
    machines.join("a")
    machines.take("a", costs)
    machines.join("b")
    assert machines.take("b", costs) == (4,)


def test_what_a_process_had_is_free_once_it_counts_as_dead_and_the_rest_of_it_before(machines: Machines) -> None:
    machines.join("a")
    machines.take("a")
    machines.join("b")
    machines.save("b", *machines.take("b"))
    taken: list[int] = []
    while more := machines.take("b"):  # the rest of its range, half by half
        machines.save("b", *more)
        taken += more
    assert sorted(taken) == [1, 2, 3]
    machines.silence("a")
    assert machines.take("b") == (0,)
    with pytest.raises(ResourceError, match="evaluation e1 is in use by process 1 on b"):
        machines.save("a", 0)  # it was only slow: another one computes its batch now
    machines.save("b", 0)
    assert machines.on("b").take_range("e1", COSTS).stored == set(COSTS)


def test_a_finished_evaluation_has_nothing_to_take_and_refuses_nobody(machines: Machines) -> None:
    """Who finishes it releases the leases of all. One that opened it before then may take a lease after that."""
    machines.join("a")
    machines.join("b")
    machines.on("b").finish_evaluation(cases.evaluation(), [], [])
    machines.join("c")
    assert not machines.on("a").take_step("e1", SETUP)
    assert machines.take("a") == ()
    machines.on("a").beat("e1")
    assert machines.on("a").change_schedule("e1", lambda _: {"plan": "x"}) == {"plan": "x"}  # as without c
    for name in "ac":
        machines.on(name).leave("e1")
    assert machines.on("a").is_done("e1")


def test_a_process_goes_on_after_one_that_took_its_lease_has_left(machines: Machines) -> None:
    """A computer was asleep for so long that another one took the evaluation over, and was stopped."""
    machines.join("a")
    machines.take("a")
    machines.save("a", 0)
    machines.silence("a")
    machines.join("b")
    machines.save("b", 1)
    machines.on("b").leave("e1")
    assert machines.on("a").range_stop("e1") is None
    assert machines.take("a") == tuple(range(2, 8))
    assert machines.on("c").processes() == {"e1": 1}
    with pytest.raises(ResourceError, match="in use by process 1 on a"):
        machines.on("c").acquire("e1")
    machines.silence("a")
    machines.join("b")
    machines.on("b").leave("e1")
    assert machines.on("a").take_step("e1", FINISH)
    machines.on("a").finish_evaluation(cases.evaluation(), [], [])
    assert machines.take("a") == ()


def test_stored_batches_are_left_out_of_a_range(machines: Machines) -> None:
    machines.join("a")
    machines.save("a", 1, 3)
    machines.on("a").leave("e1")
    machines.join("b")
    assert machines.take("b") == (0, 2, 4, 5, 6, 7)


def test_a_step_is_taken_by_one_process_and_by_another_once_that_is_dead_or_has_ended_it(machines: Machines) -> None:
    machines.join("a")
    machines.join("b")
    assert machines.on("a").take_step("e1", SETUP)
    assert machines.on("a").take_step("e1", SETUP)
    assert not machines.on("b").take_step("e1", SETUP)
    machines.take("a")
    assert machines.on("b").take_step("e1", SETUP)
    assert machines.on("a").take_step("e1", FINISH)
    assert not machines.on("b").take_step("e1", FINISH)
    machines.silence("a")
    assert machines.on("b").take_step("e1", FINISH)
    machines.on("b").finish_evaluation(cases.evaluation(), [], [])
    assert not machines.on("b").take_step("e1", FINISH)


def test_only_those_that_share_it_are_joined(machines: Machines) -> None:
    machines.on("a").acquire("e1")  # an engine that runs in one process
    with pytest.raises(ResourceError, match="in use by process 1 on a") as refused:
        machines.join("b")
    assert "--join" not in str(refused.value)
    machines.on("a").leave("e1")
    machines.on("a").acquire("e1", shared=True)
    with pytest.raises(ResourceError, match="to work on it together, add --join"):
        machines.on("b").acquire("e1", shared=True)
    machines.join("b")
    with pytest.raises(ResourceError, match="in use"):
        machines.on("c").acquire("e1")
    assert machines.on("c").processes() == {"e1": 2}
    assert machines.on("c").held() == {"e1"}


def test_readers_see_how_many_processes_work_on_it(machines: Machines) -> None:
    machines.join("a")
    assert progress_text(machines.on("c").running()[0]) == "preparing"
    machines.join("b")
    machines.save("b", 0, 1)
    [running] = machines.on("c").running()
    assert (running.processes, running.done, len(running.hosts)) == (2, 2, 2)
    assert progress_text(running) == "2 responses, 2 processes"
    assert [e.parts[-1] for e in entries(machines.ledger)] == ["2 processes"]
    machines.silence("a")
    assert machines.ledger.running()[0].processes == 1


def test_the_last_process_deletes_what_nobody_answered(machines: Machines) -> None:
    machines.join("a")
    machines.join("b")
    machines.on("a").leave("e1", drop=True)
    assert [e.id for e in machines.ledger.evaluations()] == ["e1"]
    machines.on("b").leave("e1", drop=True)
    assert machines.ledger.evaluations() == []
    machines.on("c").leave("e1")  # it is gone


def test_changes_of_the_schedule_are_not_lost(machines: Machines) -> None:
    """Each process changes what is stored, not what it read before."""
    def split(number: int) -> Any:
        return lambda stored: {"splits": [*(stored or {}).get("splits", ()), number]}

    machines.join("a")
    machines.join("b")
    for number, name in enumerate("abab"):
        machines.on(name).change_schedule("e1", split(number))
    assert machines.ledger.schedule("e1") == {"splits": [0, 1, 2, 3]}
    machines.on("a").finish_evaluation(cases.evaluation(), [], [])
    assert machines.on("b").change_schedule("e1", split(4)) == {"splits": [0, 1, 2, 3]}  # it was slower
    assert machines.ledger.schedule("e1") == {"splits": [0, 1, 2, 3]}


def test_the_responses_of_others_are_checked_when_they_are_read(machines: Machines) -> None:
    machines.join("a")
    machines.save("a", 0, 1, 2)
    assert machines.ledger.batch_responses("e1", {2, 1}) == {1: Response(logprob=-1.0), 2: Response(logprob=-2.0)}
    with machines.ledger.database.write() as connection:
        connection.exec_driver_sql("UPDATE response SET logprob = 0.5 WHERE batch = 1")
    with pytest.raises(StorageError, match="e1 is damaged in the ledger: the rows of batch 1 in the table `response`"):
        machines.ledger.batch_responses("e1", {1, 2})
