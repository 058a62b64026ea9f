"""Data of commit 6627cb2 reads as it did then, and the same values are written as it wrote them, byte for byte."""

from __future__ import annotations

import json
import math
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import select

import stored_cases as stored
from aftertune.cli.console import jsonable
from aftertune.errors import StorageError
from aftertune.ledger import Ledger
from aftertune.ledger.digests import SEALED, seal
from aftertune.ledger.lease import process_start
from aftertune.ledger.schema import HEAD, metadata
from aftertune.tuning.output import read_manifest, write_manifest
from aftertune.values import Tuning, canonical, digest, json_ready, plain, restore


def test_every_value_of_an_old_ledger_reads_the_same(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    stored.load(path)
    lines = stored.VALUES.read_text(encoding="utf-8").splitlines()
    assert [stored.without_new_fields(line) for line in stored.read(path)] == lines


def test_opening_an_old_ledger_adds_digests_and_changes_nothing_else_in_it(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    stored.load(path)
    Ledger(path).close()
    assert stored.dump(path) == stored.dumped_before()
    copy = path.with_name("ledger.db.0001.bak")
    assert list(tmp_path.glob("*.bak")) == [copy]
    assert stored.dump(copy) == stored.dumped_before()
    for file, revision in ((path, HEAD), (copy, "0001")):
        with closing(sqlite3.connect(file)) as raw:
            assert raw.execute("SELECT version_num FROM alembic_version").fetchall() == [(revision,)]
    Ledger(path).close()
    assert list(tmp_path.glob("*.bak")) == [copy]  # migrated once


def test_a_migrated_ledger_has_the_digests_that_a_new_one_has(tmp_path: Path) -> None:
    old, new = tmp_path / "old.db", tmp_path / "new.db"
    stored.load(old)
    Ledger(old).close()
    Ledger(new).close()
    with closing(sqlite3.connect(new)) as raw, raw:  # the old rows, byte for byte, and digests as they are written now
        raw.execute("ATTACH DATABASE ? AS old", (str(old),))
        for table in metadata.sorted_tables:
            if table.name != "checksum":
                raw.execute(f"INSERT INTO main.{table.name} SELECT * FROM old.{table.name}")
    with Ledger(new) as ledger, ledger.database.write() as connection:
        for table, (owner, _, _) in SEALED.items():
            seal(connection, table, list(connection.execute(select(table.c[owner]).distinct()).scalars()))
    rows = []
    for path in (old, new):
        with closing(sqlite3.connect(path)) as raw:
            rows.append(raw.execute("SELECT * FROM checksum ORDER BY 1, 2, 3").fetchall())
    assert rows[0] == rows[1]
    later = {"drift", "label"}  # the old ledger has none
    assert {row[0] for row in rows[0]} == {table.name for table in SEALED} - later
    with Ledger(old) as ledger:
        assert [f.problem for f in ledger.check() if f.name == "entries"] == [""]


@pytest.mark.parametrize(("damage", "entry"), [("UPDATE evaluation SET value = '{' WHERE id = 'e-full'", "e-full"),
                                               ("UPDATE tuning SET name = CAST(x'ff' AS TEXT)", "tuning")])
def test_an_old_ledger_with_damage_opens_and_says_what_is_damaged(tmp_path: Path, damage: str, entry: str) -> None:
    path = tmp_path / "ledger.db"
    stored.load(path)
    with closing(sqlite3.connect(path)) as raw, raw:
        raw.execute(damage)
    with Ledger(path) as ledger:
        with pytest.raises(StorageError, match=entry):
            [ledger.evaluations(), ledger.tunings()]
        assert any(entry in f.problem for f in ledger.check())


def test_tables_and_rows_are_written_as_before(tmp_path: Path) -> None:
    """SQLite's text of every table and index, every id and hash, every JSON text."""
    path = tmp_path / "ledger.db"
    stored.fill(path)
    assert stored.without_new_fields(stored.dump(path)) == stored.dumped_before()


def test_a_fine_tunes_manifest_is_written_and_read_as_before(tmp_path: Path) -> None:
    text = stored.MANIFEST.read_text(encoding="utf-8")
    write_manifest(tmp_path, stored.finite_tuning())
    assert stored.without_new_fields((tmp_path / "aftertune.json").read_text(encoding="utf-8")) == text
    back = read_manifest(tmp_path)
    assert back == stored.finite_tuning()
    assert canonical(plain(back)) == canonical(plain(stored.finite_tuning()))  # a whole number is no float
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_manifest(tmp_path, stored.tuning())
    assert stored.without_new_fields((tmp_path / "aftertune.json").read_text(encoding="utf-8")) == text


def test_a_manifest_that_does_not_fit_is_none(tmp_path: Path) -> None:
    whole = json.loads(stored.MANIFEST.read_text(encoding="utf-8"))
    for wrong in ({}, [], {**whole, "examples": "many"}, {k: v for k, v in whole.items() if k != "base"}):
        (tmp_path / "aftertune.json").write_text(json.dumps(wrong))
        assert read_manifest(tmp_path) is None
    with pytest.raises(ValueError, match=r"^Tuning\.base\.source: .*found 3"):
        restore(Tuning, {**whole, "base": {**whole["base"], "source": 3}})


def test_the_digests_of_documents_and_configs_are_those_of_before() -> None:
    """sha256 as commit 6627cb2 computed it."""
    document = {"a": (1, 2.0, float("inf"), -math.inf, math.nan), 3: b"\x01", True: np.float32(0.5), None: np.int64(7)}
    assert json_ready(document) == {"a": [1, 2.0, "inf", "-inf", "nan"], "3": "01", "True": 0.5, "None": 7}
    assert digest(json_ready(document)) == "a79630a5a0bc8b3d9fb4ef77eed93ace132ab5b403d37ff3f89301fdbedd2f79"


def test_json_on_standard_output_is_as_before() -> None:
    value = {"row": stored.ROW, "n": (1, 1.0, 1e16, 5e-324, 2**70), "no": [math.inf, math.nan, None, True], "é": "\x00"}
    text = json.dumps(jsonable(value), ensure_ascii=False, allow_nan=False)
    assert stored.without_new_fields(text) == (
        '{"row": {"task": "arc_easy", "metric": "acc", "filter": "none", "n": 6, "base": 0.5, "tuned": 0.'
        '3333333333333333, "delta": -0.16666666666666666, "low": -0.5, "high": 0.25, "margin": 0.02, "pri'
        'mary": true, "kind": "binary", "p": 0.04, "p_adjusted": 0.08, "p_lower": null, "p_higher": null,'
        ' "p_within": null, "p_exact": null, "p_mid": null, "gained": 0, "lost": 1, "verdict": "lower", "'
        'told": "forgot", "note": "", "items_needed": null, "at_floor": false, "target": false, "stopped_'
        'of": 6, "p_no_drop": null, "n_total": null, "group": "", "q": null, "details": ["Tango -0.5 to 0'
        '.25"]}, "n": [1, 1.0, 1e+16, 5e-324, 1180591620717411303424], "no": [null, null, null, true], "é'
        '": "\\u0000"}')


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_began_when_the_kernel_says(tmp_path: Path) -> None:
    """Leases of commit 6627cb2 hold field 22 of /proc/PID/stat: clock ticks since the boot."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        for pid in (os.getpid(), child.pid, os.getppid()):
            ticks = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[19]
            assert process_start(pid) == ticks
        child.communicate(b"\n")
    assert process_start(child.pid) is None
