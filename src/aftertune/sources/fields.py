"""Owns which fields of a config count towards a fingerprint, and why the others do not.

    function_fields({"hidden_size": 32, "use_cache": True, "attention_dropout": 0.1})  ->  {"hidden_size": 32}

A field is dropped only where it is known not to change what the model computes in evaluation; an unknown one
counts, so that a new field can make two equal models look different but never two different ones look equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
