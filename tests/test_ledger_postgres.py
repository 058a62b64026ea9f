"""What only a ledger on a PostgreSQL server has: addresses, locks of writers, lost connections, and its migrations.

Everything else is tested on both databases (the fixture `place`).
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args
from urllib.parse import quote

import pytest
from sqlalchemy import select

import ledger_cases as cases
from aftertune.errors import AftertuneError, InputError, ResourceError, StorageError
from aftertune.ledger import DatabaseAddress, EntryLabel, EntryQuery, Ledger, locate, migration
from aftertune.ledger import postgres as backend
from aftertune.ledger.changes import changes_of
from aftertune.ledger.faults import TransactionLost
from aftertune.ledger.listing import EntrySort
from aftertune.ledger.postgres import PostgresDatabase
from aftertune.ledger.running import PROGRESS, evaluation_mark
from aftertune.ledger.schema import HEAD, lease
from aftertune.pipeline.local_workers import ChildWorker
from aftertune.redaction import redact
from aftertune.values import Response
from cli_cases import call, settle
from postgres_cases import Server

CANARY = "c4n4ry-pw"
SIGNS = """ c4'n"a/r@y:+ ?#%&=[x]\\$ """


def at(address: str) -> DatabaseAddress:
    place = locate(address)
    assert isinstance(place, DatabaseAddress)
    return place


@pytest.fixture
def address(postgres: Server) -> str:
    return postgres.ledger()


@pytest.fixture
def own(postgres: Server) -> Iterator[Server]:
    """A server that a test may stop."""
    with Server() as server:
        yield server


# The address

def test_an_address_is_shown_without_user_password_and_settings() -> None:
    for text, shown in [
        (f"postgresql+psycopg://me:{CANARY}@db.example.org/team", "postgresql://db.example.org/team"),
        (f"postgresql://me:{CANARY}@db:6543/team?sslmode=require", "postgresql://db:6543/team"),
        (f"postgres://me:{CANARY}@[::1]/team", "postgresql://[::1]/team"),
        (f"postgresql+psycopg://me@/team?host=%2Frun%2Fpg&password={CANARY}", "postgresql://[/run/pg]/team"),
    ]:
        assert str(at(text)) == shown
        assert CANARY not in repr(at(text))
        assert CANARY not in at(text).without_secrets(f"cannot connect with {CANARY}")
        assert CANARY not in redact(f"aftertune view --ledger {text}")


@pytest.mark.parametrize("address", [
    f"postgresql+psycopg2://me:{CANARY}@db/team", f"postgresql+psycopg://me:{CANARY}@db",
    f"postgresql+psycopg://me:x@{CANARY}@db/team", f"postgresql://me:{CANARY}@db:port/team", f"oracle://me:{CANARY}@db/t"])
def test_an_address_that_cannot_be_used_is_refused_without_it(address: str) -> None:
    with pytest.raises(InputError, match=r"postgresql\+psycopg://USER@HOST/DATABASE|%40") as caught:
        locate(address)
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize("sign", ["/", "?", "#", "'", '"', " "])
def test_a_password_of_which_a_part_could_be_shown_is_refused(sign: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="/ as %2F") as caught:
        locate(f"postgresql+psycopg://me:first{sign}{CANARY}@db/team")
    assert CANARY not in str(caught.value)
    given = f"postgresql+psycopg://me:first{quote(sign, safe='')}{CANARY}@db/team"
    monkeypatch.setenv("AFTERTUNE_LEDGER", given)
    for text in (str(locate(None)), redact(f"aftertune view --ledger {given}"), redact(f"first{sign}{CANARY}")):
        assert CANARY not in text


