"""Linear layers on a CPU with their weights in the layout that oneDNN computes in.

torch hands the plain layout to its matrix products, which pack it anew at every call: cheap for a thousand rows, half
of the time for a few. Packed once, all shapes gain (docs/log.md has the figures), for one more copy of the weights;
and what follows a product (an activation, a sum) is done while its numbers are at hand.

    linears = Linears(model)
    with linears.packed():                      every nn.Linear of the model computes from its packed copy meanwhile
        model(…)
    linears.product(layer_a, layer_b)(x)        what both make of x, side by side, in one product

These are torch's own operators for compiled graphs (``torch.ops.mkldnn``); where a build has none, or memory is short,
`worthwhile` says no and the layers stay as they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from aftertune.engine.memory import unneeded

#: Rows that the layout is chosen for; it serves any number of them.
ROWS = 64
#: Of tensors, one tensor.
Function = Callable[..., torch.Tensor]
_DTYPES = (torch.float32, torch.bfloat16)


def plain(module: Any) -> bool:
    """True for a layer that can be packed: plain, linear, on a CPU; the one inside an adapter too."""
    return type(module) is torch.nn.Linear and module.weight.device.type == "cpu" \
        and module.weight.dtype in _DTYPES and min(module.weight.shape) >= ROWS \
        and (module.bias is None or module.bias.dtype == module.weight.dtype)


def layers(model: Any) -> list[Any]:
    """Those of a model."""
    return [m for m in model.modules() if plain(m)]


def worthwhile(model: Any, free: int) -> bool:
    """True where the copies take at most a third of the ``free`` bytes and torch has the operators."""
    found = layers(model)
    size = sum(m.weight.numel() * m.weight.itemsize for m in found)
    return bool(found) and 3 * size <= free and torch.backends.mkldnn.is_available() \
        and all(hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise"))


class Linears:
    """The packed copies of one model's linear layers, each made when it is first needed."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.on = False
        self._copies: dict[tuple[Any, ...], tuple[Any, Any]] = {}

    @contextlib.contextmanager
    def packed(self) -> Iterator[None]:
        """The model computes from the packed copies meanwhile."""
        found = layers(self.model)
        for layer in found:
            layer.forward = partial(self._forward, layer)
        self.on = True
        try:
            yield
        finally:
            self.on = False
            for layer in found:
                del layer.forward

    def product(self, *layers: Any) -> Function:
        """x [rows, columns] -> what the layers make of it, side by side."""
        weight, bias = self._copy(*layers)

        def run(x: torch.Tensor) -> torch.Tensor:
            made: torch.Tensor = torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")
            return made

        return run

    def _forward(self, layer: Any, x: torch.Tensor) -> torch.Tensor:
        return self.product(layer)(x)

    def _copy(self, *layers: Any) -> tuple[Any, Any]:
        """Packed weight and bias of layers, one under the other."""
        if layers not in self._copies:
            with torch.no_grad():
                weight = torch.cat([m.weight for m in layers]) if len(layers) > 1 else layers[0].weight.detach()
                bias = None if layers[0].bias is None else torch.cat([m.bias for m in layers])
                self._copies[layers] = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS), bias
            for layer in layers:
                unneeded(layer.weight)
        return self._copies[layers]
