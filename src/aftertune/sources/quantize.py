"""Owns holding a model's linear layers in four bits: NF4 with double quantisation (Dettmers et al. 2023, QLoRA,
arXiv:2305.14314), by bitsandbytes.

    require_nf4("cpu")                               or one line that says what is missing
    model = to_nf4(model, "bfloat16", "cuda:0")      layer by layer, from 16 bit here to 4 bit there

Only plain linear layers are quantised, the output head is not (as transformers does it); embeddings and norms stay.
So does a layer whose inputs are no multiple of a block of 64: bitsandbytes 0.50.2 reads such rows with the scales
of other blocks on a CPU (a test shows it), and a model is the same on all devices here.
A layer computes x W'ᵀ in the computing dtype, W' being what its four bits stand for. bitsandbytes would repack
the weights of a layer in place at its first evaluation on an AVX512-BF16 CPU and then compute other numbers, and
no gradients; here it never does, so training and evaluation are the same function.
"""

from __future__ import annotations

from typing import Any

from aftertune.errors import InputError, ResourceError

NF4 = "nf4"
#: Weights that share a scale.
BLOCK = 64


def require_nf4(device: str) -> None:
    """Raises ResourceError where bitsandbytes is absent or has no kernels for ``device``."""
    way_out = "use lora instead, or a base in 16 bit"
    try:
        import bitsandbytes
    except ImportError:
        raise ResourceError("4-bit weights need the package bitsandbytes, which is not installed: "
                            f"pip install 'aftertune[qlora]'; or {way_out}") from None
    kind, known = device.split(":")[0], set(bitsandbytes.supported_torch_devices)
    if kind not in known:
        raise ResourceError(f"bitsandbytes {bitsandbytes.__version__} has no 4-bit layers for {kind} (it has them for "
                            f"{', '.join(sorted(known))}); {way_out}")


def to_nf4(model: Any, dtype: Any, device: str) -> Any:
    """The model on ``device`` with its linear layers in NF4. dtype: torch's, in which they compute.

    Only one layer at a time is on the device in full. Raises InputError where there is no such layer.
    """
    import torch

    head = model.get_output_embeddings()
    found = [(name, m) for name, m in model.named_modules()
             if type(m) is torch.nn.Linear and m is not head and m.in_features % BLOCK == 0]
    if not found:
        raise InputError(f"{type(model).__name__} has no plain linear layers of {BLOCK}, {2 * BLOCK}, … inputs that "
                         "four bits could hold; use a base in 16 bit")
    for name, layer in found:
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, _quantised(layer, dtype, device))
    model.is_loaded_in_4bit = True  # how PEFT knows its layers
    return model.to(device)


def _quantised(layer: Any, dtype: Any, device: str) -> Any:
    from bitsandbytes.nn import Linear4bit, Params4bit

    made = Linear4bit(layer.in_features, layer.out_features, layer.bias is not None, compute_dtype=dtype,
                      compress_statistics=True, quant_type=NF4, device="meta")
    made.weight = Params4bit(layer.weight.detach(), requires_grad=False, blocksize=BLOCK, compress_statistics=True,
                             quant_type=NF4, module=made).to(device)
    made.bias = layer.bias
    made.support_avx512bf16_for_cpu = False
    return made
