"""Fine-tunes at less strength: 1 is the fine-tune and 0 the base, bit by bit, and between them the change is scaled."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from aftertune.errors import InputError
from aftertune.sources import BaseModelCache, fingerprint_model, load_model, resolve_adapter, resolve_model
from aftertune.tuning.strength import THIRDS, WHOLE, FineTuneFiles, check_strength, strengths, write_softened
from source_cases import tiny_llama

pytestmark = pytest.mark.filterwarnings("ignore")
ADAPTERS: dict[str, dict[str, Any]] = {
    "LORA": {"r": 4}, "rsLoRA": {"r": 4, "use_rslora": True, "alpha_pattern": {"q_proj": 3}},
    "DoRA": {"r": 4, "use_dora": True}, "lora bias": {"r": 4, "lora_bias": True},
    "IA3": {"target_modules": ["q_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    "VERA": {"r": 8, "save_projection": True}, "OFT": {"oft_block_size": 16, "r": 0}}
IDS = torch.arange(3, 15)[None]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("strength") / "base")


def adapter(base: Path, folder: Path, name: str, seed: int = 0) -> FineTuneFiles:
    """A random adapter of a kind on the base."""
    import peft
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as CONFIGS
    from transformers import AutoModelForCausalLM

    kind = name if name in CONFIGS else "LORA"
    config = CONFIGS[peft.PeftType(kind)](**{"target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM",
                                             **ADAPTERS[name]})
    torch.manual_seed(seed)
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data += 0.05 * torch.randn_like(weight)
    model.save_pretrained(folder)
    return FineTuneFiles(folder, True, resolve_model(str(base)))


def whole(base: Path, folder: Path, dtype: str = "float32") -> FineTuneFiles:
    """The base with other weights."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    for weight in model.parameters():
        weight.data += 0.02 * torch.randn_like(weight)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return FineTuneFiles(folder, False, resolve_model(str(base)))


def logits(files: FineTuneFiles, folder: Path | None) -> torch.Tensor:
    """Those of the model in a folder, of the base for None."""
    if folder is not None and files.adapter:
        found = resolve_adapter(str(folder), files.base, fingerprint_model(files.base))
        model = load_model(files.base, "float32", "cpu", found)
    else:
        model = load_model(resolve_model(str(folder)) if folder else files.base, "float32", "cpu")
    with torch.inference_mode():
        made: torch.Tensor = model(input_ids=IDS).logits
    return made


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("name", ADAPTERS)
def test_strength_1_is_the_adapter_and_0_is_the_base(base: Path, tmp_path: Path, name: str) -> None:
    files = adapter(base, tmp_path / "tuned", name)
    check_strength(files)
    for strength in (0.0, 0.5, 1.0):
        write_softened(files, {WHOLE: strength}, tmp_path / f"{strength}")
    assert sha(tmp_path / "1.0" / files.weights[0].name) == sha(files.weights[0])
    assert torch.equal(logits(files, tmp_path / "1.0"), logits(files, files.folder))
    of_base = logits(files, None)
    if name == "DoRA":  # its norm of a row is computed in another order
        assert torch.allclose(logits(files, tmp_path / "0.0"), of_base, atol=1e-5)
    elif name == "OFT":  # it rotates by the identity
        assert torch.allclose(logits(files, tmp_path / "0.0"), of_base, atol=1e-6)
    else:
        assert torch.equal(logits(files, tmp_path / "0.0"), of_base)
    halfway = logits(files, tmp_path / "0.5")
    full_change = (logits(files, files.folder) - of_base).norm()
    assert 0.1 * full_change < (halfway - of_base).norm() < 0.95 * full_change


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_strength_1_is_the_whole_fine_tune_and_0_has_the_weights_of_the_base(base: Path, tmp_path: Path, dtype: str
                                                                             ) -> None:
    files = whole(base, tmp_path / "tuned", dtype)
    check_strength(files)
    for strength in (0.0, 0.25, 1.0):
        write_softened(files, {WHOLE: strength}, tmp_path / f"{strength}")
    (weights,) = files.weights
    assert sha(tmp_path / "1.0" / weights.name) == sha(weights)
    before, after = load_file(base / weights.name), load_file(weights)
    for name, tensor in load_file(tmp_path / "0.0" / weights.name).items():
        assert torch.equal(tensor, before[name].to(tensor.dtype))
    for name, tensor in load_file(tmp_path / "0.25" / weights.name).items():
        wanted = before[name] + 0.25 * (after[name].float() - before[name])
        assert torch.allclose(tensor.float(), wanted, rtol=1e-6 if dtype == "float32" else 1e-2, atol=1e-6)
    if dtype == "float32":
        assert torch.equal(logits(files, tmp_path / "0.0"), logits(files, None))
        assert torch.equal(logits(files, tmp_path / "1.0"), logits(files, files.folder))


