"""Owns the identity of models, adapters, tokenizers and data by content.

    identity = fingerprint_model(resolve_model("./out/merged"))
    identity.weights, identity.config, identity.tokenizer        three sha256, each shown on its own

Weights: every stored tensor as (name, dtype, shape, sha256 of its raw bytes), in name order, hashed; so the
file's layout and its split into shards do not matter, and one changed bit does. A GGUF counts as stored,
before dequantisation. Config: the fields of ``config.json`` that can change the forward pass. A field is
dropped only where it is known not to; an unknown one counts. Values are taken as written: a default spelled
out in a re-saved config gives another config fingerprint, though the weights' stays.

Owns which fields of a config count towards a fingerprint, and why the others do not.

    function_fields({"hidden_size": 32, "use_cache": True, "attention_dropout": 0.1})  ->  {"hidden_size": 32}

A field is dropped only where it is known not to change what the model computes in evaluation; an unknown one
counts, so that a new field can make two equal models look different but never two different ones look equal.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aftertune.errors import SourceError
from aftertune.sources.cache import cache_value, cached_value, settled, stat_key
from aftertune.sources.resolve import AdapterSource, ModelSource, read_json
from aftertune.sources.tensors import GgufContents, read_bytes, read_gguf, weight_files
from aftertune.values import ModelIdentity, canonical, digest, json_ready

#: config.json fields that name or describe the model, or say how it was saved, started or is trained.
#: dtype: the tensors carry their own, and the run records the one that it computes in.
DESCRIBING = frozenset({
    "_name_or_path", "name_or_path", "_model_name_or_path", "_commit_hash", "transformers_version",
    "unsloth_version", "unsloth_fixed", "dtype", "torch_dtype", "use_cache", "_attn_implementation",
    "_attn_implementation_autoset", "gradient_checkpointing", "output_attentions", "output_hidden_states",
    "return_dict", "return_dict_in_generate", "torchscript", "initializer_range", "initializer_factor",
    "classifier_dropout", "summary_first_dropout", "id2label", "label2id", "num_labels", "problem_type",
    "finetuning_task", "task_specific_params", "tokenizer_class", "prefix",
})
#: Endings of dropout fields: dropout acts in training only.
DROPOUT = ("dropout", "dropout_prob", "_pdrop", "_drop", "layerdrop")
#: Defaults of generation that old configs carry; aftertune takes its own from the task.
GENERATION = frozenset({
    "max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups",
    "diversity_penalty", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty",
    "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences",
    "output_scores", "remove_invalid_values", "forced_bos_token_id", "forced_eos_token_id",
    "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens",
})
#: Ids that mark text for the tokenizer or end generation. Others (image_token_id, mask_token_id) count.
TOKEN_IDS = frozenset({"bos_token_id", "eos_token_id", "unk_token_id", "sep_token_id", "cls_token_id"})
#: Model types that compute positions or embeddings from pad_token_id; elsewhere it only marks padding.
PAD_COUNTS = frozenset({
    "camembert", "data2vec-text", "fsmt", "kosmos-2", "kosmos-2.5", "m2m_100", "marian", "pegasus",
    "prophetnet", "roberta", "roformer", "trocr", "whisper", "xglm", "xlm-roberta",
})
#: tokenizer_config.json fields that say where and by what it was saved.
TOKENIZER_SAVING = frozenset({
    "name_or_path", "tokenizer_file", "special_tokens_map_file", "transformers_version", "is_local",
    "local_files_only", "cache_dir", "processor_class", "device_map",
})
#: adapter_config.json fields that do not change what the adapter computes.
ADAPTER_DESCRIBING = frozenset({
    "base_model_name_or_path", "revision", "inference_mode", "peft_version", "auto_mapping", "task_type",
    "runtime_config", "lora_dropout", "module_dropout",
})
#: Starting points of LoRA that leave the base alone; pissa, olora and the like change it, and count.
PLAIN_STARTS = (True, False, "gaussian")


def function_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config that can change the forward pass, nested configs included.

    A null stays: Mistral's ``sliding_window: null`` means none, its absence means 4096.
    """
    dropped = DESCRIBING | GENERATION | TOKEN_IDS
    if config.get("model_type") not in PAD_COUNTS:
        dropped |= {"pad_token_id"}
    return {k: function_fields(v) if isinstance(v, Mapping) else v for k, v in config.items()
            if k not in dropped and not k.endswith(DROPOUT)}


