"""Chooses the layers of a model that an adapter is put on, and checks those that the user names.

    linear_layers(model)                        ["down_proj", "gate_proj", …]: the names that target_modules may use
    config = with_targets(config, model)        PEFT's config, with the layers that PEFT can adapt in this family
    target_notes(peft_model)                    what is not adapted, or adapted in another way than linear layers

The default is all linear layers except the output head. Of these it leaves out layers whose weight the model reads
without calling the layer, as the kernels of state-space layers do: an adapter on them has no effect. PEFT adapts the
fused expert weights of some mixtures of experts, and their router, as parameters. It cannot do so with DoRA, PiSSA or
dropout; then the default leaves them out.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Collection, Mapping
from typing import Any

from aftertune.errors import InputError, nearest

#: PEFT's name for all linear layers except the output head.
ALL_LINEAR = "all-linear"
#: Attribute of every state-space layer: the logarithm of its transition matrix.
_STATE_SPACE = "A_log"
#: IA3 in families that PEFT's table does not have: keys, values and the second feed-forward layer.
_IA3_NAMES = ("k_proj", "v_proj", "down_proj", "fc2", "w2", "dense_4h_to_h")


# --- Layers of a model ---


def _is_linear(module: Any) -> bool:
    import torch
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, torch.nn.Linear | Conv1D)


def _linear_modules(model: Any) -> dict[str, Any]:
    """Dotted name -> linear layer, without the output head and without layers whose weight is read directly."""
    head, read = model.get_output_embeddings(), read_directly(model)
    return {name: module for name, module in model.named_modules()
            if _is_linear(module) and module is not head and name not in read}


def linear_layers(model: Any) -> list[str]:
    """Last names of the linear layers that an adapter can be put on: the names that ``target_modules`` may use."""
    return sorted({name.rpartition(".")[2] for name in _linear_modules(model)})


def read_directly(model: Any) -> dict[str, str]:
    """Dotted name of each linear layer whose weight a state-space layer reads without calling it -> that layer's class.

    They are found in the source of the class, because which path it takes depends on the device and its kernels.
    """
    parents = {name: module for name, module in model.named_modules() if hasattr(module, _STATE_SPACE)}
    weights = {kind: _weights_read(kind) for kind in {type(parent) for parent in parents.values()}}
    return {f"{name}.{child}" if name else child: type(parent).__name__ for name, parent in parents.items()
            for child, module in parent.named_children() if _is_linear(module) and child in weights[type(parent)]}


def _weights_read(kind: type) -> frozenset[str]:
    """The names in ``self.NAME.weight`` in the methods of a class that compute its output."""
    names: set[str] = set()
    for method, function in inspect.getmembers(kind, inspect.isfunction):
        if "init" not in method:
            try:
                names |= set(re.findall(r"self\.(\w+)\.weight\b(?!\.)", inspect.getsource(function)))
            except (OSError, TypeError):
                continue
    return frozenset(names)


def _expert_parameters(model: Any) -> list[str]:
    """Ends of the names of weights that hold all experts of a layer in one tensor: ["experts.down_proj", …]."""
    return sorted({".".join(name.replace(".base_layer", "").split(".")[-2:])
                   for name, weight in model.named_parameters() if weight.ndim == 3 and "experts" in name.split(".")})


# --- Targets ---


def default_version(config: Mapping[str, Any]) -> dict[str, int]:
    """The setting that keeps apart tunings of state-space models whose default layers were others in an older version;
    empty for other models, so that their ids stay valid. config: the model's config.json."""
    return {"default_targets": 2} if any(key.startswith("mamba_") for key in config) else {}


def with_targets(config: Any, model: Any) -> Any:
    """PEFT's ``config`` with the layers to adapt in ``model``, where it names none or all linear ones.

    Raises InputError if the layers that it names cannot be adapted.
    """
    config = copy.copy(config)
    targets = config.target_modules
    if targets == ALL_LINEAR:
        if read_directly(model) or (_expert_parameters(model) and not _adapts_parameters(config)):
            config.target_modules = sorted(_linear_modules(model))
    elif targets:
        check_targets(model, sorted(targets), _fused_targets(config, model))
    elif model.config.model_type not in _peft_table(config):
        config.target_modules = [name for name in linear_layers(model) if name in _IA3_NAMES] or None
        config.feedforward_modules = [n for n in config.target_modules or () if n not in ("k_proj", "v_proj")]
    return config


def _adapts_parameters(config: Any) -> bool:
    """Whether PEFT can adapt parameters that are no layers with this config."""
    return not (getattr(config, "use_dora", False) or getattr(config, "lora_dropout", 0.0)
                or isinstance(getattr(config, "init_lora_weights", True), str))


