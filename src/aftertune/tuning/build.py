"""Makes a loaded model trainable by a method of `aftertune.methods`.

    model = build(base, "lora", LoraSpec(r=16), seed=0)     # a PEFT model; its base is frozen
    trainable(model)                                        # 4884480

Adapters are trained in float32. PEFT's ``prepare_model_for_kbit_training`` is not called for a base in four bits:
PEFT freezes the base anyway, and the loop chooses gradient checkpointing. That function also holds embeddings, head and
norms in float32. This costs memory (for a small model with a large vocabulary more than four bits save), and it changes
nothing in bfloat16, where norms compute in float32 by themselves. In float16, whose range is short, the norms are cast.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from aftertune.errors import InputError, nearest
from aftertune.methods import METHODS
from aftertune.sources import ModelSource
from aftertune.sources.quantize import NF4
from aftertune.study import LoraSpec


def base_dtype(method: str, compute: str) -> str:
    """The dtype to load the weights in: a frozen base in the computing one, trained weights in float32."""
    base = METHODS[method].base
    if base == "nf4":  # a base in float32 would not fit beside the memory that four bits are meant for
        return compute
    return "float32" if base == "float32" or compute == "float16" else compute


def loaded(source: ModelSource, method: str) -> ModelSource:
    """The source as the method holds it in memory."""
    return replace(source, quantization=NF4) if METHODS[method].base == "nf4" else source


def attention(device: str, longest: int) -> str | None:
    """The attention to load with for rows of up to ``longest`` tokens; None lets transformers choose.

    On a CPU the fused kernel is slower than plain products for short rows (by a fifth at 145 tokens, with
    grouped heads in bfloat16), and only saves memory for long ones.
    """
    return "eager" if device == "cpu" and longest <= 512 else None


def build(model: Any, method: str, lora: LoraSpec, seed: int) -> Any:
    """The model ready to train, seeded. Raises InputError where ``target_modules`` match no linear layer, or where PEFT
    knows none for this family."""
    from transformers import set_seed

    facts = METHODS[method]
    set_seed(seed)
    model.config.use_cache = False
    if facts.config is None:
        return model.requires_grad_(True)
    from peft import get_peft_model

    if lora.target_modules:
        check_targets(model, list(lora.target_modules))
    if facts.base == "nf4":
        _float_norms(model)
    try:
        made = get_peft_model(model, facts.config(lora, seed))
        if facts.base == "nf4":  # else TRL casts the adapters to bfloat16, which loses small updates
            del model.is_loaded_in_4bit
        if facts.begin is not None:
            facts.begin(made)
        return made
    except ValueError as error:
        raise InputError(f"method {method}: {' '.join(str(error).split())[:200]}; name layers as lora.target_modules "
                         f"(--target-modules): {', '.join(linear_layers(model))}") from None


def _float_norms(model: Any) -> None:
    """A float16 model's vectors (norms, biases) in float32."""
    import torch

    for parameter in model.parameters():
        if parameter.dtype == torch.float16 and parameter.ndim == 1:
            parameter.data = parameter.data.float()


def trainable(model: Any) -> int:
    """How many parameters are trained."""
    return sum(int(p.numel()) for p in model.parameters() if p.requires_grad)


def linear_layers(model: Any) -> list[str]:
    """Last names of the linear layers, the output head left out: what ``target_modules`` can name."""
    import torch
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    return sorted({name.rpartition(".")[2] for name, module in model.named_modules()
                   if isinstance(module, torch.nn.Linear | Conv1D) and module is not head})


def check_targets(model: Any, targets: list[str]) -> None:
    """Every target names a layer, by its last name or the end of its dotted path, and none the output head: the loss is
    taken from its weight."""
    head = model.get_output_embeddings()
    modules = dict(model.named_modules())
    for target in targets:
        found = [m for name, m in modules.items() if name == target or name.endswith(f".{target}")]
        known = linear_layers(model)
        if head in found:
            raise InputError(f"lora.target_modules: {target!r} is the output head, which is not adapted; other linear "
                             f"layers: {', '.join(known)}")
        if not found:
            raise InputError(f"lora.target_modules: {target!r} matches no layer of {type(model).__name__}"
                             f"{nearest(target, known)}; its linear layers: {', '.join(known)}")
