"""Owns merging an adapter into its base: whole weights that plain transformers loads.

    merge(base, adapter, Path("out/careful/merged"), dtype="bfloat16")     fingerprint of what was written

The base is the one in 16 bit (as it is stored), also where the adapter was trained on four bits: merging into
dequantised weights would keep the error of quantisation for good. A layer is summed in float32 and rounded once, and
what no adapter touches stays as it was, bit by bit.
"""

from __future__ import annotations

import shutil
from collections import Counter
from math import prod
from pathlib import Path
from typing import Any

from aftertune.errors import InputError, StorageError
from aftertune.sources import AdapterSource, ModelSource, fingerprint_model, load_model, load_tokenizer, resolve_model
from aftertune.sources.cache import beside, usual_modes
from aftertune.sources.folders import read_json
from aftertune.sources.loading import quiet
from aftertune.sources.tensors import read_header, weight_files

FOLDER = "merged"
_STORED = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def merge(base: ModelSource, adapter: AdapterSource, out: Path, *, dtype: str) -> str:
    """Write ``base`` with ``adapter`` merged into the folder ``out``, whole or not at all; returns its fingerprint.

    dtype: of the weights where the base's files do not say it (a GGUF). Raises InputError where the merge would be
    another model (a quantised base, tied embeddings), StorageError where it cannot be written.
    """
    tokenizer = load_tokenizer(base)
    model = load_model(base, stored_dtype(base) or dtype, "cpu", adapter, tokenizer=tokenizer)
    with quiet():
        merged = _summed(model, adapter)
        fresh = beside(out)
        try:
            merged.save_pretrained(fresh)
            tokenizer.save_pretrained(fresh)
            usual_modes(fresh)
            shutil.rmtree(out, ignore_errors=True)
            fresh.rename(out)
        except OSError as error:
            raise StorageError(f"{out}: the merged model could not be written ({error.strerror or error}); free some "
                               "space and give the same command again") from error
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return fingerprint_model(resolve_model(str(out))).fingerprint


def stored_dtype(base: ModelSource) -> str | None:
    """The dtype of most numbers in a base's safetensors, None for a GGUF.

    Raises InputError for a base that is stored quantised.
    """
    if base.gguf_file is not None:
        return None
    if read_json(base.path / "config.json").get("quantization_config"):
        raise InputError(f"{base.named} is stored quantised, and a sum with rounded weights would be another model; "
                         "merge into its 16-bit base, or use the adapter unmerged")
    numbers: Counter[str] = Counter()
    for path in weight_files(base.path):
        for tensor in read_header(path):
            numbers[tensor.dtype] += prod(tensor.shape)
    return _STORED.get(numbers.most_common(1)[0][0])


def _summed(model: Any, adapter: AdapterSource) -> Any:
    """The transformers model under a PEFT model, with the adapter in its weights."""
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = {name: m for name, m in model.named_modules() if isinstance(m, BaseTunerLayer)}
    if not layers:
        raise InputError(f"{adapter.source}: an adapter of type {adapter.peft_type} has no weights to add to those of "
                         "the base; use it unmerged")
    _refuse_tied(model, layers, adapter)
    with torch.no_grad():
        for layer in layers.values():
            base = layer.get_base_layer()
            dtype = base.weight.dtype
            base.float()
            layer.merge(safe_merge=True)
            base.to(dtype)
    return model.unload()


def _refuse_tied(model: Any, layers: dict[str, Any], adapter: AdapterSource) -> None:
    """Raises InputError where the sum would also change a weight that the adapter leaves alone."""
    rows, head = model.get_input_embeddings(), model.get_output_embeddings()
    ends = [getattr(end, "base_layer", end) for end in (rows, head) if end is not None]
    if len({id(end.weight) for end in ends}) == len(ends):
        return
    for name, layer in layers.items():
        if layer.get_base_layer() in ends:
            raise InputError(f"{adapter.source}: adapts {name.removeprefix('base_model.model.')}, whose weight is "
                             "embedding and output head in one; merged it would change both; use the adapter unmerged")
