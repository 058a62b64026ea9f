"""Several adapters of one base that is loaded once: each is exact, and so is the base between them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as CONFIGS
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from aftertune import sources
from aftertune.errors import ResourceError, SourceError
from aftertune.sources import loading
from source_cases import tiny_llama

#: Settings of a PEFT type beside ``target_modules`` (or ``num_virtual_tokens`` for prompts), to fit a tiny Llama.
SETTINGS: dict[str, dict[str, Any]] = {
    "ADALORA": {"init_r": 4, "target_r": 2, "total_step": 10}, "ADAMSS": {"r": 4},
    "ADAPTION_PROMPT": {"adapter_len": 4, "adapter_layers": 1, "target_modules": "self_attn"},
    "BEFT": {"target_modules": ["q_proj"]}, "C3A": {"block_size": 16},
    "CARTRIDGE": {"num_virtual_tokens": 3}, "CPT": {"cpt_token_ids": [3, 4], "cpt_mask": [1, 1],
                                                    "cpt_tokens_type_mask": [1, 2]},
    "FOURIERFT": {"n_frequency": 20}, "HRA": {"r": 4}, "LILY": {"r": 4, "stride_A": 1, "num_B": 2},
    "IA3": {"target_modules": ["q_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    "LN_TUNING": {"target_modules": ["input_layernorm"]}, "MISS": {"r": 4, "mini_r": 2},
    "MULTITASK_PROMPT_TUNING": {"num_virtual_tokens": 3, "num_tasks": 2, "num_ranks": 1},
    "OFT": {"oft_block_size": 16, "r": 0}, "OSF": {"effective_rank": 4}, "POLY": {"n_tasks": 1},
    "PREFIX_TUNING": {"num_virtual_tokens": 3}, "PROMPT_TUNING": {"num_virtual_tokens": 3},
    "P_TUNING": {"num_virtual_tokens": 3}, "RANDLORA": {"r": 4}, "ROAD": {"group_size": 16}, "SHIRA": {"r": 4},
    "TRAINABLE_TOKENS": {"token_indices": [1, 5], "target_modules": ["embed_tokens"]},
    "UNILORA": {"theta_d_length": 32, "r": 4}, "VBLORA": {"num_vectors": 16, "vector_length": 16},
    "WAVEFT": {"n_frequency": 20},
}
PROMPTS = {"CARTRIDGE", "CPT", "MULTITASK_PROMPT_TUNING", "PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING"}
#: Types that PEFT itself cannot run on a text alone, or (XLORA) that only combine other adapters.
NOT_ALONE = {"MULTITASK_PROMPT_TUNING", "POLY", "SHADOW", "XLORA"}
#: LoRA adapters that change the base when they are put on it, or leave something in it.
LORAS: dict[str, dict[str, Any]] = {
    "plain": {}, "bias": {"bias": "all"}, "bias of its layers": {"bias": "lora_only"},
    "head": {"modules_to_save": ["lm_head"]}, "both ends": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "norms": {"modules_to_save": ["norm", "input_layernorm"]}, "tokens": {"trainable_token_indices": [1, 5]},
    "pissa": {"init_lora_weights": "pissa"}, "olora": {"init_lora_weights": "olora"}, "dora": {"use_dora": True},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
}
IDS = torch.arange(3, 15)[None]


def fresh(base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()


def logits(model: Any) -> torch.Tensor:
    """Those of the text itself: some prompts add positions before it."""
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS).logits[:, -IDS.shape[1]:]
    return found


def saved(config: Any, base: Path, out: Path) -> Path:
    """A randomly trained adapter."""
    torch.manual_seed(1)
    model = peft.get_peft_model(fresh(base), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(out)
    return out


def of_type(kind: str, base: Path, out: Path) -> Path:
    targets = {} if kind in PROMPTS else {"target_modules": ["q_proj", "down_proj"]}
    settings = {**targets, **SETTINGS.get(kind, {})}
    return saved(CONFIGS[peft.PeftType(kind)](task_type="CAUSAL_LM", **settings), base, out)


def lora(base: Path, out: Path, **settings: Any) -> Path:
    return saved(peft.LoraConfig(**{"r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"],
                                    "task_type": "CAUSAL_LM", **settings}), base, out)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with tied embeddings, one with biases in its attention, and a plain adapter of each."""
    from transformers import LlamaConfig, LlamaForCausalLM

    root = tmp_path_factory.mktemp("models")
    tiny_llama(root / "tied")
    shutil.copytree(root / "tied", root / "biased")
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig.from_pretrained(root / "tied", attention_bias=True, tie_word_embeddings=False)
                     ).save_pretrained(root / "biased")
    for base in ("tied", "biased"):
        lora(root / base, root / f"{base}-next")
    return root


