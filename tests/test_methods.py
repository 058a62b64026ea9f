"""The registry of methods: every entry is whole, what is read from it agrees with PEFT, and the documents list each."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from aftertune import methods
from aftertune.engine.cpu.lora import is_plain_lora
from aftertune.methods import METHODS, method_title, unused_settings, writes_adapter
from aftertune.sources import load_model, resolve_model
from aftertune.study import DataSpec, LoraSpec, Study, StudyTuning, TuneSpec
from aftertune.tuning import estimate_tuning
from aftertune.tuning.build import base_dtype, build, count_trainable, source_for_method
from tuning_cases import easy_rows, family_model, tiny_model, write_rows

ROOT = Path(__file__).parents[1]
ADAPTERS = [name for name, method in METHODS.items() if method.adapter]
#: Another value of each setting than the usual one.
OTHER: dict[str, Any] = {"r": 4, "alpha": 7.0, "dropout": 0.25, "target_modules": ("q_proj", "down_proj")}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("methods")
    tiny_model(folder / "llama", hidden=64)  # wide enough for four bits
    family_model(folder / "phi", "phi-2")
    write_rows(folder / "data.jsonl", easy_rows())
    return folder


def made(folder: Path, method: str, lora: LoraSpec) -> Any:
    """The model with what the method trains of it."""
    base = load_model(source_for_method(resolve_model(str(folder)), method), base_dtype(method, "float32"), "cpu")
    return build(base, method, lora, seed=0)


@pytest.mark.parametrize("name", METHODS)
def test_an_entry_has_all_its_facts(name: str) -> None:
    method = METHODS[name]
    assert method.title
    assert method.trains.endswith(".")
    assert 0 < method.learning_rate < 0.1
    assert method.kept >= 1
    assert method.loop >= methods.LOOP
    assert set(method.settings) <= set(LoraSpec.model_fields)
    assert set(method.defaults) <= set(method.settings)
    LoraSpec(**method.defaults)
    assert method.adapter == bool(method.settings)
    assert method.adapter == (method.parameters is not None)
    assert method.adapter or method.not_merged, "whole weights have nothing to be merged"
    assert not method.fused or method.base == "computing", "the compiled kernels take a base that is not quantised"


def test_the_names_are_those_of_the_specification_and_of_the_documents() -> None:
    assert get_args(methods.MethodName) == tuple(METHODS)
    schema = Study.json_schema()["$defs"]["StudyTuning"]["properties"]["method"]
    assert schema["enum"] == list(METHODS)
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert page == methods.methods_page(), "docs/methods.md is not what METHODS says now; run `make docs`"
    commands = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    told = next(line for line in commands.splitlines() if line.startswith("| `--method`"))
    for name, method in METHODS.items():
        assert f"| `{name}` | {method.title} |" in page
        assert f"- `{name}`: {method.trains}" in page
        assert name in told
    for name in ("README.md", "docs/studies.md"):
        assert "methods.md)" in (ROOT / name).read_text(encoding="utf-8"), "links to the page, and keeps no list"


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("key", OTHER)
def test_exactly_the_settings_that_an_entry_names_reach_pefts_config(name: str, key: str) -> None:
    method = METHODS[name]
    usual = LoraSpec(**method.defaults)
    assert method.config is not None
    one, other = (method.config(spec, 0).to_dict() for spec in (usual, usual.model_copy(update={key: OTHER[key]})))
    assert (one != other) is (key in method.settings)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", ["llama", "phi"])
def test_the_dry_run_knows_exactly_how_many_parameters_are_trained(place: Path, name: str, family: str) -> None:
    for settings in ({}, {"r": 5}, {"target_modules": ("q_proj", "v_proj", "fc2" if family == "phi" else "down_proj")}):
        spec = TuneSpec(model=str(place / family), data=DataSpec(file=place / "data.jsonl"), method=name, lora=settings)
        assert estimate_tuning(spec).trainable == count_trainable(made(place / family, name, spec.lora))


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_entry_says_whether_the_compiled_kernels_train_it(place: Path, name: str) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [m for m in made(place / "llama", name, LoraSpec(r=4)).modules() if isinstance(m, BaseTunerLayer)]
    assert len(layers) >= 6
    plain = {hasattr(layer, "lora_A") and is_plain_lora(layer, trained=True) for layer in layers}
    assert plain == {METHODS[name].fused}


@pytest.mark.parametrize("name", METHODS)
def test_a_recipe_begins_with_the_settings_of_its_method_and_says_what_has_no_effect(name: str) -> None:
    method, usual = METHODS[name], LoraSpec()
    for recipe in (StudyTuning(base="b", data="rows.jsonl", method=name),
                   TuneSpec(model="org/model", data="rows.jsonl", method=name)):
        assert recipe.lora == usual.model_copy(update=dict(method.defaults))
    spec = TuneSpec(model="org/model", data="rows.jsonl", method=name, lora={"r": 7})
    assert spec.lora.r == 7, "what is said goes before the method's default"
    assert TuneSpec(model="org/model", data="rows.jsonl", method=name, lora=LoraSpec(r=7)) == spec
    note = unused_settings(name, {"r", "alpha"})
    assert [f"lora.{key}" in note for key in ("r", "alpha")] == [key not in method.settings for key in ("r", "alpha")]


@pytest.mark.parametrize("name", METHODS)
def test_a_preset_speaks_for_the_methods_that_it_was_published_for(name: str) -> None:
    spec = TuneSpec(model="tinyllama", data="rows.jsonl", method=name)
    assert (spec.learning_rate == 2e-4) is METHODS[name].preset
    assert (spec.lora.alpha == 16) is METHODS[name].preset
    assert spec.max_length == 2048, "the other settings are for every method"


def test_a_method_of_another_version_is_an_adapter_by_its_name() -> None:
    assert method_title("lohalora") == "lohalora"
    assert writes_adapter("lohalora")
    assert [name for name in METHODS if not writes_adapter(name)] == ["full"]


def test_default_rates_and_ranks_are_told_in_one_line() -> None:
    text = methods.rates_text()
    assert text.startswith("ia3 8e-3, ")
    assert text.endswith(", others 2e-4")
    assert "full 2e-5" in text
    assert methods.ranks_text().startswith("Rank of the adapter")
    assert methods.join_names(["a", "b", "c"]) == "a, b or c"
    assert methods.join_names(["a"]) == "a"
