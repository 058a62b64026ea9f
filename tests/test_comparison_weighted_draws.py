"""Rows of items that were drawn with weights: what is proven, for groups and clusters too, and nobody counts them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from aftertune.cli import app
from aftertune.comparison import compare
from aftertune.comparison.across_seeds import contrasts_across_seeds
from aftertune.comparison.flips import flips, flips_by_comparison
from aftertune.comparison.gate import gate
from aftertune.comparison.weighted_draws import earlier_tunings, with_strata
from aftertune.errors import InputError, NotComparable
from aftertune.exchange.exporting import complete_part
from aftertune.ledger import Ledger
from aftertune.report import Results, terminal_scores, terminal_table, write_page, write_record
from aftertune.report.card import write_card
from aftertune.report.changed_items import write_flips
from aftertune.report.table import score_part, score_table
from aftertune.report.tables import overview_export
from aftertune.values import EarlyUnit
from early_cases import ADAPTED, BASE, changed, store, store_drawn, unsure_changes


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.db") as opened:
        yield opened


def gentle(ledger: Ledger, n: int = 5000, **more: Any) -> tuple[Any, np.ndarray, np.ndarray]:
    """The comparison of a stored base with a careful tuning of it on ``n`` items, drawn with weights."""
    base, tuned, sure = unsure_changes(n, 0.4, n // 20, n // 40)
    store(ledger, "base", BASE, {"t": base}, **({"clusters": more["clusters"], "cluster": "source"}
                                                if "clusters" in more else {}))
    store_drawn(ledger, "tuned", ADAPTED, {"t": base}, {"t": tuned}, sure={"t": sure}, **more)
    return compare("base", "tuned", ledger=ledger), base, tuned


def text(console: Any) -> str:
    made = Console(width=200, record=True, file=StringIO())
    made.print(console)
    return made.export_text()


def test_kept_is_proven_of_the_models_on_fewer_items_than_with_equal_chances(ledger: Ledger) -> None:
    comparison, base, tuned = gentle(ledger)
    [row] = comparison.rows
    evaluation = ledger.find_evaluation("tuned")
    assert (row.told, row.full_verdict) == ("kept", "within")
    assert row.n < 1500
    assert row.low < tuned.mean() - base.mean() < row.high
    assert row.full_low <= tuned.mean() - base.mean() <= row.full_high
    assert row.base == pytest.approx(base.mean())
    assert row.delta == pytest.approx(tuned.mean() - base.mean(), abs=0.01)
    drawn = [a.index for a in ledger.answers("tuned")]
    assert abs(base[drawn].mean() - base.mean()) > 0.02 or abs(tuned[drawn] != base[drawn]).mean() > 0.08
    assert evaluation.early.units[0].batches[0].weights == ()  # the first items have equal chances
    assert evaluation.early.units[0].batches[-1].weights


def test_a_loss_among_sure_answers_is_forgot_and_the_estimate_is_that_of_all_items(ledger: Ledger) -> None:
    base, tuned = changed(3000, 0.6, 100, 700, seed=3)
    sure = np.random.default_rng(1).random(3000)
    store(ledger, "base", BASE, {"t": base})
    store_drawn(ledger, "tuned", ADAPTED, {"t": base}, {"t": tuned}, sure={"t": sure}, least=320)
    [row] = compare("base", "tuned", ledger=ledger).rows
    assert row.told == "forgot"
    assert row.low < -0.2 < row.high
    assert row.delta == pytest.approx(-0.2, abs=0.08)


def test_items_that_belong_together_are_counted_once(ledger: Ledger) -> None:
    n = 4000
    clusters = {"t": np.arange(n) // 2}
    comparison, base, tuned = gentle(ledger, n, clusters=clusters, margin=0.04, least=400)
    [row] = comparison.rows
    assert "of items that belong together, the test counts the first one (2,000 clusters of 4,000 items)" in row.note
    assert row.low < tuned.mean() - base.mean() < row.high


def test_a_group_is_one_test_on_pooled_items_of_which_a_task_may_have_none(ledger: Ledger) -> None:
    tasks = [f"g{i}" for i in range(40)]
    values = {t: unsure_changes(40, 0.5, 0, 0, seed=k) for k, t in enumerate(tasks)}
    base = {t: v[0] for t, v in values.items()}
    tuned = {t: np.zeros(40) for t in tasks}
    store(ledger, "base", BASE, base, units={"g": tasks})
    store_drawn(ledger, "tuned", ADAPTED, base, tuned, sure={t: v[2] for t, v in values.items()}, unit="g")
    comparison = compare("base", "tuned", ledger=ledger)
    assert [(r.task, r.told) for r in comparison.rows] == [("g", "forgot")]
    assert any(t.used == 0 for t in ledger.find_evaluation("tuned").tasks)
    assert comparison.rows[0].base == pytest.approx(np.mean([*base.values()]))


def test_no_score_count_or_mean_of_the_drawn_items_is_shown_anywhere(ledger: Ledger, tmp_path: Path,
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    """Terminal, record, page, card, tables, export, flips, gate, seeds and JSON: one after another."""
    comparison, base, tuned = gentle(ledger, 1000, models=False, least=256)
    [row] = comparison.rows
    evaluation = ledger.find_evaluation("tuned")
    drawn = [a.index for a in ledger.answers("tuned")]
    raw = [f"{100 * side[drawn].mean():.2f}" for side in (base, tuned)]
    raw += [f"{100 * (tuned[drawn] - base[drawn]).mean():+.2f}".replace("-", "\N{MINUS SIGN}")]
    assert evaluation.scores == ()
    assert score_table(evaluation) == []
    assert "no score: stopped early after" in score_part(evaluation, "t")
    results = Results.load(ledger)
    shown = [text(terminal_scores(evaluation)), text(terminal_table(comparison, width=200, details=True)),
             write_record(results, title="x"), write_page(results, title="x"),
             write_card(evaluation, results).readme, json.dumps([*overview_export("x", results).rows])]
    for output in shown:
        assert not [r for r in raw if r in output]
    assert "weighted estimate" in shown[1]
    assert "weighted estimate" in shown[2]
    assert "no score (items drawn with weights)" in shown[2]
    assert "drawn with weights" in shown[3]
    assert "Without a score" in shown[4]
    assert write_card(evaluation, results).left_out == ("t",)
    with pytest.raises(InputError, match="has no task with a score of all its items"):
        complete_part(evaluation)
    changes = flips("base", "tuned", "t", ledger=ledger)
    assert changes.unequal
    assert "their counts say nothing of the task" in write_flips(changes)
    answers = {e.id: ledger.answers(e.id) for e in ledger.evaluations()}
    assert flips_by_comparison([comparison], answers, ledger=ledger) == {comparison.id: ()}
    assert comparison.signs == ()
    assert comparison.forms == ()
    _, [line] = gate("base", "tuned", {"t": 0.02}, ledger=ledger, require_proof=True)
    assert line.row.delta == row.delta
    assert contrasts_across_seeds(ledger.evaluations(), [], margins=0.02, ledger=ledger) == []
    monkeypatch.setenv("AFTERTUNE_LEDGER", str(ledger.database.path))
    for command in (["compare", "base", "tuned", "--json"], ["show", "tuned"], ["runs"],
                    ["flips", "base", "tuned", "--task", "t"]):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output
        assert not [r for r in raw if r in done.output]
    done = CliRunner().invoke(app, ["export", "tuned", "--out", str(tmp_path / "out")])
    assert isinstance(done.exception, InputError)


def test_the_sample_is_read_only_beside_the_complete_base(ledger: Ledger) -> None:
    gentle(ledger, 1000, models=False)
    base, tuned, _ = unsure_changes(1000, 0.4, 50, 25)
    store(ledger, "partial", BASE, {"t": base}, used={"t": 300})
    store(ledger, "others", replace(BASE, weights="w5"), {"t": 1 - base})
    for left, right in (("tuned", "base"), ("partial", "tuned"), ("tuned", "partial")):
        with pytest.raises(NotComparable, match="has no row, because its items were drawn where a base was unsure"):
            compare(left, right, ledger=ledger)
    [row] = compare("others", "tuned", ledger=ledger).rows  # complete, with other values: bounds are its own
    assert row.base == pytest.approx(1 - base.mean())
    assert row.full_low <= tuned.mean() - (1 - base.mean()) <= row.full_high


def test_a_task_that_cannot_be_read_is_listed_and_the_others_have_rows(ledger: Ledger) -> None:
    base, tuned, sure = unsure_changes(1000, 0.4, 50, 25)
    tasks = {"t": base, "u": base}
    store(ledger, "base", BASE, tasks)
    stopped = store_drawn(ledger, "tuned", ADAPTED, {"t": base}, {"t": tuned}, sure={"t": sure}, models=False,
                          whole={"u": tuned})
    assert (stopped.drawn_unequally("t"), stopped.drawn_unequally("u")) == (True, False)
    rows = compare("base", "tuned", ledger=ledger).rows
    assert [(r.task, r.stopped_of) for r in rows] == [("u", None), ("t", 1000), ("average", 2000)]
    assert rows[2].base == pytest.approx(base.mean())  # of all items, and the weighted estimate
    assert rows[2].delta == pytest.approx(np.mean([r.delta for r in rows[:2]]), abs=1e-3)
    comparison = compare("tuned", "base", ledger=ledger)
    assert [r.task for r in comparison.rows] == ["u"]
    assert [d.field.split(" has")[0] for d in comparison.differences if "no row" in d.field] == ["t"]


def two_tasks(ledger: Ledger, **more: Any) -> None:
    """A base with all items of "t" and "u", and a tuning that loses on "t", which was drawn with weights, and has the
    base's answers to "u"."""
    base, tuned = changed(1000, 0.6, 10, 300, seed=3)
    store(ledger, "base", BASE, {"t": base, "u": base}, **more)
    store_drawn(ledger, "tuned", ADAPTED, {"t": base}, {"t": tuned}, sure={"t": np.random.default_rng(1).random(1000)},
                least=128, whole={"u": base}, **more)


