"""Keeps a base model in memory, so that several adapters of one base load it only once.

    bases = BaseModelCache()
    for adapter in adapters:
        model = bases.load(source, "bfloat16", "cuda", adapter)

Removing an adapter does not always restore the base. PEFT leaves trained biases (``bias="all"``) and resized embeddings
in it, takes the principal part out of its weights (PiSSA, OLoRA), and may keep copies of its modules
(``modules_to_save``). So the state of the base is compared with its state before the first adapter, and a base that has
changed is loaded again.

The next adapter often differs from the last one only in its values (checkpoints of one training, one fine-tune at
several strengths). Then the values are copied into the adapter that is on the base.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from aftertune.sources import loading
from aftertune.sources.adapter_loading import adapter_slots, add_adapter, remove_adapter, replace_values
from aftertune.sources.library_errors import memory_errors, quiet
from aftertune.sources.resolve import AdapterSource, ModelSource


class BaseModelCache:
    """The last base model, and the adapter that is on it now."""

    def __init__(self) -> None:
        self._key: tuple[Any, ...] | None = None
        self._base: Any = None
        self._adapted: Any = None
        self._slots: tuple[Any, ...] | None = None  # of the adapter, None where its values cannot be replaced
        self._state = ""  # of the base before its first adapter, "" until then

    def load(self, source: ModelSource, dtype: str, device: str, adapter: AdapterSource | None = None, *,
             tokenizer: Any = None) -> Any:
        """As `load_model`; the returned model is valid until the next call."""
        key = (source, dtype, device)
        slots = None if adapter is None else adapter_slots(adapter)
        if adapter is not None and key == self._key and self._adapted is not None and slots and slots == self._slots:
            with quiet(), memory_errors(source, device):
                replace_values(self._adapted, adapter)
            return self._adapted
        if key != self._key or not self._restored():
            self._forget()  # frees the memory of the previous base before the next one is loaded
            self._base = loading.load_model(source, dtype, device, tokenizer=tokenizer)
            self._key = key
        if adapter is None:
            return self._base
        self._state = self._state or model_state(self._base)
        base, self._base = self._base, None  # an adapter that fails may leave a part of itself in the base
        with quiet(), memory_errors(source, device):
            self._adapted = add_adapter(base, adapter, device=device)
        self._slots = slots
        return self._adapted

    def _restored(self) -> bool:
        """Remove the adapter, if there is one. False if there is no base, or not the same one as before."""
        self._slots = None
        if self._adapted is not None:
            with quiet():
                adapted, self._adapted = self._adapted, None
                self._base = remove_adapter(adapted)
            if model_state(self._base) != self._state:
                return False
        return self._base is not None

    def _forget(self) -> None:
        self._key = self._base = self._adapted = self._slots = None
        self._state = ""


def model_state(model: Any) -> str:
    """SHA-256 over everything in a model that its forward pass uses: modules, hooks, parameters and buffers."""
    sha = hashlib.sha256()
    for part in (*_modules(model), *_tensors(model)):
        sha.update(repr(part).encode())
    return sha.hexdigest()


def _modules(model: Any) -> Iterator[tuple[Any, ...]]:
    """The name, class, hooks and replaced ``forward`` of every module, and the config of the model."""
    yield (sorted(model.config.to_dict().items(), key=lambda pair: pair[0]),)
    for name, module in model.named_modules(remove_duplicate=False):
        hooks = len(module._forward_hooks), len(module._forward_pre_hooks)
        yield name, type(module).__qualname__, hooks, "forward" in vars(module), module.training


def _tensors(model: Any) -> Iterator[tuple[Any, ...]]:
    """The name, dtype, shape and SHA-256 of the bytes of every parameter and buffer; shared ones are hashed once."""
    import torch

    seen: dict[int, str] = {}
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, tensor in tensors:
        if id(tensor) not in seen:
            values = tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8)
            seen[id(tensor)] = hashlib.sha256(values.numpy()).hexdigest()
        yield name, str(tensor.dtype), tuple(tensor.shape), seen[id(tensor)]
