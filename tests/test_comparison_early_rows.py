"""Comparisons with evaluations that were stopped early: what is claimed, of what, in which words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from aftertune.comparison import compare
from aftertune.comparison.collapse import _looks
from aftertune.comparison.gate import gate
from aftertune.errors import NotComparable, StorageError
from aftertune.ledger import Ledger
from aftertune.report import Results, terminal_scores, terminal_table, write_page, write_record
from aftertune.report.table import full_run_text
from aftertune.stats.sequential import LOOKS, PairedSequential
from aftertune.values import Answer
from early_cases import ADAPTED, BASE, STRANGER, changed, drawn, item, store


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.db") as opened:
        yield opened


def told(renderable: object) -> str:
    console = Console(width=200, record=True, file=StringIO())
    console.print(renderable)
    return " ".join(console.export_text().split())


def test_verdict_and_interval_are_about_the_models_and_the_full_run_has_its_own(ledger: Ledger) -> None:
    base, tuned = changed(2000, 0.6, 60, 260)
    d = np.array([tuned[i] - base[i] for _, i in drawn(["t"], 2000)])
    watch = PairedSequential(None, 0.02, alpha=0.05)
    used = 32
    while watch.update(d[used - 32:used]) is None:
        used += 32
    store(ledger, "base", BASE, {"t": base})
    store(ledger, "tuned", ADAPTED, {"t": tuned}, used={"t": used})
    [row] = compare("base", "tuned", ledger=ledger).rows
    assert (row.verdict, row.told, row.n, row.stopped_of) == ("lower", "forgot", used, 2000)
    assert (row.low, row.high) == watch.interval()
    assert row.low <= -0.1 <= row.high < -0.02
    assert row.delta == pytest.approx(d[:used].mean())
    assert (row.gained, row.lost) == (int((d[:used] > 0).sum()), int((d[:used] < 0).sum()))
    assert row.p == pytest.approx(watch.p)
    assert row.p_adjusted == pytest.approx(watch.p / LOOKS)
    assert row.p_adjusted <= 0.05
    whole = PairedSequential(2000, 0.02)
    whole.update(d[:used])
    assert (row.full_low, row.full_high) == whole.interval()
    assert (row.full_verdict, row.full_base) == ("lower", 0.6)
    assert (row.full_tuned_low, row.full_tuned_high) == pytest.approx((0.6 + row.full_low, 0.6 + row.full_high))
    low, high = 100 * row.full_tuned_low, 100 * row.full_tuned_high
    assert full_run_text(row) == f"{low:.1f} to {high:.1f} %, below the base's by more than 2 points"
    assert row.p_mid is row.p_exact is row.p_within is None
    assert ledger.find_comparison(compare("base", "tuned", ledger=ledger).id).rows == (row,)


def test_another_margin_is_read_off_the_same_items_and_may_be_undecided(ledger: Ledger) -> None:
    base, tuned = changed(2000, 0.6, 60, 260)
    store(ledger, "base", BASE, {"t": base})
    store(ledger, "tuned", STRANGER, {"t": tuned}, used={"t": 256})
    [strict] = compare("base", "tuned", margins=0.095, ledger=ledger).rows
    assert strict.verdict == strict.told == "worse"
    assert strict.items_needed is None
    assert strict.note.startswith("whether it is beyond the margin cannot be decided with this task (")
    assert "close to the margin, so no affordable number of items decides it" in strict.note
    [loose] = compare("base", "tuned", margins=0.01, ledger=ledger).rows
    assert loose.verdict == loose.told == "lower"


def test_whole_and_stopped_tasks_share_one_family(ledger: Ledger) -> None:
    """The stopped one has its share of alpha; the whole one stands in Holm's family as one of two."""
    a, b = changed(2000, 0.6, 60, 260), changed(300, 0.6, 2, 20, seed=1)
    store(ledger, "base", BASE, {"a": a[0], "b": b[0]})
    store(ledger, "tuned", ADAPTED, {"a": a[1], "b": b[1]}, used={"a": 512})
    rows = {r.task: r for r in compare("base", "tuned", ledger=ledger).rows}
    assert rows["a"].stopped_of == 2000
    assert rows["b"].stopped_of is None
    assert rows["b"].p_adjusted == pytest.approx(2 * rows["b"].p)
    watch = PairedSequential(None, 0.02, alpha=0.025)
    watch.update([a[1][i] - a[0][i] for _, i in drawn(["a"], 2000)[:512]])
    assert (rows["a"].low, rows["a"].high) == watch.interval()
    assert rows["a"].p_adjusted == pytest.approx(min(1, 2 * watch.p / LOOKS))
    assert "after interim analyses" in rows["b"].note
    assert "at 1/2 of the error level" in rows["a"].note


