"""Owns PiSSA (Meng et al. 2024, arXiv:2404.02948): an adapter that begins as the principal part of each weight, on a
base that holds the rest of it.

    remember(model)                      after PEFT has made it: what the adapter began as
    tensors, config = as_lora(model)     a plain LoRA of twice the rank, for the base as it is stored

W = W' + s B0 A0, so what was learned is s (B A - B0 A0) = s [B, -B0] [A; A0]: the folder that a tuning leaves fits the
base that it names, as that of every other method does.
"""

from __future__ import annotations

import copy
from typing import Any

#: PEFT's word for it: singular vectors by so many rounds of subspace iteration, seconds where the whole takes minutes.
INIT = "pissa_niter_16"


def remember(model: Any) -> None:
    """Keep the adapter's tensors of now, before the first step. The same seed makes the same again."""
    model.pissa_begun = {name: tensor.clone() for name, tensor in _tensors(model).items()}


def is_pissa(model: Any) -> bool:
    """True for a model whose adapter needs `as_lora`."""
    return hasattr(model, "pissa_begun")


def as_lora(model: Any) -> tuple[dict[str, Any], Any]:
    """Tensors by their names in a file, and PEFT's config of them."""
    import torch

    begun, found = model.pissa_begun, {}
    for name, tensor in _tensors(model).items():
        if "lora_A" in name:
            found[name] = torch.cat([tensor, begun[name]])  # [2 * rank, columns]
        else:
            found[name] = torch.cat([tensor, -begun[name]], 1)  # [rows, 2 * rank]
    config = copy.deepcopy(model.peft_config["default"])
    config.r, config.lora_alpha, config.init_lora_weights, config.inference_mode = (
        2 * config.r, 2 * config.lora_alpha, True, True)
    return found, config


def _tensors(model: Any) -> dict[str, Any]:
    from peft import get_peft_model_state_dict

    found: dict[str, Any] = {n: t.detach().cpu() for n, t in get_peft_model_state_dict(
        model, save_embedding_layers=False).items()}
    return found
