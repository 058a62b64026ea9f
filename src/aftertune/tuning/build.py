"""Owns making a loaded model trainable: the method decides which weights move, and nothing else.

    model = build(base, "lora", LoraSpec(r=16), seed=0)     # a PEFT model; its base is frozen
    trainable(model)                                        # 4884480

``lora`` trains adapters in float32 on a frozen base (Hu et al. 2021, arXiv:2106.09685); ``rslora`` scales them by the
root of the rank (Kalajdzievski 2023, arXiv:2312.03732); ``dora`` trains the size of each weight column apart (Liu et
al. 2024, arXiv:2402.09353); ``pissa`` begins with the principal part of each weight (Meng et al. 2024,
arXiv:2404.02948) and is saved as a plain adapter; ``ia3`` scales keys, values and inner activations (Liu et al. 2022,
arXiv:2205.05638). ``qlora`` is lora on a base whose linear layers are held in four bits (`aftertune.sources.nf4`).
``full`` trains every weight, held in float32, because bfloat16 loses small updates.

PEFT's ``prepare_model_for_kbit_training`` is not called: of what it does, PEFT freezes the base anyway, gradient
checkpointing is for the loop to choose, and embeddings, head and norms in float32 cost memory (for a small model with a
large vocabulary more than four bits save) and change nothing in bfloat16, where norms compute in float32 by themselves.
In float16, whose range is short, the norms are cast.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from aftertune.errors import InputError, nearest
from aftertune.sources import ModelSource
from aftertune.sources.nf4 import NF4
from aftertune.study import LoraSpec
from aftertune.tuning import pissa

#: Learning rate where the recipe names none.
LEARNING_RATES = {"lora": 2e-4, "qlora": 2e-4, "rslora": 2e-4, "dora": 2e-4, "pissa": 2e-4, "ia3": 8e-3, "full": 2e-5}
#: What a reader of a method's figures should know.
NOTES = {"qlora": ("held-out losses are those on the four-bit base that was trained on; evaluations and merges take "
                   "the base as it is stored",),
         "pissa": ("the adapter is saved as a plain one of twice the rank, for the base as it is stored",)}
#: Layers whose inputs (IA3) are scaled, not their outputs.
FEEDFORWARD = ("down_proj", "fc2", "fc_out", "w2", "dense_4h_to_h")


def base_dtype(method: str, compute: str) -> str:
    """The dtype to load the weights in: a frozen base in the computing one, trained weights in float32."""
    if method == "qlora":  # a base in float32 would not fit beside the memory that four bits are meant for
        return compute
    return "float32" if method == "full" or compute == "float16" else compute


def loaded(source: ModelSource, method: str) -> ModelSource:
    """The source as the method holds it in memory."""
    return replace(source, quantization=NF4) if method == "qlora" else source


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

    set_seed(seed)
    model.config.use_cache = False
    if method == "full":
        return model.requires_grad_(True)
    from peft import get_peft_model

    if lora.target_modules:
        check_targets(model, list(lora.target_modules))
    if method == "qlora":
        _float_norms(model)
    try:
        made = get_peft_model(model, _config(method, lora))
        if method == "qlora":  # else TRL casts the adapters to bfloat16, which loses small updates
            del model.is_loaded_in_4bit
        if method == "pissa":
            pissa.remember(made)
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


def _config(method: str, lora: LoraSpec) -> Any:
    """PEFT's config of a method."""
    from peft import IA3Config, LoraConfig, TaskType

    targets = list(lora.target_modules) if lora.target_modules else None
    if method == "ia3":
        inner = [t for t in targets or () if t in FEEDFORWARD]
        return IA3Config(task_type=TaskType.CAUSAL_LM, target_modules=targets,
                         feedforward_modules=inner if targets else None)
    return LoraConfig(r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, use_dora=method == "dora",
                      use_rslora=method == "rslora", target_modules=targets or "all-linear",
                      init_lora_weights=pissa.INIT if method == "pissa" else True, task_type=TaskType.CAUSAL_LM)


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
