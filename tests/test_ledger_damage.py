"""A damaged ledger: every verb that reads the damage says so in one line with exit code 5, and doctor names it."""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

import stored_cases as stored
from aftertune.errors import InputError, StorageError
from aftertune.ledger import Ledger
from aftertune.ledger.digests import seal
from aftertune.ledger.schema import response
from cli_cases import call, one_line, settle

#: What is done to the file -> the entry that is damaged, and the verbs that read it.
DAMAGES = {
    "UPDATE evaluation SET value = '{' WHERE id = 'e-full'": ("e-full", ("runs", "show e-full", "show full")),
    "UPDATE evaluation SET value = '3' WHERE id = 'e-full'": ("e-full", ("runs", "show full")),
    "UPDATE task SET value = '{' WHERE position = 0": ("e-full", ("runs", "show full")),
    "UPDATE model SET value = '{'": ("model", ("runs", "show full", "show careful")),
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
    "DELETE FROM model": ("model", ("runs", "show full", "show careful")),
    "DELETE FROM item": ("e-full", ("export full --no-prompts",)),
    "DELETE FROM response": ("e-full", ("export full --no-prompts",)),
}
#: Bits that are flipped, one at a time.
FLIPS = 120


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
        assert one_line(capfd, (entry, "aftertune doctor")) == "", verb
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


@pytest.mark.parametrize(("damage", "word", "kind"), [
    ("UPDATE evaluation SET value = '{' WHERE id = 'e-full'", "full", "evaluation e-full (damaged)"),
    ("UPDATE tuning SET value = '{' WHERE id = 't-full'", "t-full", "tuning t-full (damaged)"),
    ("UPDATE comparison SET value = '{' WHERE id = 'c-full'", "c-full", "comparison c-full (damaged)"),
])
def test_rm_removes_what_is_damaged(path: Path, damage: str, word: str, kind: str, monkeypatch: pytest.MonkeyPatch,
                                    capfd: pytest.CaptureFixture[str]) -> None:
    with closing(sqlite3.connect(path)) as raw, raw:
        assert raw.execute(damage).rowcount
    with Ledger(path) as ledger:
        assert all("aftertune rm ID" in f.remedy for f in ledger.check() if f.name == "entries")
    assert call(monkeypatch, "rm", word, "--yes") == 0
    assert kind in capfd.readouterr().out
    with Ledger(path) as ledger:
        assert [f.problem for f in ledger.check() if f.name == "entries"] == [""]
    assert call(monkeypatch, "runs") == 0


def test_a_flipped_bit_is_detected_or_changes_nothing_that_is_read(path: Path) -> None:
    """Bits of the file's used space, drawn with a fixed seed. Doctor is asked only where an entry is missing."""
    whole, draw, silent = path.read_bytes(), random.Random(21), []
    expected = list(stored.read(path))
    used = [place for place, byte in enumerate(whole) if byte]
    for place in draw.sample(used, FLIPS):
        bit = 1 << draw.randrange(8)
        for old in path.parent.glob("ledger.db*"):
            old.unlink()
        path.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1:])
        if not _detected(path, expected):
            silent.append((place, bit))
    assert silent == []


def _detected(path: Path, expected: list[str]) -> bool:
    """Whether reading says so; or what is read is as before; or an entry is missing, and doctor says so."""
    try:
        found = list(stored.read(path))
    except (StorageError, InputError):  # InputError: an id or a name is not found
        return True
    if found == expected:
        return True
    with Ledger(path) as ledger:
        problems = [f.problem for f in ledger.check() if f.problem and f.name in ("integrity", "entries")]
    return set(found) < set(expected) and bool(problems)


def test_a_batch_is_sealed_without_reading_the_others(path: Path) -> None:
    """The time for a batch must not grow with the evaluation."""
    with Ledger(path) as ledger, ledger.database.write() as connection:
        plans: list[str] = []

        def explain(_c: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
            if statement.startswith("SELECT response"):
                cursor.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
                plans.extend(str(row[3]) for row in cursor.fetchall())

        event.listen(connection, "before_cursor_execute", explain)
        seal(connection, response, [1], 0)
    assert any("ix_response_batch (evaluation=? AND batch=?)" in plan for plan in plans)
