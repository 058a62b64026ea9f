"""The schedule of a study's cells: order, bases that stay loaded, lost workers, and how near it is to the best one."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from aftertune.pipeline.scheduling import CellJob, CellQueue, longest_paths, simulate, workers_that_fit


def jobs_of(*rows: tuple[str, float, tuple[str, ...], str]) -> list[CellJob]:
    return [CellJob(name, seconds, needs, base, load=1.0 if base else 0.0) for name, seconds, needs, base in rows]


def name(job: CellJob | None) -> str:
    return job.name if job else ""


STUDY = jobs_of(("evaluate b", 2, (), "b"), ("tune x", 8, (), ""), ("tune y", 3, (), ""),
                ("evaluate x", 2, ("tune x", "evaluate b"), "b"), ("evaluate y", 2, ("tune y", "evaluate b"), "b"))


def test_the_longest_chain_goes_first() -> None:
    assert longest_paths(STUDY) == {"evaluate b": 4, "tune x": 10, "tune y": 5, "evaluate x": 2, "evaluate y": 2}
    queue = CellQueue(STUDY, workers=2)
    assert [job.name for job in (queue.take("1"), queue.take("2"), queue.take("1")) if job] == [
        "tune x", "tune y", "evaluate b"]
    assert queue.take("2") is None, "the others wait"
    for done in ("evaluate b", "tune y"):
        queue.finish(done)
    assert name(queue.take("2")) == "evaluate y"


def test_a_worker_keeps_its_base_as_long_as_nothing_is_critical() -> None:
    many = jobs_of(*((f"{base}{n}", 5, (), base) for n in range(6) for base in "pq"))
    queue = CellQueue(many, workers=2)
    taken = [queue.take("1").base for _ in range(5)]  # type: ignore[union-attr]
    assert taken == ["p"] * 5
    chain = jobs_of(("p0", 5, (), "p"), ("p1", 5, (), "p"), ("q0", 5, (), "q"), ("q1", 50, ("q0",), "q"))
    queue = CellQueue(chain, workers=2)
    queue.loaded["1"] = "p"
    assert name(queue.take("1")) == "q0", "all others together end before this chain"


def test_the_cell_of_a_lost_worker_is_given_out_again() -> None:
    queue = CellQueue(STUDY, workers=1)
    first = queue.take("1")
    assert first is not None
    before = queue.rest
    queue.forget("1")
    queue.give_back(first.name)
    assert queue.rest == before + first.seconds
    assert queue.take("2") == first


def test_a_failed_cell_takes_those_that_need_it_with_it() -> None:
    queue = CellQueue(STUDY, workers=1)
    assert queue.fail("evaluate b") == ["evaluate x", "evaluate y"]
    left = []
    while (job := queue.take("1")) is not None:
        queue.finish(job.name)
        left.append(job.name)
    assert (left, len(queue)) == (["tune x", "tune y"], 0)


def random_study(seed: int, bases: int, tunings: int) -> list[CellJob]:
    """Cells as a study has them, of random times."""
    draw, jobs = random.Random(seed), list[CellJob]()
    for base in range(bases):
        size = draw.lognormvariate(0, 1)
        jobs.append(CellJob(f"evaluate b{base}", 60 * size, base=f"b{base}", load=2 * size))
        for n in range(tunings):
            name = f"b{base}-{n}"
            jobs.append(CellJob(f"tune {name}", 300 * size * draw.uniform(0.5, 2)))
            jobs.append(CellJob(f"evaluate {name}", 60 * size, (f"tune {name}", f"evaluate b{base}"), f"b{base}",
                                2 * size))
    return jobs


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("workers", [1, 3, 16])
def test_a_schedule_keeps_the_order_and_is_near_the_bound(seed: int, workers: int) -> None:
    jobs = random_study(seed, bases=5, tunings=12)
    result = simulate(jobs, workers)
    ends, starts = {c.name: c.end for c in result.cells}, {c.name: c.start for c in result.cells}
    assert sorted(ends) == sorted(j.name for j in jobs)
    assert all(ends[need] <= starts[j.name] for j in jobs for need in j.needs)
    for worker in range(workers):
        own = sorted((c.start, c.end) for c in result.cells if c.worker == worker)
        assert all(a[1] <= b[0] for a, b in pairwise(own))
    longest = max(j.seconds for j in jobs)
    assert result.bound <= result.makespan <= result.area * 1.05 + result.critical + longest
    if workers < 16:
        assert result.makespan <= 1.1 * result.bound


def test_workers_share_the_memory() -> None:
    assert workers_that_fit([6, 2, 2, 2], 4, [10]) == 3
    assert workers_that_fit([6, 2, 2, 2], 4, [12]) == 4
    assert workers_that_fit([6, 6], 2, [10]) == 1
    assert workers_that_fit([6, 6, 6, 6], 4, [10, 10]) == 2
    assert workers_that_fit([20], 4, [10]) == 1, "the cell itself says that there is too little"
