"""Reads a GGUF file in a child process with limits on memory and processor time, and returns what it found.

    facts_from_child(Path("model.gguf"))      {"weights": sha256, "config": sha256, "tokenizer": sha256, …}

The reader of GGUF files goes through every value of a header. The limits stop it where a file makes it take more than
any model needs, and a crash ends the child alone. What transformers reads of the file afterwards, in this process, is
what the child has read before. The child starts in less than half a second of processor time.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

from aftertune import bounds
from aftertune.errors import AftertuneError, SourceError
from aftertune.sources.child_process import ChildLimits, arguments, ending, run_child, set_limits

#: Bytes of memory beyond the limit before the system refuses more.
_SPARE = 64 * bounds.MIB
_ADVICE = "it is damaged or made to do harm: download it again from a source that you trust"


def facts_from_child(path: Path, limits: ChildLimits | None = None) -> dict[str, Any]:
    """What `aftertune.sources.tensors.read_gguf_facts` finds in the file. limits: by default those for its size.

    Raises SourceError for a damaged file, and for one that takes more memory or time than the limits allow;
    ResourceError where the child process ends for another reason.
    """
    size = path.stat().st_size
    limits = limits or ChildLimits(bounds.GGUF_MEMORY + 2 * size,
                                   bounds.GGUF_SECONDS + size // bounds.GGUF_BYTES_PER_SECOND)
    code, output = run_child("aftertune.sources.gguf_child", path, limits)
    try:
        answer = json.loads(output)
        return dict(answer["facts"]) if "facts" in answer else _refuse(str(answer["error"]).replace(
            str(path.absolute()), str(path)))
    except (ValueError, TypeError, KeyError):
        return _refuse(f"{path}: {ending(code)} while this GGUF file of {size:,} bytes was read; {_ADVICE}")


def _refuse(message: str) -> dict[str, Any]:
    raise SourceError(message)


def main(path: Path, limits: ChildLimits) -> None:
    """Print the facts of a GGUF file, or the error, as JSON."""
    import gguf  # noqa: F401  # before there are limits: a library that cannot be imported is no fault of the file

    from aftertune.sources.tensors import read_gguf_facts

    memory = set_limits(replace(limits, memory=limits.memory + _SPARE)) - _SPARE
    read = threading.Event()
    threading.Thread(target=_end_at, args=(path, memory, read), daemon=True).start()
    answer: dict[str, Any] | None = None
    with contextlib.suppress(MemoryError):
        try:
            answer = {"facts": read_gguf_facts(path)}
        except AftertuneError as error:
            answer = {"error": str(error)}
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
            detail = " ".join(str(error).split())[:100]  # what the reader raises for values that it does not expect
            answer = {"error": f"{path}: cannot be read ({type(error).__name__}: {detail}); {_ADVICE}"}
        except OSError as error:  # which says nothing about the content
            if error.errno == errno.ENOMEM:
                raise MemoryError from None
            answer = {"error": f"{path}: cannot be read ({error.strerror or type(error).__name__}); check the file and "
                               "its permissions"}
    read.set()
    # here what was read is gone, so there is memory for the message
    print(json.dumps(answer or _too_much(path, memory)))


def _too_much(path: Path, memory: int) -> dict[str, str]:
    """The answer where reading takes more than ``memory`` bytes."""
    return {"error": f"{path}: reading it needs more than {memory // 2**20:,} MiB of memory, and the file has "
                     f"{path.stat().st_size:,} bytes; {_ADVICE}"}


def _end_at(path: Path, memory: int, read: threading.Event) -> None:
    """End this process with its answer once it has more than ``memory`` bytes, where the system says how many it has;
    return once the file is ``read``, when the process has an answer of its own.

    Python can loop for ever in a handler for which there is no memory, so memory must not run out here.
    """
    with contextlib.suppress(OSError), Path("/proc/self/statm").open("rb", buffering=0) as status:
        while not read.wait(0.02):
            status.seek(0)
            if int(status.read(64).split()[0]) * os.sysconf("SC_PAGE_SIZE") > memory:
                os.write(1, json.dumps(_too_much(path, memory)).encode())
                os._exit(0)


if __name__ == "__main__":
    main(*arguments())
