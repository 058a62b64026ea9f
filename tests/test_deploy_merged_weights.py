"""check-merge by weights: right merges of every method and dtype pass; each planted fault is found and named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aftertune.deploy.merged_weights import WeightsCheck, check_weights
from aftertune.deploy.rounding import Stored, round_to
from aftertune.errors import InputError
from aftertune.ledger import Ledger
from aftertune.methods import METHODS
from aftertune.sources import cache, fingerprint_model, resolve_adapter, resolve_model
from aftertune.study import DataSpec, LoraSpec, TuneSpec
from aftertune.tuning import output, tune
from deploy_cases import CHATML, ROWS, chat_model, chat_tokenizer
from tuning_cases import easy_rows, write_rows

MERGING = [name for name, method in METHODS.items() if not method.not_merged]
#: The 16 levels of NF4 (bitsandbytes, ``create_normal_map``).
NF4 = np.array([-1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0, 0.0795803,
                0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0], dtype=np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("merges")


@pytest.fixture(autouse=True)
def own_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFTERTUNE_CACHE", str(folder / "cache"))
    assert cache.cache_root() == folder / "cache"


def adapter(base: Path, out: Path, config: Any, *, size: float = 0.05, method: str = "lora") -> Path:
    """An adapter with random weights, saved as a tuning saves it."""
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    if out.exists():
        return out
    torch.manual_seed(1)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    if METHODS[method].begin is not None:
        METHODS[method].begin(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += size * torch.randn_like(parameter)
    out.mkdir()
    output.save(model, method, chat_tokenizer(), out, fingerprint_model(resolve_model(str(base))))
    return out


def lora(**values: Any) -> Any:
    from peft import LoraConfig

    return LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **values})


def merged_by_peft(base: Path, adapter: Path, out: Path, dtype: str = "float32", *, saved_as: str = "") -> Path:
    """merge_and_unload on the base in a dtype. saved_as: the dtype of the file, if another."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype))
    model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    if saved_as:
        model = model.to(getattr(torch, saved_as))
    model.save_pretrained(out)
    for path in base.glob("*okeni*"):
        shutil.copy(path, out)
    shutil.copy(base / "chat_template.jinja", out)
    return out


def check(base: Path, adapter: Path, merged: Path) -> WeightsCheck:
    return check_weights(str(base), str(adapter), str(merged))


def kinds(result: WeightsCheck) -> list[str]:
    return [fault.kind for fault in result.faults]


def based(folder: Path, dtype: str = "float32", name: str = "llama") -> Path:
    out = folder / f"base-{name}-{dtype}"
    return out if out.exists() else chat_model(name, out, dtype=dtype)


