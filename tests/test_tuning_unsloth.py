"""The unsloth backend: one-line errors where it cannot run, and the arguments that it is called with."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from aftertune.errors import InputError, ResourceError, SourceError
from aftertune.sources import ModelSource
from aftertune.study import DataSpec, TuneSpec
from aftertune.tuning import tune, unsloth
from test_cli import call
from tuning_cases import base_and_data

#: Parameters of unsloth 2026.10.9: FastLanguageModel.from_pretrained and get_peft_model.
LOADING = {"model_name", "max_seq_length", "dtype", "load_in_4bit", "load_in_8bit", "load_in_16bit", "full_finetuning",
           "token", "device_map", "device_map_planner_kwargs", "rope_scaling", "fix_tokenizer", "trust_remote_code",
           "use_gradient_checkpointing", "resize_model_vocab", "revision", "use_exact_model_name", "random_state"}
ADAPTING = {"r", "target_modules", "lora_alpha", "lora_dropout", "bias", "layers_to_transform", "layers_pattern",
            "use_gradient_checkpointing", "random_state", "max_seq_length", "use_rslora", "modules_to_save",
            "init_lora_weights", "loftq_config"}


@pytest.fixture
def spec(tmp_path: Path) -> TuneSpec:
    base_and_data(tmp_path)
    return TuneSpec(model=str(tmp_path / "base"), data=DataSpec(file=tmp_path / "data.jsonl"), out=tmp_path / "out",
                    device="cpu", dtype="float32", threads=1, max_steps=3, learning_rate=0.05, backend="unsloth")


@pytest.fixture
def present(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """A package of that name whose functions do the same by transformers and PEFT; what each was given."""
    given: dict[str, dict[str, Any]] = {}

    class FastLanguageModel:
        @staticmethod
        def from_pretrained(**options: Any) -> tuple[Any, Any]:
            from transformers import AutoModelForCausalLM

            print("a banner")
            given["load"] = options
            return AutoModelForCausalLM.from_pretrained(options["model_name"], dtype=options["dtype"],
                                                        attn_implementation="eager"), None

        @staticmethod
        def get_peft_model(model: Any, **options: Any) -> Any:
            from peft import LoraConfig, get_peft_model
            from transformers import set_seed

            given["adapt"] = options
            set_seed(options["random_state"])
            return get_peft_model(model, LoraConfig(
                task_type="CAUSAL_LM", **{k: options[k] for k in ("r", "lora_alpha", "lora_dropout", "target_modules",
                                                                  "use_rslora", "bias")}))

    module = types.ModuleType("unsloth")
    module.FastLanguageModel = FastLanguageModel  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "unsloth", module)
    monkeypatch.setattr(unsloth, "unavailable_error", lambda device: None)
    monkeypatch.setattr(unsloth, "version", lambda: "2026.10.9")
    return given


def test_without_a_gpu_one_line_says_what_is_missing(spec: TuneSpec, monkeypatch: pytest.MonkeyPatch,
                                                     capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "tune", spec.model, "--data", str(spec.data.file), "--backend", "unsloth",
                "--device", "cpu") == 4
    line = capsys.readouterr().err.strip().splitlines()[-1]
    for part in ("CUDA device", "the device is cpu", "package unsloth is not installed", "leave it out",
                 "pip install 'aftertune[unsloth]'"):
        assert part in line


@pytest.mark.parametrize(("changed", "named"), [
    ({"method": "dora"}, "trains lora, qlora, rslora, not dora"), ({"method": "full"}, "not full"),
    ({"watch": {"tasks": {"hellaswag": 8}}}, "does not support watch")])
def test_what_it_does_not_train_is_refused(spec: TuneSpec, changed: dict[str, Any], named: str,
                                           present: dict[str, Any]) -> None:
    other = TuneSpec.model_validate({**spec.model_dump(exclude_unset=True), **changed})
    with pytest.raises(InputError, match=named) as caught:
        tune(other)
    assert "--backend" in str(caught.value)
    auto = other.model_copy(update={"backend": "auto"})
    source = ModelSource(source="m", kind="folder", path=Path(spec.model))
    assert unsloth.choose_backend(auto, source, "cuda:0") == "peft"


def test_a_gguf_is_refused(spec: TuneSpec, present: dict[str, Any]) -> None:
    source = ModelSource(source="m.gguf", kind="gguf", path=Path(), gguf_file="m.gguf")
    with pytest.raises(InputError, match="safetensors"):
        unsloth.choose_backend(spec, source, "cuda")


def test_auto_takes_it_where_it_can_run_and_peft_elsewhere(spec: TuneSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    source = ModelSource(source="m", kind="folder", path=Path(spec.model))
    auto = spec.model_copy(update={"backend": "auto"})
    monkeypatch.setattr(unsloth.importlib.util, "find_spec", lambda name: object())
    assert unsloth.choose_backend(auto, source, "cuda:0") == "unsloth"
    assert unsloth.choose_backend(auto, source, "cpu") == "peft"
    monkeypatch.setattr(unsloth.importlib.util, "find_spec", lambda name: None)
    assert unsloth.choose_backend(auto, source, "cuda:0") == "peft"
    with pytest.raises(ResourceError, match="the package unsloth is not installed"):
        unsloth.choose_backend(spec, source, "cuda:0")


def test_the_same_spec_gives_the_same_folder_and_record(spec: TuneSpec, present: dict[str, dict[str, Any]],
                                                        capsys: pytest.CaptureFixture[str]) -> None:
    """Only the kernels differ: with those of PEFT behind the same names the weights come out as PEFT's do."""
    found = tune(spec)
    assert set(present["load"]) <= LOADING
    assert set(present["adapt"]) <= ADAPTING
    load = present["load"]
    assert (load["use_exact_model_name"], load["fix_tokenizer"], load["load_in_4bit"]) == (True, False, False)
    assert load["model_name"] == str(Path(spec.model).resolve())
    assert load["dtype"] == torch.float32
    assert present["adapt"]["target_modules"] == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj",
                                                  "v_proj"]
    assert (found.settings["backend"], found.settings["backend_version"]) == ("unsloth", "2026.10.9")
    assert found.held_out is not None
    assert found.held_out.after < found.held_out.before
    assert capsys.readouterr().out == ""
    usual = tune(spec.model_copy(update={"backend": "peft", "out": spec.out.with_name("peft")}))  # type: ignore[union-attr]
    assert "backend" not in usual.settings
    assert usual.id != found.id
    weights, others = (load_file(Path(t.output) / "adapter_model.safetensors") for t in (found, usual))
    assert list(weights) == list(others)
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def test_its_errors_are_one_line(spec: TuneSpec, present: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(**_: Any) -> Any:
        raise NotImplementedError("no kernels\nfor this family")

    monkeypatch.setattr(sys.modules["unsloth"].FastLanguageModel, "from_pretrained", fails)  # type: ignore[attr-defined]
    with pytest.raises(SourceError, match=r"unsloth cannot make this model trainable .no kernels for this family"):
        tune(spec)
