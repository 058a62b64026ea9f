"""Every output speaks of a row in the same word, with and without lineage."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from aftertune.api.objects import comparison_object
from aftertune.comparison import compare
from aftertune.comparison.gate import gate
from aftertune.ledger import Ledger
from aftertune.report import Results, gate_text, terminal_table, write_page, write_record
from aftertune.report.badges import BADGES
from aftertune.report.sentences import observations
from aftertune.values import Comparison
from early_cases import ADAPTED, BASE, STRANGER, changed, store

#: Task -> (items, gained, lost) that give its verdict at a margin of 2 points in a family of seven.
CASES = {"lower": (2000, 60, 260), "higher": (2000, 260, 60), "within": (2000, 10, 12), "worse": (1000, 20, 55),
         "better": (1000, 55, 20), "no_loss": (1500, 80, 62), "undecided": (200, 10, 11)}
LABELS = {"lower": "forgot", "higher": "improved", "within": "kept", "worse": "worse", "better": "better",
          "no_loss": "no loss", "undecided": "undecided"}
NEUTRAL = {**LABELS, "lower": "lower", "higher": "higher", "within": "within", "no_loss": "not lower"}


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, dict[str, Comparison], Ledger]:
    base, tuned = {}, {}
    for task, (n, gained, lost) in CASES.items():
        base[f"t_{task}"], tuned[f"t_{task}"] = changed(n, .6, gained, lost)
    with Ledger(tmp_path_factory.mktemp("words") / "ledger.db") as ledger:
        sides = [store(ledger, "base", BASE, base), store(ledger, "tuned", ADAPTED, tuned),
                 store(ledger, "stranger", STRANGER, tuned)]
        comparisons = {name: compare("base", name, ledger=ledger) for name in ("tuned", "stranger")}
        return Results(evaluations=sides, comparisons=list(comparisons.values())), comparisons, ledger


@pytest.mark.parametrize(("name", "labels"), [("tuned", LABELS), ("stranger", NEUTRAL)])
def test_rows_data_and_terminal(compared: tuple[Results, dict[str, Comparison], Ledger], name: str,
                                labels: dict[str, str]) -> None:
    comparison = compared[1][name]
    own = [r for r in comparison.rows if not r.average_of]
    assert {r.task: r.verdict for r in own} == {f"t_{v}": v for v in CASES}
    assert {r.task: r.told for r in own} == {f"t_{v}": word for v, word in labels.items()}
    rows = json.loads(json.dumps(comparison_object(comparison), default=str))["rows"]
    assert {(r["verdict"], r["label"]) for r in rows} == set(labels.items())
    console = Console(width=160, record=True, file=StringIO())
    console.print(terminal_table(comparison, width=160))
    lines = console.export_text().splitlines()
    lines = lines[next(i for i, line in enumerate(lines) if comparison.id in line):]
    for verdict, word in labels.items():
        start = next(i for i, line in enumerate(lines) if line.startswith(f"t_{verdict}"))
        block = lines[start + 1:start + 5]  # a long note takes more than one line
        assert any(line.lstrip().startswith("acc  Accuracy") and line.rstrip().endswith(f"  {word}") for line in block)
    needed = [r.items_needed is not None or "decided with this task" in r.note or "decides it" in r.note
              for r in comparison.rows if r.verdict in ("worse", "better", "no_loss", "undecided")]
    assert all(needed)


def test_record_page_and_sentences(compared: tuple[Results, dict[str, Comparison], Ledger]) -> None:
    results, comparisons, _ = compared
    record, page = write_record(results, title="x"), write_page(results, title="x")
    for verdict in CASES:
        for word in (LABELS[verdict], NEUTRAL[verdict]):
            assert f"**{word}**" in record
            assert f"</span> {word}</span>" in page
        assert BADGES[verdict].symbol in page  # type: ignore[index]
    told = {o.lead: o.text for o in observations([comparisons["tuned"]])}
    assert list(told) == ["Forgetting", "Improvement", "Kept", "Worse", "Better", "No loss", "Undecided"]
    assert told["Worse"].startswith("Compared with base, tuned is worse (not proven beyond the margin) on ")
    assert told["No loss"].startswith("Compared with base, tuned lost no more than the margin on ")
    neutral = {o.lead: o.text for o in observations([comparisons["stranger"]])}
    assert "No loss" not in neutral
    assert "stranger does not score more than the margin below base" in neutral["Not lower"]
    assert not any("forg" in text or "lost" in text for text in neutral.values())


def test_the_gate_takes_no_loss_as_proof(tmp_path: Path) -> None:
    base, tuned = changed(1500, .6, 80, 62)
    with Ledger(tmp_path / "ledger.db") as ledger:
        store(ledger, "base", BASE, {"t": base})
        store(ledger, "tuned", ADAPTED, {"t": tuned})
        _, (line,) = gate("base", "tuned", {"t": .02}, ledger=ledger, require_proof=True)
    assert (line.row.verdict, line.outcome, line.failed) == ("no_loss", "held", False)
    assert gate_text(line).startswith("passed  t: proven: no drop of more than 2.00 points (")