def adapter_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an adapter's config that change what it computes; sets of names in one order."""
    kept = {k: sorted(v) if isinstance(v, list) and all(isinstance(x, str) for x in v) else v
            for k, v in config.items() if k not in ADAPTER_DESCRIBING and v not in (None, [], {})}
    if kept.get("init_lora_weights") in PLAIN_STARTS:
        kept.pop("init_lora_weights")
    return kept


#: What a tuning's folder says of itself.
LINEAGE = "aftertune.json"
HEADS = ("lm_head.weight", "output.weight", "embed_out.weight")
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "token_embd.weight", "embed_in.weight",
              "word_embeddings.weight")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "merges.txt",
                   "vocab.txt", "spiece.model", "sentencepiece.bpe.model", "special_tokens_map.json",
                   "added_tokens.json", "tiktoken.model", "chat_template.jinja", "chat_template.json")


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One stored tensor by content. sha: sha256 of its raw bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    sha: str


def fingerprint_model(source: ModelSource, adapter: AdapterSource | None = None) -> ModelIdentity:
    """What a model is, by content; with ``adapter``, the base with it.

    Reads every weight once; unchanged files are remembered. Raises SourceError for damaged files.
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


def _check_result(source: ModelSource, found: str) -> None:
    """Raises SourceError where a full tuning's folder holds another model than its record says was made."""
    if source.gguf_file or not (source.path / LINEAGE).is_file():
        return
    record = read_json(source.path / LINEAGE)
    if record.get("method") == "full" and record.get("result") not in (None, found):
        raise SourceError(changed(source.path / "model.safetensors", found, str(record["result"])))


def changed(weights: Path, found: str, recorded: str) -> str:
    """The error for weights that are not those that a tuning wrote. found, recorded: fingerprints."""
    return (f"{weights}: damaged, or changed since it was made (or the config beside it): the fingerprint is "
            f"{found[:12]}, {LINEAGE} says {recorded[:12]}; tune or fetch it again, or take {LINEAGE} away if the "
            "change is meant")


def _folder_facts(folder: Path) -> dict[str, Any]:
    config = read_json(folder / "config.json")
    weights = fingerprint_weights(weight_files(folder))
    quantised = bool(config.get("quantization_config"))
    names = config.get("architectures") or [config.get("model_type", "")]
    return {"weights": weights["weights"], "config": digest(json_ready(function_fields(config))),
            "tokenizer": fingerprint_tokenizer(folder), "architecture": str(names[0]),
            # Packed 4-bit tensors do not tell how many parameters they hold.
            "parameters": None if quantised else weights["parameters"]}


def _gguf_facts(path: Path) -> dict[str, Any]:
    key = stat_key([path], "gguf-1")
    if (known := cached_value(key)) is not None:
        return known
    contents = read_gguf(path)
    tensors = list(_gguf_tensors(contents))
    facts = {"weights": digest_tensors(tensors), "config": digest(json_ready(contents.function_metadata())),
             "tokenizer": digest(json_ready(contents.tokenizer_metadata())),
             "architecture": contents.architecture, "parameters": count_parameters(tensors)}
    _remember_if_unchanged(key, [path], "gguf-1", facts)
    return facts


def _gguf_tensors(contents: GgufContents) -> Iterator[StoredTensor]:
    import numpy as np

    for t in contents.tensors:
        sha = hashlib.sha256(np.ascontiguousarray(t.data).data).hexdigest()
        yield StoredTensor(t.name, t.dtype, t.shape, sha)


