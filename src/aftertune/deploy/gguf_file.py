"""Writes a model folder as a GGUF file, one tensor after another.

    write_gguf(model, Path("model-q8_0.gguf"), "q8_0", name="orders")
    refusal(config)                     why this architecture cannot be written here; "" if it can

Only architectures whose result is tested to compute the same logits are written (`ARCHITECTURES`); llama.cpp's own
converter knows many more (`aftertune.deploy.export`). Names and layouts are llama.cpp's (``conversion/`` there, and the
table of the package gguf): Llama stores the rows of queries and keys in another order, in which the two halves of each
head alternate, because it rotates neighbouring pairs.

Memory: a few copies of the largest tensor in float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aftertune.deploy.gguf_tokenizer import add_tokenizer
from aftertune.errors import InputError, SourceError
from aftertune.sources import ModelSource, load_tokenizer
from aftertune.sources.generation import generation_defaults
from aftertune.sources.loading import load_config
from aftertune.sources.tensors import TensorInfo, as_float32, read_bytes, read_header, weight_files


@dataclass(frozen=True, slots=True)
class _Architecture:
    """name: llama.cpp's. pairs: it rotates neighbouring pairs, so queries and keys are stored in another order."""

    name: str
    pairs: bool = False


#: transformers' name of an architecture -> how llama.cpp stores it.
ARCHITECTURES: Mapping[str, _Architecture] = {
    "LlamaForCausalLM": _Architecture("llama", pairs=True),
    "MistralForCausalLM": _Architecture("llama", pairs=True),
    "Qwen2ForCausalLM": _Architecture("qwen2"),
    "Qwen3ForCausalLM": _Architecture("qwen3"),
}
#: Types that are written here -> llama.cpp's number of the file type. Those of four and five bits keep the embeddings
#: and the output head in q8_0.
FILE_TYPES: Mapping[str, int] = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "bf16": 32}
_LARGEST_F16 = 65504.0
#: What transformers stores that is no weight.
_COMPUTED = ("rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias")


def refusal(config: Mapping[str, Any]) -> str:
    """Why a model with this config cannot be written here; "" if it can. config: as `load_config` returns it."""
    name = str((config.get("architectures") or ["?"])[0])
    if name not in ARCHITECTURES:
        return f"the architecture {name} is none of {', '.join(ARCHITECTURES)}"
    rope = _rope(config)
    unlike = {
        f"rope type {rope.get('rope_type')!r}": rope.get("rope_type", "default") not in ("default", "linear", "llama3"),
        "biases of attention": bool(config.get("attention_bias")),
        "biases of the feed-forward layers": bool(config.get("mlp_bias")),
        f"activation {config.get('hidden_act')!r}": config.get("hidden_act") != "silu",
        "a sliding window": _slides(config),
        "a partial rotation": rope.get("partial_rotary_factor", 1.0) != 1.0,
    }
    return next((f"{name} with {what}" for what, found in unlike.items() if found), "")


def _slides(config: Mapping[str, Any]) -> bool:
    """Whether attention has a window that is shorter than the longest context; llama.cpp has none in these models."""
    window, kinds = config.get("sliding_window"), config.get("layer_types")
    used = "sliding_attention" in kinds if kinds else config.get("use_sliding_window", True)
    return bool(window and used and window < config.get("max_position_embeddings", math.inf))


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the rotation, under the names of newer and of older configs."""
    older = config.get("rope_scaling") or {}
    rope = {**older, **(config.get("rope_parameters") or {})}
    rope.setdefault("rope_type", older.get("type", "default"))
    rope.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    return rope


def write_gguf(model: ModelSource, path: Path, kind: str, *, name: str) -> None:
    """Write the model of a folder to the new file ``path``, with its tokenizer and chat template.

    kind: one of `FILE_TYPES`. name: stored in the file. Raises SourceError for a model that cannot be written here, and
    InputError for weights that do not fit into the type.
    """
    import gguf

    config = load_config(model)
    if reason := refusal(config):
        raise SourceError(f"{model.source}: {reason}, which is not written to a GGUF here")
    architecture = ARCHITECTURES[str(config["architectures"][0])]
    tensors = list(_tensors(model, config, architecture))
    writer = gguf.GGUFWriter(path, architecture.name)
    try:
        _add_settings(writer, config, name, kind)
        tokenizer = load_tokenizer(model)
        ends = generation_defaults(model, tokenizer).get("eos_token_id", [])
        add_tokenizer(writer, model.path, tokenizer, rows=int(config["vocab_size"]), ends=ends)
        factors = _rope_factors(config)
        if factors is not None:
            writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
        for tensor in tensors:
            _announce(writer, tensor, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if factors is not None:
            writer.write_tensor_data(factors)
        for tensor, values in _values(model, tensors):
            writer.write_tensor_data(_encoded(tensor, values, kind))
    finally:
        writer.close()


# --- Tensors ---


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A tensor of the model. name: llama.cpp's; heads: of queries or keys whose rows are stored in another order."""

    name: str
    info: TensorInfo
    heads: int = 0


