"""Whole models on the kernels, with packed weights and fused layers: the numbers of plain transformers, whatever the
family or the adapter, and only while asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from aftertune.engine import packing
from aftertune.engine.attention import Call, TorchBackend, attending
from aftertune.engine.backends import backend_for
from aftertune.engine.budget import resolve
from aftertune.engine.cpu import attention as cpu_attention
from aftertune.engine.cpu import availability, build, ops
from aftertune.engine.cpu.linear import ROWS, PackedLinears, packable_layers, packs_dtype
from aftertune.engine.cpu.llama import FusedLayers
from aftertune.engine.decoder import Decoder, Wave
from aftertune.engine.engine import Engine
from aftertune.engine.packing import packed_row, prompt_row
from aftertune.engine.schedule import Budget
from aftertune.engine.scorer import Scorer
from aftertune.engine.tokenize import Generation, Prompt, TokenSequence
from aftertune.errors import ResourceError
from aftertune.values import Request
from eval_cases import SLIDING, byte_config, byte_llama, byte_tokenizer, family, with_random_vectors

#: Eight heads of 16 numbers; four of keys and values, whose layers are then just wide enough to be packed.
WIDE: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 8}
SHARED: dict[str, Any] = {"num_key_value_heads": ROWS // 16}
#: name -> (config class, its settings beside those of byte_config and WIDE, layers that are fused)
MODELS: dict[str, tuple[str, dict[str, Any], int]] = {
    "llama": ("LlamaConfig", SHARED, 2),
    "llama, with biases": ("LlamaConfig", {**SHARED, "attention_bias": True, "mlp_bias": True}, 2),
    "llama, keys too narrow to pack": ("LlamaConfig", {"num_key_value_heads": 1, "tie_word_embeddings": True}, 2),
    "llama, another activation": ("LlamaConfig", {**SHARED, "hidden_act": "gelu"}, 0),
    "mistral": ("MistralConfig", {**SHARED, "sliding_window": SLIDING}, 2),
    "qwen2": ("Qwen2Config", {**SHARED, "tie_word_embeddings": True}, 2),
    "qwen2, one layer with a window": ("Qwen2Config", {**SHARED, "use_sliding_window": True, "max_window_layers": 1,
                                                       "sliding_window": SLIDING}, 2),
    "qwen3": ("Qwen3Config", {**SHARED, "head_dim": 32}, 2),
    "gpt2": ("GPT2Config", {}, 0),
    "phi": ("PhiConfig", {"num_key_value_heads": 8, "partial_rotary_factor": 0.5}, 0),
}
ALL = Budget(tokens=10**6, logits=10**6, cells=10**9, slots=3, threads=1, weights="onednn", backend="cpu")
NONE = Budget(tokens=10**6, logits=10**6, cells=10**9, slots=3, threads=1)
TOKENS = torch.arange(3, 40)[None]
HEAD = tuple(range(5, 45))  # longer than any window


@pytest.fixture(autouse=True)
def built(request: pytest.FixtureRequest) -> None:
    if "without" not in request.fixturenames and availability.why_unavailable():
        pytest.skip(f"no kernels here: {availability.why_unavailable()}")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """For tiny models more only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has no kernels."""
    monkeypatch.setattr(availability, "why_unavailable", lambda: "there is no C compiler (cc, gcc or clang)")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each kernel is called."""
    counted, real = Counter[str](), build.call

    def call(name: str, *arguments: Any) -> None:
        counted[name] += 1
        real(name, *arguments)

    monkeypatch.setattr(build, "call", call)
    return counted


def wide(name: str = "llama", **values: Any) -> Any:
    """A seeded random model whose vectors (biases, norms) are random too."""
    kind, settings, _ = MODELS[name]
    shape = {k: v for k, v in byte_config().to_diff_dict().items()
             if k not in ("model_type", "transformers_version", "architectures", "num_key_value_heads",
                          "head_dim")}
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**{**shape, **WIDE, **settings, **values})
    return with_random_vectors(transformers.AutoModelForCausalLM.from_config(config).eval())


