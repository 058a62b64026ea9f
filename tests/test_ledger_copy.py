"""Copies of ledgers: between files and servers, in whole and in part, again and after an interruption."""

from __future__ import annotations

import dataclasses
import json
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from sqlalchemy import Connection

import ledger_cases as cases
import stored_cases as stored
from aftertune.errors import AmbiguousName, InputError, StorageError
from aftertune.ledger import EntryLabel, Ledger, copying
from aftertune.ledger.copying import CopiedEntry, chosen_entries, copy_entries
from aftertune.ledger.lease import Process
from aftertune.ledger.schema import lease
from aftertune.values import Drift, Response
from cli_cases import call, one_line, settle
from postgres_cases import Server


@pytest.fixture
def full(tmp_path: Path) -> Path:
    """A ledger that has every kind of entry."""
    path = tmp_path / "full.db"
    stored.fill(path)
    with Ledger(path) as ledger:
        ledger.save_label("e-full", EntryLabel(tags=("paper",), note="seed 0"))
        ledger.save_drift(Drift(id="d-1", base=cases.MODEL, tuned=cases.MODEL, dtype="float32", device="cpu",
                                prompts=1, tokens=8, seed=0, groups=()))
    return path


def copied(source: Path | str, target: Path | str, *, replace: bool = False, **chosen: list[str]) -> list[CopiedEntry]:
    with Ledger(source, create=False, read_only=True) as first, Ledger(target) as second:
        return list(copy_entries(first.database, second.database, chosen_entries(first.database, **chosen),
                                 replace=replace))


def values(place: Path | str) -> list[str]:
    """Everything that a ledger says, in its order."""
    with Ledger(place) as ledger:
        return [*stored.read(place), repr(ledger.labels())]


def test_a_copy_is_equal_by_digest_and_in_every_value(full: Path, place: Path | str, tmp_path: Path) -> None:
    """From a file to each kind of ledger, and back to a file."""
    there = copied(full, place)
    assert {entry.state for entry in there} == {"copied"}
    assert {entry.kind for entry in there} == {"tuning", "evaluation", "comparison", "drift", "study", "label",
                                               "reported_score"}
    back = copied(place, tmp_path / "back.db")
    assert [(e.kind, e.id, e.sha256) for e in back] == [(e.kind, e.id, e.sha256) for e in there]
    assert values(place) == values(full) == values(tmp_path / "back.db")
    again = copied(full, place)
    assert {entry.state for entry in again} == {"there"}
    assert [e.sha256 for e in again] == [e.sha256 for e in there]
    with Ledger(place) as ledger:
        assert [f.problem for f in ledger.check() if f.name == "entries"] == [""]


def finished(ledger: Ledger, id_: str, name: str) -> None:
    asked, given = cases.items(), cases.responses()
    ledger.open_evaluation(cases.evaluation(id_, name), asked)
    ledger.save_batch(id_, 0, given)
    ledger.finish_evaluation(cases.evaluation(id_, name, scores=cases.scores()), *cases.answered(asked, given))


def test_a_study_brings_what_its_cells_made_and_nothing_else(tmp_path: Path, place: Path | str) -> None:
    source = tmp_path / "source.db"
    with Ledger(source) as ledger:
        ledger.save_tuning(cases.tuning("t-1", "careful"))
        for id_, name in (("e-1", "base"), ("e-2", "tuned"), ("e-3", "other")):
            finished(ledger, id_, name)
        ledger.save_study("orders", "h", "study: orders")
        ledger.save_cell("orders", "evaluate base", "done", ref="e-1")
        ledger.save_cell("orders", "tune careful", "done", ref="t-1")
        ledger.save_study("another", "h", "")
    assert {e.id for e in copied(source, place, studies=["orders"])} == {"orders", "e-1", "t-1"}
    with Ledger(place) as ledger:
        assert [c.ref for c in ledger.cells("orders")] == ["e-1", "t-1"]
        assert len(ledger.answers("e-1")) == 6
        assert [e.id for e in ledger.evaluations()] == ["e-1"]
    assert {e.id for e in copied(source, place, runs=["tuned"])} == {"e-2"}
    with Ledger(source) as ledger:
        ledger.save_cell("orders", "evaluate careful", "done", ref="e-2")
    assert {e.id: e.state for e in copied(source, place, studies=["orders"])} == {
        "orders": "replaced", "e-1": "there", "e-2": "there", "t-1": "there"}
    with Ledger(source) as ledger, pytest.raises(InputError, match="did you mean 'orders'"):
        chosen_entries(ledger.database, studies=["order"])


