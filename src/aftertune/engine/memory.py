"""Handles out-of-memory errors, frees memory that is not needed, and measures peak memory.

    split_on_oom(rows, score, on_split)     # score(rows); after an out-of-memory error each half separately, and so on
    reset_peak_memory("cpu")
    peak_memory("cpu")                      # bytes in use at most, since the reset
    release_memory()                        # after the last use of a model: all that it had is free again
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import mmap
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from aftertune.errors import ResourceError

# --- Out of memory ---


def split_on_oom(rows: list[Any], run: Callable[[list[Any]], dict[int, Any]],
                 on_split: Callable[[int], None]) -> dict[int, Any]:
    """``run(rows)``. After an out-of-memory error the two halves run one after the other, down to single rows.

    on_split is called with the number of rows before each split. Raises ResourceError if one row does not fit.
    """
    if not rows:
        return {}
    try:
        return run(rows)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        if len(rows) == 1:
            raise _one_row_error() from error
    on_split(len(rows))
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    middle = (len(rows) + 1) // 2
    first = split_on_oom(rows[:middle], run, on_split)
    return first | split_on_oom(rows[middle:], run, on_split)


@contextlib.contextmanager
def oom_as_resource_error() -> Iterator[None]:
    """Raises ResourceError for an out-of-memory error inside, for work on one row, which cannot be split."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise _one_row_error() from error


def is_out_of_memory(error: BaseException) -> bool:
    """True for the errors that torch raises when memory runs out, on any device."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "out of memory" in text \
        or "not enough memory" in text


def _one_row_error() -> ResourceError:
    return ResourceError("out of memory with only one row in the batch: use a smaller dtype, another --device or a "
                         "shorter context (--num-fewshot); finished rows are saved")


# --- Peak memory ---


def reset_peak_memory(device: str) -> None:
    """Restart the measurement of `peak_memory` (CUDA and Linux; does nothing elsewhere)."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    elif sys.platform == "linux":
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # proc(5): resets VmHWM


def peak_memory(device: str) -> int:
    """The most bytes in use since `reset_peak_memory`: torch's memory on CUDA, else this process's resident set."""
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated())
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
            for line in status.splitlines():
                if line.startswith("VmHWM"):  # missing in some sandboxes
                    return int(line.split()[1]) * 1024
    import resource

    scale = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in KiB elsewhere
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * scale


# --- Freeing memory ---

#: The share by which the process may grow before freed memory is returned.
GROWTH = 0.1


def page_out(tensor: Any) -> None:
    """Advise Linux that a CPU tensor will not be read for a while (madvise(2), MADV_PAGEOUT).

    Pages backed by a file leave memory and are read again when needed. Does nothing on other systems.
    """
    _advise(tensor, 21)


def discard_pages(tensor: Any) -> bool:
    """Free the memory of a CPU tensor and lose its numbers (madvise(2), MADV_DONTNEED).

    Its address stays valid, so it can be written again. Returns False where the system cannot do this.
    """
    return _advise(tensor, 4)


def lazy_zeros(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Zeros on a CPU that take memory only once they are written, and free it with the tensor.

    Raises MemoryError if the address range is not available.
    """
    private = getattr(mmap, "MAP_PRIVATE", 0) | getattr(mmap, "MAP_ANONYMOUS", 0)
    size = max(math.prod(shape), 1) * dtype.itemsize
    try:
        pages = mmap.mmap(-1, size, flags=private) if private else mmap.mmap(-1, size)
    except OSError as error:
        raise MemoryError(f"not enough memory for {size:,} bytes") from error
    return torch.frombuffer(pages, dtype=dtype)[: math.prod(shape)].view(*shape)


def release_memory() -> None:
    """Free the memory of models that nothing refers to any more, and return it to the system or the device's driver.

    A trainer, its model and its optimizer refer to each other, so that only the garbage collector frees them. And the C
    library keeps what is freed (`devices.set_threads`), in pieces between which the next model may not fit.
    """
    gc.collect()
    trim_heap()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()


class HeapLimit:
    """Returns freed memory to the system each time the process has grown by `GROWTH` while it did the same work.

    Batches of different lengths leave freed pieces on the heap into which the next ones do not fit, so that it grows
    with each. To return them after every batch would cost a tenth of its time.
    """

    def __init__(self) -> None:
        self._level = 0

    def check(self) -> None:
        """After a batch, when its memory is free again but still the process's."""
        now = resident_memory()
        if not self._level:
            self._level = now
        elif now > self._level * (1 + GROWTH):
            trim_heap()
            self._level = 0


def resident_memory() -> int:
    """Bytes of this process that are in memory now; 0 where the system does not say it."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * mmap.PAGESIZE
    return 0


def trim_heap() -> None:
    """Return freed memory to the system (malloc_trim(3)). devices.set_threads makes the C library keep it."""
    with contextlib.suppress(AttributeError, OSError):
        _c_library().malloc_trim(ctypes.c_size_t(0))


@cache
def _c_library() -> Any:
    """The C library. Cached, because ctypes creates a class each time, and a model has many weights."""
    return ctypes.CDLL(None)


def _advise(tensor: Any, advice: int) -> bool:
    """Call madvise(2) on the whole pages of a tensor. Returns False if there are none or the call fails."""
    if sys.platform != "linux":
        return False
    first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (tensor.data_ptr() + tensor.numel() * tensor.itemsize - first) // mmap.PAGESIZE * mmap.PAGESIZE
    if length <= 0:
        return False
    with contextlib.suppress(AttributeError, OSError):
        return not _c_library().madvise(ctypes.c_void_p(first), ctypes.c_size_t(length), advice)
    return False
