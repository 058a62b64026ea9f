"""A name that several entries have is answered with their ids, by every verb that takes a name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sqlalchemy import select

import ledger_cases as cases
from aftertune.ledger import Ledger
from aftertune.ledger.digests import seal
from aftertune.ledger.schema import evaluation as stored_evaluation
from cli_cases import call, one_line, settle
from test_comparison import ADAPTED, BASE, evaluated, right, settings


@pytest.fixture(autouse=True)
def two_of_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two evaluations and two fine-tunes called "twin", one evaluation called "base"."""
    settle(monkeypatch, tmp_path)
    (tmp_path / "task.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    task = settings("t", 40)
    with Ledger() as ledger:
        evaluated(ledger, "base", BASE, [(task, right(30, 40))])
        for number, size in enumerate((20, 25)):
            done = evaluated(ledger, f"twin-{number}", ADAPTED, [(task, right(size, 40))])
            with ledger.database.write() as connection:
                connection.exec_driver_sql("UPDATE evaluation SET name = 'twin' WHERE id = ?", (done.id,))
                seal(connection, stored_evaluation, list(connection.execute(
                    select(stored_evaluation.c.seq)).scalars()))
            ledger.save_tuning(cases.tuning(f"t-{number}", "twin"))


def ids() -> list[str]:
    with Ledger() as ledger:
        return [e.id for e in ledger.evaluations() if e.name == "twin"]


@pytest.mark.parametrize("words", [
    ("show", "twin"), ("export", "twin"), ("export", "twin", "--format", "csv"), ("card", "twin"),
    ("compare", "base", "twin"), ("compare", "twin", "base"), ("flips", "base", "twin", "--task", "t"),
    ("gate", "base", "twin", "--max-drop", "t=2"), ("record", "--only", "twin"), ("report", "--only", "twin"),
    ("plan-items", "base", "twin"),
    ("eval", "model", "--tasks", "sciq", "--until-decided", "--against", "twin")], ids=" ".join)
def test_evaluations(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch,
                     capfd: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, *words) == 2
    assert not one_line(capfd, ("2 evaluations in the ledger are called 'twin'", "give the id", *ids()))


def test_fine_tunes(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "check-merge", "twin") == 2
    assert not one_line(capfd, ("2 tunings in the ledger are called 'twin'", "t-0", "t-1", "give the id"))


def test_an_id_is_never_ambiguous_and_advice_names_ids(monkeypatch: pytest.MonkeyPatch,
                                                       capfd: pytest.CaptureFixture[str]) -> None:
    first, second = ids()
    assert call(monkeypatch, "compare", first, second) == 0
    capfd.readouterr()
    assert call(monkeypatch, "gate", "base", first, "--max-drop", "t=2") == 1
    assert f"`aftertune flips base {first} --task t --lost`" in capfd.readouterr().err
