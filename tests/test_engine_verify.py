"""Which models may run packed rows: `decide`, `verify` and the spot check of MPS."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from aftertune.engine.engine import Engine
from aftertune.engine.packing import packed_row
from aftertune.engine.schedule import Budget
from aftertune.engine.scorer import Scorer
from aftertune.engine.tokenize import Encoder, TokenSequence
from aftertune.engine.verify import PackingDecision, decide, needs_spot_check, spot_check, verify
from aftertune.errors import ResourceError
from aftertune.values import Request
from eval_cases import FAMILIES, byte_llama, byte_tokenizer, family

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
    ("falcon", {"alibi": False}, 8, "falcon does not support a custom attention function", False),
    ("gpt_neo", {"num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]]}, 8,
     "attention window by the index", False),
    ("phi3", LONGROPE, 33, "rotary frequencies change beyond 32", True),
    ("llama4_text", {**TUNED, "attn_temperature_tuning": False}, 41, "chunks of 40", False),
    ("llama4_text", TUNED, 24, "temperature changes from 24", False),
])
def test_families_that_packed_rows_would_break_run_plain(kind: str, values: dict[str, Any], longest: int,
                                                         reason: str, alone: bool) -> None:
    actual = decide(built(kind, **values), longest)
    assert not actual.packed
    assert reason in actual.note
    assert actual.alone == alone


@pytest.mark.parametrize(("kind", "values", "longest"), [
    ("llama", {}, 4096), ("mistral", {"sliding_window": 8}, 64), ("gpt2", {"n_embd": 16, "n_head": 2}, 64),
    ("phi3", LONGROPE, 32), ("llama4_text", TUNED, 23),
    ("llama", {"max_position_embeddings": 32, "rope_parameters": {
        "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16}}, 31)])
def test_ordinary_decoders_take_packed_rows(kind: str, values: dict[str, Any], longest: int) -> None:
    assert decide(built(kind, **values), longest) == PackingDecision(True, "packed rows")


def test_a_dynamic_rope_is_packed_up_to_its_limit_only() -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    model = built("llama", max_position_embeddings=32, rope_parameters=rope)
    assert decide(model, 32).packed
    assert decide(model, 33).alone


def test_prompt_learning_runs_plain() -> None:
    model = byte_llama()
    model.peft_config = {"default": SimpleNamespace(is_prompt_learning=True)}
    assert "prompt-learning" in decide(model, 8).note


class Indexed(LlamaForCausalLM):  # type: ignore[misc]
    """Takes position ids and counts places in the row instead, as some families do, without an error."""

    def forward(self, input_ids: Any = None, position_ids: Any = None, **values: Any) -> Any:
        return super().forward(input_ids=input_ids, **values)


class Shifted(LlamaForCausalLM):  # type: ignore[misc]
    """Mixes the previous token into each one, even that of another row, as a convolution does."""

    def forward(self, input_ids: Any = None, **values: Any) -> Any:
        each = self.model.embed_tokens(input_ids)
        return super().forward(inputs_embeds=each + torch.nn.functional.pad(each, (0, 0, 1, 0))[:, :-1], **values)


class Refusing(LlamaForCausalLM):  # type: ignore[misc]
    """Raises on position ids, except for those of transformers' own generate."""

    def forward(self, input_ids: Any = None, position_ids: Any = None, **values: Any) -> Any:
        if position_ids is not None and not values.get("use_cache"):
            raise ValueError("position ids\n are not supported")
        return super().forward(input_ids=input_ids, **values)


class Broken(LlamaForCausalLM):  # type: ignore[misc]
    """Returns NaN as soon as there are position ids."""

    def forward(self, input_ids: Any = None, position_ids: Any = None, **values: Any) -> Any:
        out = super().forward(input_ids=input_ids, position_ids=position_ids, **values)
        if position_ids is not None:
            out.logits = out.logits * float("nan")
        return out


class BrokenSteps(LlamaForCausalLM):  # type: ignore[misc]
    """Returns NaN for a single token."""

    def forward(self, input_ids: Any = None, **values: Any) -> Any:
        out = super().forward(input_ids=input_ids, **values)
        if input_ids.shape[1] == 1:
            out.logits = out.logits * float("nan")
        return out


