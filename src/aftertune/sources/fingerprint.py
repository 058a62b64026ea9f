"""Fingerprints models, adapters, tokenizers and data: SHA-256 hashes of their content.

    identity = fingerprint_model(resolve_model("./out/merged"))
    identity.weights, identity.config, identity.tokenizer        three hashes

Weights: the hash of (name, dtype, shape, sha256 of the raw bytes) of every stored tensor, in name order. The layout of
the file and its shards do not matter; one changed bit does. A GGUF is hashed as stored, before dequantisation.

Config: the hash of the fields of ``config.json`` that can change the forward pass.

    function_fields({"hidden_size": 32, "use_cache": True, "attention_dropout": 0.1})  ->  {"hidden_size": 32}

A field is dropped only if it is known not to change what the model computes in evaluation. An unknown field counts, so
a new one can make two equal models look different, but never two different models look equal. Values count as written:
a default that a saved config spells out changes the config's fingerprint, though not that of the weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from aftertune.errors import SourceError
from aftertune.sources.cache import cache_value, cached_value, settled, stat_key
from aftertune.sources.gguf_child import facts_from_child
from aftertune.sources.resolve import AdapterSource, ModelSource, read_json
from aftertune.sources.tensors import StoredTensor, count_parameters, digest_tensors, read_bytes, weight_files
from aftertune.values import ModelIdentity, canonical, digest, json_ready

# --- Which fields of a config count ---

#: config.json fields that name or describe the model, or concern saving, initialisation and training.
#: dtype: each tensor has its own, and the run records the one that it computes in.
DESCRIBING = frozenset({
    "_name_or_path", "name_or_path", "_model_name_or_path", "_commit_hash", "transformers_version",
    "unsloth_version", "unsloth_fixed", "dtype", "torch_dtype", "use_cache", "_attn_implementation",
    "_attn_implementation_autoset", "gradient_checkpointing", "output_attentions", "output_hidden_states",
    "return_dict", "return_dict_in_generate", "torchscript", "initializer_range", "initializer_factor",
    "classifier_dropout", "summary_first_dropout", "id2label", "label2id", "num_labels", "problem_type",
    "finetuning_task", "task_specific_params", "tokenizer_class", "prefix",
})
#: Endings of dropout fields: dropout is active in training only.
DROPOUT = ("dropout", "dropout_prob", "_pdrop", "_drop", "layerdrop")
#: Generation defaults in older configs: they do not change the forward pass (`aftertune.sources.generation`).
GENERATION = frozenset({
    "max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups",
    "diversity_penalty", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty",
    "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences",
    "output_scores", "remove_invalid_values", "forced_bos_token_id", "forced_eos_token_id",
    "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens",
})
#: Ids that the tokenizer adds or that end generation. Other ids (image_token_id, mask_token_id) count.
TOKEN_IDS = frozenset({"bos_token_id", "eos_token_id", "unk_token_id", "sep_token_id", "cls_token_id"})
#: Model types that compute positions or embeddings from pad_token_id; in others it only marks padding.
PAD_COUNTS = frozenset({
    "camembert", "data2vec-text", "fsmt", "kosmos-2", "kosmos-2.5", "m2m_100", "marian", "pegasus",
    "prophetnet", "roberta", "roformer", "trocr", "whisper", "xglm", "xlm-roberta",
})
#: tokenizer_config.json fields that describe where and how it was saved.
TOKENIZER_SAVING = frozenset({
    "name_or_path", "tokenizer_file", "special_tokens_map_file", "transformers_version", "is_local",
    "local_files_only", "cache_dir", "processor_class", "device_map",
})
#: adapter_config.json fields that do not change what the adapter computes.
ADAPTER_DESCRIBING = frozenset({
    "base_model_name_or_path", "revision", "inference_mode", "peft_version", "auto_mapping", "task_type",
    "runtime_config", "lora_dropout", "module_dropout",
})
#: Values of init_lora_weights that leave the base weights unchanged; pissa, olora and others change them, and count.
PLAIN_INITS = (True, False, "gaussian")


def function_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config that can change the forward pass, including those of nested configs.

    A null counts: Mistral's ``sliding_window: null`` means none, without the field it is 4096.
    """
    dropped = DESCRIBING | GENERATION | TOKEN_IDS
    if config.get("model_type") not in PAD_COUNTS:
        dropped |= {"pad_token_id"}
    return {k: function_fields(v) if isinstance(v, Mapping) else v for k, v in config.items()
            if k not in dropped and not k.endswith(DROPOUT)}