def _peft_table(config: Any) -> Mapping[str, Any]:
    """PEFT's default targets by family, for the type of this config."""
    from peft.utils import constants

    table: Mapping[str, Any] = getattr(
        constants, f"TRANSFORMERS_MODELS_TO_{config.peft_type.value}_TARGET_MODULES_MAPPING", {})
    return table


def _fused_targets(config: Any, model: Any) -> set[str]:
    """Those targets that are names of expert layers before their weights were fused, which PEFT translates.

    Raises InputError if PEFT cannot translate them: some go together, and some methods cannot adapt parameters.
    """
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    translated = copy.deepcopy(config)
    try:
        convert_peft_config_for_transformers(translated, model, None)
    except ValueError as error:
        raise InputError(f"lora.target_modules: {' '.join(str(error).split())}") from None
    fused = set(config.target_modules) - set(translated.target_modules or ())
    if fused and not _adapts_parameters(config):
        raise InputError(f"lora.target_modules: {', '.join(sorted(fused))} are fused expert weights of "
                         f"{type(model).__name__}, which PEFT adapts only by plain LoRA without dropout; choose from "
                         f"its linear layers: {', '.join(linear_layers(model))}")
    return fused


def check_targets(model: Any, targets: list[str], fused: Collection[str] = ()) -> None:
    """Check that each target is the last name, or the end of the dotted path, of a layer that can be adapted.

    fused: names that PEFT translates into parameters. The head cannot be adapted because the loss is computed from its
    plain weight. Raises InputError.
    """
    head, read = model.get_output_embeddings(), read_directly(model)
    modules = dict(model.named_modules())
    names = linear_layers(model)
    for target in targets:
        if target in fused:
            continue
        matches = {name: m for name, m in modules.items() if name == target or name.endswith(f".{target}")}
        if any(m is head for m in matches.values()):
            raise InputError(f"lora.target_modules: {target!r} is the output head, which cannot be adapted; choose "
                             f"from the other linear layers: {', '.join(names)}")
        if bypassed := sorted(set(matches) & set(read)):
            raise InputError(f"lora.target_modules: {target!r} matches {bypassed[0]}, whose weight "
                             f"{read[bypassed[0]]}, or its CUDA kernel, reads without calling the layer, so that "
                             "an adapter on it would have no effect; choose from "
                             f"the other linear layers: {', '.join(names)}")
        if not matches:
            raise InputError(f"lora.target_modules: {target!r} matches no layer of {type(model).__name__}"
                             f"{nearest(target, names)}; its linear layers: {', '.join(names)}")


# --- What to say about the result ---


def target_notes(model: Any) -> tuple[str, ...]:
    """Notes on the layers of a PEFT model: those without effect, and expert weights."""
    notes = []
    base = model.get_base_model()
    if read := read_directly(base):
        names = sorted({name.rpartition(".")[2] for name in read})
        kinds = sorted(set(read.values()))
        notes.append(f"not adapted: {', '.join(names)} of {', '.join(kinds)}, because it, or its CUDA kernel, reads "
                     "their weights without calling the layers")
    parameters = sorted({f"{name.replace('.base_layer', '').rpartition('.')[2]}.{layer.parameter_name}"
                         for name, layer in model.named_modules() if hasattr(layer, "parameter_name")})
    if parameters:
        notes.append(f"adapted as parameters, not as layers: {', '.join(parameters)}")
    if left := [name for name in _expert_parameters(base) if name not in parameters]:
        notes.append(f"not adapted: the fused expert weights {', '.join(left)}, and the router")
    return tuple(notes)


def merge_refusal(model: Any) -> str:
    """Why the adapter of a PEFT model cannot be added to the weights of its base; "" if it can.

    The weights of an adapted layer may be those of another module too (tied embeddings, Zamba2's shared blocks). A
    merge would then change both.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = {name: m for name, m in model.named_modules() if isinstance(m, BaseTunerLayer)}
    if not layers:
        return "cannot be added to the weights of the base"
    owners: dict[int, set[int]] = {}
    for module in model.modules():
        for weight in module.parameters(recurse=False):
            owners.setdefault(id(weight), set()).add(id(module))
    ends = {id(getattr(end, "base_layer", end))
            for end in (model.get_input_embeddings(), model.get_output_embeddings())}
    for name, layer in layers.items():
        base = layer.get_base_layer()
        if any(len(owners[id(weight)]) > 1 for weight in base.parameters(recurse=False)):
            name = name.removeprefix("base_model.model.")
            if id(base) in ends:
                return f"adapts {name}, whose weight is both embedding and output head; a merge would change both"
            return f"adapts {name}, whose weight is that of another layer too; a merge would change both"
    return ""
