"""Cells on several workers: who runs what, what happens where a worker is lost, and the same results as one process."""

from __future__ import annotations

import io
import json
import os
import queue
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from aftertune.engine import devices
from aftertune.errors import InputError, ResourceError
from aftertune.ledger import Ledger
from aftertune.pipeline import cell_runs, local_workers, running, worker_choice
from aftertune.pipeline.driving import RERUNS, Drive, Report
from aftertune.pipeline.scheduling import CellJob, CellQueue
from aftertune.pipeline.worker import Opening, Worker
from aftertune.pipeline.worker_choice import WorkerChoice, as_sent
from aftertune.study import Study
from aftertune.values import plain
from eval_cases import CHAT, byte_folder
from test_cli import call
from tuning_cases import easy_rows, write_rows

pytestmark = pytest.mark.filterwarnings("ignore")
JOBS = [CellJob("evaluate b", 1, (), "b"), CellJob("tune x", 5), CellJob("tune y", 3),
        *(CellJob(f"evaluate {name}", 1, (f"tune {name}", "evaluate b"), "b") for name in "xy")]


class ScriptedWorkers:
    """Workers that answer as a script says: cell -> endings one after another, "done" where there are no more."""

    def __init__(self, **script: list[str]) -> None:
        self.script = {name.replace("_", " "): endings for name, endings in script.items()}
        self.messages: list[tuple[str, dict[str, Any]]] = []
        self.ran: list[tuple[str, str]] = []
        self.started, self.stopped = 0, False

    def start(self) -> str:
        self.started += 1
        self.messages.append((name := f"worker {self.started}", {"event": "ready", "node": "here"}))
        return name

    def send(self, worker: str, cell: str, *, helps: bool = False) -> None:
        self.ran.append((worker, cell))
        ending = self.script[cell].pop(0) if self.script.get(cell) else "done"
        self.messages.append((worker, {"event": "progress", "done": 1, "total": 2, "text": "answering"}))
        self.messages.append((worker, {"event": ending, "kind": "InputError", "reason": f"{ending} on purpose"}))

    def receive(self, timeout: float) -> Iterator[tuple[str, dict[str, Any]]]:
        messages, self.messages = self.messages, []
        yield from messages

    def stop(self) -> None:
        self.stopped = True


def driven(workers: ScriptedWorkers, *, keep_going: bool = False, count: int = 2) -> tuple[Drive, list[str]]:
    log: list[str] = []
    report = Report(lambda *_: None, lambda cell, status: log.append(f"{cell}: {status}"),
                    lambda cell, status, reason: log.append(f"{cell} stored as {status}: {reason}"))
    drive = Drive(CellQueue(JOBS, count), workers, report, keep_going=keep_going)
    drive.run(count)
    return drive, log


def test_each_cell_is_run_once_after_those_that_it_needs() -> None:
    drive, log = driven(workers := ScriptedWorkers())
    assert sorted(cell for _, cell in workers.ran) == sorted(job.name for job in JOBS)
    for job in JOBS:
        assert all(log.index(f"{need}: done") < log.index(f"{job.name}: running") for need in job.needs)
    assert (drive.failed, workers.stopped) == ({}, True)


def test_the_cell_of_a_lost_worker_goes_to_another_one() -> None:
    drive, log = driven(workers := ScriptedWorkers(tune_x=["lost", "lost"]))
    assert len({worker for worker, cell in workers.ran if cell == "tune x"}) == 3
    assert workers.started == 4
    assert (drive.failed, log.count("tune x: running"), log.count("evaluate x: done")) == ({}, 3, 1)


def test_a_cell_whose_worker_is_lost_again_and_again_fails_and_others_go_on() -> None:
    drive, log = driven(workers := ScriptedWorkers(tune_x=["lost"] * 9))
    assert [cell for _, cell in workers.ran].count("tune x") == RERUNS + 1
    assert drive.failed["tune x"].startswith("lost on purpose, 4 times")
    assert drive.failed["evaluate x"] == "needs tune x, which failed"
    assert "evaluate y: done" in log
    assert isinstance(drive.first_error, ResourceError)


