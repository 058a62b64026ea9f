"""Identifies a model in memory by its content, as its files would be identified if it were saved now.

    base = live_base(model, tokenizer)         its identity, and the stored model that it is, if there is one
    live_identity(model, base, "out/checkpoint-50").fingerprint
                                               that of `fingerprint_model` after ``model.save_pretrained("out/…")``

A base that was loaded from files which are on this machine has the identity of these files if every tensor in memory
equals the stored one in the dtype of the model, no layer is gone, and the config in memory is the stored one. Another
one (in 4 bits, changed, or with files that are gone) is identified by the tensors in memory. An adapter is identified
by what PEFT would save, and by what the saved file would not show: a scale that was set in memory, layers that are
merged or switched off, and several adapters that are active at once.

What is not among the tensors cannot be seen, such as a forward function that was replaced. Hooks are named
(`foreign_hooks`), because they can change what the model computes.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aftertune.errors import AftertuneError, InputError
from aftertune.sources.fingerprint import (
    PLAIN_INITS,
    fingerprint_adapter,
    fingerprint_model,
    fingerprint_tokenizer,
    function_fields,
)
from aftertune.sources.hub import offline_only
from aftertune.sources.library_errors import quiet
from aftertune.sources.loading import load_tokenizer
from aftertune.sources.resolve import ModelSource, resolve_model
from aftertune.sources.tensors import StoredTensor, count_parameters, digest_tensors, weight_files
from aftertune.sources.tokenizers import differences
from aftertune.values import ModelIdentity, digest, json_ready


@dataclass(frozen=True, slots=True)
class LiveBase:
    """The base of a model in memory. source: its files, None where it is identified by the tensors in memory.

    tokenizer: for evaluations; a copy that no training changes.
    """

    identity: ModelIdentity
    tokenizer: Any
    source: ModelSource | None = None


def is_peft(model: Any) -> bool:
    """Whether ``model`` is a PEFT model, which is a base with an adapter."""
    from peft import PeftModel

    return isinstance(model, PeftModel)


def dtype_name(model: Any) -> str:
    """The dtype of the base's weights: "float32", "bfloat16" or "float16"."""
    return str((model.get_base_model() if is_peft(model) else model).dtype).removeprefix("torch.")


def live_base(model: Any, tokenizer: Any) -> LiveBase:
    """The base of a model in memory: the model itself, or that of a PEFT model, without its adapter.

    It is called before the first step, or for a PEFT model at any time.
    """
    inner = model.get_base_model() if is_peft(model) else model
    tensors = saved_tensors(inner)
    source = _source_of(inner, tensors)
    if source is not None:
        identity = fingerprint_model(source)
        stored = load_tokenizer(source)
        if not list(differences(stored, tokenizer)):
            return LiveBase(identity, stored, source)
        return LiveBase(replace(identity, tokenizer=_tokenizer_digest(tokenizer)), copy.deepcopy(tokenizer), source)
    name = str(getattr(inner, "name_or_path", "") or type(inner).__name__)
    return LiveBase(_whole_identity(inner, tensors, name, _tokenizer_digest(tokenizer)), copy.deepcopy(tokenizer))


def live_identity(model: Any, base: LiveBase, name: str, *, several: bool = False) -> ModelIdentity:
    """The identity of a model that was made from ``base``. name: the folder in which it would be saved.

    several: also identify a model of which several adapters are active at once. Raises InputError for one of which none
    is, and without ``several`` for more than one.
    """
    if not is_peft(model):
        return _whole_identity(model, saved_tensors(model), name, base.identity.tokenizer)
    active = list(model.active_adapters)
    if len(active) != 1 and not (several and active):
        raise InputError(f"{len(active)} adapters of the model are active ({', '.join(active)}), but a checkpoint is "
                         "read with one; activate one with model.set_adapter(NAME)")
    with tempfile.TemporaryDirectory() as folder, quiet():
        model.save_pretrained(folder, selected_adapters=active)
        saved = [fingerprint_adapter(Path(folder) / ("" if n == "default" else n)) for n in active]
    adapter = saved[0] if len(saved) == 1 else digest(["active at once", saved])
    if state := adapter_state(model):
        adapter = digest([adapter, state])
    identity = replace(base.identity, adapter=adapter, adapter_source=name)
    if (kept := _kept_dtype(model)) is not None:  # read from files, an adapter on such a base is in float32
        identity = replace(identity, adapter=digest([adapter, {"computed in": kept}]))
    if _trains_the_base(model):
        weights = digest_tensors(_stored(saved_tensors(model.get_base_model())))
        identity = replace(identity, weights=weights)
    return identity


def adapters_off(model: Any) -> bool:
    """Whether a PEFT model computes what its base does, because every layer of its adapters is switched off."""
    layers = list(_adapter_layers(model))
    return bool(layers) and all(layer.disable_adapters or not layer.active_adapters for _, layer in layers)


