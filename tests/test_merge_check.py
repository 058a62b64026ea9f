"""check-merge: a right merge passes, a damaged one does not, and what cannot be checked is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aftertune.errors import InputError
from aftertune.ledger import Ledger
from aftertune.merge_check import check_merge
from aftertune.study import DataSpec, TaskSpec, TuneSpec
from aftertune.tuning import tune
from aftertune.values import Tuning
from eval_cases import CHAT, byte_folder
from test_cli import call
from tuning_cases import easy_rows, write_rows

TASKS = [TaskSpec(name="arc_easy", sample=6)]


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.db")


def tuned(folder: Path, ledger: Ledger, **values: object) -> Tuning:
    """A LoRA that has moved a tiny random model, merged."""
    base = byte_folder(folder / "base", template=CHAT, window=4096)
    data = DataSpec(file=write_rows(folder / "rows.jsonl", easy_rows()))
    return tune(TuneSpec(**{"model": str(base), "data": data, "out": folder / "out", "name": "easy", "max_steps": 3,
                            "learning_rate": 0.01, "merge": True, "dtype": "float32", "threads": 1, **values}),
                ledger=ledger)


def damaged(folder: Path) -> None:
    """One layer of the merged weights is another."""
    from safetensors.torch import load_file, save_file

    path = folder / "merged" / "model.safetensors"
    weights = load_file(path)
    name = next(n for n in weights if n.endswith("down_proj.weight"))
    weights[name] = weights[name] * 1.5
    save_file(weights, path, metadata={"format": "pt"})


def test_a_right_merge_is_the_same_model_and_a_damaged_one_is_not(tmp_path: Path, ledger: Ledger) -> None:
    made = tuned(tmp_path, ledger)
    found = check_merge("easy", tasks=TASKS, ledger=ledger)
    assert found.merged.same
    assert found.merged.largest < 1e-3 < found.moved
    assert found.merged.discordant == 0
    assert (found.items, found.scores) == (6, 24)
    damaged(Path(made.output))
    again = check_merge(made.output, tasks=TASKS, ledger=ledger)
    assert not again.merged.same
    assert again.moved == found.moved, "base and adapter are answered from the ledger"


def test_the_verb_tells_it_and_exits_with_one(tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch,
                                              capsys: pytest.CaptureFixture[str]) -> None:
    made = tuned(tmp_path, ledger)
    monkeypatch.setenv("AFTERTUNE_LEDGER", str(tmp_path / "ledger.db"))
    words = ("check-merge", "easy", "--tasks", "arc_easy", "--sample", "6")
    assert call(monkeypatch, *words) == 0
    assert "merged: the same model" in capsys.readouterr().out
    damaged(Path(made.output))
    assert call(monkeypatch, *words, "--json") == 1
    shown = json.loads(capsys.readouterr().out)
    assert (shown["merged"]["same"], shown["nf4"], shown["items"]) == (False, None, 6)


@pytest.mark.parametrize(("values", "words"), [
    ({"merge": False}, "--merge"), ({"merge": False, "method": "full"}, "full")])
def test_what_has_no_merged_weights_is_refused(tmp_path: Path, ledger: Ledger, values: dict[str, object],
                                               words: str) -> None:
    tuned(tmp_path, ledger, **values)
    with pytest.raises(InputError, match=words):
        check_merge("easy", tasks=TASKS, ledger=ledger)