def test_the_first_failure_ends_the_run_unless_it_is_to_go_on() -> None:
    workers = ScriptedWorkers(tune_x=["failed"])
    with pytest.raises(InputError, match="failed on purpose"):
        driven(workers)
    assert workers.stopped
    drive, log = driven(ScriptedWorkers(tune_x=["failed"]), keep_going=True)
    assert list(drive.failed) == ["tune x", "evaluate x"]
    assert log[-1].endswith("done")


@pytest.mark.parametrize(("code", "starts"), [(1, 3), (-9, 12)])
def test_workers_that_cannot_begin_end_the_run(code: int, starts: int) -> None:
    workers = ScriptedWorkers()

    def start() -> str:
        workers.started += 1
        workers.messages.append((f"worker {workers.started}", {"event": "lost", "reason": "exit code 1", "code": code}))
        return f"worker {workers.started}"

    workers.start = start  # type: ignore[method-assign]
    with pytest.raises(ResourceError, match="ended before it could begin: exit code 1"):
        driven(workers, count=1)
    assert workers.started == starts


class SharingWorkers(ScriptedWorkers):
    """A cell is done only when a second worker has helped with it."""

    def __init__(self) -> None:
        super().__init__()
        self.helped: list[tuple[str, str]] = []

    def send(self, worker: str, cell: str, *, helps: bool = False) -> None:
        if helps:
            self.helped.append((worker, cell))
            self.messages.append((worker, {"event": "helped"}))
            self.messages.append((self.ran[-1][0], {"event": "done"}))
        else:
            self.ran.append((worker, cell))


@pytest.mark.parametrize(("seconds", "shared", "helps"), [(100.0, True, True), (20.0, True, False),
                                                           (100.0, False, False)])
def test_a_worker_without_a_cell_helps_with_a_long_evaluation(seconds: float, shared: bool, helps: bool) -> None:
    workers, log = SharingWorkers(), list[str]()
    report = Report(lambda done, total, text: log.append(text), lambda *_: None, lambda *_: None)
    queue = CellQueue([CellJob("evaluate b", seconds, base="b", load=1.0, shared=shared)], 2)
    drive = Drive(queue, workers, report, help_after=30.0)
    for _ in range(2):
        drive._start()
    for _ in range(3):
        for message in workers.receive(0.0):
            drive._take_in(*message)
        drive._give_out()
    assert bool(workers.helped) == helps
    assert len(workers.ran) == 1
    if helps:
        assert workers.helped[0][0] != workers.ran[0][0]
        assert not len(queue)
        assert any(text.endswith("helps") for text in log)


