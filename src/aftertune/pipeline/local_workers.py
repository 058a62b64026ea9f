"""Starts workers as processes of this machine, and carries lines between them and the run.

    workers = LocalWorkers(opening, devices=["0", "1"])
    name = workers.start()                          "worker 1", on the first GPU
    workers.send(name, "tune careful")
    for worker, message in workers.receive(1.0): …   {"event": "done"} …, and {"event": "lost", "reason": …}
    workers.stop()

Each worker is in a session of its own, so that Ctrl-C reaches the run alone, which then closes the stdin of its
workers. That also happens when the run is killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from aftertune.errors import ResourceError
from aftertune.pipeline.worker import Opening
from aftertune.redaction import redact
from aftertune.sources.child_process import ending

#: Seconds that a worker has to end its present step after it was asked to stop; then it is killed.
_PATIENCE = 600.0

Message = Mapping[str, Any]


class Workers(Protocol):
    """Processes that run cells, on this machine or on others."""

    def start(self) -> str:
        """Start another worker and return its name."""

    def send(self, worker: str, cell: str, *, helps: bool = False) -> None:
        """Let a worker run a cell, or help with one that another worker runs."""

    def receive(self, timeout: float) -> Iterator[tuple[str, Message]]:
        """What workers said since the last call, with the worker's name. Waits at most ``timeout`` seconds for it. A
        worker that ended says {"event": "lost", "reason": …}."""

    def stop(self) -> None:
        """Stop all workers as Ctrl-C does, and wait for their end."""


class ChildWorker:
    """One worker process and the threads that read what it says. received: where its messages go, with its name."""

    def __init__(self, name: str, opening: Opening, environment: Mapping[str, str],
                 received: queue.Queue[tuple[str, Message]]) -> None:
        self.name, self.received = name, received
        self.said: deque[str] = deque(maxlen=40)  # the last lines of stderr
        search = os.pathsep.join(entry for entry in sys.path if entry)  # without the working folder
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "aftertune.pipeline.worker"], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8", errors="replace",
                env={**os.environ, "PYTHONPATH": search, **environment}, start_new_session=True)
        except OSError as error:
            raise ResourceError(f"{name} cannot be started ({error.strerror or error}); free some memory, or ask for "
                                "fewer workers") from None
        self.write(opening.line())
        self.errors = threading.Thread(target=self._read_errors, daemon=True)
        self.errors.start()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def write(self, line: str) -> None:
        """Send one line; a worker that is gone is noticed where its lines end."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError, ValueError):
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with contextlib.suppress(ValueError):
                self.received.put((self.name, json.loads(line)))
        code = self.process.wait()
        self.errors.join(5)
        last = next((line for line in reversed(self.said) if line.strip()), "")
        reason = ending(code, "its worker") + (f" ({last.strip()[:300]})" if last else "")
        self.received.put((self.name, {"event": "lost", "reason": reason, "code": code}))

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            line = redact(line)
            self.said.append(line)
            if os.environ.get("AFTERTUNE_DEBUG"):
                print(f"{self.name}: {line}", end="", file=sys.stderr)

    def close(self) -> None:
        """Close stdin: the worker stops after its present step."""
        with contextlib.suppress(OSError, ValueError):
            assert self.process.stdin is not None
            self.process.stdin.close()

    def wait(self) -> None:
        """Wait for the end; a worker that does not stop, or a second Ctrl-C, kills it."""
        try:
            self.process.wait(_PATIENCE)
        except BaseException as error:
            self.process.kill()
            self.process.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
        self.reader.join(5)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


class LocalWorkers:
    """Workers of this machine. devices: numbers of the GPUs, over which they are spread; () for one or none."""

    def __init__(self, opening: Opening, devices: Sequence[str] = ()) -> None:
        self.opening, self.devices = opening, tuple(devices)
        self.children: dict[str, ChildWorker] = {}
        self.received: queue.Queue[tuple[str, Message]] = queue.Queue()

    def start(self) -> str:
        """Start another worker. It gets the name, and the GPU, of the first place that is free."""
        number = next(n for n in range(1, len(self.children) + 2) if f"worker {n}" not in self.children)
        environment: dict[str, str] = {}
        if self.opening.threads:
            environment |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(self.opening.threads))
        if self.devices:
            environment["CUDA_VISIBLE_DEVICES"] = self.devices[(number - 1) % len(self.devices)]
        name = f"worker {number}"
        self.children[name] = ChildWorker(name, self.opening, environment, self.received)
        return name

    def send(self, worker: str, cell: str, *, helps: bool = False) -> None:
        """Let a worker run a cell, or help with one that another worker runs."""
        self.children[worker].write(json.dumps({"cell": cell, "help": helps}))

    def receive(self, timeout: float) -> Iterator[tuple[str, Message]]:
        """What the workers said."""
        with contextlib.suppress(queue.Empty):
            worker, message = self.received.get(timeout=timeout)
            while True:
                if message.get("event") == "lost":
                    child = self.children.pop(worker, None)
                    if child is not None:
                        child.close()
                yield worker, message
                worker, message = self.received.get_nowait()

    def stop(self) -> None:
        """Stop all workers and wait for their end."""
        for child in self.children.values():
            child.close()
        for child in self.children.values():
            child.wait()


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_of_each(workers: int) -> int:
    """Threads of each of some workers, so that all together have one for each core; no more than OMP_NUM_THREADS."""
    share = max(cores() // workers, 1)
    given = os.environ.get("OMP_NUM_THREADS", "")
    return min(share, int(given)) if given.isdigit() and int(given) > 0 else share
