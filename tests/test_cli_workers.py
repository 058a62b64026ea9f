"""``eval --workers`` and ``eval --join``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from aftertune.cli import workers
from aftertune.cli.workers import Helpers
from aftertune.engine.devices import Capabilities
from aftertune.errors import ResourceError
from aftertune.ledger.lease import process_start
from aftertune.study import EvalSpec, TaskSpec
from cli_cases import call, one_line, settle
from eval_cases import byte_folder
from test_kills import content

SPEC = EvalSpec(model="m", tasks=(TaskSpec(name="arc_easy"),), device="cpu")


class Process:
    """Notes what was started, and ends at once."""

    pid = 7
    started: list[tuple[list[str], dict[str, str]]] = []  # noqa: RUF012

    def __init__(self, words: list[str], *, env: dict[str, str], stderr: Any, **_: Any) -> None:
        self.started.append((words, env))
        self.returncode = len(self.started) - 1
        stderr.write(b"answering 10 %\naftertune: no memory\n" if self.returncode else b"")

    def poll(self) -> int:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        return self.returncode


def test_helpers_have_the_same_words_and_their_share(monkeypatch: pytest.MonkeyPatch,
                                                     capsys: pytest.CaptureFixture[str]) -> None:
    """The results are handed to a tracker once; a helper that failed is named at the end, with its reason."""
    Process.started = []
    monkeypatch.setattr(subprocess, "Popen", Process)
    monkeypatch.setattr("aftertune.engine.devices.set_threads", lambda: 7)
    monkeypatch.setattr("aftertune.engine.devices.free_memory", lambda _: 3000)
    words = ["eval", "m", "--workers", "3", "--track", "wandb", "--tasks", "arc_easy", "--track=mlflow"]
    with Helpers(SPEC, 3, words) as helpers:
        assert (helpers.spec.threads, helpers.spec.memory) == (2, "1000")
    (first, environment), (second, _) = Process.started
    assert first == second == [sys.executable, "-P", "-m", "aftertune", "eval", "m", "--workers", "3", "--tasks",
                               "arc_easy", "--workers", "1", "--join", "--threads", "2", "--memory", "1000"]
    pid, begun, command = environment["AFTERTUNE_HELPER_OF"].split(":", 2)
    assert (pid, begun, json.loads(command)) == (str(os.getpid()), process_start(os.getpid()), sys.argv)
    assert "" not in environment["PYTHONPATH"].split(os.pathsep)
    assert capsys.readouterr().err == ("note: a worker (process 7) ended early, and the others took its batches: "
                                       "aftertune: no memory\n")


def test_options_of_helpers_are_before_words_that_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    Process.started = []
    monkeypatch.setattr(subprocess, "Popen", Process)
    with Helpers(SPEC, 2, ["eval", "--tasks", "arc_easy", "--", "-model"]):
        pass
    assert Process.started[0][0][-2:] == ["--", "-model"]
    assert "--join" in Process.started[0][0]


def test_a_helper_that_cannot_be_started_is_one_line_and_ends_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []

    class Running(Process):
        def poll(self) -> Any:
            return None

        def terminate(self) -> None:
            ended.append("terminated")

    def start(*given: Any, **named: Any) -> Process:
        if len(Process.started) == 1:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return Running(*given, **named)

    Process.started = []
    monkeypatch.setattr(subprocess, "Popen", start)
    message = r"--workers 3: process 3 cannot be started \(Resource temporarily unavailable\); free some memory"
    with pytest.raises(ResourceError, match=message), Helpers(SPEC, 3, ["eval"]):
        pass
    assert ended == ["terminated"]


def test_helpers_have_gpus_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    Process.started = []
    monkeypatch.setattr(subprocess, "Popen", Process)
    monkeypatch.setattr("aftertune.engine.devices.choose_device", lambda _: "cuda")
    monkeypatch.setattr("aftertune.engine.devices.free_memory", lambda _: 3000)
    monkeypatch.setattr("aftertune.engine.devices.probe", lambda: Capabilities(cuda=("H200", "H200")))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    with Helpers(SPEC.model_copy(update={"device": "auto", "threads": 3}), 4, ["eval"]) as helpers:
        assert (helpers.spec.threads, helpers.spec.memory) == (3, "1500")
    assert [environment["CUDA_VISIBLE_DEVICES"] for _, environment in Process.started] == ["6", "4", "6"]


@pytest.mark.parametrize(("more", "expected"), [
    (("--workers", "2", "--engine", "lm-eval:hf"), ("--workers: the engine lm-eval:hf runs in one process",)),
    (("--join", "--engine", "llamacpp"), ("--join: the engine llamacpp runs in one process",)),
    (("--workers", "2", "--fork"), ("--workers and --fork: each process would start an evaluation of its own",)),
    (("--workers", "0"), ("--workers",))])
def test_what_cannot_be_shared_is_one_line(more: tuple[str, ...], expected: tuple[str, ...], tmp_path: Path,
                                           monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    settle(monkeypatch, tmp_path)
    assert call(monkeypatch, "eval", "m", "--tasks", "arc_easy", "--device", "cpu", *more) == 2
    assert not one_line(capfd, expected)


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """A command of some seconds."""
    byte_folder(tmp_path / "model")
    return [sys.executable, "-m", "aftertune", "eval", str(tmp_path / "model"), "--tasks", "arc_easy,gsm8k_cot",
            "--sample", "40", "--device", "cpu", "--dtype", "float32", "--memory", "1MB",
            "--threads", "1", "--gen-kwargs", "max_gen_toks=8"]


def started(words: list[str], ledger: Path) -> subprocess.Popen[str]:
    settings = {"AFTERTUNE_LEDGER": str(ledger), "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(words, env={**os.environ, **settings}, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def helpers_of(process: subprocess.Popen[str]) -> list[tuple[int, str | None]]:
    """pid and start of each helper, once they are there."""
    import psutil

    while process.poll() is None:
        found = [p.pid for p in psutil.Process(process.pid).children() if "--join" in p.cmdline()]
        if found:
            return [(pid, process_start(pid)) for pid in found]
        time.sleep(0.02)
    return []


def answered(ledger: Path, number: int, process: subprocess.Popen[str]) -> None:
    """Wait until so many batches are stored."""
    from test_shared_evaluation import batches

    while process.poll() is None and not (ledger.exists() and batches(ledger) >= number):
        time.sleep(0.02)


@pytest.mark.slow
def test_a_command_with_workers_stores_what_one_without_does_whatever_ends_it(words: list[str], tmp_path: Path) -> None:
    """SIGTERM and SIGKILL of the command end its helpers; a killed helper is named, and the rest is done without it."""
    one, two = tmp_path / "one.db", tmp_path / "two.db"
    alone = started(words, one)
    errors = alone.communicate()[1]
    assert alone.returncode == 0, errors
    for number, ending in ((2, signal.SIGTERM), (8, signal.SIGKILL)):
        process = started([*words, "--workers", "2"], two)
        helpers = helpers_of(process)
        assert helpers
        answered(two, number, process)
        process.send_signal(ending)
        errors = process.communicate()[1]
        assert process.returncode == (130 if ending == signal.SIGTERM else -9), errors
        while any(process_start(pid) == begun for pid, begun in helpers):
            time.sleep(0.05)
    process = started([*words, "--workers", "3"], two)
    answered(two, 12, process)
    for pid, _ in helpers_of(process)[:1]:
        os.kill(pid, signal.SIGKILL)
    out, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "arc_easy" in out
    assert content(two)[1] == content(one)[1]


def test_a_helper_ends_with_the_process_that_started_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pid may be another process's by then."""
    ended: list[int] = []
    monkeypatch.setattr(os, "kill", lambda _, sent: ended.append(sent))
    monkeypatch.setattr(sys, "argv", ["aftertune", "eval", "m", "--join"])
    monkeypatch.setenv("AFTERTUNE_HELPER_OF", f'{os.getpid()}:1:["aftertune", "eval", "m", "--name", "a:b"]')
    assert workers.end_with_parent()
    while not ended:
        time.sleep(0.01)
    assert ended == [signal.SIGTERM]
    assert sys.argv == ["aftertune", "eval", "m", "--name", "a:b"]  # an evaluation has the command that was typed
    assert "AFTERTUNE_HELPER_OF" not in os.environ
    assert not workers.end_with_parent()
