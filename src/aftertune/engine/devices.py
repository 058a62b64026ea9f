"""Chooses device, dtype and number of threads, and measures free memory and speed.

    device = choose_device("auto")                  # "cuda", "mps" or "cpu"
    dtype = choose_dtype("auto", device)            # "bfloat16" where native, else "float16" or "float32"

``auto`` chooses bfloat16 only if the hardware supports it. On CUDA that is ``is_bf16_supported(
including_emulation=False)``, which is False on a T4, so it gets float16. On a CPU it is AVX512-BF16, AMX-BF16, AVX10.2
or Arm's BF16, as torch's cpuinfo reports them. MPS gets float16. The choice is a function of a ``Capabilities`` value,
so tests can make it for other machines.
"""

from __future__ import annotations

import contextlib
import functools
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aftertune.errors import ResourceError, nearest

#: CPU flags of native bfloat16, by the names of torch and of Linux.
BF16_FLAGS = ("amx_bf16", "avx512_bf16", "avx10_2", "bf16", "sve_bf16", "svebf16")
#: The same for float16.
FP16_FLAGS = ("avx512_fp16", "amx_fp16", "avx10_2", "fp16_arith", "asimdhp")
DTYPES = ("float32", "bfloat16", "float16")
#: Compiled kernels that oneDNN keeps: those of several batches, or of 40 widths of a step of generation.
KERNELS = 256
#: The variables that set this number, of oneDNN and of torch.
KERNEL_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """The devices of a machine and the dtypes that they support natively.

    cuda: names of the CUDA devices, in order; cuda_bf16: whether each has native bfloat16; cpu: name of the processor;
    cpu_bf16 and cpu_fp16: the CPU flag of that dtype, "" if it has none.
    """

    cuda: tuple[str, ...] = ()
    cuda_bf16: tuple[bool, ...] = ()
    mps: bool = False
    mps_bf16: bool = False
    cpu: str = "cpu"
    cpu_bf16: str = ""
    cpu_fp16: str = ""

    @property
    def devices(self) -> tuple[str, ...]:
        """The names that `choose_device` accepts besides "auto"."""
        return (*(["cuda"] if self.cuda else []), *(f"cuda:{i}" for i in range(len(self.cuda))),
                *(["mps"] if self.mps else []), "cpu")


@functools.lru_cache(maxsize=1)
def probe() -> Capabilities:
    """The capabilities of this machine."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    native = []
    for index in range(count):
        with torch.cuda.device(index):
            native.append(bool(torch.cuda.is_bf16_supported(including_emulation=False)))
    mps = bool(torch.backends.mps.is_available())
    flags = cpu_flags()
    return Capabilities(
        cuda=tuple(torch.cuda.get_device_name(i) for i in range(count)), cuda_bf16=tuple(native), mps=mps,
        mps_bf16=mps and _mps_takes_bf16(), cpu=str(flags.get("cpu_name") or platform.machine()),
        cpu_bf16=next((f for f in BF16_FLAGS if flags.get(f)), ""),
        cpu_fp16=next((f for f in FP16_FLAGS if flags.get(f)), ""))


def cpu_flags() -> Mapping[str, Any]:
    """CPU features by name, from torch's cpuinfo or, in an older torch, from /proc/cpuinfo."""
    import torch

    get_capabilities = getattr(torch.cpu, "get_capabilities", None)
    if get_capabilities is not None:
        flags: Mapping[str, Any] = get_capabilities()
        return flags
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    return proc_flags(text)


def proc_flags(text: str) -> dict[str, bool]:
    """Features that /proc/cpuinfo lists ("flags" on x86, "Features" on Arm)."""
    lines = [line for line in text.splitlines() if line.split(":")[0].strip() in {"flags", "Features"}]
    return dict.fromkeys(lines[0].partition(":")[2].split(), True) if lines else {}


def _mps_takes_bf16() -> bool:
    """True if MPS supports bfloat16, which needs macOS 14. Before that torch raises TypeError or RuntimeError."""
    import torch

    try:
        torch.ones(1, dtype=torch.bfloat16, device="mps")
    except (RuntimeError, TypeError):
        return False
    return True


def choose_device(name: str = "auto", capabilities: Capabilities | None = None) -> str:
    """The device to run on. Raises ResourceError, with the available devices, if this machine does not have it."""
    machine = capabilities or probe()
    if name == "auto":
        return "cuda" if machine.cuda else "mps" if machine.mps else "cpu"
    if name in machine.devices:
        return name
    raise ResourceError(f"device {name!r} is not available{nearest(name, ['auto', *machine.devices])}; available: "
                        f"{', '.join(machine.devices)} ({', '.join(machine.cuda) or machine.cpu})")


