"""``plan --commands`` and ``--workers``: what make, Slurm and a shell run, and how long several workers take."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aftertune.errors import InputError, InUse
from aftertune.ledger import Ledger, StoredCell
from aftertune.ledger.running import RunningEntry
from aftertune.pipeline import cell_runs, running
from aftertune.pipeline.commands import FORMS, CommandRow, RunCall, make_file, shell_script, slurm_script, targets_of
from aftertune.study import Study
from aftertune.study.links import parse_links
from eval_cases import CHAT, byte_folder
from test_cli import call
from tuning_cases import easy_rows, write_rows

pytestmark = pytest.mark.filterwarnings("ignore")
ROWS = [CommandRow("evaluate b", (), 3 * 2**30), CommandRow("tune x$1", (), None),
        CommandRow("evaluate x$1", ("tune x$1", "evaluate b", "evaluate done"), 2**20 + 1)]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study of one tiny base with two fine-tunes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AFTERTUNE_LEDGER", str(tmp_path / "ledger.db"))
    byte_folder(tmp_path / "base", template=CHAT, window=4096)
    write_rows(tmp_path / "rows.jsonl", easy_rows())
    path = tmp_path / "study.yaml"
    path.write_text("study: own\nmargin: 5\ndtype: float32\ntask_source: pack\nbases: {b: {model: ./base}}\n"
                    "tasks: [{name: arc_easy, sample: 4}]\n"
                    "matrix: {base: b, data: rows.jsonl, method: [lora, ia3], max_steps: 1}\n", encoding="utf-8")
    return path


def test_a_makefile_has_a_target_for_each_cell() -> None:
    text = make_file("own", ROWS, RunCall("my study.yaml", ("margin=3",), Path("out")))
    assert text.splitlines()[4:] == [
        "record: evaluate-b tune-x-1 evaluate-x-1",
        "\t$(AFTERTUNE) run 'my study.yaml' --set margin=3 --out out", "", "evaluate-b:",
        "\t$(AFTERTUNE) run 'my study.yaml' --cell 'evaluate b' --set margin=3 --out out", "", "tune-x-1:",
        "\t$(AFTERTUNE) run 'my study.yaml' --cell 'tune x$$1' --set margin=3 --out out", "",
        "evaluate-x-1: tune-x-1 evaluate-b",
        "\t$(AFTERTUNE) run 'my study.yaml' --cell 'evaluate x$$1' --set margin=3 --out out"]


def test_targets_are_words_of_their_own() -> None:
    rows = [CommandRow("deploy x gguf:q8_0"), CommandRow("deploy x gguf-q8_0"), CommandRow("record"), CommandRow("…")]
    assert list(targets_of(rows).values()) == ["deploy-x-gguf-q8_0", "deploy-x-gguf-q8_0-2", "record-2", "cell"]


@pytest.mark.skipif(shutil.which("sh") is None, reason="sh")
def test_slurm_gets_each_job_after_those_that_it_needs(tmp_path: Path) -> None:
    """A stand-in for sbatch prints its arguments and numbers its jobs."""
    (tmp_path / "sbatch").write_text('#!/bin/sh\nprintf "%s\\n" "$*" >> "$LOG"\nwc -l < "$LOG" | tr -d " "\n')
    (tmp_path / "sbatch").chmod(0o755)
    script = slurm_script("own", ROWS, RunCall("s.yaml"))
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": str(tmp_path / "log"),
                   "SBATCH_FLAGS": "--partition=short --time=60"}
    subprocess.run(["sh", "-c", script], env=environment, check=True, capture_output=True)
    log = (tmp_path / "log").read_text().splitlines()
    flags = "--partition=short --time=60"
    assert log == [
        f"--parsable --job-name=evaluate-b --mem=3072M {flags} --wrap=aftertune run s.yaml --cell 'evaluate b'",
        f"--parsable --job-name=tune-x-1 {flags} --wrap=aftertune run s.yaml --cell 'tune x$1'",
        f"--parsable --job-name=evaluate-x-1 --mem=2M --dependency=afterok:2:1 {flags} "
        "--wrap=aftertune run s.yaml --cell 'evaluate x$1'",
        f"--parsable --job-name=record --dependency=afterok:1:2:3 {flags} --wrap=aftertune run s.yaml"]
    assert "--gpus=1" in slurm_script("own", ROWS, RunCall("s.yaml", gpu=True)).splitlines()[4]


def test_a_shell_script_names_what_each_cell_needs() -> None:
    lines = shell_script("own", ROWS, RunCall("s.yaml")).splitlines()
    assert lines[5:7] == ["# evaluate x$1, after tune x$1, evaluate b", "aftertune run s.yaml --cell 'evaluate x$1'"]
    assert lines[-1] == "aftertune run s.yaml"


@pytest.mark.parametrize("form", FORMS)
def test_nothing_of_a_study_is_executed(form: str, tmp_path: Path) -> None:
    """Stand-ins print what they get: every word arrives as it is, and no other command runs."""
    for program in ("aftertune", "sbatch"):
        (tmp_path / program).write_text('#!/bin/sh\nfor last; do :; done\nprintf "%s\\n" "$last" >> "$LOG"\n')
        (tmp_path / program).chmod(0o755)
    out = "a b $(touch bad) `touch bad` '; touch bad; ' \" $HOME $(shell touch bad) #%\\"
    text = FORMS[form]("own", [CommandRow("deploy x openai:http://h#$(touch bad)")], RunCall("s.yaml", (), Path(out)))
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": str(tmp_path / "log")}
    command = ["make", "-f", "script"] if form == "make" else ["sh", "script"]
    (tmp_path / "script").write_text(text + "\n")
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    log = (tmp_path / "log").read_text().splitlines()
    words = [shlex.split(line.removeprefix("--wrap="))[-1] for line in log] if form == "slurm" else log
    assert (words, (tmp_path / "bad").exists()) == ([out, out], False)


@pytest.mark.parametrize("form", FORMS)
def test_a_line_break_in_a_name_is_no_further_command(form: str) -> None:
    with pytest.raises(InputError, match="has a line break or another control character"):
        FORMS[form]("own", [CommandRow("deploy x openai:http://h#a\ntouch bad")], RunCall("s.yaml"))
    with pytest.raises(InputError, match=r"the link .* has a line break"):
        parse_links(["adapter", "openai:http://h#a\ntouch bad\n#"], "deploy")


def test_plan_prints_the_commands_of_the_cells_that_are_left(file: Path, monkeypatch: pytest.MonkeyPatch,
                                                             capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "run", str(file), "--cell", "evaluate b") == 0
    assert not Path("runs/own/record.md").exists()
    capsys.readouterr()
    assert call(monkeypatch, "plan", str(file), "--commands", "plain") == 0
    script = capsys.readouterr().out
    assert [line for line in script.splitlines() if line.startswith("# ")][1:] == [
        "# tune lora", "# tune ia3", "# evaluate lora, after tune lora", "# evaluate ia3, after tune ia3",
        "# the record and the page, after all of them"]
    assert call(monkeypatch, "plan", str(file), "--commands", "slrum") == 2
    assert "did you mean 'slurm'" in capsys.readouterr().err
    assert call(monkeypatch, "plan", str(file), "--workers", "2", "--json") == 0
    schedule = json.loads(capsys.readouterr().out)["schedule"]
    assert len(schedule["cells"]) == 4
    assert schedule["bound"] <= schedule["seconds"]
    assert call(monkeypatch, "plan", str(file), "--workers", "2") == 0
    assert "on 2 workers about" in capsys.readouterr().out


def test_the_command_of_a_cell_has_the_changes_of_the_plan(file: Path, monkeypatch: pytest.MonkeyPatch,
                                                           capsys: pytest.CaptureFixture[str]) -> None:
    """Without them it would run another study."""
    assert call(monkeypatch, "plan", str(file), "--set", "margin=3", "--out", "o u", "--json") == 0
    cells = json.loads(capsys.readouterr().out)["cells"]
    assert cells[0]["command"] == f"aftertune run {file} --only 'evaluate b' --set margin=3 --out 'o u'"
    assert all(c["command"].endswith(" --set margin=3 --out 'o u'") for c in cells)


def test_a_cell_alone_needs_the_cells_before_it(file: Path, monkeypatch: pytest.MonkeyPatch,
                                                capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "run", str(file), "--cell", "evaluate lora") == 2
    assert "evaluate lora needs tune lora, which the ledger does not have" in capsys.readouterr().err
    assert call(monkeypatch, "run", str(file), "--cell", "tune lara") == 2
    assert "did you mean 'tune lora'" in capsys.readouterr().err
    assert call(monkeypatch, "run", str(file), "--cell", "tune lora", "--only", "lora") == 2


def test_two_commands_that_begin_at_once_leave_each_other_their_states(file: Path, monkeypatch: pytest.MonkeyPatch
                                                                       ) -> None:
    """The other one stores its cell as done between the steps of the first one."""
    study, met = Study.load(file), list[str]()
    with Ledger() as ledger:
        cells = ledger.cells

        def meanwhile(name: str) -> list[StoredCell]:
            found: list[StoredCell] = cells(name) if ledger.studies() else []
            if not met:
                met.append(name)
                with Ledger() as other:
                    running.save_study(study, other)
                    other.save_cell("own", "evaluate b", "done", ref="e-1")
            return found

        monkeypatch.setattr(ledger, "cells", meanwhile)
        running.save_study(study, ledger)
        assert {c.name: c.status for c in cells("own")}["evaluate b"] == "done"


def test_a_cell_of_another_process_keeps_its_state(file: Path, monkeypatch: pytest.MonkeyPatch,
                                                   capsys: pytest.CaptureFixture[str]) -> None:
    def held(*_: Any, **__: Any) -> Any:
        raise InUse("evaluation e-1 is in use by process 7 on here; wait until it ends")

    monkeypatch.setattr(cell_runs, "evaluate", held)
    assert call(monkeypatch, "run", str(file), "--cell", "evaluate b") == 4
    assert "is in use by process 7" in capsys.readouterr().err
    entry = RunningEntry(id="e-1", kind="evaluation", name="b", started="", done=1, total=4, hosts=("here",))
    monkeypatch.setattr(Ledger, "running", lambda self: [entry])
    assert call(monkeypatch, "plan", str(file), "--json") == 0
    planned = json.loads(capsys.readouterr().out)["cells"][0]
    assert (planned["status"], planned["why"]) == ("running", "25% done, on here"), "also without a run of the study"


def test_an_unknown_cell_is_refused_in_python(file: Path) -> None:
    with Ledger() as ledger, pytest.raises(InputError, match="no cell of own has this name"):
        running.run_cell(Study.load(file), "tune", ledger=ledger, out=Path("out"))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("make") is None or shutil.which("sh") is None, reason="make and sh")
def test_the_commands_of_the_page_on_workers_run_as_they_are_written(file: Path) -> None:
    """Those for one machine, make and Slurm, with a stand-in for sbatch; a cluster has a test of its own. make begins
    with another ledger, and gives the scores of `run --workers`."""
    text = (Path(__file__).parents[1] / "docs" / "cluster.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```\n(.*?)^```", text, flags=re.M | re.S)
    blocks = [b for b in blocks if not re.search(r"\bray\b|postgresql|/mnt/|aftertune eval", b)]
    script = "".join(blocks).replace("--workers 4", "--workers 2").replace("-j 4", "-j 2")
    assert [line.split()[1] for line in script.splitlines() if line.startswith("aftertune")] == [
        "plan", "plan", "run", "plan", "plan"]
    plan = "aftertune plan study.yaml --commands make"
    script = script.replace(plan, f"rm -r runs; export AFTERTUNE_LEDGER=$PWD/make.db\n{plan}")
    tools = file.parent / "tools"
    tools.mkdir()
    (tools / "aftertune").write_text(f'#!/bin/sh\nexec {sys.executable} -m aftertune "$@"\n')
    (tools / "sbatch").write_text('#!/bin/sh\necho 1\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    file.write_text(file.read_text().replace("[lora, ia3]", "[ia3]"), encoding="utf-8")
    search = os.pathsep.join(entry for entry in sys.path if entry)
    ended = subprocess.run(["sh", "-ec", script], cwd=file.parent, capture_output=True, text=True, timeout=550,
                           env={**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": search,
                                "OMP_NUM_THREADS": "1"})
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert (file.parent / "runs" / "own" / "record.md").exists()
    assert "on 2 workers about" in ended.stdout
    assert (file.parent / "submit.sh").read_text().startswith("#!/bin/sh\n# Submits the cells of study own")
    with Ledger() as whole, Ledger("make.db") as made:
        assert {c.status for c in made.cells("own")} == {"done"}
        assert [c.name for c in made.cells("own")] == [c.name for c in whole.cells("own")]
        scores = [{e.name: [(s.key, s.value.hex()) for s in e.scores] for e in ledger.evaluations()}
                  for ledger in (made, whole)]
    assert scores[0] == scores[1]
    assert len(scores[0]) == 2
