"""The unit of a metric: where it comes from, and that figures, margins and tests are in it everywhere."""

from __future__ import annotations

import io
import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import report_cases
from aftertune.catalog import METRICS, unit_of
from aftertune.cli import app
from aftertune.cli.console import guarded
from aftertune.comparison import compare
from aftertune.comparison.gate import gate
from aftertune.comparison.margins import margin_of
from aftertune.early_stopping.running_tests import RunningTest
from aftertune.errors import InputError
from aftertune.exchange import import_results
from aftertune.forgetting_watch import refuse_own_unit, watch_point
from aftertune.ledger import Ledger
from aftertune.report import (
    as_csv,
    as_latex,
    comparison_export,
    gate_text,
    scores_export,
    terminal_scores,
    terminal_table,
    watch_text,
    write_card,
    write_junit,
    write_page,
    write_record,
)
from aftertune.report.charts import forest
from aftertune.report.results import Results
from aftertune.report.sentences import observations
from aftertune.stats.evidence import paired_evidence
from aftertune.stats.sequential import PairedSequential
from aftertune.study import Study, TaskSpec
from aftertune.tasks.scoring import _aggregation_name
from aftertune.values import Answer, Comparison, Early, EarlyUnit, Evaluation, Item, Margin, Score, WatchPoint
from exchange_cases import choice_line, one_task_folder

# --- Where the unit comes from ---


@pytest.mark.parametrize(("metric", "values", "facts", "unit"), [
    ("acc", [.25, 0, 1], {}, "share"), ("acc", [25.0], {}, "unbounded"), ("acc", [-.1], {}, "unbounded"),
    ("llm_judge", [89.2, 91.0], {}, "unbounded"), ("llm_judge", [.8, 0, 5], {}, "unbounded"),
    ("own", [.8, 0, 1], {}, "mean of shares"), ("own", [], {}, "mean of shares"), ("own", [math.nan, .5], {},
                                                                                  "mean of shares"),
    ("bypass", [999], {}, "unbounded"), ("wer", [.3], {}, "unbounded"), ("mcc", [.3], {}, "unbounded"),
    ("likelihood_diff", [.3], {}, "unbounded"), ("brier_score", [.3], {}, "unbounded"),
    ("bertscore_f1", [.87], {}, "unbounded"), ("bits_per_byte", [.9], {"aggregation": "bits_per_byte"}, "unbounded"),
    ("bleu", [.5], {}, "percent"), ("bleu", [.5], {"aggregation": "bleu"}, "percent"),
    ("bleu", [.05, .2], {"aggregation": "nanmean"}, "mean of shares"),
    ("bleu", [.27], {"aggregation": "def agg_bleu(items): …"}, "mean of shares"),
    ("chrf++", [.5], {"aggregation": "chrfpp"}, "percent"), ("own", [.4], {"aggregation": "ter"}, "percent"),
    ("own", [.4], {"aggregation": "perplexity"}, "unbounded"),
    ("bleu_max", [.5], {"aggregation": "mean"}, "percent"), ("bleu_diff", [.5], {}, "unbounded"),
    ("bleu_acc", [0, 1], {}, "share"), ("rouge1", [.4], {}, "mean of shares"), ("rouge1", [41.0], {}, "unbounded"),
    ("f1", [.8], {}, "mean of shares"), ("f1", [.8], {"task": "squadv2"}, "percent"), ("exact", [.8], {}, "percent"),
    ("em", [.8], {"task": "scrolls_quality"}, "percent"), ("em", [.8], {"task": "coqa"}, "mean of shares")])
def test_the_unit_comes_from_the_catalog_the_aggregation_or_the_values(
        metric: str, values: Sequence[float], facts: dict[str, str], unit: str) -> None:
    assert unit_of(metric, values, **facts) == unit


