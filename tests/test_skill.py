"""The instructions for agents: they ship with the package, every command in them parses, and none changes a ledger."""

from __future__ import annotations

import re
import shlex
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import typer

import aftertune.cli.reference
from aftertune.cli import VERBS, app
from aftertune.comparison import compare
from aftertune.ledger import Ledger
from cli_cases import call, settle
from early_cases import ADAPTED, BASE, changed, store

#: The verbs that only read.
READING = {"runs", "show", "export", "flips", "record", "plan", "plan-items", "audit", "verify", "doctor"}
TEXT = (Path(aftertune.cli.reference.__file__).parent / "skill.md").read_text(encoding="utf-8")
COMMANDS = [shlex.split(span) for span in re.findall(r"`(aftertune [^`]+)`", TEXT)]


def test_its_commands_only_read_and_parse() -> None:
    verbs = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert len(COMMANDS) == 11
    assert {words[1] for words in COMMANDS} == READING
    for words in COMMANDS:
        verbs[words[1]].make_context(words[1], words[2:])
    others = set(re.findall(r"`([a-z-]+)`", TEXT.partition("## What not to do")[2]))
    assert others <= {*VERBS, "export"}
    assert {"eval", "tune", "run", "compare", "gate", "import", "push"} <= others


def dump(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as raw:
        return list(raw.iterdump())


def test_reading_leaves_the_ledger_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                            capsys: pytest.CaptureFixture[str]) -> None:
    settle(monkeypatch, tmp_path)
    base, tuned = changed(60, 0.7, 2, 20)
    with Ledger(tmp_path / "ledger.db") as ledger:
        sides = [store(ledger, "base", BASE, {"one": base}), store(ledger, "tuned", ADAPTED, {"one": tuned})]
        comparison = compare(*sides, ledger=ledger)
    before = dump(tmp_path / "ledger.db")
    named = {"ID": "tuned", "c-ID": comparison.id, "BASE": "base", "TUNED": "tuned", "TASK": "one"}
    for words in COMMANDS:
        if words[1] in ("runs", "show", "export", "flips", "record"):
            assert call(monkeypatch, *(named.get(word, word) for word in words[1:])) == 0, capsys.readouterr().err
    assert dump(tmp_path / "ledger.db") == before
    capsys.readouterr()
    assert call(monkeypatch, "skill") == 0
    assert capsys.readouterr().out == TEXT
