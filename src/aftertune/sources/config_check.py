"""Checks the JSON files of models, tokenizers and adapters before a library reads them.

    check_fields(config, path)                     raises SourceError: config.json: hidden_size is 'abc'; …
    check_against_tensors(config, path, tensors)   raises SourceError: num_hidden_layers is 1000000000, but …

A library believes these files: it builds a billion layers, or a table of a billion labels, before it looks at the
weights, and it fails far from the field that is wrong. So the types of the known fields are checked here, and the
sizes are compared with the tensors in the headers of the weights. An unknown field is left to the library.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from aftertune import bounds
from aftertune.errors import SourceError, shown
from aftertune.sources.tensors import EMBEDDINGS, TensorInfo

#: Whether a value is allowed, and the words for what is.
Rule = tuple[Callable[[Any], bool], str]


def _is_whole(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _size(limit: int, low: int = 1) -> Rule:
    """A whole number from ``low`` to ``limit``, or a list of them, one for each layer."""
    def allowed(value: Any) -> bool:
        return all(v is None or _is_whole(v, low, limit) for v in (value if isinstance(value, list) else [value]))
    return allowed, f"a whole number from {low} to {limit:,}"


def _instance(*kinds: type, words: str) -> Rule:
    return lambda value: isinstance(value, kinds) and not (isinstance(value, bool) and bool not in kinds), words


def _listed(kind: type, words: str) -> Rule:
    return lambda value: isinstance(value, list) and all(isinstance(v, kind) for v in value), words


def _either(*rules: Rule) -> Rule:
    return (lambda value: any(allowed(value) for allowed, _ in rules)), " or ".join(words for _, words in rules)


_TEXT, _OBJECT = _instance(str, words="a text"), _instance(dict, words="an object")
_NUMBER: Rule = (lambda value: isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300,
                 "a number")
_SWITCH = _instance(bool, words="true or false")
_TEXTS = _listed(str, "a list of texts")
_IDS: Rule = (lambda value: all(_is_whole(v, -1, 2**31 - 1) for v in (value if isinstance(value, list) else [value])),
              "a token id or a list of token ids")
_TOKEN: Rule = (lambda value: isinstance(value, str) or (isinstance(value, dict) and isinstance(
    value.get("content"), str)), "a text or an object with the text as content")
_TEMPLATE: Rule = (lambda value: isinstance(value, str) or (isinstance(value, dict) and all(
    isinstance(v, str) for v in value.values())) or (isinstance(value, list) and all(
        isinstance(v, dict) and isinstance(v.get("name"), str) and isinstance(v.get("template"), str)
        for v in value)), "a text, or a list of objects with name and template")
_NAME: Rule = (lambda value: isinstance(value, str) and "\0" not in value and len(value) <= bounds.MODEL_NAME,
               "a name or a path")

#: Largest sizes that are believed. Real models stay far below them.
LAYERS, WIDTH, LABELS = bounds.MODEL_LAYERS, bounds.MODEL_WIDTH, bounds.MODEL_LABELS
POSITIONS, VOCABULARY = bounds.MODEL_POSITIONS, bounds.MODEL_VOCABULARY

_TOKENS = {f"{kind}_token": _TOKEN for kind in ("bos", "eos", "unk", "pad", "sep", "cls", "mask")}
_TOKEN_IDS = {f"{kind}_token_id": _IDS for kind in ("bos", "eos", "pad", "unk", "decoder_start", "sep", "cls")}
_SIZES = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), _size(LAYERS)),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "head_dim", "num_attention_heads", "n_head",
                     "num_key_value_heads", "word_embed_proj_dim"), _size(WIDTH)),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "moe_intermediate_size"), _size(WIDTH, low=0)),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), _size(POSITIONS)),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "num_labels"), _size(LABELS, low=0)),
    "vocab_size": _size(VOCABULARY),
}
_CONFIG = {
    **_SIZES, **_TOKEN_IDS, "architectures": _TEXTS, "model_type": _TEXT,
    **dict.fromkeys(("text_config", "quantization_config", "rope_scaling", "rope_parameters", "auto_map"), _OBJECT),
    **dict.fromkeys(("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "rope_theta", "initializer_range",
                     "attention_dropout"), _NUMBER),
    **dict.fromkeys(("tie_word_embeddings", "use_cache", "attention_bias", "mlp_bias", "is_decoder",
                     "is_encoder_decoder"), _SWITCH),
    **dict.fromkeys(("dtype", "torch_dtype", "hidden_act", "activation_function"), _either(_TEXT, _OBJECT)),
    "layer_types": _TEXTS, "id2label": _OBJECT, "label2id": _OBJECT, "tokenizer_class": _TEXT,
    "transformers_version": _TEXT,
}
_TOKENIZER_CONFIG = {
    **_TOKENS, "model_max_length": _NUMBER, "tokenizer_class": _TEXT, "chat_template": _TEMPLATE, "auto_map": _OBJECT,
    "added_tokens_decoder": _OBJECT, "padding_side": _TEXT, "truncation_side": _TEXT,
    **dict.fromkeys(("add_bos_token", "add_eos_token", "add_prefix_space", "clean_up_tokenization_spaces"), _SWITCH),
}
_RANK = _size(WIDTH, low=0)
_ADAPTER = {
    "peft_type": _TEXT, "base_model_name_or_path": _NAME, "revision": _NAME, "lora_alpha": _NUMBER,
    **dict.fromkeys(("r", "rank", "num_virtual_tokens", "adapter_len", "adapter_layers"), _RANK),
    **dict.fromkeys(("lora_dropout", "module_dropout"), _NUMBER),
    **dict.fromkeys(("rank_pattern", "alpha_pattern"), _OBJECT),
    **dict.fromkeys(("target_modules", "exclude_modules", "modules_to_save"), _either(_TEXT, _TEXTS)),
    **dict.fromkeys(("fan_in_fan_out", "use_rslora", "use_dora", "inference_mode"), _SWITCH),
    "bias": _TEXT, "task_type": _TEXT,
}


def _is_tokenizer_model(value: object) -> bool:
    """The library cuts the prefix off the second part of each merge; cut within a character, it ends the process."""
    if not isinstance(value, dict):
        return False
    prefix, merges = value.get("continuing_subword_prefix"), value.get("merges")
    if not isinstance(prefix, str) or not prefix or not isinstance(merges, list):
        return True
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in merges)
    return all(not isinstance(pair, list) or len(pair) != 2 or str(pair[1]).startswith(prefix) for pair in pairs)


#: File -> field -> what it may be. null is allowed in every field: it stands for the library's default.
FIELDS: Mapping[str, Mapping[str, Rule]] = {
    "config.json": _CONFIG,
    "generation_config.json": {
        **_TOKEN_IDS,
        **dict.fromkeys(("temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty", "length_penalty",
                         "max_length", "min_length", "max_new_tokens", "min_new_tokens", "num_beams",
                         "no_repeat_ngram_size", "num_return_sequences"), _NUMBER),
        **dict.fromkeys(("do_sample", "use_cache"), _SWITCH)},
    "tokenizer_config.json": _TOKENIZER_CONFIG,
    "special_tokens_map.json": _TOKENS,
    "tokenizer.json": {"model": (_is_tokenizer_model, "an object; the second part of each of its merges begins with "
                                 "its continuing_subword_prefix"), "added_tokens": _listed(dict, "a list of objects"),
                       **dict.fromkeys(("normalizer", "pre_tokenizer", "post_processor", "decoder", "truncation",
                                        "padding"), _OBJECT)},
    "adapter_config.json": _ADAPTER,
}


def check_fields(values: Mapping[str, Any], path: Path) -> None:
    """Raise SourceError for a known field of a wrong type or size. path: the file; its name says which fields."""
    _check(values, FIELDS[path.name], path, "")
    if path.name == "config.json":
        for part in ("text_config", "llm_config"):
            if isinstance(values.get(part), dict):
                _check(values[part], FIELDS[path.name], path, f"{part}.")


def _check(values: Mapping[str, Any], rules: Mapping[str, Rule], path: Path, prefix: str) -> None:
    for name, value in values.items():
        allowed, words = rules.get(name, (None, ""))
        if allowed is not None and value is not None and not allowed(value):
            raise _refused(path, f"{prefix}{name} is {shown(value)}", f"allowed is {words}")


def _refused(path: Path, found: str, allowed: str) -> SourceError:
    return SourceError(f"{path}: {found}; {allowed}; correct it, or download or save the file again")


# --- Sizes against the tensors ---

_NUMBERED = re.compile(r"\.(\d+)\.")
#: How safetensors names the dtypes whose shapes are those of the model; other ones may be packed.
_PLAIN = frozenset({"F64", "F32", "F16", "BF16"})


def check_against_tensors(config: Mapping[str, Any], path: Path, tensors: Iterable[TensorInfo]) -> None:
    """Raise SourceError if ``config`` says more layers, another vocabulary or another width than the weights have.

    path: of the config. tensors: of all files of weights. The fields must have passed `check_fields`. A model with own
    code (``auto_map``) may round its vocabulary and its sizes, so only its layers are compared.
    """
    listed = list(tensors)
    text = next((config[part] for part in ("text_config", "llm_config") if config.get(part)), config)
    _check_layers(text, path, listed)
    _check_heads(text, path)
    embeddings = [t for t in listed if t.name.endswith(EMBEDDINGS) and len(t.shape) == 2]
    if config.get("auto_map") or config.get("quantization_config") or not embeddings or any(
            t.dtype not in _PLAIN for t in embeddings):
        return
    rows = _first(text, "vocab_size")
    if isinstance(rows[1], int) and rows[1] not in (found := {t.shape[0] for t in embeddings}):
        raise _refused(path, f"{rows[0]} is {rows[1]}, but the token embedding {embeddings[0].name!r} has "
                       f"{embeddings[0].shape[0]} rows", f"allowed is {', '.join(map(str, sorted(found)))}, the number "
                       "of rows (a model that was resized has the new number)")
    width = _first(text, "word_embed_proj_dim", "embedding_size", "hidden_size", "n_embd", "d_model")
    if isinstance(width[1], int) and width[1] not in {t.shape[1] for t in embeddings}:
        raise _refused(path, f"{width[0]} is {width[1]}, but the token embedding {embeddings[0].name!r} has "
                       f"{embeddings[0].shape[1]} columns", f"allowed is {embeddings[0].shape[1]}, the number of "
                       "columns")


def _first(config: Mapping[str, Any], *names: str) -> tuple[str, Any]:
    """The first of these fields that the config has, with its value."""
    return next(((name, config[name]) for name in names if config.get(name) is not None), (names[-1], None))


def _check_layers(config: Mapping[str, Any], path: Path, tensors: Iterable[TensorInfo]) -> None:
    """Raise SourceError for more layers than the names of the tensors count."""
    indices: dict[str, set[str]] = defaultdict(set)
    for tensor in tensors:
        if match := _NUMBERED.search(tensor.name if tensor.name.startswith(".") else f".{tensor.name}"):
            indices[tensor.name[:match.start()]].add(match[1])
    stored = max(map(len, indices.values()), default=LAYERS)
    name, layers = _first(config, "num_hidden_layers", "n_layer", "n_layers", "num_layers")
    if isinstance(layers, int) and layers > stored:
        raise _refused(path, f"{name} is {layers}, but the weights have {stored} layers",
                       f"allowed is up to {stored}")


def _check_heads(config: Mapping[str, Any], path: Path) -> None:
    """Raise SourceError if the heads cannot be formed."""
    name, heads = _first(config, "num_attention_heads", "n_head")
    width, hidden = _first(config, "hidden_size", "n_embd", "d_model")
    _, kv_heads = _first(config, "num_key_value_heads")
    if isinstance(heads, int) and isinstance(hidden, int) and heads > hidden:
        raise _refused(path, f"{name} is {heads}, with {width} {hidden}", f"allowed is up to {hidden}")
    if isinstance(heads, int) and isinstance(kv_heads, int) and heads % kv_heads:
        raise _refused(path, f"num_key_value_heads is {kv_heads}, with {name} {heads}",
                       f"allowed is a divisor of {heads}")


def check_shapes(shapes: Mapping[str, tuple[int, ...]], parameters: int, path: Path, tensors: Iterable[TensorInfo],
                 *, packed: bool) -> None:
    """Raise SourceError if the weights do not have the shapes of the model that a config describes.

    shapes: parameter name -> shape. parameters: number of values of the model. path: of the config. packed: the
    weights are stored quantised, so that only their number of bytes is compared.
    """
    listed = list(tensors)
    wrong = [] if packed else [t for t in listed if t.dtype in _PLAIN and shapes.get(t.name, t.shape) != t.shape]
    if wrong:
        first = wrong[0]
        raise _refused(path, f"{len(wrong)} of the {len(listed)} tensors of the weights have other shapes than the "
                       f"config says; the first is {first.name!r}: the weights have {list(first.shape)}, the config "
                       f"says {list(shapes[first.name])}", "a merged or resized model needs the config that it was "
                       "saved with")
    stored = sum(t.end - t.begin for t in listed)
    if parameters > stored * (16 if packed else 1):
        raise _refused(path, f"it describes a model of {parameters:,} values, but the weights have {stored:,} bytes",
                       "the config and the weights must be of the same model")


# --- Adapters ---

#: A rank up to this is believed without a tensor that has it.
_SMALL_RANK = 1024


def check_adapter_sizes(config: Mapping[str, Any], path: Path, tensors: Iterable[TensorInfo]) -> None:
    """Raise SourceError for a rank in ``adapter_config.json`` that no tensor of the adapter has."""
    largest = max([_SMALL_RANK, *(n for t in tensors for n in t.shape)])
    ranks = {name: config.get(name) for name in ("r", "rank", "num_virtual_tokens", "adapter_len")}
    ranks |= {f"rank_pattern[{shown(k, 40)}]": v for k, v in (config.get("rank_pattern") or {}).items()}
    for name, rank in ranks.items():
        if isinstance(rank, list):  # AdaLoRA: which ranks of a module are kept
            continue
        if rank is not None and not _is_whole(rank, 0, largest):
            raise _refused(path, f"{name} is {shown(rank)}", f"allowed is a whole number up to {largest:,}, the "
                           "largest dimension of the adapter's tensors")
