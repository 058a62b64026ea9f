"""Models in memory: what their fingerprint covers, and that an evaluation leaves them as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import aftertune
from aftertune.callbacks.live_evaluation import identify_in_memory
from aftertune.errors import InputError
from aftertune.sources.live import live_base
from eval_cases import byte_folder, byte_llama, byte_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")

TASK: dict[str, Any] = {"tasks": ["arc_easy"], "limit": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return byte_folder(tmp_path_factory.mktemp("live") / "base", window=4096)


def loaded(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder)


def adapted(folder: Path, seed: int = 0) -> Any:
    """A PEFT model with two adapters that change its answers; "default" is active."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False,
                        task_type="CAUSAL_LM")
    model = get_peft_model(loaded(folder), config)
    model.add_adapter("other", config)
    return model


def identity(model: Any) -> Any:
    return identify_in_memory(model, live_base(model, byte_tokenizer()))[0]


def state(model: Any) -> dict[str, Any]:
    """What an evaluation must not change."""
    return {"training": [m.training for m in model.modules()],
            "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
            "own": [sorted(m.__dict__) for m in model.modules()],
            "grad": [p.requires_grad for p in model.parameters()],
            "dtype": [p.dtype for p in model.parameters()], "device": [p.device for p in model.parameters()],
            "config": model.config.to_dict(), "attention": model.config._attn_implementation}


def test_a_model_that_was_loaded_from_a_folder_is_that_model_and_stays_as_it_was(folder: Path, tmp_path: Path) -> None:
    import torch

    model, ledger = loaded(folder), tmp_path / "l.db"
    model.train()
    model.model.layers[0].eval()
    before, weights = state(model), {k: v.clone() for k, v in model.state_dict().items()}
    random, threads = torch.get_rng_state(), torch.get_num_threads()
    live = aftertune.evaluate(model, ledger=ledger, **TASK)  # the tokenizer is that of its folder
    assert state(model) == before
    assert all(torch.equal(weights[k], v) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.get_num_threads() == threads
    assert any("its tensors are those of its files" in w for w in live.warnings)
    assert live.model.source == str(folder)
    again = aftertune.evaluate(str(folder), ledger=ledger, dtype="float32", **TASK)
    assert again.id == live.id


def test_calls_leave_the_threads_and_random_numbers_of_the_process(folder: Path, tmp_path: Path) -> None:
    import random

    import numpy as np
    import torch

    def now() -> tuple[Any, ...]:
        return (torch.get_num_threads(), random.getstate(), np.random.get_state()[1].tobytes(),
                torch.get_rng_state().numpy().tobytes())

    usual = torch.get_num_threads()
    torch.set_num_threads(2)
    before, rows = now(), [{"prompt": f"Say {i}: ", "completion": str(i)} for i in range(20)]
    aftertune.evaluate(folder, ledger=tmp_path / "l.db", threads=1, **TASK)
    assert now() == before
    aftertune.tune(folder, rows, template="plain", max_steps=1, batch_size=2, rank=2, device="cpu",
                   out=tmp_path / "out", ledger=tmp_path / "l.db")
    assert now() == before
    torch.set_num_threads(usual)


def test_a_changed_model_is_identified_by_its_tensors_and_names_no_folder(folder: Path, tmp_path: Path) -> None:
    import torch

    model = loaded(folder)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] += 0.5
    changed = aftertune.evaluate(model, tokenizer=byte_tokenizer(), ledger=tmp_path / "l.db", **TASK)
    base = aftertune.evaluate(folder, ledger=tmp_path / "l.db", dtype="float32", **TASK)
    assert changed.model.source == "memory:LlamaForCausalLM"
    assert changed.name == "LlamaForCausalLM"
    assert any("no folder holds it" in w for w in changed.warnings)
    assert changed.model.fingerprint != base.model.fingerprint
    assert identity(model) == identity(model)
    comparison = aftertune.compare(base, changed, margin=30, ledger=tmp_path / "l.db")
    assert comparison.rows[0].margin == pytest.approx(0.3)
    assert not comparison.lineage, "nothing proves that it was made from the base"
    assert "<svg" in comparison.plot()._repr_html_()
    alone = aftertune.compare(base, changed, tasks="arc_easy", margin={"arc_easy": 3, "average": 1, "*": 4},
                              ledger=tmp_path / "l.db")
    assert alone.rows[0].margin == pytest.approx(0.03)
    with pytest.raises(InputError, match=r"margin of 'arc_esy': .* no such task \(did you mean 'arc_easy'"):
        aftertune.compare(base, changed, margin={"arc_esy": 3}, ledger=tmp_path / "l.db")
    with pytest.raises(InputError, match="needs a fine-tune"):
        comparison.plot("learned", ledger=tmp_path / "l.db")
    assert len(changed.to_frame("answers", ledger=tmp_path / "l.db")) == 4


