"""Simulate verdicts: how often they are wrong, how many items they take, and the time of an interim look.

    python benchmarks/verdicts.py                      1,000 permutations of each scenario; writes docs/benchmarks.md
    python benchmarks/verdicts.py --permutations 4000
    python benchmarks/verdicts.py --part fixed         only the verdicts at a fixed number of items (fixed_verdicts.py)
    python benchmarks/verdicts.py --part words         only each word, also with early stopping (word_verdicts.py)
    python benchmarks/verdicts.py --part collapse      only the signs of collapse (collapse_signs.py)
    python benchmarks/verdicts.py --part average       only the average over tasks (average_verdicts.py)
    python benchmarks/verdicts.py --part changes       only what shows that a model moved (changes.py)

Sequential verdicts on the full run: a scenario is a task of N items with given numbers of gained and lost items; each
permutation is one order in which they may be drawn. A verdict is wrong if the full run would not give it. The reference
is the median of an earlier simulation of the same method (2,243 items on hellaswag, and so on); ours must be within
15 % of it. "Interval ever wrong" is how often the anytime-valid interval excludes the truth at any point up to the last
item. Exits with 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import changes
from aftertune.stats.sequential import (
    SCALES,
    Boundaries,
    PairedSequential,
    exact_verdict,
    log_factors,
    log_mixture,
    unreachable,
)
from average_verdicts import (
    AVERAGES,
    BESIDE,
    COMPARED,
    average_lines,
    beside_lines,
    broken_average,
    broken_beside,
    run_average,
    run_beside,
    run_compared,
)
from collapse_signs import COLLAPSES, broken_collapse, collapse_lines, run_collapse
from document import write_section
from fixed_verdicts import (
    FIXED,
    PLANS,
    SEED_WIDTHS,
    broken_fixed,
    fixed_lines,
    run_fixed,
    run_plan,
    run_width,
    share,
    width_lines,
)
from word_verdicts import EARLY_WORDS, FIXED_WORDS, WordScenario, broken_words, run_words, word_lines

ALPHA = 0.05
BATCH = 32
#: Permutations and items of one step of arithmetic: what fits into a processor's cache.
BLOCK, STEP = 64, 64
VERDICTS = ("lower", "higher", "within")
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """margin: a fraction. reference: the median that it is compared with, None if there is none."""

    name: str
    items: int
    gained: int
    lost: int
    margin: float
    reference: int | None = None

    @property
    def truth(self) -> str:
        return str(exact_verdict((self.gained - self.lost) / self.items, self.margin))

    def orders(self, permutations: int, seed: int) -> Floats:
        """Differences in random order, [permutations, items]."""
        values = np.zeros(self.items)
        values[:self.gained], values[self.gained:self.gained + self.lost] = 1, -1
        return np.random.default_rng(seed).permuted(np.tile(values, (permutations, 1)), axis=1)


SCENARIOS = (
    Scenario(name="gsm8k, 33.5 % to 3.7 %", items=1319, gained=8, lost=401, margin=0.01, reference=30),
    Scenario(name="mmlu computer science, 47 % to 34 %", items=100, gained=6, lost=19, margin=0.02, reference=66),
    Scenario(name="60 % to 55 %", items=1319, gained=66, lost=132, margin=0.01, reference=467),
    Scenario(name="hellaswag, 45.2 % to 45.6 %", items=10_042, gained=421, lost=383, margin=0.02, reference=2243),
    Scenario(name="60 % to 55 %", items=14_042, gained=702, lost=1404, margin=0.01, reference=702),
    Scenario(name="no change, 10 % differ", items=14_042, gained=702, lost=702, margin=0.01),
    Scenario(name="2 points lost", items=14_042, gained=561, lost=842, margin=0.01),
    Scenario(name="1.5 points lost", items=10_042, gained=427, lost=577, margin=0.01),
    Scenario(name="no change, 5 % differ", items=1319, gained=33, lost=33, margin=0.02),
    Scenario(name="one item beyond the margin", items=1319, gained=59, lost=73, margin=0.01),
    Scenario(name="one item within the margin", items=1319, gained=59, lost=72, margin=0.01),
)


class Streams:
    """Many orders of one task at once through the functions of `aftertune.stats.sequential`."""

    def __init__(self, orders: Floats, walls: Boundaries) -> None:
        self.orders, self.walls = orders, walls
        self.wealth = np.zeros((len(orders), walls.bound.size, SCALES.size))
        self.sums = np.zeros(len(orders))
        self.rejected = np.zeros((len(orders), walls.bound.size), dtype=bool)
        self.seen = 0

    def step(self) -> NDArray[np.bool_]:
        """Take the next items: which tests have rejected after each of them, [orders, items, tests]."""
        d = self.orders[:, self.seen:self.seen + STEP]
        items = self.orders.shape[1]
        wealth = self.wealth[:, None] + np.cumsum(log_factors(d, self.sums, self.seen, items, self.walls), axis=1)
        sums = self.sums[:, None] + np.cumsum(d, axis=1)
        out = unreachable(sums, self.seen + np.arange(1, d.shape[1] + 1), items, self.walls)
        now = (log_mixture(wealth) >= math.log(2 / ALPHA)) | out | self.rejected[:, None]
        now = np.logical_or.accumulate(now, axis=1)
        self.wealth, self.sums, self.rejected = wealth[:, -1], sums[:, -1], now[:, -1]
        self.seen += d.shape[1]
        return np.asarray(now)

    def keep(self, which: NDArray[np.bool_]) -> None:
        self.orders, self.wealth, self.sums, self.rejected = (
            a[which] for a in (self.orders, self.wealth, self.sums, self.rejected))


def verdicts(orders: Floats, margin: float) -> tuple[list[str], NDArray[np.int64]]:
    """Verdict of each order, and after how many items it fell."""
    streams, waiting = Streams(orders, Boundaries.around(margin)), np.arange(len(orders))
    items = orders.shape[1]
    totals = orders.sum(axis=1)
    exact = np.where(np.abs(totals) <= margin * items + 1e-9, 2, np.where(totals < 0, 0, 1))
    said, at = exact.copy(), np.full(len(orders), items, dtype=np.int64)
    while waiting.size and streams.seen < items:
        before = streams.seen
        up_low, up_high, down_low, down_high = np.moveaxis(streams.step(), -1, 0)
        claims = np.stack([down_low, up_high, up_low & down_high], axis=-1)
        first = claims.any(axis=-1).argmax(axis=1)
        done = claims.any(axis=(1, 2))
        said[waiting[done]] = claims[np.arange(len(claims)), first].argmax(axis=-1)[done]
        at[waiting[done]] = before + first[done] + 1
        waiting = waiting[~done]
        streams.keep(np.logical_not(done))
    return [VERDICTS[v] for v in said], at


def missed(orders: Floats) -> int:
    """Orders in which the interval excludes the truth at any item."""
    truth = float(orders[0].mean())
    streams = Streams(orders, Boundaries(np.array([1.0, -1.0]), np.full(2, truth)))
    while len(streams.orders) and streams.seen < orders.shape[1]:
        streams.step()
        streams.keep(np.logical_not(streams.rejected.any(axis=1)))
    return len(orders) - len(streams.orders)


def run(scenario: Scenario, permutations: int) -> dict[str, Any]:
    """All permutations of a scenario, in blocks; each block's seed is its number."""
    at: list[int] = []
    wrong = lost = 0
    for number, start in enumerate(range(0, permutations, BLOCK)):
        orders = scenario.orders(min(BLOCK, permutations - start), number)
        said, when = verdicts(orders, scenario.margin)
        wrong += sum(v != scenario.truth for v in said)
        at += when.tolist()
        lost += missed(orders)
    rounded = [min(scenario.items, BATCH * math.ceil(t / BATCH)) for t in at]
    return {"median": statistics.median(at), "q90": float(np.quantile(at, 0.9)), "wrong": wrong, "missed": lost,
            "batches": statistics.median(rounded), "permutations": permutations}


