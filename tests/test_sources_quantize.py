"""Linear layers in four bits: what they compute, who they are, and that nothing else changes."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest

from aftertune import comparison, evaluation
from aftertune.errors import InputError, ResourceError
from aftertune.ledger import Ledger
from aftertune.sources import fingerprint_model, load_model, require_nf4, resolve_adapter, resolve_model
from aftertune.sources.quantize import to_nf4
from aftertune.study import Study, TargetSpec, TaskSpec
from eval_cases import CHAT, byte_folder, byte_llama
from source_cases import tiny_adapter
from tuning_cases import easy_rows, write_rows

bitsandbytes = pytest.importorskip("bitsandbytes")


@pytest.fixture
def base(tmp_path):
    return resolve_model(str(byte_folder(tmp_path / "base", template=CHAT, hidden=64)))


def quantised(source):
    return replace(source, quantization="nf4")


def test_layers_compute_with_what_their_four_bits_stand_for(base):
    """In evaluation and in training alike; the head, embeddings and norms are as they were."""
    import torch
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    plain, four = load_model(base, "bfloat16", "cpu"), load_model(quantised(base), "bfloat16", "cpu")
    layers = {n: m for n, m in four.named_modules() if isinstance(m, Linear4bit)}
    assert len(layers) == 7 * 2
    assert "lm_head" not in layers
    for name, layer in layers.items():
        assert layer.weight.quant_state.nested
        assert layer.weight.quant_type == "nf4"
        weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        given = plain.get_submodule(name).weight
        assert 0 < (weight - given).abs().mean() < 0.2 * given.abs().mean()
        x = torch.randn(3, layer.in_features, dtype=torch.bfloat16)
        expected = torch.nn.functional.linear(x, weight)
        with torch.no_grad():
            assert torch.equal(layer(x), expected)
        layer.train()
        x.requires_grad_()
        assert torch.equal(layer(x), expected)
        (gradient,) = torch.autograd.grad(layer(x).float().sum(), x)
        assert torch.allclose(gradient, weight.sum(0).expand_as(gradient), rtol=0.02, atol=0.02)
    rest = {n: p for n, p in four.named_parameters() if "_proj" not in n}
    assert rest
    assert all(torch.equal(p, plain.get_parameter(n)) for n, p in rest.items())


def test_four_bits_are_another_model_and_old_fingerprints_stay(base):
    plain, four = fingerprint_model(base), fingerprint_model(quantised(base))
    assert (four.weights, four.config, four.tokenizer) == (plain.weights, plain.config, plain.tokenizer)
    assert four.fingerprint != plain.fingerprint
    assert four.base == four
    assert four.stored == plain
    assert replace(plain, quantization=None).fingerprint == plain.fingerprint


def test_an_evaluation_in_four_bits_is_packed_recorded_and_told_apart(base, tmp_path):
    target = write_rows(tmp_path / "t.jsonl", easy_rows()[:4])
    task = TaskSpec(name="t", target=TargetSpec(file=target, max_tokens=4))
    adapter = tiny_adapter(tmp_path / "base", tmp_path / "adapter")
    with Ledger(tmp_path / "l.db") as ledger:
        def run(**settings):
            return evaluation.evaluate(base.source, [task], ledger=ledger, dtype="float32", device="cpu", threads=1,
                                       **settings)

        plain, four = run(), run(quantize="nf4")
        assert four.engine_note.startswith("packed rows (verified")
        assert four.name == "base@nf4"
        assert four.model.quantization == "nf4"
        assert ledger.find_evaluation(four.id).model == four.model
        assert four.id != plain.id
        found = comparison.compare(plain, four, ledger=ledger)
        assert [(d.left, d.right, d.blocking) for d in found.differences if d.field == "quantization"] \
            == [("none", "nf4", False)]
        assert not found.lineage, "four bits are no tuning"
        tuned = run(quantize="nf4", adapter=str(adapter))
        assert comparison.compare(four, tuned, ledger=ledger).lineage
        assert not comparison.compare(plain, tuned, ledger=ledger).lineage
        with pytest.raises(InputError, match="not possible with the engine lm-eval:vllm, which loads and runs"):
            run(quantize="nf4", engine="lm-eval:vllm")


def test_an_adapter_goes_on_four_bits_of_its_own_base_only(base, tmp_path):
    adapter = tiny_adapter(tmp_path / "base", tmp_path / "adapter")
    made_on = fingerprint_model(base)
    record = {"base": {"weights": made_on.weights, "config": made_on.config}}
    (adapter / "aftertune.json").write_text(json.dumps(record))
    four = quantised(base)
    found = resolve_adapter(str(adapter), four, fingerprint_model(four))
    model = load_model(four, "float32", "cpu", found)
    assert {type(m).__name__ for n, m in model.named_modules() if n.endswith("q_proj")} == {"Linear4bit"}


def test_without_bitsandbytes_one_line_offers_lora(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ResourceError, match=r"bitsandbytes, which is not installed: .*\[qlora\].*use lora instead"):
        require_nf4("cpu")


def test_a_device_that_has_no_four_bit_layers_is_named(monkeypatch):
    monkeypatch.setattr(bitsandbytes, "supported_torch_devices", {"cuda"})
    with pytest.raises(ResourceError, match=r"no 4-bit layers for cpu \(it has them for cuda\); use lora instead"):
        require_nf4("cpu")


def test_a_model_without_plain_linear_layers_is_refused():
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    with pytest.raises(InputError, match="GPT2LMHeadModel has no plain linear layers"):
        to_nf4(GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=64)), torch.float32, "cpu")


def test_biases_stay(base):
    import torch

    model = byte_llama(attention_bias=True, hidden=64)
    bias = model.model.layers[0].self_attn.q_proj.bias.detach().clone()
    assert torch.equal(to_nf4(model, torch.float32, "cpu").model.layers[0].self_attn.q_proj.bias, bias)


def test_a_study_evaluates_a_base_in_four_bits_and_tunes_none():
    task = {"name": "arc_easy"}
    both = {"a": {"model": "x"}, "b": {"model": "x", "quantize": "nf4"}}
    assert Study.parse({"study": "s", "bases": both, "tasks": [task]}, where="s", folder=".").bases["b"].quantize
    with pytest.raises(InputError, match="a base in four bits; name its 16-bit base"):
        Study.parse({"study": "s", "bases": both, "tasks": [task],
                     "tunings": {"t": {"base": "b", "data": {"file": "d.jsonl"}}}}, where="s", folder=".")


def test_a_layer_is_quantised_by_blocks_of_one_row_and_others_stay():
    """Against the definition: each 64 weights by their largest, to the nearest of NF4's 16 values."""
    import torch
    from bitsandbytes.functional import dequantize_4bit, get_4bit_type

    model = byte_llama(hidden=96, intermediate_size=128)
    given = {n: m.weight.detach().clone() for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    found = {n: m for n, m in to_nf4(model, torch.float32, "cpu").named_modules() if type(m).__name__ == "Linear4bit"}
    assert {n.rpartition(".")[2] for n in found} == {"down_proj"}, "96 inputs are a block and a half"
    values = get_4bit_type("nf4", device="cpu")
    for name, layer in found.items():
        blocks = given[name].reshape(-1, 64)
        scale = blocks.abs().amax(1, keepdim=True)
        nearest = values[((blocks / scale)[..., None] - values).abs().argmin(-1)]
        held = dequantize_4bit(layer.weight.data, layer.weight.quant_state).reshape(-1, 64)
        rounding = 0.02 * scale  # of the scales, which are held in eight bits
        assert ((held - nearest * scale).abs() <= rounding).all()