def test_a_group_is_pooled_and_its_tasks_have_no_rows_of_their_own(ledger: Ledger) -> None:
    tasks = ["m_a", "m_b", "m_c"]
    values = [changed(400, 0.6, 5, 60, seed=s) for s in range(3)]
    store(ledger, "base", BASE, {t: v[0] for t, v in zip(tasks, values, strict=True)}, units={"m": tasks})
    store(ledger, "tuned", ADAPTED, {t: v[1] for t, v in zip(tasks, values, strict=True)}, units={"m": tasks},
          used={"m": 320})
    [row] = compare("base", "tuned", margins={"m": 0.03}, ledger=ledger).rows
    assert "was stopped by a test with a margin of 2 points (--margin 2 shows its verdict)" in row.note
    assert (row.task, row.n, row.stopped_of, row.margin, row.primary) == ("m", 320, 1200, 0.03, True)
    order = drawn(tasks, 400)[:320]
    table = dict(zip(tasks, values, strict=True))
    assert row.delta == pytest.approx(np.mean([table[t][1][i] - table[t][0][i] for t, i in order]))
    assert row.verdict == "lower"
    assert "in one random order" in row.note


def test_one_task_of_a_stopped_group_is_a_row_of_its_own(ledger: Ledger) -> None:
    tasks = ["m_a", "m_b", "m_c"]
    values = {t: changed(400, 0.6, 5, 60, seed=s) for s, t in enumerate(tasks)}
    base = store(ledger, "base", BASE, {t: v[0] for t, v in values.items()}, units={"m": tasks})
    tuned = store(ledger, "tuned", ADAPTED, {t: v[1] for t, v in values.items()}, units={"m": tasks}, used={"m": 320})
    asked = {t: sum(name == t for name, _ in drawn(tasks, 400)[:320]) for t in tasks}
    [row] = compare("base", "tuned", tasks=["m_a"], ledger=ledger).rows
    assert (row.task, row.n, row.stopped_of, row.primary) == ("m_a", asked["m_a"], 400, True)
    assert "tasks, in one random order" not in row.note
    assert _looks(row, base, tuned) == 10, "those of the group, which stopped it"
    _, [line] = gate("base", "tuned", {"m_a": 0.02}, ledger=ledger)
    assert line.row.task == "m_a", "so a limit has its verdict"


def test_some_tasks_of_a_stopped_group_are_never_called_by_its_name(ledger: Ledger) -> None:
    """Each has a row, and they share the level of the group's test; a smaller group that they complete is one row."""
    tasks, inner = ["m_a", "m_b", "m_c", "m_d"], ("m_a", "m_b")
    values = {t: changed(400, 0.6, 5, 60, seed=s) for s, t in enumerate(tasks)}
    asked = {t: sum(name == t for name, _ in drawn(tasks, 400)[:480]) for t in tasks}
    for name, model, side, used in (("base", BASE, 0, None), ("tuned", ADAPTED, 1, {"m": 480})):
        made = store(ledger, name, model, {t: v[side] for t, v in values.items()}, units={"m": tasks}, used=used)
        grouped = replace(made, tasks=tuple(replace(t, groups=("m", "m_ab")) if t.task in inner else t
                                            for t in made.tasks))
        if name == "base":
            base = grouped
    rows = compare(base, grouped, tasks=["m_a", "m_c"], ledger=ledger, save=False).rows
    assert [(r.task, r.n, r.stopped_of, r.family_size) for r in rows] == [
        ("m_a", asked["m_a"], 400, 2), ("m_c", asked["m_c"], 400, 2)]
    rows = compare(base, grouped, tasks=["m_ab", "m_d"], ledger=ledger, save=False).rows
    assert [(r.task, r.n, r.stopped_of) for r in rows] == [
        ("m_ab", asked["m_a"] + asked["m_b"], 800), ("m_d", asked["m_d"], 400)]
    assert "mean over the items of 2 tasks, in one random order" in rows[0].note
    assert _looks(rows[0], base, grouped) == 15, "those of the group, which stopped it"
    [row] = compare(base, grouped, tasks=["m"], ledger=ledger, save=False).rows
    assert (row.task, row.n, row.stopped_of, row.family_size) == ("m", 480, 1600, 1)