Items = list[list[tuple[int, TokenSequence]]]


def documents() -> Items:
    """Six long texts after HEAD, most of whose tokens are targets."""
    made = torch.Generator().manual_seed(3)
    return [[(n, TokenSequence(HEAD + tuple(torch.randint(3, 264, (120,), generator=made).tolist()), 110))]
            for n in range(6)]


def groups() -> Items:
    """Items after HEAD, with choices that branch, that end in one another, and one alone; one item is long."""
    made: Items = []
    for n, context in enumerate([(50, 51), (60,), tuple(range(70, 111)), tuple(range(100, 0, -1))]):
        ends = [(7, 8, 9), (7, 8), (30, 31, 32, 33), tuple(range(200, 220))][: 1 + (n + 2) % 4]
        made.append([(10 * n + k, TokenSequence(HEAD + context + end, len(end))) for k, end in enumerate(ends)])
    return made


@dataclass
class Found:
    """Log-probabilities of all targets in order, and of each request whether it was greedy."""

    logprobs: np.ndarray
    greedy: list[bool]

    def gap(self, other: Found) -> float:
        return float(np.abs(self.logprobs - other.logprobs).max())


def found(scores: dict[int, Any]) -> Found:
    return Found(np.concatenate([scores[p].logprobs for p in sorted(scores)]),
                 [scores[p].greedy for p in sorted(scores)])


def plain(model: Any, items: Items | None = None) -> Found:
    """The definition: each sequence in a pass of its own."""
    scorer = Scorer(model, packed=False)
    return found({p: s for g in items or groups() for pair in g for p, s in scorer.run([packed_row([pair])]).items()})


def packed(model: Any, budget: Budget = ALL, *, past: int = 0, items: Items | None = None) -> Found:
    backend = backend_for(model, budget if packs_dtype(model.dtype) else replace(budget, weights="plain"))
    scorer = Scorer(model, packed=True, backend=backend)
    with backend.computing():
        return found(scorer.run([packed_row(g, past) for g in items or groups()], HEAD[:past]))


def spread(differences: np.ndarray) -> float:
    """Root of the mean square."""
    return float(np.sqrt((differences ** 2).mean()))


@pytest.mark.parametrize("past", [0, len(HEAD)])
@pytest.mark.parametrize("name", MODELS)
def test_every_family_gives_the_numbers_of_plain_transformers(name: str, past: int, calls: Counter[str]) -> None:
    """In float32 within 1e-4 of log-probabilities that reach tens; packed weights and kernels apart and together."""
    model = wide(name)
    right = plain(model)
    for budget in (ALL, replace(ALL, weights="plain")):
        calls.clear()
        measured = packed(model, budget, past=past)
        assert measured.gap(right) < 1e-4
        assert measured.greedy == right.greedy
        passes = 2 if past else 1
        assert calls["attend_rows"] == 2 * passes
        assert calls["rotate"] == MODELS[name][2] * passes
        assert calls["summarize"] == 1
    assert right.logprobs.min() < -10
    assert len(FusedLayers(model, PackedLinears(model)).layers) == MODELS[name][2]


