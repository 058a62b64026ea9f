"""Runs a module on a file in a child process with limits on memory and processor time.

    code, output = run_child("aftertune.sources.gguf_child", Path("model.gguf"), ChildLimits.of(size))
    ending(code)                              "the reading process was ended by SIGSEGV"

A reader of a library that crashes on a damaged file, or that takes all memory, then ends the child alone. The child
calls `set_limits` once its libraries are imported.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from aftertune import bounds

#: Bytes of memory besides twice those of the file, and seconds of processor time besides those for its bytes.
MEMORY, SECONDS = bounds.GGUF_MEMORY, bounds.GGUF_SECONDS
#: Bytes that are read and hashed in a second even on a slow machine.
BYTES_PER_SECOND = bounds.GGUF_BYTES_PER_SECOND


@dataclass(frozen=True, slots=True)
class ChildLimits:
    """memory: bytes of address space; seconds: of processor time."""

    memory: int
    seconds: int

    @classmethod
    def of(cls, size: int) -> ChildLimits:
        """The limits for a file of ``size`` bytes."""
        return cls(MEMORY + 2 * size, SECONDS + size // BYTES_PER_SECOND)


def run_child(module: str, path: Path, limits: ChildLimits) -> tuple[int, bytes]:
    """Run a module with a file and the limits as arguments; its exit code (negative for a signal) and its output."""
    search = os.pathsep.join(entry for entry in sys.path if entry)  # without the working folder: its files are foreign
    environment = {**os.environ, "PYTHONPATH": search, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    child = subprocess.run([sys.executable, "-P", "-m", module, str(path.absolute()), str(limits.memory),
                            str(limits.seconds)],
                           env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    return child.returncode, child.stdout


def arguments() -> tuple[Path, ChildLimits]:
    """The file and the limits that `run_child` gave to this process."""
    return Path(sys.argv[1]), ChildLimits(int(sys.argv[2]), int(sys.argv[3]))


def ending(code: int) -> str:
    """How the child ended, in words."""
    if code == -getattr(signal, "SIGXCPU", 0):
        return "the time limit was reached"
    return f"the reading process was ended by {signal.Signals(-code).name}" if code < 0 else \
        f"the reading process ended with exit code {code}"


def set_limits(limits: ChildLimits) -> None:
    """Limit the memory and processor time of this process."""
    try:
        import resource
    except ImportError:  # Windows
        return
    for kind, limit in ((resource.RLIMIT_AS, limits.memory), (resource.RLIMIT_CORE, 0),
                        (resource.RLIMIT_CPU, limits.seconds)):
        _, hard = resource.getrlimit(kind)
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (limit, hard))
