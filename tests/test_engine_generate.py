"""What a model may do and what it says: decide, verify, the spot check, and greedy texts in waves."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from aftertune.engine.decide import Decision, decide, verify
from aftertune.engine.encode import Encoder, Generation, Sequence
from aftertune.engine.generator import Generator
from aftertune.engine.scorer import Scorer
from aftertune.engine.spot import needs_check, spot_check
from aftertune.engine.trie import row
from aftertune.errors import InputError, ResourceError
from eval_cases import byte_config, byte_llama, byte_tokenizer

SMALL: dict[str, Any] = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
                         "intermediate_size": 16, "num_key_value_heads": 2}
LONGROPE: dict[str, Any] = {
    "pad_token_id": 0, "max_position_embeddings": 64, "original_max_position_embeddings": 32,
    "rope_parameters": {"rope_type": "longrope", "rope_theta": 10000.0, "long_factor": [2.0] * 4,
                        "short_factor": [1.0] * 4, "factor": 2.0, "original_max_position_embeddings": 32}}
TUNED: dict[str, Any] = {"attention_chunk_size": 40, "floor_scale": 24, "attn_temperature_tuning": True,
                         "head_dim": 8, "num_local_experts": 2, "intermediate_size_mlp": 16, "pad_token_id": 0}


def built(kind: str, **values: Any) -> Any:
    """A model of a family without weights (decide reads its class and config alone)."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SMALL, **values}))


