"""How much one batch may hold, from free memory and the model's shape; never by running out of memory."""

from __future__ import annotations

import re
from typing import Any

from aftertune.engine import kernels
from aftertune.engine.linears import worthwhile
from aftertune.engine.native import suits
from aftertune.engine.schedule import ROOM, Budget
from aftertune.engine.scorer import text_config
from aftertune.errors import InputError

_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "ki": 1024, "mi": 1024**2, "gi": 1024**3}

#: Padded tokens of one batch. On a CPU small batches stay in its cache: 512-1024 tokens beat 4096 by a sixth.
TOKENS = {"cpu": 1024, "mps": 8192, "cuda": 32768}
#: Sequences generated together, at most.
SLOTS = {"cpu": 40, "mps": 32, "cuda": 128}


def parse_memory(text: str) -> int:
    """Bytes of "8GiB", "500MB" or "1000000"."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmg]i?)?b?\s*", text.lower())
    if not match:
        raise InputError(f"--memory {text!r} is not a size; write for example 8GiB or 500MB")
    return int(float(match[1]) * _UNITS[match[2] or ""])


def resolve(model: Any, *, free: int, threads: int) -> Budget:
    """The budget for ``free`` bytes: a quarter for logits, a quarter for masks, the rest for the layers.

    Keys and values take most of a wave's memory: 2 x layers x heads x head size x bytes a token.
    """
    config = text_config(model)
    device = str(model.device).split(":")[0]
    size = model.dtype.itemsize
    hidden = int(getattr(config, "hidden_size", 0) or 1024)
    layers = int(getattr(config, "num_hidden_layers", 0) or 24)
    heads = int(getattr(config, "num_attention_heads", 0) or 16)
    shared = int(getattr(config, "num_key_value_heads", 0) or heads)
    vocabulary = int(getattr(config, "vocab_size", 0) or 32000)
    inner = int(getattr(config, "intermediate_size", 0) or 4 * hidden)
    layer = (6 * hidden + 3 * inner) * size
    tokens = min(TOKENS.get(device, 4096), max(free // 2 // layer, 128))
    logits = max(min(free // 4, 2**29) // (vocabulary * size), 16)
    cells = max(min(free // 4, 2**29) // (size * (heads + 2)), 2**16)
    native = device == "cpu" and suits(config) and not kernels.missing()
    kept = 4 if device == "cpu" and not native else size  # torch's attention, and what slots hold, is float32 there
    cache = 2 * layers * hidden * shared // heads * kept * ROOM
    slots = max(min(SLOTS.get(device, 16), free // 2 // max(cache, 1)), 1)
    return Budget(tokens=int(tokens), logits=int(logits), cells=int(cells), slots=int(slots), threads=threads,
                  prepacked=int(worthwhile(model, free)), kernels=int(native))
