"""How much one batch may hold, from free memory and the model's shape; never by running out of memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from aftertune.engine import backends
from aftertune.engine.schedule import Budget
from aftertune.engine.scorer import Scorer, config_number, text_config

#: Tokens of one batch. On a CPU anything from 1,024 on is as fast (docs/log.md), and takes more memory.
TOKENS = {"cpu": 1024, "mps": 8192, "cuda": 32768}
#: Tokens of the shorter pass of a probe.
PROBE = 256
#: Sequences generated together, at most.
SLOTS = {"cpu": 40, "mps": 32, "cuda": 128}
#: Tokens that all slots together have room for, at most. On a CPU more slots for long prompts gain little: a step then
#: waits for their keys and values rather than for the weights (docs/log.md).
KEYS = {"cpu": 12 * 1024, "mps": 64 * 1024, "cuda": 256 * 1024}


def resolve(model: Any, *, free: int, threads: int) -> Budget:
    """The budget for ``free`` bytes: a quarter for logits, a quarter for masks, the rest for the layers.

    What a token of a batch takes in a layer follows from the shapes; on CUDA it is measured, too, and the larger of the
    two counts. Keys and values take most of a wave's memory: 2 x layers x heads x head size x bytes a token.
    """
    config = text_config(model)
    device = str(model.device).split(":")[0]
    size = model.dtype.itemsize
    hidden = config_number(config, "hidden_size") or 1024
    layers = config_number(config, "num_hidden_layers") or 24
    heads = config_number(config, "num_attention_heads") or 16
    shared = config_number(config, "num_key_value_heads") or heads
    vocabulary = config_number(config, "vocab_size") or 32000
    inner = config_number(config, "intermediate_size") or 4 * hidden
    layer = max((6 * hidden + 3 * inner) * size, measured(model, probe_cuda) if device == "cuda" else 0)
    tokens = min(TOKENS.get(device, 4096), max(free // 2 // layer, 128))
    logits = max(min(free // 4, 2**29) // (vocabulary * size), 16)
    cells = max(min(free // 4, 2**29) // (size * (heads + 2)), 2**16)
    backend, weights = backends.choose(model, free)
    number = 4 if device == "cpu" and backend == "torch" else size  # torch's attention is float32 on a CPU
    token = 2 * layers * hidden * shared // heads * number
    keys = max(min(KEYS.get(device, 32 * 1024), free // 2 // max(token, 1)), 1)
    return Budget(tokens=int(tokens), logits=int(logits), cells=int(cells), slots=SLOTS.get(device, 16),
                  threads=threads, weights=weights, backend=backend, keys=int(keys))


def measured(model: Any, peak: Callable[[Callable[[], Any]], int]) -> int:
    """Bytes that one more token of a batch takes, from two short passes; as a power of two, so that another run of the
    same model comes to the same. peak(run): the largest number of bytes in use while ``run`` runs."""
    scorer, sizes = Scorer(model, packed=False), (PROBE, 2 * PROBE)
    found = [peak(partial(scorer.forward, torch.ones(1, n, dtype=torch.long), torch.arange(n) == n - 1))
             for n in sizes for _ in range(2)][1::2]  # the first pass of a size also fills caches
    return int(2 ** np.ceil(np.log2(max((found[1] - found[0]) / PROBE, 1))))


def probe_cuda(run: Callable[[], Any]) -> int:
    """The peak of a run on CUDA."""
    torch.cuda.reset_peak_memory_stats()
    with torch.inference_mode():
        run()
    torch.cuda.synchronize()
    return int(torch.cuda.max_memory_allocated())