def adapter_state(model: Any) -> dict[str, Any]:
    """What of the active adapters no saved file shows, by layer; {} for a model as PEFT would load it.

    scale: of a layer whose scale is not that of the adapter's config. merged: the adapters that are merged into its
    weights. off: it is switched off. active: its adapters where they are not those of the model.
    """
    names, configs = list(model.active_adapters), model.peft_config
    state: dict[str, Any] = {}
    for path, layer in _adapter_layers(model):
        scales = getattr(layer, "scaling", None) or {}
        changed = {n: float(scales[n]) for n in names if n in scales
                   and not _is_scale_of(float(scales[n]), configs[n], path)}
        here = {"scale": changed, "merged": list(layer.merged_adapters), "off": bool(layer.disable_adapters),
                "active": [] if list(layer.active_adapters) == names else list(layer.active_adapters)}
        if any(here.values()):
            state[path] = {k: v for k, v in here.items() if v}
    return state


def _adapter_layers(model: Any) -> Iterator[tuple[str, Any]]:
    """Each layer that has adapters, by its path."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return ((path, module) for path, module in model.named_modules() if isinstance(module, BaseTunerLayer))


def _is_scale_of(scale: float, config: Any, path: str) -> bool:
    """Whether a layer has the scale that PEFT gives it by the adapter's config: alpha / r, or alpha / sqrt(r)."""
    from peft.utils.other import get_pattern_key

    alpha, rank = (getattr(config, n, None) for n in ("lora_alpha" if hasattr(config, "lora_alpha") else "alpha", "r"))
    if alpha is None or not rank:
        return True  # the scale is no setting of this kind of adapter
    ranks, alphas = (getattr(config, n, None) or {} for n in ("rank_pattern", "alpha_pattern"))
    rank = ranks.get(get_pattern_key(ranks.keys(), path), rank)
    alpha = alphas.get(get_pattern_key(alphas.keys(), path), alpha)
    expected = [alpha / math.sqrt(rank)] if getattr(config, "use_rslora", False) else [alpha / rank]
    if str(getattr(config.peft_type, "value", config.peft_type)) == "ADALORA":
        expected = [float(alpha), float(rank)]
    return any(math.isclose(scale, e, rel_tol=1e-6) for e in expected)


def foreign_hooks(model: Any) -> list[str]:
    """The hooks on the forward pass of a model, as "layer: function". Left out: those of gradient checkpointing and of
    accelerate's placement, which change no number."""
    kinds = ("_forward_hooks", "_forward_pre_hooks")
    return sorted(f"{path or 'model'}: {getattr(hook, '__qualname__', type(hook).__name__)}"
                  for path, module in model.named_modules() for kind in kinds for hook in getattr(module, kind).values()
                  if "make_inputs_require_grad" not in getattr(hook, "__qualname__", ""))


def cast_buffers(model: Any) -> dict[str, str]:
    """Name -> digest of the buffers that no file holds and whose dtype is not that of a loaded model.

    ``model.half()`` also rounds the frequencies of the positions, which a model loaded in float16 has in float32.
    """
    import torch

    inner = model.get_base_model() if is_peft(model) else model
    as_built = _built(inner)
    kinds = {} if as_built is None else {name: b.dtype for name, b in as_built.named_buffers()}
    stored = _base_state(inner).keys()
    return {name: hashlib.sha256(b.detach().to("cpu", torch.float64).numpy().tobytes()).hexdigest()
            for name, b in inner.named_buffers()
            if name not in stored and b.is_floating_point() and kinds.get(name, b.dtype) != b.dtype}


def _built(model: Any) -> Any:
    """The same class, made from the config of a model, without values; None where its code cannot make it."""
    import torch

    try:
        with torch.device("meta"), quiet():
            return type(model)._from_config(copy.deepcopy(model.config), dtype=model.dtype)
    except Exception:  # a model with code of its own: its tensors decide
        return None


def _is_complete(model: Any) -> bool:
    """Whether a model has the tensors that its config says: no layer is gone."""
    as_built = _built(model)
    return as_built is None or _base_state(as_built).keys() == _base_state(model).keys()


def _whole_identity(model: Any, tensors: dict[str, Any], name: str, tokenizer: str) -> ModelIdentity:
    """The identity of a model whose weights would be saved whole."""
    stored = list(_stored(tensors))
    config = json.loads(model.config.to_json_string())
    config["architectures"] = [type(model).__name__]  # save_pretrained sets it
    packed = getattr(model, "hf_quantizer", None) is not None
    return ModelIdentity(
        source=name, weights=digest_tensors(stored), config=digest(json_ready(function_fields(config))),
        tokenizer=tokenizer, architecture=type(model).__name__,
        parameters=None if packed else count_parameters(stored))


def restores_the_base(model: Any) -> bool:
    """Whether a PEFT model without its adapter is its base: no part of the base is trained, and the adapter's start has
    not changed it (PiSSA and OLoRA take a part out of it)."""
    config = model.peft_config[model.active_adapters[0]]
    plain = getattr(config, "init_lora_weights", True) in PLAIN_INITS
    return plain and getattr(config, "bias", "none") == "none" and not _trains_the_base(model)