def changed(merged: Path, out: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of merged weights with a fault. change: gets the tensors by name."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(merged, out)
    tensors = load_file(out / "model.safetensors")
    change(tensors)
    save_file({k: v.contiguous() for k, v in tensors.items()}, out / "model.safetensors", metadata={"format": "pt"})
    return out


def stored(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


# --- Right merges ---


@pytest.mark.parametrize("method", MERGING)
def test_a_right_merge_of_every_method_passes(folder: Path, tmp_path: Path, method: str) -> None:
    base = based(folder, "bfloat16")
    config = METHODS[method].config(LoraSpec(r=8, target_modules=("q_proj", "down_proj", "k_proj")), 0)
    made = adapter(base, folder / f"by-{method}", config, method=method)
    source = resolve_model(str(base))
    output.merge(source, resolve_adapter(str(made), source, fingerprint_model(source)), tmp_path / "ours",
                 dtype="bfloat16")
    for merged in (tmp_path / "ours", merged_by_peft(base, made, tmp_path / "peft", "bfloat16")):
        result = check(base, made, merged)
        assert result.same, result.faults
        assert result.adapted >= 4
        assert result.kept is not None
        assert result.kept == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize(("of_base", "in_dtype", "saved_as"), [
    ("float32", "float32", ""), ("float32", "float16", ""), ("float32", "float32", "bfloat16"),
    ("float32", "bfloat16", "float32"), ("bfloat16", "float32", ""), ("bfloat16", "float32", "bfloat16")])
def test_a_right_merge_through_any_dtype_passes(folder: Path, tmp_path: Path, of_base: str, in_dtype: str,
                                                saved_as: str) -> None:
    base = based(folder, of_base)
    made = adapter(base, folder / f"lora-{of_base}", lora())
    result = check(base, made, merged_by_peft(base, made, tmp_path / "m", in_dtype, saved_as=saved_as))
    assert result.same, result.faults


# --- Planted faults ---


@pytest.fixture(scope="module")
def plain(folder: Path) -> tuple[Path, Path, Path]:
    """Base, LoRA adapter with small changes and right merge, all in bfloat16."""
    base = based(folder, "bfloat16")
    made = adapter(base, folder / "small", lora(), size=0.01)
    return base, made, merged_by_peft(base, made, folder / "small-merged", "bfloat16")


def test_an_adapter_that_was_not_applied_is_named(plain: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, made, merged = plain
    assert check(base, made, merged).same
    result = check(base, made, base)
    assert kinds(result) == ["not applied"]
    assert "all 14 adapted weights" in result.faults[0].sentence


def test_one_unmerged_layer_is_named(plain: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, made, merged = plain
    name = "model.layers.1.mlp.up_proj.weight"
    result = check(base, made, changed(merged, tmp_path / "m", lambda t: t.update({name: stored(base)[name]})))
    assert [(f.kind, f.names) for f in result.faults] == [("unmerged", (name,))]
    assert "1 of 14" in result.faults[0].sentence


def test_another_scale_is_named_with_its_factor(plain: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, made, _ = plain
    other = tmp_path / "half"
    shutil.copytree(made, other)
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 4}))
    result = check(base, made, merged_by_peft(base, other, tmp_path / "m", "bfloat16"))
    assert "scaled" in kinds(result)
    factors = [f.sentence for f in result.faults if f.kind == "scaled"]
    assert any("0.5 times" in s for s in factors), factors


def test_a_base_in_four_bits_is_named(plain: tuple[Path, Path, Path], tmp_path: Path) -> None:
    import torch

    base, made, merged = plain
    before = stored(base)

    def quantised(tensors: dict[str, Any]) -> None:
        for name, weight in tensors.items():
            if "layers" in name and weight.ndim == 2:
                values = before[name].float().numpy()
                blocks = values.reshape(-1, 64)
                largest = np.abs(blocks).max(axis=1, keepdims=True)
                nearest = NF4[np.abs((blocks / largest)[..., None] - NF4).argmin(-1)] * largest
                change = weight.float() - before[name].float()
                tensors[name] = (torch.from_numpy(nearest.reshape(values.shape)) + change).to(weight.dtype)

    result = check(base, made, changed(merged, tmp_path / "m", quantised))
    assert kinds(result) == ["four bits"], result.faults
    assert len(result.faults[0].names) == 14


def test_queries_and_keys_in_another_order_are_named(plain: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, made, merged = plain

    def permuted(tensors: dict[str, Any]) -> None:
        for name, weight in tensors.items():
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                heads = 4 if "q_proj" in name else 2
                tensors[name] = weight.reshape(heads, 2, 8, 64).swapaxes(1, 2).reshape(weight.shape)

    result = check(base, made, changed(merged, tmp_path / "m", permuted))
    assert kinds(result) == ["permuted"]
    assert len(result.faults[0].names) == 4


def test_other_changes_are_found_by_size(plain: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, made, merged = plain

    def damaged(tensors: dict[str, Any]) -> None:
        tensors["model.layers.0.mlp.gate_proj.weight"] *= 1.01
        tensors["model.norm.weight"] += 0.1
        del tensors["model.layers.1.self_attn.o_proj.weight"]

    result = check(base, made, changed(merged, tmp_path / "m", damaged))
    assert {f.kind: f.names for f in result.faults} == {
        "changed": ("model.norm.weight",), "other": ("model.layers.0.mlp.gate_proj.weight",),
        "missing": ("model.layers.1.self_attn.o_proj.weight",)}


def test_a_lost_head_of_modules_to_save_is_named(folder: Path, tmp_path: Path) -> None:
    base = based(folder)
    made = adapter(base, tmp_path / "a", lora(modules_to_save=["lm_head"]))
    merged = merged_by_peft(base, made, tmp_path / "right")
    assert check(base, made, merged).same
    lost = changed(merged, tmp_path / "m", lambda t: t.update({"lm_head.weight": stored(base)["lm_head.weight"]}))
    result = check(base, made, lost)
    assert [(f.kind, f.names) for f in result.faults] == [("lost", ("lm_head.weight",))]


def test_a_stale_head_is_named(folder: Path, tmp_path: Path) -> None:
    """Tied embeddings are trained; the merge unties them and keeps the base's as the head."""
    base = based(folder, name="llama-tied")
    made = adapter(base, tmp_path / "a", lora(modules_to_save=["embed_tokens"], target_modules=["q_proj"],
                                              ensure_weight_tying=True))
    merged = merged_by_peft(base, made, tmp_path / "right")
    assert check(base, made, merged).same, check(base, made, merged).faults
    stale = changed(merged, tmp_path / "m",
                    lambda t: t.update({"lm_head.weight": stored(base)["model.embed_tokens.weight"].clone()}))
    config = json.loads((stale / "config.json").read_text())
    (stale / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    result = check(base, made, stale)
    assert [(f.kind, f.names) for f in result.faults] == [("stale", ("lm_head.weight",))]


def test_a_head_that_ties_over_a_trained_one_is_named(folder: Path, tmp_path: Path) -> None:
    base = based(folder, name="llama-tied")
    made = adapter(base, tmp_path / "a", lora(modules_to_save=["lm_head"], target_modules=["q_proj"]))
    merged = merged_by_peft(base, made, tmp_path / "right")
    assert check(base, made, merged).same, check(base, made, merged).faults
    lost = changed(merged, tmp_path / "m", lambda t: t.__delitem__("lm_head.weight"))
    config = json.loads((lost / "config.json").read_text())
    (lost / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    assert [(f.kind, f.names) for f in check(base, made, lost).faults] == [("lost", ("lm_head.weight",))]


def test_dora_without_its_magnitudes_is_named(folder: Path, tmp_path: Path) -> None:
    base = based(folder)
    made = adapter(base, tmp_path / "a", lora(use_dora=True))
    without = tmp_path / "lora"
    shutil.copytree(made, without)
    config = json.loads((without / "adapter_config.json").read_text())
    (without / "adapter_config.json").write_text(json.dumps({**config, "use_dora": False}))
    from safetensors.torch import load_file, save_file

    tensors = load_file(without / "adapter_model.safetensors")
    save_file({k: v for k, v in tensors.items() if "magnitude" not in k}, without / "adapter_model.safetensors",
              metadata={"format": "pt"})
    assert kinds(check(base, made, merged_by_peft(base, without, tmp_path / "m"))) == ["plain"]


def test_resized_embeddings_are_compared(folder: Path, tmp_path: Path) -> None:
    """The adapter has embeddings and a head with eight more rows."""
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    base = based(folder)
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(ROWS + 8)
    model = get_peft_model(model, lora(target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"]))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "a")
    model.merge_and_unload().save_pretrained(tmp_path / "m")
    chat_tokenizer().save_pretrained(tmp_path / "m")
    assert check(base, tmp_path / "a", tmp_path / "m").same
    smaller = changed(tmp_path / "m", tmp_path / "s",
                      lambda t: t.update({"lm_head.weight": t["lm_head.weight"][:ROWS]}))
    assert [(f.kind, f.names) for f in check(base, tmp_path / "a", smaller).faults] == [("shape", ("lm_head.weight",))]


def test_config_tokenizer_and_end_tokens_are_compared(plain: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, made, merged = plain
    other = tmp_path / "m"
    shutil.copytree(merged, other)
    config = json.loads((other / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 5e5
    (other / "config.json").write_text(json.dumps(config))
    tokenizer = chat_tokenizer(template="{% for m in messages %}[{{ m['content'] }}]{% endfor %}")
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.save_pretrained(other)
    generation = json.loads((other / "generation_config.json").read_text())
    (other / "generation_config.json").write_text(json.dumps({**generation, "eos_token_id": 0}))
    result = {f.kind: f.names for f in check(base, made, other).faults}
    assert set(result) == {"config", "tokenizer", "end tokens"}
    assert "rope_theta" in result["config"][0]
    assert result["tokenizer"][0] == "the eos token"
    assert result["tokenizer"][1].startswith("the chat template: another template (one question: + [What is")


def test_a_template_in_other_words_with_the_same_prompts_is_no_fault(plain: tuple[Path, Path, Path], tmp_path: Path
                                                                    ) -> None:
    base, made, merged = plain
    shutil.copytree(merged, tmp_path / "m")
    chat_tokenizer(template="{# ChatML #}" + CHATML).save_pretrained(tmp_path / "m")
    assert check(base, made, tmp_path / "m").same


def test_a_base_with_norms_in_float32_passes(folder: Path, tmp_path: Path) -> None:
    """The norms stay in float32 in a merge that keeps them, and are rounded in another."""
    import torch
    from safetensors.torch import load_file, save_file

    base = tmp_path / "base"
    shutil.copytree(based(folder), base)
    tensors = {k: v if v.ndim == 1 else v.bfloat16() for k, v in load_file(base / "model.safetensors").items()}
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    made = adapter(base, tmp_path / "a", lora())
    for dtype in (torch.float32, torch.bfloat16):
        merged = merged_by_peft(base, made, tmp_path / str(dtype), str(dtype).removeprefix("torch."))
        assert check(base, made, merged).same, dtype


def test_a_stored_head_that_ties_over_is_not_used(folder: Path, tmp_path: Path) -> None:
    base = based(folder, name="llama-tied")
    made = adapter(base, tmp_path / "a", lora())
    merged = merged_by_peft(base, made, tmp_path / "right")
    extra = changed(merged, tmp_path / "m",
                    lambda t: t.update({"lm_head.weight": 2 * t["model.embed_tokens.weight"]}))
    assert check(base, made, extra).same, "transformers takes the embeddings"


def test_another_order_of_the_vocabulary_is_named(plain: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, made, merged = plain
    other = tmp_path / "m"
    shutil.copytree(merged, other)
    content = json.loads((other / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["A"], vocabulary["B"] = vocabulary["B"], vocabulary["A"]
    (other / "tokenizer.json").write_text(json.dumps(content))
    result = check(base, made, other)
    assert kinds(result) == ["tokenizer"]
    assert "the ids of its tokens" in result.faults[0].names


def test_an_adapter_without_effect_is_noted(folder: Path, tmp_path: Path) -> None:
    base = based(folder)
    made = adapter(base, tmp_path / "a", lora(), size=0.0)  # B is zero
    result = check(base, made, base)
    assert result.same
    assert (result.adapted, len(result.idle)) == (0, 14)
    assert any("changes no weight at all" in note for note in result.notes)


def test_what_rounding_loses_is_noted(folder: Path, tmp_path: Path) -> None:
    base = based(folder, "bfloat16")
    made = adapter(base, tmp_path / "a", lora(), size=5e-4)
    result = check(base, made, merged_by_peft(base, made, tmp_path / "m", "bfloat16"))
    assert result.same
    assert result.kept is not None
    assert result.kept < 0.9
    assert any("rounding to BF16 left" in note for note in result.notes)


def test_merged_weights_must_be_safetensors(plain: tuple[Path, Path, Path], tmp_path: Path) -> None:
    from aftertune.deploy.gguf_file import write_gguf

    base, made, merged = plain
    write_gguf(resolve_model(str(merged)), tmp_path / "m.gguf", "f16", name="m")
    with pytest.raises(InputError, match="GGUF"):
        check_weights(str(base), str(made), str(tmp_path / "m.gguf"))


def test_experts_that_a_file_has_one_by_one_are_compared(tmp_path: Path) -> None:
    """transformers fuses the experts of a layer into one parameter; files have a tensor for each."""
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    base = tmp_path / "base"
    MixtralForCausalLM(MixtralConfig(
        vocab_size=ROWS, hidden_size=32, intermediate_size=48, num_local_experts=4, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=512, bos_token_id=1, eos_token_id=2,
        pad_token_id=2)).save_pretrained(base)
    chat_tokenizer().save_pretrained(base)
    data = DataSpec(file=write_rows(tmp_path / "rows.jsonl", easy_rows()))
    with Ledger(tmp_path / "ledger.db") as ledger:
        tuned = tune(TuneSpec(model=str(base), data=data, out=tmp_path / "out", name="experts", max_steps=3, threads=1,
                              learning_rate=0.01, dtype="float32", merge=True, lora=LoraSpec(dropout=0.0)),
                     ledger=ledger)
    merged = Path(tuned.output) / "merged"
    right = check(base, Path(tuned.output), merged)
    assert right.same, right.faults
    before = stored(base)
    experts = [name for name in before if ".experts." in name]
    assert len(experts) == 12
    lost = changed(merged, tmp_path / "m", lambda t: t.update({n: before[n] for n in experts}))
    found = {f.kind: f.names for f in check(base, Path(tuned.output), lost).faults}
    assert list(found) == ["unmerged"]
    assert len(found["unmerged"]) == 2
    assert all("experts" in name for name in found["unmerged"])
    one = adapter(base, tmp_path / "one", lora(target_modules=["q_proj"], target_parameters=["experts.down_proj"]))
    half = check(base, one, merged_by_peft(base, one, tmp_path / "half"))
    assert half.same, half.faults
    assert (half.adapted, half.weights) == (2, right.weights)


# --- Rounding ---


def test_rounding_is_that_of_torch() -> None:
    import torch

    values = np.random.default_rng(0).standard_normal(5000).astype(np.float32) * np.float32(1e-3)
    for dtype, name in (("BF16", "bfloat16"), ("F16", "float16")):
        assert np.array_equal(
            round_to(values, dtype), torch.from_numpy(values).to(getattr(torch, name)).float().numpy())


@pytest.mark.parametrize("size", [1e-5, 1e-4, 1e-3, 1e-2])
def test_the_power_of_the_check_does_not_depend_on_the_size_of_the_change(size: float) -> None:
    """Orders of rounding pass; a tenth less or nothing of the change does not."""
    rng = np.random.default_rng(0)
    base = round_to((rng.standard_normal((96, 64)) * 0.05).astype(np.float32), "BF16")
    left, right = (rng.standard_normal(shape).astype(np.float32) for shape in ((96, 4), (4, 64)))
    change = size * (left @ right)
    rough = np.float32(size) * (round_to(left, "BF16") @ round_to(right, "BF16"))
    for good in (base + change, base + round_to(change, "BF16"), base + rough):
        assert Stored(round_to(good, "BF16"), "BF16").is_right(base, base + change)
    for share in (0.0, 0.5, 0.9, 1.1, 2.0):
        assert not Stored(round_to(base + np.float32(share) * change, "BF16"), "BF16").is_right(base, base + change)
