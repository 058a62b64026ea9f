"""A damaged ledger: every verb that reads the damage says so in one line with exit code 5, and doctor names it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

import stored_cases as stored
from aftertune.ledger import Ledger
from cli_cases import call, one_line, settle

#: What is done to the file -> the entry that is damaged, and the verbs that read it.
DAMAGES = {
    "UPDATE evaluation SET value = '{' WHERE id = 'e-full'": ("e-full", ("runs", "show e-full", "show full")),
    "UPDATE evaluation SET value = '3' WHERE id = 'e-full'": ("e-full", ("runs", "show full")),
    "UPDATE task SET value = '{' WHERE position = 0": ("e-full", ("runs", "show full")),
    "UPDATE model SET value = '{'": ("e-full", ("runs", "show full", "show careful")),
    "UPDATE schedule SET value = '['": ("e-full", ("runs", "show full")),
    "UPDATE tuning SET value = '{' WHERE id = 't-full'": ("t-full", ("runs", "show careful")),
    "UPDATE step SET value = ''": ("t-full", ("runs", "show careful")),
    "UPDATE comparison SET value = '{' WHERE id = 'c-full'": ("c-full", ("runs", "show c-full")),
    "UPDATE comparison SET value = '[]' WHERE id = 'c-full'": ("c-full", ("runs", "show c-full")),
    "UPDATE reported_score SET extra = '{'": ("", ("runs", "show full")),
    "UPDATE answer SET metrics = '{' WHERE metrics IS NOT NULL": ("e-full", ("export full --no-prompts",)),
    "UPDATE answer SET responses = NULL": ("e-full", ("export full --no-prompts",)),
    "UPDATE answer SET responses = '[99]' WHERE metrics IS NOT NULL": ("e-full", ("export full --no-prompts",)),
    "UPDATE item SET doc = '{'": ("e-full", ("export full --no-prompts",)),
    "DELETE FROM model": ("e-full", ("runs", "show full", "show careful")),
    "DELETE FROM item": ("e-full", ("export full --no-prompts",)),
    "DELETE FROM response": ("e-full", ("export full --no-prompts",)),
}


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    settle(monkeypatch, tmp_path)
    stored.fill(tmp_path / "ledger.db")
    return tmp_path / "ledger.db"


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_one_line_from_every_verb_and_doctor_names_it(
        path: Path, damage: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    with closing(sqlite3.connect(path)) as raw, raw:
        assert raw.execute(damage).rowcount
    entry, verbs = DAMAGES[damage]
    for verb in verbs:
        assert call(monkeypatch, *verb.split()) == 5, verb
        assert one_line(capfd, ("aftertune doctor",)) == "", verb
    with Ledger(path) as ledger:
        problems = [f.problem for f in ledger.check() if f.name == "entries"]
    assert all(problems)
    assert any(entry in problem for problem in problems)
    assert not any("\n" in problem for problem in problems)


def test_a_damaged_evaluation_can_be_removed(path: Path) -> None:
    """The way that doctor names for a ledger without a backup."""
    with closing(sqlite3.connect(path)) as raw, raw:
        raw.execute("UPDATE evaluation SET value = '{' WHERE id = 'e-full'")
    with Ledger(path) as ledger:
        ledger.delete_evaluation("e-full")
        assert [e.id for e in ledger.evaluations()] == ["e-open"]
        assert [f.problem for f in ledger.check() if f.name == "entries"] == [""]
