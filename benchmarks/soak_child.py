"""Runs commands of aftertune in forked processes that can be killed at any moment, for `soak.py`.

    preload()                                        imports the libraries once, so that a command starts at once
    child = Child(place, "eval", "model", "--tasks", "quiz")
    child.wait()                                     exit code, -9 after SIGKILL
    child.text()                                     what it printed
    child.acknowledged()                             what the ledger and the checkpoints had said is stored

A child runs `aftertune.cli.main`, the whole command. It works in ``place``, with its ledger and cache. Faults at a
chosen system call come from `soak_faults.c`, which `build` compiles; it has to be preloaded (`arm_self`).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("soak_faults.c")
#: What `soak_arm` does at a system call.
COUNT, BEFORE, AFTER, TORN, FULL = range(5)
#: Everything that a command imports before its work.
_MODULES = ("torch", "transformers.models.llama.modeling_llama", "transformers.models.auto.modeling_auto", "datasets",
            "lm_eval.tasks", "lm_eval.api.task", "lm_eval.api.model", "peft", "trl", "sqlalchemy", "alembic.config",
            "alembic.runtime.environment", "aftertune.cli", "aftertune.cli.eval", "aftertune.cli.tune",
            "aftertune.cli.study", "aftertune.cli.ledger", "aftertune.cli.record", "aftertune.cli.doctor",
            "aftertune.evaluation", "aftertune.tuning.trainer", "aftertune.tuning.output", "aftertune.pipeline",
            "aftertune.exchange", "aftertune.report.page", "aftertune.ledger", "aftertune.merge_check")
_number = count()
#: How a progress line of a command begins.
PROGRESS = ("identifying", "reading", "loading", "planning", "answering", "encoding", "[", "held-out", "training: step",
            "merging", "SIGTERM:", "SIGINT:", "saving", "evaluating", "aligning")
#: Folder for what the commands print, outside of their place.
LOGS = Path(os.environ.get("SOAK_LOGS", "/tmp"))


def build(folder: Path) -> Path | None:
    """Compile the faults; None where there is no compiler (then kills come at random times only)."""
    library = folder / "soak_faults.so"
    command = ["cc", "-O1", "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl"]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return library


def preload() -> None:
    """Import the libraries. No thread may run afterwards, or a fork could inherit a held lock."""
    for module in _MODULES:
        import_module(module)
    assert threading.active_count() == 1, threading.enumerate()


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault at system call number ``at`` that changes a file below the child's place. how: one of the words above."""

    how: int
    at: int


