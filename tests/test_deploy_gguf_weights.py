"""check-merge of a GGUF file: what any program wrote is compared with the base and the adapter, beyond rounding."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from aftertune.deploy import gguf_file
from aftertune.deploy.gguf_file import write_gguf
from aftertune.deploy.gguf_weights import _Found, check_gguf
from aftertune.deploy.merged_weights import WeightsCheck
from aftertune.errors import InputError
from aftertune.sources import resolve_model
from aftertune.sources.merged_layers import MergedWeight
from deploy_cases import chat_model
from test_deploy_merged_weights import adapter, lora, merged_by_peft


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Base, adapter and right merge."""
    home = tmp_path_factory.mktemp("weights")
    base = chat_model("llama", home / "base")
    made = adapter(base, home / "adapter", lora())
    return base, made, merged_by_peft(base, made, home / "merged")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFTERTUNE_CACHE", str(tmp_path / "cache"))


def written(folder: Path, file: Path, kind: str = "q8_0") -> Path:
    write_gguf(resolve_model(str(folder)), file, kind, name="tiny")
    return file


def check(models: tuple[Path, Path, Path], file: Path) -> WeightsCheck:
    return check_gguf(str(models[0]), str(models[1]), str(file))


def changed_config(folder: Path, out: Path, **rope: Any) -> Path:
    shutil.copytree(folder, out)
    config = json.loads((out / "config.json").read_text())
    config["rope_parameters"] |= rope
    (out / "config.json").write_text(json.dumps(config))
    return out


@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_0", "q5_1"])
def test_a_right_file_of_every_type_passes(models: tuple[Path, Path, Path], tmp_path: Path, kind: str) -> None:
    result = check(models, written(models[2], tmp_path / "m.gguf", kind))
    assert result.same, result.faults
    assert result.adapted == 14
    assert result.notes == ()


@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_0"])
def test_queries_and_keys_in_another_order_of_rows_are_named(models: tuple[Path, Path, Path], tmp_path: Path, kind: str,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    """A converter that leaves the rows of queries and keys as transformers has them."""
    monkeypatch.setattr(gguf_file, "_pairs", lambda weight, heads: weight)
    result = check(models, written(models[2], tmp_path / "m.gguf", kind))
    assert [(f.kind, len(f.names)) for f in result.faults] == [("permuted", 4)]


def test_another_base_of_the_rotation_is_named(models: tuple[Path, Path, Path], tmp_path: Path) -> None:
    other = changed_config(models[2], tmp_path / "other", rope_theta=5e5)
    result = check(models, written(other, tmp_path / "m.gguf"))
    assert [(f.kind, f.names) for f in result.faults] == [("config", ("rope_theta: 10000.0 → 500000.0",))]


@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_0"])
def test_a_file_of_the_base_is_named(models: tuple[Path, Path, Path], tmp_path: Path, kind: str) -> None:
    result = check(models, written(models[0], tmp_path / "m.gguf", kind))
    assert [f.kind for f in result.faults] == ["not applied"]


def test_half_the_scale_is_named_with_its_factor(models: tuple[Path, Path, Path], tmp_path: Path) -> None:
    shutil.copytree(models[1], tmp_path / "half")
    config = json.loads((tmp_path / "half" / "adapter_config.json").read_text())
    (tmp_path / "half" / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 4}))
    half = merged_by_peft(models[0], tmp_path / "half", tmp_path / "merged")
    result = check(models, written(half, tmp_path / "m.gguf", "q4_0"))
    assert [f.kind for f in result.faults] == ["scaled"]
    factor = float(result.faults[0].sentence.split()[2])
    assert factor == pytest.approx(0.5, abs=0.02)