def test_looks_at_a_group_count_for_some_of_its_tasks(ledger: Ledger) -> None:
    tasks = ["m_a", "m_b"]
    values = {t: changed(400, 0.6, 12, 35, seed=s) for s, t in enumerate(tasks)}
    store(ledger, "base", BASE, {t: v[0] for t, v in values.items()}, units={"m": tasks})
    store(ledger, "looked", ADAPTED, {t: v[1] for t, v in values.items()}, units={"m": tasks}, used={"other": 1})
    [row] = compare("base", "looked", tasks=["m_a"], ledger=ledger).rows
    assert (row.task, row.stopped_of) == ("m_a", None)
    assert "after interim analyses" in row.note


def test_both_stopped_compare_what_both_were_asked(ledger: Ledger) -> None:
    base, tuned = changed(2000, 0.6, 60, 260)
    store(ledger, "base", BASE, {"t": base}, used={"t": 480})
    store(ledger, "tuned", ADAPTED, {"t": tuned}, used={"t": 640})
    [row] = compare("base", "tuned", ledger=ledger).rows
    assert (row.n, row.stopped_of) == (480, 2000)
    store(ledger, "other", ADAPTED, {"t": tuned}, used={"t": 640}, seed=5)
    with pytest.raises(NotComparable, match=r"draw_seed \(0 \| 5\)"):
        compare("base", "other", ledger=ledger)


def test_other_settings_are_refused_as_ever(ledger: Ledger) -> None:
    base, tuned = changed(800, 0.6, 10, 100)
    store(ledger, "base", BASE, {"t": base})
    store(ledger, "tuned", ADAPTED, {"t": tuned}, used={"t": 320}, num_fewshot=5)
    with pytest.raises(NotComparable, match="num_fewshot"):
        compare("base", "tuned", ledger=ledger)
    [row] = compare("base", "tuned", ledger=ledger, force=True).rows
    assert row.note.startswith("forced")


def test_at_the_floor_nothing_is_kept(ledger: Ledger) -> None:
    base, tuned = changed(2000, 0.25, 10, 10)
    store(ledger, "base", BASE, {"t": base})
    store(ledger, "tuned", ADAPTED, {"t": tuned}, used={"t": 900})
    [row] = compare("base", "tuned", ledger=ledger).rows
    assert (row.verdict, row.told, row.at_floor) == ("undecided", "undecided (at floor: nothing to forget)", True)
    store(ledger, "able", BASE, {"t": changed(2000, 0.5, 10, 10)[0]})
    store(ledger, "kept", ADAPTED, {"t": changed(2000, 0.5, 10, 10)[1]}, used={"t": 900})
    assert compare("able", "kept", ledger=ledger).rows[0].told == "kept"


def test_every_table_says_that_it_is_an_early_estimate(ledger: Ledger) -> None:
    base, tuned = changed(2000, 0.6, 60, 260)
    first = store(ledger, "base", BASE, {"t": base})
    second = store(ledger, "tuned", ADAPTED, {"t": tuned}, used={"t": 352})
    comparison = compare(first, second, ledger=ledger)
    said = "stopped early after 352 of 2,000: an early estimate, not the score"
    assert second.stopped("t") == (352, 2000)
    assert first.stopped("t") is None
    assert said in told(terminal_scores(second))
    assert "about " in told(terminal_scores(second))
    assert "±" not in told(terminal_scores(second))
    assert said not in told(terminal_scores(first))
    table = told(terminal_table(comparison, width=200))
    assert said in table
    assert "the interval is for the models and valid at every look full run: " in table
    assert "352 of 2,000" in table
    made = Results(evaluations=[first, second], comparisons=[comparison])
    for document in (write_record(made, title="x"),
                     write_page(made, title="x")):
        assert document.count("early estimate, not the score") >= 2
        assert "352 of 2,000" in document
        assert "stopped early; the interval is for the models" in document
        assert "Full run" in document
        assert document.count("below the base&#39;s by more than 2 points") + document.count(
            "below the base's by more than 2 points") >= 2
        assert "Early Stop" in document


