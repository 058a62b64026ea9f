"""Finds the scaling of the rotation that Llama 3 models have, from the factors in a GGUF file.

    scaled_rope(source)      {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, …}

llama.cpp stores the divisor of each frequency as the tensor ``rope_freqs.weight``, and not the four numbers that it is
computed from. transformers 5.24 ignores the tensor, so a Llama 3.1 or 3.2 read from a GGUF would compute with other
positions. Here numbers are found that give the same divisors: by Llama 3's formula the inverse divisors lie on a line
over the frequency, between a part that is divided by the whole factor and a part that is not divided.
"""

from __future__ import annotations

import math
import mmap
from typing import Any

from aftertune.errors import SourceError
from aftertune.sources.resolve import ModelSource

_NAME = "rope_freqs.weight"
#: Bytes at the start of a file in which the name is searched: tokens and merges come before the names of tensors.
_HEADER = 256 * 2**20
#: Largest relative error of a divisor.
_TOLERANCE = 1e-3


def scaled_rope(source: ModelSource) -> dict[str, Any] | None:
    """transformers' ``rope_parameters`` for the divisors in a GGUF; None if it has none.

    Raises SourceError for divisors that are not those of Llama 3's formula.
    """
    path = source.gguf_path
    if path is None:
        return None
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data.find(_NAME.encode(), 0, _HEADER) < 0:
            return None
    import numpy as np

    from aftertune.sources.tensors import read_gguf

    contents = read_gguf(path)
    tensor = next((t for t in contents.tensors if t.name == _NAME), None)
    if tensor is None:
        return None
    divisors = np.asarray(tensor.data, dtype=np.float64).ravel()
    theta = float(contents.metadata.get(f"{contents.architecture}.rope.freq_base", 10000.0))
    rope = _llama3(divisors, theta)
    if rope is None:
        raise SourceError(f"{source.source}: its {_NAME} has divisors of the rotation that are not Llama 3's, and "
                          "transformers would ignore them; use the model's safetensors instead")
    return rope


def _llama3(divisors: Any, theta: float) -> dict[str, Any] | None:
    """The numbers of Llama 3's formula that give these divisors [head / 2]; None if there are none.

    The formula is ``_compute_llama3_parameters`` of transformers. Of its numbers one can be chosen: a low frequency
    factor of 1, as all published models have.
    """
    import numpy as np

    factor = float(divisors.max())
    if factor <= 1 + _TOLERANCE:
        return {"rope_type": "default", "rope_theta": theta} if float(divisors.min()) > 1 - _TOLERANCE else None
    count = len(divisors)
    turns = theta ** (-np.arange(count) / count) / (2 * math.pi)  # per token
    smooth = (1 / divisors - 1 / factor) / (1 - 1 / factor)
    inside = (smooth > 1e-4) & (smooth < 1 - 1e-4)
    if int(inside.sum()) < 2:  # the line between the last undivided and the first divided frequency
        inside = np.zeros(count, dtype=bool)
        edges = [np.flatnonzero(smooth >= 1 - 1e-4)[-1:], np.flatnonzero(smooth <= 1e-4)[:1]]
        inside[np.concatenate(edges)] = True
        if int(inside.sum()) < 2:
            return None
    slope, start = np.polyfit(turns[inside], smooth[inside], 1)
    if not start < 0 < slope:
        return None
    high, context = 1 - 1 / float(start), round(-float(slope) / float(start))
    again = 1 / ((1 - (s := np.clip((context * turns - 1) / (high - 1), 0, 1))) / factor + s)
    if float(np.abs(again / divisors - 1).max()) > _TOLERANCE:
        return None
    return {"rope_type": "llama3", "rope_theta": theta, "factor": factor, "low_freq_factor": 1.0,
            "high_freq_factor": high, "original_max_position_embeddings": context}
