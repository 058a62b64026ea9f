"""The functions that hand a fine-tune on, called as a program calls them, on tiny models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import aftertune
from aftertune.errors import InputError
from aftertune.values import Tuning
from cure_cases import SETTINGS, cure_place, fine_tune_with_checkpoints
from deploy_cases import easy_tuning, set_own_cache
from tuning_cases import write_rows


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("handed")


@pytest.fixture(scope="module")
def tuned(home: Path) -> Tuning:
    return easy_tuning(home, merge=True)


@pytest.fixture(autouse=True)
def own_cache(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_own_cache(monkeypatch, home / "cache")


def test_files_for_llama_cpp_take_types_in_one_text(home: Path, tuned: Tuning) -> None:
    made = aftertune.export_gguf(tuned, home / "files", kinds="q8_0,f16", ledger=home / "ledger.db")
    assert sorted(made.files) == ["f16", "q8_0"]
    assert all(path.is_file() for path in made.files.values())


def test_merged_weights_and_links_are_checked(home: Path, tuned: Tuning) -> None:
    write_rows(home / "held.jsonl", [{"prompt": f"Order {n}", "completion": f"{n}"} for n in range(6)])
    task = {"name": "held", "target": {"file": home / "held.jsonl", "max_tokens": 4}}
    assert aftertune.check_merge(tuned, "arc_easy", sample=4, ledger=home / "ledger.db").merged.same
    found = aftertune.check_deploy(tuned.name, "adapter,merged", task, out=home / "chain", ledger=home / "ledger.db")
    assert [link.link.name for link in found.links] == ["adapter", "merged"]
    assert found.broken is None


def test_what_cannot_be_done_is_one_line(home: Path, tuned: Tuning) -> None:
    with pytest.raises(InputError):
        aftertune.rollback(tuned, 1, ledger=home / "ledger.db")
    with pytest.raises(InputError, match="density has no effect"):
        aftertune.blend([tuned, tuned], "arc_easy=2", weights=(0.5, 0.5), density=0.3, ledger=home / "ledger.db")


def test_a_fine_tune_is_cured_and_rolled_back(tmp_path: Path) -> None:
    place = cure_place(tmp_path)
    made = fine_tune_with_checkpoints(place, "adapter")
    common: dict[str, Any] = {"ledger": place / "first.db", "items": 80, "include_path": place / "tasks",
                              "target": f"{place / 'say.jsonl'}=40", "scorer": "exact", "progress": False, **SETTINGS}
    softened = aftertune.soften(made.output, {"colours": 60.0}, strengths=(0.5,), out=place / "soft", **common)
    common["target"] = {str(place / "say.jsonl"): 40}
    cured = aftertune.cure(made.output, "colours=60", out=place / "cured", **common)
    assert (softened.written, cured.written) == ((place / "soft").is_dir(), (place / "cured").is_dir())
    assert aftertune.rollback(made.output, 3, ledger=place / "first.db").final_step == 3