def adapter_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an adapter's config that change what it computes, with lists of names sorted."""
    fields = {k: sorted(v) if isinstance(v, list) and all(isinstance(x, str) for x in v) else v
              for k, v in config.items() if k not in ADAPTER_DESCRIBING and v not in (None, [], {})}
    if fields.get("init_lora_weights") in PLAIN_INITS:
        fields.pop("init_lora_weights")
    return fields


# --- Models ---

#: The manifest that a fine-tune writes into its output folder.
MANIFEST_FILE = "aftertune.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "merges.txt",
                   "vocab.txt", "spiece.model", "sentencepiece.bpe.model", "special_tokens_map.json",
                   "added_tokens.json", "tiktoken.model", "chat_template.jinja", "chat_template.json")


def fingerprint_model(source: ModelSource, adapter: AdapterSource | None = None) -> ModelIdentity:
    """Identity of a model by content; with ``adapter``, of the base with this adapter.

    Reads all weights once and caches the result while the files are unchanged. Raises SourceError for damaged files.
    """
    facts = _gguf_facts(source.gguf_path) if source.gguf_path else _folder_facts(source.path)
    identity = ModelIdentity(
        source=source.source, weights=facts["weights"], config=facts["config"], tokenizer=facts["tokenizer"],
        adapter=fingerprint_adapter(adapter.path) if adapter else None,
        adapter_source=adapter.source if adapter else None, architecture=facts["architecture"],
        parameters=facts["parameters"], revision=source.revision, trust_remote_code=source.trust_remote_code,
        quantization=source.quantization)
    _check_result(source, identity.stored.fingerprint)
    return identity


def _check_result(source: ModelSource, fingerprint: str) -> None:
    """Raise SourceError if the weights of a full fine-tune differ from those that its manifest records."""
    if source.gguf_file or not (source.path / MANIFEST_FILE).is_file():
        return
    manifest = read_json(source.path / MANIFEST_FILE)
    if manifest.get("method") == "full" and manifest.get("result") not in (None, fingerprint):
        raise SourceError(changed_weights_message(source.path / "model.safetensors", fingerprint,
                                                  str(manifest["result"])))


def changed_weights_message(weights: Path, fingerprint: str, recorded: str) -> str:
    """Error message for weights with another fingerprint than the manifest of their fine-tune records."""
    return (f"{weights}: the weights or their config are damaged or were changed after the fine-tune: the fingerprint "
            f"is {fingerprint[:12]}, {MANIFEST_FILE} says {recorded[:12]}; tune or download again, or remove "
            f"{MANIFEST_FILE} if the change is intended")


def _folder_facts(folder: Path) -> dict[str, Any]:
    config = read_json(folder / "config.json")
    weights = fingerprint_weights(weight_files(folder))
    quantised = bool(config.get("quantization_config"))
    names = config.get("architectures") or [config.get("model_type", "")]
    return {"weights": weights["weights"], "config": digest(json_ready(function_fields(config))),
            "tokenizer": fingerprint_tokenizer(folder), "architecture": str(names[0]),
            # The shapes of packed 4-bit tensors do not give the number of parameters.
            "parameters": None if quantised else weights["parameters"]}


def _gguf_facts(path: Path) -> dict[str, Any]:
    key = stat_key([path], "gguf-1")
    if (cached := cached_value(key)) is not None:
        return cached
    facts = facts_from_child(path)
    _cache_if_unchanged(key, [path], "gguf-1", facts)
    return facts


def fingerprint_weights(files: Iterable[Path]) -> dict[str, Any]:
    """``{"weights": sha256, "parameters": count}`` of safetensors files, however the tensors are split into shards."""
    paths = list(files)
    key = stat_key(paths, "safetensors-1")
    if (cached := cached_value(key)) is not None:
        return cached
    by_name: dict[str, StoredTensor] = {}
    for path in paths:
        for info, data in read_bytes(path):
            tensor = StoredTensor(info.name, info.dtype, info.shape, hashlib.sha256(data).hexdigest())
            if by_name.setdefault(info.name, tensor) != tensor:
                raise SourceError(f"{path}: {info.name!r} has other content than in another shard; download "
                                  "the model again")
    tensors = list(by_name.values())
    facts = {"weights": digest_tensors(tensors), "parameters": count_parameters(tensors)}
    _cache_if_unchanged(key, paths, "safetensors-1", facts)
    return facts