def test_a_changed_answer_among_drawn_items_is_an_effect(ledger: Ledger) -> None:
    """All answers to the other task are the base's."""
    two_tasks(ledger, logprobs=True)
    found = compare("base", "tuned", ledger=ledger)
    assert {r.task: r.told for r in found.rows}["t"] == "forgot"
    assert found.changes.no_effect == ""
    assert [t.task for t in found.changes.tasks] == ["u"]
    assert "no effect" not in text(terminal_table(found, width=200))


def test_the_gate_says_which_drawn_items_have_no_row_and_its_advice_gives_one(ledger: Ledger) -> None:
    two_tasks(ledger)
    store(ledger, "second", replace(BASE, weights="w2"), {t: np.ones(1000) for t in ("t", "u")}, used={"t": 500})
    limits = {"t": .02, "u": .02}
    for sides, advice in ((("tuned", "base"), "evaluate the model of tuned with --draw uniform or without "),
                          (("second", "tuned"), "evaluate the model of tuned with --until-decided --against second, ")):
        for limit in (limits, {"average": .02, "u": .02}):
            with pytest.raises(InputError) as error:
                gate(*sides, limit, ledger=ledger)
            assert "t has no row, because its items were drawn where a base was unsure" in str(error.value)
            assert f"; {advice}" in str(error.value)
        with pytest.raises(NotComparable, match=f"; {advice}"):
            compare(*sides, tasks=["t"], ledger=ledger)
    assert [line.outcome for line in gate("base", "tuned", limits, ledger=ledger)[1]] == ["dropped", "held"]


