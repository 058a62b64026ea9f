"""Presets: shapes that come to the published parameter counts, settings below what a recipe says."""

from __future__ import annotations

from pathlib import Path

import pytest

from aftertune.errors import SourceError
from aftertune.sources import resolve_model
from aftertune.sources.resolve import preset_source
from aftertune.study import BaseSpec, DataSpec, StudyTuning, TuneSpec, presets
from aftertune.study.presets import PRESETS, ModelShape

#: As the model cards state them.
PARAMETERS = {"smollm2-135m": 134_515_008, "llama-3.2-1b": 1_235_814_400, "tinyllama": 1_100_048_384,
              "phi-2": 2_779_683_840, "mistral-7b": 7_241_732_096}


@pytest.mark.parametrize("name", PRESETS)
def test_a_shape_comes_to_the_published_parameters(name: str) -> None:
    assert PRESETS[name].shape.parameters == PARAMETERS[name]


@pytest.mark.parametrize("name", PRESETS)
def test_every_presets_settings_make_a_recipe(name: str) -> None:
    spec = TuneSpec(model=name, data="rows.jsonl", method="qlora")
    assert spec.max_length == PRESETS[name].settings["max_length"]
    assert PRESETS[name].origin


def test_a_shape_is_read_from_a_config() -> None:
    config = {"model_type": "llama", "hidden_size": 2048, "num_hidden_layers": 22, "num_attention_heads": 32,
              "num_key_value_heads": 4, "intermediate_size": 5632, "vocab_size": 32000, "tie_word_embeddings": False}
    assert ModelShape.of(config) == PRESETS["tinyllama"].shape
    assert ModelShape.of({"model_type": "mamba", "hidden_size": 10}) is None


def test_one_line_brings_the_settings_and_flags_go_before_them() -> None:
    spec = TuneSpec(model="tinyllama", method="qlora", data=DataSpec(file="alpaca", examples=50000))
    assert (spec.lora.r, spec.lora.alpha, spec.lora.dropout, spec.template) == (32, 16, 0.05, "alpaca")
    assert (spec.batch_size, spec.accumulation, spec.schedule, spec.learning_rate) == (2, 4, "cosine", 2e-4)
    spec = TuneSpec(model="tiny", data="alpaca", lora={"r": 4}, template="plain", batch_size=1)
    assert (spec.lora.r, spec.lora.alpha, spec.template, spec.batch_size) == (4, 16, "plain", 1)


def test_a_study_takes_them_too() -> None:
    tuning = StudyTuning(base="tiny", data="alpaca", lora={"dropout": 0.2}, max_length=512)
    spec = tuning.spec(BaseSpec(model="tinyllama"), name="a", dtype="auto", device="auto", out=Path("x"))
    assert (spec.lora.r, spec.lora.dropout, spec.max_length, spec.accumulation) == (32, 0.2, 512, 4)
    plain = StudyTuning(base="other", data="alpaca").spec(BaseSpec(model="org/other"), name="a", dtype="auto",
                                                          device="auto", out=Path("x"))
    assert (plain.lora.r, plain.accumulation) == (16, 1)


def test_a_folder_of_the_name_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert presets.find_preset("tinyllama") is PRESETS["tinyllama"]
    (tmp_path / "tinyllama").mkdir()
    assert presets.find_preset("tinyllama") is None
    assert preset_source("tinyllama") == "tinyllama"


def test_offline_the_name_leads_to_the_hubs_error() -> None:
    with pytest.raises(SourceError, match=r"TinyLlama/TinyLlama-1\.1B.*offline"):
        resolve_model("tinyllama")


def test_the_packs_file_serves_for_smollm2() -> None:
    assert resolve_model("smollm2-135m").gguf_file == "SmolLM2-135M-Instruct.Q4_1.gguf"