def test_an_unfinished_evaluation_is_brought_on_and_one_in_use_waits(
        tmp_path: Path, place: Path | str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "source.db"
    with Ledger(source) as ledger:
        ledger.open_evaluation(cases.evaluation("e-1", "base"), cases.items())
        ledger.save_batch("e-1", 0, {0: Response(logprob=-1.0)})
    assert [e.state for e in copied(source, place)] == ["copied"]
    with Ledger(source) as ledger:
        ledger.save_batch("e-1", 1, {1: Response(logprob=-1.0)})
    assert [e.state for e in copied(source, place)] == ["replaced"]
    with Ledger(place) as ledger:
        assert ledger.done_positions("e-1") == {0, 1}
        ledger.save_batch("e-1", 2, {2: Response(logprob=-1.0)})
    assert [e.state for e in copied(source, place)] == ["differs"]  # the target is further
    with Ledger(source) as ledger, ledger.database.write() as connection:
        connection.execute(lease.insert().values(evaluation=1, heartbeat=2e9, **dataclasses.asdict(
            dataclasses.replace(Process.own(), host="elsewhere", boot="b/1"))))
    assert [e.state for e in copied(source, place, replace=True)] == ["in use"]
    assert call(monkeypatch, "ledger", "copy", str(source), str(place), "--replace") == 4
    assert "1 entry was not copied: evaluation e-1 is in use; copy it later" in capsys.readouterr().err


def test_a_study_that_is_further_in_the_target_is_left(tmp_path: Path, place: Path | str) -> None:
    source = tmp_path / "source.db"
    with Ledger(source) as ledger:
        ledger.save_study("orders", "h", "study: orders")
        ledger.save_cell("orders", "evaluate base", "planned")
    copied(source, place)
    with Ledger(place) as ledger:
        ledger.save_cell("orders", "evaluate base", "done", ref="e-1")
    assert [e.state for e in copied(source, place)] == ["differs"]
    with Ledger(place) as ledger:
        assert [c.status for c in ledger.cells("orders")] == ["done"]
    assert [e.state for e in copied(source, place, replace=True)] == ["replaced"]


def test_a_name_of_several_runs_is_refused_also_where_a_fine_tune_has_it(tmp_path: Path) -> None:
    with Ledger(tmp_path / "source.db") as ledger:
        for id_ in ("e-1", "e-2"):
            ledger.open_evaluation(cases.evaluation(id_, "careful"), cases.items())
        ledger.save_tuning(cases.tuning("t-1", "careful"))
        with pytest.raises(AmbiguousName, match="e-2"):
            chosen_entries(ledger.database, runs=["careful"])


def test_what_differs_is_left_and_replaced_when_it_is_asked_for(full: Path, place: Path | str) -> None:
    copied(full, place)
    with Ledger(place) as ledger:
        ledger.save_label("e-full", EntryLabel(note="of the team"))
        ledger.rename("e-full", "renamed")
    assert {e.id for e in copied(full, place) if e.state == "differs"} >= {"e-full"}
    with Ledger(place) as ledger:
        assert ledger.find_evaluation("e-full").name == "renamed"
    assert not {e.id for e in copied(full, place, replace=True) if e.state == "differs"}
    with Ledger(place) as ledger:
        assert ledger.find_evaluation("e-full").name != "renamed"


def test_a_copy_that_is_interrupted_goes_on(full: Path, place: Path | str, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = copying.seal, []

    def seal(*given: object) -> None:
        calls.append(given)
        if len(calls) == 5:
            raise KeyboardInterrupt
        real(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(copying, "seal", seal)
    with pytest.raises(KeyboardInterrupt):
        copied(full, place)
    with Ledger(place) as ledger:
        assert [f.problem for f in ledger.check() if f.name == "entries"] == [""]
    rest = copied(full, place)
    assert {e.state for e in rest} == {"there", "copied"}
    assert values(place) == values(full)


def test_what_another_copy_has_brought_meanwhile_is_there(full: Path, place: Path | str,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    with Ledger(full, read_only=True) as first, Ledger(place) as second:
        real = second.database.write

        def write() -> AbstractContextManager[Connection]:
            monkeypatch.setattr(second.database, "write", real)
            assert {entry.state for entry in copied(full, place)} == {"copied"}
            return real()

        monkeypatch.setattr(second.database, "write", write)
        done = list(copy_entries(first.database, second.database, chosen_entries(first.database)))
    assert {entry.state for entry in done} == {"there"}


def test_a_damaged_entry_is_not_copied(full: Path, place: Path | str) -> None:
    with Ledger(full) as ledger, ledger.database.write() as connection:
        connection.exec_driver_sql("UPDATE response SET text = 'other' WHERE evaluation = 1")
        connection.exec_driver_sql("UPDATE response SET truncated = 9")
    with pytest.raises(StorageError, match="is damaged in the ledger"):
        copied(full, place)


# The command

def test_the_command_copies_checks_measures_and_vacuums(
        full: Path, postgres: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str]) -> None:
    settle(monkeypatch, tmp_path)
    address = postgres.ledger().replace("aftertune@", "aftertune:c4n4ry-pw@")
    assert call(monkeypatch, "ledger", "copy", str(full), address) == 0
    out, err = capfd.readouterr()
    assert "copied: evaluation e-full" in out
    assert "entries are in postgresql://[" in out
    assert "c4n4ry" not in out + err
    assert call(monkeypatch, "ledger", "copy", str(full), address, "--json") == 0
    done = json.loads(capfd.readouterr().out)
    assert set(done["counts"]) == {"there"}
    assert call(monkeypatch, "ledger", "copy", str(full), str(full)) == 2
    assert one_line(capfd, ("both ledgers are the same",)) == ""
    for place in (str(full), address):
        assert call(monkeypatch, "ledger", "size", place, "--json") == 0
        size = json.loads(capfd.readouterr().out)
        assert size["tables"]["evaluation"]["rows"] == 2
        assert size["bytes"] > 100_000
        assert call(monkeypatch, "ledger", "size", place) == 0
        assert "evaluation" in capfd.readouterr().out
        assert call(monkeypatch, "ledger", "vacuum", place) == 0
        assert "MB now" in capfd.readouterr().out
        assert call(monkeypatch, "ledger", "check", place) == (0 if place == str(full) else 5)  # fsync is off there
        assert "entries: ok" in capfd.readouterr().out


def test_a_wrong_name_makes_no_ledger(full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                      capfd: pytest.CaptureFixture[str]) -> None:
    settle(monkeypatch, tmp_path)
    assert call(monkeypatch, "ledger", "copy", str(full), "new.db", "--study", "nothing") == 2
    assert one_line(capfd, ("no study 'nothing'",)) == ""
    assert not Path("new.db").exists()


@pytest.mark.parametrize(("words", "expected"), [
    (("copy", "a.db"), "aftertune ledger copy FROM TO"), (("size", "a.db", "b.db"), "aftertune ledger size [LEDGER]"),
    (("check", "--replace"), "with copy alone"), (("size", "none.db"), "no ledger here yet")])
def test_a_wrong_form_is_one_line(words: tuple[str, ...], expected: str, tmp_path: Path,
                                  monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    settle(monkeypatch, tmp_path)
    assert call(monkeypatch, "ledger", *words) == 2
    assert one_line(capfd, (expected,)) == ""