@pytest.mark.parametrize("past", [0, len(HEAD)])
@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_is_as_near_to_float32_as_plain_rows_are(name: str, past: int) -> None:
    """What rounding does to a log-probability: at most a tenth more than in plain rows (it is 0.07 to 0.28 there)."""
    exact = plain(wide(name), documents()).logprobs
    model = wide(name).bfloat16()
    noise = spread(plain(model, documents()).logprobs - exact)
    assert spread(packed(model, past=past, items=documents()).logprobs - exact) < 1.1 * noise
    assert 0.05 < noise < 0.35


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_what_the_model_would_write_is_greedy(name: str) -> None:
    model = wide(name)
    items: Items = []
    for n, context in enumerate([(50,), (60, 61), tuple(range(70, 90))]):
        text = model.generate(torch.tensor([HEAD + context]), max_new_tokens=3, do_sample=False, eos_token_id=None,
                              pad_token_id=2)[0].tolist()
        other = [*text[:-1], (text[-1] + 1) % 264]
        items.append([(2 * n, TokenSequence(tuple(text), 3)), (2 * n + 1, TokenSequence(tuple(other), 3))])
    assert plain(model, items).greedy == [True, False] * 3
    for past in (0, len(HEAD)):
        assert packed(model, past=past, items=items).greedy == [True, False] * 3


class Numbers:
    """A tokenizer to whom a token reads as its number."""

    eos_token_id = None

    def encode(self, text: str, **_: Any) -> list[int]:
        return [int(part) for part in text.split()]

    def decode(self, tokens: list[int], **_: Any) -> str:
        return " ".join(map(str, tokens))

    def batch_decode(self, texts: list[list[int]]) -> list[str]:
        return [self.decode(text) for text in texts]


def prompts() -> dict[int, Prompt]:
    tails = [(50,), tuple(range(60, 99)), (70, 71), tuple(range(200, 216)), (80, 90, 100), (9,),
             tuple(range(99, 60, -2))]
    return {(7 * n + 3) % 100: Prompt(HEAD + tail) for n, tail in enumerate(tails)}


@pytest.mark.parametrize("name", MODELS)
def test_slots_give_the_tokens_of_generate(name: str, calls: Counter[str]) -> None:
    """More prompts than slots, in any number of them, with and without a prefix; some texts end early."""
    model, settings = wide(name), Generation((), 12, False, ())
    model.generation_config.eos_token_id = None
    right = {}
    for position, prompt in prompts().items():
        tokens = model.generate(torch.tensor([prompt.tokens]), max_new_tokens=12, do_sample=False, pad_token_id=2)
        right[position] = tokens[0, len(prompt.tokens):].tolist()
    end = next(iter(right.values()))[4]  # the fifth token of a text ends every text
    model.generation_config.eos_token_id = end
    right = {p: t[: t.index(end) + 1] if end in t else t for p, t in right.items()}
    assert len({len(t) for t in right.values()}) > 1
    assert len({tuple(t) for t in right.values()}) == len(right), "the texts differ"
    backend = backend_for(model, ALL)
    decoder = Decoder(Scorer(model, packed=True, backend=backend), Numbers(), tokens=128)
    for slots, past in [(1, 0), (3, 0), (3, len(HEAD)), (20, len(HEAD) - 1)]:
        with backend.computing():
            texts = decoder.run(prompts(), settings, Wave(slots, HEAD[:past]))
        assert {p: [int(t) for t in (r.text or "").split()] for p, r in texts.items()} == right, (slots, past)
    assert calls["attend_step"] > 0
    assert calls["store_kv"] > 0


def test_each_step_gives_the_probabilities_of_a_whole_pass() -> None:
    for name in ("mistral", "qwen3", "gpt2"):
        model, tokens = wide(name), tuple(range(3, 70))
        right = Scorer(model, packed=False).run([packed_row([(0, TokenSequence(tokens, 40))])])[0].logprobs
        backend = backend_for(model, ALL)
        with backend.computing():
            stepped = Decoder(Scorer(model, packed=True, backend=backend), None, tokens=0).teacher_forced(tokens, 40)
        assert np.abs(stepped - right).max() < 1e-4


def own(model: Any) -> bool:
    """Do all modules have the forward of their class?"""
    return not any("forward" in vars(module) for module in model.modules())


