"""Tiny models of the architectures that are exported to GGUF, with a tokenizer that llama.cpp could read."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from aftertune.ledger import Ledger
from aftertune.sources.cache import cache_root
from aftertune.study import DataSpec, TuneSpec
from aftertune.tasks import lm_eval_index
from aftertune.tuning import tune
from aftertune.values import Tuning
from eval_cases import MERGES, with_random_vectors
from tuning_cases import easy_rows, write_rows

#: ChatML, with a system prompt where the messages have none.
CHATML = ("{% for m in messages %}{% if loop.first and m['role'] != 'system' %}{{ '<|im_start|>system\nBe brief."
          "<|im_end|>\n' }}{% endif %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
          "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
ROWS = 272
#: name -> (config class, settings beside the common ones)
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "llama-tied": ("LlamaConfig", {"tie_word_embeddings": True}),
    "llama-wide-heads": ("LlamaConfig", {"head_dim": 24}),
    "llama-scaled": ("LlamaConfig", {"max_position_embeddings": 128, "rope_parameters": {
        "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16}}),
    "mistral": ("MistralConfig", {"sliding_window": None}),
    "qwen2": ("Qwen2Config", {}),
    "qwen2-tied": ("Qwen2Config", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", {"head_dim": 128}),
}


def set_own_cache(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Set a cache folder of its own, but with the index of lm-eval's tasks, which takes ten seconds to build."""
    name = "lm_eval_tasks.json"
    if not (folder / name).exists():
        if not (index := cache_root() / name).exists():
            lm_eval_index.manager()
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(index, folder)
    patch.setenv("AFTERTUNE_CACHE", str(folder))


def chat_tokenizer(*, pre: str = "smollm", template: str | None = CHATML, adds_bos: bool = False) -> Any:
    """A byte-level BPE that splits texts as SmolLM's or GPT-2's, with the tokens of ChatML."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merged = [a + b for a, b in MERGES]
    core = Tokenizer(models.BPE({t: i for i, t in enumerate([*special, *letters, *merged])}, list(MERGES)))
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    core.pre_tokenizer = words if pre == "gpt-2" else pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), words])
    core.decoder = decoders.ByteLevel()
    if adds_bos:
        core.post_processor = processors.TemplateProcessing(
            single="<|im_start|> $A", pair="<|im_start|> $A $B", special_tokens=[("<|im_start|>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<|endoftext|>", bos_token="<|im_start|>",
                                        eos_token="<|im_end|>", pad_token="<|im_end|>")
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer


def chat_model(name: str, folder: Path, *, dtype: str = "float32", tokenizer: Any = None, **values: Any) -> Path:
    """A seeded random model of an architecture, whose biases and norms are random too, in a folder."""
    import torch
    import transformers

    kind, settings = ARCHITECTURES[name]
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**{
        "vocab_size": ROWS, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 1,
        "eos_token_id": 2, "pad_token_id": 2, "initializer_range": 0.2, "tie_word_embeddings": False, **settings,
        **values})
    model = with_random_vectors(transformers.AutoModelForCausalLM.from_config(config).eval())
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    (tokenizer or chat_tokenizer()).save_pretrained(folder)
    return folder


def easy_tuning(home: Path, *, name: str = "easy", out: str = "out", **settings: Any) -> Tuning:
    """A LoRA on a tiny Llama in ``home/base``, without merged weights, in the ledger ``home/ledger.db``."""
    base = home / "base"
    if not base.exists():
        chat_model("llama", base, max_position_embeddings=512)
    data = DataSpec(file=write_rows(home / "rows.jsonl", easy_rows()))
    with Ledger(home / "ledger.db") as ledger:
        return tune(TuneSpec(**{"model": str(base), "data": data, "out": home / out, "name": name, "max_steps": 2,
                                "learning_rate": 0.02, "dtype": "float32", "threads": 1, **settings}), ledger=ledger)