YES = PackingDecision(True, "packed rows")
ENOUGH = Budget(tokens=10**6, logits=10**6, cells=10**9, slots=4, threads=1)


def groups() -> list[list[tuple[int, TokenSequence]]]:
    """Three items of four choices each, which share their contexts."""
    encoder = Encoder(byte_tokenizer(), 256)
    results = []
    for n, context in enumerate(("The sky", "A longer question, of which the answer is", "zz ab")):
        results.append([(4 * n + k, encoder.score(context, end))
                     for k, end in enumerate((" is blue", " ab", " isn't", " x"))])
    return results


def prompt(text: str = "Once upon a time there was ab") -> tuple[int, ...]:
    return Encoder(byte_tokenizer(), 256).prompt(text, 8).tokens


def paths() -> list[list[tuple[int, TokenSequence]]]:
    """Two items that do not branch."""
    encoder = Encoder(byte_tokenizer(), 256)
    return [[(0, encoder.score("The sky", " is blue and so on"))], [(1, encoder.score("Two and two", " four"))]]


ASKED: list[tuple[Any, Any]] = [
    ([((), groups())], []), ([], [prompt()]), ([((), groups())], [prompt(), prompt("ab")]), ([((), paths())], []),
    ([(prompt("The sky is")[:5], [groups()[0]]), ((), groups()[1:])], [])]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("asked", ASKED, ids=["items", "one prompt", "both", "paths", "a prefix"])
def test_verify_keeps_what_agrees(asked: Any, dtype: torch.dtype, attention: str) -> None:
    """One prompt alone leaves plain rows nothing to move between batch sizes, and rounding is still allowed."""
    model = byte_llama().to(dtype)
    model.set_attn_implementation(attention)
    actual = verify(model, *asked, YES)
    assert actual.packed, actual.note
    assert re.fullmatch(r"packed rows \(verified: on \d+ rows of this run, a token's log-probability differs from that "
                        r"of plain rows by at most \S+; rounding explains up to \S+\)", actual.note)
    assert model.config._attn_implementation == attention


@pytest.mark.parametrize("name", FAMILIES)
def test_verify_keeps_every_ordinary_family_in_bfloat16(name: str) -> None:
    actual = verify(family(name).to(torch.bfloat16), [((), groups())], [prompt()], YES)
    assert actual.packed, actual.note


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kind", "reason"), [
    (Indexed, "changed a token's log-probability by"), (Shifted, "changed a token's log-probability by"),
    (Refusing, "does not support packed rows (position ids are not supported)"),
    (Broken, "changed a token's log-probability by nan")])
@pytest.mark.parametrize("asked", ASKED[:3], ids=["items", "one prompt", "both"])
def test_verify_falls_back_where_packed_rows_are_wrong(asked: Any, kind: Any, reason: str, dtype: torch.dtype) -> None:
    actual = verify(byte_llama(kind).to(dtype), *asked, YES)
    assert not actual.packed
    assert actual.note.startswith("plain rows: ")
    assert reason in actual.note
    assert "\n" not in actual.note