def supported_dtypes(device: str, capabilities: Capabilities | None = None) -> tuple[str, ...]:
    """The dtypes that ``device`` supports. The first one is the choice of ``auto``.

    A CPU without native bfloat16 also computes it correctly, only slowly, so it is always in the list there.
    """
    machine = capabilities or probe()
    kind, _, index = device.partition(":")
    if kind == "cuda":
        native = bool(machine.cuda_bf16[int(index or 0)])
        return ("bfloat16", "float16", "float32") if native else ("float16", "float32")
    if kind == "mps":
        return ("float16", "float32", "bfloat16") if machine.mps_bf16 else ("float16", "float32")
    float16 = ("float16",) if machine.cpu_fp16 else ()
    return ("bfloat16", "float32", *float16) if machine.cpu_bf16 else ("float32", "bfloat16", *float16)


def choose_dtype(name: str, device: str, capabilities: Capabilities | None = None) -> str:
    """The dtype to compute in. Raises ResourceError, with the dtypes of the device, if it does not support ``name``."""
    allowed = supported_dtypes(device, capabilities)
    if name == "auto":
        return allowed[0]
    if name in allowed:
        return name
    reason = f"device {device} has no native {name}" if name in DTYPES else \
        f"there is no such dtype{nearest(name, list(allowed))}"
    raise ResourceError(f"dtype {name!r}: {reason}; device {device} supports auto, {', '.join(allowed)}")


def free_memory(device: str) -> int:
    """Free bytes on ``device``. On a CPU this is limited by the container's memory limit."""
    import torch

    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    if device.startswith("mps"):
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    import psutil

    return min(int(psutil.virtual_memory().available), cgroup_memory(Path("/sys/fs/cgroup")))


def cgroup_memory(root: Path) -> int:
    """Bytes left below the memory limit of a cgroup (v2 or v1); 2**63 - 1 if there is no limit."""
    for limit, used, cached in (("memory.max", "memory.current", "inactive_file"),
                                ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes",
                                 "total_inactive_file")):
        try:
            text = (root / limit).read_text().strip()
            if text == "max":
                return 2**63 - 1
            usage = int((root / used).read_text())
            lines = ((root / used).parent / "memory.stat").read_text().splitlines()
            stat = dict(line.split() for line in lines)
            return max(0, int(text) - usage + int(stat.get(cached, 0)))
        except (OSError, ValueError):
            continue
    return 2**63 - 1


def matmul_rate(device: str, dtype: str) -> float:
    """Floating-point operations per second of a large matrix product in this dtype, with the current threads.

    Measured with [1024, 1024] times [1024, 4096], the best of four runs; once in a process for each device, dtype and
    number of threads.
    """
    import torch

    _limit_kernels()
    return _measured_rate(device, dtype, torch.get_num_threads())


@functools.cache
def _measured_rate(device: str, dtype: str, _threads: int) -> float:
    import time

    import torch

    rows, weight = (torch.ones(n, 1024, dtype=getattr(torch, dtype), device=device) for n in (1024, 4096))
    best = float("inf")
    for _ in range(4):
        started = time.perf_counter()
        float(torch.nn.functional.linear(rows, weight)[0, 0])  # waits until the device is done
        best = min(best, time.perf_counter() - started)
    return 2 * 1024 * 1024 * 4096 / best


def set_threads(count: int | None = None) -> int:
    """Set the number of torch's CPU threads and return it. Also makes the C library keep freed memory, and oneDNN few
    compiled kernels.

    count: None for torch's default, limited to the cores that this process may use. Raises ResourceError if it is < 1.
    """
    import torch

    if count is not None and count < 1:
        raise ResourceError(f"threads must be at least 1, found {count}")
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(count if count is not None else min(torch.get_num_threads(), allowed))
    _keep_freed_memory()
    _limit_kernels()
    return int(torch.get_num_threads())


def _limit_kernels() -> None:
    """Let oneDNN, and torch's layer above it, keep at most `KERNELS` compiled kernels each, unless the user set another
    number. They read the variables at the first product in the process.

    One is compiled for each shape, about half a megabyte, and by default 1,024 are kept. Batches have ever other
    lengths, so almost none is used again after its batch; in its batch each layer uses the same ones.
    """
    for variable in KERNEL_CACHES:
        os.environ.setdefault(variable, str(KERNELS))


def _keep_freed_memory() -> None:
    """Let glibc keep large freed blocks instead of returning them to the system (mallopt(3)).

    torch allocates the same large temporaries in every batch, and new pages for them take a tenth of the time. Does
    nothing if the C library has no mallopt.
    """
    import ctypes

    trim_threshold, mmap_threshold = -1, -3
    with contextlib.suppress(AttributeError, OSError, TypeError):
        library = ctypes.CDLL(None)
        library.mallopt(mmap_threshold, 2**30)
        library.mallopt(trim_threshold, 2**31 - 1)


@contextlib.contextmanager
def caller_state() -> Iterator[None]:
    """Put back what belongs to the caller's process: the number of threads and the random numbers of Python, NumPy and
    torch. Those of a GPU are put back if it was in use before."""
    import random

    import numpy as np
    import torch

    threads, python, numbers, cpu = (torch.get_num_threads(), random.getstate(), np.random.get_state(),
                                     torch.get_rng_state())
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        random.setstate(python)
        np.random.set_state(numbers)
        torch.set_rng_state(cpu)
        if gpus is not None:
            torch.cuda.set_rng_state_all(gpus)