def test_the_ledger_takes_what_was_used_and_no_less(ledger: Ledger) -> None:
    _, tuned = changed(100, 0.6, 5, 10)
    done = store(ledger, "tuned", ADAPTED, {"t": tuned}, used={"t": 64})
    assert len(ledger.answers(done.id, "t")) == 64
    assert len(ledger.items(done.id, "t")) == 100
    assert ledger.find_evaluation("tuned") == done
    whole = replace(done, id="e-x", status="running", tasks=(replace(done.tasks[0], used=None),))
    ledger.open_evaluation(whole, [item("t", i) for i in range(100)])
    with pytest.raises(StorageError, match="1 answers for 100 items"):
        ledger.finish_evaluation(whole, [Answer(task="t", index=0, item=item("t", 0).hash, metrics={})], [()])


def test_the_full_run_may_be_decided_where_the_models_are_not(ledger: Ledger) -> None:
    """100 items without a change: the full run is known before the end, the next 100 questions are not."""
    watch = PairedSequential(100, 0.02)
    while watch.update([0.0]) is None:
        pass
    base, tuned = changed(100, 0.6, 0, 0)
    store(ledger, "base", BASE, {"t": base})
    store(ledger, "tuned", ADAPTED, {"t": tuned}, used={"t": watch.seen})
    [row] = compare("base", "tuned", margins=0.02, ledger=ledger).rows
    assert (row.n, row.verdict, row.full_verdict) == (watch.seen, "undecided", "within")
    assert row.n < 100
    low, high = 60 + 100 * row.full_low, 60 + 100 * row.full_high
    assert full_run_text(row) == f"{low:.1f} to {high:.1f} %, within 2 points of the base's"
    assert row.low < -0.02 < row.full_low <= 0 <= row.full_high < 0.02 < row.high


def test_a_base_that_was_stopped_too_has_no_full_score(ledger: Ledger) -> None:
    base, tuned = changed(2000, 0.6, 60, 260)
    store(ledger, "base", BASE, {"t": base}, used={"t": 480})
    store(ledger, "tuned", ADAPTED, {"t": tuned}, used={"t": 480})
    [row] = compare("base", "tuned", ledger=ledger).rows
    assert row.full_base is row.full_tuned_low is None
    assert full_run_text(row).endswith(" points against the base's, below the base's by more than 2 points")
    assert full_run_text(replace(row, full_low=None)) == ""  # as versions before stored it