def test_what_a_worker_says_is_shown_without_the_password(monkeypatch: pytest.MonkeyPatch,
                                                         capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("AFTERTUNE_DEBUG", "1")
    worker: Any = SimpleNamespace(name="worker 1", said=deque(), process=SimpleNamespace(
        stderr=[f"cannot open postgresql://me:{CANARY}@db/team\n"]))
    ChildWorker._read_errors(worker)
    assert "worker 1: cannot open postgresql://[redacted]@db/team" in capsys.readouterr().err
    assert CANARY not in worker.said[0]


def test_an_address_survives_the_way_to_a_worker() -> None:
    for name in ("guarded", "me and you@example.org"):
        given = f"postgresql+psycopg://{quote(name, safe='')}:{quote(SIGNS, safe='')}@db:5433/team?sslmode=require"
        there = at(at(given).with_password())
        assert there == at(given)
        assert (there.url.username, there.url.password) == (name, SIGNS)


def test_a_password_that_is_an_ordinary_word_leaves_texts_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    address = "postgresql+psycopg://aftertune:aftertune@db/team"
    monkeypatch.setenv("AFTERTUNE_LEDGER", address)
    assert redact("aftertune eval base") == "aftertune eval base"
    assert redact(f"python a.py {address}") == "python a.py postgresql+psycopg://[redacted]@db/team"


def test_an_address_that_was_made_a_path_is_refused() -> None:
    with pytest.raises(InputError, match="given as a path") as caught:
        locate(Path(f"postgresql+psycopg://me:{CANARY}@db/team"))
    assert CANARY not in str(caught.value)


def test_the_driver_is_imported_for_a_server_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = ("import sys; from aftertune.ledger import Ledger; Ledger(sys.argv[1]).close(); "
            "print(sorted({'psycopg', 'aftertune.ledger.postgres'} & set(sys.modules)))")
    child = subprocess.run([sys.executable, "-c", code, str(tmp_path / "l.db")], capture_output=True, text=True,
                           check=False)
    assert child.stdout == "[]\n", child.stderr
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ResourceError, match=r"pip install 'aftertune\[postgres\]'"):
        Ledger(f"postgresql+psycopg://me:{CANARY}@db/team")


VERBS = ("runs", "show base", "doctor --json", "compare a b", "export all --format csv", "view --export pages",
         "rm base --yes", "tag base paper", "record --out r.md")


@pytest.fixture(scope="module")
def broken(postgres: Server) -> dict[str, str]:
    """Addresses that cannot be opened, each with a password."""
    postgres.run(f"CREATE ROLE guarded LOGIN PASSWORD '{CANARY[::-1]}'")
    return {"host": f"postgresql+psycopg://me:{CANARY}@127.0.0.1:9/team?connect_timeout=2",
            "password": postgres.address("postgres", f"guarded:{CANARY}"),
            "database": postgres.address("nowhere", f"aftertune:{CANARY}")}


