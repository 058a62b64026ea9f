"""Linear layers on a CPU with their weights in the layout that oneDNN computes in.

torch hands the plain layout to its matrix products, which pack it anew at every call: cheap for a thousand rows, half
of the time for a few. Packed once, all shapes gain (docs/log.md has the figures), for one more copy of the weights;
and what follows a product (an activation, a sum) is done while its numbers are at hand.

    linears = Linears(model)
    with linears.packed():                      every nn.Linear of the model computes from its packed copy meanwhile
        model(…)
    linears.product(layer_a, layer_b)(x)        what both make of x, side by side, in one product

These are torch's own operators for compiled graphs (``torch.ops.mkldnn``); where a build has none, or memory is short,
`worthwhile` says no and the layers stay as they are. Where a processor has matrix registers (AMX), weights lie in tiles
of the kernels instead: as fast for a thousand rows, and up to twice as fast for a few.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from aftertune.engine import kernels
from aftertune.engine.memory import dropped, trim, unneeded

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


class _Reordered:
    """A weight as oneDNN packs it, and its bias: x [..., columns] -> [..., rows]."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.weight: Any = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
        self.bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = torch.ops.mkldnn._linear_pointwise.default(x, self.weight, self.bias, "none", [], "")
        return made

    def dense(self) -> torch.Tensor:
        weight: torch.Tensor = self.weight.to_dense()
        return weight


class Tiled:
    """The same in tiles of the kernels."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.weight, self.bias = kernels.tile(weight), bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return kernels.linear(x, self.weight, self.bias)

    def dense(self) -> torch.Tensor:
        return kernels.untile(self.weight)


#: The packed copy of a weight, with its bias.
Packed = _Reordered | Tiled


class Linears:
    """The packed copies of one model's linear layers, each made when it is first needed. tiled: those that fit, in
    tiles of the kernels."""

    def __init__(self, model: Any, *, tiled: bool = False) -> None:
        self.model = model
        self.tiled = tiled
        self.on = False
        self._uses = Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))
        self._copies: dict[tuple[Any, ...], Packed] = {}
        self._alone = False
        self._products: set[tuple[Any, ...]] = set()  # layers whose weights nothing but a product needs
        self._absent: dict[Any, tuple[Any, ...]] = {}  # layers whose weights lie in a copy alone, and those it is of

    @contextlib.contextmanager
    def packed(self, *, alone: bool = False) -> Iterator[None]:
        """The model computes from the packed copies meanwhile. alone: those of products are all that there is of the
        weights until then, and on leaving they are what the weights are made from."""
        found = layers(self.model)
        for layer in found:
            layer.forward = partial(self._forward, layer)
        self.on, self._alone = True, alone
        try:
            for group in self._products & self._copies.keys() if alone else ():
                self._let_go(group)
            yield
        finally:
            self.on = self._alone = False
            for layer in found:
                del layer.forward
            self._restore()

    def product(self, *layers: Any) -> Packed:
        """x [rows, columns] -> what the layers make of it, side by side."""
        self._products.add(layers)
        return self._copy(*layers)

    def _forward(self, layer: Any, x: torch.Tensor) -> torch.Tensor:
        return self._copy(layer)(x)

    def _copy(self, *group: Any) -> Packed:
        """The packed copy of layers, one under the other."""
        if group not in self._copies:
            with torch.no_grad():
                weights = [self.weight(layer) for layer in group]
                weight = torch.cat(weights) if len(group) > 1 else weights[0].detach()
                bias = None if group[0].bias is None else torch.cat([m.bias for m in group])
                kind = Tiled if self.tiled and kernels.fits(weight) else _Reordered
                self._copies[group] = kind(weight, bias)
            for layer in group:
                if layer not in self._absent:
                    unneeded(layer.weight)
        if self._alone and group in self._products:
            self._let_go(group)
        return self._copies[group]

    def _let_go(self, group: tuple[Any, ...]) -> None:
        """Let the memory of weights go that have a copy. Those that a file backs leave memory by themselves."""
        for layer in group:
            if layer not in self._absent and layer.weight.untyped_storage().resizable() \
                    and self._uses[id(layer.weight)] == 1 and dropped(layer.weight):
                self._absent[layer] = group

    def weight(self, layer: Any) -> torch.Tensor:
        """A layer's weight, from the copy where that is all there is."""
        if layer not in self._absent:
            weight: torch.Tensor = layer.weight
            return weight
        group = self._absent[layer]
        rows = [m.out_features for m in group]
        part: torch.Tensor = self._copies[group].dense().split(rows)[group.index(layer)]
        return part

    def _restore(self) -> None:
        """Make the weights again that were let go, in the place of their copies: at no time are there many of both."""
        if self._absent:
            trim()
        with torch.inference_mode(False), torch.no_grad():
            for n, group in enumerate(dict.fromkeys(self._absent.values())):
                weights = self._copies.pop(group).dense().split([m.out_features for m in group])
                for layer, weight in zip(group, weights, strict=True):
                    if self._absent.get(layer) == group:
                        layer.weight.data.copy_(weight)
                        del self._absent[layer]
                if n % 16 == 15:
                    trim()