def test_layers_have_their_own_forward_again_even_after_an_error() -> None:
    model = wide()
    backend = backend_for(model, ALL)
    for _ in range(2):
        with backend.computing():
            swapped = [m for m in model.modules() if "forward" in vars(m)]
            assert {*backend.layers.layers, *packable_layers(model)} == set(swapped)
            assert len(swapped) == 2 + len(packable_layers(model)) > 10
        assert own(model)
    model.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), backend.computing():
        model(TOKENS)
    assert own(model)


def test_an_error_within_a_fused_layer_passes_through() -> None:
    model = wide()
    backend = backend_for(model, ALL)
    model.model.layers[1].self_attn.o_proj.register_forward_pre_hook(lambda *_: 1 / 0)
    one = cpu_attention.CpuRows([prompt_row((1, 2))])
    one.attend = lambda *_: 1 / 0  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError), backend.computing(), attending(model, one):
        model(TOKENS)
    assert own(model)
    assert model.config._attn_implementation != "aftertune"


@pytest.mark.parametrize("name", MODELS)
def test_a_pass_outside_a_layout_is_that_of_transformers(name: str, calls: Counter[str]) -> None:
    """Bit for bit without packed weights; a batch with padding and a cache, too."""
    model = wide(name)
    batch = torch.stack([TOKENS[0], TOKENS[0].flip(0)])
    mask = torch.ones_like(batch)
    mask[0, :9] = 0

    def run() -> list[torch.Tensor]:
        with torch.inference_mode():
            texts = model.generate(batch, attention_mask=mask, max_new_tokens=5, do_sample=False, pad_token_id=2)
            return [model(TOKENS).logits, model(batch, attention_mask=mask).logits[mask.bool()], texts]

    right = run()
    with backend_for(model, replace(ALL, weights="plain")).computing():
        assert all(torch.equal(a, b) for a, b in zip(run(), right, strict=True))
    with backend_for(model, ALL).computing():
        logits, batched, texts = run()
    assert (logits - right[0]).abs().max() < 1e-4
    assert (batched - right[1]).abs().max() < 1e-4
    assert torch.equal(texts, right[2])
    assert all(torch.equal(a, b) for a, b in zip(run(), right, strict=True))
    assert not calls


def test_the_last_layer_computes_the_tokens_that_are_read_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind its attention, that is; the layers before it compute all."""
    model, seen, real = wide(), [], ops.gate

    def gate(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        seen.append(len(left))
        return real(left, right)

    monkeypatch.setattr(ops, "gate", gate)
    right = plain(model)
    assert packed(model).gap(right) < 1e-4
    rows = [packed_row(g, 0) for g in groups()]
    every, read = sum(r.length for r in rows), sum(len(r.keep) for r in rows)
    assert read < every
    assert seen == [every] * (model.config.num_hidden_layers - 1) + [read]


def test_a_step_of_decoding_and_a_scored_row_may_alternate() -> None:
    """One prefix and one set of packed weights serve both."""
    model = wide()
    right = plain(model)
    backend = backend_for(model, ALL)
    scorer = Scorer(model, packed=True, backend=backend)
    decoder, settings = Decoder(scorer, Numbers(), tokens=128), Generation((), 4, False, ())
    with backend.computing():
        before = decoder.run(prompts(), settings, Wave(3, HEAD))
        scores = found(scorer.run([packed_row(g, len(HEAD)) for g in groups()], HEAD))
        assert decoder.run(prompts(), settings, Wave(3, HEAD)) == before
    assert scores.gap(right) < 1e-4


def lora(**values: Any) -> Any:
    from peft import LoraConfig

    return LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": "all-linear", "task_type": "CAUSAL_LM",
                         "init_lora_weights": False, **values})


class Adapted:
    """A model with LoRA of random weights, built anew for each test."""

    def __init__(self, dtype: torch.dtype = torch.float32, *, name: str = "llama", keep: bool = True,
                 **values: Any) -> None:
        from peft import get_peft_model

        self.base = plain(wide(name).to(dtype))
        torch.manual_seed(1)
        self.model = get_peft_model(wide(name).to(dtype), lora(**values), autocast_adapter_dtype=keep).eval()
        with torch.no_grad():
            for weight in (p for n, p in self.model.named_parameters() if "lora_" in n and p.ndim == 2):
                weight.copy_(0.1 * torch.randn_like(weight))


def check(adapted: Adapted, calls: Counter[str], added: int) -> None:
    """PEFT's numbers, which are not those of the model without; added: products next to which the kernel adds."""
    right = plain(adapted.model)
    calls.clear()
    measured = packed(adapted.model)
    assert measured.gap(right) < 1e-4
    assert right.gap(adapted.base) > 0.5
    assert calls["add_lora"] == added
    assert calls["rotate"] == 2, "the layers stay fused"
    assert packed(adapted.model, past=len(HEAD)).gap(right) < 1e-4