def test_the_catalog_agrees_with_what_lm_eval_computes() -> None:
    """The best and the worst value of lm-eval's own functions, on the texts of a small task."""
    from lm_eval.api import metrics

    text, other = "the cat sat on the mat today", "no dog ran under that tree here"
    for name in ("bleu", "chrf", "chrfpp"):
        function = getattr(metrics, name)
        metric = "chrf++" if name == "chrfpp" else name
        assert function([(text, text)]) == pytest.approx(100)
        assert METRICS[metric].unit == unit_of("own", [1.0], aggregation=_aggregation_name(function)) == "percent"
    assert metrics.ter([(text, text)]) == 0
    assert metrics.ter([(text, other)]) > 50
    assert metrics.bypass_agg([None]) == 999
    assert unit_of("own", aggregation=_aggregation_name(metrics.bypass_agg)) == METRICS["bypass"].unit == "unbounded"
    assert metrics.brier_score([(0, np.array([0.0, 1.0])), (1, np.array([0.0, 1.0]))]) == 1
    assert _aggregation_name(lambda items: items) == "own"


def test_the_metrics_of_truthfulqa_gen_have_the_ranges_of_the_catalog() -> None:
    pytest.importorskip("rouge_score")
    from lm_eval.tasks.truthfulqa import utils

    doc = {"correct_answers": ["Nothing happens to you at all."], "incorrect_answers": ["You grow a tree inside."]}
    right = utils.process_results_gen(doc, ["Nothing happens to you at all."])
    wrong = utils.process_results_gen(doc, ["You grow a tree inside."])
    for name in ("bleu", "rouge1", "rouge2", "rougeL"):
        assert right[f"{name}_max"] == pytest.approx(100)
        assert (right[f"{name}_acc"], wrong[f"{name}_acc"]) == (1, 0)
        assert wrong[f"{name}_diff"] < -50
        assert [METRICS[f"{name}_{k}"].unit for k in ("max", "diff", "acc")] == ["percent", "unbounded", "share"]


# --- Margins ---

def test_a_margin_in_points_is_for_shares_alone() -> None:
    assert margin_of(.05, "share", "a") == .05
    assert margin_of(.05, "unbounded", "a") is None
    assert margin_of({"*": .05}, "percent", "a") is None
    assert margin_of({"a": .05}, "unbounded", "a") == .05, "in Python, a named task's margin is in its unit"
    assert margin_of({"a": Margin.given(5)}, "mean of shares", "a") == .05
    assert margin_of({"group": Margin.given(5)}, "unbounded", "a", "group") == 5
    assert margin_of({}, "share", "a") == .02
    with pytest.raises(InputError, match="a=150: the metric of a is a share, so allowed are points above 0, up to 100"):
        margin_of({"a": Margin.given(150)}, "share", "a")
    assert margin_of({"a": Margin.given(150)}, "share", "a", primary=False) is None
    assert margin_of({"a": Margin.given(150)}, "unbounded", "a") == 150
    for wrong in (0, -1.0, math.inf, math.nan):
        with pytest.raises(InputError, match="a number above 0, in the unit of its metric"):
            margin_of({"a": wrong}, "unbounded", "a")


def test_the_margins_of_a_study() -> None:
    base: dict[str, Any] = {"study": "s", "bases": {"b": {"model": "m"}}, "tunings": {}}
    study = Study.model_validate(base | {"margin": 3, "tasks": [{"name": "judge", "margin": 250}, {"name": "piqa"}]})
    assert study.margins() == {"*": Margin(.03), "judge": Margin(2.5, 250), "piqa": Margin(.03)}
    with pytest.raises(ValueError, match="allowed are points above 0, up to 100"):
        TaskSpec(name="piqa", margin=250)


# --- A judge's marks, from import to every report ---

@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ledger]:
    monkeypatch.setenv("AFTERTUNE_LEDGER", str(tmp_path / "l.db"))
    with Ledger() as opened:
        yield opened


def judged(ledger: Ledger, folder: Path, name: str, marks: Sequence[float], *, metric: str = "llm_judge",
           task: str = "judge", better: bool = True) -> Evaluation:
    lines = [choice_line(i, 4, True) | {metric: mark} for i, mark in enumerate(marks)]
    home = one_task_folder(folder, name, task, lines, metric, better=better)
    [result] = import_results(home, ledger=ledger)
    assert result.evaluation is not None
    return result.evaluation