@pytest.mark.parametrize("fault", ["host", "password", "database"])
def test_no_verb_shows_the_password(fault: str, broken: dict[str, str], tmp_path: Path,
                                    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    settle(monkeypatch, tmp_path)
    monkeypatch.setenv("AFTERTUNE_LEDGER", broken[fault])
    for verb in VERBS:
        for debug in ((), ("--debug",)):
            monkeypatch.setenv("AFTERTUNE_DEBUG", "")
            assert call(monkeypatch, *debug, *verb.split()) == 5, verb
            out, err = capfd.readouterr()
            assert CANARY not in out + err
            assert "postgresql://" in out + err
            if not debug and not verb.startswith("doctor"):
                assert len(err.splitlines()) == 1, err
    with pytest.raises(StorageError) as caught:
        Ledger(broken[fault])
    assert CANARY not in "".join(traceback.format_exception(caught.value))
    assert {"host": "cannot be reached", "password": "password authentication failed",
            "database": "does not exist"}[fault] in str(caught.value)


# Opening

def test_an_empty_database_becomes_a_ledger_once_when_processes_open_it_at_once(postgres: Server) -> None:
    address = postgres.database()
    with pytest.raises(InputError, match="no ledger here yet"):
        Ledger(address, create=False)
    code = "import sys; from aftertune.ledger import Ledger; Ledger(sys.argv[1]).close()"
    children = [subprocess.Popen([sys.executable, "-c", code, address], stderr=subprocess.PIPE, text=True)
                for _ in range(4)]
    for child in children:
        _, said = child.communicate()
        assert child.returncode == 0, said
    with Ledger(address, create=False) as ledger:
        assert ledger.database.revision() == HEAD


def test_the_schema_of_a_new_ledger_is_that_of_the_program(address: str) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    from aftertune.ledger.schema import metadata

    with Ledger(address) as ledger, ledger.database.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert context.get_current_revision() == HEAD
        assert compare_metadata(context, metadata) == []
        ordered = ("SELECT DISTINCT collation_name FROM information_schema.columns WHERE data_type = 'text' "
                   "AND table_schema = 'public'")
        assert connection.exec_driver_sql(ordered).scalars().all() == ["C"]


def test_another_programs_schema_and_a_newer_ledger_are_left_alone(postgres: Server) -> None:
    address = postgres.database()
    name = at(address).name
    postgres.run("CREATE TABLE runs (id integer)", name)
    with pytest.raises(StorageError, match=r"a schema of another program \(its tables: runs\)"):
        Ledger(address)
    newer = postgres.ledger()
    postgres.run("UPDATE alembic_version SET version_num = '0042'", at(newer).name)
    with pytest.raises(StorageError, match=f"its schema is 0042, but this .* up to {HEAD}.*upgrade"):
        Ledger(newer)
    assert postgres.run("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'", name) == [(1,)]


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_a_database_that_cannot_hold_every_text_is_refused(encoding: str, postgres: Server) -> None:
    name = f"in_{encoding.lower()}"
    postgres.run(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'")
    with pytest.raises(StorageError, match=f"encoding of the database is {encoding}.*createdb --encoding UTF8"):
        Ledger(postgres.address(name))
    assert postgres.run("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'", name) == [(0,)]


def test_settings_of_a_role_do_not_change_what_is_read(postgres: Server, address: str,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    postgres.run(f"ALTER DATABASE {at(address).name} SET extra_float_digits = 0")
    with Ledger(address) as ledger:
        ledger.open_evaluation(cases.evaluation(), cases.items())
        ledger.save_batch("e1", 0, {0: Response(logprob=-1 / 3)})
        ledger.save_study("s", "h", "é → 漢")
        assert ledger.responses("e1")[0].logprob == -1 / 3
        assert ledger.studies()[0].yaml == "é → 漢"


def test_a_schema_of_the_search_path_has_a_ledger_of_its_own(postgres: Server, address: str) -> None:
    postgres.run("CREATE SCHEMA team", at(address).name)
    with Ledger(address) as first, Ledger(f"{address}&options=-csearch_path%3Dteam") as second:
        first.save_study("s", "h", "")
        assert second.studies() == []
        with first.database.write():
            second.save_study("t", "h", "")  # the lock of a writer is that of its ledger


def test_an_older_ledger_is_migrated_once(address: str, tmp_path: Path) -> None:
    scripts = tmp_path / "migrations"
    shutil.copytree(migration.SCRIPTS, scripts)
    after = f"{int(HEAD) + 1:04d}"
    (scripts / "versions" / f"{after}_note.py").write_text(textwrap.dedent(f"""
        import sqlalchemy as sa
        from alembic import op
        revision, down_revision = "{after}", "{HEAD}"
        def upgrade():
            op.add_column("evaluation", sa.Column("note", sa.Text()))
    """))
    with Ledger(address) as ledger:
        ledger.open_evaluation(cases.evaluation(), cases.items())
        with ledger.database.write() as connection:
            assert migration.upgrade(connection, scripts, after)
            assert not migration.upgrade(connection, scripts, after)
        with ledger.database.read() as connection:
            assert connection.exec_driver_sql("SELECT id, note FROM evaluation").all() == [("e1", None)]
            assert connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar() == after


def test_a_ledger_opened_for_reading_changes_nothing(address: str) -> None:
    from sqlalchemy.exc import DBAPIError

    with Ledger(address, read_only=True) as ledger:
        assert ledger.evaluations() == []
        with pytest.raises(StorageError, match="opened for reading"):
            ledger.save_study("s", "h", "")
        with pytest.raises((StorageError, DBAPIError)), ledger.database.read() as connection:
            connection.exec_driver_sql("INSERT INTO study (name, hash, yaml) VALUES ('a', 'b', 'c')")


def test_doctor_names_a_server_that_may_lose_what_it_stored(address: str) -> None:
    with Ledger(address) as ledger:
        ledger.open_evaluation(cases.evaluation(), cases.items())
        found = {f.name: f for f in ledger.check()}
        with ledger.database.read() as connection:
            assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "on"
    assert "fsync off" in found["durability"].value  # the tests' server does not wait for its disk
    assert "may lose" in found["durability"].problem
    assert [f for f in found.values() if f.problem] == [found["durability"]]
    assert found["evaluations"].value == "1"


def test_the_server_finds_damage_that_is_not_ours_to_see(postgres: Server, address: str) -> None:
    with Ledger(address) as ledger:
        ledger.open_evaluation(cases.evaluation(), cases.items())
        ledger.save_batch("e1", 0, cases.responses())
        postgres.run("UPDATE response SET logprob = logprob - 1e-9 WHERE position = 3", at(address).name)
        with pytest.raises(StorageError, match="the rows of batch 0 in the table `response` are not what was stored"):
            ledger.responses("e1")
        assert any("evaluation e1 is damaged" in f.problem for f in ledger.check())


# Order

def test_lists_are_in_the_order_of_bytes_as_in_sqlite(address: str, tmp_path: Path) -> None:
    names = ["b", "B", "a-1", "a1", "é", "Z", "ä", "_x"]
    pages = []
    for place in (address, tmp_path / "l.db"):
        with Ledger(place) as ledger:
            for number, name in enumerate(names):
                ledger.open_evaluation(cases.evaluation(f"e-{number}", name), [])
            pages.append([r.name for r in ledger.entry_page(EntryQuery(sort="name", descending=False)).rows])
            pages.append([r.id for r in ledger.entry_page(EntryQuery(words="B", sort="status")).rows])
    assert pages[:2] == pages[2:]


def test_every_question_to_a_ledger_has_the_same_answer_from_both_databases(address: str, tmp_path: Path) -> None:
    import stored_cases as stored
    from aftertune.ledger.copying import chosen_entries, copy_entries

    stored.fill(tmp_path / "l.db")
    with Ledger(tmp_path / "l.db") as file, Ledger(address) as server:
        for number, name in enumerate(("Beta", "alpha", "Ärger_50%", "beta")):
            file.open_evaluation(cases.evaluation(f"e-{number}", name, tuning="t-full"), cases.items())
            file.save_label(f"e-{number}", EntryLabel(tags=("paper", f"n{number}"), note="50% _ done"))
        for number, base in enumerate(("e-0", "e-1", "e-none")):
            file.save_comparison(dataclasses.replace(file.comparisons()[0], id=f"c-{number}", base=base))
        file.release("e-open")  # a copy has no leases
        list(copy_entries(file.database, server.database, chosen_entries(file.database)))
        queries = [EntryQuery(sort=sort, descending=down, limit=5, offset=offset) for sort in get_args(EntrySort)
                   for down in (True, False) for offset in (0, 5)]
        queries += [EntryQuery(words=words) for words in ("BETA", "50%", "_", "är", "arc_easy", "\x00", "paper n1")]
        queries += [EntryQuery(kind="tuning"), EntryQuery(status="interrupted"), EntryQuery(status="done"),
                    EntryQuery(task="arc_easy"), EntryQuery(tag="paper"), EntryQuery(tag="pap_r"),
                    EntryQuery(base="MODEL"), EntryQuery(made_by="t-full"), EntryQuery(archived=True)]
        questions = [lambda ledger, query=query: ledger.entry_page(query) for query in queries]
        questions += [lambda ledger: [ledger.tags(), ledger.task_names(), ledger.labels(), ledger.interrupted(),
                                      ledger.running(), ledger.newest_comparisons(2, 1), ledger.held(),
                                      ledger.result_seconds(["e-full", "t-full", "e-0"]), ledger.removal("t-full"),
                                      ledger.names_of_others("x"), [ledger.word_for(e) for e in ledger.evaluations()]],
                      lambda ledger: [ledger.find_item(i.task, i.hash) for i in cases.items()],
                      lambda ledger: [ledger.answers_to(i.task, i.hash) for i in stored.items()]]
        for question in questions:
            assert question(server) == question(file)


def test_a_value_that_postgresql_does_not_read_as_json_is_listed(address: str) -> None:
    """JSON of PostgreSQL has neither NaN nor the escaped NUL."""
    with Ledger(address) as ledger:
        ledger.save_tuning(cases.tuning("t-nan", settings={"a": float("nan")}))
        ledger.save_tuning(cases.tuning("t-nul", settings={"a": "\x00"}))
        assert {r.id for r in ledger.entry_page(EntryQuery(words="careful")).rows} == {"t-nan", "t-nul"}
        assert ledger.entry_page(EntryQuery(words="\x00")).total == 0


# Writers

def test_a_writer_of_one_evaluation_lets_others_write_theirs(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Ledger(address) as one, Ledger(address) as two:
        for id_ in ("e-1", "e-2"):
            one.open_evaluation(cases.evaluation(id_, id_), [])
        monkeypatch.setattr(backend, "LOCK_TIMEOUT", 0.2)
        with one.database.write(within=True) as connection:
            connection.exec_driver_sql("SELECT 1 FROM evaluation WHERE id = 'e-1' FOR UPDATE")
            two.save_batch("e-2", 0, cases.responses())
            for blocked in (lambda: two.save_batch("e-1", 0, cases.responses()),
                            lambda: two.save_study("s", "h", "")):
                with pytest.raises(StorageError, match="another process has kept the ledger locked for longer"):
                    blocked()
        with one.database.write(), pytest.raises(StorageError, match="kept the ledger locked"):
            two.save_batch("e-2", 1, {50: Response(logprob=-1.0)})
        two.save_batch("e-1", 0, cases.responses())


def test_waiting_for_a_writer_ends_with_a_signal(address: str) -> None:
    def ended(*_: object) -> None:
        raise KeyboardInterrupt

    with Ledger(address) as one, Ledger(address) as two:
        previous = signal.signal(signal.SIGALRM, ended)
        try:
            with one.database.write():
                signal.setitimer(signal.ITIMER_REAL, 0.2)
                with pytest.raises(KeyboardInterrupt):
                    two.save_study("s", "h", "")
        finally:
            signal.signal(signal.SIGALRM, previous)
        two.save_study("s", "h", "")
        assert [s.name for s in one.studies()] == ["s"]


def test_who_waits_sees_what_the_writer_before_has_stored(address: str) -> None:
    """Both look for a study and insert it where there is none."""
    with Ledger(address) as one, Ledger(address) as two:
        with one.database.write() as connection:
            other = threading.Thread(target=lambda: two.save_study("s", "second", ""))
            other.start()
            with Ledger(address) as third:
                while not _waits(third):
                    time.sleep(0.01)
            connection.exec_driver_sql("INSERT INTO study (name, hash, yaml) VALUES ('s', 'first', '')")
        other.join()
        assert [s.hash for s in one.studies()] == ["second"]


def _waits(ledger: Ledger) -> bool:
    """Whether a transaction of the database waits for an advisory lock."""
    query = ("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND database = "
             "(SELECT oid FROM pg_database WHERE datname = current_database())")
    with ledger.database.read() as connection:
        return bool(connection.exec_driver_sql(query).scalar_one())


def test_leases_are_measured_by_the_clock_of_the_server(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Ledger(address) as ledger:
        ledger.open_evaluation(cases.evaluation(), [])
        now, real = time.time(), time.time
        monkeypatch.setattr(time, "time", lambda: real() + 86_400)
        ledger.acquire("e1")
        ledger.save_batch("e1", 0, cases.responses())
        with ledger.database.read() as connection:
            assert abs(connection.execute(select(lease.c.heartbeat)).scalar_one() - now) < 3600
        with ledger.database.write() as connection:
            connection.execute(lease.update().values(host="elsewhere", boot="b/1"))
        assert ledger.held() == {"e1"}
        with pytest.raises(ResourceError, match="on elsewhere"):
            ledger.acquire("e1")


def test_the_rest_of_an_evaluation_is_estimated_by_the_clock_of_the_server(address: str,
                                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.time
    with Ledger(address) as ledger:
        ledger.open_evaluation(cases.evaluation(), [])
        ledger.acquire("e1")
        monkeypatch.setattr(time, "time", lambda: real() + 86_400)
        ledger.save_schedule("e1", {PROGRESS: evaluation_mark(60, 0, ledger.time())})
        ledger.save_batch("e1", 0, cases.responses())
        [entry] = ledger.running()
    assert entry.seconds_left is not None
    assert entry.seconds_left > 0


def test_changes_of_others_are_noticed(address: str) -> None:
    with closing(changes_of(at(address))) as changes, Ledger(address) as ledger:
        assert changes.happened()
        assert not changes.happened()
        ledger.evaluations()
        assert not changes.happened()
        ledger.save_study("s", "h", "")
        assert changes.happened()


# Connections that end

def end_connections(server: Server, address: str) -> None:
    server.run(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{at(address).name}'")


def test_a_connection_that_ended_between_two_transactions_is_made_again(postgres: Server, address: str) -> None:
    with Ledger(address) as ledger:
        ledger.open_evaluation(cases.evaluation(), [])
        end_connections(postgres, address)
        ledger.save_batch("e1", 0, cases.responses())
        end_connections(postgres, address)
        assert ledger.responses("e1") == cases.responses()


def test_a_transaction_that_is_cut_off_is_nothing_and_is_done_again(postgres: Server, address: str,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    with Ledger(address) as ledger:
        ledger.open_evaluation(cases.evaluation(), [])

        def cut() -> None:
            with ledger.database.write() as connection:
                connection.exec_driver_sql("INSERT INTO study (name, hash, yaml) VALUES ('a', 'b', 'c')")
                end_connections(postgres, address)

        with pytest.raises(TransactionLost, match="run the same command again"):
            cut()
        assert ledger.studies() == []
        from aftertune.ledger import evaluations

        real, calls = evaluations.seal, []

        def seal(*given: object) -> None:
            real(*given)  # type: ignore[arg-type]
            calls.append(given)
            if len(calls) < 3:
                end_connections(postgres, address)

        monkeypatch.setattr(evaluations, "seal", seal)
        ledger.save_batch("e1", 0, cases.responses())
        assert len(calls) == 3
        assert ledger.responses("e1") == cases.responses()


def test_a_killed_server_that_comes_back_is_waited_for(own: Server) -> None:
    with Ledger(own.database()) as ledger:
        ledger.open_evaluation(cases.evaluation(), [])
        own.kill()
        back = threading.Timer(0.3, own.start)
        back.start()
        ledger.save_batch("e1", 0, cases.responses())
        back.join()
        assert ledger.responses("e1") == cases.responses()


def test_a_server_that_stays_away_is_one_line(own: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "PATIENCE", 0.1)
    with Ledger(own.database()) as ledger:
        own.kill()
        with pytest.raises(AftertuneError, match="cannot be reached") as caught:
            ledger.save_study("s", "h", "")
        assert caught.value.exit_code == 5
        assert not isinstance(caught.value, TransactionLost)


def test_every_code_of_postgresql_is_one_line_with_a_next_step() -> None:
    from aftertune.ledger.faults import SERVER_ADVICE, storage_error

    class Failure(Exception):
        def __init__(self, code: str) -> None:
            super().__init__(f"FATAL:\nrefused with {CANARY}")
            self.sqlstate = code

    place = at(f"postgresql+psycopg://me:{CANARY}@db/team")
    for code in ("40001", "40P01", "57P01", "08006"):
        assert isinstance(storage_error(place, Failure(code)), TransactionLost), code
    for code in ("23505", "42501", "53100", "28P01"):
        assert not isinstance(storage_error(place, Failure(code)), TransactionLost), code
    for code in [*(key.ljust(5, "0") for key in SERVER_ADVICE), "22003"]:
        message = str(storage_error(place, Failure(code)))
        assert message.startswith("postgresql://db/team: ")
        assert CANARY not in message
        assert "\n" not in message
        assert "{" not in message


def test_a_server_that_is_too_old_is_named(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "OLDEST", 99)
    with pytest.raises(StorageError, match=r"the server is PostgreSQL \d+; aftertune needs 99 or newer"):
        PostgresDatabase(at(address))


@pytest.mark.slow
def test_writers_lose_nothing_when_the_server_is_killed(own: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The load of benchmarks/postgres.py, for seconds."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    load = importlib.import_module("postgres").measure(own.database(), 3, 2.0, own, kills=2)
    assert (load.lost, load.errors, load.kills) == (0, (), 2)
    assert load.acknowledged > 3


def test_a_user_with_rights_on_the_rows_alone_can_work(postgres: Server, address: str) -> None:
    """Those that docs/postgres.md lists: the tables are there, and somebody else owns them."""
    name = at(address).name
    postgres.run("DO $$ BEGIN CREATE ROLE member LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
    for grant in ("SELECT, INSERT, UPDATE, DELETE ON ALL TABLES", "USAGE ON ALL SEQUENCES", "EXECUTE ON ALL FUNCTIONS"):
        postgres.run(f"GRANT {grant} IN SCHEMA public TO member", name)
    with Ledger(postgres.address(name, "member")) as ledger:
        ledger.open_evaluation(cases.evaluation(), cases.items())
        ledger.save_batch("e1", 0, cases.responses())
        assert ledger.entry_page(EntryQuery()).total == 1
    postgres.run("DO $$ BEGIN CREATE ROLE reader LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
    postgres.run("GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader", name)
    with Ledger(postgres.address(name, "reader"), create=False) as ledger:
        assert ledger.responses("e1") == cases.responses()
        assert ledger.entry_page(EntryQuery()).total == 1
        with pytest.raises(StorageError, match="the database user may not do this"):
            ledger.save_study("s", "h", "")
        with pytest.raises(StorageError, match=r"permission denied to vacuum.*the user who created them"):
            ledger.database.vacuum()
    empty = postgres.database()
    with pytest.raises(StorageError, match=r"the database user may not do this .*GRANT"):
        Ledger(postgres.address(at(empty).name, "member"))


# Commands on a server

@pytest.mark.slow
def test_an_evaluation_whose_server_is_killed_ends_with_5_and_goes_on_with_the_same_command(
        own: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Its numbers are those of an unbroken one in a file, and so are those of two workers; no password is stored or
    shown."""
    from eval_cases import byte_folder

    settle(monkeypatch, tmp_path)
    model = byte_folder(tmp_path / "tiny")
    words = ("eval", str(model), "--tasks", "arc_easy", "--sample", "24", "--memory", "1MB", "--dtype", "float32",
             "--threads", "1", "--name", "tiny")
    assert call(monkeypatch, *words) == 0
    address = own.database().replace("aftertune@", f"aftertune:{CANARY}@")
    monkeypatch.setenv("AFTERTUNE_LEDGER", address)
    real, saved = Ledger.save_batch, []

    def save_batch(*given: object) -> None:
        real(*given)  # type: ignore[arg-type]
        saved.append(given[2])
        if len(saved) == 2:
            monkeypatch.setattr(backend, "PATIENCE", 0.1)
            own.kill()

    monkeypatch.setattr(Ledger, "save_batch", save_batch)
    capfd.readouterr()
    assert call(monkeypatch, *words) == 5
    out, err = capfd.readouterr()
    assert len([line for line in err.splitlines() if line.startswith("aftertune: ")]) == 1
    assert "cannot be reached" in err
    monkeypatch.setattr(backend, "PATIENCE", 60.0)
    own.start()
    assert call(monkeypatch, *words, "--json") == 0
    out, more = capfd.readouterr()
    with Ledger(address) as ledger, Ledger(tmp_path / "ledger.db") as file:
        broken, whole = ledger.find_evaluation("tiny"), file.find_evaluation("tiny")
        assert (broken.id, broken.scores) == (whole.id, whole.scores)
        assert ledger.answers(broken.id) == file.answers(whole.id)
        assert ledger.responses(broken.id) == file.responses(whole.id)
        assert CANARY not in repr(ledger) + repr(broken) + out + err + more
    assert len(saved) == len(set(map(str, saved))), "a batch that was acknowledged was computed again"
    shared = own.ledger()
    done = subprocess.run([sys.executable, "-m", "aftertune", *words, "--workers", "2"], capture_output=True, text=True,
                          env={**os.environ, "AFTERTUNE_LEDGER": shared}, check=False)
    assert done.returncode == 0, done.stderr
    with Ledger(shared) as ledger, Ledger(tmp_path / "ledger.db") as file:
        assert ledger.answers(whole.id) == file.answers(whole.id)
        assert ledger.held() == set()


@pytest.mark.slow
def test_the_view_shows_a_ledger_of_a_server_and_changes_notes_there(address: str, tmp_path: Path) -> None:
    from aftertune.ledger.copying import chosen_entries, copy_entries
    from view_cases import client, demo_ledger, post

    with Ledger(demo_ledger(tmp_path / "demo.db")) as source, Ledger(address) as target:
        assert {e.state for e in copy_entries(source.database, target.database, chosen_entries(source.database))} == {
            "copied"}
        [first, *_] = target.comparisons()
    browser, file = client(at(address.replace("aftertune@", f"aftertune:{CANARY}@"))), client(tmp_path / "demo.db")
    for page in ("/", "/runs", "/runs?q=care&sort=name", f"/compare/{first.base}/{first.tuned}", "/grid", "/studies"):
        here, there = browser.get(page), file.get(page)
        assert here.status_code == there.status_code, page
        assert CANARY not in here.text
    assert "careful" in browser.get("/runs").text
    assert post(browser, "/entry/e-careful/note", note="of the team").status_code in (200, 303)
    with Ledger(address) as ledger:
        assert ledger.labels()["e-careful"].note == "of the team"