@pytest.mark.parametrize("name", ["llama", "llama, with biases", "llama, keys too narrow to pack", "mistral", "qwen2",
                                  "qwen3"])
def test_an_adapter_gives_the_numbers_of_peft(name: str, calls: Counter[str]) -> None:
    """Next to all seven products of a layer; where one of three is too narrow to be packed, the three run apart."""
    check(Adapted(name=name), calls, 2 * (4 if "narrow" in name else 7))


@pytest.mark.parametrize(("targets", "added"), [
    (["q_proj"], 1), (["q_proj", "v_proj"], 2), (["gate_proj"], 1), (["up_proj", "o_proj"], 2), (["down_proj"], 1)])
def test_an_adapter_on_some_layers_gives_the_numbers_of_peft(targets: list[str], added: int,
                                                             calls: Counter[str]) -> None:
    check(Adapted(target_modules=targets), calls, 2 * added)


def test_ranks_and_scales_of_their_own_are_heeded(calls: Counter[str]) -> None:
    """Also of a rank-stabilised adapter, whose scale is another, and dropout, which evaluation leaves out."""
    check(Adapted(rank_pattern={"q_proj": 7, "v_proj": 1}, alpha_pattern={"k_proj": 11}, use_rslora=True,
                  lora_dropout=0.5), calls, 14)


@pytest.mark.parametrize("values", [{"use_dora": True}, {"lora_bias": True}])
def test_what_is_no_plain_lora_is_left_to_peft(values: dict[str, Any], calls: Counter[str]) -> None:
    """DoRA is one where a layer has a bias, which it does not multiply."""
    check(Adapted(name="llama, with biases", **values), calls, 0)


def test_dora_is_added_as_lora_is(calls: Counter[str]) -> None:
    adapted = Adapted(use_dora=True)
    check(adapted, calls, 14)
    assert plain(adapted.model).gap(plain(Adapted().model)) > 0.5, "the magnitudes matter"


@pytest.mark.parametrize(("name", "norms"), [("llama", 2 * 7), ("llama, with biases", 2 * 7), ("phi", 2 * 6),
                                             ("gpt2", 0)])