class Child:
    """A running command. place: its working folder; fault: at a system call; before: called in the child first."""

    def __init__(self, place: Path, *words: str, fault: Fault | None = None, before: Callable[[], None] | None = None,
                 variables: Mapping[str, str] | None = None) -> None:
        self.place, self.words = place, words
        self.code: int | None = None
        self._stem = LOGS / f"{next(_number):05d}-{words[0]}"
        self.started = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            code = 70
            try:
                self._prepare(variables or {})
                if before is not None:
                    before()
                code = _command(words, place, fault or Fault(COUNT, 0), self._stem)
            except BaseException:
                traceback.print_exc()
            finally:
                with contextlib.suppress(BaseException):
                    sys.stdout.flush()
                    sys.stderr.flush()
                os._exit(code)

    def _prepare(self, variables: Mapping[str, str]) -> None:
        os.chdir(self.place)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it
        for stream, suffix in ((1, "out"), (2, "err")):
            file = os.open(f"{self._stem}.{suffix}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(file, stream)
            os.close(file)
        sys.stdout, sys.stderr = (open(fd, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
                                  for fd in (1, 2))
        os.environ.update({"AFTERTUNE_LEDGER": str(self.place / "ledger.db"), **variables})

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def wait(self, seconds: float = 600.0) -> int:
        """The exit code. TimeoutError, after SIGKILL, where it does not end in time."""
        while self.poll() is None:
            if time.monotonic() - self.started > seconds:
                self.kill()
                raise TimeoutError(f"`{' '.join(self.words)}` did not end within {seconds:g} s: {self.errors()[-500:]}")
            time.sleep(0.002)
        assert self.code is not None
        return self.code

    def send(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> bool:
        """SIGKILL; True where it was still at work."""
        self.send(signal.SIGKILL)
        return self.wait() == -signal.SIGKILL

    def text(self) -> str:
        """What it printed on stdout."""
        return self._stem.with_name(f"{self._stem.name}.out").read_text(encoding="utf-8", errors="replace")

    def errors(self) -> str:
        """What it printed on stderr."""
        return self._stem.with_name(f"{self._stem.name}.err").read_text(encoding="utf-8", errors="replace")

    def acknowledged(self) -> list[dict[str, Any]]:
        """What it said is stored, in order; a line that was cut off by a kill does not count."""
        file = self._stem.with_name(f"{self._stem.name}.acks")
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def calls(self) -> int:
        """Number of system calls that changed a file below its place; 0 where it did not end by itself."""
        return next((int(a["calls"]) for a in self.acknowledged() if "calls" in a), 0)


def _command(words: tuple[str, ...], place: Path, fault: Fault, stem: Path) -> int:
    """Run the command in this process; its exit code."""
    from aftertune import cli

    acks = os.open(f"{stem}.acks", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def tell(**value: Any) -> None:
        os.write(acks, (json.dumps({**value, "at": time.monotonic()}) + "\n").encode())

    _observe(tell)
    sys.argv = ["aftertune", *words]
    faults = _faults()
    if faults is not None:
        faults.soak_arm(os.fsencode(f"{place}/"), fault.how, fault.at)
    try:
        cli.main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    if faults is not None:
        tell(calls=faults.soak_count())
    return code


def _faults() -> Any:
    """The preloaded faults, or None."""
    process = ctypes.CDLL(None)
    if not hasattr(process, "soak_arm"):
        return None
    process.soak_arm.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_long]
    process.soak_count.restype = ctypes.c_long
    return process


def _observe(tell: Callable[..., None]) -> None:
    """Tell what is stored, each time that a method that stores something has returned; save a checkpoint each step."""
    from aftertune.ledger import Ledger
    from aftertune.tuning.callbacks import RunControl
    from aftertune.tuning.checkpoints import Checkpoints

    begin = RunControl.__init__

    def at_each_step(self: Any, plan: Any, *words: Any, **settings: Any) -> None:
        begin(self, replace(plan, save_seconds=0.0), *words, **settings)

    RunControl.__init__ = at_each_step  # type: ignore[method-assign]

    def after(cls: Any, name: str, told: Callable[..., dict[str, Any]]) -> None:
        real = getattr(cls, name)

        def method(self: Any, *words: Any, **settings: Any) -> Any:
            result = real(self, *words, **settings)
            tell(**told(*words, **settings))
            return result

        setattr(cls, name, method)

    after(Ledger, "save_batch", lambda evaluation, batch, responses: {
        "batch": batch, "evaluation": evaluation,
        "responses": [[p, None if r.logprob is None else r.logprob.hex(), r.text] for p, r in responses.items()]})
    after(Ledger, "finish_evaluation", lambda value, *_: {"evaluation_done": value.id})
    after(Ledger, "save_step", lambda tuning, step, _metrics: {"step": step, "tuning": tuning})
    after(Ledger, "save_tuning", lambda value: {"tuning_done" if value.status == "done" else "tuning_open": value.id})
    after(Ledger, "save_comparison", lambda value: {"comparison": value.id})
    after(Checkpoints, "seal", lambda folder, _device: {"checkpoint": str(folder.absolute())})


def other_host() -> None:
    """Called in a child: give this process another host name, which leases hold."""
    import platform

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(0x04000000) or libc.sethostname(b"elsewhere", 9):
        raise OSError(ctypes.get_errno(), "no host name of its own")
    platform._uname_cache = None  # type: ignore[attr-defined]


def message(child: Child) -> str:
    """The last lines on stderr."""
    return " | ".join(child.errors().splitlines()[-6:])


def one_line(child: Child) -> str:
    """What is wrong with the message of a child that stopped; "" if it is one line."""
    lines = [line for line in child.errors().splitlines() if not line.startswith(PROGRESS)]
    if len(lines) == 1 and lines[0].startswith("aftertune: ") and "fault of aftertune" not in lines[0]:
        return ""
    return f"exit code {child.code}, {len(lines)} lines on stderr: {' | '.join(lines[-8:])[-1200:]}"
