"""Says whether the compiled kernels may be used in this process, and why not.

    why_unavailable()      # "" where they can be used, else one line: "there is no C compiler (cc, gcc or clang)"
    amx_available()        # True where they can also use AMX, the matrix unit of some Intel processors

The kernels are used on Linux, if they compile, share torch's OpenMP threads and agree with torch on a few random
numbers. AFTERTUNE_KERNELS=0 switches them off.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import torch

from aftertune.engine.cpu import build, ops
from aftertune.errors import InputError

#: The environment variable that switches the kernels off (0) or on (1, or not set).
SWITCH = "AFTERTUNE_KERNELS"


def why_unavailable() -> str:
    """Why the kernels cannot be used here; "" where they can. Raises InputError for another value of the switch."""
    switch = os.environ.get(SWITCH, "")
    if switch not in ("", "0", "1"):
        raise InputError(f"{SWITCH}={switch!r} in the environment: use 0 (no compiled CPU kernels) or 1 (the default: "
                         "use them where they work)")
    return f"switched off by {SWITCH}=0" if switch == "0" else _why_not()


def amx_available() -> bool:
    """True where the kernels can use AMX on bfloat16 numbers."""
    return not why_unavailable() and bool(build.kernel("amx_available")())


@cache
def _why_not() -> str:
    """The same without the switch; found once per process."""
    if sys.platform != "linux":
        return f"the kernels are not built on {sys.platform}"
    try:
        build.library()
        _check_threads()
        _self_test()
    except (OSError, RuntimeError, AttributeError, subprocess.SubprocessError) as error:
        return " ".join(str(error).split())[:200]
    return ""


def _check_threads() -> None:
    """Raises RuntimeError if torch has other OpenMP threads: two pools on the same cores block each other."""
    loaded = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()
              if "libgomp" in line or "libomp" in line or "libiomp" in line}
    if len({Path(p).resolve() for p in loaded}) > 1:
        raise RuntimeError("torch uses another OpenMP library than the kernels")


@torch.autocast("cpu", enabled=False)  # the caller may be training under autocast
def _self_test() -> None:
    """Compare attention and linear layers with torch on a few random numbers; raises RuntimeError where they differ."""
    random = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(21, n, 32, generator=random) for n in (4, 2, 2))
    shape = ops.RowShape(torch.tensor([0, 21]), torch.full((21,), 21), torch.arange(21))
    computed = ops.attend_rows(q, k, v, shape, None, 0.25, 0)
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(0, 1)[None] for x in (q, k, v)), is_causal=True, scale=0.25, enable_gqa=True)[0].transpose(0, 1)
    if not torch.allclose(computed, expected, atol=1e-5):
        raise RuntimeError("the kernels do not agree with torch on this machine")
    for dtype, bound in [(torch.float32, 1e-4), (torch.bfloat16, 0.05)][:1 + build.kernel("amx_available")()]:
        x, weight = (torch.randn(21, n, generator=random).to(dtype) for n in (96, 96))
        weight = torch.cat([weight, weight])[:32]
        exact = torch.nn.functional.linear(x.double(), weight.double())
        computed = torch.cat([ops.linear(part, ops.tile_weight(weight)) for part in (x[:5], x[5:])])
        if not torch.allclose(computed.double(), exact, atol=bound, rtol=bound / 5):
            raise RuntimeError("the kernels' linear layers do not agree with torch on this machine")
