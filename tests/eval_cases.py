"""Tiny models and tokenizers for the tests of the engine, the tasks and evaluations: a byte tokenizer, which
reads any text, and random Llamas that know it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

#: A chat template that writes the BOS itself, as those of Llama 3 and Gemma do.
CHAT = ("{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}")

_TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
output_type: {kind}
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
{more}
"""


def write_task(folder: Path, name: str, kind: str, file: Path, more: str) -> None:
    """A task file in ``folder`` whose documents, in ``file``, have a question and an answer. more: further lines."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.yaml").write_text(_TASK.format(name=name, kind=kind, file=json.dumps(str(file)), more=more))


#: Merges of the byte tokenizer: with them a word's tokens depend on the space before it.
MERGES = (("Ġ", "a"), ("a", "b"), ("Ġa", "b"), ("Ġ", "Ġ"))


def byte_tokenizer(*, adds_bos: bool = False, template: str | None = None, bos: bool = True) -> Any:
    """A byte-level BPE with four merges and <s>, </s>, <pad>; adds_bos: every encoding begins with <s>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = [*(["<s>"] if bos else []), "</s>", "<pad>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merged = [a + b for a, b in MERGES]
    core = Tokenizer(models.BPE({t: i for i, t in enumerate([*special, *letters, *merged])}, list(MERGES)))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    if adds_bos:
        core.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>" if bos else None,
                                        eos_token="</s>", pad_token="<pad>")
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer


def byte_config(*, window: int = 1024, hidden: int = 32, **values: Any) -> Any:
    """The config of a Llama for the byte tokenizer (its ids stay below 264)."""
    from transformers import LlamaConfig

    return LlamaConfig(**{"vocab_size": 264, "hidden_size": hidden, "intermediate_size": 2 * hidden,
                          "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
                          "max_position_embeddings": window, "bos_token_id": 0, "eos_token_id": 1,
                          "pad_token_id": 2, "initializer_range": 0.3, **values})


def byte_llama(kind: Any = None, **values: Any) -> Any:
    """A seeded random Llama in memory, ready for inference; kind: a subclass; values: fields of its config."""
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    return (kind or LlamaForCausalLM)(byte_config(**values)).eval()


#: Window of the families below that have one: shorter than the prompts of the tests.
SLIDING = 24
_HEADS: dict[str, Any] = {"num_key_value_heads": 2}
#: name -> (config class, its settings beside those of byte_config)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _HEADS),
    "mistral": ("MistralConfig", {**_HEADS, "sliding_window": SLIDING}),
    "gpt2": ("GPT2Config", {}),
    "gemma2": ("Gemma2Config", {**_HEADS, "head_dim": 8, "sliding_window": SLIDING, "query_pre_attn_scalar": 8,
                                "attn_logit_softcapping": 5.0, "final_logit_softcapping": 8.0,
                                "layer_types": ["sliding_attention", "full_attention"]}),
    "phi": ("PhiConfig", {"num_key_value_heads": 4, "partial_rotary_factor": 0.5}),
    "qwen2": ("Qwen2Config", {**_HEADS, "tie_word_embeddings": True}),
}


def family(name: str, **values: Any) -> Any:
    """A seeded random model of a family for the byte tokenizer; biases are random too."""
    import torch
    import transformers

    kind, settings = FAMILIES[name]
    shape = byte_config().to_diff_dict()
    shape = {k: v for k, v in shape.items() if k not in ("model_type", "transformers_version", "architectures")}
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**{**shape, "num_key_value_heads": None, **settings, **values})
    return with_random_vectors(transformers.AutoModelForCausalLM.from_config(config).eval())


def with_random_vectors(model: Any) -> Any:
    """The model with biases and norms moved from their 0 and 1, so that a path that forgets them shows."""
    import torch

    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight += 0.1 * torch.randn_like(weight)
    return model


def byte_folder(folder: Path, *, adds_bos: bool = False, template: str | None = None, **values: Any) -> Path:
    """The same with its tokenizer, as a model folder."""
    byte_llama(**values).save_pretrained(folder)
    byte_tokenizer(adds_bos=adds_bos, template=template).save_pretrained(folder)
    return folder


def scored_and_generated(model: str, ledger: str, items: int, progress: Any) -> Any:
    """An evaluation in many small batches: ``items`` items scored, half as many generated."""
    from aftertune.evaluation import evaluate
    from aftertune.ledger import Ledger
    from aftertune.study import TaskSpec

    tasks = [TaskSpec(name="arc_easy", sample=items), TaskSpec(name="gsm8k_cot", sample=items // 2)]
    with Ledger(ledger) as opened:
        return evaluate(model, tasks, ledger=opened, progress=progress, device="cpu", dtype="float32",
                        threads=1, task_source="pack", memory="1MB", gen_kwargs={"max_gen_toks": 8})
