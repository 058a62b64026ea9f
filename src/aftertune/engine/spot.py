"""The spot check of Apple's MPS: a few rows are scored again on the CPU before anything is stored.

MPS kernels have returned wrong numbers without a word (a known case: an accuracy of 0.54 against the CPU's
0.41), so a disagreement stops the run.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from aftertune.engine.scorer import Scorer
from aftertune.engine.trie import Row
from aftertune.errors import ResourceError

#: Rows scored twice.
ROWS = 8
#: Largest difference of a token's log-probability that rounding explains, by dtype of the device.
ALLOWED = {"torch.float32": 1e-2, "torch.float16": 0.25, "torch.bfloat16": 0.5}


def needs_check(device: str) -> bool:
    return device.startswith("mps")


def spot_check(model: Any, rows: list[Row], *, packed: bool) -> float:
    """Largest difference of a token's log-probability between the device and the CPU in float32.

    Raises ResourceError where it is more than rounding explains.
    """
    chosen = rows[:: max(len(rows) // ROWS, 1)][:ROWS]
    here = Scorer(model, packed=packed).run(chosen)
    there = Scorer(copy.deepcopy(model).to("cpu").float(), packed=packed).run(chosen)
    gaps = [np.abs(here[p].logprobs - there[p].logprobs).max() for p in here]
    gap, allowed = float(np.max(gaps, initial=0.0)), ALLOWED[str(model.dtype)]  # max() would pass over NaN
    if not gap <= allowed:
        raise ResourceError(f"device {model.device.type} disagrees with the CPU by {gap:.2g} in a token's "
                            f"log-probability ({allowed:.2g} is rounding): run with --device cpu, or with "
                            "another version of torch or of the operating system")
    return gap
