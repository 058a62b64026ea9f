"""The average over the tasks of a comparison: what is in it, its error, early stopping, the gate, and its words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from aftertune.api.objects import comparison_object
from aftertune.comparison import compare
from aftertune.comparison.gate import gate
from aftertune.errors import InputError
from aftertune.ledger import Ledger
from aftertune.report import gate_text, terminal_table
from aftertune.report.sentences import observations
from aftertune.stats.sequential import LOOKS, PairedSequential
from aftertune.values import RULES, Comparison, ComparisonRow, digest
from early_cases import ADAPTED, BASE, changed, drawn, settings, store
from test_comparison import evaluated, group_scores, right


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.db") as opened:
        yield opened


def average(comparison: Comparison) -> ComparisonRow:
    return next(r for r in comparison.rows if r.average_of)


def two_models(ledger: Ledger, tasks: dict[str, tuple[list[float], list[float]]], **more: dict[str, object]) -> None:
    """A base and its adapter. more: settings of a task by its name."""
    for name, model, side in (("base", BASE, 0), ("tuned", ADAPTED, 1)):
        evaluated(ledger, name, model, [(settings(t, len(v[0]), **more.get(t, {})), v[side])
                                        for t, v in tasks.items()])


def flipped(n: int, gained: int, lost: int) -> tuple[list[float], list[float]]:
    """Answers of two models; the base has 60 % right."""
    base, tuned = changed(n, 0.6, gained, lost)
    return list(map(float, base)), list(map(float, tuned))


def test_tasks_that_prove_nothing_alone_are_kept_on_average(ledger: Ledger) -> None:
    two_models(ledger, {f"t{k}": flipped(600, 30, 30) for k in range(6)})
    found = compare("base", "tuned", ledger=ledger)
    assert {r.told for r in found.rows if r.primary and not r.average_of} == {"undecided"}
    row = average(found)
    assert (row.task, row.told, row.n, row.n_total, row.family_size) == ("average", "kept", 3600, 3600, 1)
    assert row.average_of == tuple(f"t{k}" for k in range(6))
    assert "average over 6 tasks, each with the same weight (t0, t1, t2, t3, t4, t5)" in row.note


def test_each_task_has_the_same_weight_and_the_error_is_stratified(ledger: Ledger) -> None:
    sizes = {"small": (100, 4, 9), "large": (900, 40, 30)}
    two_models(ledger, {t: flipped(*v) for t, v in sizes.items()})
    row = average(compare("base", "tuned", ledger=ledger))
    assert row.delta == pytest.approx((-5 / 100 + 10 / 900) / 2)
    variances = [np.var([1] * g + [-1] * m + [0] * (n - g - m), ddof=1) / n / 4 for n, g, m in sizes.values()]
    df = sum(variances) ** 2 / (variances[0] ** 2 / 99 + variances[1] ** 2 / 899)
    half = stats.t.ppf(0.975, df) * np.sqrt(sum(variances))
    assert row.low <= row.delta - half + 1e-12
    assert row.low == pytest.approx(row.delta - half, abs=0.02)
    assert row.high >= row.delta + half - 1e-12
    assert df < 120, "the error is that of the small task, so pooled degrees of freedom (998) would be wrong"


def test_what_is_not_in_it(ledger: Ledger) -> None:
    """A group is one task; targets, tasks at the floor and metrics in their own unit are left out, and named."""
    law, maths = (settings(n, 90, groups=("mmlu",)) for n in ("law", "maths"))
    tasks = [law, maths, settings("arc", 100), settings("own", 100, target=True), settings("floor", 100),
             settings("judge", 100, chance=None)]
    base = {"law": right(60, 90), "maths": right(50, 90), "arc": right(70, 100), "own": right(10, 100),
            "floor": right(25, 100), "judge": [3.0, 5.0] * 50}
    tuned = base | {"law": right(30, 90), "own": right(90, 100)}
    for name, model, values in (("base", BASE, base), ("tuned", ADAPTED, tuned)):
        evaluated(ledger, name, model, [(t, values[t.task]) for t in tasks],
                  scores=(group_scores([law, maths], values, "mmlu"),))
    row = average(compare("base", "tuned", ledger=ledger))
    assert row.average_of == ("mmlu", "arc")
    assert row.delta == pytest.approx(-30 / 180 / 2)
    assert "left out, target task: own; at the floor: floor; no share: judge" in row.note


def test_fewer_than_two_tasks_have_no_average(ledger: Ledger) -> None:
    two_models(ledger, {"t": flipped(300, 5, 5), "own": flipped(300, 5, 5)}, own={"target": True})
    assert not any(r.average_of for r in compare("base", "tuned", ledger=ledger).rows)
    with pytest.raises(InputError, match="fewer than two tasks on which something can be lost"):
        gate("base", "tuned", {"average": .02}, ledger=ledger)


def test_the_same_document_in_two_tasks_is_one_cluster(ledger: Ledger) -> None:
    same = {i: f"document {i}" for i in range(400)}
    values = {t: flipped(400, 40, 10) for t in ("a", "b")}
    for name, model, side in (("base", BASE, 0), ("tuned", ADAPTED, 1)):
        evaluated(ledger, name, model, [(settings(t, 400), v[side]) for t, v in values.items()],
                  hashes={"a": same, "b": same})
    twice = average(compare("base", "tuned", ledger=ledger))
    assert "(400 clusters)" in twice.note
    for name, model, side in (("other base", BASE, 0), ("other", ADAPTED, 1)):
        evaluated(ledger, name, model, [(settings(t, 400), v[side]) for t, v in values.items()])
    once = average(compare("other base", "other", ledger=ledger))
    assert (twice.high - twice.low) / (once.high - once.low) == pytest.approx(np.sqrt(2), abs=0.05)


def test_a_loss_behind_it_is_named(ledger: Ledger) -> None:
    two_models(ledger, {"lost": flipped(600, 0, 60), **{f"t{k}": flipped(600, 90, 40) for k in range(3)}})
    found = compare("base", "tuned", ledger=ledger)
    assert {r.task: r.told for r in found.rows if r.task in ("lost", "average")} == {"lost": "forgot",
                                                                                     "average": "better"}
    assert average(found).note.endswith("a loss on lost is proven all the same")


def test_its_margin_and_the_id_of_the_comparison(ledger: Ledger) -> None:
    two_models(ledger, {"a": flipped(600, 30, 30), "b": flipped(600, 30, 30)})
    found = compare("base", "tuned", margins={"*": .05}, ledger=ledger)
    assert average(found).margin == .05
    assert found.id == "c-" + digest(["e-base", "e-tuned", {"a": .05, "b": .05}])[:10], "as before there was a row"
    own = compare("base", "tuned", margins={"*": .05, "average": .01}, ledger=ledger)
    assert (average(own).margin, own.id == found.id) == (.01, False)


def test_a_comparison_that_was_stored_without_it_stays_as_it_is(ledger: Ledger) -> None:
    two_models(ledger, {"a": flipped(600, 30, 30), "b": flipped(600, 30, 30)})
    now = compare("base", "tuned", ledger=ledger, save=False)
    assert now.rules == RULES == 4
    before = replace(now, rules=3, rows=tuple(r for r in now.rows if not r.average_of))
    ledger.save_comparison(before)
    assert compare("base", "tuned", ledger=ledger) == before


def test_a_task_of_that_name_keeps_it(ledger: Ledger) -> None:
    two_models(ledger, {"average": flipped(600, 30, 30), "b": flipped(600, 30, 30)})
    rows = [r for r in compare("base", "tuned", ledger=ledger).rows if r.primary]
    assert [(r.task, bool(r.average_of)) for r in rows] == [("average", False), ("b", False),
                                                           ("average of tasks", True)]


# --- Early stopping ---

def test_a_task_that_stopped_early_stays_in_it_with_an_interval_for_every_look(ledger: Ledger) -> None:
    """Left out, the average of the others would be called kept, though the task that stopped lost a lot."""
    values = {"lost": changed(1000, .6, 10, 300), "a": changed(1000, .6, 30, 30), "b": changed(1000, .6, 30, 30)}
    store(ledger, "base", BASE, {t: v[0] for t, v in values.items()})
    store(ledger, "tuned", ADAPTED, {t: v[1] for t, v in values.items()}, used={"lost": 64, "a": 400, "b": 400})
    found = compare("base", "tuned", ledger=ledger)
    row = average(found)
    assert row.average_of == ("lost", "a", "b")
    assert (row.n, row.stopped_of) == (864, 3000)
    ends = []
    for task, used in (("lost", 64), ("a", 400), ("b", 400)):
        test = PairedSequential(None, .02, alpha=.05 / 3)
        test.update([values[t][1][i] - values[t][0][i] for t, i in drawn([task], 1000)[:used]])
        ends.append(test.interval())
    assert (row.low, row.high) == pytest.approx(tuple(np.mean(ends, axis=0)))
    assert row.verdict == ("lower" if row.high < -.02 else "worse" if row.high < 0 else "undecided")
    assert "hold" in row.note
    assert "these are added end to end" in row.note
    assert row.full_low is None
    assert "the interval is for the models" in as_text(found)


def test_after_looks_at_every_task_the_mean_of_all_items_counts_too(ledger: Ledger) -> None:
    values = {t: changed(1200, .6, 12, 12) for t in ("a", "b")}
    store(ledger, "base", BASE, {t: v[0] for t, v in values.items()})
    store(ledger, "tuned", ADAPTED, {t: v[1] for t, v in values.items()}, used={})
    looked = store(ledger, "looked", replace(ADAPTED, adapter="a2"), {t: v[1] for t, v in values.items()},
                   used={"none": 0})
    assert looked.early is not None
    plain, row = (average(compare("base", name, ledger=ledger)) for name in ("tuned", "looked"))
    assert (plain.told, row.told, row.stopped_of) == ("kept", "kept", None)
    assert row.low <= plain.low <= plain.high <= row.high
    half = stats.t.ppf(1 - (1 - LOOKS) * .05 / 2, 2398) * np.sqrt(24 / 1200 / 1200 / 2)
    assert 2 * half <= row.high - row.low < 2.3 * half, "at the fifth of the level that the end has"


# --- The gate ---

@pytest.fixture
def three(ledger: Ledger) -> Ledger:
    """Two tasks that lose a little, one that is kept, and one at the floor."""
    two_models(ledger, {"a": flipped(600, 20, 60), "b": flipped(600, 20, 60), "c": flipped(600, 30, 30),
                        "floor": (right(150, 600), right(150, 600))})
    return ledger


def test_a_gate_with_a_limit_for_the_average(three: Ledger) -> None:
    comparison, (line,) = gate("base", "tuned", {"average": .01}, ledger=three)
    assert (line.task, line.outcome, line.failed) == ("average", "dropped", True)
    assert line.row.average_of == ("a", "b", "c"), "over all tasks, though none has a limit"
    assert [r.task for r in comparison.rows] == ["average"]
    assert gate_text(line).startswith("FAILED  average: a drop of more than 1.00 points is proven")
    _, (line,) = gate("base", "tuned", {"average": .1}, ledger=three, require_proof=True)
    assert (line.outcome, line.failed) == ("held", False)


def test_beside_other_limits_the_average_is_one_of_their_family(three: Ledger) -> None:
    comparison, lines = gate("base", "tuned", {"a": .5, "average": .01}, ledger=three)
    assert [(line.task, line.row.family_size) for line in lines] == [("a", 2), ("average", 2)]
    assert [r.task for r in comparison.rows] == ["a", "average"]
    assert lines[1].row.average_of == ("a", "b", "c")


def test_an_early_average_counts_in_the_family_of_the_limits(ledger: Ledger) -> None:
    values = {"early": changed(1000, .6, 30, 30), "whole": changed(600, .6, 20, 45)}
    store(ledger, "base", BASE, {t: v[0] for t, v in values.items()})
    store(ledger, "tuned", ADAPTED, {t: v[1] for t, v in values.items()}, used={"early": 400})
    alone = gate("base", "tuned", {"whole": .02}, ledger=ledger)[1][0].row
    comparison, _ = gate("base", "tuned", {"whole": .02, "average": .02}, ledger=ledger)
    whole, row = comparison.rows
    assert (alone.family_size, whole.family_size, row.family_size) == (1, 2, 2)
    assert row.stopped_of == 1600
    assert whole.p_claims["worse"] == pytest.approx(2 * alone.p_claims["worse"])


def test_beside_stopped_tasks_alone_the_average_needs_no_level_of_its_own(ledger: Ledger) -> None:
    """It is read from the intervals at which these tasks were tested."""
    values = {t: changed(1000, .6, 30, 30, seed=s) for s, t in enumerate(("a", "b", "c"))}
    store(ledger, "base", BASE, {t: v[0] for t, v in values.items()})
    store(ledger, "tuned", ADAPTED, {t: v[1] for t, v in values.items()}, used=dict.fromkeys(values, 400))
    whole = {r.task: r for r in compare("base", "tuned", ledger=ledger).rows}
    chosen = {r.task: r for r in compare("base", "tuned", tasks=["a", "average"], ledger=ledger).rows}
    assert list(chosen) == ["a", "average"]
    assert chosen["a"] == whole["a"], "at the level at which it was stopped"
    assert (chosen["average"].low, chosen["average"].high) == (whole["average"].low, whole["average"].high)
    assert chosen["average"].family_size == whole["average"].family_size == 1


def test_chosen_tasks_beside_the_average_are_no_comparison_of_all(three: Ledger) -> None:
    whole = compare("base", "tuned", ledger=three)
    some = [compare("base", "tuned", tasks=tasks, ledger=three) for tasks in (["a", "average"], ["average"])]
    assert len({whole.id, *(c.id for c in some)}) == 3
    assert compare("base", "tuned", tasks=["average", "a"], ledger=three) == some[0]
    assert next(c for c in three.comparisons() if c.id == whole.id) == whole


# --- What a reader sees ---

def as_text(comparison: Comparison) -> str:
    console = Console(width=120, record=True, file=StringIO())
    console.print(terminal_table(comparison, width=120))
    return " ".join(console.export_text().split())


def test_terminal_sentences_and_data(three: Ledger) -> None:
    comparison = compare("base", "tuned", ledger=three, margins={"*": .02, "average": .005})
    assert average(comparison).told == "forgot"
    text = as_text(comparison)
    assert "average over 3 tasks, each with the same weight (a, b, c); left out, at the floor: floor" in text
    assert "average average" not in text
    assert "Primary Metrics" in text
    sentence = next(o.text for o in observations([comparison]) if o.lead == "Forgetting")
    assert "; the average of 3 tasks (" in sentence
    row = next(r for r in json.loads(json.dumps(comparison_object(comparison)))["rows"] if r["average_of"])
    assert (row["task"], row["metric"], row["average_of"]) == ("average", "mean", ["a", "b", "c"])