def look_seconds() -> float:
    """Median time of one look of `PairedSequential` at 32 more items of hellaswag."""
    scenario = SCENARIOS[3]
    d, times = scenario.orders(1, 0)[0], []
    watch = PairedSequential(scenario.items, scenario.margin)
    for start in range(0, 3200, BATCH):
        begun = time.perf_counter()
        watch.update(d[start:start + BATCH])
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def broken(scenario: Scenario, found: dict[str, Any]) -> Iterator[str]:
    """The bars that a scenario misses; a share may exceed 5 % by twice its Monte Carlo error."""
    n = found["permutations"]
    for what in ("wrong", "missed"):
        if found[what] / n > ALPHA + 2 * math.sqrt(ALPHA * (1 - ALPHA) / n):
            yield f"{scenario.name}: {what} {share(found[what], n, 2)}"
    if scenario.reference and abs(found["median"] / scenario.reference - 1) > 0.15:
        yield f"{scenario.name}: median {found['median']:g} is not within 15 % of {scenario.reference}"


def lines(results: Sequence[dict[str, Any]], look: float) -> Iterator[str]:
    """The section of docs/benchmarks.md."""
    yield "## Sequential verdicts on the full run"
    yield ""
    yield "Written by `python benchmarks/verdicts.py`; its docstring explains the simulation. No model is used."
    yield ""
    yield ("| scenario | items | margin | truth | wrong verdicts | interval ever wrong | median items | reference | "
           "9 in 10 within | in batches of 32 |")
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for scenario, found in zip(SCENARIOS, results, strict=False):
        n = found["permutations"]
        yield (f"| {scenario.name} | {scenario.items:,} | {100 * scenario.margin:g} | {scenario.truth} "
               f"| {share(found['wrong'], n, 2)} | {share(found['missed'], n, 2)} | **{found['median']:,.0f}** "
               f"| {scenario.reference or '–'} | {found['q90']:,.0f} | {found['batches']:,.0f} |")
    yield ""
    yield (f"{results[0]['permutations']:,} permutations each; ± is the Monte Carlo standard error; the level is 5 % "
           f"over all looks. A look at {BATCH} more items takes {1e6 * look:.0f} microseconds (median).")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="verdicts on simulated tasks")
    parser.add_argument("--permutations", type=int, default=1000)
    parser.add_argument("--comparisons", type=int, default=1000, help="of each scenario with a fixed number of items")
    parser.add_argument("--part", choices=("all", "sequential", "fixed", "words", "collapse", "average", "changes"),
                        default="all")
    given = parser.parse_args(argv)
    faults: list[str] = []
    if given.part in ("all", "sequential"):
        faults += sequential(given.permutations)
    if given.part in ("all", "fixed"):
        faults += fixed(given.comparisons)
    if given.part in ("all", "words"):
        faults += words(given.comparisons)
    if given.part in ("all", "collapse"):
        faults += collapse(10 * given.comparisons)
    if given.part in ("all", "average"):
        faults += average(given.comparisons)
    if given.part in ("all", "changes"):
        faults += changes.run(given.comparisons // 2)
    print("\n".join(faults) or "all bars are met")
    return 1 if faults else 0


def sequential(permutations: int) -> list[str]:
    """Simulate the sequential verdicts and write their section; returns the bars that were missed."""
    results: list[dict[str, Any]] = []
    faults: list[str] = []
    for scenario in SCENARIOS:
        begun = time.monotonic()
        found = run(scenario, permutations)
        results.append(found)
        faults += broken(scenario, found)
        print(f"{scenario.name} ({scenario.items:,} items): {found}, {time.monotonic() - begun:.0f} s", flush=True)
    look = look_seconds()
    if look > 0.001:
        faults.append(f"a look takes {1e3 * look:.2f} ms")
    write("verdicts", lines(results, look))
    return faults


def fixed(comparisons: int) -> list[str]:
    """Simulate the verdicts at a fixed number of items and write their section; returns the bars that were missed."""
    results: list[dict[str, Any]] = []
    faults: list[str] = []
    for scenario in FIXED:
        begun = time.monotonic()
        results.append(run_fixed(scenario, comparisons))
        faults += broken_fixed(scenario.name, results[-1])
        print(f"{scenario.part}, {scenario.name}: {results[-1]}, {time.monotonic() - begun:.0f} s", flush=True)
    plans = [run_plan(*plan, 10 * comparisons) for plan in PLANS]
    for plan, found in zip(PLANS, plans, strict=True):
        faults += broken_fixed(f"items for {plan}", found)
    widths = [run_width(width, comparisons) for width in SEED_WIDTHS]
    for width, found in zip(SEED_WIDTHS, widths, strict=True):
        if width.largest is None or width.recipes == 2:
            faults += broken_fixed(f"seeds {width}", {"moved": found["missed"], "comparisons": comparisons})
    write("fixed verdicts", iter([*fixed_lines(results, plans), "", *width_lines(widths)]))
    return faults


def words(comparisons: int) -> list[str]:
    """Simulate each word of a verdict and write the section; returns the bars that were missed."""
    results: list[tuple[WordScenario, dict[str, Any]]] = []
    faults: list[str] = []
    for scenario in (*FIXED_WORDS, *EARLY_WORDS):
        begun = time.monotonic()
        found = run_words(scenario, comparisons * (1 if scenario.early else 20))
        results.append((scenario, found))
        faults += broken_words(scenario, found)
        print(f"{scenario}: {found}, {time.monotonic() - begun:.0f} s", flush=True)
    write("words", word_lines(results))
    return faults


def collapse(comparisons: int) -> list[str]:
    """Simulate the signs of collapse and write their section; returns the bars that were missed."""
    results = [(scenario, run_collapse(scenario, comparisons)) for scenario in COLLAPSES]
    write("collapse", collapse_lines(results))
    return [fault for scenario, found in results for fault in broken_collapse(scenario, found)]


def average(comparisons: int) -> list[str]:
    """Simulate the average over tasks and write the section; returns the bars that were missed."""
    faults: list[str] = []
    compared = [run_compared(*case, comparisons) for case in COMPARED]
    found = []
    for scenario in AVERAGES:
        begun = time.monotonic()
        found.append(run_average(scenario, comparisons))
        faults += broken_average(scenario, found[-1])
        print(f"average, {scenario.name}: {found[-1]}, {time.monotonic() - begun:.0f} s", flush=True)
    together = [run_beside(*case, comparisons) for case in BESIDE]
    for case, result in zip(BESIDE, together, strict=True):
        faults += broken_beside(case, result)
    write("average", iter([*average_lines(compared, found), "", *beside_lines(together)]))
    return faults


def write(name: str, section: Iterator[str]) -> None:
    """Write a section of docs/benchmarks.md, and print it."""
    text = "\n".join(section) + "\n"
    write_section(name, text)
    print(text)


if __name__ == "__main__":
    sys.exit(main())