# --- Tensors as they would be saved ---


def saved_tensors(model: Any) -> dict[str, Any]:
    """Name -> tensor of a transformers model as ``save_pretrained`` writes it: tied weights once, under the names of
    the files. The layers that PEFT put into it are left out."""
    from transformers.core_model_loading import revert_weight_conversion
    from transformers.modeling_utils import remove_tied_weights_from_state_dict

    state: dict[str, Any] = _base_state(model)
    for name in getattr(model, "_keys_to_ignore_on_save", None) or ():
        state.pop(name, None)
    with quiet():
        state = remove_tied_weights_from_state_dict(state, model)
        if getattr(model, "hf_quantizer", None) is None:
            state = revert_weight_conversion(model, state)
    return dict(state)


def _base_state(model: Any) -> dict[str, Any]:
    """The state of a model without what PEFT added: ``q_proj.base_layer.weight`` is ``q_proj.weight``."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    inner = {BaseTunerLayer: "base_layer", AuxiliaryTrainingWrapper: "original_module"}
    wrapped = {name: kept for name, module in model.named_modules()
               for kind, kept in inner.items() if isinstance(module, kind)}
    state = {}
    for name, tensor in model.state_dict().items():
        parts, path, keep = [], "", True
        for part in name.split("."):
            kept = wrapped.get(path)
            if kept is None:
                parts.append(part)
            elif part != kept:
                keep = False
                break
            path = f"{path}.{part}" if path else part
        if keep:
            state[".".join(parts)] = tensor
    return state


def _stored(tensors: dict[str, Any]) -> Iterator[StoredTensor]:
    """Each tensor as a safetensors file holds it, one after another, so that few are copied at once."""
    import torch
    from safetensors.torch import save

    for name, tensor in tensors.items():
        if not torch.is_tensor(tensor):
            continue
        written = save({name: tensor.detach().cpu().contiguous()})
        start = 8 + int.from_bytes(written[:8], "little")
        entry = json.loads(written[8:start])[name]
        yield StoredTensor(name, entry["dtype"], tuple(entry["shape"]),
                           hashlib.sha256(memoryview(written)[start:]).hexdigest())


def _source_of(model: Any, tensors: dict[str, Any]) -> ModelSource | None:
    """The files on this machine that hold exactly these tensors; None if there are none."""
    name = str(getattr(model, "name_or_path", "") or "")
    if not name or getattr(model, "hf_quantizer", None) is not None:
        return None
    try:
        with offline_only():
            source = resolve_model(name, revision=getattr(model.config, "_commit_hash", None))
    except AftertuneError:
        return None
    same = source.gguf_file is None and _same_config(model, source) and _holds(source, tensors) \
        and _is_complete(model)
    return source if same else None


def _same_config(model: Any, source: ModelSource) -> bool:
    """Whether a config in memory has the values of the stored one, in the fields that change the forward pass."""
    from transformers import AutoConfig

    try:
        with offline_only(), quiet():
            stored = AutoConfig.from_pretrained(source.path, trust_remote_code=False)
    except Exception:  # a model with code of its own: its tensors decide
        return True
    if type(stored) is not type(model.config):
        return False
    left, right = (json_ready(function_fields(json.loads(c.to_json_string(use_diff=False))))
                   for c in (stored, model.config))
    return {k: v for k, v in left.items() if k != "architectures"} == {k: v for k, v in right.items()
                                                                      if k != "architectures"}


def _holds(source: ModelSource, tensors: dict[str, Any]) -> bool:
    """Whether the files of a model hold each of the tensors, after rounding to the one dtype that they all have."""
    import torch
    from safetensors import safe_open

    missing = dict(tensors)
    if len({tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}) > 1:
        return False
    for path in weight_files(source.path):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                tensor = missing.pop(name, None)
                if tensor is None:
                    continue
                stored = file.get_tensor(name)
                if stored.shape != tensor.shape or not torch.equal(stored.to(tensor.dtype), tensor.detach().cpu()):
                    return False
    return not missing


def _kept_dtype(model: Any) -> str | None:
    """The dtype of an adapter's trained tensors where it is not float32; None for float32."""
    kinds = {str(p.dtype) for p in model.parameters() if p.requires_grad and p.is_floating_point()}
    return ", ".join(sorted(kinds)) if kinds - {"torch.float32"} else None


def _trains_the_base(model: Any) -> bool:
    """Whether parameters are trained that the adapter's file does not hold."""
    from peft import get_peft_model_state_dict

    with quiet():
        own = {tensor.data_ptr() for name in model.active_adapters for tensor in
               get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False).values()}
    return any(p.requires_grad and p.data_ptr() not in own for p in model.parameters())


def _tokenizer_digest(tokenizer: Any) -> str:
    """The fingerprint of the tokenizer's files, if it were saved now."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return fingerprint_tokenizer(Path(folder))
