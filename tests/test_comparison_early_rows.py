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
from aftertune.errors import NotComparable, StorageError
from aftertune.ledger import Ledger
from aftertune.report import Results, terminal_scores, terminal_table, write_page, write_record
from aftertune.stats.sequential import PairedSequential
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


def test_the_verdict_is_that_of_the_stream_and_its_interval_is_of_the_full_run(ledger: Ledger) -> None:
    base, tuned = changed(2000, 0.6, 60, 260)
    d = np.array([tuned[i] - base[i] for _, i in drawn(["t"], 2000)])
    watch = PairedSequential(2000, 0.02)
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
    assert row.p == row.p_adjusted == pytest.approx(watch.p)
    assert row.p <= 0.05
    assert row.p_mid is row.p_exact is row.p_within is None
    assert ledger.find_comparison(compare("base", "tuned", ledger=ledger).id).rows == (row,)


def test_another_margin_is_read_off_the_same_items_and_may_be_undecided(ledger: Ledger) -> None:
    base, tuned = changed(2000, 0.6, 60, 260)
    store(ledger, "base", BASE, {"t": base})
    store(ledger, "tuned", STRANGER, {"t": tuned}, used={"t": 256})
    [strict] = compare("base", "tuned", margins=0.095, ledger=ledger).rows
    assert strict.verdict == strict.told == "undecided"
    assert strict.items_needed is None
    assert strict.note.startswith("cannot be decided with this task (")
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
    watch = PairedSequential(2000, 0.02, alpha=0.025)
    watch.update([a[1][i] - a[0][i] for _, i in drawn(["a"], 2000)[:512]])
    assert (rows["a"].low, rows["a"].high) == watch.interval()
    assert rows["a"].p_adjusted == pytest.approx(min(1, 2 * watch.p))
    assert "at 1/2 of the error level" in rows["a"].note


def test_a_group_is_pooled_and_its_tasks_have_no_rows_of_their_own(ledger: Ledger) -> None:
    tasks = ["m_a", "m_b", "m_c"]
    values = [changed(400, 0.6, 5, 60, seed=s) for s in range(3)]
    store(ledger, "base", BASE, {t: v[0] for t, v in zip(tasks, values, strict=True)}, units={"m": tasks})
    store(ledger, "tuned", ADAPTED, {t: v[1] for t, v in zip(tasks, values, strict=True)}, units={"m": tasks},
          used={"m": 320})
    [row] = compare("base", "tuned", margins={"m": 0.03}, ledger=ledger).rows
    assert (row.task, row.n, row.stopped_of, row.margin, row.primary) == ("m", 320, 1200, 0.03, True)
    order = drawn(tasks, 400)[:320]
    table = dict(zip(tasks, values, strict=True))
    assert row.delta == pytest.approx(np.mean([table[t][1][i] - table[t][0][i] for t, i in order]))
    assert row.verdict == "lower"
    assert "in one random order" in row.note


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
    assert "±" not in told(terminal_scores(second)).replace("Error range (±1 SE)", "")
    assert said not in told(terminal_scores(first))
    table = told(terminal_table(comparison, width=200))
    assert said in table
    assert "352 of 2,000" in table
    made = Results(evaluations=[first, second], comparisons=[comparison])
    for document in (write_record(made, title="x"),
                     write_page(made, title="x")):
        assert document.count("early estimate, not the score") >= 2
        assert "352 of 2,000" in document
        assert "stopped early; the interval is for the full run" in document
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