def test_each_worker_has_a_gpu_of_its_own_and_its_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[str, dict[str, str]]] = []

    class Recorded:
        def __init__(self, name: str, opening: Any, environment: dict[str, str], received: Any) -> None:
            started.append((name, environment))

        def close(self) -> None:
            pass

    monkeypatch.setattr(local_workers, "ChildWorker", Recorded)
    workers = local_workers.LocalWorkers(Opening("{}", "l.db", "out", threads=2), ("3", "5"))
    for _ in range(3):
        workers.start()
    workers.received.put(("worker 2", {"event": "lost", "reason": "killed"}))
    assert [message["event"] for _, message in workers.receive(0.1)] == ["lost"]
    assert workers.start() == "worker 2"
    assert [(name, e["CUDA_VISIBLE_DEVICES"], e["OMP_NUM_THREADS"]) for name, e in started] == [
        ("worker 1", "3", "2"), ("worker 2", "5", "2"), ("worker 3", "3", "2"), ("worker 2", "5", "2")]
    monkeypatch.setattr(local_workers, "cores", lambda: 16)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [local_workers.threads_of_each(n) for n in (1, 3, 16, 40)] == [16, 5, 1, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert [local_workers.threads_of_each(n) for n in (1, 8)] == [4, 2]


def test_the_password_of_a_ledger_is_in_no_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor in what a worker's errors are shown as."""
    begun: list[tuple[list[str], io.StringIO]] = []

    class Process:
        def __init__(self, command: list[str], **_: Any) -> None:
            self.stdin, self.stdout, self.stderr = io.StringIO(), io.StringIO(), io.StringIO("at s3cret-word\n")
            begun.append((command, self.stdin))

        def wait(self) -> int:
            return 1

    monkeypatch.setattr(local_workers.subprocess, "Popen", Process)
    address = "postgresql+psycopg://me:s3cret-word@db/a"
    monkeypatch.setenv("AFTERTUNE_LEDGER", address)
    workers = local_workers.LocalWorkers(Opening("{}", address, "out"))
    workers.start()
    (_, lost), = workers.receive(5.0)
    command, _ = begun[0]
    assert "s3cret-word" not in f"{command}{lost}"
    assert "[redacted]" in lost["reason"]


def test_the_gpus_are_those_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    two = devices.Capabilities(cuda=("A", "B"), cuda_bf16=(True, True))
    monkeypatch.setattr(devices, "probe", lambda: two)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, 7")
    assert worker_choice.visible_gpus("auto") == ("4", "7")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert worker_choice.visible_gpus("cuda") == ("0", "1")
    assert worker_choice.visible_gpus("cpu") == ()


def test_fewer_workers_are_started_where_memory_is_short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(worker_choice, "free_bytes", lambda device, gpus: (5 * 2**30,))
    study = Study(study="s", bases={"b": {"model": "gpt2"}}, tasks=({"name": "piqa"},),  # type: ignore[arg-type]
                  device="cpu")
    jobs = [CellJob(f"tune {n}", 1, memory=2 * 2**30) for n in range(4)]
    with Ledger(tmp_path / "l.db") as ledger, \
            worker_choice.prepared(WorkerChoice(4), study, jobs, ledger=ledger, out=tmp_path) as ready:
        assert (ready.count, ready.note) == (2, "2 workers instead of 4: the 4 cells that need most memory need about "
                                                "8.0 GiB together, 5.0 GiB are free")


# --- Real workers ---


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study of one tiny base with two fine-tunes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AFTERTUNE_LEDGER", str(tmp_path / "ledger.db"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    byte_folder(tmp_path / "base", template=CHAT, window=4096)
    write_rows(tmp_path / "rows.jsonl", easy_rows())
    path = tmp_path / "study.yaml"
    path.write_text("study: own\nmargin: 5\ndtype: float32\ntask_source: pack\nbases: {b: {model: ./base}}\n"
                    "tasks: [{name: arc_easy, sample: 60}]\n"
                    "matrix: {base: b, data: rows.jsonl, method: [lora, full], max_steps: 4}\n", encoding="utf-8")
    return path


def test_the_study_that_is_sent_is_the_same_study(file: Path) -> None:
    """Also which fields its file sets: a fine-tune writes a note about them, and an integer stays one."""
    study = Study.load(file)
    sent = Study.model_validate_json(as_sent(study))
    assert sent.hash == study.hash
    for name, tuning in study.tunings.items():
        assert sent.tunings[name].model_dump(exclude_unset=True) == tuning.model_dump(exclude_unset=True)
        assert type(sent.tunings[name].lora.alpha) is type(tuning.lora.alpha)


def test_no_worker_is_no_number_of_workers(file: Path, monkeypatch: pytest.MonkeyPatch,
                                           capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="give 1 or more"):
        WorkerChoice(0)
    assert call(monkeypatch, "run", str(file), "--workers", "0") == 2
    assert "--workers 0: give 1 or more" in capsys.readouterr().err


def start(file: Path, *words: str, ledger: str) -> subprocess.Popen[str]:
    search = os.pathsep.join(entry for entry in sys.path if entry)
    return subprocess.Popen(
        [sys.executable, "-m", "aftertune", "run", str(file), *words, "--out", "out"], cwd=file.parent, text=True,
        env={**os.environ, "AFTERTUNE_LEDGER": ledger, "PYTHONPATH": search}, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # ignored in the background


def wait_for(process: subprocess.Popen[str], pattern: str) -> None:
    """Read its stderr up to a line with the pattern."""
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if re.search(pattern, line):
            return
    raise AssertionError("".join(seen))


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return [p for p in psutil.Process(process.pid).children() if "aftertune.pipeline.worker" in p.cmdline()]


def numbers(ledger: str) -> dict[str, Any]:
    """Everything that a run computes: scores by their bits, answers, and what each fine-tune became."""
    with Ledger(ledger) as opened:
        return {"cells": [(c.name, c.status) for c in opened.cells("own")],
                "scores": {e.name: [(s.key, s.value.hex()) for s in e.scores] for e in opened.evaluations()},
                "models": {e.name: e.model.fingerprint for e in opened.evaluations()},
                "answers": {e.name: [plain(a) for a in opened.answers(e.id, "arc_easy")]
                            for e in opened.evaluations()}}


def without_times(text: str) -> str:
    return re.sub(r"\d[\d,.]* (s|min)\b", "TIME", text.replace(" --workers 2", ""))


def test_a_worker_shares_evaluations_and_says_how_each_cell_ended(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process: what it is asked, and what it answers; a fault of ours is a failed cell too."""
    joined: list[bool] = []
    errors = [InputError("no such thing"), RuntimeError("broken"), InputError("helping in vain")]

    def evaluated(spec: Any, *, join: bool, **_: Any) -> Any:
        joined.append(join)
        raise errors[len(joined) - 1]

    monkeypatch.setattr(cell_runs, "evaluate", evaluated)
    study = Study.load(file)
    with Ledger() as ledger:
        running.save_study(study, ledger)
        received: queue.Queue[str | None] = queue.Queue()
        orders = [{"cell": "evaluate b"}, {"cell": "evaluate b"}, {"cell": "evaluate b", "help": True}]
        for line in (*map(json.dumps, orders), None):
            received.put(line)
        channel = io.StringIO()
        Worker(Opening(as_sent(study), str(file.parent / "ledger.db"), "out"), channel, received).work()
        stored = {c.name: c.error for c in ledger.cells("own")}
    said = [json.loads(line) for line in channel.getvalue().splitlines()]
    assert [s["event"] for s in said] == ["ready", "failed", "failed", "helped"]
    assert (said[1]["kind"], said[1]["reason"]) == ("InputError", "no such thing")
    assert said[2]["reason"].startswith("unexpected RuntimeError in test_workers.py")
    assert joined == [True, True, True]
    assert (stored["evaluate b"] or "").startswith("unexpected RuntimeError")


def test_a_node_with_another_version_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    line = replace(Opening("{}", "l.db", "out"), version="9.9").line().replace('"take_over"', '"new": 1, "take_over"')
    with pytest.raises(ResourceError, match=r"aftertune .* is installed on .* and the command runs 9\.9; install"):
        Opening.parse(line)


@pytest.mark.slow
def test_killed_stopped_and_started_again_it_ends_as_one_process_does(file: Path) -> None:
    """A worker is killed, then the run itself, then it is stopped with Ctrl-C; the fourth command ends it. One of its
    fine-tunes cannot be made, and fails as in one process."""
    words = ["--keep-going", "--set", "tunings.lora.max_length=1"]
    process = start(file, "--workers", "2", *words, ledger="w.db")
    wait_for(process, "training: step")
    victim = workers_of(process)[0]
    victim.kill()
    wait_for(process, "SIGKILL.*another worker goes on|evaluate")
    children = workers_of(process)
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=120)
    assert not alive, "workers end with their run"
    process = start(file, "--workers", "2", *words, ledger="w.db")
    wait_for(process, "· worker")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    process = start(file, "--workers", "2", *words, "--json", ledger="w.db")
    out, err = process.communicate(timeout=500)
    assert process.returncode == 1, err
    failed = json.loads(out)["failed"]
    assert [f["cell"] for f in failed] == ["tune lora", "evaluate lora"]
    assert "max_length" in failed[0]["why"] or "max-length" in failed[0]["why"]
    record = (file.parent / "out" / "record.md").read_text()
    (file.parent / "out").rename(file.parent / "of-workers")
    whole = start(file, *words, ledger="s.db")
    _, err = whole.communicate(timeout=500)
    assert whole.returncode == 1, err
    os.chdir(file.parent)
    assert numbers("w.db") == numbers("s.db")
    assert without_times(record).replace(" --json", "") == without_times((file.parent / "out/record.md").read_text())
