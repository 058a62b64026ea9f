"""The engine's kernels on a CPU (kernels.c): compiled once on the machine that runs them, called by pointer.

torch has no attention that keeps scores in float32 over bfloat16 keys, nor one that knows trie rows, and a step of
decoding spends more time between its small operators than in them. Where there is no C compiler, or the kernels do not
pass their test against torch, `missing` says why, and the engine's torch layouts do the same work, slower.

Tensors are float32 or bfloat16, all of a call alike, contiguous over their last dimension. Keys lie in tiles of 16:
[kv heads, tiles, size, 16], in bfloat16 by pairs of dimensions, [kv heads, tiles, size / 2, 16, 2].
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch

from aftertune.engine.memory import zeros
from aftertune.sources.cache import beside, cache_root

#: Keys of a tile; sizes of a head are multiples of it.
TILE = 16
DTYPES = (torch.float32, torch.bfloat16)
_SOURCE = Path(__file__).with_name("kernels.c")
_FLAGS = ("-O3", "-march=native", "-fopenmp", "-fPIC", "-shared")
_SECONDS = 120
_KERNELS = {"attend_rows": "nppppppp" "nnnnnn" "ppnnfn", "attend_step": "nppppp" "nnnnnn" "ppn" "ppnnfn",
            "keep": "nppnnnn" "ppnn", "rms_norm": "npppppnnf", "gate": "npnpnpnn", "rotate": "npppnnnnn",
            "summarise": "npnnppp", "add_low": "npnpnfppnnn", "attend_back": "npppppppp" "p" "nnnn" "fn",
            "rms_norm_back": "nppppnnf", "gate_back": "npppppn", "linear": "npnnpnpp",
            "layer_step": "npppppn" "pnppn" "ppnn", "lent": ""}


def attend_rows(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, shape: Shape, past: Held | None, scaling: float,
                window: int) -> torch.Tensor:
    """Attention of trie rows that lie end to end: query i of a row sees key j of it where j <= i < end[j], and all of
    ``past``; with a window only keys less than that many depths back.

    q [tokens, heads, size], k and v [tokens, kv heads, size] -> [tokens, heads, size].
    """
    q, (k, v), out = _dense(q), _alike(k, v), torch.empty(q.shape, dtype=q.dtype)
    _call("attend_rows", _half(q), q, k, v, out, shape.starts, shape.end, shape.depth, len(shape.starts) - 1,
          q.shape[1], k.shape[1], q.shape[2], q.stride(0), k.stride(0), *_past(past), scaling, window)
    return out


def attend_step(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: torch.Tensor, slots: Held,
                past: Held | None, scaling: float, window: int) -> torch.Tensor:
    """Attention of one new token in each of the first slots, over the slot, itself and ``past``; its key and value join
    the slot at ``lengths`` [slots] (int64).

    q [slots, heads, size], k and v [slots, kv heads, size] -> [slots, heads, size].
    """
    q, (k, v), out = _dense(q), _alike(k, v), torch.empty(q.shape, dtype=q.dtype)
    _call("attend_step", _half(q), q, k, v, out, lengths, len(q), q.shape[1], k.shape[1], q.shape[2], q.stride(0),
          k.stride(0), slots.keys, slots.values, slots.room, *_past(past), scaling, window)
    return out


class Shape:
    """How rows lie in a flat batch: starts [rows + 1], end and depth [tokens], all int64."""

    def __init__(self, starts: torch.Tensor, end: torch.Tensor, depth: torch.Tensor) -> None:
        self.starts, self.end, self.depth = starts, end, depth


class Held:
    """Keys and values that are kept: of one prefix, or of slots. keys: [slots, kv heads, tiles, size, 16], values:
    [slots, kv heads, room, size]; length: keys in use, where it is one for all."""

    def __init__(self, slots: int, room: int, key: torch.Tensor) -> None:
        shared, size = key.shape[1:]
        self.room, self.length = room, room
        self.keys = zeros((slots, shared, -(-room // TILE), size, TILE), key.dtype)
        self.values = zeros((slots, shared, room, size), key.dtype)

    def keep(self, slot: int, k: torch.Tensor, v: torch.Tensor) -> None:
        """Put keys and values [tokens, kv heads, size] at the beginning of a slot."""
        if len(k) > self.room or k.shape[1:] != self.values.shape[1:4:2]:
            raise IndexError(f"{len(k)} tokens do not fit into a slot of {self.room}")
        k, v = _alike(k, v)
        _call("keep", _half(k), k, v, k.stride(0), len(k), k.shape[1], k.shape[2], self.keys[slot],
              self.values[slot], self.room, 0)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """x / sqrt(mean(x^2) + epsilon) * weight over the last dimension (Zhang and Sennrich 2019), with transformers'
    rounding."""
    return _norm(x, None, weight, epsilon)[1]


def add_norm(x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, epsilon: float
             ) -> tuple[torch.Tensor, torch.Tensor]:
    """x + y, and the RMS norm of that."""
    return _norm(x, y.contiguous(), weight, epsilon)


def _norm(x: torch.Tensor, y: torch.Tensor | None, weight: torch.Tensor, epsilon: float
          ) -> tuple[torch.Tensor, torch.Tensor]:
    if x.shape[-1] % TILE or x.dtype not in DTYPES or weight.dtype != x.dtype or len(weight) != x.shape[-1]:
        raise NotImplementedError(f"an RMS norm of {x.shape[-1]} numbers in {x.dtype}")
    x, weight = x.contiguous(), weight.contiguous()
    sums, out = x if y is None else torch.empty_like(x), torch.empty_like(x)
    _call("rms_norm", _half(x), x, y, weight, sums, out, x.numel() // x.shape[-1], x.shape[-1], epsilon)
    return sums, out


def gate(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """silu(x) * y (Shazeer 2020) of x and y [tokens, columns], with transformers' rounding. Columns are a multiple of
    16."""
    if not gates(x, y):
        raise NotImplementedError(f"a gate of {tuple(x.shape)} and {tuple(y.shape)} numbers in {x.dtype}")
    x, y = (z if z.stride(1) == 1 else z.contiguous() for z in (x, y))
    out = x.new_empty(x.shape)
    _call("gate", _half(x), x, x.stride(0), y, y.stride(0), out, *x.shape)
    return out


def gates(x: torch.Tensor, y: torch.Tensor) -> bool:
    """True where `gate` takes the two."""
    return x.shape == y.shape and x.dtype == y.dtype and x.dtype in DTYPES and x.shape[1] % TILE == 0


def rotate(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> None:
    """Rotary position embedding (Su et al. 2021), in place, of x [tokens, heads, size]; cosine and sine
    [tokens, turned]: the first ``turned`` numbers of each head turn, the first half of them against the second."""
    if not _lies_well(x):
        raise ValueError("the heads of a token must lie together")
    _call("rotate", _half(x), x, cosine.contiguous(), sine.contiguous(), *x.shape, cosine.shape[-1], x.stride(0))


def summarise(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log of the sum of exponentials, largest logit (float32) and index of the first largest (int64) of each row."""
    logits = logits.contiguous()
    norm, top = (torch.empty(len(logits)) for _ in range(2))
    best = torch.empty(len(logits), dtype=torch.long)
    _call("summarise", _half(logits), logits, len(logits), logits.shape[-1], norm, top, best)
    return norm, top, best


