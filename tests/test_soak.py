"""The harness that interrupts commands: its faults happen where they should, and its checks find what is wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import ledger_cases as cases
import soak
import soak_child
import soak_content
from aftertune.ledger import Ledger

WRITER = """
import ctypes, os, sqlite3, sys
faults = ctypes.CDLL(None)
faults.soak_arm(sys.argv[1].encode(), int(sys.argv[2]), int(sys.argv[3]))
os.chdir(sys.argv[1])
with open("new", "wb", buffering=0) as file:
    file.write(b"x" * 100)
os.replace("new", "whole")
ledger = sqlite3.connect("ledger.db")
ledger.execute("CREATE TABLE t (a)")
ledger.execute("INSERT INTO t VALUES (1)")
ledger.commit()
print(faults.soak_count())
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = soak_child.build(tmp_path_factory.mktemp("soak")) if sys.platform == "linux" else None
    if built is None:
        pytest.skip("no C compiler, or not Linux")
    return built


def interrupt(library: Path, place: Path, how: int, at: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-S", "-c", WRITER, f"{place}/", str(how), str(at)], text=True, check=False,
                          env={**os.environ, "LD_PRELOAD": str(library)}, capture_output=True)


@pytest.mark.parametrize(("how", "at", "size", "renamed"), [
    (soak_child.BEFORE, 1, 0, False), (soak_child.TORN, 1, 50, False), (soak_child.AFTER, 1, 100, False),
    (soak_child.BEFORE, 2, 100, False), (soak_child.AFTER, 2, 100, True)])
def test_a_kill_comes_before_in_or_after_a_system_call(library: Path, tmp_path: Path, how: int, at: int, size: int,
                                                       renamed: bool) -> None:
    assert interrupt(library, tmp_path, how, at).returncode == -signal.SIGKILL
    [file] = tmp_path.iterdir()
    assert (file.name, file.stat().st_size) == ("whole" if renamed else "new", size)


def test_a_full_disk_fails_what_needs_space_and_sqlite_is_counted(library: Path, tmp_path: Path) -> None:
    whole = interrupt(library, tmp_path, soak_child.COUNT, 0)
    calls = int(whole.stdout)
    assert calls > 8, "SQLite's writes are not seen"
    for file in tmp_path.iterdir():
        file.unlink()
    full = interrupt(library, tmp_path, soak_child.FULL, 3)
    assert full.returncode == 1
    assert "disk is full" in full.stderr
    assert (tmp_path / "whole").stat().st_size == 100


def test_what_was_acknowledged_and_is_not_there_is_found(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.db") as ledger:
        ledger.open_evaluation(cases.evaluation(), cases.items())
        ledger.save_batch("e1", 0, cases.responses())
    given = cases.responses()
    rows = [[p, None if r.logprob is None else r.logprob.hex(), r.text] for p, r in given.items()]
    batch: dict[str, Any] = {"batch": 0, "evaluation": "e1", "responses": rows}
    assert soak_content.lost(tmp_path, [batch]) == []
    wrong: list[dict[str, Any]] = [
        {**batch, "evaluation": "e2"}, {**batch, "responses": [[rows[0][0], (-99.0).hex(), None]]},
        {"evaluation_done": "e1"}, {"tuning_done": "t-1"}, {"checkpoint": str(tmp_path / "c" / "checkpoint-3")}]
    for ack in wrong:
        assert len(soak_content.lost(tmp_path, [ack])) == 1, ack
    sealed = tmp_path / "c" / "checkpoint-4"
    sealed.mkdir(parents=True)
    (sealed / "sealed.json").touch()
    assert soak_content.lost(tmp_path, [wrong[-1]]) == []  # a newer one has replaced it


def test_a_difference_in_the_ledger_or_in_a_file_is_found(tmp_path: Path) -> None:
    (tmp_path / "record.md").write_text("- **Duration**: 2.5 s, 5 items\n")
    with Ledger(tmp_path / "ledger.db") as ledger:
        ledger.open_evaluation(cases.evaluation(), cases.items())
    before = soak_content.content(tmp_path)
    (tmp_path / "record.md").write_text("- **Duration**: 31 s, 5 items\n")
    assert list(soak_content.differences(before, soak_content.content(tmp_path))) == []
    (tmp_path / "record.md").write_text("- **Duration**: 31 s, 6 items\n")
    (tmp_path / ".record.md.1").touch()
    with Ledger(tmp_path / "ledger.db") as ledger:
        ledger.save_batch("e1", 0, cases.responses())
    found = list(soak_content.differences(before, soak_content.content(tmp_path)))
    assert [f.partition(":")[0] for f in found] == [
        ".ledger.responses.e1", ".files.record.md", ".files..record.md.1 is new"]


class Ended:
    """A command that has ended."""

    def __init__(self, code: int, text: str) -> None:
        self.code, self.text = code, text

    def errors(self) -> str:
        return self.text


@pytest.mark.parametrize(("text", "fine"), [
    ("loading the model\naftertune: stopped\n", True), ("Traceback\naftertune: stopped\n", False),
    ("loading the model\n", False), ("aftertune: unexpected KeyError; this is a fault of aftertune\n", False)])
def test_a_stopped_command_prints_one_line(text: str, fine: bool) -> None:
    assert (soak_child.one_line(Ended(130, text)) == "") == fine  # type: ignore[arg-type]


def test_parts_of_earlier_runs_keep_their_lines() -> None:
    first = soak._table([soak.Figures("evaluation", 1, interrupted=200), soak.Figures("stop", 5, notes=["one"])])
    both = soak._table([soak.Figures("soften", 7, interrupted=10), soak.Figures("stop", 6)], first).splitlines()
    assert [line.split()[1] for line in both if line.startswith("| ")][2:] == ["evaluation", "soften", "stop"]
    assert "| stop | 0 | 0 | 0 | 0 | 6 | 0 |" in both
    assert "- stop: one." not in both


def test_a_part_that_did_not_end_does_not_show_the_figures_of_an_earlier_run(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    figures.write_text('[{"part": "clock", "seed": 1, "interrupted": 84}]')
    options = soak._parser().parse_args(["--kills", "1", "--figures", str(figures)])
    missing = tmp_path / "no such folder"
    assert soak._clock_figures(missing, options).wrong


def test_a_damaged_database_is_found(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.db") as ledger:
        ledger.open_evaluation(cases.evaluation(), cases.items())
    with closing((tmp_path / "ledger.db").open("r+b")) as file:
        file.seek(4096)
        file.write(b"\xff" * 8192)
    assert soak_content.lost(tmp_path, [{"comparison": "c-1"}])
