"""Runs a module on a file in a child process with limits on memory and processor time.

    code, output = run_child("aftertune.sources.gguf_child", Path("model.gguf"), ChildLimits(2**32, 120))
    ending(code)                              "the reading process was ended by SIGSEGV"

A reader of a library that crashes on a damaged file, or that takes all memory, then ends the child alone. The child
calls `set_limits` once its libraries are imported, and catches what the reader raises, so that it ends with exit code 0
or with a signal. Only some signals say something about the file: any other ending is a fault of this machine.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from aftertune.errors import ResourceError

#: Signals that what is read can cause: a crash of the reader, or its time limit. Others come from outside.
_OF_FILE = ("SIGSEGV", "SIGBUS", "SIGABRT", "SIGILL", "SIGFPE", "SIGTRAP", "SIGSYS", "SIGXCPU")


@dataclass(frozen=True, slots=True)
class ChildLimits:
    """memory: bytes of address space; seconds: of processor time."""

    memory: int
    seconds: int


def run_child(module: str, path: Path, limits: ChildLimits) -> tuple[int, bytes]:
    """Run a module with a file and the limits as arguments; how it ended (0, or a negative signal) and its output.

    Raises ResourceError where it ended in a way that the file cannot cause.
    """
    search = os.pathsep.join(entry for entry in sys.path if entry)  # without the working folder: its files are foreign
    environment = {**os.environ, "PYTHONPATH": search, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-m", module, str(path.absolute()), str(limits.memory), str(limits.seconds)]
    try:
        child = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except OSError as error:
        raise ResourceError(f"{path}: the process that reads it cannot be started ({error.strerror or error}); this "
                            "says nothing about the file: free some memory, and run the command again") from None
    code = child.returncode
    if code > 0 or (code < 0 and _signal(code) not in _OF_FILE):
        said = child.stderr.decode(errors="replace").strip().rpartition("\n")[2][-200:]
        advice = "free some memory, and run the command again" if code < 0 else \
            "check the installation with `aftertune doctor`, and run the command again"
        raise ResourceError(f"{path}: {ending(code)} before it could say anything about the file"
                            f"{f' ({said})' if said else ''}; {advice}")
    return code, child.stdout


def _signal(code: int) -> str:
    """The name of the signal that ended a process."""
    try:
        return signal.Signals(-code).name
    except ValueError:  # a real-time signal
        return f"signal {-code}"


def arguments() -> tuple[Path, ChildLimits]:
    """The file and the limits that `run_child` gave to this process."""
    return Path(sys.argv[1]), ChildLimits(int(sys.argv[2]), int(sys.argv[3]))


def ending(code: int, child: str = "the reading process") -> str:
    """How a child ended, in words."""
    if code < 0 and _signal(code) == "SIGXCPU":
        return "the time limit was reached"
    return f"{child} was ended by {_signal(code)}" if code < 0 else \
        f"{child} ended with exit code {code}"


def set_limits(limits: ChildLimits) -> int:
    """Limit the memory and processor time of this process. Returns the memory in bytes: less than was asked for where
    the system allows no more."""
    memory = limits.memory
    try:
        import resource
    except ImportError:  # Windows
        return memory
    for kind, limit in ((resource.RLIMIT_AS, limits.memory), (resource.RLIMIT_CORE, 0),
                        (resource.RLIMIT_CPU, limits.seconds)):
        _, hard = resource.getrlimit(kind)
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (limit, hard))
        memory = limit if kind == resource.RLIMIT_AS else memory
    return memory