def test_a_lora_adapter_changes_the_weights_by_the_strength(base: Path, tmp_path: Path) -> None:
    files = adapter(base, tmp_path / "tuned", "LORA")
    write_softened(files, {WHOLE: 0.3}, tmp_path / "soft")
    before, after = load_file(files.weights[0]), load_file(tmp_path / "soft" / files.weights[0].name)
    for name, tensor in before.items():
        if "lora_B" in name:
            a = name.replace("lora_B", "lora_A")
            assert torch.allclose(after[name] @ after[a], 0.3 * (tensor @ before[a]), rtol=1e-5, atol=1e-8)
    assert json.loads((tmp_path / "soft/adapter_config.json").read_text()) == json.loads(
        (files.folder / "adapter_config.json").read_text())


def test_thirds_of_the_layers_are_softened_alone() -> None:
    names = [f"model.layers.{n}.mlp.weight" for n in range(6)] + ["model.embed_tokens.weight", "lm_head.weight"]
    found = strengths(names, dict(zip(THIRDS, (0.1, 0.2, 0.3), strict=True)))
    assert [found[name] for name in names] == [0.1, 0.1, 0.2, 0.2, 0.3, 0.3, 0.1, 0.3]
    upper = [f"model.layers.{n}.mlp.weight" for n in (24, 26, 29)]
    found = strengths(upper, dict(zip(THIRDS, (0.1, 0.2, 0.3), strict=True)))
    assert [found[name] for name in upper] == [0.1, 0.2, 0.3], "thirds of the layers that the fine-tune changes"
    with pytest.raises(InputError, match="in 2 layers, which cannot be cut into 3 parts; leave out --by depth"):
        strengths(names[:2], dict.fromkeys(THIRDS, 1.0))


def test_adapters_that_are_more_than_a_scaled_change_are_refused(base: Path, tmp_path: Path) -> None:
    files = adapter(base, tmp_path / "tuned", "LORA")
    config = json.loads((files.folder / "adapter_config.json").read_text())
    for change, message in (({"peft_type": "XLORA"}, "of type XLORA has no strength; allowed are LORA, IA3"),
                            ({"bias": "all"}, "trained biases"), ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
                            ({"init_lora_weights": "pissa"}, "the start 'pissa'")):
        (files.folder / "adapter_config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(InputError, match=message):
            check_strength(files)
        copy = tmp_path / message[:12]
        write_softened(files, {WHOLE: 1.0}, copy)
        assert sha(copy / files.weights[0].name) == sha(files.weights[0]), "strength 1 is a copy in any case"
    (files.folder / "adapter_config.json").write_text(json.dumps(config))
    save_file({**load_file(files.weights[0]), "base_model.model.lm_head.weight": torch.zeros(2, 2)}, files.weights[0])
    with pytest.raises(InputError, match=r"tensor 'base_model.model.lm_head.weight' has no strength \(1 such"):
        check_strength(files)


def test_whole_weights_of_other_tensors_or_stored_quantised_are_refused(base: Path, tmp_path: Path) -> None:
    files = whole(base, tmp_path / "tuned")
    config = files.folder / "config.json"
    fields = json.loads(config.read_text())
    config.write_text(json.dumps({**fields, "quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(InputError, match="stored quantised, and rounded weights cannot be interpolated"):
        check_strength(files)
    config.write_text(json.dumps(fields))
    of_quantised = FineTuneFiles(files.folder, False, resolve_model(str(tiny_llama(tmp_path / "quantised"))))
    stored = json.loads((tmp_path / "quantised/config.json").read_text())
    (tmp_path / "quantised/config.json").write_text(json.dumps({**stored, "quantization_config": {"bits": 4}}))
    with pytest.raises(InputError, match="quantised: its weights are stored quantised"):
        check_strength(of_quantised)
    other = FineTuneFiles(files.folder, False, resolve_model(str(tiny_llama(tmp_path / "other", hidden=48))))
    with pytest.raises(InputError, match="are not the same tensors, first"):
        check_strength(other)


@pytest.mark.parametrize("name", ["LORA", "DoRA", "IA3", "VERA", "OFT"])
def test_one_base_in_memory_gives_each_strength_the_bits_of_its_own_load(
        base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    from aftertune.sources import base_cache

    files = adapter(base, tmp_path / "tuned", name)
    cache, loads = BaseModelCache(), []
    add = base_cache.add_adapter
    monkeypatch.setattr(base_cache, "add_adapter", lambda *a, **k: loads.append(1) or add(*a, **k))
    for strength in (0.4, 1.0, 0.7):
        folder = tmp_path / f"{strength}"
        write_softened(files, {WHOLE: strength}, folder)
        found = resolve_adapter(str(folder), files.base, fingerprint_model(files.base))
        model = cache.load(files.base, "float32", "cpu", found)
        with torch.inference_mode():
            assert torch.equal(model(input_ids=IDS).logits, logits(files, folder))
    assert len(loads) == (3 if name == "OFT" else 1)
    with torch.inference_mode():
        assert torch.equal(cache.load(files.base, "float32", "cpu")(input_ids=IDS).logits, logits(files, None))
