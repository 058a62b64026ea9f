"""The schema, and the way of an older ledger to it."""

from __future__ import annotations

import shutil
import sqlite3
import textwrap
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex, CreateTable

import ledger_cases as cases
import stored_cases
from aftertune.errors import StorageError
from aftertune.ledger import Ledger, migration
from aftertune.ledger.schema import HEAD, metadata
from aftertune.ledger.sqlite import SqliteDatabase


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


def test_new_and_migrated_ledgers_have_the_tables_of_the_schema(path: Path) -> None:
    """The migrated one was written at revision 0001."""
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory

    assert ScriptDirectory(str(migration.SCRIPTS)).get_heads() == [HEAD]
    old = path.with_name("old.db")
    stored_cases.load(old)
    for file in (path, old):
        with Ledger(file) as ledger, ledger.database.read() as connection:
            context = MigrationContext.configure(connection, opts={"compare_type": True})
            assert context.get_current_revision() == HEAD
            assert compare_metadata(context, metadata) == []
    assert columns(path) == columns(old)
    assert len(metadata.tables) == 18


def columns(path: Path) -> dict[str, list[tuple[object, ...]]]:
    """Every table's columns (name, type, not null, key) and foreign keys, from SQLite itself."""
    with closing(sqlite3.connect(path)) as raw:
        names = [r[0] for r in raw.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {n: sorted(r[1:4] + r[5:] for r in raw.execute(f"PRAGMA table_info('{n}')")) + sorted(
            r[2:7] for r in raw.execute(f"PRAGMA foreign_key_list('{n}')"))
            for n in names if n != "alembic_version" and not n.startswith("sqlite_")}


def test_the_schema_is_sql_that_postgresql_takes_too() -> None:
    dialect = postgresql.dialect()
    for table in metadata.sorted_tables:
        assert "CREATE TABLE" in str(CreateTable(table).compile(dialect=dialect))
        for index in table.indexes:
            assert "CREATE INDEX" in str(CreateIndex(index).compile(dialect=dialect))
    response = str(CreateTable(metadata.tables["response"]).compile(dialect=dialect))
    assert "logprob DOUBLE PRECISION" in response


@pytest.fixture
def next_release(tmp_path: Path) -> Path:
    """The migrations of a program one schema further: evaluations get a column, in a rebuilt table."""
    scripts = tmp_path / "migrations"
    shutil.copytree(migration.SCRIPTS, scripts)
    (scripts / "versions" / "0006_note.py").write_text(textwrap.dedent("""
        import sqlalchemy as sa
        from alembic import op
        revision, down_revision = "0006", "0005"
        def upgrade():
            with op.batch_alter_table("evaluation", recreate="always") as batch:
                batch.add_column(sa.Column("note", sa.Text()))
    """))
    return scripts


def target(database: SqliteDatabase) -> migration.Target:
    return migration.Target(database.path, database.module, database.migrate)


def ready(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.open_evaluation(cases.evaluation(), cases.items())
        ledger.save_batch("e1", 0, cases.responses())


def test_an_older_ledger_is_copied_and_migrated_with_all_its_rows(path: Path, next_release: Path) -> None:
    ready(path)
    for name in ("ledger.db.0005.bak", "ledger.db.0005.1.bak"):
        with closing(SqliteDatabase(path)) as opened:
            with opened.write() as connection:
                connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0005'")
                if "note" in [r[1] for r in connection.exec_driver_sql("PRAGMA table_info(evaluation)")]:
                    connection.exec_driver_sql("ALTER TABLE evaluation DROP COLUMN note")
            migration.migrate(target(opened), migration.State("0005"), scripts=next_release, head="0006")
        with closing(sqlite3.connect(path)) as raw:
            assert raw.execute("SELECT version_num FROM alembic_version").fetchone() == ("0006",)
            assert raw.execute("SELECT id, note FROM evaluation").fetchall() == [("e1", None)]
            # The responses did not go with the old table, although they refer to it.
            assert raw.execute("SELECT count(*) FROM response").fetchone() == (12,)
        with closing(sqlite3.connect(path)) as raw, raw:
            raw.execute("UPDATE alembic_version SET version_num = '0005'")
        with Ledger(path.with_name(name)) as copy:
            assert copy.responses("e1") == cases.responses()


def test_a_migration_that_fails_leaves_the_ledger_as_it_was(path: Path, next_release: Path) -> None:
    ready(path)
    script = next_release / "versions" / "0006_note.py"
    script.write_text(script.read_text() + "    op.execute('UPDATE nowhere SET a = 1')\n")
    message = r"0005 to 0006 failed.*ledger\.db\.0005\.bak"
    with closing(SqliteDatabase(path)) as opened, pytest.raises(StorageError, match=message):
        migration.migrate(target(opened), migration.State("0005"), scripts=next_release, head="0006")
    with Ledger(path) as ledger:
        assert ledger.responses("e1") == cases.responses()
        assert ledger.find_evaluation("e1") == cases.evaluation()
    with closing(sqlite3.connect(path)) as raw:
        assert raw.execute("SELECT version_num FROM alembic_version").fetchone() == ("0005",)


def test_a_backup_has_its_name_only_once_it_is_complete_and_is_made_once(path: Path, next_release: Path) -> None:
    """A process that is killed in the backup leaves no file that looks like one; in the migration, no second one."""
    ready(path)
    script = (next_release / "versions" / "0006_note.py")
    script.write_text(script.read_text() + "    raise KeyboardInterrupt\n")
    names: list[set[str]] = []

    class Slow:
        """The driver; it notes the files in the folder while a copy is written."""

        def __getattr__(self, name: str) -> object:
            return getattr(sqlite3, name)

        def connect(self, file: str, **settings: object) -> sqlite3.Connection:
            names.append({p.name for p in path.parent.iterdir()})
            return sqlite3.connect(file, **settings)  # type: ignore[call-overload, no-any-return]

    for _ in range(2):
        with closing(SqliteDatabase(path)) as opened, pytest.raises(KeyboardInterrupt):
            migration.migrate(migration.Target(path, Slow(), opened.migrate),  # type: ignore[arg-type]
                              migration.State("0005"), scripts=next_release, head="0006")
    assert not any(name.endswith(".bak") for seen in names[:2] for name in seen)
    assert [p.name for p in path.parent.glob("*.bak*")] == ["ledger.db.0005.bak"]
    with Ledger(path.with_name("ledger.db.0005.bak")) as copy:
        assert copy.responses("e1") == cases.responses()


def test_a_new_ledger_is_made_at_the_newest_revision_and_runs_no_script(path: Path, next_release: Path) -> None:
    """At revision 0005 the schema has the new column already: to add it once more would fail."""
    for script in (next_release / "versions").glob("*.py"):
        text = script.read_text()
        script.write_text(text.replace("def upgrade()", "def upgrade(): raise AssertionError\ndef _old()"))
    with closing(SqliteDatabase(path)) as opened:
        with opened.write() as connection:
            metadata.drop_all(connection)
            connection.exec_driver_sql("DROP TABLE alembic_version")
        migration.migrate(target(opened), migration.State(None), scripts=next_release, head="0006")
    with closing(sqlite3.connect(path)) as raw:
        assert raw.execute("SELECT version_num FROM alembic_version").fetchall() == [("0006",)]
        assert raw.execute("SELECT count(*) FROM evaluation").fetchone() == (0,)


def test_scripts_that_servers_may_run_are_for_both_databases() -> None:
    """The first ledger on a server was made at revision 0005."""
    for script in sorted((migration.SCRIPTS / "versions").glob("*.py")):
        text = script.read_text(encoding="utf-8")
        if script.name > "0006":
            assert "PRAGMA" not in text, script.name
            assert text.count("sa.Text()") == text.count("sa.Text().with_variant("), script.name
