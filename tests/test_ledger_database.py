"""The file of the ledger: where it is, how it is opened, and what is said when it cannot be used."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

import conftest
import ledger_cases as cases
from aftertune.errors import InputError, StorageError
from aftertune.ledger import Ledger, faults, locate, sqlite
from aftertune.ledger.check import findings
from aftertune.ledger.schema import HEAD
from aftertune.ledger.sqlite import SqliteDatabase, driver, file_system, has_wal_reset_bug


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


def fingerprint(folder: Path) -> dict[str, str]:
    """Hash of every database and every write-ahead log that holds something."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()
            if p.suffix in (".db", ".db-wal") and p.stat().st_size}


# Where it is

def test_the_path_comes_from_the_caller_then_the_environment_then_the_folder(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AFTERTUNE_LEDGER", raising=False)
    assert locate() == tmp_path / ".aftertune/ledger.db"
    monkeypatch.setenv("AFTERTUNE_LEDGER", "elsewhere/my.db")
    assert locate() == tmp_path / "elsewhere/my.db"
    assert locate("third.db") == tmp_path / "third.db"
    assert locate(f"sqlite:///{tmp_path}/url.db") == tmp_path / "url.db"
    with Ledger() as ledger:
        ledger.save_study("s", "h", "")
    assert (tmp_path / "elsewhere/my.db").is_file()


@pytest.mark.parametrize("address", ["mysql://user:hunter2@db/aftertune", "sqlite://", "sqlite:///:memory:",
                                     "http//:x://y", "mysql+nonsense://a:hunter2@b/c"])
def test_an_address_that_names_no_sqlite_file_is_refused_without_its_password(address: str) -> None:
    with pytest.raises(InputError, match="sqlite:///PATH") as caught:
        locate(address)
    assert "hunter2" not in str(caught.value)


def test_a_missing_ledger_is_not_made_by_a_reader(path: Path) -> None:
    with pytest.raises(InputError, match="no ledger here yet"):
        Ledger(path, create=False)
    assert not path.exists()
    with pytest.raises(InputError, match="a folder, but the ledger is a file"):
        Ledger(path.parent)


# The library, the journal and the settings

@pytest.mark.parametrize(("version", "affected"), [
    ((3, 6, 23), False), ((3, 7, 0), True), ((3, 40, 1), True), ((3, 44, 5), True), ((3, 44, 6), False),
    ((3, 45, 0), True), ((3, 50, 6), True), ((3, 50, 7), False), ((3, 51, 0), True), ((3, 51, 2), True),
    ((3, 51, 3), False), ((3, 53, 4), False), ((4, 0, 0), False)])
def test_the_versions_with_the_wal_reset_bug(version: tuple[int, ...], affected: bool) -> None:
    assert has_wal_reset_bug(version) is affected


def test_wal_is_used_only_where_the_library_is_sound(path: Path) -> None:
    for module in (driver(), sqlite3):
        with closing(SqliteDatabase(path, module=module)) as opened:
            assert opened.journal == ("delete" if has_wal_reset_bug(opened.library) else "wal")
        with closing(sqlite3.connect(path)) as raw:
            assert raw.execute("PRAGMA journal_mode").fetchone()[0] == opened.journal


def test_an_affected_library_uses_the_rollback_journal_and_doctor_says_so(path: Path) -> None:
    class Old:
        """The standard library's module, as if it were linked with Debian 12's SQLite."""

        sqlite_version_info = (3, 40, 1)

        def __getattr__(self, name: str) -> object:
            return getattr(sqlite3, name)

        __name__ = "sqlite3"

    with closing(SqliteDatabase(path, module=Old())) as opened:  # type: ignore[arg-type]
        assert opened.journal == "delete"
        found = {f.name: f for f in findings(opened)}
    assert found["sqlite"].value == "3.40.1 (sqlite3)"
    assert "WAL" in found["sqlite"].problem
    assert "pysqlite3" in found["sqlite"].remedy
    assert found["integrity"].value == "ok"


def test_a_network_file_system_gets_the_rollback_journal(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("nfs4", "cifs", "fuse.sshfs", "lustre", "9p", "ext4", "fuseblk", "apfs", ""):
        monkeypatch.setattr(sqlite, "file_system", lambda _path, kind=kind: kind)
        assert sqlite.on_network(path) is (kind not in ("ext4", "fuseblk", "apfs", "")), kind
    monkeypatch.setattr(sqlite, "file_system", lambda _path: "nfs4")
    with closing(SqliteDatabase(path)) as opened:
        assert opened.journal == "delete"
        assert "network" in next(f.problem for f in findings(opened) if f.name == "journal")


def test_the_file_system_is_that_of_the_nearest_mount(tmp_path: Path) -> None:
    import psutil

    known = {p.fstype.lower() for p in psutil.disk_partitions(all=True)}
    assert file_system(tmp_path / "ledger.db") in known


def test_every_connection_is_durable_and_checks_references(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "DURABLE", conftest.DURABLE)
    with Ledger(path) as ledger, ledger.database.read() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 300_000


def test_a_transaction_that_raises_leaves_nothing(path: Path) -> None:
    def interrupted(ledger: Ledger) -> None:
        with ledger.database.write() as connection:
            connection.exec_driver_sql("INSERT INTO study (name, hash, yaml) VALUES ('a', 'b', 'c')")
            raise KeyboardInterrupt

    with Ledger(path) as ledger:
        with pytest.raises(KeyboardInterrupt):
            interrupted(ledger)
        assert ledger.studies() == []


def test_a_healthy_ledger_has_no_problems(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.open_evaluation(cases.evaluation(), cases.items())
        found = {f.name: f for f in ledger.check()}
    assert [f for f in found.values() if f.problem and f.name not in ("sqlite", "journal")] == []
    assert found["path"].value == str(path)
    assert found["schema"].value == HEAD
    assert found["evaluations"].value == "1"
    assert set(found) == {"path", "size", "sqlite", "journal", "schema", "integrity", "entries",
                          "evaluations"}


# Files that are not ours

@pytest.mark.parametrize("content", [b"I am a text file\n" * 100, b"x", b"SQLite format 3", b"\x00" * 4096])
def test_a_file_that_is_no_database_is_left_alone(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(StorageError, match="not a SQLite database; the file was not changed"):
        Ledger(path)
    assert path.read_bytes() == content


def test_another_programs_database_is_left_alone(path: Path) -> None:
    with closing(sqlite3.connect(path)) as raw:
        raw.execute("CREATE TABLE runs (id)")
    before = fingerprint(path.parent)
    with pytest.raises(StorageError, match=r"another program \(its tables: runs\)"):
        Ledger(path)
    assert fingerprint(path.parent) == before


def test_an_empty_file_becomes_a_ledger(path: Path) -> None:
    path.touch()
    with Ledger(path) as ledger:
        assert ledger.evaluations() == []


def test_a_newer_ledger_is_refused_untouched_with_both_revisions(path: Path) -> None:
    Ledger(path).close()
    with closing(sqlite3.connect(path)) as raw, raw:
        raw.execute("UPDATE alembic_version SET version_num = '0042'")
    before = fingerprint(path.parent)
    with pytest.raises(StorageError, match=f"its schema is 0042, but this .* up to {HEAD}.*upgrade"):
        Ledger(path)
    assert fingerprint(path.parent) == before


def test_a_newer_ledger_with_an_open_log_is_refused_untouched(path: Path, tmp_path: Path) -> None:
    killed = tmp_path / "killed"  # what a killed process leaves: the file, and a log that is not folded in
    killed.mkdir()
    with Ledger(path) as ledger:
        with ledger.database.write() as connection:
            connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0042'")
        for part in path.parent.glob("ledger.db*"):
            shutil.copy(part, killed)
    before = fingerprint(killed)
    with pytest.raises(StorageError, match="its schema is 0042"):
        Ledger(killed / "ledger.db")
    assert fingerprint(killed) == before


@pytest.mark.parametrize("first", [0.05, 0.5])
def test_damage_is_told_and_not_written_over(path: Path, first: float) -> None:
    """Pages from ``first`` of the file on are spoilt: with the schema's the ledger does not open, without it
    does, and names the damage."""
    with Ledger(path) as ledger:
        ledger.open_evaluation(cases.evaluation(), cases.items(n=400))
    damaged = bytearray(path.read_bytes())
    pages = range(int(first * len(damaged) / 4096) + 1, len(damaged) // 4096)
    for page in pages:
        damaged[page * 4096:page * 4096 + 100] = b"\xff" * 100
    path.write_bytes(damaged)
    with pytest.raises(StorageError, match="malformed") as caught:
        read_all(path)
    assert "\n" not in str(caught.value)
    assert path.read_bytes()[pages[0] * 4096:] == damaged[pages[0] * 4096:]


def read_all(path: Path) -> None:
    with Ledger(path) as ledger:
        assert next(f.problem for f in ledger.check() if f.name == "integrity")
        ledger.items("e1")


def test_a_locked_ledger_says_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Ledger(path).close()
    monkeypatch.setattr(sqlite, "LOCK_TIMEOUT", 0.05)
    # The same library: two of them in one process do not see each other's locks.
    with Ledger(path) as ledger, closing(driver().connect(str(path), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageError, match="another process has kept the ledger locked"):
            ledger.save_study("s", "h", "")
        other.execute("ROLLBACK")
        ledger.save_study("s", "h", "")


def test_another_process_may_write_for_minutes_and_waiting_ends_with_a_signal(
        path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An import of a million samples is one transaction. SQLite itself waits without looking for Ctrl-C."""
    assert sqlite.LOCK_TIMEOUT >= 300
    Ledger(path).close()
    monkeypatch.setattr(sqlite, "_WAIT", 0.01)
    with Ledger(path) as ledger, closing(driver().connect(str(path), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")

        def ended(*_: object) -> None:
            other.execute("ROLLBACK")
            raise KeyboardInterrupt

        previous = signal.signal(signal.SIGALRM, ended)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(KeyboardInterrupt):
                ledger.save_study("s", "h", "")
        finally:
            signal.signal(signal.SIGALRM, previous)
        ledger.save_study("s", "h", "")


def test_every_failure_of_sqlite_is_one_line_with_a_next_step(path: Path) -> None:
    class Failure(Exception):
        def __init__(self, name: str) -> None:
            super().__init__("disk\nI/O error")
            self.sqlite_errorname = name

    for name in ["NOTADB", "CORRUPT_INDEX", "FULL", "READONLY_DBMOVED", "CANTOPEN", "PERM", "BUSY_SNAPSHOT",
                 "LOCKED", "IOERR_WRITE", "TOOBIG"]:
        message = str(faults.storage_error(path, Failure(f"SQLITE_{name}")))
        assert str(path) in message
        assert "\n" not in message
        assert "{" not in message


# Disks that refuse

def in_child(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code), *arguments], capture_output=True,
                          text=True, timeout=300, check=False)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a user without rights")
def test_a_folder_that_cannot_be_written_is_refused_before_any_work() -> None:
    folder = Path(tempfile.mkdtemp())  # open to all, unlike pytest's own
    try:
        Ledger(folder / "old.db").close()
        folder.chmod(0o555)
        before = fingerprint(folder)
        said = [as_nobody(lambda name=name: Ledger(folder / name).close())
                for name in ("new.db", "old.db", "sub/l.db")]
        assert "no permission to read and write" in said[0]
        assert "no permission to read and write" in said[1]
        assert "folder cannot be created (Permission denied)" in said[2]
        assert fingerprint(folder) == before
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


def as_nobody(action: Callable[[], object]) -> str:
    """What ``action`` raises when it is done without the rights of root, as "Class: message"."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        said = "nothing"
        try:
            if os.getuid() == 0:
                os.setuid(65534)
            action()
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8") as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    assert said.startswith("StorageError: "), said
    assert "\n" not in said
    return said


FILL = """
    import resource, sys
    from aftertune.ledger import Ledger
    from aftertune.values import Response
    from aftertune.errors import StorageError
    import ledger_cases as cases
    path, limit = sys.argv[1], int(sys.argv[2])
    ledger = Ledger(path)
    ledger.open_evaluation(cases.evaluation(), [])
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    saved = 0
    try:
        for batch in range(5000):
            ledger.save_batch("e1", batch, {batch: Response(text="x" * 20_000)})
            saved += 1
    except StorageError as error:
        print(saved, error)
"""


def fill(path: Path, limit: int) -> tuple[int, str]:
    """How many batches a child was told to be stored before its disk was full, and the one line it said."""
    result = in_child(FILL, str(path), str(limit))
    assert result.returncode == 0, result.stderr
    [line] = result.stdout.splitlines()
    saved, _, message = line.partition(" ")
    assert int(saved) > 10
    return int(saved), message


def nothing_lost(path: Path, saved: int) -> None:
    """Every batch up to ``saved`` is there, the file is sound, and the run can go on."""
    with Ledger(path) as ledger:
        assert ledger.done_positions("e1") == set(range(saved))
        ledger.save_batch("e1", saved, {saved: cases.responses()[0]})
        assert next(f for f in ledger.check() if f.name == "integrity").value == "ok"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no file size limits")
def test_a_quota_that_is_reached_loses_nothing_that_was_saved(
        path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    saved, message = fill(path, 1_500_000)
    assert "what was saved before is intact" in message
    nothing_lost(path, saved)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two MiB; skipped where mounting is not allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_loses_nothing_that_was_saved(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    path = small_disk / "ledger.db"
    saved, message = fill(path, 0)
    assert "no space left on the disk" in message
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    nothing_lost(path, saved)


def test_importing_the_ledger_does_not_load_alembic_where_nothing_is_migrated(path: Path) -> None:
    Ledger(path).close()
    result = in_child("""
        import sys
        from aftertune.ledger import Ledger
        Ledger(sys.argv[1], create=False).close()
        print(sorted({"alembic", "torch", "transformers"} & set(sys.modules)))
    """, str(path))
    assert result.stdout.strip() == "[]", result.stderr
