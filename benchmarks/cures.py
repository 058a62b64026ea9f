"""Simulate cures: how often "cured" is claimed although it is not true, with and without other items to confirm it.

    python benchmarks/cures.py                         1,000 trials of each scenario; writes docs/benchmarks.md

A scenario has several models with true effects for which "cured" is false: either they gain nothing on the target, or
each of them loses exactly the margin on a task that should be kept. The items of a task are binary. The answers of the
models to one item agree as far as ``correlation`` says, as those of one fine-tune at several strengths do.

In each trial the functions of the program (`aftertune.cure.choosing`) choose a model on N items and judge it: once on
the same items, once on N other items, as the program does. A cure is claimed if the outcome is "confirmed". The last
scenarios look again until a model is confirmed, at other models on the same other items or at one model with more items
each time, with and without the correction for the number of looks. Exits with 1 if the program's way claims falsely in
more than 5 % of the trials.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from aftertune.cure.choosing import AskedTask, Goal, choose, confirm, measure
from document import write_section
from fixed_verdicts import share

ALPHA, MARGIN = 0.05, 5.0
GOAL = Goal({"kept": MARGIN}, "target")
Floats = NDArray[np.float64]
Random = np.random.Generator


@dataclass(frozen=True, slots=True, kw_only=True)
class CureScenario:
    """models: how many are tried. items: of each part. gain, loss: true effects on the target and on the kept task, as
    shares. correlation: of the changes of two models on one item. judged: models that are judged one after another on
    the items that confirm, until one is confirmed. sizes: of the parts, one after another, each with the items of the
    one before and more; empty: ``items`` alone."""

    name: str
    models: int
    items: int
    gain: float
    loss: float
    correlation: float = 0.0
    judged: int = 1
    sizes: tuple[int, ...] = ()


SCENARIOS = (
    CureScenario(name="nothing learned, independent models", models=10, items=200, gain=0.0, loss=0.0),
    CureScenario(name="nothing learned, strengths of one fine-tune", models=10, items=200, gain=0.0, loss=0.0,
                 correlation=0.7),
    CureScenario(name="loses the margin, independent models", models=10, items=200, gain=0.3, loss=MARGIN / 100),
    CureScenario(name="loses the margin, strengths of one fine-tune", models=10, items=200, gain=0.3,
                 loss=MARGIN / 100, correlation=0.7),
    CureScenario(name="loses the margin, a long search", models=40, items=400, gain=0.3, loss=MARGIN / 100),
    CureScenario(name="nothing learned, 5 models judged in turn", models=10, items=200, gain=0.0, loss=0.0, judged=5),
    CureScenario(name="loses the margin, 5 models judged in turn", models=10, items=200, gain=0.3, loss=MARGIN / 100,
                 judged=5),
    CureScenario(name="loses the margin, one model, four sizes", models=1, items=800, gain=0.3, loss=MARGIN / 100,
                 sizes=(100, 200, 400, 800)),
)


def changed(random: Random, scenario: CureScenario, effect: float, base_share: float, moved: float,
            correlation: float) -> tuple[Floats, Floats]:
    """The base's answers [items] and those of each model [models, items], as right (1) and wrong (0).

    effect: true difference; moved: share of the items that change without an effect, half of them to each side.
    """
    n, models = scenario.items, scenario.models
    base = (random.random(n) < base_share).astype(np.float64)
    common, own = random.normal(size=n), random.normal(size=(models, n))
    rank = ndtr(math.sqrt(correlation) * common + math.sqrt(1 - correlation) * own)  # uniform in [0, 1]
    lost = (moved / 2 + max(0.0, -effect)) / base_share
    gained = (moved / 2 + max(0.0, effect)) / (1 - base_share)
    return base, np.where(base == 1, rank >= lost, rank < gained).astype(np.float64)


def models_of(random: Random, scenario: CureScenario) -> list[list[AskedTask]]:
    """The values of each model on one part of the items. What is truly learned is learned by all models alike."""
    alike = 1.0 if scenario.gain else scenario.correlation
    target = changed(random, scenario, scenario.gain, 0.3, 0.15, alike)
    kept = changed(random, scenario, -scenario.loss, 0.6, 0.15 if scenario.loss else 0.04, scenario.correlation)
    return [[AskedTask(task=task, metric="acc", before=before, after=after[k], chance=0.25)
             for task, (before, after) in (("target", target), ("kept", kept))] for k in range(scenario.models)]


def claims(random: Random, scenario: CureScenario) -> tuple[bool, bool, bool]:
    """Whether "cured" is claimed: from the items that chose; from other items, as the program does; from other items
    without the correction for the number of looks."""
    first, second = models_of(random, scenario), models_of(random, scenario)
    same = program = uncorrected = False
    tries = 0
    for size in scenario.sizes or (scenario.items,):
        choosing, confirming = ([of_first(values, size) for values in part] for part in (first, second))
        measured = [measure(values, GOAL) for values in choosing]
        remaining = list(range(scenario.models))
        for _ in range(scenario.judged):
            number = choose([measured[k] for k in remaining], GOAL)
            if number is None:
                break
            chosen, tries = remaining.pop(number), tries + 1
            same |= confirm(choosing[chosen], GOAL).outcome == "confirmed"
            program |= confirm(confirming[chosen], GOAL, tries=tries).outcome == "confirmed"
            uncorrected |= confirm(confirming[chosen], GOAL).outcome == "confirmed"
    return same, program, uncorrected


def of_first(values: Sequence[AskedTask], size: int) -> list[AskedTask]:
    """The values of a model on the first ``size`` items."""
    return [replace(task, before=task.before[:size], after=task.after[:size]) for task in values]


def run_cures(scenario: CureScenario, trials: int) -> list[int]:
    """Number of false claims in each of the three ways."""
    random = np.random.default_rng(0)
    return [int(n) for n in np.sum([claims(random, scenario) for _ in range(trials)], axis=0)]


def broken_cures(scenario: CureScenario, found: Sequence[int], trials: int) -> Iterator[str]:
    """The bar that a scenario misses; a share may exceed 5 % by twice its Monte Carlo error."""
    if found[1] / trials > ALPHA + 2 * math.sqrt(ALPHA * (1 - ALPHA) / trials):
        yield f"{scenario.name}: claimed falsely in {share(found[1], trials, 2)}"


def cure_lines(results: Sequence[Sequence[int]], trials: int) -> Iterator[str]:
    """The section of docs/benchmarks.md."""
    yield "## False cures"
    yield ""
    yield (f"Written by `python benchmarks/cures.py --trials {trials}`; its docstring explains the simulation. "
           "No model is used. How often \"cured\" is claimed where it is never true:")
    yield ""
    yield ("| scenario | models tried | items of each part | on the items that chose "
           "| **on other items, as aftertune does** | on other items, not corrected for the number of looks |")
    yield "|---|---|---|---|---|---|"
    for scenario, (same, program, uncorrected) in zip(SCENARIOS, results, strict=True):
        items = ", then ".join(map(str, scenario.sizes)) or str(scenario.items)
        yield (f"| {scenario.name} | {scenario.models} | {items} | {share(same, trials, 1)} "
               f"| **{share(program, trials, 1)}** | {share(uncorrected, trials, 1)} |")
    yield ""
    yield f"{trials:,} trials each; ± is the Monte Carlo standard error. The margin is {MARGIN:g} points."


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="false cures on simulated tasks")
    parser.add_argument("--trials", type=int, default=1000)
    given = parser.parse_args(argv)
    results: list[list[int]] = []
    faults: list[str] = []
    for scenario in SCENARIOS:
        begun = time.monotonic()
        results.append(run_cures(scenario, given.trials))
        faults += broken_cures(scenario, results[-1], given.trials)
        print(f"{scenario.name}: {results[-1]}, {time.monotonic() - begun:.0f} s", flush=True)
    text = "\n".join(cure_lines(results, given.trials)) + "\n"
    write_section("cures", text)
    print(text)
    print("\n".join(faults) or "all bars are met")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
