"""What stands in the folder of a fine-tune, as other programs and the Hub read it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, constants
from peft import AutoPeftModelForCausalLM

from aftertune.ledger import Ledger
from aftertune.methods import METHODS
from aftertune.sources.readme import README, replaceable
from aftertune.study import DataSpec, TuneSpec
from aftertune.tuning import tune
from aftertune.tuning.rollback import roll_back
from aftertune.values import Tuning
from cli_cases import call, settle
from tuning_cases import base_and_data, tiny_model

COMMIT = "0f" * 20


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base in ``base``, the same in a cache of the Hub as org/base, and data."""
    place = base_and_data(tmp_path_factory.mktemp("handed"))
    store = place / "hub" / "models--org--base"
    (store / "refs").mkdir(parents=True)
    (store / "refs" / "main").write_text(COMMIT)
    tiny_model(store / "snapshots" / COMMIT)
    (store / "snapshots" / COMMIT / README).write_text("---\nlicense: mit\n---\n# base\n")
    return place


def tuned(place: Path, out: str, monkeypatch: pytest.MonkeyPatch, **values: Any) -> Tuning:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(place / "hub"))
    spec = {"model": str(place / "base"), "data": DataSpec(file=place / "data.jsonl"), "out": place / out,
            "max_steps": 2, "dtype": "float32", "device": "cpu", "threads": 1}
    with Ledger(place / "ledger.db") as ledger:
        return tune(TuneSpec(**{**spec, **values}), ledger=ledger)


def card(place: Path, tuning: Tuning, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    settle(monkeypatch, place)
    return call(monkeypatch, "card", tuning.id, "--out", tuning.output, *words)


@pytest.mark.parametrize("method", ["lora", "pissa", "full"])
def test_a_folder_has_one_readme_which_a_card_replaces_at_the_first_try(method: str, place: Path,
                                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    tuning = tuned(place, method, monkeypatch, method=method)
    readme = Path(tuning.output) / README
    text = readme.read_text()
    assert "More Information Needed" not in text
    assert f"# {METHODS[method].title} fine-tune\n" in text
    assert f"aftertune card {tuning.id} --out" in text
    data = ModelCard.load(readme).data
    assert (data.library_name, data.tags) == ("transformers" if method == "full" else "peft", ["aftertune", method])
    assert str(place) not in text
    assert card(place, tuning, monkeypatch) == 0
    assert f"# {tuning.name}\n" in readme.read_text()
    tuned(place, method, monkeypatch, method=method)  # it is finished
    assert f"# {tuning.name}\n" in readme.read_text()


def test_what_a_person_wrote_stays(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = place / "own"
    out.mkdir()
    (out / README).write_text("# Mine\n")
    tuning = tuned(place, "own", monkeypatch)
    assert (out / README).read_text() == "# Mine\n"
    assert card(place, tuning, monkeypatch) == 2
    assert (out / README).read_text() == "# Mine\n"


def test_a_card_of_other_weights_does_not_stay(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuning = tuned(place, "kept", monkeypatch, max_steps=4, keep_checkpoints="all",
                   data=DataSpec(file=place / "data.jsonl", validation=0.2), early_stop={"every": 2, "patience": 9})
    assert card(place, tuning, monkeypatch) == 0
    written = (place / "kept" / README).read_text()
    with Ledger(place / "ledger.db") as ledger:
        roll_back(tuning.id, tuning.checkpoints[0].step, ledger)
    assert replaceable(place / "kept")
    assert "## Results" in written
    assert "## Results" not in (place / "kept" / README).read_text()
    again = tuned(place, "kept", monkeypatch, max_steps=3)
    assert f"aftertune card {again.id}" in (place / "kept" / README).read_text()
    assert not [*(place / "kept").glob(f"kept/*/{README}")]


def test_plain_peft_finds_a_base_of_the_hub(place: Path, monkeypatch: pytest.MonkeyPatch,
                                            tmp_path: Path) -> None:
    tuning = tuned(place, "hubs", monkeypatch, model="org/base")
    config = json.loads((place / "hubs" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/base", COMMIT)
    monkeypatch.chdir(tmp_path)
    model = AutoPeftModelForCausalLM.from_pretrained(tuning.output)
    assert model.peft_config["default"].base_model_name_or_path == "org/base"
    assert card(place, tuning, monkeypatch) == 0
    data = ModelCard.load(place / "hubs" / README).data
    assert (data.base_model, data.license) == ("org/base", "mit")


def test_the_model_of_a_pack_is_named_as_on_the_hub(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from aftertune.study import presets

    packed = presets.PRESETS["smollm2-135m"]
    monkeypatch.setitem(presets.PRESETS, "smollm2-135m", replace(packed, pack=str(place / "base")))
    tuned(place, "pack", monkeypatch)
    config = json.loads((place / "pack" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == (packed.source, None)