@pytest.mark.parametrize(("kind", "values", "longest", "reason", "alone"), [
    ("mamba", {"state_size": 4}, 8, "recurrent", True),
    ("lfm2", {"layer_types": ["conv", "full_attention"]}, 8, "recurrent or convolutional", True),
    ("bloom", {"n_head": 2, "n_layer": 1}, 8, "ALiBi", False),
    ("mpt", {"d_model": 16, "n_heads": 2, "n_layers": 1}, 8, "ALiBi", False),
    ("falcon", {"alibi": True, "new_decoder_architecture": False}, 8, "ALiBi", False),
    ("gpt_neo", {"num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]]}, 8,
     "windows its attention by index", False),
    ("phi3", LONGROPE, 33, "rotary frequencies change beyond 32", True),
    ("llama4_text", {**TUNED, "attn_temperature_tuning": False}, 41, "chunks of 40", False),
    ("llama4_text", TUNED, 24, "temperature changes from 24", False),
])
def test_families_that_packed_rows_would_break_run_plain(kind: str, values: dict[str, Any], longest: int,
                                                         reason: str, alone: bool) -> None:
    found = decide(built(kind, **values), longest)
    assert not found.packed
    assert reason in found.note
    assert found.alone == alone


@pytest.mark.parametrize(("kind", "values", "longest"), [
    ("llama", {}, 4096), ("mistral", {"sliding_window": 8}, 64), ("gpt2", {"n_embd": 16, "n_head": 2}, 64),
    ("falcon", {"alibi": False}, 64), ("phi3", LONGROPE, 32), ("llama4_text", TUNED, 23),
    ("llama", {"max_position_embeddings": 32, "rope_parameters": {
        "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16}}, 31)])
def test_ordinary_decoders_take_packed_rows(kind: str, values: dict[str, Any], longest: int) -> None:
    assert decide(built(kind, **values), longest) == Decision(True, "packed rows")


def test_a_dynamic_rope_is_packed_up_to_its_limit_only() -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    model = built("llama", max_position_embeddings=32, rope_parameters=rope)
    assert decide(model, 32).packed
    assert decide(model, 33).alone


def test_prompt_learning_and_flash_attention_run_plain() -> None:
    model = byte_llama()
    model.peft_config = {"default": SimpleNamespace(is_prompt_learning=True)}
    assert "prompt-learning" in decide(model, 8).note
    other = byte_llama()
    other.config._attn_implementation = "flash_attention_2"
    assert "flash attention" in decide(other, 8).note


class Maskless(LlamaForCausalLM):  # type: ignore[misc]
    """Takes a mask and ignores it, as some families do without a word."""

    def forward(self, input_ids: Any = None, attention_mask: Any = None, position_ids: Any = None,
                logits_to_keep: Any = 0, **values: Any) -> Any:
        return super().forward(input_ids=input_ids, logits_to_keep=logits_to_keep, **values)


class Refusing(LlamaForCausalLM):  # type: ignore[misc]
    """Raises on a 4-D mask."""

    def forward(self, input_ids: Any = None, attention_mask: Any = None, position_ids: Any = None,
                logits_to_keep: Any = 0, **values: Any) -> Any:
        if attention_mask is not None:
            raise ValueError("a mask of 4 dimensions\n is not supported")
        return super().forward(input_ids=input_ids, logits_to_keep=logits_to_keep, **values)


class Broken(LlamaForCausalLM):  # type: ignore[misc]
    """Returns NaN as soon as there is a mask."""

    def forward(self, input_ids: Any = None, attention_mask: Any = None, position_ids: Any = None,
                logits_to_keep: Any = 0, **values: Any) -> Any:
        out = super().forward(input_ids=input_ids, logits_to_keep=logits_to_keep, **values)
        if attention_mask is not None:
            out.logits = out.logits * float("nan")
        return out


def groups() -> list[list[tuple[int, Sequence]]]:
    """Three items of four choices each, which share their contexts."""
    encoder = Encoder(byte_tokenizer(), 256)
    made = []
    for n, context in enumerate(("The sky", "A longer question, of which the answer is", "zz ab")):
        made.append([(4 * n + k, encoder.score(context, end))
                     for k, end in enumerate((" is blue", " ab", " isn't", " x"))])
    return made


def test_verify_keeps_what_agrees() -> None:
    found = verify(byte_llama(), groups(), Decision(True, "packed rows"))
    assert found.packed
    assert "verified" in found.note
    half = verify(byte_llama().to(torch.bfloat16), groups(), Decision(True, "packed rows"))
    assert half.packed


@pytest.mark.parametrize(("kind", "reason"), [
    (Maskless, "moved a token's log-probability by"),
    (Refusing, "does not take a 4-D mask (a mask of 4 dimensions is not supported)"),
    (Broken, "moved a token's log-probability by nan")])
def test_verify_falls_back_where_packed_rows_are_wrong(kind: Any, reason: str) -> None:
    found = verify(byte_llama(kind), groups(), Decision(True, "packed rows"))
    assert not found.packed
    assert found.note.startswith("plain rows: ")
    assert reason in found.note
    assert "\n" not in found.note


def test_verify_leaves_a_refusal_and_an_empty_plan_alone() -> None:
    no = Decision(False, "plain rows: because", alone=True)
    assert verify(byte_llama(Broken), groups(), no) is no
    yes = Decision(True, "packed rows")
    assert verify(byte_llama(Broken), [], yes) is yes


def test_packed_and_plain_scores_are_those_of_a_literal_forward_pass() -> None:
    model = byte_llama()
    packed = Scorer(model, packed=True).run([row(g) for g in groups()])
    plain = Scorer(model, packed=False).run([row([pair]) for g in groups() for pair in g])
    for position, sequence in (pair for g in groups() for pair in g):
        with torch.inference_mode():
            logits = model(torch.tensor([sequence.tokens[:-1]])).logits[0].double().log_softmax(-1)
        rows, targets = logits[-sequence.targets:], torch.tensor(sequence.tokens[-sequence.targets:])
        literal = rows.gather(1, targets[:, None])[:, 0]
        for scores in (packed, plain):
            assert torch.from_numpy(scores[position].logprobs).double() == pytest.approx(literal, abs=1e-4)
            assert scores[position].greedy == bool((rows.argmax(-1) == targets).all())
            assert scores[position].total == pytest.approx(float(literal.sum()), abs=1e-3)


class TwoFaced(LlamaForCausalLM):  # type: ignore[misc]
    """Its copy in float32, which the spot check makes on the CPU, has another output head."""

    def float(self) -> Any:
        made = super().float()
        made.lm_head.weight = torch.nn.Parameter(made.lm_head.weight * 1.5)
        return made


@pytest.mark.parametrize("packed", [True, False])
def test_the_spot_check_raises_on_a_device_that_disagrees(packed: bool) -> None:
    rows = [row(g) for g in groups()] if packed else [row([pair]) for g in groups() for pair in g]
    assert spot_check(byte_llama(), rows, packed=packed) < 1e-4
    assert 0 < spot_check(byte_llama().half(), rows, packed=packed) < 0.25
    with pytest.raises(ResourceError, match="disagrees with the CPU by") as caught:
        spot_check(byte_llama(TwoFaced), rows, packed=packed)
    assert "--device cpu" in str(caught.value)


def test_the_spot_check_takes_nan_for_disagreement() -> None:
    with pytest.raises(ResourceError, match="by nan"):
        spot_check(byte_llama(Broken), [row(g) for g in groups()], packed=True)


def test_only_mps_is_spot_checked() -> None:
    assert [needs_check(d) for d in ("mps", "mps:0", "cpu", "cuda:0")] == [True, True, False, False]


def texts(prompts: list[str], settings: dict[str, Any], *, together: bool, model: Any = None) -> dict[int, Any]:
    tokenizer = byte_tokenizer()
    generator = Generator(model or byte_llama(), tokenizer)
    one = Generation.resolve({"max_gen_toks": 24, **settings}, "</s>")
    encoder = Encoder(tokenizer, 256)
    wave = {n: encoder.prompt(p, one.max_tokens) for n, p in enumerate(prompts)}
    if together:
        return generator.run(wave, one)
    return {p: r for n in wave for p, r in generator.run({n: wave[n]}, one).items()}


PROMPTS = ["a", "The sky is", "ab ab ab ab", "Q: 1+1? A:", "zz", "one two three four five six"]


def literal(prompt: str, limit: int) -> tuple[list[int], bool]:
    """Greedy tokens one by one, without a cache; True where EOS ended them."""
    model, tokenizer = byte_llama(), byte_tokenizer()
    ids, start = tokenizer.encode(prompt), len(tokenizer.encode(prompt))
    for _ in range(limit):
        with torch.inference_mode():
            ids = [*ids, int(model(torch.tensor([ids])).logits[0, -1].argmax())]
        if ids[-1] == tokenizer.eos_token_id:
            return ids[start:], True
    return ids[start:], False


def test_waves_give_the_texts_of_a_literal_greedy_loop() -> None:
    waved, single = texts(PROMPTS, {}, together=True), texts(PROMPTS, {}, together=False)
    assert waved == single
    ends = set()
    for n, prompt in enumerate(PROMPTS):
        tokens, ended = literal(prompt, 24)
        assert waved[n].text == byte_tokenizer().decode(tokens, skip_special_tokens=True)
        assert (waved[n].tokens, waved[n].finish) == (len(tokens), "eos" if ended else "length")
        ends.add(waved[n].finish)
    assert "length" in ends


def test_a_row_stops_at_a_stop_string_and_is_cut_there() -> None:
    free = texts(PROMPTS, {}, together=True)
    stops = {n: r.text[5:7] for n, r in free.items() if r.finish == "length" and r.text[5:7].isascii()}
    assert stops
    for n, stop in stops.items():
        found = texts(PROMPTS, {"until": [stop]}, together=True)
        assert found[n].text == free[n].text.split(stop)[0]
        assert found[n].finish == "stop"
        assert found[n].tokens < 24
        for other in set(free) - {n}:
            assert found[other].text == free[other].text.split(stop)[0]


def test_sampled_texts_depend_on_the_position_alone() -> None:
    sampled = {"do_sample": True, "temperature": 1.0}
    first, again = (texts(["a", "a"], sampled, together=False) for _ in range(2))
    assert first == again
    assert first[0].text != first[1].text


def test_unusable_settings_are_told() -> None:
    with pytest.raises(InputError, match="generation settings"):
        texts(["a"], {"no_such_option": 3}, together=True)


def test_the_tiny_config_is_what_the_tests_say() -> None:
    assert byte_config().num_hidden_layers == 2