def marks(shift: float, *, low: float = 0, high: float = 100, n: int = 300) -> list[float]:
    """Whole marks around 89, the same items in each model, moved by about ``shift``."""
    draw = random.Random(4)
    return [float(round(min(high, max(low, draw.gauss(89, 6) + shift + draw.gauss(0, 2))))) for _ in range(n)]


@pytest.fixture
def judge(ledger: Ledger, tmp_path: Path) -> Comparison:
    judged(ledger, tmp_path, "base", marks(0))
    judged(ledger, tmp_path, "tuned", marks(-.4))
    return compare("base", "tuned", margins={"judge": Margin.given(2)}, ledger=ledger)


def shown(table: Any) -> str:
    from rich.console import Console

    console = Console(width=120, record=True, file=io.StringIO())
    console.print(table)
    return " ".join(console.export_text().split())


def test_a_judge_is_shown_in_marks_everywhere(judge: Comparison, ledger: Ledger) -> None:
    [row] = judge.rows
    assert (row.unit, row.fraction, row.margin, row.verdict) == ("unbounded", False, 2.0, "within")
    base, tuned = f"{row.base:.2f}", f"{row.tuned:.2f}"
    results = Results.load(ledger)
    first = results.evaluations[0]
    texts = {
        "terminal": shown(terminal_table(judge, width=120)), "scores": shown(terminal_scores(first)),
        "record": write_record(results, title="Judge"), "page": write_page(results, title="Judge"),
        "card": write_card(results.evaluations[1], results).readme, "chart": forest(judge, 760),
        "csv": as_csv(comparison_export(judge, "csv")), "latex": as_latex(comparison_export(judge, "latex")),
        "sentence": " ".join(o.text for o in observations([judge]))}
    for name, text in texts.items():
        assert base in text or tuned in text or name in ("chart", "sentence"), name
        assert not {f"{100 * row.base:.2f}", f"{100 * row.tuned:.2f}", f"{100 * row.delta:+.2f}".replace("-", "−"),
                    "±200.00"} & {word.strip("(),;%") for word in text.split()}, name
    assert "±2.00 in its unit" in texts["terminal"]
    assert "in its own unit, 95 % interval" in texts["sentence"]
    assert "the unit of llm_judge" in texts["chart"]
    assert "or in the unit of a metric that is no share" in texts["page"]
    assert "--margin judge=2" in texts["card"]
    assert [r.unit for r in ledger.find_evaluation("base").scores] == ["unbounded"], "stored with the score"
    assert scores_export(first).rows[0][-1] == "own"
    assert "own" in texts["csv"].splitlines()[1].split(",")


def test_without_a_margin_in_its_unit_it_is_asked_for(judge: Comparison, ledger: Ledger,
                                                      monkeypatch: pytest.MonkeyPatch,
                                                      capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--margin", "5"]):
        assert call(monkeypatch, "compare", "base", "tuned", "--json", *arguments) == 0
        [row] = json.loads(capsys.readouterr().out)["rows"]
        assert (row["verdict"], row["margin"], row["p"], row["unit"]) == ("undecided", None, None, "own")
        advice = row["note"].split(": give one in this unit, `aftertune compare` with ")[1].split(";")[0]
        assert advice == "--margin judge=VALUE"
    assert call(monkeypatch, "compare", "base", "tuned", "--json", *advice.replace("VALUE", "2").split()) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["verdict"] == "within"


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["aftertune", *arguments])
    return guarded(app)


def test_a_task_without_a_margin_is_no_member_of_the_family(ledger: Ledger, tmp_path: Path) -> None:
    """Holm's correction counts the tests that are made."""
    alone = compare(*(_two_tasks(ledger, tmp_path, with_judge=False)), ledger=ledger).rows[0]
    both = {r.task: r for r in compare(*(_two_tasks(ledger, tmp_path, with_judge=True)), ledger=ledger).rows}
    assert both["judge"].p is None
    assert both["choose"].p_adjusted == alone.p_adjusted


