"""Owns the choice of device, dtype and threads, from what the machine can do.

    device = choose_device("auto")                  # "cuda", "mps" or "cpu"
    dtype = choose_dtype("auto", device)            # "bfloat16" where native, else "float16" or "float32"

``auto`` takes bfloat16 only where the hardware computes it: on CUDA ``is_bf16_supported(
including_emulation=False)`` (a T4 says no and takes float16), on a CPU AVX512-BF16, AMX-BF16, AVX10.2 or
Arm's BF16, as torch's cpuinfo tells them. MPS takes float16. The facts come in as a ``Capabilities`` value,
so the choice can be tested for machines that are not here.
"""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from aftertune.errors import ResourceError, nearest

#: CPU flags, by torch's and by Linux's names, of matrix units that take bfloat16.
BF16_FLAGS = ("amx_bf16", "avx512_bf16", "avx10_2", "bf16", "sve_bf16", "svebf16")
#: The same for float16.
FP16_FLAGS = ("avx512_fp16", "amx_fp16", "avx10_2", "fp16_arith", "asimdhp")
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What this machine computes natively.

    cuda: names of the CUDA devices, in order; cuda_bf16: whether each has native bfloat16; cpu_bf16 and
    cpu_fp16: the CPU flag that brings that dtype, empty where there is none.
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
        """The devices that can be asked for."""
        return (*(["cuda"] if self.cuda else []), *(f"cuda:{i}" for i in range(len(self.cuda))),
                *(["mps"] if self.mps else []), "cpu")


@lru_cache(maxsize=1)
def probe() -> Capabilities:
    """The capabilities of the machine that this runs on."""
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
    """CPU features by name: torch's cpuinfo, or /proc/cpuinfo for a torch that does not tell."""
    import torch

    tell = getattr(torch.cpu, "get_capabilities", None)
    if tell is not None:
        flags: Mapping[str, Any] = tell()
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
    """bfloat16 on MPS needs macOS 14; torch raises TypeError or RuntimeError before that."""
    import torch

    try:
        torch.ones(1, dtype=torch.bfloat16, device="mps")
    except (RuntimeError, TypeError):
        return False
    return True


def choose_device(name: str = "auto", capabilities: Capabilities | None = None) -> str:
    """The device to run on. Raises ResourceError for one that is not there, naming those that are."""
    facts = capabilities or probe()
    if name == "auto":
        return "cuda" if facts.cuda else "mps" if facts.mps else "cpu"
    if name in facts.devices:
        return name
    raise ResourceError(f"device {name!r} is not here{nearest(name, ['auto', *facts.devices])}; available: "
                        f"{', '.join(facts.devices)} ({', '.join(facts.cuda) or facts.cpu})")


def dtypes_of(device: str, capabilities: Capabilities | None = None) -> tuple[str, ...]:
    """The dtypes that can be asked for on ``device``, the one that ``auto`` takes first.

    A CPU computes bfloat16 rightly without native units too, only slowly, so it may be asked for there.
    """
    facts = capabilities or probe()
    kind, _, index = device.partition(":")
    if kind == "cuda":
        native = bool(facts.cuda_bf16[int(index or 0)])
        return ("bfloat16", "float16", "float32") if native else ("float16", "float32")
    if kind == "mps":
        return ("float16", "float32", "bfloat16") if facts.mps_bf16 else ("float16", "float32")
    half = ("float16",) if facts.cpu_fp16 else ()
    return ("bfloat16", "float32", *half) if facts.cpu_bf16 else ("float32", "bfloat16", *half)


def choose_dtype(name: str, device: str, capabilities: Capabilities | None = None) -> str:
    """The dtype to compute in. Raises ResourceError for one that the device lacks, naming those it has."""
    allowed = dtypes_of(device, capabilities)
    if name == "auto":
        return allowed[0]
    if name in allowed:
        return name
    known = name in DTYPES
    found = f"has no native {name}" if known else f"knows no such dtype{nearest(name, list(allowed))}"
    raise ResourceError(f"dtype {name!r}: device {device} {found}; it takes auto, {', '.join(allowed)}")


def free_memory(device: str) -> int:
    """Bytes that can still be allocated on ``device``; on a CPU the container's limit counts too."""
    import torch

    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    if device.startswith("mps"):
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    import psutil

    return min(int(psutil.virtual_memory().available), cgroup_memory(Path("/sys/fs/cgroup")))


def cgroup_memory(root: Path) -> int:
    """Bytes left below the memory limit of a cgroup (v2 or v1); a very large number where there is none."""
    for limit, used, cached in (("memory.max", "memory.current", "inactive_file"),
                                ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes",
                                 "total_inactive_file")):
        try:
            text = (root / limit).read_text().strip()
            if text == "max":
                return 2**63 - 1
            taken = int((root / used).read_text())
            lines = ((root / used).parent / "memory.stat").read_text().splitlines()
            stat = dict(line.split() for line in lines)
            return max(0, int(text) - taken + int(stat.get(cached, 0)))
        except (OSError, ValueError):
            continue
    return 2**63 - 1


def product_rate(device: str, dtype: str) -> float:
    """Operations a second of large products in this dtype: 1,024 rows through 1,024 x 4,096 weights, best of four."""
    import time

    import torch

    rows, weight = (torch.ones(n, 1024, dtype=getattr(torch, dtype), device=device) for n in (1024, 4096))
    best = float("inf")
    for _ in range(4):
        started = time.perf_counter()
        float(torch.nn.functional.linear(rows, weight)[0, 0])  # waits for a device's end
        best = min(best, time.perf_counter() - started)
    return 2 * 1024 * 1024 * 4096 / best


def set_threads(count: int | None = None) -> int:
    """Set torch's CPU threads, and how its memory is freed, and return the number of threads in force.

    None: torch's own choice, but no more than the cores that this process may use.
    """
    import torch

    if count is not None and count < 1:
        raise ResourceError(f"threads must be at least 1, found {count}")
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(count if count is not None else min(torch.get_num_threads(), allowed))
    _keep_freed_memory()
    return int(torch.get_num_threads())


def _keep_freed_memory() -> None:
    """Let glibc keep large freed blocks instead of handing them back to the system (mallopt(3)).

    torch asks for the same large temporaries in every batch; fresh pages for each of them cost a tenth of the time.
    Does nothing where the C library has no mallopt.
    """
    import ctypes

    trim_threshold, mmap_threshold = -1, -3
    with contextlib.suppress(AttributeError, OSError, TypeError):
        library = ctypes.CDLL(None)
        library.mallopt(mmap_threshold, 2**30)
        library.mallopt(trim_threshold, 2**31 - 1)