def test_every_state_of_an_adapter_has_its_own_fingerprint(folder: Path) -> None:
    import torch

    model = adapted(folder)
    base, seen = identity(loaded(folder)).fingerprint, {}
    seen["as loaded"] = identity(model).fingerprint
    assert identity(adapted(folder)).fingerprint == seen["as loaded"]
    with torch.no_grad():
        weight = next(p for n, p in model.named_parameters() if "lora_A.default" in n)
        weight[0, 0] += 1
        seen["a weight"] = identity(model).fingerprint
        weight[0, 0] -= 1
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    layer.scale_layer(0.5)
    seen["a scale"] = identity(model).fingerprint
    layer.unscale_layer(0.5)
    model.set_adapter("other")
    seen["another adapter"] = identity(model).fingerprint
    model.base_model.set_adapter(["default", "other"])
    seen["both adapters"] = identity(model).fingerprint
    model.set_adapter("default")
    with model.disable_adapter():
        assert identity(model).fingerprint == base
    layer.enable_adapters(False)
    seen["a layer that is off"] = identity(model).fingerprint
    layer.enable_adapters(True)
    model.merge_adapter()
    seen["merged"] = identity(model).fingerprint
    assert len({base, *seen.values()}) == 1 + len(seen), seen


def test_an_adapter_in_memory_is_the_adapter_in_its_folder(folder: Path, tmp_path: Path) -> None:
    from aftertune.sources import adapter_folder, fingerprint_adapter

    model = adapted(folder)
    model.save_pretrained(tmp_path / "saved", selected_adapters=["default"])
    live = identity(model)
    assert live.adapter == fingerprint_adapter(adapter_folder(str(tmp_path / "saved"))[0])
    assert live.adapter_source == "memory:default"
    assert live.base.fingerprint == identity(loaded(folder)).fingerprint


def test_a_hook_that_can_change_the_numbers_counts(folder: Path) -> None:
    model = loaded(folder)
    plain = identity(model).fingerprint
    model.enable_input_require_grads()
    assert identity(model).fingerprint == plain, "the hook of gradient checkpointing changes no number"
    handle = model.lm_head.register_forward_hook(lambda *_: None)
    assert identity(model).fingerprint != plain
    handle.remove()
    assert identity(model).fingerprint == plain


def test_a_model_without_its_last_layer_is_not_the_model_in_its_folder(folder: Path) -> None:
    model, short = loaded(folder), loaded(folder)
    short.model.layers = short.model.layers[:-1]
    assert identity(short).fingerprint != identity(model).fingerprint
    assert identity(short).source == "memory:LlamaForCausalLM"


def test_a_model_that_was_cast_is_not_one_that_was_loaded_in_this_dtype(folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    right = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    cast = loaded(folder).to(torch.bfloat16)  # this rounds the frequencies of the positions too
    assert identity(right).fingerprint == identity(loaded(folder)).fingerprint
    assert identity(cast).fingerprint != identity(right).fingerprint
    assert "inv_freq" in identify_in_memory(cast, live_base(cast, byte_tokenizer()))[1]


@pytest.mark.parametrize(("values", "message"), [
    ({"adapter": "x"}, "put the adapter on the model in memory"),
    ({"dtype": "float16"}, "dtype has no effect on a model in memory"),
    ({"engine": "lm-eval:hf"}, "evaluated with packed or plain"),
    ({}, "give tokenizer=…"),
    ({"limitt": 3}, r"unknown setting 'limitt' \(did you mean 'limit'"),
])
def test_what_a_model_in_memory_cannot_have_is_refused(values: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        aftertune.evaluate(byte_llama(), ledger=tmp_path / "l.db", **{**TASK, **values})


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the model is a object; allowed are an id, a folder, and a model"):
        aftertune.evaluate(object(), tokenizer=byte_tokenizer(), ledger=tmp_path / "l.db", **TASK)
    with pytest.raises(InputError, match="the model is a object; allowed"):
        aftertune.evaluate(object(), ledger=tmp_path / "l.db", **TASK)


def test_a_model_without_a_language_model_head_is_refused(folder: Path, tmp_path: Path) -> None:
    from transformers import LlamaModel

    with pytest.raises(InputError, match="LlamaModel, which is no causal language model; load it with AutoModelFor"):
        aftertune.evaluate(LlamaModel(byte_llama().config), tokenizer=byte_tokenizer(), ledger=tmp_path / "l.db",
                           **TASK)
