"""Reads a GGUF file in a child process with limits on memory and processor time, and returns what it found.

    facts_from_child(Path("model.gguf"))      {"weights": sha256, "config": sha256, "tokenizer": sha256, …}

The reader of GGUF files goes through every value of a header. The limits stop it where a file makes it take more than
any model needs, and a crash ends the child alone. What transformers reads of the file afterwards, in this process, is
what the child has read before. The child starts in less than half a second of processor time.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aftertune import bounds
from aftertune.errors import AftertuneError, SourceError

#: Bytes of memory besides those of the file, and seconds of processor time besides those for each byte of it.
MEMORY, SECONDS = bounds.GGUF_MEMORY, bounds.GGUF_SECONDS
#: Bytes that are read and hashed in a second even on a slow machine.
BYTES_PER_SECOND = bounds.GGUF_BYTES_PER_SECOND
_ADVICE = "it is damaged or made to do harm: download it again from a source that you trust"


@dataclass(frozen=True, slots=True)
class ChildLimits:
    """memory: bytes of address space; seconds: of processor time."""

    memory: int
    seconds: int

    @classmethod
    def of(cls, size: int) -> ChildLimits:
        """The limits for a file of ``size`` bytes."""
        return cls(MEMORY + 2 * size, SECONDS + size // BYTES_PER_SECOND)


def facts_from_child(path: Path, limits: ChildLimits | None = None) -> dict[str, Any]:
    """What `aftertune.sources.tensors.read_gguf_facts` finds in the file. limits: by default those for its size.

    Raises SourceError for a damaged file, and for one that takes more memory or time than the limits allow.
    """
    limits = limits or ChildLimits.of(path.stat().st_size)
    search = os.pathsep.join(entry for entry in sys.path if entry)  # without the working folder: its files are foreign
    environment = {**os.environ, "PYTHONPATH": search, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-m", "aftertune.sources.gguf_child", str(path.absolute()), str(limits.memory),
               str(limits.seconds)]
    child = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    try:
        answer = json.loads(child.stdout)
        return dict(answer["facts"]) if "facts" in answer else _refuse(str(answer["error"]).replace(
            str(path.absolute()), str(path)))
    except (ValueError, TypeError, KeyError):
        return _refuse(f"{path}: {_end(child.returncode)} while this GGUF file of {path.stat().st_size:,} bytes was "
                       f"read; {_ADVICE}")


def _refuse(message: str) -> dict[str, Any]:
    raise SourceError(message)


def _end(code: int) -> str:
    """How the child ended, in words."""
    if code == -getattr(signal, "SIGXCPU", 0):
        return "the time limit was reached"
    return f"the reading process was ended by {signal.Signals(-code).name}" if code < 0 else \
        f"the reading process ended with exit code {code}"


def _set_limits(limits: ChildLimits) -> None:
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


def main(path: Path, limits: ChildLimits) -> None:
    """Print the facts of a GGUF file, or the error, as JSON."""
    import gguf  # noqa: F401  # before there are limits: a library that cannot be imported is no fault of the file

    from aftertune.sources.tensors import read_gguf_facts

    _set_limits(limits)
    answer: dict[str, Any] | None = None
    with contextlib.suppress(MemoryError):
        try:
            answer = {"facts": read_gguf_facts(path)}
        except AftertuneError as error:
            answer = {"error": str(error)}
    # here what was read is gone, so there is memory for the message
    size, most = path.stat().st_size, limits.memory // 2**20
    print(json.dumps(answer or {"error": f"{path}: reading it needs more than {most:,} MiB of memory, and the file has "
                                         f"{size:,} bytes; {_ADVICE}"}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), ChildLimits(int(sys.argv[2]), int(sys.argv[3])))