def _cache_if_unchanged(key: str, paths: list[Path], purpose: str, facts: dict[str, Any]) -> None:
    if stat_key(paths, purpose) != key:
        raise SourceError(f"{paths[0]}: the file changed while it was read; wait until it is written, then run again")
    if settled(paths):
        cache_value(key, facts)


# --- Tokenizers, adapters and data ---

def fingerprint_tokenizer(folder: Path) -> str:
    """sha256 of a folder's tokenizer files and chat template; their formatting does not matter.

    A template gives the same hash in tokenizer_config.json and in chat_template.jinja. The padding and truncation saved
    in tokenizer.json do not count, because every call sets its own. The class that config.json names counts where
    tokenizer_config.json names none.
    """
    contents: dict[str, Any] = {}
    settings, config = folder / "tokenizer_config.json", folder / "config.json"
    if config.is_file() and not (settings.is_file() and read_json(settings).get("tokenizer_class")):
        contents |= {k: v for k, v in read_json(config).items() if k == "tokenizer_class" and v}
    templates = sorted(p for p in folder.glob("additional_chat_templates/*.jinja"))
    for path in [*(folder / n for n in TOKENIZER_FILES), *templates]:
        if not path.is_file():
            continue
        if path.suffix != ".json":
            contents[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
            continue
        content = read_json(path)
        if path.name == "tokenizer.json":
            content = {k: v for k, v in content.items() if k not in {"padding", "truncation"}}
        if path.name in {"tokenizer_config.json", "chat_template.json"}:
            template = content.pop("chat_template", None)
            content = {k: v for k, v in content.items() if k not in TOKENIZER_SAVING}
            if isinstance(template, str):
                contents["chat_template.jinja"] = hashlib.sha256(template.encode()).hexdigest()
            elif template is not None:
                contents["chat_templates"] = template
        if content:
            contents[path.name] = content
    return digest(json_ready(contents))


#: Endings of files that a model's own code may read beside weights and tokenizer.
READ_BY_CODE = (".py", ".tiktoken", ".model", ".vocab", ".bpe")


def fingerprint_code(source: ModelSource) -> str | None:
    """sha256 of the Python files that run with a model, and of other files that they may read.

    None if no code of the model runs, because it has none or is not trusted.
    """
    if not source.trust_remote_code or not any(source.path.rglob("*.py")):
        return None
    files = sorted(p for p in source.path.rglob("*") if p.suffix in READ_BY_CODE and p.name not in TOKENIZER_FILES)
    return digest([[str(p.relative_to(source.path)), hashlib.sha256(p.read_bytes()).hexdigest()] for p in files])


def fingerprint_adapter(folder: Path) -> str:
    """sha256 of a PEFT adapter: its tensors and the config fields that change what it computes."""
    config = read_json(folder / "adapter_config.json")
    weights = fingerprint_weights([folder / "adapter_model.safetensors"])
    return digest([weights["weights"], json_ready(adapter_fields(config))])


def fingerprint_file(path: Path) -> str:
    """sha256 of a file's bytes, cached while the file is unchanged. Raises SourceError if there is no such file."""
    if not path.is_file():
        raise SourceError(f"{path}: no such file")
    key = stat_key([path], "bytes-1")
    if (cached := cached_value(key)) is not None:
        return str(cached["sha256"])
    with path.open("rb") as file:
        sha = hashlib.file_digest(file, "sha256").hexdigest()
    _cache_if_unchanged(key, [path], "bytes-1", {"sha256": sha})
    return sha


def fingerprint_rows(rows: Iterable[Mapping[str, Any]]) -> str:
    """sha256 of training examples in their order; the spacing and key order in the file do not matter."""
    total = hashlib.sha256()
    for row in rows:
        total.update(canonical(row).encode("utf-8", "surrogatepass") + b"\n")
    return total.hexdigest()
