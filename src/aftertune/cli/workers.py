"""Starts further processes of this command line, which join its evaluation (`aftertune.evaluation.sharing`).

    with Helpers(spec, 4, sys.argv[1:]) as helpers:     three processes with the same words and --join
        evaluate(helpers.spec, ledger=ledger, join=True)

Each process has its share of the cores, of the free memory, and of the GPUs. The processes end with this one, however
that ends. One that fails leaves its batches to the others, and is named on stderr at the end.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import IO, TYPE_CHECKING, Self

from aftertune.api.parameters import comma_separated
from aftertune.errors import InputError, ResourceError

if TYPE_CHECKING:
    from aftertune.study import EvalSpec

#: Where a helper reads which process started it: its pid, when it was started and its words as JSON, between colons.
_PARENT = "AFTERTUNE_HELPER_OF"
#: Seconds that helpers have to end after SIGTERM: a batch is not interrupted in the middle of a kernel.
_PATIENCE = 30.0


def check_shareable(spec: EvalSpec, option: str) -> None:
    """Raise InputError for an evaluation that several processes cannot share. option: that asks for it."""
    if spec.engine not in ("packed", "plain"):
        raise InputError(f"{option}: the engine {spec.engine} runs in one process; leave {option} out, or use --engine "
                         "packed or plain")
    if spec.fork:
        raise InputError(f"{option} and --fork: each process would start an evaluation of its own; leave one of them "
                         "out")


class Helpers:
    """The other processes of an evaluation by ``count`` processes. spec: the evaluation, as each process runs it."""

    def __init__(self, spec: EvalSpec, count: int, words: Sequence[str]) -> None:
        self.count, self.words = count, _untracked(words)
        self.spec = spec
        self.gpus: list[str] = []
        if count > 1:
            check_shareable(spec, "--workers")
            from aftertune.engine import devices

            device = devices.choose_device(spec.device)
            self.gpus = _gpus() if device == "cuda" else []
            threads = spec.threads or max(devices.set_threads() // count, 1)
            together = -(-count // max(len(self.gpus), 1))  # processes on one device
            memory = spec.memory or f"{devices.free_memory(device) // together}"
            self.spec = spec.model_copy(update={"threads": threads, "memory": memory})
        self.processes: list[tuple[subprocess.Popen[bytes], IO[bytes]]] = []

    def __enter__(self) -> Self:
        from aftertune.ledger.lease import process_start

        own = ("--workers", "1", "--join", "--threads", str(self.spec.threads), "--memory", str(self.spec.memory))
        at = self.words.index("--") if "--" in self.words else len(self.words)
        words = [sys.executable, "-P", "-m", "aftertune", *self.words[:at], *own, *self.words[at:]]
        parent = f"{os.getpid()}:{process_start(os.getpid())}:{json.dumps(sys.argv)}"
        search = os.pathsep.join(entry for entry in sys.path if entry)  # not the working folder, unless it is there
        for number in range(1, self.count):
            environment = {**os.environ, _PARENT: parent, "PYTHONPATH": search}
            if self.gpus:
                environment["CUDA_VISIBLE_DEVICES"] = self.gpus[number % len(self.gpus)]
            errors = tempfile.TemporaryFile()  # read when the process has ended
            try:
                process = subprocess.Popen(words, env=environment, stdin=subprocess.DEVNULL,
                                           stdout=subprocess.DEVNULL, stderr=errors)
            except OSError as error:
                self.__exit__(OSError, error, None)
                raise ResourceError(f"--workers {self.count}: process {number + 1} cannot be started "
                                    f"({error.strerror or error}); free some memory, or ask for fewer workers"
                                    ) from None
            self.processes.append((process, errors))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
                 ) -> None:
        failed = [process.poll() not in (None, 0) for process, _ in self.processes]
        for process, _ in self.processes:
            if process.poll() is None:
                process.terminate()
        end = time.monotonic() + _PATIENCE
        for (process, errors), broken in zip(self.processes, failed, strict=True):
            try:
                process.wait(max(end - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if broken and kind is None:
                print(f"note: a worker (process {process.pid}) ended early, and the others took its batches: "
                      f"{_last_line(errors) or _ending(process.returncode)}", file=sys.stderr)
            errors.close()


def end_with_parent() -> bool:
    """In a helper: end as with Ctrl-C once the process that started it has ended, and store evaluations with the
    command that was typed. Whether this is a helper."""
    text = os.environ.pop(_PARENT, "")
    if not text:
        return False
    from aftertune.ledger.lease import process_start

    pid, started, command = text.split(":", 2)
    sys.argv = json.loads(command)

    def watch() -> None:
        while process_start(int(pid)) == started:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="watch the parent", daemon=True).start()
    return True


def _gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES calls each GPU of this process, where there are several."""
    from aftertune.engine import devices

    count, visible = len(devices.probe().cuda), os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = comma_separated(visible) or list(map(str, range(count)))
    return names[:count] if count > 1 else []


def _untracked(words: Sequence[str]) -> list[str]:
    """The words without --track: one process hands the results over."""
    kept: list[str] = []
    rest = iter(words)
    for word in rest:
        if word == "--track":
            next(rest, None)
        elif not word.startswith("--track="):
            kept.append(word)
    return kept


def _last_line(errors: IO[bytes]) -> str:
    errors.seek(0)
    lines = errors.read().decode("utf-8", "replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.startswith("aftertune: ")), "")


def _ending(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