def check(base: Path, adapter: Path, following: Path) -> None:
    """The adapter, then the base, then another adapter, each as plain PEFT and transformers load it."""
    source = sources.resolve_model(str(base))
    identity = sources.fingerprint_model(source)
    first, second = (sources.resolve_adapter(str(a), source, identity) for a in (adapter, following))
    bases = sources.BaseModelCache()
    adapted = logits(bases.load(source, "float32", "cpu", first))
    assert torch.equal(adapted, logits(peft.PeftModel.from_pretrained(fresh(base), adapter).eval()))
    assert not torch.equal(adapted, logits(fresh(base)))
    assert torch.equal(logits(bases.load(source, "float32", "cpu")), logits(fresh(base)))
    bases.load(source, "float32", "cpu", first)
    assert torch.equal(logits(bases.load(source, "float32", "cpu", second)),
                       logits(peft.PeftModel.from_pretrained(fresh(base), following).eval()))


@pytest.mark.parametrize("kind", sorted(k.value for k in CONFIGS if k.value not in NOT_ALONE))
def test_an_adapter_of_any_type_is_exact_and_leaves_the_base_as_it_was(home: Path, tmp_path: Path, kind: str) -> None:
    check(home / "tied", of_type(kind, home / "tied", tmp_path / "a"), home / "tied-next")


@pytest.mark.parametrize("base", ["tied", "biased"])
@pytest.mark.parametrize("kind", sorted(LORAS))
def test_a_lora_that_changes_the_base_does_not_change_it_for_the_next(home: Path, tmp_path: Path, kind: str,
                                                                      base: str) -> None:
    check(home / base, lora(home / base, tmp_path / "a", **LORAS[kind]), home / f"{base}-next")


@pytest.mark.parametrize("kind", ["MULTITASK_PROMPT_TUNING", "POLY"])
def test_a_type_that_needs_more_than_a_text_is_refused_in_one_line(home: Path, tmp_path: Path, kind: str) -> None:
    source = sources.resolve_model(str(home / "tied"))
    adapter = sources.resolve_adapter(str(of_type(kind, home / "tied", tmp_path / "a")), source,
                                      sources.fingerprint_model(source))
    with pytest.raises(SourceError, match=f"cannot run this adapter of type {kind} on a text alone") as error:
        sources.load_model(source, "float32", "cpu", adapter)
    assert "\n" not in str(error.value)


def test_a_base_that_is_as_before_is_not_loaded_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = sources.resolve_model(str(home / "tied"))
    adapter = sources.resolve_adapter(str(home / "tied-next"), source, sources.fingerprint_model(source))
    real, loads = loading.load_model, []
    monkeypatch.setattr(loading, "load_model", lambda *a, **k: loads.append(a) or real(*a, **k))
    bases = sources.BaseModelCache()
    for _ in range(3):
        bases.load(source, "float32", "cpu", adapter)
        bases.load(source, "float32", "cpu")
    assert len(loads) == 1


