"""Computes what each weight of a base becomes when an adapter is merged into it, one layer at a time.

    layers = MergedLayers(base, adapter, "bfloat16")
    for weight in layers.weights():
        weight.name, weight.role, weight.base, weight.merged          arrays in float32

PEFT's own layers merge, so every method that PEFT can merge is covered by its own formula. Each layer is computed in
float32 from the base as it is stored, and put back. Memory: the base in its stored dtype, and a few copies of its
largest layer in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from aftertune.errors import SourceError
from aftertune.sources.library_errors import load_errors, quiet
from aftertune.sources.loading import load_model
from aftertune.sources.resolve import AdapterSource, ModelSource

#: adapted: a layer of the adapter changes it. saved: the adapter has all of it (``modules_to_save``). base: unchanged.
MergeRole = Literal["adapted", "saved", "base"]


@dataclass(frozen=True, slots=True)
class MergedWeight:
    """A weight before and after a merge, as float32 arrays. name: of the parameter in the model without an adapter."""

    name: str
    role: MergeRole
    base: Any
    merged: Any


class MergedLayers:
    """A base with an adapter on it. dtype: in which the base is loaded; it should be that of its files.

    Raises SourceError if PEFT cannot put the adapter on the base, or if it has no layers that can be merged.
    """

    def __init__(self, base: ModelSource, adapter: AdapterSource, dtype: str) -> None:
        from peft.tuners.tuners_utils import BaseTunerLayer

        self.adapter = adapter
        self.model = load_model(base, dtype, "cpu", adapter)
        inner = self.model.get_base_model()
        self._layers = {n: m for n, m in inner.named_modules() if isinstance(m, BaseTunerLayer)}
        self._saved = {n: m for n, m in inner.named_modules() if hasattr(m, "modules_to_save")
                       and hasattr(m, "original_module")}
        if not self._layers and not self._saved:
            raise SourceError(f"{adapter.source}: an adapter of type {adapter.peft_type} has no layers that could be "
                              "merged into a base")

    @property
    def tied(self) -> bool:
        """Whether the base's output head is its embeddings."""
        return bool(getattr(self.model.get_base_model().config, "tie_word_embeddings", False))

    def weights(self) -> Iterator[MergedWeight]:
        """Each weight of the model without an adapter; a tied one under each of its names."""
        inside = (*self._layers, *self._saved)
        for name, parameter in self.model.get_base_model().named_parameters(remove_duplicate=False):
            if not name.startswith(tuple(f"{n}." for n in inside)):
                values = to_array(parameter)
                yield MergedWeight(name, "base", values, values)
        for name, wrapper in self._saved.items():
            adapter = self.model.active_adapter
            new = dict(wrapper.modules_to_save[adapter].named_parameters()) if adapter in wrapper.modules_to_save \
                else {}
            for parameter, old in wrapper.original_module.named_parameters():
                yield MergedWeight(f"{name}.{parameter}", "saved", to_array(old), to_array(new.get(parameter, old)))
        seen: set[str] = set()
        for name, layer in self._layers.items():
            for weight in self.merge(name):
                seen.add(weight.name)
                yield weight
            for parameter, values in layer.get_base_layer().named_parameters(recurse=False):
                whole = f"{_plain(name)}.{parameter}"
                if whole not in seen and whole not in self._wrapped():
                    seen.add(whole)
                    yield MergedWeight(whole, "base", to_array(values), to_array(values))

    def _wrapped(self) -> set[str]:
        """The parameters that are adapted on their own, such as fused expert weights: one layer for each."""
        return {f"{_plain(n)}.{m.parameter_name}" for n, m in self._layers.items() if hasattr(m, "parameter_name")}

    def merge(self, name: str, *, plain: bool = False) -> list[MergedWeight]:
        """The weights of one adapted layer. plain: as LoRA alone, without DoRA's magnitudes or another variant."""
        import torch

        layer = self._layers[name]
        base = layer.get_base_layer()
        only = getattr(layer, "parameter_name", None)
        stored = {n: p.data for n, p in base.named_parameters(recurse=False) if only in (None, n)}
        variants = dict(getattr(layer, "lora_variant", {}))
        try:
            for parameter, values in stored.items():
                getattr(base, parameter).data = values.detach().clone().float()
            if plain:
                layer.lora_variant.clear()
            with torch.no_grad(), quiet(), load_errors(self.adapter, f"its layer {name} for merging",
                                                       "use the adapter unmerged"):
                layer.merge(safe_merge=False)
            role: MergeRole = "adapted"
            return [MergedWeight(f"{_plain(name)}.{n}", role, to_array(old), to_array(getattr(base, n)))
                    for n, old in stored.items()]
        finally:
            layer.merged_adapters.clear()
            if plain:
                layer.lora_variant.update(variants)
            for parameter, values in stored.items():
                getattr(base, parameter).data = values

    def plain_merge(self, weight: str) -> Any:
        """The weight ``weight`` of an adapted layer merged as LoRA alone; None for a layer without a variant."""
        name = next((n for n in self._layers if weight.startswith(f"{_plain(n)}.")), None)
        if name is None or not getattr(self._layers[name], "lora_variant", {}):
            return None
        return next((w.merged for w in self.merge(name, plain=True) if w.name == weight), None)


def to_array(tensor: Any) -> Any:
    """A copy of a tensor as a float32 array."""
    return tensor.detach().float().cpu().numpy().copy()


def _plain(name: str) -> str:
    """The name of an adapted module in the model without an adapter."""
    return name.removesuffix(".token_adapter").replace(".base_layer", "")