def _two_tasks(ledger: Ledger, tmp_path: Path, *, with_judge: bool) -> tuple[str, str]:
    names = []
    for side, shift in (("base", 0.0), ("tuned", -.4)):
        name = f"{side}{with_judge:d}"
        right = [i % 7 > (2 if shift else 1) for i in range(300)]
        home = one_task_folder(tmp_path, name, "choose", [choice_line(i, 4, r) for i, r in enumerate(right)], "acc")
        if with_judge:
            values = marks(shift)
            path = next(home.glob("results_*.json"))
            results = json.loads(path.read_text())
            for section, value in (("results", {"llm_judge,none": sum(values) / len(values)}),
                                   ("higher_is_better", {"llm_judge": True}), ("versions", 1.0), ("n-shot", 0),
                                   ("configs", results["configs"]["choose"] | {"task": "judge"}),
                                   ("n-samples", results["n-samples"]["choose"])):
                results[section]["judge"] = value
            path.write_text(json.dumps(results))
            lines = [choice_line(i, 4, True) | {"llm_judge": m} for i, m in enumerate(values)]
            rows = [{"doc_id": i, "filter": "none", "metrics": ["llm_judge"], "filtered_resps": [], **line}
                    for i, line in enumerate(lines)]
            (home / path.name.replace("results", "samples_judge").replace(".json", ".jsonl")).write_text(
                "".join(json.dumps(row) + "\n" for row in rows))
        import_results(home, ledger=ledger)
        names.append(name)
    return names[0], names[1]


def test_a_gate_limits_a_judge_in_marks(judge: Comparison, ledger: Ledger) -> None:
    _, [line] = gate("base", "tuned", {"judge": Margin.given(2)}, ledger=ledger, require_proof=True)
    assert (line.outcome, line.failed, line.limit) == ("held", False, 2.0)
    assert "no drop of more than 2.00 in the unit of llm_judge (−0." in gate_text(line)
    assert "points" not in write_junit([line], title="t")
    _, [line] = gate("base", "tuned", {"judge": Margin.given(.05)}, ledger=ledger)
    assert line.outcome == "dropped"


def test_a_mean_inside_0_to_1_of_marks_outside_is_no_share(ledger: Ledger, tmp_path: Path) -> None:
    stored = judged(ledger, tmp_path, "base", [0.0, 0, 0, 3, 1, 0.8] * 20)
    assert 0 < stored.scores[0].value < 1
    assert "0.8000" in shown(terminal_scores(ledger.find_evaluation("base")))
    old = replace(stored.scores[0], unit="")
    assert old == stored.scores[0], "an older ledger has no unit; that is no other score"


def test_lower_is_better_in_its_own_unit(ledger: Ledger, tmp_path: Path) -> None:
    draw = random.Random(2)
    base = [draw.uniform(0, 2) for _ in range(200)]
    judged(ledger, tmp_path, "base", base, metric="wer", task="speech", better=False)
    judged(ledger, tmp_path, "tuned", [b + .2 + draw.gauss(0, .1) for b in base], metric="wer", task="speech",
           better=False)
    [row] = compare("base", "tuned", margins={"speech": .1}, ledger=ledger).rows
    assert (row.fraction, row.verdict, row.at_floor) == (False, "lower", False)
    assert row.delta == pytest.approx(-.2, abs=.05)


def test_intervals_in_the_notes_are_in_the_unit_of_the_metric(ledger: Ledger, tmp_path: Path) -> None:
    """Error rates that happen to lie in [0, 1] are no shares: no points in the notes, and no bound that shares have."""
    draw = random.Random(2)
    base = [draw.uniform(0, .8) for _ in range(12)]
    for name, shift in (("base", 0.0), ("tuned", .05)):
        judged(ledger, tmp_path, name, [b + shift + draw.uniform(0, .1) for b in base], metric="wer", task="speech",
               better=False)
    [row] = compare("base", "tuned", margins={"speech": .1}, ledger=ledger).rows
    [interval] = [d for d in row.details if d.startswith("bootstrap")]
    ends = [float(word.replace("−", "-")) for word in interval.split() if word[0] in "+−"]
    assert ends == pytest.approx([row.low, row.high], abs=.03)


