"""Memory: where it runs out the failing batch is halved, finished rows stay, and one row that does not fit is told;
what is not needed is handed back; and how much was in use at most."""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from aftertune.errors import ResourceError


def split_on_oom(parts: list[Any], run: Callable[[list[Any]], dict[int, Any]],
                 halved: Callable[[int], None]) -> dict[int, Any]:
    """``run(parts)``; where memory runs out, its halves, one after the other, down to single parts."""
    if not parts:
        return {}
    try:
        return run(parts)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        if len(parts) == 1:
            raise _told() from error
    halved(len(parts))
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    middle = (len(parts) + 1) // 2
    first = split_on_oom(parts[:middle], run, halved)
    return first | split_on_oom(parts[middle:], run, halved)


@contextlib.contextmanager
def one_row() -> Iterator[None]:
    """What runs out of memory in here cannot be halved."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise _told() from error


def out_of_memory(error: BaseException) -> bool:
    """True for the ways in which torch says that memory ran out, on any device."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "out of memory" in text \
        or "not enough memory" in text


def _told() -> ResourceError:
    return ResourceError("out of memory with one row in the batch: use a smaller dtype, another --device, or a shorter "
                         "context (--num-fewshot); finished rows are kept")


def forget_peak(device: str) -> None:
    """Let `peak` count from here on, where the system can (CUDA, Linux)."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    elif sys.platform == "linux":
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # proc(5): resets VmHWM


def peak(device: str) -> int:
    """The most bytes in use since then: of torch on CUDA, else of this process (its largest resident set)."""
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated())
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
            for line in status.splitlines():
                if line.startswith("VmHWM"):  # some sandboxes leave it out
                    return int(line.split()[1]) * 1024
    import resource

    scale = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * scale


def unneeded(tensor: Any) -> None:
    """Tell the system that a tensor on a CPU will not be read for a while: pages that a file backs leave memory, and
    come back when they are read (madvise(2), MADV_PAGEOUT). Does nothing where the system has no such advice."""
    _advise(tensor, 21)


def dropped(tensor: Any) -> bool:
    """Let the memory of a tensor on a CPU go, and its numbers with it, but not its place: it may be written again
    (madvise(2), MADV_DONTNEED). False where the system has no such advice."""
    return _advise(tensor, 4)


def zeros(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Zeros on a CPU whose pages take memory from when they are first written to, and give it back with the tensor."""
    private = getattr(mmap, "MAP_PRIVATE", 0) | getattr(mmap, "MAP_ANONYMOUS", 0)
    size = max(math.prod(shape), 1) * dtype.itemsize
    try:
        pages = mmap.mmap(-1, size, **({"flags": private} if private else {}))
    except OSError as error:
        raise MemoryError(f"not enough memory for {size:,} bytes") from error
    return torch.frombuffer(pages, dtype=dtype)[: math.prod(shape)].view(*shape)


def trim() -> None:
    """Hand freed memory back to the system (malloc_trim(3)), which devices.py tells the C library to keep."""
    with contextlib.suppress(AttributeError, OSError):
        _system().malloc_trim(ctypes.c_size_t(0))


@cache
def _system() -> Any:
    """The C library; ctypes makes a class for each time that it is opened, and a layer's weights are many."""
    return ctypes.CDLL(None)


def _advise(tensor: Any, advice: int) -> bool:
    """Advice of Linux about the whole pages of a tensor; False where there is none, or it is not taken."""
    if sys.platform != "linux":
        return False
    first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (tensor.data_ptr() + tensor.numel() * tensor.itemsize - first) // mmap.PAGESIZE * mmap.PAGESIZE
    if length <= 0:
        return False
    with contextlib.suppress(AttributeError, OSError):
        return not _system().madvise(ctypes.c_void_p(first), ctypes.c_size_t(length), advice)
    return False
