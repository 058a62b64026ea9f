"""Computes the limits of a batch from the free memory and the model's shape, before anything runs out of memory.

    resolve(model, free=free_memory("cpu"), threads=4)      # Budget(tokens=1024, logits=…, slots=40, …)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from aftertune.engine import backends
from aftertune.engine.schedule import Budget
from aftertune.engine.scorer import Scorer, config_number, text_config

#: Tokens of one batch. On a CPU a larger batch is no faster (docs/log.md) and needs more memory.
TOKENS = {"cpu": 1024, "mps": 8192, "cuda": 32768}
#: Tokens of the shorter forward pass that measures the memory of a token.
PROBE = 256
#: Sequences generated together, at most.
SLOTS = {"cpu": 40, "mps": 32, "cuda": 128}
#: Tokens that all slots together have room for, at most. On a CPU more slots for long prompts gain little, because a
#: step then spends its time on reading their keys and values instead of the weights (docs/log.md).
KEYS = {"cpu": 12 * 1024, "mps": 64 * 1024, "cuda": 256 * 1024}


def resolve(model: Any, *, free: int, threads: int) -> Budget:
    """The budget for ``free`` bytes: a quarter for logits, a quarter for masks, the rest for the layers.

    The memory of a batch's token in a layer is computed from the shapes. On CUDA it is also measured, and the larger
    number is used. Most of a wave's memory is keys and values: 2 x layers x kv heads x head size x bytes per token.
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
    measured = measure_token_memory(model, peak_cuda_memory) if device == "cuda" else 0
    layer = max((6 * hidden + 3 * inner) * size, measured)
    tokens = min(TOKENS.get(device, 4096), max(free // 2 // layer, 128))
    logits = max(min(free // 4, 2**29) // (vocabulary * size), 16)
    cells = max(min(free // 4, 2**29) // (size * (heads + 2)), 2**16)
    backend, weights = backends.choose(model, free)
    number = 4 if device == "cpu" and backend == "torch" else size  # torch's attention is float32 on a CPU
    token = 2 * layers * hidden * shared // heads * number
    keys = max(min(KEYS.get(device, 32 * 1024), free // 2 // max(token, 1)), 1)
    return Budget(tokens=int(tokens), logits=int(logits), cells=int(cells), slots=SLOTS.get(device, 16),
                  threads=threads, weights=weights, backend=backend, keys=int(keys))


def measure_token_memory(model: Any, peak: Callable[[Callable[[], Any]], int]) -> int:
    """Bytes that one more token of a batch needs, measured with two short forward passes.

    Rounded up to a power of two, so that another run with the same model gets the same number. peak(run): the largest
    number of bytes in use while ``run`` runs.
    """
    scorer, sizes = Scorer(model, packed=False), (PROBE, 2 * PROBE)
    peaks = [peak(partial(scorer.forward, torch.ones(1, n, dtype=torch.long), torch.arange(n) == n - 1))
             for n in sizes for _ in range(2)][1::2]  # the first pass of each size also fills caches
    return int(2 ** np.ceil(np.log2(max((peaks[1] - peaks[0]) / PROBE, 1))))


def peak_cuda_memory(run: Callable[[], Any]) -> int:
    """The most bytes in use on CUDA while ``run`` runs."""
    torch.cuda.reset_peak_memory_stats()
    with torch.inference_mode():
        run()
    torch.cuda.synchronize()
    return int(torch.cuda.max_memory_allocated())