def test_a_share_may_exceed_1_by_rounding() -> None:
    test = PairedSequential(4, .02)
    test.update([1 + 2e-16, -1.0, 0.0])
    with pytest.raises(ValueError, match="allowed are"):
        test.update([1.1])
    evidence = paired_evidence(np.array([1 + 2e-16, .5, .2]), np.array([1.0, .5, .1]), margin=.02)
    assert evidence.shares


def test_rows_and_scores_of_older_versions_have_no_unit() -> None:
    """They are shown by the catalog and by their figures; the verdicts stay."""
    row = replace(report_cases.CAREFUL_ROWS[0], metric="llm_judge", base=89.2, tuned=88.9, delta=-.3)
    assert (row.unit, row.fraction) == ("", False)
    assert report_cases.CAREFUL_ROWS[0].fraction
    facts: dict[str, Any] = {"task": "t", "filter": "none", "stderr": None, "n": 10}
    assert not Score(metric="bypass", value=999.0, **facts).fraction
    assert not Score(metric="own", value=37.0, **facts).fraction
    assert Score(metric="own", value=.37, **facts).fraction


def test_the_page_states_a_verdict_in_its_own_unit() -> None:
    rows = (replace(report_cases.CARELESS_ROWS[0], metric="word_perplexity"),)
    comparison = replace(report_cases.COMPARISONS[1], rows=rows)
    page = write_page(report_cases.results(report_cases.EVALUATIONS, report_cases.TUNINGS, [comparison]), title="t")
    assert "careless forgot on HellaSwag (−0.1100 in its own unit)." in page


# --- Early stopping and the forgetting watch ---

def test_a_value_outside_0_to_1_ends_the_sequential_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """A metric that was taken for a share: all items are asked, and nothing is decided from its bets."""
    unit = EarlyUnit(name="t", key="f1,none", tasks=("t",), items=40, batch=8, order="")
    order = [("t", i, ("t", i)) for i in range(40)]
    early = Early(against="e", seed=0, margins={"t": .02}, units=(unit,))
    test = RunningTest(unit, order, 1, np.ones(40, dtype=bool), PairedSequential(None, .02))
    answers = {("t", i): {"f1,none": 100.0 if i == 3 else 0.0} for i in range(40)}
    test.analyze(answers, answers, early)
    assert (test.used, test.decided, test.no_share, test.sequential) == (8, False, True, None)
    assert len(test.next_batch()) == 32
    test.analyze(answers, answers, early)
    assert (test.decided, test.stopped) == (True, False)


def test_a_watch_refuses_a_metric_in_its_own_unit() -> None:
    class Task:
        settings = report_cases.settings("speech", 10, 10, primary="wer,none")

    with pytest.raises(InputError, match=r"--watch speech: wer is no share .* --margin speech=VALUE"):
        refuse_own_unit(Task())  # type: ignore[arg-type]
    Task.settings = report_cases.settings("judge", 10, 10, primary="llm_judge,none")
    refuse_own_unit(Task(), [.0, 1.0])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="leave judge out of --watch"):
        refuse_own_unit(Task(), [.0, 5.0])  # type: ignore[arg-type]


def test_a_watch_point_in_its_own_unit_is_not_tested() -> None:
    point = WatchPoint(step=5, task="judge", metric="llm_judge", n=9, base=.9, tuned=4.5, delta=3.6, low=3.0, high=4.2,
                       verdict="undecided")
    assert "judge 0.9000 → 4.5000, +3.6000 in its own unit (+3.0000 to +4.2000)" in watch_text(point)
    assert "not tested" in watch_text(point)
    settings = report_cases.settings("judge", 4, 4, primary="llm_judge,none")
    items = [Item(task="judge", index=i, hash=str(i), doc={}) for i in range(4)]
    task: Any = type("Task", (), {"settings": settings, "items": items})()
    base, tuned = ([_answer(i, v) for i, v in enumerate(values)] for values in ((0, 1, 1, 0), (0, 5, 5, 5)))
    point = watch_point(task, base, tuned, step=5, margin=2.0, family=1)
    assert (point.fraction, point.verdict) == (False, "undecided")


def _answer(index: int, value: float) -> Answer:
    return Answer(task="judge", index=index, item=str(index), metrics={"llm_judge,none": float(value)})
