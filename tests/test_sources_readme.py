"""The README.md of a model's folder: what may be replaced, what PEFT leaves there, and the license that it states."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import ModelCard, ModelCardData

from aftertune import bounds
from aftertune.sources.readme import README, header_fields, kept_readme, license_of, remove_stale, replaceable, sealed
from aftertune.values import ModelIdentity

PEFTS = "\n### Framework versions\n\n- PEFT 0.21.2"


def model(source: str, revision: str | None = None) -> ModelIdentity:
    return ModelIdentity(source=source, weights="w", config="c", tokenizer="t", revision=revision)


def template() -> str:
    card = ModelCard.from_template(ModelCardData())
    card.data.base_model = "base"
    return str(card) + PEFTS


@pytest.mark.parametrize(("text", "may"), [
    (None, True), (sealed("# ours\n"), True), (sealed("# ours\n").replace("\n", "\r\n"), True), (template(), True),
    (sealed("# ours\n").replace("ours", "mine"), False), (sealed("# ours\n") + "mine", False),
    (template().replace("[More Information Needed]", "me", 1), False), (template() + "\nmine\n", False),
    ("# mine", False), ("", False)])
def test_only_what_nobody_wrote_may_be_replaced(text: str | None, may: bool, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / README).write_bytes(text.encode())
    assert replaceable(tmp_path) is may
    remove_stale(tmp_path)
    assert (tmp_path / README).exists() is not may


def test_a_very_long_readme_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / README).write_text(sealed("---\nlicense: mit\n---\n" + "x" * bounds.README_BYTES))
    assert not replaceable(tmp_path)
    assert license_of(model(str(tmp_path))) is None


def test_a_folder_named_readme_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / README).mkdir()
    assert not replaceable(tmp_path)
    remove_stale(tmp_path)


@pytest.mark.parametrize("before", [None, b"# mine\r\n"])
def test_what_another_library_writes_does_not_stay(before: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / README
    if before is not None:
        path.write_bytes(before)
    with kept_readme(tmp_path):
        path.write_text(template())
    assert (path.read_bytes() if path.exists() else None) == before


@pytest.mark.parametrize(("text", "found"), [
    ("---\nlicense: mit\n---\n", "mit"), ("---\nlicense: \"llama3.2\"\nx: 1\n---\ntext", "llama3.2"),
    ("---\nx: 1\n---\nlicense: mit\n", None), ("license: mit", None), ("---\nlicense: [mit, x]\n---\n", None)])
def test_the_license_of_a_folder_is_in_the_header_of_its_readme(text: str, found: str | None, tmp_path: Path) -> None:
    (tmp_path / README).write_text(text)
    assert license_of(model(str(tmp_path))) == found


def test_the_license_of_a_model_of_the_hub_is_in_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0f" * 20
    snapshot = tmp_path / "models--org--base" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / README).write_text("---\nlicense: mit\n---\n")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert license_of(model("org/base", commit)) == "mit"
    assert license_of(model("org/other", commit)) is None
    assert license_of(model("package:x/y.gguf")) is None
    assert license_of(model("microsoft/phi-2")) == "mit"  # a preset


def test_the_header_names_what_is_on_the_hub_alone() -> None:
    local = header_fields(model("/home/me/base"), adapter=True, method="lora", data="orders.jsonl", license_=None)
    assert {k: v for k, v in local.items() if v} == {"pipeline_tag": "text-generation", "tags": ["aftertune", "lora"]}
    hub = header_fields(model("org/base", "0f"), adapter=False, method="full", data="alpaca", license_="mit")
    assert (hub["base_model"], hub["base_model_relation"], hub["datasets"]) == ("org/base", "finetune",
                                                                                ["tatsu-lab/alpaca"])
