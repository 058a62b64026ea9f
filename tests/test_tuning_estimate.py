"""The estimate of memory, disk and time: its arithmetic, and that it is stored beside what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aftertune.engine import memory
from aftertune.study import DataSpec, TuneSpec
from aftertune.study.presets import PRESETS, ModelShape
from aftertune.tuning import estimate_tuning, tune
from aftertune.tuning.estimate import ANCHOR_BYTES, HEAP, PROGRAM_BYTES, Machine, Workload, estimate
from tuning_cases import rows, tiny_model, write_rows

SMALL = PRESETS["smollm2-135m"].shape
LOAD = Workload(examples=320, tokens=19_200, longest=120, learned=9_600, held_out=2_000)
CPU = Machine("cpu", "bfloat16", rate=4e11)


def spec(**values: object) -> TuneSpec:
    return TuneSpec(**{"model": "org/model", "data": DataSpec(file="rows.jsonl"), **values})


def test_steps_and_tokens_follow_the_recipe() -> None:
    one = estimate(SMALL, spec(batch_size=8), LOAD, CPU)
    assert (one.steps, one.tokens) == (40, 19_200)
    assert estimate(SMALL, spec(batch_size=4, accumulation=2, epochs=2), LOAD, CPU).steps == 80
    assert estimate(SMALL, spec(batch_size=8, max_steps=10), LOAD, CPU).tokens == 4_800


def test_full_takes_sixteen_bytes_a_parameter_and_four_bits_take_less_than_sixteen() -> None:
    """Weights, gradients and two moments in float32; the rest is the same for a batch of one short row. In bfloat16
    autocast also keeps copies of the weights."""
    row = Workload(1, 10, 10, 5)
    need = {m: estimate(SMALL, spec(method=m, batch_size=1), row, CPU).memory / HEAP - PROGRAM_BYTES
            for m in ("full", "lora", "qlora")}
    exact = estimate(SMALL, spec(method="full", batch_size=1), row, Machine("cpu", "float32")).memory / HEAP
    assert exact - PROGRAM_BYTES == pytest.approx(16 * SMALL.parameters, rel=0.05)
    assert need["full"] == pytest.approx(18 * SMALL.parameters, rel=0.05)
    assert need["qlora"] < need["lora"] < need["full"] / 4


def test_an_anchor_to_the_predictions_takes_a_copy_of_the_weights_and_two_sets_of_logits() -> None:
    plain, kl, l2 = (estimate(SMALL, spec(method="full", anchor=a), LOAD, Machine("cpu", "float32")).memory / HEAP
                     for a in (None, "kl:1", "l2:1"))
    assert l2 - plain == pytest.approx(4 * SMALL.parameters, rel=0.01)
    assert kl - l2 == pytest.approx(ANCHOR_BYTES + 8 * SMALL.vocabulary * SMALL.hidden, rel=0.01)


def test_the_estimate_knows_how_far_the_heap_may_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 + memory.GROWTH == HEAP
    resident, trimmed = iter((100, 105, 111, 90, 98)), list[int]()
    monkeypatch.setattr(memory, "resident_memory", lambda: next(resident))
    monkeypatch.setattr(memory, "trim_heap", lambda: trimmed.append(1))
    limit, counts = memory.HeapLimit(), list[int]()
    for _ in range(5):
        limit.check()
        counts.append(len(trimmed))
    assert counts == [0, 0, 1, 1, 1], "at 111 of 100; after that 90 is the level"


def test_kept_checkpoints_are_part_of_the_disk() -> None:
    def disk(**values: object) -> int:
        return estimate(SMALL, spec(batch_size=8, epochs=5, watch={"tasks": {"arc_easy": 8}}, **values), LOAD, CPU).disk

    none = disk()  # 200 steps, a look every 50
    adapter = (disk(keep_checkpoints="all") - none) / 4
    assert disk(keep_checkpoints=1) - none == adapter
    assert disk(keep_checkpoints=1, keep_best="arc_easy") - none == 2 * adapter
    assert disk(method="full", keep_checkpoints=3) - disk(method="full") == 3 * 2 * SMALL.parameters


def test_time_is_products_over_the_rate_that_is_reached() -> None:
    """LoRA: twice two operations a weight and token; nothing held out, head and adapters apart."""
    load = Workload(320, 19_200, 120, 0)
    found = estimate(SMALL, spec(lora={"r": 1}), load, CPU)
    assert found.seconds == pytest.approx(4 * SMALL.linear * 19_200 / (CPU.rate * 0.5), rel=0.02)
    again = estimate(SMALL, spec(lora={"r": 1}, gradient_checkpointing=True), load, CPU)
    assert again.seconds == pytest.approx(1.5 * found.seconds, rel=0.02)
    assert again.memory < found.memory
    assert estimate(SMALL, spec(), load, Machine("cpu", "bfloat16")).seconds is None


def test_a_run_keeps_what_it_took_beside_what_was_expected(tmp_path: Path) -> None:
    data = DataSpec(file=write_rows(tmp_path / "d.jsonl", rows()))
    spec = TuneSpec(model=str(tiny_model(tmp_path / "base")), data=data, out=tmp_path / "out", max_steps=2)
    before = estimate_tuning(spec)
    cost = tune(spec).cost
    assert cost["estimated_memory"] == before.memory
    assert cost["seconds"] > 0
    assert cost["memory"] > 50 * 2**20


def test_nothing_is_fetched_for_a_preset(tmp_path: Path) -> None:
    found = estimate_tuning(TuneSpec(model="tinyllama", method="qlora", data=DataSpec(file="alpaca", examples=50000)))
    assert found.steps == 50000 // 8
    assert 2**30 < found.memory < 16 * 2**30
    assert not list(tmp_path.iterdir())


MIXTURES = {
    "MixtralConfig": {"num_local_experts": 4, "intermediate_size": 48},
    "Qwen3MoeConfig": {"num_experts": 4, "moe_intermediate_size": 24, "head_dim": 16},
    "Qwen2MoeConfig": {"num_experts": 4, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 40},
    "OlmoeConfig": {"num_experts": 4, "intermediate_size": 24},
    "DeepseekV3Config": {"n_routed_experts": 4, "n_shared_experts": 1, "moe_intermediate_size": 24, "n_group": 1,
                         "topk_group": 1, "first_k_dense_replace": 1, "q_lora_rank": None, "kv_lora_rank": 8,
                         "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8},
}


def mixture(name: str) -> Any:
    import transformers

    return getattr(transformers, name)(**{
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "num_experts_per_tok": 2, "tie_word_embeddings": False, **MIXTURES[name]})


@pytest.mark.parametrize("name", MIXTURES)
def test_the_experts_of_a_mixture_count(name: str) -> None:
    """All of them in the weights, those of a token in the products, and those that PEFT adapts in the adapter."""
    import torch
    import transformers

    config = mixture(name)
    shape = ModelShape.of(json.loads(config.to_json_string()))
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    assert shape is not None
    assert shape.parameters == pytest.approx(model.num_parameters(), rel=0.08)
    experts = sum(p.numel() for n, p in model.named_parameters() if ".experts." in n)
    assert shape.parameters - shape.products > 0.45 * experts, "two of four experts compute a token"
    full = estimate(shape, spec(method="full", batch_size=1), Workload(1, 10, 10, 5), CPU)
    assert full.trainable == shape.parameters
    assert full.memory - PROGRAM_BYTES > 16 * experts


@pytest.mark.parametrize(("name", "values"), [
    ("MixtralConfig", {}), ("OlmoeConfig", {}), ("Qwen3MoeConfig", {}), ("MixtralConfig", {"method": "dora"}),
    ("OlmoeConfig", {"lora": {"dropout": 0.1}}), ("MixtralConfig", {"lora": {"target_modules": ("q_proj",)}})])
def test_the_trained_parameters_of_a_mixture_are_those_that_peft_makes(name: str, values: dict[str, Any]) -> None:
    import torch
    import transformers

    from aftertune.tuning.build import build, count_trainable

    recipe, config = spec(**values), mixture(name)
    shape = ModelShape.of(json.loads(config.to_json_string()))
    torch.manual_seed(0)
    model = build(transformers.AutoModelForCausalLM.from_config(config), recipe.method, recipe.lora, 0)
    assert shape is not None
    assert estimate(shape, recipe, LOAD, CPU).trainable == count_trainable(model)


def test_the_largest_batch_has_the_longest_examples() -> None:
    load = Workload(examples=9, tokens=900, longest=100, learned=90, longer=(100, 50, 20))
    assert [load.largest_batch(rows, padded=False) for rows in (1, 2, 5)] == [100, 150, 210]
    assert load.largest_batch(2, padded=True) == 200
    more = load.with_answers(2, max_length=150)
    assert (more.longest, more.longer) == (150, (150, 150, 100, 50, 20))
    guessed = Workload.guessed(10, 1024).with_answers(5, 1024)
    assert guessed.largest_batch(2, padded=False) == 2 * guessed.longest
    whole = estimate(SMALL, spec(method="full", batch_size=2), load, CPU)
    assert whole.memory < estimate(SMALL, spec(method="full", batch_size=2), Workload(9, 900, 100, 90), CPU).memory
