"""Linear layers with packed weights: the same numbers, only while asked for, and only where it pays."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from aftertune.engine import budget as budgets
from aftertune.engine.backends import backend_for
from aftertune.engine.cpu import availability, backend, linear
from aftertune.engine.cpu.linear import ROWS, PackedLinears, packable_layers, packs_dtype, worth_packing
from aftertune.engine.engine import Engine
from aftertune.engine.schedule import Budget
from aftertune.errors import ResourceError
from aftertune.values import Request
from eval_cases import byte_llama, byte_tokenizer

TOKENS = torch.arange(3, 40)[None]


def wide(dtype: torch.dtype = torch.float32) -> Any:
    """A Llama whose layers are wide enough to be packed."""
    return byte_llama(hidden=2 * ROWS).to(dtype)


@pytest.fixture(params=[False, True])
def tiled(request: pytest.FixtureRequest) -> bool:
    """Copies as oneDNN packs them, and in tiles of the kernels."""
    if request.param and not availability.amx_available():
        pytest.skip("this processor has no matrix registers")
    return bool(request.param)


def skip_unless_packed(dtype: torch.dtype) -> None:
    if not packs_dtype(dtype):
        pytest.skip(f"this processor packs no weights in {dtype}")


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.bfloat16, 0.15)])
def test_packed_layers_give_the_numbers_of_plain_ones(dtype: torch.dtype, bound: float, tiled: bool) -> None:
    model = wide(dtype)
    linears = PackedLinears(model, amx=tiled)
    with torch.inference_mode():
        plain = model(TOKENS).logits.float()
        with linears.packed():
            packed = model(TOKENS).logits.float()
        again = model(TOKENS).logits.float()
    assert (plain - packed).abs().max() < bound
    assert torch.equal(plain, again)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_a_bias_is_added(dtype: torch.dtype, bound: float, tiled: bool) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(ROWS, 2 * ROWS)).to(dtype)
    x = torch.randn(5, ROWS).to(dtype)
    with torch.inference_mode(), PackedLinears(model, amx=tiled).packed():
        assert torch.allclose(model(x), torch.nn.functional.linear(x, model[0].weight, model[0].bias), atol=bound)


def test_layers_are_their_own_again_after_an_error() -> None:
    model = wide()
    linears, swapped = PackedLinears(model), []

    def failing() -> None:
        with linears.packed():
            swapped.extend("forward" in vars(layer) for layer in packable_layers(model))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        failing()
    assert swapped
    assert all(swapped)
    assert not any("forward" in vars(layer) for layer in packable_layers(model))


def test_layers_under_an_adapter_are_packed_and_the_adapter_still_acts() -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    model = get_peft_model(wide(), LoraConfig(r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=False,
                                              task_type="CAUSAL_LM")).eval()
    assert len(packable_layers(model)) == len(packable_layers(wide()))
    with torch.inference_mode():
        plain = model(TOKENS).logits
        with PackedLinears(model).packed():
            packed = model(TOKENS).logits
            with model.disable_adapter():
                base = model(TOKENS).logits
    assert (plain - packed).abs().max() < 1e-3
    assert (packed - base).abs().max() > 0.1


def test_copies_are_made_only_where_memory_allows() -> None:
    model = wide()
    size = sum(layer.weight.numel() * 4 for layer in packable_layers(model))
    assert worth_packing(model, 3 * size)
    assert not worth_packing(model, 3 * size - 1)
    assert not worth_packing(byte_llama(), 2**40)  # narrow layers alone
    assert not worth_packing(wide().half(), 2**40)


def test_a_budget_stored_before_there_were_copies_reads_as_one_without() -> None:
    old = {"tokens": 1, "logits": 1, "cells": 1, "slots": 1, "threads": 1}
    assert Budget.load(old).weights == "plain"
    assert Budget.load({**old, "prepacked": 1}).weights == "onednn"


def test_tiles_are_for_processors_with_matrix_registers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "packs_dtype", lambda dtype: dtype != torch.float16)
    for has in (True, False):
        monkeypatch.setattr(availability, "amx_available", lambda has=has: has)
        found = [budgets.resolve(wide(dtype), free=2**33, threads=1).weights
                 for dtype in (torch.float32, torch.bfloat16)]
        assert found == ["amx" if has else "onednn"] * 2
    with pytest.raises(ResourceError, match=r"started with AMX .*, which is not available here: .*--fork"):
        backend_for(wide(torch.bfloat16), Budget(1, 1, 1, 1, 1, weights="amx"))


def test_without_instructions_for_bfloat16_its_layers_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a processor without AVX512, oneDNN refuses to pack bfloat16."""
    reorder = torch.ops.mkldnn._reorder_linear_weight

    def refused(weight: torch.Tensor, rows: int) -> torch.Tensor:
        if weight.dtype == torch.bfloat16:
            raise RuntimeError("mkldnn_reorder_linear_weight: bf16 path needs the cpu support avx_ne_convert")
        packed: torch.Tensor = reorder(weight, rows)
        return packed

    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", refused)
    packs_dtype.cache_clear()
    try:
        assert (packs_dtype(torch.float32), packs_dtype(torch.bfloat16)) == (True, False)
        budget = budgets.resolve(wide(torch.bfloat16), free=2**33, threads=1)
        assert budget.weights == "plain"
        assert budgets.resolve(wide(), free=2**33, threads=1).weights != "plain"
        engine = Engine(wide(torch.bfloat16), byte_tokenizer(), packed=True, budget=budget)
        requests = [Request(position=0, kind="score", context="The sky is", continuation=" blue", item=0)]
        [batch] = engine.run(engine.plan(requests), set())
        assert batch.responses[0].logprob < 0
        with pytest.raises(ResourceError, match=r"started with packed bfloat16 weights: .*--fork"):
            backend.make_backend(wide(torch.bfloat16), Budget(1, 1, 1, 1, 1, weights="onednn"))
    finally:
        packs_dtype.cache_clear()


