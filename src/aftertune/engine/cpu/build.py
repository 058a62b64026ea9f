"""Compiles the kernels (kernels.c) once per machine, loads them, and calls them.

    call("rms_norm", 0, x, None, weight, None, out, rows, size, 1e-6)     # tensors are passed by pointer

The compiled library is cached. Its name is a hash of the source, the flags, the compiler and the processor, so a change
of any of them compiles a new one. availability.py says whether the kernels may be used; ops.py has a Python function
for each kernel.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import torch

from aftertune.sources.cache import cache_root, temporary_path

SOURCE = Path(__file__).with_name("kernels.c")
FLAGS = ("-O3", "-march=native", "-fopenmp", "-fPIC", "-shared")
#: Seconds that a call of the compiler may take.
TIMEOUT = 120
#: The types of each kernel's arguments, in order: p, a pointer; n, int64; f, float.
SIGNATURES = {
    "attend_rows": "nppppppp" "nnnnnn" "ppnnfn", "attend_step": "nppppp" "nnnnnn" "ppn" "ppnnfn",
    "store_kv": "nppnnnn" "ppnn", "rms_norm": "npppppnnf", "gate": "npnpnpnn", "rotate": "npppnnnnn",
    "summarize": "npnnppp", "add_lora": "npnpnfppnnn", "attend_back": "npppppppp" "p" "nnnn" "fn",
    "rms_norm_back": "nppppnnf", "gate_back": "npppppn", "linear": "npnnpnpp",
    "layer_step": "npppppn" "pnppn" "ppnn", "amx_available": ""}
_TYPES: dict[str, Any] = {"p": ctypes.c_void_p, "n": ctypes.c_int64, "f": ctypes.c_float}


def call(name: str, *arguments: Any) -> None:
    """Call a kernel; tensors are passed by pointer. Raises MemoryError where the kernel got no memory."""
    if kernel(name)(*[a.data_ptr() if isinstance(a, torch.Tensor) else a for a in arguments]):
        raise MemoryError(f"no memory for {name}")


@cache
def kernel(name: str) -> Any:
    """A kernel as a function of ctypes, with the types of its arguments."""
    function = getattr(library(), name)
    function.argtypes = [_TYPES[letter] for letter in SIGNATURES[name]]
    return function


@cache
def library() -> Any:
    """The compiled kernels. Compiles them if the cache has no library for this source, compiler and machine.

    Raises RuntimeError without a compiler or where it fails, OSError where the library does not load.
    """
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC", ""), "cc", "gcc", "clang"))), None)
    if compiler is None:
        raise RuntimeError("there is no C compiler (cc, gcc or clang)")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=TIMEOUT, check=True)
    key = hashlib.sha256("\0".join((SOURCE.read_text(), *FLAGS, version.stdout, _processor())).encode()).hexdigest()
    path = cache_root() / "kernels" / f"{key[:32]}.so"
    if not path.exists():
        _compile(compiler, path)
    return ctypes.CDLL(str(path))


def _compile(compiler: str, path: Path) -> None:
    """Compile the kernels to ``path``, which appears only when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = temporary_path(path)
    try:
        run = subprocess.run([compiler, *FLAGS, "-o", str(new), str(SOURCE), "-lm"], capture_output=True,
                             text=True, timeout=TIMEOUT, check=False)
        if run.returncode:
            raise RuntimeError(f"{Path(compiler).name} could not compile the kernels: {run.stderr[-150:]}")
        with new.open("rb") as file:
            os.fsync(file.fileno())  # a truncated library would crash the process that loads it
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def _processor() -> str:
    """The processor's instruction sets: machines that share a cache must not load each other's kernels."""
    with contextlib.suppress(OSError):
        return next((line for line in Path("/proc/cpuinfo").read_text().splitlines()
                     if line.lower().startswith(("flags", "features"))), "") + platform.machine()
    return platform.machine() + platform.node()