def _tensors(model: ModelSource, config: Mapping[str, Any], architecture: _Architecture) -> Iterator[_Tensor]:
    """The tensors to write, in the order of the files. Raises SourceError for one that has no place in the GGUF."""
    import gguf

    number = next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == architecture.name)
    names = gguf.get_tensor_name_map(number, int(config["num_hidden_layers"]))
    heads = int(config["num_attention_heads"])
    turned = {"q_proj.weight": heads, "k_proj.weight": int(config.get("num_key_value_heads") or heads)}
    found = set()
    for file in weight_files(model.path):
        for info in read_header(file):
            if info.name.endswith(_COMPUTED):
                continue
            if info.name == "lm_head.weight" and config.get("tie_word_embeddings"):
                continue  # transformers uses the embeddings in its place
            stored = names.get_name(info.name, try_suffixes=(".weight", ".bias"))
            if stored is None:
                raise SourceError(f"{model.source}: its tensor {info.name!r} has no place in a GGUF of the "
                                  f"architecture {architecture.name}")
            found.add(stored)
            ending = ".".join(info.name.split(".")[-2:])
            yield _Tensor(stored, info, turned.get(ending, 0) if architecture.pairs else 0)
    if "output.weight" not in found and not config.get("tie_word_embeddings"):
        raise SourceError(f"{model.source}: it has no lm_head.weight, and its config.json says that the output head is "
                          "not tied to the embeddings; save the complete model")


def _values(model: ModelSource, tensors: list[_Tensor]) -> Iterator[tuple[_Tensor, Any]]:
    """Each tensor with its values in float32, in the order of ``tensors``."""
    wanted = {t.info.name: t for t in tensors}
    for file in weight_files(model.path):
        for info, raw in read_bytes(file):
            if info.name in wanted:
                tensor, values = wanted[info.name], as_float32(info, raw)
                yield tensor, _pairs(values, tensor.heads) if tensor.heads else values


def _pairs(weight: Any, heads: int) -> Any:
    """The rows of each head in the order 0, n/2, 1, n/2 + 1, … as ``LlamaModel.permute`` of llama.cpp has them."""
    rows, *rest = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, *rest).swapaxes(1, 2).reshape(weight.shape)


def tensor_type(name: str, shape: tuple[int, ...], kind: str) -> str:
    """The type in which a tensor is stored in a file of this kind, by llama.cpp's rules for its converter."""
    if len(shape) < 2 or not name.endswith(".weight") or name.endswith("_norm.weight"):
        return "F32"
    if kind in ("f32", "f16", "bf16"):
        return kind.upper()
    if shape[-1] % 32:
        return "F16"
    return "Q8_0" if name in ("token_embd.weight", "output.weight") else kind.upper()


def _announce(writer: Any, tensor: _Tensor, kind: str) -> None:
    """Add the name, shape and type of a tensor to the header."""
    import gguf
    import numpy as np

    dtype = gguf.GGMLQuantizationType[tensor_type(tensor.name, tensor.info.shape, kind)]
    if dtype in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16):
        number = np.dtype(np.float32 if dtype == gguf.GGMLQuantizationType.F32 else np.float16)
        size = math.prod(tensor.info.shape) * number.itemsize
        writer.add_tensor_info(tensor.name, tensor.info.shape, number, size, raw_dtype=dtype)
        return
    shape = gguf.quant_shape_to_byte_shape(tensor.info.shape, dtype)
    writer.add_tensor_info(tensor.name, shape, np.dtype(np.uint8), math.prod(shape), raw_dtype=dtype)


def _encoded(tensor: _Tensor, values: Any, kind: str) -> Any:
    """The values in the type of the file. Raises InputError where they do not fit into float16."""
    import gguf
    import numpy as np

    dtype = tensor_type(tensor.name, tensor.info.shape, kind)
    if dtype == "F16" and values.size and float(np.abs(values).max()) > _LARGEST_F16:
        raise InputError(f"{tensor.info.name} has values beyond {_LARGEST_F16:,.0f}, the largest of float16; export "
                         "with --quant bf16 or f32 instead")
    return np.ascontiguousarray(gguf.quantize(np.ascontiguousarray(values), gguf.GGMLQuantizationType[dtype]))


# --- Settings ---


def _add_settings(writer: Any, config: Mapping[str, Any], name: str, kind: str) -> None:
    """Add the sizes and settings of the forward pass, under llama.cpp's keys."""
    import gguf

    heads = int(config["num_attention_heads"])
    width = int(config.get("head_dim") or config["hidden_size"] // heads)
    rope = _rope(config)
    writer.add_type("model")
    writer.add_name(name)
    writer.add_context_length(int(config["max_position_embeddings"]))
    writer.add_embedding_length(int(config["hidden_size"]))
    writer.add_block_count(int(config["num_hidden_layers"]))
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    writer.add_head_count(heads)
    writer.add_head_count_kv(int(config.get("num_key_value_heads") or heads))
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))
    writer.add_vocab_size(int(config["vocab_size"]))
    writer.add_rope_dimension_count(width)
    writer.add_file_type(FILE_TYPES[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _rope_factors(config: Mapping[str, Any]) -> Any:
    """The divisor of each frequency under Llama 3's scaling, in float32 [head / 2]; None without it.

    Source: ``_compute_llama3_parameters`` of transformers and ``generate_extra_tensors`` of llama.cpp's converter.
    """
    import numpy as np

    rope = _rope(config)
    if rope["rope_type"] != "llama3":
        return None
    width = int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])
    factor, low, high = (float(rope[k]) for k in ("factor", "low_freq_factor", "high_freq_factor"))
    context = float(rope["original_max_position_embeddings"])
    wavelength = 2 * math.pi * float(rope["rope_theta"]) ** (np.arange(0, width, 2) / width)
    smooth = np.clip((context / wavelength - low) / (high - low), 0.0, 1.0)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)
