"""``runs`` with its filters, ``rename``, ``tag``, ``note`` and ``rm``, ``show`` of a tuning and of what was left."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

import ledger_cases as cases
from aftertune.cli.ledger import print_facts
from aftertune.errors import ResourceError
from aftertune.ledger import EntryLabel, Ledger
from aftertune.values import Comparison, Evaluation, HeldOut, Provenance
from cli_cases import call, settle

LONG = "mmlu_high_school_computer_science"


def evaluated(ledger: Ledger, id_: str, name: str, task: str = "arc_easy", **changes: object) -> Evaluation:
    opened = ledger.open_evaluation(cases.evaluation(id_, name, tasks=(cases.settings(task),), **changes),
                                    cases.items(task))
    ledger.save_batch(id_, 0, cases.responses())
    scores = tuple(replace(score, task=task) for score in cases.scores())
    return ledger.finish_evaluation(replace(opened, scores=scores), *cases.answered(cases.items(task),
                                                                                     cases.responses()))


@pytest.fixture(autouse=True)
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A ledger with two finished evaluations, one that was interrupted, a tuning, a comparison and a study."""
    settle(monkeypatch, tmp_path)
    with Ledger() as opened:
        evaluated(opened, "e-base000001", "base",
                  provenance=Provenance(command="eval base", started="2026-01-02T03:04"))
        evaluated(opened, "e-tuned00001", "tuned", LONG, tuning="t-orders0001",
                  provenance=Provenance(command="eval tuned", started="2026-02-02T03:04"))
        opened.open_evaluation(cases.evaluation("e-half000001", "half", provenance=Provenance(
            command="aftertune eval half --tasks arc_easy", started="2026-03-01T00:00")), cases.items())
        opened.save_tuning(cases.tuning("t-orders0001", "orders", status="done", result="f" * 64, output=str(tmp_path),
                                        held_out=HeldOut(n=20, before=2.5, after=1.25, low=-1.5, high=-1.0)))
        opened.save_comparison(Comparison(id="c-1234567890", base="e-base000001", tuned="e-tuned00001",
                                          base_name="base", tuned_name="tuned", lineage=True, rows=()))
        opened.save_study("orders-study", "h" * 64, "study: orders-study\n")
        opened.save_cell("orders-study", "evaluate tuned", "done", ref="e-tuned00001")
    return tmp_path / "ledger.db"


def listed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """Ids of what ``runs WORDS`` lists, in its order."""
    assert call(monkeypatch, "runs", *words) == 0
    return [word for word in capsys.readouterr().out.split() if word[:2] in ("e-", "t-", "c-")]


