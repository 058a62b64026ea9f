"""A tiny model with a chat template, and data that it can learn, for the tests of fine-tuning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }} <|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)
SPECIAL = ("<pad>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<unk>")


def chat_tokenizer(template: str | None = TEMPLATE) -> Any:
    """A word-level tokenizer of 40 words with turns marked by special tokens; <|end|> ends a turn."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *(f"w{i}" for i in range(40)), "say", "twice"])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", pad_token="<pad>", eos_token="<|end|>",
        additional_special_tokens=list(SPECIAL[2:5]))
    tokenizer.chat_template = template
    return tokenizer


def tiny_model(folder: Path, *, seed: int = 0, hidden: int = 32) -> Path:
    """A seeded random two-layer Llama with `chat_tokenizer`, saved by transformers."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    LlamaForCausalLM(LlamaConfig(
        initializer_range=0.3,  # the default's tiny embeddings bound every logit, and nothing can be learned
        vocab_size=64, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True, eos_token_id=1,
        pad_token_id=0, bos_token_id=None)).save_pretrained(folder)
    chat_tokenizer().save_pretrained(folder)
    return folder


_LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0,
           "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
#: The record's models in small: config class and what makes each of them itself.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-3.2": ("LlamaConfig", {"num_key_value_heads": 2, "tie_word_embeddings": True, "rope_parameters": _LLAMA3}),
    "tinyllama": ("LlamaConfig", {"num_key_value_heads": 1, "tie_word_embeddings": False}),
    "phi-2": ("PhiConfig", {"partial_rotary_factor": 0.5, "tie_word_embeddings": False}),
    "mistral": ("MistralConfig", {"num_key_value_heads": 2, "sliding_window": 8, "tie_word_embeddings": False}),
}


def family_model(folder: Path, name: str, *, dtype: str = "float32", seed: int = 0) -> Path:
    """A seeded random model of a family with `chat_tokenizer`, saved in ``dtype``; biases and norms are random too."""
    import torch
    import transformers

    kind, settings = FAMILIES[name]
    torch.manual_seed(seed)
    config = getattr(transformers, kind)(**{
        "initializer_range": 0.3, "vocab_size": 64, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 64, "eos_token_id": 1, "pad_token_id": 0,
        "bos_token_id": None, **settings})
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight += 0.1 * torch.randn_like(weight)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    chat_tokenizer().save_pretrained(folder)
    return folder


def rows(count: int = 40) -> list[dict[str, str]]:
    """"say w7 twice" -> "w7 w7"."""
    return [{"prompt": f"say w{i} twice", "completion": f"w{i} w{i}"} for i in range(count)]


def easy_rows(count: int = 40) -> list[dict[str, str]]:
    """"say w7 twice" -> "w1 w2": what a frozen random model can learn within a few steps."""
    return [{**row, "completion": "w1 w2"} for row in rows(count)]


def base_and_data(folder: Path, *, hidden: int = 32) -> Path:
    """``folder`` with a tiny model in ``base`` and easy rows in ``data.jsonl``."""
    tiny_model(folder / "base", hidden=hidden)
    write_rows(folder / "data.jsonl", easy_rows())
    return folder


def write_rows(path: Path, data: list[dict[str, Any]]) -> Path:
    """The rows as a JSONL file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in data), encoding="utf-8")
    return path


def timeless(steps: Any) -> list[dict[str, float]]:
    """A training log without its speed, which is another in every run."""
    return [{k: v for k, v in step.items() if k != "tokens_per_second"} for step in steps]