def test_an_average_without_the_drawn_task_is_none_also_where_no_other_task_was_asked(ledger: Ledger) -> None:
    gentle(ledger, 1000, models=False)
    for sides, why in ((("tuned", "base"), "where a base was unsure"), (("base", "tuned"), "fewer than two tasks")):
        with pytest.raises((InputError, NotComparable), match=why):
            gate(*sides, {"average": .02}, ledger=ledger)


def test_earlier_tunings_are_those_of_the_same_base_on_the_same_items(ledger: Ledger) -> None:
    base, tuned, sure = unsure_changes(400, 0.4, 20, 10)
    whole = store(ledger, "base", BASE, {"t": base})
    store(ledger, "one", ADAPTED, {"t": tuned})
    store(ledger, "two", replace(ADAPTED, adapter="a2"), {"t": base})
    store(ledger, "stranger", replace(ADAPTED, weights="w7"), {"t": base})
    store(ledger, "hardly", replace(ADAPTED, adapter="a3"), {"t": base}, used={"t": 100})
    found = earlier_tunings(whole, replace(ADAPTED, adapter="a9").fingerprint, ["t"], ledger)
    assert [e.name for e in found] == ["one", "two"]
    assert [e.name for e in earlier_tunings(whole, ADAPTED.fingerprint, ["t"], ledger)] == ["two"]
    stopped = store_drawn(ledger, "now", replace(ADAPTED, adapter="a9"), {"t": base}, {"t": tuned}, sure={"t": sure},
                          models=False, earlier=[(base, tuned)])
    assert len(stopped.early.units[0].earlier) == 1
    assert compare("base", "now", ledger=ledger).rows[0].full_base == pytest.approx(base.mean())


def test_an_earlier_tuning_that_was_stopped_counts_with_what_it_was_asked(ledger: Ledger) -> None:
    """Of 4,000 items, 2 % of the drawn ones changed in sure strata and far more in unsure ones, as of all items."""
    base, tuned, sure = unsure_changes(4000, 0.4, 160, 80)
    whole = store(ledger, "base", BASE, {"t": base})
    stopped = store_drawn(ledger, "stopped", ADAPTED, {"t": base}, {"t": tuned}, sure={"t": sure}, models=False)
    assert 200 <= (stopped.tasks[0].used or 0) < 3000
    found = earlier_tunings(whole, replace(ADAPTED, adapter="a9").fingerprint, ["t"], ledger)
    assert [e.name for e in found] == ["stopped"]
    answers = {a.index: a.metrics["acc,none"] for a in ledger.answers(stopped.id)}
    asked = np.array([answers.get(i, np.nan) for i in range(4000)])
    unit = EarlyUnit(name="t", key="acc,none", tasks=("t",), items=4000, batch=32, order="")
    of_all, of_asked = (np.array(with_strata(unit, base, sure, [(base, values)]).earlier[0])
                        for values in (tuned, asked))
    assert abs(float(of_asked.mean() - of_all.mean())) < 0.02
    assert np.corrcoef(of_all, of_asked)[0, 1] > 0.9


def test_where_all_drawn_items_were_asked_the_looks_count_or_prove_nothing(ledger: Ledger) -> None:
    base, tuned, sure = unsure_changes(300, 0.4, 30, 15)
    store(ledger, "base", BASE, {"t": base})
    store_drawn(ledger, "tuned", ADAPTED, {"t": base}, {"t": tuned}, sure={"t": sure}, least=300)
    [row] = compare("base", "tuned", ledger=ledger).rows
    assert (row.n, row.stopped_of) == (300, None)
    assert row.delta == pytest.approx(tuned.mean() - base.mean())
    assert "after interim analyses" in row.note