def test_an_engine_uses_them_for_packed_rows_and_not_for_plain_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    model, used = wide(), []
    original = PackedLinears.packed

    def counted(self: PackedLinears, **options: Any) -> Any:
        used.append(self)
        return original(self, **options)

    monkeypatch.setattr(PackedLinears, "packed", counted)
    budget = Budget(tokens=500, logits=500, cells=10**6, slots=2, threads=1, weights="onednn")
    requests = [Request(position=i, kind="score", context="The sky is", continuation=end, item=0)
                for i, end in enumerate((" blue", " ab"))]
    found = []
    for packed in (True, False):
        engine = Engine(model, byte_tokenizer(), packed=packed, budget=budget)
        [batch] = engine.run(engine.plan(requests), set())
        found.append([batch.responses[i].logprob for i in range(2)])
        assert bool(used) is packed
        used.clear()
    assert found[0] == pytest.approx(found[1], abs=1e-4)


def there(layer: Any) -> bool:
    """True where a weight's numbers are in memory."""
    middle = layer.weight.flatten()[layer.weight.numel() // 4: -layer.weight.numel() // 4]
    return bool(middle.any())


@pytest.mark.skipif(sys.platform != "linux", reason="memory is let go on Linux alone")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_live_in_the_copies_alone_and_come_back_bit_for_bit(dtype: torch.dtype, tiled: bool) -> None:
    skip_unless_packed(dtype)
    model, right = wide(dtype), wide(dtype)
    linears = PackedLinears(model, amx=tiled)
    one, x = model.model.layers[0].self_attn, torch.randn(3, 2 * ROWS).to(dtype)
    with torch.inference_mode():
        expected = model(TOKENS).logits
        with linears.packed():
            joined = linears.product(one.q_proj, one.k_proj, one.v_proj)
        with linears.packed(free_weights=True):
            assert not there(one.q_proj)  # packed before
            linears.product(one.o_proj)
            assert not there(one.o_proj)
            logits = model(TOKENS).logits
            assert there(model.model.layers[1].mlp.up_proj)  # called as a layer: what else reads it is not known
            assert torch.equal(joined(x)[:, :one.q_proj.out_features], linears.product(one.q_proj)(x))
        assert (logits.float() - expected.float()).abs().max() < 0.15
        assert torch.equal(model(TOKENS).logits, expected)
    for name, weight in right.named_parameters():
        assert torch.equal(model.get_parameter(name), weight), name


def test_tied_weights_stay_for_the_embedding() -> None:
    model = byte_llama(hidden=2 * ROWS)
    model.lm_head.weight = model.model.embed_tokens.weight
    linears = PackedLinears(model)
    with torch.inference_mode(), linears.packed(free_weights=True):
        linears.product(model.lm_head)
        assert there(model.lm_head)


def test_weights_come_back_after_an_error_and_can_be_trained() -> None:
    model = wide()
    linears, layer = PackedLinears(model), model.model.layers[0].mlp.up_proj

    def failing() -> None:
        with linears.packed(free_weights=True):
            linears.product(layer)
            assert not there(layer) or sys.platform != "linux"
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        failing()
    assert there(layer)
    model(TOKENS, labels=TOKENS).loss.backward()
    assert layer.weight.grad.abs().max() > 0