def fingerprint_weights(files: Iterable[Path]) -> dict[str, Any]:
    """``{"weights": sha256, "parameters": count}`` of safetensors files, however the tensors are split."""
    paths = list(files)
    key = stat_key(paths, "safetensors-1")
    if (known := cached_value(key)) is not None:
        return known
    found: dict[str, StoredTensor] = {}
    for path in paths:
        for info, data in read_bytes(path):
            tensor = StoredTensor(info.name, info.dtype, info.shape, hashlib.sha256(data).hexdigest())
            if found.setdefault(info.name, tensor) != tensor:
                raise SourceError(f"{path}: holds {info.name!r} with other content than another shard; fetch "
                                  "the model again")
    tensors = list(found.values())
    facts = {"weights": digest_tensors(tensors), "parameters": count_parameters(tensors)}
    _remember_if_unchanged(key, paths, "safetensors-1", facts)
    return facts


def _remember_if_unchanged(key: str, paths: list[Path], purpose: str, facts: dict[str, Any]) -> None:
    if stat_key(paths, purpose) != key:
        raise SourceError(f"{paths[0]}: changed while it was read; wait until it is written and start again")
    if settled(paths):
        cache_value(key, facts)


def digest_tensors(tensors: Iterable[StoredTensor]) -> str:
    """sha256 over (name, dtype, shape, sha256 of the bytes) in name order."""
    return digest([[t.name, t.dtype, list(t.shape), t.sha] for t in sorted(tensors, key=lambda t: t.name)])


def count_parameters(tensors: Iterable[StoredTensor]) -> int:
    """Numbers in all tensors; an output head stored as a copy of the token embedding is counted once."""
    listed = list(tensors)
    embeddings = {(t.sha, t.shape) for t in listed if t.name.endswith(EMBEDDINGS)}
    return sum(math.prod(t.shape) for t in listed
               if not (t.name.endswith(HEADS) and (t.sha, t.shape) in embeddings))


def fingerprint_tokenizer(folder: Path) -> str:
    """sha256 of a folder's tokenizer files and chat template, whatever their formatting.

    The template counts the same in tokenizer_config.json and in chat_template.jinja; padding and truncation
    that a tokenizer.json happened to be saved with do not count (every call sets its own).
    """
    parts: dict[str, Any] = {}
    extra = sorted(p for p in folder.glob("additional_chat_templates/*.jinja"))
    for path in [*(folder / n for n in TOKENIZER_FILES), *extra]:
        if not path.is_file():
            continue
        if path.suffix != ".json":
            parts[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
            continue
        content = read_json(path)
        if path.name == "tokenizer.json":
            content = {k: v for k, v in content.items() if k not in {"padding", "truncation"}}
        if path.name in {"tokenizer_config.json", "chat_template.json"}:
            template = content.pop("chat_template", None)
            content = {k: v for k, v in content.items() if k not in TOKENIZER_SAVING}
            if isinstance(template, str):
                parts["chat_template.jinja"] = hashlib.sha256(template.encode()).hexdigest()
            elif template is not None:
                parts["chat_templates"] = template
        if content:
            parts[path.name] = content
    return digest(json_ready(parts))


def fingerprint_adapter(folder: Path) -> str:
    """sha256 of a PEFT adapter: its tensors and the config fields that change what it computes."""
    config = read_json(folder / "adapter_config.json")
    weights = fingerprint_weights([folder / "adapter_model.safetensors"])
    return digest([weights["weights"], json_ready(adapter_fields(config))])


def fingerprint_file(path: Path) -> str:
    """sha256 of a file's bytes; remembered while the file is unchanged."""
    if not path.is_file():
        raise SourceError(f"{path}: no such file")
    key = stat_key([path], "bytes-1")
    if (known := cached_value(key)) is not None:
        return str(known["sha256"])
    with path.open("rb") as file:
        sha = hashlib.file_digest(file, "sha256").hexdigest()
    _remember_if_unchanged(key, [path], "bytes-1", {"sha256": sha})
    return sha


def fingerprint_rows(rows: Iterable[Mapping[str, Any]]) -> str:
    """sha256 of training examples in their order, whatever the file's spacing or key order."""
    total = hashlib.sha256()
    for row in rows:
        total.update(canonical(row).encode("utf-8", "surrogatepass") + b"\n")
    return total.hexdigest()
