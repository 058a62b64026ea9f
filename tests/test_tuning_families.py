"""LoRA on mixtures of experts and state-space models: what PEFT can do works by default, the rest is said first."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from aftertune.errors import InputError
from aftertune.study import DataSpec, LoraSpec, TuneSpec
from aftertune.tuning import tune
from aftertune.tuning.build import build
from aftertune.tuning.targets import linear_layers, target_notes

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import families


def tiny(family: str) -> Any:
    """A seeded random model of a family of the sweep."""
    import torch
    import transformers

    kind, settings = families.FAMILIES[family]
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(
        getattr(transformers, kind)(**{**families.SHAPE, **settings}))


def adapted(model: Any) -> set[str]:
    """The last names of the layers and parameters with trained tensors."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {getattr(m, "parameter_name", None) or n.rpartition(".")[2] for n, m in model.named_modules()
            if isinstance(m, BaseTunerLayer)}


@pytest.mark.parametrize("family", ["Mixtral", "Mamba", "Zamba2"])
def test_a_family_of_the_sweep_passes(family: str, tmp_path: Path) -> None:
    outcome = families.try_family(family, tmp_path)
    assert outcome.error == ""
    assert outcome.passed, outcome
    assert bool(outcome.refused) == (family == "Zamba2")


def test_the_sweep_has_the_families_that_people_tune() -> None:
    assert len(families.FAMILIES) >= 25


def test_plain_lora_adapts_fused_experts_as_parameters_and_says_so() -> None:
    model = build(tiny("Qwen3-MoE"), "lora", LoraSpec(r=4), seed=0)
    assert adapted(model) == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj", "weight"}
    assert target_notes(model) == (
        "adapted as parameters, not as layers: experts.down_proj, experts.gate_up_proj, gate.weight",)


@pytest.mark.parametrize(("method", "settings"), [("dora", {}), ("pissa", {}), ("lora", {"dropout": 0.1})])
def test_what_cannot_adapt_experts_adapts_the_other_layers_and_says_so(method: str, settings: dict[str, Any]) -> None:
    model = build(tiny("Mixtral"), method, LoraSpec(r=4, **settings), seed=0)
    assert adapted(model) == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert target_notes(model) == ("not adapted: the fused expert weights experts.down_proj, experts.gate_up_proj, and "
                                   "the router",)


def test_names_of_experts_before_they_were_fused_are_targets() -> None:
    targets = ("q_proj", "gate_proj", "up_proj", "down_proj")
    assert adapted(build(tiny("Qwen3-MoE"), "lora", LoraSpec(r=4, target_modules=targets), seed=0)) == {
        "q_proj", "gate_up_proj", "down_proj"}
    with pytest.raises(InputError, match=r"Cannot convert PEFT target.* gate_proj without also targeting up_proj"):
        build(tiny("Qwen3-MoE"), "lora", LoraSpec(target_modules=("gate_proj",)), seed=0)
    with pytest.raises(InputError, match=r"fused expert weights of Qwen3MoeForCausalLM.*its linear layers: k_proj, o"):
        build(tiny("Qwen3-MoE"), "dora", LoraSpec(target_modules=targets), seed=0)


@pytest.mark.parametrize(("family", "names"), [
    ("Mamba", ["in_proj"]), ("Mamba-2", ["in_proj"]),
    ("Falcon-H1", ["down_proj", "gate_proj", "in_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]),
    ("LFM2", ["in_proj", "k_proj", "out_proj", "q_proj", "v_proj", "w1", "w2", "w3"])])
@pytest.mark.parametrize("method", ["lora", "dora", "pissa", "oft", "vera"])
def test_weights_that_are_read_directly_are_left_out(family: str, names: list[str], method: str) -> None:
    model = tiny(family)
    assert linear_layers(model) == names
    tuned = build(model, method, LoraSpec(r=4), seed=0)
    assert adapted(tuned) == set(names)
    assert ("out_proj" in names) == (target_notes(tuned) == ())


def test_an_adapter_without_effect_is_refused_with_layers_that_work() -> None:
    with pytest.raises(InputError) as error:
        build(tiny("Mamba"), "lora", LoraSpec(target_modules=("dt_proj",)), seed=0)
    assert str(error.value) == (
        "lora.target_modules: 'dt_proj' matches backbone.layers.0.mixer.dt_proj, whose weight MambaMixer, or its CUDA "
        "kernel, reads without calling the layer, so that an adapter on it would have no effect; choose from the other "
        "linear layers: in_proj")
    build(tiny("Mamba"), "lora", LoraSpec(target_modules=("in_proj",)), seed=0)


@pytest.mark.parametrize(("family", "names"), [
    ("Qwen3-MoE", {"k_proj", "v_proj"}), ("LFM2", {"k_proj", "v_proj", "w2"}),
    ("OLMo 2", {"k_proj", "v_proj", "down_proj"}), ("Llama", {"k_proj", "v_proj", "down_proj"})])
def test_ia3_adapts_families_that_are_not_in_pefts_table(family: str, names: set[str]) -> None:
    assert adapted(build(tiny(family), "ia3", LoraSpec(), seed=0)) == names


def test_ia3_without_layers_of_its_kind_names_those_that_there_are() -> None:
    with pytest.raises(InputError, match=r"method ia3: .*\(--target-modules\): in_proj$"):
        build(tiny("Mamba"), "ia3", LoraSpec(), seed=0)


def test_a_merge_of_shared_weights_is_refused_before_training(tmp_path: Path) -> None:
    base, data = families.make_model("Zamba2", tmp_path / "base"), families.make_data(tmp_path / "rows.jsonl")
    steps = []
    with pytest.raises(InputError, match=r"--merge: the adapter adapts .*shared_transformer.* leave out --merge"):
        tune(TuneSpec(model=str(base), data=DataSpec(file=data), out=tmp_path / "out", max_steps=1, template="plain",
                      dtype="float32", merge=True, threads=1), progress=lambda step, *_: steps.append(step))
    assert set(steps) == {0}


def test_the_load_balancing_loss_of_experts_is_part_of_the_loss(tmp_path: Path) -> None:
    """GraniteMoE has another name for the number of its experts than TRL reads. The loss is a mixture's as TRL computes
    it: the answers' nats, plus the coefficient times at least the number of experts of a token."""
    base, data = families.make_model("GraniteMoE", tmp_path / "base"), families.make_data(tmp_path / "rows.jsonl", 4)

    def first_loss(coefficient: float) -> float:
        path = base / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "router_aux_loss_coef": coefficient}))
        spec = TuneSpec(model=str(base), data=DataSpec(file=data), out=tmp_path / f"out{coefficient}", max_steps=1,
                        template="plain", dtype="float32", threads=1)
        return tune(spec).steps[0]["loss"]

    without, half, whole = (first_loss(c) for c in (0.0, 0.5, 1.0))
    assert whole - without > 1.9
    assert half - without == pytest.approx((whole - without) / 2, abs=1e-4)
