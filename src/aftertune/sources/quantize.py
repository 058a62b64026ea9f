"""Quantises a model's linear layers to NF4 (4 bits) with bitsandbytes.

    require_nf4("cpu")                                     raises ResourceError if something is missing
    model = to_nf4(model, torch.bfloat16, "cuda:0")        moves and quantises one layer at a time

NF4 with double quantisation is the format of QLoRA (Dettmers et al. 2023, arXiv:2305.14314). A layer computes x W'ᵀ in
the computing dtype, with the dequantised weights W'.

Only plain linear layers are quantised. The output head (as in transformers), embeddings and norms are not. Nor is a
layer whose number of inputs is no multiple of 64, the block size: on a CPU, bitsandbytes 0.50.2 reads its rows with the
scales of other blocks (a test shows it), and a model should be the same on all devices.

On a CPU with AVX512-BF16, bitsandbytes repacks the weights of a layer in place at its first evaluation. Then the layer
computes other numbers and has no gradients. This module turns that off, so training and evaluation compute the same.
"""

from __future__ import annotations

from typing import Any

from aftertune.errors import InputError, ResourceError

NF4 = "nf4"
#: Number of consecutive weights that share a scale.
BLOCK = 64


def require_nf4(device: str) -> None:
    """Raise ResourceError if bitsandbytes is not installed or has no kernels for ``device``."""
    alternative = "use lora instead, or a base in 16 bit"
    try:
        import bitsandbytes
    except ImportError:
        raise ResourceError("4-bit weights need the package bitsandbytes, which is not installed: "
                            f"pip install 'aftertune[qlora]'; or {alternative}") from None
    kind, supported = device.split(":")[0], set(bitsandbytes.supported_torch_devices)
    if kind not in supported:
        raise ResourceError(f"bitsandbytes {bitsandbytes.__version__} has no 4-bit layers for {kind} (it has them for "
                            f"{', '.join(sorted(supported))}); {alternative}")


def to_nf4(model: Any, dtype: Any, device: str) -> Any:
    """Move the model to ``device`` with its linear layers in NF4, and return it.

    dtype: the torch dtype in which the layers compute. Only one layer at a time is on the device unquantised.
    Raises InputError if the model has no layer that can be quantised.
    """
    import torch

    head = model.get_output_embeddings()
    layers = [(name, m) for name, m in model.named_modules()
              if type(m) is torch.nn.Linear and m is not head and m.in_features % BLOCK == 0]
    if not layers:
        raise InputError(f"{type(model).__name__} has no plain linear layers with a multiple of {BLOCK} inputs, so "
                         "nothing can be stored in 4 bits; use a base in 16 bit")
    for name, layer in layers:
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, _quantised(layer, dtype, device))
    model.is_loaded_in_4bit = True  # PEFT looks for this to choose its 4-bit layers
    return model.to(device)


def _quantised(layer: Any, dtype: Any, device: str) -> Any:
    from bitsandbytes.nn import Linear4bit, Params4bit

    quantised = Linear4bit(layer.in_features, layer.out_features, layer.bias is not None, compute_dtype=dtype,
                           compress_statistics=True, quant_type=NF4, device="meta")
    quantised.weight = Params4bit(layer.weight.detach(), requires_grad=False, blocksize=BLOCK, compress_statistics=True,
                                  quant_type=NF4, module=quantised).to(device)
    quantised.bias = layer.bias
    quantised.support_avx512bf16_for_cpu = False
    return quantised
