"""What shows that a model moved: accuracy, or log-probabilities, on real answers; and how often it is shown falsely.

    python benchmarks/changes.py                 about three minutes; writes a section of docs/benchmarks.md
    python benchmarks/changes.py --draws 50

The answers are those of benchmarks/active_answers.py: SmolLM2-135M-Instruct and its tunings. z is that of the first 400
drawn items. "Moved" is the share of draws (with replacement) in which `aftertune.stats.log_probability` says so, of the
log-probability of the right text; "false" is the same after the mean change was subtracted from every item, so that the
model did not move on average. Accuracy is "changed" where Tango's 95 % interval is off 0. Exits with 1 if more than 5 %
are false, beyond the Monte Carlo error.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from active_answers import BASE, TUNINGS, TaskAnswers, load
from aftertune.comparison.answer_changes import position_table
from aftertune.comparison.log_probability import calibration_shift, choice_differences, task_values, text_differences
from aftertune.comparison.pairing import Pair
from aftertune.stats.log_probability import log_probability_move
from aftertune.stats.paired import tango_interval
from aftertune.values import (
    Answer,
    Asked,
    CalibrationShift,
    LogProbabilityMove,
    PositionTable,
    Response,
    TaskSettings,
)
from document import write_section

ITEMS, SIZES, ALPHA = 400, (16, 32, 100), 0.05
TITLES = {"hellaswag": "HellaSwag", "arc_easy": "ARC Easy"}
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One tuning on one task. accuracy: z of the change; shown: items -> (accuracy changed, moved, falsely moved), as
    shares of the draws."""

    name: str
    accuracy: float
    choice: LogProbabilityMove
    text: LogProbabilityMove
    calibration: CalibrationShift
    positions: PositionTable
    shown: dict[int, tuple[float, float, float]]


def pair_of(task: str, answers: TaskAnswers, model: str, at: NDArray[np.int64]) -> Pair:
    """The answers of base and tuning to the items ``at``, as a comparison has them."""
    def side(name: str) -> list[Answer]:
        rows = answers.loglikelihoods[name]
        return [Answer(task=task, index=int(i), item=str(i), metrics={"acc_norm,none": 0.0},
                       responses=tuple(Response(logprob=float(v)) for v in rows[i][np.isfinite(rows[i])])) for i in at]

    choices = np.isfinite(answers.loglikelihoods[BASE])
    questions = {str(i): Asked(choices=tuple("x" * int(n) for n in answers.lengths[i][choices[i]]),
                               gold=(int(answers.gold[i]),)) for i in at}
    settings = TaskSettings(task=task, version="", output_type="multiple_choice", num_fewshot=0, n=len(at),
                            n_total=len(at), split="", data="", items="", prompts="", primary="acc_norm,none",
                            higher_is_better={})
    base, tuned = side(BASE), side(model)
    return Pair(settings, base, tuned, base, tuned, questions=questions)


def measured(task: str, answers: TaskAnswers, model: str, draws: int) -> Row:
    """The row of one tuning on one task."""
    own, random = answers.of(model), np.random.default_rng(0)
    pair = pair_of(task, own, model, random.permutation(own.items)[:ITEMS])
    values = [task_values(pair, None)]
    choice, text, shift = choice_differences(values), text_differences(values), calibration_shift(values)
    positions = position_table(pair)
    assert positions is not None
    assert choice is not None
    assert text is not None
    assert shift is not None
    whole = text_differences([task_values(pair_of(task, own, model, np.arange(own.items)), None)])
    assert whole is not None
    d, flips = whole[0][0], own.outcome(model) - own.outcome(BASE)
    right = np.array([float(b.right) - float(a.right) for a, b, _ in values[0].choices])
    z = float(right.mean() / (right.std(ddof=1) / math.sqrt(right.size)))
    return Row(name=f"{TITLES[task]}, {model}", accuracy=z, choice=log_probability_move("choice", *choice),
               text=log_probability_move("text", *text), calibration=shift, positions=positions,
               shown={n: _shown(d, flips, n, draws, random) for n in SIZES})


def _shown(d: Floats, flips: Floats, items: int, draws: int, random: np.random.Generator) -> tuple[float, float, float]:
    """The shares of draws of ``items`` items in which a change is shown."""
    counts = np.zeros(3)
    for _ in range(draws):
        at = random.integers(0, d.size, items)
        low, high = tango_interval(int((flips[at] > 0).sum()), int((flips[at] < 0).sum()), items)
        counts += (not low <= 0 <= high, log_probability_move("text", [d[at]]).moved,
                   log_probability_move("text", [d[at] - d.mean()]).moved)
    accuracy, moved, false = counts / draws
    return float(accuracy), float(moved), float(false)


def lines(rows: Sequence[Row], draws: int) -> Iterator[str]:
    """The section of docs/benchmarks.md."""
    yield "## What shows that a model moved"
    yield ""
    yield "Written by `python benchmarks/changes.py`; its docstring explains the columns."
    yield ""
    yield f"| tuning | z of accuracy, {ITEMS} items | z of the right choice | z of the right text | " + " | ".join(
        f"{n} items: accuracy changed, moved, false" for n in SIZES) + " |"
    yield "|---|---|---|---|" + "---|" * len(SIZES)
    for row in rows:
        yield f"| {row.name} | {row.accuracy:+.1f} | {row.choice.z or 0:+.1f} | {row.text.z or 0:+.1f} | " + " | ".join(
            ", ".join(f"{100 * share:.0f} %" for share in row.shown[n]) for n in SIZES) + " |"
    yield ""
    yield f"| calibration on {ITEMS} items | probability of the chosen answer | accuracy | Brier score | ECE |"
    yield "|---|---|---|---|---|"
    for row in rows:
        base, tuned = row.calibration.base, row.calibration.tuned
        errors = [f"{100 * side.error.debiased:.1f}" if side.error else "–" for side in (base, tuned)]
        shares = [f"{100 * getattr(base, f):.1f} → {100 * getattr(tuned, f):.1f} %" for f in ("confidence", "accuracy")]
        yield (f"| {row.name} | {' | '.join(shares)} | {base.brier:.3f} → {tuned.brier:.3f} | {' → '.join(errors)} |")
    yield ""
    yield f"| choices on {ITEMS} items, by position | right | base | tuned |"
    yield "|---|---|---|---|"
    for row in rows:
        counts = (row.positions.right, row.positions.base, row.positions.tuned)
        yield f"| {row.name} | {' | '.join(', '.join(map(str, side)) for side in counts)} |"
    yield ""
    yield f"{draws:,} draws of each number of items; at {100 * ALPHA:.0f} %."


def run(draws: int) -> list[str]:
    """Measure all tunings, and write the section; returns the bars that were missed."""
    rows = [measured(task, answers, model, draws) for task, answers in load() for model in TUNINGS
            if model in answers.loglikelihoods]
    text = "\n".join(lines(rows, draws)) + "\n"
    write_section("changes", text)
    print(text)
    limit = ALPHA + 2.5 * math.sqrt(ALPHA * (1 - ALPHA) / draws)
    return [f"falsely moved too often: {row.name}: {100 * false:.1f} % of {n} items" for row in rows
            for n, (_, _, false) in row.shown.items() if false > limit]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="what shows that a model moved, on real answers")
    parser.add_argument("--draws", type=int, default=500, help="of each number of items")
    missed = run(parser.parse_args().draws)
    print("\n".join(missed) or "all bars are met")
    sys.exit(1 if missed else 0)
