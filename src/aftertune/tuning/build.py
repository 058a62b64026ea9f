"""Makes a loaded model trainable by a method of `aftertune.methods`.

    model = build(base, "lora", LoraSpec(r=16), seed=0)     # a PEFT model; its base is frozen
    count_trainable(model)                                  # 4884480

Adapters are trained in float32. PEFT's ``prepare_model_for_kbit_training`` is not called for a base in four bits:
PEFT freezes the base anyway, and the trainer turns gradient checkpointing on. That function also converts embeddings,
head and norms to float32. This costs memory (for a small model with a large vocabulary more than four bits save), and
it changes nothing in bfloat16, where norms compute in float32 by themselves. In float16, whose range is short, the
norms are converted here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from aftertune.errors import InputError
from aftertune.methods import METHODS
from aftertune.sources import ModelSource
from aftertune.sources.quantize import NF4
from aftertune.sources.resolve import read_json
from aftertune.sources.tensors import read_header, weight_files
from aftertune.study import LoraSpec
from aftertune.tuning.targets import linear_layers, with_targets


def base_dtype(method: str, compute: str) -> str:
    """The dtype to load the weights in: the computing dtype for a frozen base, float32 for weights that are trained."""
    base = METHODS[method].base
    if base == "nf4":  # loading a base in float32 first would need the memory that four bits are meant to save
        return compute
    return "float32" if base == "float32" or compute == "float16" else compute


def source_for_method(source: ModelSource, method: str) -> ModelSource:
    """The source with the quantization that the method needs while it trains."""
    return replace(source, quantization=NF4) if METHODS[method].base == "nf4" else source


#: How the names of learned position embeddings end: a row cannot be longer than they are.
_POSITIONS = ("wpe.weight", "embed_positions.weight", "position_embeddings.weight", "positions_embed.weight")


def fitting_length(source: ModelSource, wanted: int, *, explicit: bool) -> tuple[int, str]:
    """The longest row in tokens: not more than the learned positions of a model such as GPT-2 or OPT; and a note if it
    is not ``wanted``.

    explicit: the user gave ``wanted``, so that more than the positions is an InputError. Other models compute their
    positions, and take rows of any length.
    """
    if source.gguf_file is not None:
        return wanted, ""
    config = read_json(source.path / "config.json")
    positions = next((config[key] for key in ("max_position_embeddings", "n_positions")
                      if isinstance(config.get(key), int) and config[key] > 0), wanted)
    if wanted <= positions or not any(
            tensor.name.endswith(_POSITIONS) for path in weight_files(source.path) for tensor in read_header(path)):
        return wanted, ""
    if explicit:
        raise InputError(f"--max-length {wanted}: {source.named} has {positions} positions; use --max-length "
                         f"{positions} or less")
    return positions, f"rows have at most {positions} tokens, the model's number of positions"


def attention_implementation(device: str, longest: int) -> str | None:
    """transformers' ``attn_implementation`` for rows of up to ``longest`` tokens; None lets transformers choose.

    On a CPU the fused kernel is slower than eager attention for short rows (by a fifth at 145 tokens, with grouped
    heads in bfloat16). It saves memory only for long ones.
    """
    return "eager" if device == "cpu" and longest <= 512 else None


def build(model: Any, method: str, lora: LoraSpec, seed: int) -> Any:
    """The model with what the method trains, initialised from the seed.

    Raises InputError if ``target_modules`` match no linear layer, or if PEFT has no default targets for this family.
    """
    from transformers import set_seed

    facts = METHODS[method]
    set_seed(seed)
    model.config.use_cache = False
    if facts.config is None:
        return model.requires_grad_(True)
    from peft import get_peft_model

    config, names = with_targets(facts.config(lora, seed), model), linear_layers(model)
    if facts.base == "nf4":
        _convert_norms(model)
    try:
        peft_model = get_peft_model(model, config)
        for mark in ("is_loaded_in_4bit", "is_loaded_in_8bit"):  # TRL casts adapters of such a base to bfloat16
            if getattr(model, mark, False):
                setattr(model, mark, False)
        if facts.begin is not None:
            facts.begin(peft_model)
        return peft_model
    except ValueError as error:
        raise InputError(f"method {method}: {' '.join(str(error).split())[:200]}; name layers as lora.target_modules "
                         f"(--target-modules): {', '.join(names)}") from None


def _convert_norms(model: Any) -> None:
    """Convert the vectors (norms, biases) of a float16 model to float32."""
    import torch

    for parameter in model.parameters():
        if parameter.dtype == torch.float16 and parameter.ndim == 1:
            parameter.data = parameter.data.float()


def count_trainable(model: Any) -> int:
    """The number of parameters that are trained."""
    return sum(int(p.numel()) for p in model.parameters() if p.requires_grad)