def test_another_order_of_the_vocabulary_is_named(models: tuple[Path, Path, Path], tmp_path: Path) -> None:
    shutil.copytree(models[2], tmp_path / "other")
    content = json.loads((tmp_path / "other" / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["A"], vocabulary["B"] = vocabulary["B"], vocabulary["A"]
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(content))
    result = check(models, written(tmp_path / "other", tmp_path / "m.gguf"))
    assert [(f.kind, f.names) for f in result.faults] == [("tokenizer", ("the ids of its tokens",))]


def test_a_change_that_rounding_hides_is_noted(models: tuple[Path, Path, Path], tmp_path: Path) -> None:
    small = adapter(models[0], tmp_path / "small", lora(), size=1e-4)
    result = check_gguf(str(models[0]), str(small), str(written(models[0], tmp_path / "m.gguf", "q4_0")))
    assert result.same
    assert "cannot be distinguished from rounding in 14 of 14 adapted weights" in result.notes[0]


def found(base: Any, merged: Any, stored: Any, kind: str = "F16") -> Any:
    """What is found of one weight."""
    import torch

    result = _Found({"w": torch.tensor(stored)}, {"w": kind}, {})
    role = "kept" if base is merged else "adapted"
    result.add(MergedWeight("w", role, base, merged))
    return result


def test_weights_that_are_no_numbers_are_changed() -> None:
    base = np.ones(64, dtype=np.float32)
    stored = base.copy()
    stored[3] = np.nan
    assert dict(found(base, base, stored).names) == {"changed": ["w"]}
    assert dict(found(base, base + base, stored).names) == {"other": ["w"]}


def test_a_weight_of_zeros_is_right() -> None:
    base = np.zeros(64, dtype=np.float32)
    assert dict(found(base, base, base).names) == {}
    assert dict(found(base, base, base + 1).names) == {"changed": ["w"]}


@pytest.mark.parametrize(("share", "kind", "unjudged"), [(0.0, "unmerged", 0), (0.5, "", 1), (1.0, "", 0)])
def test_a_change_that_may_be_there_or_not_is_noted(share: float, kind: str, unjudged: int) -> None:
    draws = np.random.default_rng(0)
    base, change, noise = (draws.normal(size=4096).astype(np.float32) for _ in range(3))
    change *= 0.01 / np.linalg.norm(change) * np.linalg.norm(base)
    noise -= change * float(noise @ change) / float(change @ change)  # so that the factor is the share
    stored = base + share * change + 0.2 * np.linalg.norm(change) * noise / noise.std()
    result = found(base, base + change, stored, "Q4_0")
    assert (list(result.names), result.unjudged) == ([kind] if kind else [], unjudged)


def rounded(values: Any, kind: str) -> Any:
    """The values that a GGUF file of a type has."""
    number = gguf.GGMLQuantizationType[kind]
    return gguf.dequantize(gguf.quantize(values, number), number)


def small_change(size: float, levels: str) -> tuple[Any, Any]:
    """A base whose values lie on the levels of a type, and a change of a share of its norm."""
    draws = np.random.default_rng(0)
    base, change = (draws.normal(size=(256, 256)).astype(np.float32) for _ in range(2))
    base = rounded(base, levels)
    return base, change * np.float32(size * np.linalg.norm(base) / np.linalg.norm(change))


@pytest.mark.parametrize(("size", "levels", "kind", "named"), [
    (0.002, "Q4_0", "Q8_0", []), (0.002, "Q4_1", "Q8_0", []), (0.001, "Q4_1", "Q8_0", []), (0.002, "BF16", "BF16", []),
    (0.002, "Q4_1", "Q4_1", ["rounded"]), (0.002, "Q8_0", "Q8_0", ["rounded"]), (0.004, "Q4_1", "Q8_0", [])])
def test_a_right_file_of_a_base_on_few_levels_is_never_called_scaled(size: float, levels: str, kind: str,
                                                                    named: list[str]) -> None:
    """Rounding makes a change smaller that is less than half a level, where all values lie on levels."""
    base, change = small_change(size, levels)
    assert list(found(base, base + change, rounded(base + change, kind), kind).names) == named


def test_half_a_change_of_a_base_on_few_levels_is_named() -> None:
    base, change = small_change(0.004, "Q4_1")
    result = found(base, base + change, rounded(base + change / 2, "Q8_0"), "Q8_0")
    assert dict(result.names) == {"scaled": ["w"]}


def test_a_folder_is_no_gguf(models: tuple[Path, Path, Path]) -> None:
    with pytest.raises(InputError, match="not a GGUF file"):
        check(models, models[2])


def test_a_type_that_rounds_the_change_away_is_named_and_how_much_of_it_is_left() -> None:
    """The base lies on the levels of the type, and the change is far smaller than a level."""
    base, change = small_change(0.002, "Q4_1")
    result = found(base, base + change, rounded(base + change, "Q4_1"), "Q4_1")
    (fault,) = result.faults()
    assert (fault.kind, fault.names) == ("rounded", ("w",))
    share = int(fault.sentence.split()[5].rstrip("%"))
    stored = rounded(base + change, "Q4_1")
    assert share == pytest.approx(100 * np.sum((stored - base) * change) / np.sum(change**2), abs=1)
    assert share < 20
    assert "Export to a type with more bits" in fault.sentence