@pytest.mark.parametrize("value", ["nan", "inf"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_model_that_computes_no_numbers_runs_in_plain_rows(dtype: torch.dtype, value: str) -> None:
    model = byte_llama().to(dtype)
    with torch.no_grad():
        model.model.norm.weight.fill_(float(value))
    actual = verify(model, [((), groups())], [prompt()], YES)
    assert not actual.packed
    assert actual.note.startswith("plain rows: packed rows changed a token's log-probability by nan")


def test_a_lack_of_memory_is_not_taken_for_the_model() -> None:
    """A plan must not depend on what else runs, because a resumed run needs the same plan."""
    asked_of = [Request(position=0, kind="score", context="ab", continuation=" zz")]
    for places in (True, False):
        model = byte_llama()

        def full(_: Any, __: Any, values: dict[str, Any], places: bool = places) -> None:
            if ("position_ids" in values) == places:
                raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")

        model.register_forward_pre_hook(full, with_kwargs=True)
        with pytest.raises(ResourceError, match="out of memory"):
            Engine(model, byte_tokenizer(), packed=True, budget=ENOUGH).plan(asked_of)


def test_verify_sees_one_row_reach_into_the_next() -> None:
    """Items that do not branch are each right on their own, even of this model; together they are not."""
    assert not verify(byte_llama(Shifted), [((), paths())], [], YES).packed
    assert verify(byte_llama(Shifted), [((), paths()[:1])], [], YES).packed


def test_nan_of_the_steps_alone_is_seen() -> None:
    actual = verify(byte_llama(BrokenSteps), [((), groups())], [prompt()], YES)
    assert not actual.packed
    assert "by nan" in actual.note
    assert verify(byte_llama(BrokenSteps), [((), groups())], [], YES).packed


def test_verify_leaves_a_refusal_and_an_empty_plan_alone() -> None:
    no = PackingDecision(False, "plain rows: because", alone=True)
    assert verify(byte_llama(Broken), [((), groups())], [prompt()], no) is no
    for shared, prompts in [([], []), ([((), [])], []), ([], [()]), ([], [(5,), (5, 6)])]:
        assert verify(byte_llama(Broken), shared, prompts, YES) is YES


@pytest.mark.parametrize("kind", ["score", "rolling", "generate"])
def test_an_engine_falls_back_whatever_it_is_asked(kind: Any) -> None:
    """Whole documents are verified too; the numbers are those of plain rows."""
    texts = ["Once upon a time", "there was a ab zz", "and so on and on"]
    requests = [Request(position=n, kind=kind, context="" if kind == "rolling" else text, continuation=text, item=n,
                        generation={"max_gen_toks": 6}) for n, text in enumerate(texts)]
    for model in (byte_llama(Shifted), byte_llama(Refusing)):
        actual = []
        for packed in (True, False):
            engine = Engine(model, byte_tokenizer(), packed=packed, budget=ENOUGH)
            plan = engine.plan(requests)
            assert plan.decision.note.startswith("plain rows")
            assert "as requested" in plan.decision.note or packed
            actual.append([dict(b.responses) for b in engine.run(plan, set())])
        assert actual[0] == actual[1]
    expected = Engine(byte_llama(), byte_tokenizer(), packed=True, budget=ENOUGH).plan(requests)
    assert "verified" in expected.decision.note


def test_packed_and_plain_scores_are_those_of_a_literal_forward_pass() -> None:
    model = byte_llama()
    packed = Scorer(model, packed=True).run([packed_row(g) for g in groups()])
    plain = Scorer(model, packed=False).run([packed_row([pair]) for g in groups() for pair in g])
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
        results = super().float()
        results.lm_head.weight = torch.nn.Parameter(results.lm_head.weight * 1.5)
        return results


@pytest.mark.parametrize("packed", [True, False])
def test_the_spot_check_raises_on_a_device_that_disagrees(packed: bool) -> None:
    rows = [packed_row(g) for g in groups()] if packed else [packed_row([pair]) for g in groups() for pair in g]
    assert spot_check(byte_llama(), rows, packed=packed) < 1e-4
    assert 0 < spot_check(byte_llama().half(), rows, packed=packed) < 0.25
    with pytest.raises(ResourceError, match="differs from the CPU's by") as caught:
        spot_check(byte_llama(TwoFaced), rows, packed=packed)
    assert "--device cpu" in str(caught.value)


def test_the_spot_check_takes_nan_for_disagreement() -> None:
    with pytest.raises(ResourceError, match="by nan"):
        spot_check(byte_llama(Broken), [packed_row(g) for g in groups()], packed=True)
    model, rows = byte_llama(), [packed_row(g) for g in groups()]
    with torch.no_grad():  # a token of the last row alone: the first ones are right
        model.model.embed_tokens.weight[int(rows[2].tokens[0])] = float("nan")
    with pytest.raises(ResourceError, match="by nan"):
        spot_check(model, rows, packed=True)


def test_only_mps_is_spot_checked() -> None:
    assert [needs_spot_check(d) for d in ("mps", "mps:0", "cpu", "cuda:0")] == [True, True, False, False]
