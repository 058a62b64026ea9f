"""Data of commit 6627cb2 reads as it did then, and the same values are written as it wrote them, byte for byte."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

import stored_cases as stored
from aftertune.ledger import Ledger
from aftertune.ledger.lease import process_start


def test_every_value_of_an_old_ledger_reads_the_same(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    stored.load(path)
    assert list(stored.read(path)) == stored.VALUES.read_text(encoding="utf-8").splitlines()


def test_opening_an_old_ledger_changes_nothing_in_it(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    stored.load(path)
    Ledger(path).close()
    assert stored.dump(path) == stored.SQL.read_text(encoding="utf-8")
    assert list(tmp_path.glob("*.bak")) == []
    with closing(sqlite3.connect(path)) as raw:
        assert raw.execute("SELECT version_num FROM alembic_version").fetchall() == [("0001",)]


def test_tables_and_rows_are_written_as_before(tmp_path: Path) -> None:
    """SQLite's text of every table and index, every id and hash, every JSON text."""
    path = tmp_path / "ledger.db"
    stored.fill(path)
    assert stored.dump(path) == stored.SQL.read_text(encoding="utf-8")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_began_when_the_kernel_says(tmp_path: Path) -> None:
    """Leases of commit 6627cb2 hold field 22 of /proc/PID/stat: clock ticks since the boot."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        for pid in (os.getpid(), child.pid, os.getppid()):
            ticks = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[19]
            assert process_start(pid) == ticks
        child.communicate(b"\n")
    assert process_start(child.pid) is None