def test_values_that_do_not_fit_into_memory_are_one_line(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = sources.resolve_model(str(home / "tied"))
    adapter = sources.resolve_adapter(str(home / "tied-next"), source, sources.fingerprint_model(source))
    bases = sources.BaseModelCache()
    bases.load(source, "float32", "cpu", adapter)

    def full(_path: Path) -> None:
        raise MemoryError

    monkeypatch.setattr("safetensors.torch.load_file", full)
    with pytest.raises(ResourceError, match="does not fit into the memory of cpu"):
        bases.load(source, "float32", "cpu", adapter)


def with_tensor(adapter: Path, out: Path, name: str, shape: tuple[int, ...]) -> Path:
    """A copy of an adapter with one more tensor in its file."""
    shutil.copytree(adapter, out)
    tensors = load_file(out / "adapter_model.safetensors")
    save_file({**tensors, name: torch.ones(shape)}, out / "adapter_model.safetensors", metadata={"format": "pt"})
    return out


LAYER = "base_model.model.model.layers.0"


@pytest.mark.parametrize(("name", "shape"), [
    (f"{LAYER}.self_attn.k_proj.lora_A.weight", (4, 32)),         # a layer that target_modules lacks
    (f"{LAYER}.self_attn.q_proj.lora_magnitude_vector", (32,)),   # use_dora is missing
    (f"{LAYER}.self_attn.q_proj.lora_B.bias", (32,)),             # lora_bias is missing
    (f"{LAYER}.self_attn.q_proj.weight", (32, 32)),               # a whole weight under a layer with LoRA
    ("base_model.vera_A", (4, 32)),
])
def test_an_adapter_of_which_only_a_part_would_be_used_is_refused(home: Path, tmp_path: Path, name: str,
                                                                  shape: tuple[int, ...]) -> None:
    source = sources.resolve_model(str(home / "tied"))
    folder = with_tensor(home / "tied-next", tmp_path / "a", name, shape)
    adapter = sources.resolve_adapter(str(folder), source, sources.fingerprint_model(source))
    bases = sources.BaseModelCache()
    with pytest.raises(SourceError, match="1 of the 13 tensors in its file have no place in the model") as error:
        bases.load(source, "float32", "cpu", adapter)
    assert name in str(error.value)
    assert "\n" not in str(error.value)
    assert torch.equal(logits(bases.load(source, "float32", "cpu")), logits(fresh(home / "tied")))


@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "PREFIX_TUNING", "CPT"])
def test_the_engine_scores_and_generates_behind_a_prompt_that_the_adapter_brings(tmp_path: Path, kind: str) -> None:
    """Texts of different lengths, as PEFT answers each of them alone."""
    from aftertune.engine import budget
    from aftertune.engine.engine import Engine
    from aftertune.values import Request
    from eval_cases import byte_folder

    base = byte_folder(tmp_path / "base")
    source = sources.resolve_model(str(base))
    adapter = sources.resolve_adapter(str(of_type(kind, base, tmp_path / "a")), source,
                                      sources.fingerprint_model(source))
    tokenizer = sources.load_tokenizer(source)
    model = sources.load_model(source, "float32", "cpu", adapter)
    engine = Engine(model, tokenizer, packed=True, budget=budget.resolve(model, free=10**9, threads=1))
    texts = ["The sky is", "What comes after one, two and three?"]
    requests = [Request(position=n, kind="score", context=text, continuation=" ab", item=n)
                for n, text in enumerate(texts)]
    requests += [Request(position=2 + n, kind="generate", context=text, item=2 + n, generation={"max_gen_toks": 6})
                 for n, text in enumerate(texts)]
    found = {p: r for batch in engine.run(engine.plan(requests), set()) for p, r in batch.responses.items()}
    plain = peft.PeftModel.from_pretrained(fresh(base), adapter.path).eval()
    for n, text in enumerate(texts):
        sequence = engine.encoder.score(text, " ab")
        with torch.no_grad():
            rows = plain(input_ids=torch.tensor([sequence.tokens[:-1]])).logits[0, -sequence.targets:].log_softmax(-1)
            prompt = torch.tensor([engine.encoder.prompt(text, 6).tokens])
            made = plain.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=6,
                                  do_sample=False, pad_token_id=tokenizer.pad_token_id)
        expected = sum(float(row[token]) for row, token in zip(rows, sequence.tokens[-sequence.targets:], strict=True))
        assert found[n].logprob == pytest.approx(expected, abs=1e-4)
        assert found[2 + n].text == tokenizer.decode(made[0, prompt.shape[1]:], skip_special_tokens=True)
