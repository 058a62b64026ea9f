"""Linear layers on a CPU with their weights in the layout that oneDNN computes in.

torch hands the plain layout to its matrix products, which pack it anew at every call: cheap for a thousand rows, half
of the time for a few. Packed once, all shapes gain (docs/log.md has the figures), for one more copy of the weights.

    linears = Linears(model)
    with linears.packed():          every nn.Linear of the model computes from its packed copy meanwhile
        model(…)

These are torch's own operators for compiled graphs (``torch.ops.mkldnn``); where a build has none, or memory is short,
`worthwhile` says no and the layers stay as they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

#: Rows that the layout is chosen for; it serves any number of them.
ROWS = 64
_DTYPES = (torch.float32, torch.bfloat16)


def layers(model: Any) -> list[Any]:
    """The layers that can be packed: plain linear ones on a CPU, under adapters too."""
    return [m for m in model.modules() if type(m) is torch.nn.Linear and m.weight.device.type == "cpu"
            and m.weight.dtype in _DTYPES and (m.bias is None or m.bias.dtype == m.weight.dtype)
            and min(m.weight.shape) >= ROWS]


def worthwhile(model: Any, free: int) -> bool:
    """True where the copies take at most a third of the ``free`` bytes and torch has the operators."""
    found = layers(model)
    size = sum(m.weight.numel() * m.weight.itemsize for m in found)
    return bool(found) and 3 * size <= free and torch.backends.mkldnn.is_available() \
        and all(hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise"))


class Linears:
    """The packed copies of one model's linear layers, made when they are first needed."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._copies: dict[Any, Any] = {}

    @contextlib.contextmanager
    def packed(self) -> Iterator[None]:
        """The model computes from the packed copies meanwhile."""
        found = layers(self.model)
        with torch.no_grad():
            for layer in found:
                if layer not in self._copies:
                    self._copies[layer] = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), ROWS)
        for layer in found:
            layer.forward = partial(_forward, self._copies[layer], layer.bias)
        try:
            yield
        finally:
            for layer in found:
                del layer.forward


def _forward(weight: Any, bias: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
    made: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return made
