"""Simulates the schedule of a large study: how long it takes to plan, and how near it is to the best one.

    python benchmarks/schedule.py                       10,000 cells on 100 GPUs
    python benchmarks/schedule.py --cells 1000 --workers 8 --write

It uses the queue that `aftertune run --workers` uses. The bound is the time below which no schedule can be: the
longest chain of cells, or the work of all cells divided by the workers. Times of cells are random, as those of a study
with bases of many sizes: each base has its evaluation, fine-tunes and their evaluations, some fine-tunes are made from
others without training, and some are deployed in two further forms.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from aftertune.pipeline.scheduling import CellJob, SimulatedRun, simulate
from document import write_section

SECTION = "schedule"


def study_cells(count: int, seed: int, tunings: int = 24) -> list[CellJob]:
    """So many cells, base after base, in the order of a study."""
    draw, jobs, base = random.Random(seed), list[CellJob](), 0
    while len(jobs) < count:
        jobs += _cells_of_base(draw, f"base{base}", tunings)
        base += 1
    return jobs[:count]


def _cells_of_base(draw: random.Random, base: str, tunings: int) -> Iterator[CellJob]:
    size = draw.lognormvariate(0.0, 0.8)
    yield CellJob(f"evaluate {base}", 300 * size, base=base, load=20 * size)
    names = [f"{base}-{number}" for number in range(tunings)]
    for number, name in enumerate(names):
        made = number % 6 == 5
        yield CellJob(f"tune {name}", 5.0 if made else 1800 * size * draw.uniform(0.3, 3.0),
                      (f"tune {names[number - 1]}",) if made else ())
    for name in names:
        needs = (f"tune {name}", f"evaluate {base}")
        yield CellJob(f"evaluate {name}", 300 * size * draw.uniform(0.9, 1.1), needs, base, 20 * size)
    for name in names[::8]:
        needed: tuple[str, ...] = (f"tune {name}", f"evaluate {name}")
        for form in ("merged", "gguf:q8_0"):
            yield CellJob(cell := f"deploy {name} {form}", 320 * size, needed)
            needed = (*needed[:2], cell)


@dataclass(frozen=True, slots=True)
class Measured:
    """One simulation. seconds: that it took; without: makespan of the same cells in the order of the study."""

    cells: int
    workers: int
    seconds: float
    run: SimulatedRun
    loads: int

    def row(self) -> str:
        """Its row of the table."""
        run = self.run
        return (f"| {self.cells:,} | {self.workers} | {self.seconds:.2f} s | {run.makespan / 3600:.2f} h | "
                f"{run.area / 3600:.2f} h | {run.critical / 3600:.2f} h | {run.makespan / run.bound:.3f} | "
                f"{self.loads:,} |")


def measure(count: int, workers: int, seed: int = 0) -> Measured:
    """Simulate once."""
    jobs = study_cells(count, seed)
    started = time.perf_counter()
    run = simulate(jobs, workers)
    seconds = time.perf_counter() - started
    return Measured(len(jobs), workers, seconds, run, _loads(jobs, run))


def _loads(jobs: list[CellJob], run: SimulatedRun) -> int:
    """How often a base was loaded for an evaluation."""
    base_of, loaded, loads = {job.name: job.base for job in jobs}, dict[int, str](), 0
    for cell in sorted(run.cells, key=lambda c: c.start):
        base = base_of[cell.name]
        loads += bool(base) and loaded.get(cell.worker, "") != base
        loaded[cell.worker] = base
    return loads


def table(measured: list[Measured]) -> str:
    """The table of the document."""
    head = ("| cells | workers | simulated in | makespan | all work / workers | longest chain | makespan / bound | "
            "bases loaded |\n|--:|--:|--:|--:|--:|--:|--:|--:|\n")
    return head + "\n".join(m.row() for m in measured)


def main() -> int:
    """Measure, and print or write the table. Exit code 1 where a schedule is more than a tenth above its bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--workers", type=int, nargs="+", default=[4, 16, 100])
    parser.add_argument("--write", action="store_true", help="write the section of docs/benchmarks.md")
    given = parser.parse_args()
    measured = [measure(count, workers) for count, workers in zip(given.cells, given.workers, strict=True)]
    text = table(measured)
    print(text)
    if given.write:
        write_section(SECTION, "## The schedule of a study on several workers\n\nWritten by `python "
                      "benchmarks/schedule.py --write`: a simulation with the queue that `aftertune run --workers` "
                      "uses, with random times of cells. No schedule is shorter than the bound, which is the longest "
                      f"chain of cells or all work divided by the workers.\n\n{text}")
    return int(any(m.run.makespan > 1.1 * m.run.bound for m in measured))


if __name__ == "__main__":
    if Path.cwd() != Path(__file__).parents[1] and "--write" in sys.argv:
        sys.exit("run it from the repository's folder, whose docs/benchmarks.md it writes")
    sys.exit(main())