def add_low(out: torch.Tensor, inner: torch.Tensor, b: torch.Tensor, scale: float, gain: torch.Tensor | None = None
            ) -> None:
    """out [tokens, columns] += scale * inner [tokens, rank] b [rank, columns], in place, and all of it times ``gain``
    [columns] where there is one; all but ``out`` and the sums are float32. Columns are a multiple of 16."""
    _call("add_low", _half(out), inner, inner.stride(0), b, len(b), scale, gain, out, out.stride(0), *out.shape)


def tiled() -> bool:
    """True where this processor has matrix registers (AMX) for `linear` in bfloat16, and lends them."""
    return not missing() and bool(_loaded("lent")())


def fits(weight: torch.Tensor) -> bool:
    """True for a weight that `linear` takes."""
    columns, depth = weight.shape
    return weight.dtype in DTYPES and not columns % TILE and not (_half(weight) and depth % (2 * TILE))


def tile(weight: torch.Tensor) -> torch.Tensor:
    """A weight [columns, depth] as `linear` reads it, [columns / 16, depth, 16], in bfloat16 by pairs,
    [columns / 16, depth / 2, 16, 2]: a copy."""
    columns, depth = weight.shape
    apart = _words(weight.detach().contiguous()).view(columns // TILE, TILE, -1).transpose(1, 2)
    made = weight.new_empty(columns // TILE, depth // 2, TILE, 2) if _half(weight) \
        else weight.new_empty(columns // TILE, depth, TILE)
    _words(made).view(apart.shape).copy_(apart)
    return made


def untile(tiles: torch.Tensor) -> torch.Tensor:
    """The weight that `tile` made these of."""
    words = _words(tiles).view(*tiles.shape[:3])
    return words.transpose(1, 2).contiguous().view(len(tiles) * TILE, -1).view(tiles.dtype)


def linear(x: torch.Tensor, tiles: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x [..., depth] times a weight's `tile`s, plus bias [columns], all of one type; sums are float32, and a row's do
    not depend on how many rows there are."""
    x, columns, depth = x.contiguous(), len(tiles) * TILE, tiles[0].numel() // TILE
    if x.dtype != tiles.dtype or x.shape[-1] != depth or (bias is not None and bias.dtype != x.dtype):
        raise NotImplementedError(f"a linear layer of {x.shape[-1]} numbers in {x.dtype}")
    out = x.new_empty(*x.shape[:-1], columns)
    _call("linear", _half(x), x, x.numel() // depth, depth, tiles, columns, bias, out)
    return out


def layer_step(layer: int, x: torch.Tensor, out: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor,
               lengths: torch.Tensor, slots: Held, past: Held | None) -> None:
    """A whole decoder layer, at the address ``layer`` (see steps.py), for one new token in each of the first slots."""
    _call("layer_step", _half(x), layer, x, out, cosine, sine, cosine.shape[-1], lengths, len(x), slots.keys,
          slots.values, slots.room, *_past(past))


def attend_back(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, grad: torch.Tensor,
                starts: torch.Tensor, scaling: float, window: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of queries, keys and values from ``grad``, that of ``out`` = `attend_rows` of rows that do not branch;
    starts [rows + 1], int64. Sums are float32.

    q, out and grad [tokens, heads, size], k and v [tokens, kv heads, size] -> what is of the shapes of q, k and v.
    """
    q, k, v, out, grad = (x.contiguous() for x in (q, k, v, out, grad))
    found = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    _call("attend_back", _half(q), q, k, v, out, grad, *found, starts, len(starts) - 1, q.shape[1], k.shape[1],
          q.shape[2], scaling, window)
    return found


def rms_norm_back(x: torch.Tensor, weight: torch.Tensor, grad: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Gradient of x [..., size] from ``grad``, that of `rms_norm`."""
    x, weight, grad = x.contiguous(), weight.contiguous(), grad.contiguous()
    out = torch.empty_like(x)
    _call("rms_norm_back", _half(x), x, weight, grad, out, x.numel() // x.shape[-1], x.shape[-1], epsilon)
    return out


def gate_back(x: torch.Tensor, y: torch.Tensor, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of x and y from ``grad``, that of `gate`."""
    x, y, grad = x.contiguous(), y.contiguous(), grad.contiguous()
    found = torch.empty_like(x), torch.empty_like(y)
    _call("gate_back", _half(x), x, y, grad, *found, x.numel() // TILE)
    return found


def _half(x: torch.Tensor) -> int:
    return int(x.dtype == torch.bfloat16)


def _words(x: torch.Tensor) -> torch.Tensor:
    """The numbers of x by four bytes: one in float32, two in bfloat16."""
    return x.view(torch.int32)


def _lies_well(x: torch.Tensor) -> bool:
    """True where the heads of a token lie together, as the kernels take them."""
    return bool(x.stride()[1:] == (x.shape[2], 1))


def _dense(x: torch.Tensor) -> torch.Tensor:
    return x if _lies_well(x) else x.contiguous()


def _alike(k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values with as many numbers from token to token."""
    k, v = _dense(k), _dense(v)
    return (k, v) if k.stride(0) == v.stride(0) else (k.contiguous(), v.contiguous())


def _past(past: Held | None) -> tuple[Any, ...]:
    return (None, None, 0, 0) if past is None else (past.keys, past.values, past.length, past.room)


def _call(name: str, *arguments: Any) -> None:
    """Call a kernel, tensors by pointer; each of them returns 0, or 1 where memory ran out."""
    if _loaded(name)(*[a.data_ptr() if isinstance(a, torch.Tensor) else a for a in arguments]):
        raise MemoryError(f"no memory for {name}")


@cache
def _loaded(name: str) -> Any:
    """A kernel with the types of its arguments: p, a pointer; n, int64; f, float."""
    found = getattr(_library(), name)
    found.argtypes = [{"p": ctypes.c_void_p, "n": ctypes.c_int64, "f": ctypes.c_float}[x] for x in _KERNELS[name]]
    return found


@cache
def missing() -> str:
    """Why there are no kernels here; "" where there are."""
    if sys.platform != "linux":
        return f"the kernels are not built on {sys.platform}"
    try:
        _library()
        _same_threads()
        _test()
    except (OSError, RuntimeError, AttributeError, subprocess.SubprocessError) as error:
        return " ".join(str(error).split())[:200]
    return ""


@cache
def _library() -> Any:
    """The compiled kernels; compiled now where the cache has none for this source, compiler and machine."""
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC", ""), "cc", "gcc", "clang"))), None)
    if compiler is None:
        raise RuntimeError("there is no C compiler (cc, gcc or clang)")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=_SECONDS, check=True)
    known = hashlib.sha256("\0".join((_SOURCE.read_text(), *_FLAGS, version.stdout, _cpu())).encode()).hexdigest()
    path = cache_root() / "kernels" / f"{known[:32]}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        new = beside(path)
        try:
            made = subprocess.run([compiler, *_FLAGS, "-o", str(new), str(_SOURCE), "-lm"], capture_output=True,
                                  text=True, timeout=_SECONDS, check=False)
            if made.returncode:
                raise RuntimeError(f"{Path(compiler).name} could not compile the kernels: {made.stderr[-150:]}")
            with new.open("rb") as file:
                os.fsync(file.fileno())  # a library cut short would end the process that loads it
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)
    return ctypes.CDLL(str(path))


def _cpu() -> str:
    """What the machine's instructions are, so that no other machine's kernels are loaded from a shared cache."""
    with contextlib.suppress(OSError):
        return next((line for line in Path("/proc/cpuinfo").read_text().splitlines()
                     if line.lower().startswith(("flags", "features"))), "") + platform.machine()
    return platform.machine() + platform.node()


def _same_threads() -> None:
    """The kernels must run on torch's own OpenMP threads: two pools on the same cores wait for each other."""
    loaded = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()
              if "libgomp" in line or "libomp" in line or "libiomp" in line}
    if len({Path(p).resolve() for p in loaded}) > 1:
        raise RuntimeError("torch has an OpenMP library of its own")


@torch.autocast("cpu", enabled=False)
def _test() -> None:
    """Compare attention and linear layers with torch's, on a few random numbers; whoever asks, in training perhaps."""
    made = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(21, n, 32, generator=made) for n in (4, 2, 2))
    places = torch.arange(21)
    shape = Shape(torch.tensor([0, 21]), torch.full((21,), 21), places)
    found = attend_rows(q, k, v, shape, None, 0.25, 0)
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(0, 1)[None] for x in (q, k, v)), is_causal=True, scale=0.25, enable_gqa=True)[0].transpose(0, 1)
    if not torch.allclose(found, expected, atol=1e-5):
        raise RuntimeError("the kernels do not agree with torch on this machine")
    for dtype, bound in [(torch.float32, 1e-4), (torch.bfloat16, 0.05)][:1 + _loaded("lent")()]:
        x, weight = (torch.randn(21, n, generator=made).to(dtype) for n in (96, 96))
        weight = torch.cat([weight, weight])[:32]
        exact = torch.nn.functional.linear(x.double(), weight.double())
        found = torch.cat([linear(part, tile(weight)) for part in (x[:5], x[5:])])
        if not torch.allclose(found.double(), exact, atol=bound, rtol=bound / 5):
            raise RuntimeError("the kernels' linear layers do not agree with torch on this machine")