@pytest.mark.parametrize(("words", "expected"), [
    ((), ["e-base000001", "e-tuned00001", "e-half000001", "t-orders0001", "c-1234567890"]),
    (("--task", LONG), ["e-tuned00001"]), (("--status", "interrupted"), ["e-half000001"]),
    (("--status", "running"), []), (("--since", "2026-02"), ["e-tuned00001", "e-half000001"]),
    (("--sort", "name", "--status", "done"), ["e-base000001", "t-orders0001", "e-tuned00001", "c-1234567890"]),
    (("--reverse", "--status", "done"), ["c-1234567890", "t-orders0001", "e-tuned00001", "e-base000001"]),
    (("ORDERS",), ["t-orders0001"]), (("--base", "e-base"), ["c-1234567890"]),
])
def test_runs_filters_sorts_and_searches(words: tuple[str, ...], expected: list[str], monkeypatch: pytest.MonkeyPatch,
                                         capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert listed(monkeypatch, capsys, *words) == expected


@pytest.mark.parametrize(("words", "message"), [
    (("--sort", "nmae"), "--sort nmae: allowed are added, name, kind, status, started (did you mean 'name'?)"),
    (("--status", "dead"), "--status dead: allowed are done, running"),
    (("--since", "yesterday"), "--since 'yesterday': write a date such as 2026-01-31, or an age such as 12h"),
    (("--since", "2026-02-30"), "--since '2026-02-30': there is no such date"),
    (("--since", "2026-13"), "--since '2026-13': there is no such date")])
def test_a_wrong_filter_is_named(words: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch,
                                 capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "runs", *words) == 2
    assert message in capsys.readouterr().err


def test_the_base_finds_merged_fine_tunes_and_comparisons(monkeypatch: pytest.MonkeyPatch,
                                                          capsys: pytest.CaptureFixture[str]) -> None:
    """Also an evaluation whose model is the output folder of a fine-tune, and a comparison by the source of its base.
    """
    monkeypatch.setenv("COLUMNS", "200")
    with Ledger() as opened:
        evaluated(opened, "e-merged0001", "merged", tuning="t-orders0001",
                  model=replace(cases.MODEL, source="out", weights="x" * 64))
        evaluated(opened, "e-other00001", "other", model=replace(cases.MODEL, source="org/other", weights="y" * 64))
    assert listed(monkeypatch, capsys, "--base", "LLM/model") == [
        "e-base000001", "e-tuned00001", "e-half000001", "e-merged0001", "t-orders0001", "c-1234567890"]


def test_json_has_the_order_that_was_asked_for(monkeypatch: pytest.MonkeyPatch,
                                               capsys: pytest.CaptureFixture[str]) -> None:
    for words, expected in ((("--sort", "name"), ["base", "half", "tuned"]),
                            (("--reverse",), ["half", "tuned", "base"])):
        assert call(monkeypatch, "runs", "--json", *words) == 0
        assert [e["name"] for e in json.loads(capsys.readouterr().out)["evaluations"]] == expected


@pytest.mark.parametrize("width", [60, 80, 100, 140, 200])
def test_the_list_fits_and_cuts_no_name_of_a_task(width: int, monkeypatch: pytest.MonkeyPatch,
                                                  capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert call(monkeypatch, "runs") == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= width
    assert LONG in shown


def test_tags_and_notes_are_kept_and_found(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "tag", "base", "paper", "final") == 0
    assert call(monkeypatch, "tag", "base", "final", "--remove") == 0
    assert call(monkeypatch, "note", "orders", "seed 0 of table 2") == 0
    capsys.readouterr()
    assert listed(monkeypatch, capsys, "--tag", "paper") == ["e-base000001"]
    assert listed(monkeypatch, capsys, "table 2") == ["t-orders0001"]
    assert call(monkeypatch, "show", "orders") == 0
    assert "seed 0 of table 2" in capsys.readouterr().out
    assert call(monkeypatch, "note", "orders", "read with token=hf_canaryCANARY0123456789") == 0
    with Ledger() as opened:
        assert opened.labels()["t-orders0001"].note == "read with token=[redacted]"
    assert call(monkeypatch, "note", "orders", "") == 0
    with Ledger() as opened:
        assert opened.labels() == {"e-base000001": EntryLabel(tags=("paper",))}
        assert [f for f in opened.check() if f.problem] == []
    assert call(monkeypatch, "tag", "base", "gone", "--remove") == 2
    assert "e-base000001 has no tag 'gone'; its tags: paper" in capsys.readouterr().err


def test_a_label_that_was_changed_by_others_is_damage(ledger: Path) -> None:
    with Ledger() as opened:
        opened.save_label("e-base000001", EntryLabel(note="true"))
    with sqlite3.connect(ledger) as raw:
        raw.execute("UPDATE label SET note = 'false'")
    raw.close()
    with Ledger() as opened, pytest.raises(Exception, match="the label of e-base000001 is damaged"):
        opened.labels()


def test_rename_changes_the_name_everywhere_and_the_id_nowhere(monkeypatch: pytest.MonkeyPatch,
                                                               capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "rename", "base", "base-v2") == 0
    assert "e-base000001 is now called base-v2 (before: base)" in capsys.readouterr().out
    with Ledger() as opened:
        assert opened.find_evaluation("base-v2").id == "e-base000001"
        assert opened.find_comparison("c-1234567890").base_name == "base-v2"
        assert len(opened.answers("base-v2")) == 6
    for words, message in ((("base-v2", "tuned"), "'tuned' is the name of evaluation e-tuned00001"),
                           (("base-v2", "t-orders0001"), "'t-orders0001' is an id in the ledger"),
                           (("base-v2", "a b"), "'a b': a name has letters"), (("nobody", "x"), "no evaluation")):
        assert call(monkeypatch, "rename", *words) == 2
        assert message in capsys.readouterr().err


def test_rm_says_what_goes_and_needs_a_yes(monkeypatch: pytest.MonkeyPatch,
                                           capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "rm", "tuned") == 2
    out, err = capsys.readouterr()
    assert "evaluation e-tuned00001 (tuned) with its answers and scores" in out
    assert "goes with it: 1 comparison (c-1234567890)" in out
    assert "study orders-study: 'evaluate tuned' is planned again" in out
    assert "add --yes to remove" in err
    assert call(monkeypatch, "rm", "tuned", "c-1234567890", "--yes") == 0
    with Ledger() as opened:
        assert [e.id for e in opened.evaluations()] == ["e-base000001", "e-half000001"]
        assert opened.comparisons() == []
        assert [(c.status, c.ref) for c in opened.cells("orders-study")] == [("planned", None)]
        assert [f for f in opened.check() if f.problem] == []
    capsys.readouterr()
    assert call(monkeypatch, "rm", "orders", "--dry-run", "--json") == 0
    assert json.loads(capsys.readouterr().out)["entries"][0]["kind"] == "tuning"
    assert call(monkeypatch, "rm", "orders", "--yes") == 0
    with Ledger() as opened:
        assert opened.tunings() == []
        assert [f for f in opened.check() if f.problem] == []


def test_what_another_process_works_on_is_running_and_stays(monkeypatch: pytest.MonkeyPatch,
                                                            capsys: pytest.CaptureFixture[str]) -> None:
    with Ledger() as opened:
        opened.acquire("e-half000001")
    assert listed(monkeypatch, capsys, "--status", "running") == ["e-half000001"]
    with Ledger() as opened, opened.database.write() as connection:
        connection.exec_driver_sql("UPDATE lease SET pid = 1, started = 'never'")
    assert listed(monkeypatch, capsys, "--status", "interrupted") == ["e-half000001"]
    assert call(monkeypatch, "show", "half") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "interrupted: no process works on it. To resume, run the same command again: aftertune eval half" in shown
    assert call(monkeypatch, "rm", "half", "--yes") == 0


@pytest.mark.parametrize("words", [("rename", "half", "other"), ("rm", "base", "half", "--yes")])
def test_nothing_changes_where_another_process_works(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch,
                                                     capsys: pytest.CaptureFixture[str]) -> None:
    """It would store the name that it was started with; and of several entries, none is removed before that is known.
    """
    with Ledger() as opened:
        opened.acquire("e-half000001")
        with opened.database.write() as connection:
            connection.exec_driver_sql("UPDATE lease SET host = 'elsewhere'")
    assert call(monkeypatch, *words) == 4
    assert "evaluation e-half000001 is in use by process" in capsys.readouterr().err
    with Ledger() as opened:
        assert [e.name for e in opened.evaluations()] == ["base", "tuned", "half"]
        if words[0] == "rename":
            with pytest.raises(ResourceError, match="is in use by process"):
                opened.rename("e-half000001", "other")


@pytest.mark.parametrize("width", [60, 80, 160])
def test_a_tuning_is_a_readable_card(width: int, monkeypatch: pytest.MonkeyPatch,
                                     capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert call(monkeypatch, "show", "orders") == 0
    shown = capsys.readouterr().out
    assert "{" not in shown, "no JSON"
    assert max(map(len, shown.splitlines())) <= width
    for text in ("orders", "Training Data Size", "600 examples", "Held-out Loss", "2.500 before, 1.250 after"):
        assert text in " ".join(shown.split())


@pytest.mark.parametrize("width", [40, 60, 160])
def test_a_long_word_of_a_fact_is_folded_and_never_cut(width: int, monkeypatch: pytest.MonkeyPatch,
                                                       capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    command = f"aftertune eval {'very-long-folder/' * 12}model.gguf"
    print_facts([("Evaluation Command", command)])
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= width
    folded = "".join(shown.split()).removeprefix("EvaluationCommand")
    assert folded == command.replace(" ", "")


def test_scores_and_comparisons_are_exported_as_markdown(monkeypatch: pytest.MonkeyPatch,
                                                         capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "export", "base", "--format", "markdown") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("## base")
    assert lines[2].startswith("| task | metric |")
    assert set(lines[3]) == set("| -:")
    assert lines[4].startswith("| arc_easy | acc |")
    assert {line.count("|") - line.count(r"\|") for line in lines[2:]} == {lines[2].count("|")}
