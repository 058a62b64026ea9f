"""Linear layers on a CPU that compute from packed copies of their weights.

    linears = PackedLinears(model)
    with linears.packed():                      every nn.Linear of the model computes from its packed copy
        model(…)
    linears.product(layer_a, layer_b)(x)        the outputs of both, side by side, in one product

torch passes the plain layout to its matrix products, which pack it again in every call: cheap for a thousand rows, half
of the time for a few. Packed once, products of every size are faster (docs/log.md has the figures), at the cost of a
copy of the weights. Operators that follow a product (an activation, a sum) can run while its numbers are in the cache.

Two forms: oneDNN's, by torch's own operators for compiled graphs (``torch.ops.mkldnn``), and on processors with AMX
tiles of the compiled kernels, as fast for a thousand rows and up to twice as fast for a few. `worth_packing` says no
where memory is short, and `packs_dtype` where torch or the processor cannot; then the layers stay as they are.
"""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch

from aftertune.engine.cpu import ops
from aftertune.engine.memory import discard_pages, page_out, trim_heap

#: Number of rows that oneDNN chooses the layout for; it works for any number.
ROWS = 64
#: A function of tensors that returns a tensor.
Function = Callable[..., torch.Tensor]


@functools.cache
def packs_dtype(dtype: torch.dtype) -> bool:
    """Whether weights of this dtype can be packed on this machine: torch has the operators, and the processor what
    oneDNN needs for the dtype (for bfloat16 AVX512 or AVX-NE-CONVERT)."""
    if dtype not in ops.DTYPES or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    try:
        torch.ops.mkldnn._reorder_linear_weight(torch.zeros(ROWS, ROWS, dtype=dtype), ROWS)
    except (AttributeError, RuntimeError):
        return False
    return True


def is_packable(module: Any) -> bool:
    """True for a layer that can be packed: a plain nn.Linear on a CPU, also inside a PEFT layer."""
    return type(module) is torch.nn.Linear and module.weight.device.type == "cpu" \
        and min(module.weight.shape) >= ROWS and packs_dtype(module.weight.dtype) \
        and (module.bias is None or module.bias.dtype == module.weight.dtype)


def packable_layers(model: Any) -> list[Any]:
    """The layers of a model that can be packed."""
    return [m for m in model.modules() if is_packable(m)]


def worth_packing(model: Any, free: int) -> bool:
    """True where there are layers to pack, and the copies need at most a third of the ``free`` bytes."""
    layers = packable_layers(model)
    size = sum(m.weight.numel() * m.weight.itemsize for m in layers)
    return bool(layers) and 3 * size <= free


class OneDnnWeight:
    """A weight packed by oneDNN, with its bias: x [..., columns] -> [..., rows]."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.weight: Any = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
        self.bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise.default(x, self.weight, self.bias, "none", [], "")
        return out

    def dense(self) -> torch.Tensor:
        weight: torch.Tensor = self.weight.to_dense()
        return weight


class TiledWeight:
    """A weight in tiles of the compiled kernels, with its bias: x [..., columns] -> [..., rows]."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.weight, self.bias = ops.tile_weight(weight), bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return ops.linear(x, self.weight, self.bias)

    def dense(self) -> torch.Tensor:
        return ops.untile_weight(self.weight)


#: A packed copy of a weight, with its bias.
PackedWeight = OneDnnWeight | TiledWeight


class PackedLinears:
    """The packed copies of one model's linear layers, each made at its first use. amx: in tiles of the compiled
    kernels where they fit."""

    def __init__(self, model: Any, *, amx: bool = False) -> None:
        self.model = model
        self.amx = amx
        self.on = False
        self._uses = Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))
        self._copies: dict[tuple[Any, ...], PackedWeight] = {}
        self._free_weights = False
        #: Groups of layers whose weights only a product needs.
        self._products: set[tuple[Any, ...]] = set()
        #: Layers whose weights exist only in a copy, and the group that the copy is of.
        self._absent: dict[Any, tuple[Any, ...]] = {}

    @contextlib.contextmanager
    def packed(self, *, free_weights: bool = False) -> Iterator[None]:
        """While active, the model computes from the packed copies. free_weights: weights of products exist only in
        the copies meanwhile; on leaving, they are restored from them."""
        layers = packable_layers(self.model)
        for layer in layers:
            layer.forward = functools.partial(self._forward, layer)
        self.on, self._free_weights = True, free_weights
        try:
            for group in self._products & self._copies.keys() if free_weights else ():
                self._free(group)
            yield
        finally:
            self.on = self._free_weights = False
            for layer in layers:
                del layer.forward
            self._restore()

    def product(self, *layers: Any) -> PackedWeight:
        """x [rows, columns] -> the outputs of the layers, side by side."""
        self._products.add(layers)
        return self._copy(*layers)

    def _forward(self, layer: Any, x: torch.Tensor) -> torch.Tensor:
        return self._copy(layer)(x)

    def _copy(self, *group: Any) -> PackedWeight:
        """The packed copy of layers, stacked by rows."""
        if group not in self._copies:
            with torch.no_grad():
                weights = [self.weight(layer) for layer in group]
                weight = torch.cat(weights) if len(group) > 1 else weights[0].detach()
                bias = None if group[0].bias is None else torch.cat([m.bias for m in group])
                kind = TiledWeight if self.amx and ops.takes_weight(weight) else OneDnnWeight
                self._copies[group] = kind(weight, bias)
            for layer in group:
                if layer not in self._absent:
                    page_out(layer.weight)
        if self._free_weights and group in self._products:
            self._free(group)
        return self._copies[group]

    def _free(self, group: tuple[Any, ...]) -> None:
        """Free the memory of weights that have a copy. Weights that a file backs leave memory by themselves."""
        for layer in group:
            if layer not in self._absent and layer.weight.untyped_storage().resizable() \
                    and self._uses[id(layer.weight)] == 1 and discard_pages(layer.weight):
                self._absent[layer] = group

    def weight(self, layer: Any) -> torch.Tensor:
        """A layer's weight; from the copy where it exists only there."""
        if layer not in self._absent:
            weight: torch.Tensor = layer.weight
            return weight
        group = self._absent[layer]
        rows = [m.out_features for m in group]
        part: torch.Tensor = self._copies[group].dense().split(rows)[group.index(layer)]
        return part

    def _restore(self) -> None:
        """Restore the weights that were freed and drop their copies, group by group, so that few exist twice."""
        if self._absent:
            trim_heap()
        with torch.inference_mode(False), torch.no_grad():
            for n, group in enumerate(dict.fromkeys(self._absent.values())):
                weights = self._copies.pop(group).dense().split([m.out_features for m in group])
                for layer, weight in zip(group, weights, strict=True):
                    if self._absent.get(layer) == group:
                        layer.weight.data.copy_(weight)
                        del self._absent[layer]
                if n % 16 == 15:
                    trim_heap()