def test_of_items_that_belong_together_one_counts(ledger: Ledger) -> None:
    """Each item twice: a verdict on 2,000 items is one on 1,000 of them; the full run has all of them."""
    base, tuned = (np.repeat(v, 2) for v in changed(1000, 0.6, 5, 8))
    for name, model, values, used in (("base", BASE, base, None), ("tuned", ADAPTED, tuned, {"t": 1800})):
        store(ledger, name, model, {"t": values}, used=used, twice=True)
    [row] = compare("base", "tuned", ledger=ledger).rows
    assert row.n == 1800
    counted = int(row.note.split("the first one (")[1].split(" of ")[0].replace(",", ""))
    assert 900 < counted <= 1000
    order = drawn(["t"], 2000, twice=True)[:1800]
    seen: set[int] = set()
    d = [tuned[i] - base[i] for _, i in order if i // 2 not in seen and not seen.add(i // 2)]
    watch = PairedSequential(None, 0.02, alpha=0.05)
    watch.update(d)
    assert len(d) == counted
    assert (row.low, row.high) == watch.interval()


def test_where_all_items_were_asked_looks_and_end_share_the_level(ledger: Ledger) -> None:
    """A p of .04 is proven of a run without looks, and not at the end of one with looks."""
    base, tuned = changed(400, 0.6, 12, 35)
    store(ledger, "base", BASE, {"t": base})
    plain = store(ledger, "plain", ADAPTED, {"t": tuned})
    looked = store(ledger, "looked", ADAPTED, {"t": tuned}, used={"other": 1})
    [free], [ended] = (compare("base", e, ledger=ledger).rows for e in (plain, looked))
    assert 0.01 < free.p_lower < 0.05
    assert (free.verdict, ended.verdict, ended.stopped_of) == ("lower", "worse", None)
    assert 0.05 < ended.p_lower <= free.p_lower / (1 - LOOKS) * (1 + 1e-9)
    assert "after interim analyses" in ended.note
    assert "after interim analyses" not in free.note


@pytest.mark.parametrize(("gained", "lost"), [(12, 35), (3, 30), (35, 12), (14, 16), (6, 22), (22, 6), (2, 2)])
def test_after_looks_the_interval_agrees_with_the_words(ledger: Ledger, gained: int, lost: int) -> None:
    base, tuned = changed(400, 0.6, gained, lost)
    store(ledger, "base", BASE, {"t": base})
    store(ledger, "looked", ADAPTED, {"t": tuned}, used={"other": 1})
    [row] = compare("base", "looked", ledger=ledger).rows
    proven = {claim for claim, p in row.p_claims.items() if p < 0.05}
    m = row.margin
    read_off = {"lower": row.high < -m, "higher": row.low > m, "worse": row.high < 0, "better": row.low > 0,
                "no_loss": row.low > -m}
    assert {claim for claim, says in read_off.items() if says} == proven - {"within"}
    assert row.low <= row.delta <= row.high


def test_looking_again_with_more_items_is_said(ledger: Ledger) -> None:
    values = {n: changed(n, 0.6, 10, 20) for n in (300, 1000)}
    for n, (base, tuned) in values.items():
        store(ledger, f"base{n}", BASE, {"t": base})
        store(ledger, f"tuned{n}", ADAPTED, {"t": tuned})
    said = "compared before on 300 items of this task"
    [first] = compare("base300", "tuned300", ledger=ledger).rows
    [again] = compare("base1000", "tuned1000", ledger=ledger).rows
    assert said not in first.note
    assert said in again.note
    [same] = compare("base300", "tuned300", ledger=ledger).rows
    assert same == first
    store(ledger, "strange", STRANGER, {"t": values[1000][1]})
    assert said not in compare("base1000", "strange", ledger=ledger).rows[0].note


def test_a_run_that_looks_is_valid_whatever_was_compared_before(ledger: Ledger) -> None:
    """The warning of earlier comparisons advises such a run, so a row of one does not have it."""
    base, tuned = changed(2000, 0.6, 60, 260)
    for name, model, values in (("base300", BASE, base), ("tuned300", ADAPTED, tuned)):
        store(ledger, name, model, {"t": values[:300]})
    compare("base300", "tuned300", ledger=ledger)
    store(ledger, "base", BASE, {"t": base})
    store(ledger, "early", ADAPTED, {"t": tuned}, used={"t": 480})
    store(ledger, "all", ADAPTED, {"t": tuned})
    said = {name: compare("base", name, ledger=ledger).rows[0].note for name in ("early", "all")}
    assert "compared before" not in said["early"]
    assert "compared before on 300 items of this task" in said["all"]


def test_a_run_that_looked_until_it_had_decided_is_no_earlier_look(ledger: Ledger) -> None:
    """Its error level covers all of its looks."""
    base, tuned = changed(2000, 0.6, 60, 260)
    store(ledger, "base", BASE, {"t": base})
    store(ledger, "early", ADAPTED, {"t": tuned}, used={"t": 480})
    [early] = compare("base", "early", ledger=ledger).rows
    assert (early.told, early.stopped_of) == ("forgot", 2000)
    store(ledger, "all", ADAPTED, {"t": tuned})
    [complete] = compare("base", "all", ledger=ledger).rows
    assert "compared before" not in complete.note