def test_the_norms_of_dora_are_made_once(name: str, norms: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in every pass; each time that the engine begins they are made anew, for training moves them. GPT-2 has
    another kind of layer, which is left to PEFT."""
    from peft.tuners.lora.dora import DoraLinearLayer

    adapted, made, real = Adapted(name=name, use_dora=True), [], DoraLinearLayer.get_weight_norm
    monkeypatch.setattr(DoraLinearLayer, "get_weight_norm", lambda *a, **k: made.append(1) or real(*a, **k))
    backend = backend_for(adapted.model, ALL)
    scorer = Scorer(adapted.model, packed=True, backend=backend)
    rows = [packed_row(g, 0) for g in groups()]
    for _ in range(2):
        right = plain(adapted.model)
        made.clear()
        with backend.computing(free_weights=True):
            first, second = (found(scorer.run(rows)) for _ in range(2))
        assert first.gap(second) == 0
        assert first.gap(right) < 1e-4
        assert len(made) == norms or not norms
        with torch.no_grad():
            for key, weight in adapted.model.named_parameters():
                if "lora_" in key:
                    weight.mul_(1.2)
    assert plain(adapted.model).gap(right) > 0.1


def test_two_active_adapters_are_left_to_peft(calls: Counter[str]) -> None:
    adapted = Adapted()
    one = plain(adapted.model)
    adapted.model.add_adapter("other", lora(r=3, lora_alpha=9))
    assert plain(adapted.model).gap(one) == 0
    adapted.model.base_model.set_adapter(["default", "other"])
    check(adapted, calls, 0)
    both = plain(adapted.model)
    assert both.gap(one) > 0.5
    adapted.model.set_adapter("other")  # and one that is not the first
    check(adapted, calls, 14)
    assert plain(adapted.model).gap(both) > 0.5


def test_a_disabled_adapter_adds_nothing(calls: Counter[str]) -> None:
    adapted = Adapted()
    with adapted.model.disable_adapter():
        assert plain(adapted.model).gap(adapted.base) < 1e-4
        assert packed(adapted.model).gap(adapted.base) < 1e-4
    assert calls["add_lora"] == 0
    check(adapted, calls, 14)


def test_a_merged_adapter_is_in_the_weights(calls: Counter[str]) -> None:
    adapted = Adapted()
    right = plain(adapted.model)
    adapted.model.merge_adapter()
    assert packed(adapted.model).gap(right) < 1e-3
    assert calls["add_lora"] == 0


def test_a_norm_that_was_trained_with_the_adapter_is_used(calls: Counter[str]) -> None:
    adapted = Adapted(target_modules=["q_proj"], modules_to_save=["input_layernorm"])
    with torch.no_grad():
        for name, weight in adapted.model.named_parameters():
            if "modules_to_save" in name:
                weight.mul_(1.5)
    check(adapted, calls, 2)


@pytest.mark.parametrize("keep", [True, False])
def test_an_adapter_in_bfloat16_is_as_near_as_peft(keep: bool, calls: Counter[str]) -> None:
    """keep: the adapter stays in float32, as PEFT has it by default; one in bfloat16 is left to PEFT."""
    exact = plain(Adapted().model, documents()).logprobs
    model = Adapted(torch.bfloat16, keep=keep).model
    noise = spread(plain(model, documents()).logprobs - exact)
    calls.clear()
    assert spread(packed(model, items=documents()).logprobs - exact) < 1.1 * noise
    assert calls["add_lora"] == (14 if keep and packs_dtype(torch.bfloat16) else 0)


def test_an_adapted_model_writes_the_tokens_of_generate() -> None:
    model, settings = Adapted().model, Generation((), 8, False, ())
    model.generation_config.eos_token_id = None
    backend = backend_for(model, ALL)
    with backend.computing():
        texts = Decoder(Scorer(model, packed=True, backend=backend), Numbers(), tokens=128).run(
            prompts(), settings, Wave(3, HEAD))
    for position, prompt in prompts().items():
        tokens = model.generate(input_ids=torch.tensor([prompt.tokens]), max_new_tokens=8, do_sample=False,
                                pad_token_id=2)[0, len(prompt.tokens):].tolist()
        assert texts[position].text == Numbers().decode(tokens)


@pytest.mark.parametrize(("kind", "values", "suited"), [
    ("llama", {}, True), ("llama", {"head_dim": 8}, False), ("llama", {"head_dim": 24}, False),
    ("llama", {"hidden_size": 64}, False), ("llama", {"hidden_size": 64, "head_dim": 48}, True),
    ("gpt2", {}, True), ("gpt2", {"hidden_size": 64}, False), ("gemma2", {"head_dim": 16}, False),
    ("gemma2", {"head_dim": 16, "attn_logit_softcapping": None}, True),
    ("deepseek_v3", {}, False)])
def test_the_kernels_take_whole_tiles_and_plain_softmax_only(kind: str, values: dict[str, Any], suited: bool) -> None:
    config = transformers.AutoConfig.for_model(kind, **{**WIDE, **values})
    assert cpu_attention.supports(config) is suited


def test_a_capped_score_is_refused_by_name() -> None:
    model = family("gemma2", head_dim=16, query_pre_attn_scalar=16)
    one = cpu_attention.CpuRows([prompt_row((1, 2))])
    with pytest.raises(NotImplementedError, match="the kernels do not support capped scores"), attending(model, one):
        model(input_ids=torch.tensor([[1, 2]]), position_ids=torch.tensor([[0, 1]]), use_cache=False)


def test_a_budget_names_the_kernels_where_they_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    def named(model: Any) -> str:
        return resolve(model, free=2**30, threads=1).backend

    assert named(wide()) == "cpu"
    assert named(wide("gpt2").bfloat16()) == "cpu"
    assert named(byte_llama()) == "torch"  # heads of 8
    assert named(family("gemma2", head_dim=16, query_pre_attn_scalar=16)) == "torch"
    monkeypatch.setattr(availability, "why_unavailable", lambda: "there is no C compiler")
    assert named(wide()) == "torch"


@pytest.mark.usefixtures("without")
def test_a_stored_budget_that_needs_kernels_is_refused_in_one_line() -> None:
    with pytest.raises(ResourceError) as caught:
        Engine(byte_llama(), byte_tokenizer(), packed=True, budget=Budget.load(ALL.stored()))
    said = str(caught.value)
    assert "This evaluation was started with compiled CPU kernels, which are not available here: " in said
    assert "there is no C compiler (cc, gcc or clang)" in said
    assert "--fork" in said
    assert "\n" not in said


@pytest.mark.usefixtures("without")
def test_a_budget_stored_before_there_were_kernels_needs_none() -> None:
    old = {k: v for k, v in ALL.stored().items() if k not in ("kernels", "prepacked")}
    budget = Budget.load(old)
    assert (budget.backend, budget.weights) == ("torch", "plain")
    assert Budget.load(ALL.stored()) == ALL
    model = byte_llama()
    backend = backend_for(model, budget)
    assert type(backend) is TorchBackend
    with backend.computing():
        assert own(model)


def requests() -> list[Request]:
    """Questions with examples before them, documents, and texts to write."""
    shots = "Q: 1+1? A: 2\nQ: ab or ba? A: ab\nQ: what is it? A: a zz\n"
    choices = [" ab", " a longer answer of many tokens", " no", " x"]
    made = [Request(position=4 * n + k, kind="score", context=f"{shots}Q: {n}{'b' * n}? A:", continuation=choice,
                    item=n) for n in range(4) for k, choice in enumerate(choices)]
    made += [Request(position=16 + n, kind="rolling", context="", continuation="Once upon a time" * (n + 1),
                     item=4 + n) for n in range(2)]
    return made + [Request(position=18 + n, kind="generate", context=f"{shots}Q: {n * 'z'}", continuation="",
                           item=6 + n, generation={"max_gen_toks": 9}) for n in range(7)]


@pytest.mark.parametrize("name", MODELS)
def test_an_evaluation_is_the_same_with_kernels_and_without(name: str, monkeypatch: pytest.MonkeyPatch,
                                                            calls: Counter[str]) -> None:
    monkeypatch.setattr(packing, "MIN_SAVED", 60)
    model, answers, digests = wide(name), [], []
    for budget in (ALL, NONE):
        calls.clear()
        small = replace(budget, tokens=150)
        engine = Engine(model, byte_tokenizer(), packed=True, budget=small)
        plan = engine.plan(requests())
        assert plan.decision.packed
        assert plan.decision.note.startswith("packed rows (verified: ")
        assert any(job.prefix for job in plan.jobs)
        batches = list(engine.run(plan, set()))
        assert {"attend_rows", "attend_step", "summarize"} <= set(calls) if budget.backend == "cpu" else not calls
        assert own(model)
        answers.append({p: r for batch in batches for p, r in batch.responses.items()})
        digests.append(plan.digest)
    ours, usual = answers
    assert digests[0] == digests[1], "the same batches"
    assert ours.keys() == usual.keys() == {r.position for r in requests()}
    for position, response in usual.items():
        if response.logprob is not None:
            assert ours[position].logprob == pytest.approx(response.logprob, abs=1e-3)
            assert ours[position].greedy == response.greedy
        else:
            assert ours[position] == response


def test_an_evaluation_goes_on_bit_for_bit() -> None:
    """Batches that are done already leave the others as they were, kernels and all."""
    model, budget = wide(), replace(ALL, tokens=100)

    def run(done: set[int]) -> dict[int, Any]:
        engine = Engine(model, byte_tokenizer(), packed=True, budget=budget)
        return {p: r for b in engine.run(engine.plan(requests()), done) for p, r in b.responses.items()}

    whole = run(set())
    done = set(list(whole)[: len(whole) // 2])
    rest = run(done)
    assert rest
    assert rest == {p: whole[p] for p in rest}


ASKED = [Request(position=i, kind="score", context="The sky is", continuation=end, item=0)
         for i, end in enumerate((" blue", " ab"))]


def test_a_dtype_that_the_kernels_do_not_know_goes_without_them() -> None:
    assert resolve(byte_llama(hidden=128).half(), free=2**30, threads=1).backend == "torch"


def test_a_width_that_is_no_multiple_of_a_tile_keeps_its_own_layers() -> None:
    model = byte_llama(hidden=72, num_attention_heads=4, num_key_value_heads=2, head_dim=16)
    budget = resolve(model, free=2**30, threads=1)
    assert budget.backend == "cpu"
    assert FusedLayers(model, PackedLinears(model)).layers == []
    assert Engine(model, byte_tokenizer(), packed=True, budget=budget).plan(ASKED).decision.packed
    with pytest.raises(NotImplementedError, match="72 numbers"):
        ops.rms_norm(torch.randn(3, 72), torch.randn(72), 1e-6)


def test_layers_that_an_adapter_has_changed_otherwise_are_not_fused() -> None:
    from peft import AdaptionPromptConfig, LNTuningConfig, get_peft_model

    for config in (LNTuningConfig(target_modules=["input_layernorm"], task_type="CAUSAL_LM"),
                   AdaptionPromptConfig(adapter_layers=1, adapter_len=4, task_type="CAUSAL_LM")):
        whole = byte_llama(hidden=128, num_attention_heads=8, num_key_value_heads=4)
        model = get_peft_model(whole, config).eval()
        assert len(FusedLayers(model, PackedLinears(model)).layers) < whole.config.num_hidden_layers
        budget = resolve(model, free=2**30, threads=1)
        assert Engine(model, byte_tokenizer(), packed=True, budget=budget).plan(ASKED).decision.packed


def test_what_the_kernels_are_not_made_for_does_not_reach_them() -> None:
    rows = cpu_attention.CpuRows([prompt_row((1, 2, 3))])
    good = torch.randn(3, 2, 16)
    for query, key, value in ((torch.randn(3, 2, 8),) * 3, (good.half(),) * 3, (good, good, torch.randn(3, 2, 32)),
                              (good, good.bfloat16(), good)):
        with pytest.raises(NotImplementedError, match="the kernels do not support heads"):
            rows.attend(None, query, key, value, Call(1.0))
    with pytest.raises(IndexError, match="do not fit"):
        ops.KVCache(2, 4, good).store(0, torch.randn(9, 2, 16), torch.randn(9, 2, 16))
